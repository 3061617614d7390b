import os

DATABASE_URL = os.environ.get("DATABASE_URL", "postgres://shop:shop@db:5432/shop")
CACHE = "redis://cache:6379/0"
