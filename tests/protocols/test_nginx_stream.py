"""nginx's stream module as a peer. A sloppy one: a side that ended first gets no close_notify from it in return, so that it
wants ``tolerate_missing_close_notify``; and that side hears nothing after its own end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed, receive_all
from tests.beds.processes import Shop
from tests.protocols import nginx
from tests.protocols.foreign import (
    BODY,
    TOLERANT,
    ForeignPeer,
    api_before,
    body_in,
    http_echo,
    place,
    post,
    web_to,
)
from tests.protocols.programs import needs

pytestmark = needs("nginx", "curl", stream_module=True)


def identity(shop: Shop, service: str, prefix: str, trusted: str) -> str:
    """The depth is needed: nginx's own, 1, is not enough for a chain with an intermediate."""
    directory = shop.path / service
    return (
        f"{prefix}_certificate {directory}/certificate.pem; {prefix}_certificate_key {directory}/key.pem;"
        f" {trusted} {directory}/bundle.pem; {prefix}_verify_depth 2; {prefix}_protocols TLSv1.3;"
    )


class TestNginxStream(ForeignPeer):
    refusal = ("allow", "ok", None)  # it looks at our name after the handshake, and then ends it without a word
    ending = "truncated"

    @asynccontextmanager
    async def caller(self, shop: Shop, service: str, to: str) -> AsyncIterator[str]:
        entry = place()
        tls = identity(shop, service, "proxy_ssl", "proxy_ssl_trusted_certificate")
        name = "proxy_ssl on; proxy_ssl_verify on; proxy_ssl_server_name on; proxy_ssl_name api;"
        async with nginx.stream(shop.path, f"server {{ listen {entry}; proxy_pass {to}; {tls} {name} }}"):
            yield entry

    @asynccontextmanager
    async def callee(self, shop: Shop, service: str, app: str) -> AsyncIterator[str]:
        entry = place()
        tls = identity(shop, service, "ssl", "ssl_client_certificate")
        body = f"server {{ listen {entry} ssl; proxy_pass {app}; {tls} ssl_verify_client on; }}"
        async with nginx.stream(shop.path, body):
            yield entry

    async def test_we_call_it_and_tolerate_its_end(self, shop: Shop, tmp_path: Path) -> None:
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with self.callee(shop, "api", str(app.address)) as peer, web_to(shop, peer, TOLERANT) as web:
                assert await post(web.at("api:http"), body_in(tmp_path)) == BODY.decode()
                assert (await web.program.connection())["reason"] == "ok"

    @pytest.mark.parametrize(("options", "reason"), [("", "truncated"), (TOLERANT, "ok")])
    async def test_it_calls_an_app_that_ends_first(self, shop: Shop, options: str, reason: str) -> None:
        async def answer_and_end(sock: socket.socket, _: App) -> None:
            await sockets.receive(sock, 1)
            await sockets.send_all(sock, BODY)

        async with mesh_bed() as bed:
            app = await bed.app(answer_and_end)
            async with api_before(shop, app, options) as api, self.caller(shop, "web", api.at("http")) as entry:
                host, port = entry.split(":")
                with await sockets.connect(socket.AF_INET, (host, int(port))) as sock:
                    await sockets.send_all(sock, b"?")
                    assert await receive_all(sock) == BODY
                assert (await api.program.connection())["reason"] == reason
