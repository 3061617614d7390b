"""stunnel as a peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.beds.processes import Shop
from tests.protocols.foreign import HalfClosingPeer, place, written
from tests.protocols.programs import needs, program, server

pytestmark = needs("stunnel", "curl")


@asynccontextmanager
async def stunnel(shop: Shop, service: str, body: str) -> AsyncIterator[None]:
    identity = "".join(
        f"{option} = {shop.path}/{service}/{name}.pem\n"
        for option, name in {"cert": "certificate", "key": "key", "CAfile": "bundle"}.items()
    )
    head = "foreground = yes\nsyslog = no\npid =\ndebug = info\n[service]\nsslVersionMin = TLSv1.3\nverifyChain = yes\n"
    file = written(shop, "stunnel.conf", f"{head}{identity}{body}\n")
    async with server(program("stunnel"), file, ready="bound to"):
        yield


class TestStunnel(HalfClosingPeer):
    refusal = ("deny", "peer_refused", "internal_error")

    @asynccontextmanager
    async def caller(self, shop: Shop, service: str, to: str) -> AsyncIterator[str]:
        entry = place()
        async with stunnel(shop, service, f"client = yes\naccept = {entry}\nconnect = {to}\ncheckHost = api"):
            yield entry

    @asynccontextmanager
    async def callee(self, shop: Shop, service: str, app: str) -> AsyncIterator[str]:
        entry = place()
        async with stunnel(shop, service, f"accept = {entry}\nconnect = {app}\nrequireCert = yes"):
            yield entry
