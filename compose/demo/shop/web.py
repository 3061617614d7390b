"""The shop's page: fetches prices from api over plain HTTP, with a password. Answers ``/`` with api's answer."""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = b64encode(f"{os.environ['API_USER']}:{os.environ['API_PASSWORD']}".encode()).decode()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        request = urllib.request.Request(  # the address is ours
            os.environ["API_URL"] + self.path, headers={"Authorization": f"Basic {SECRET}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                code, text = 200, answer.read()
        except (OSError, ValueError) as error:
            code, text = 502, f"api cannot be reached: {error}\n".encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Logs nothing: the sidecars log each connection."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the container's first process ignores SIGTERM by default
    Server(("0.0.0.0", 8000), Page).serve_forever()  # a container's port
