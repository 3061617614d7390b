"""What every foreign proxy must find in us, and we in it: one class of tests, which each peer's file fills with its program.

A foreign peer holds a certificate of our CA and offers no ALPN protocol, so it is spoken to raw. Each acceptance has its
twin refusal: the same program, the same wiring, with the valid certificate of another service.
"""

from __future__ import annotations

import base64
import os
import re
import socket
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed, receive_all
from tests.beds.processes import Shop, SidecarProcess, free_port, output, sidecar_process

BODY = base64.b64encode(os.urandom(750_000))
WEB, API, DB, REPORTING = (f"spiffe://shop.internal/{name}" for name in ("web", "api", "db", "reporting"))

RESUMING = (1, 2, 3)
"""Connections one after the other: the second would resume the first one's TLS session, if there were any."""

TOLERANT = ", tolerate_missing_close_notify: true"
"""For a listener's options: a peer that ends without close_notify is believed."""


async def http_echo(sock: socket.socket, app: App) -> None:
    """HTTP/1.1: answers each request with its own body, until one says that it is the last."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = await sockets.receive(sock, 65536)
            if not more:
                return
            app.received += more
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        while len(data) < size:
            more = await sockets.receive(sock, 65536)
            if not more:
                return
            app.received += more
            data += more
        body, data = data[:size], data[size:]
        await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        if b"Connection: close" in head:
            return


async def post(address: str, body: Path) -> str:
    """What curl hears that posts ``body`` to an address; its own complaint, ``curl: …``, if it was not answered."""
    options = ("-sS", "--max-time", "20", "-H", "Expect:", "--data-binary", f"@{body}")
    return await output("curl", *options, f"http://{address}/", check=False)


def api_before(shop: Shop, app: App | str, more: str = "") -> AbstractAsyncContextManager[SidecarProcess]:
    """Our sidecar as the callee of a foreign peer."""
    address = app if isinstance(app, str) else app.address
    listener = f'{{port: http, listen: "127.0.0.1:0", app: "{address}"{more}}}'
    return sidecar_process(shop.wiring("api", f"inbound: [{listener}]\n"))


def web_to(
    shop: Shop, peer: str, more: str = "", *, service: str = "web", target: str = "api:http"
) -> AbstractAsyncContextManager[SidecarProcess]:
    """Our sidecar as the caller of a foreign peer."""
    listener = f'{{to: "{target}", listen: "127.0.0.1:0", peers: ["{peer}"]{more}}}'
    return sidecar_process(shop.wiring(service, f"outbound: [{listener}]\n"))


async def refused(sidecar: SidecarProcess, reason: str, **fields: Any) -> dict[str, Any]:
    """The line of the connection that a sidecar refused for this reason, without a byte for or from its app."""
    line = await sidecar.program.connection()
    expected = {"decision": "deny", "reason": reason, "bytes_to_app": 0, "bytes_from_app": 0, **fields}
    assert {name: line[name] for name in expected} == expected
    assert line["message"].startswith("refused: ")
    return line


class ForeignPeer(ABC):
    """One foreign program. :meth:`caller` and :meth:`callee` start it; both verify our chain, and whom they call."""

    refusal: tuple[str, str, str | None]
    """Decision, reason and peer's reason that we log, when it finds that we are not whom it calls."""

    ending: str = "ok"
    """The reason that we log when we called it, and our side was the first to end."""

    @abstractmethod
    def caller(self, shop: Shop, service: str, to: str) -> AbstractAsyncContextManager[str]:
        """Shows the certificate of ``service``, and calls ``to``, where it expects api; its plaintext address."""

    @abstractmethod
    def callee(self, shop: Shop, service: str, app: str) -> AbstractAsyncContextManager[str]:
        """Shows the certificate of ``service`` before ``app``, to whoever has one of our CA; its TLS address."""

    # -- it calls us ---------------------------------------------------------------------------------------------------

    async def test_it_calls_our_port(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with api_before(shop, app) as api, self.caller(shop, "web", api.at("http")) as entry:
                for number in RESUMING:
                    assert await post(entry, body_in(tmp_path)) == BODY.decode()
                    line = await api.program.connection(number)
                    assert (line["decision"], line["reason"], line["rule"]) == ("allow", "ok", "web->api:http")
                    assert (line["peer_id"], line["resumed"]) == (WEB, False)
                    assert line["bytes_to_app"] * number == len(app.received) > len(BODY)

    async def test_another_service_calls_our_port(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with api_before(shop, app) as api, self.caller(shop, "reporting", api.at("http")) as entry:
                assert (await post(entry, body_in(tmp_path))).startswith("curl: ")
                line = await refused(api, "policy_denied", peer_id=REPORTING, rule=None)
                assert REPORTING in line["message"]
        assert app.connections == 0

    async def test_it_calls_a_port_that_requires_our_protocol(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with (
                api_before(shop, app, ", require_alpn: true") as api,
                self.caller(shop, "web", api.at("http")) as entry,
            ):
                assert (await post(entry, body_in(tmp_path))).startswith("curl: ")
                line = await refused(api, "handshake_failed", peer_id=WEB)
                assert "mesh/1/http" in line["message"]
        assert app.connections == 0

    async def test_it_refuses_another_of_ours_in_api_s_place(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            wiring = f'inbound: [{{port: redis, listen: "127.0.0.1:0", app: "{app.address}"}}]\n'
            async with (
                sidecar_process(shop.wiring("db", wiring)) as db,
                self.caller(shop, "web", db.at("redis")) as entry,
            ):
                assert (await post(entry, body_in(tmp_path))).startswith("curl: ")
                line = await db.program.connection()
        assert (line["decision"], line["reason"], line.get("peer_reason")) == self.refusal
        assert app.received == b""

    # -- we call it ----------------------------------------------------------------------------------------------------

    async def test_we_call_it(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with self.callee(shop, "api", str(app.address)) as peer, web_to(shop, peer) as web:
                for number in RESUMING:
                    assert await post(web.at("api:http"), body_in(tmp_path)) == BODY.decode()
                    line = await web.program.connection(number)
                    assert (line["decision"], line["reason"], line["rule"]) == ("allow", self.ending, "web->api:http")
                    assert (line["peer_id"], line["resumed"]) == (API, False)
                    assert line["bytes_from_app"] * number == len(app.received) > len(BODY)
                assert not web.program.events("mitm_suspected")

    async def test_another_service_answers_our_call(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with self.callee(shop, "db", str(app.address)) as peer, web_to(shop, peer) as web:
                assert (await post(web.at("api:http"), body_in(tmp_path))).startswith("curl: ")
                await refused(web, "unexpected_peer", peer_id=None, upstream="api:http")
                alarm = await web.program.event("mitm_suspected")
                assert (alarm["reason"], alarm["expected"]) == ("unexpected_peer", API)
                assert DB in alarm["presented"]["uris"]
        assert app.received == b""

    async def test_we_call_it_but_require_our_protocol(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with (
                self.callee(shop, "api", str(app.address)) as peer,
                web_to(shop, peer, ", require_alpn: true") as web,
            ):
                assert (await post(web.at("api:http"), body_in(tmp_path))).startswith("curl: ")
                line = await refused(web, "handshake_failed")
                assert "mesh/1/http" in line["message"]
        assert app.received == b""


class HalfClosingPeer(ForeignPeer):
    """One that carries the end of one direction, and lets the other live on."""

    async def test_it_calls_and_hears_an_answer_after_its_end(self, shop: Shop) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(answer_at_the_end)
            async with api_before(shop, app) as api, self.caller(shop, "web", api.at("http")) as entry:
                assert await ask_and_end(*entry.split(":")) == b"late"
                assert (await api.program.connection())["reason"] == "ok"
        assert app.received == b"question"

    async def test_we_call_and_hear_an_answer_after_our_end(self, shop: Shop) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(answer_at_the_end)
            async with self.callee(shop, "api", str(app.address)) as peer, web_to(shop, peer) as web:
                assert await ask_and_end(*web.at("api:http").split(":")) == b"late"
                assert (await web.program.connection())["reason"] == "ok"
        assert app.received == b"question"


async def answer_at_the_end(sock: socket.socket, app: App) -> None:
    app.received += await receive_all(sock)
    await sockets.send_all(sock, b"late")


async def ask_and_end(host: str, port: str) -> bytes:
    with await sockets.connect(socket.AF_INET, (host, int(port))) as sock:
        await sockets.send_all(sock, b"question")
        sock.shutdown(socket.SHUT_WR)
        return await receive_all(sock)


def body_in(directory: Path) -> Path:
    file = directory / "body"
    file.write_bytes(BODY)
    return file


def written(shop: Shop, name: str, text: str) -> Path:
    """A configuration file in the shop's directory, where the certificates are."""
    file = shop.path / name
    file.write_text(text)
    return file


def place() -> str:
    """A free address of loopback."""
    return f"127.0.0.1:{free_port()}"
