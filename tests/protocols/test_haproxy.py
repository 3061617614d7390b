"""HAProxy as a peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.beds.processes import Shop
from tests.protocols.foreign import HalfClosingPeer, place, written
from tests.protocols.programs import needs, program, server

pytestmark = needs("haproxy", "curl")


@asynccontextmanager
async def haproxy(shop: Shop, frontend: str, backend: str) -> AsyncIterator[None]:
    file = written(
        shop,
        "haproxy.cfg",
        f"""
global
  nbthread 1
  maxconn 1000
defaults
  mode tcp
  retries 0
  timeout connect 60s
  timeout client 60s
  timeout server 60s
frontend here
  bind {frontend}
  default_backend there
backend there
  server there {backend}
""",
    )
    # As master and worker, because that says when it listens.
    async with server(program("haproxy"), "-W", "-f", file, ready="Loading success"):
        yield


def identity(shop: Shop, service: str) -> str:
    """HAProxy wants the key and the chain in one file."""
    directory = shop.path / service
    both = directory / "both.pem"
    both.write_text((directory / "key.pem").read_text() + (directory / "certificate.pem").read_text())
    return f"ssl crt {both} ca-file {directory}/bundle.pem verify required ssl-min-ver TLSv1.3"


class TestHAProxy(HalfClosingPeer):
    refusal = ("deny", "peer_refused", "internal_error")

    @asynccontextmanager
    async def caller(self, shop: Shop, service: str, to: str) -> AsyncIterator[str]:
        entry = place()
        async with haproxy(shop, entry, f"{to} {identity(shop, service)} verifyhost api"):
            yield entry

    @asynccontextmanager
    async def callee(self, shop: Shop, service: str, app: str) -> AsyncIterator[str]:
        entry = place()
        async with haproxy(shop, f"{entry} {identity(shop, service)}", app):
            yield entry
