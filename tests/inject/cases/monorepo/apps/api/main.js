connect("postgres://app@db/app"); serve();
