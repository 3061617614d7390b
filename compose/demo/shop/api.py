"""The shop's prices, from PostgreSQL; visits are counted in Redis. Each request opens a new connection to each.

``/teapot`` answers ``teapot costs 49.90 (visit 7)``; ``/`` answers the number of products. A request needs a password.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg


def visit() -> int:
    """Counts one visit, in Redis's inline protocol."""
    address = os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"])
    with socket.create_connection(address, 5) as redis, redis.makefile("rb") as answer:
        redis.sendall(b"INCR visits\r\n")
        line = answer.readline()
    if not line.startswith(b":"):
        raise OSError(f"redis answered {line!r}")
    return int(line[1:])


def answer(path: str) -> tuple[int, str]:
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5) as database:
        if path == "/":
            (number,) = database.execute("SELECT count(*) FROM products").fetchall()[0]
            return 200, f"{number} products\n"
        found = database.execute("SELECT price FROM products WHERE name = %s", [path[1:]]).fetchone()
    return (200, f"{path[1:]} costs {found[0]} (visit {visit()})\n") if found else (404, "no such product\n")


class ApiHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        if kind != "Basic" or b64decode(secret).decode().partition(":")[2] != os.environ["API_PASSWORD"]:
            code, text = 401, "a password is needed\n"
        else:
            try:
                code, text = answer(self.path)
            except (OSError, psycopg.Error) as error:
                code, text = 503, f"{error}\n"
        # In one write, as current servers do.
        head = f"HTTP/1.0 {code} -\r\nContent-Length: {len(text.encode())}\r\n\r\n"
        self.wfile.write((head + text).encode())

    def log_message(self, *_: object) -> None:
        """Logs nothing: the sidecars log each connection."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the container's first process ignores SIGTERM by default
    Server(("0.0.0.0", 8000), ApiHandler).serve_forever()  # a container's port
