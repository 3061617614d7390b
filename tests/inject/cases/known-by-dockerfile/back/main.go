const dsn = "postgres://u:p@store/db"
