CREATE TABLE products (name text PRIMARY KEY, price numeric(8, 2) NOT NULL);
INSERT INTO products VALUES ('teapot', 49.90), ('kettle', 79.00);
