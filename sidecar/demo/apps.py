"""The demo's applications: plain HTTP and plain Redis protocol, without TLS.

``web`` fetches its page from ``api``; ``api`` keeps a counter in Redis and serves a large file; ``redis`` is a stand-in with
a few commands, for machines without redis-server. Each runs as a process:
``python -m sidecar.demo.apps NAME PORT [UPSTREAM]``.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import socketserver
import sys
from hashlib import sha256

FILE_BYTES = 48 * 1024 * 1024
PIECE = sha256(b"the demo's file").digest() * 2048  # 64 KiB


class _Http(http.server.BaseHTTPRequestHandler):
    """The base of both HTTP apps. ``upstream`` is the local port of the next service."""

    protocol_version = "HTTP/1.1"
    upstream = 0

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the standard library's)
        """Logs nothing: the sidecars log each connection."""


class Web(_Http):
    """Answers with a page that contains ``api``'s answer. The visitor's Authorization header is passed on."""

    def do_GET(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=10)
        try:
            connection.request("GET", "/visits", headers={"Authorization": self.headers.get("Authorization", "")})
            with connection.getresponse() as answer:
                self.answer(b"<h1>shop</h1> " + answer.read())
        except OSError as error:
            self.answer(f"api cannot be reached: {error}".encode(), 502)
        finally:
            connection.close()


class ApiApp(_Http):
    """Counts visits in Redis, and serves a large file."""

    def do_GET(self) -> None:
        if self.path == "/file":
            self.send_response(200)
            self.send_header("Content-Length", str(FILE_BYTES))
            self.end_headers()
            for _ in range(FILE_BYTES // len(PIECE)):
                self.wfile.write(PIECE)
            return
        try:
            with socket.create_connection(("127.0.0.1", self.upstream), timeout=10) as redis:
                redis.sendall(b"INCR visits\r\n")
                self.answer(b"visits: " + redis.recv(100).strip().lstrip(b":"))
        except OSError as error:
            self.answer(f"redis cannot be reached: {error}".encode(), 502)


class Redis(socketserver.StreamRequestHandler):
    """PING and INCR, as inline commands."""

    counters: dict[bytes, int] = {}  # noqa: RUF012 (the store, shared on purpose)

    def handle(self) -> None:
        for line in self.rfile:
            words = line.split()
            if words[:1] == [b"INCR"] and len(words) == 2:
                self.counters[words[1]] = self.counters.get(words[1], 0) + 1
                self.wfile.write(b":%d\r\n" % self.counters[words[1]])
            elif words[:1] == [b"PING"]:
                self.wfile.write(b"+PONG\r\n")
            else:
                self.wfile.write(b"-ERR this stand-in supports PING and INCR only\r\n")


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores the error: a caller that disconnects is not one."""


def main(name: str, port: str, upstream: str = "0") -> None:
    """Serves one app on loopback until it is killed."""
    handlers: dict[str, type[socketserver.BaseRequestHandler]] = {"web": Web, "api": ApiApp, "redis": Redis}
    _Http.upstream = int(upstream)
    with _Server(("127.0.0.1", int(port)), handlers[name]) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
