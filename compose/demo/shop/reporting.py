"""A report every two seconds: the number of products from api, and the sum of the prices directly from the database, with a
password that this service should not have.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from base64 import b64encode

import psycopg

SECRET = b64encode(f"{os.environ['API_USER']}:{os.environ['API_PASSWORD']}".encode()).decode()
HOST = "".join(["d", "b"])


def from_api() -> str:
    headers = {"Authorization": f"Basic {SECRET}"}
    request = urllib.request.Request(os.environ["API_URL"] + "/", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode().strip())


def from_database() -> str:
    settings = f"host={HOST} user=shop password=battery-staple dbname=shop connect_timeout=5"
    with psycopg.connect(settings) as database:
        (total,) = database.execute("SELECT sum(price) FROM products").fetchall()[0]
    return f"{total} in all"


def main() -> None:
    while True:
        for name, fetch in (("api", from_api), ("database", from_database)):
            try:
                print(f"{name}: {fetch()}")
            except (OSError, psycopg.Error) as error:
                print(f"{name}: refused: {str(error).splitlines()[0]}")
        time.sleep(2)  # a program of the demo, without an event loop


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the container's first process ignores SIGTERM by default
    main()
