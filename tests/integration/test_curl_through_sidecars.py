"""HTTP through a pair of ``sidecar run`` processes: curl on one side, a plain HTTP/1.1 server on the other."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.beds.processes import Shop, needs, output, sidecar_pair

pytestmark = needs("curl")

TEN_MEGABYTES = os.urandom(10_000_000)
SHA256 = hashlib.sha256(TEN_MEGABYTES).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """``GET /chunked`` and ``/big`` answer as named; ``POST`` answers with the hash of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"one ", b"two ", b"three"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._answer(TEN_MEGABYTES if self.path == "/big" else b"hello")

    def do_POST(self) -> None:
        self._answer(hashlib.sha256(self._body()).hexdigest().encode())

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def http_app() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_keep_alive_chunks_and_ten_megabytes_both_ways(shop: Shop, http_app: str, tmp_path: Path) -> None:
    curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "30"]
    big = tmp_path / "big"
    big.write_bytes(TEN_MEGABYTES)
    async with sidecar_pair(shop, http_app) as (web, api):
        entry = f"http://{web.at('api:http')}"

        # Three requests, one connection.
        said = await output(*curl, "-w", "[%{num_connects}]", *[f"{entry}/{n}" for n in "abc"])
        assert said == "hello[1]hello[0]hello[0]"

        assert await output(*curl, f"{entry}/chunked") == "one two three"

        await output(*curl, "-o", tmp_path / "back", f"{entry}/big")
        assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == SHA256

        binary = ("--data-binary", f"@{big}", "-H", "Expect:")
        assert await output(*curl, *binary, f"{entry}/up") == SHA256
        assert await output(*curl, *binary, "-H", "Transfer-Encoding: chunked", f"{entry}/up") == SHA256

        lines = [await api.program.connection(number) for number in range(1, 6)]
        assert {(line["decision"], line["reason"]) for line in lines} == {("allow", "ok")}
        assert lines[2]["bytes_from_app"] > 10_000_000
        assert min(line["bytes_to_app"] for line in lines[3:]) > 10_000_000
        theirs = [await web.program.connection(number) for number in range(1, 6)]
        # Both ends count the same bytes, each from its own app's side.
        assert {(line["connection_id"], line["bytes_to_app"], line["bytes_from_app"]) for line in lines} == {
            (line["connection_id"], line["bytes_from_app"], line["bytes_to_app"]) for line in theirs
        }
