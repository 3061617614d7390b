"""The sidecar's connection to the CA itself: who may be at its other end, and what a cut one is worth."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest
import trio

from certs.protocol.client import CaClient, CaError, CaUnverifiedError
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import Reason
from sidecar.relay.strand import run
from sidecar.transport import sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.tls import Context
from tests.beds.asking import ca_desk
from tests.beds.ca_files import DOMAIN
from tests.beds.impostor import FalseCa


async def test_a_ca_under_a_distrusted_issuing_key_is_none(tmp_path: Path) -> None:
    """Whoever stole it can show a ``mesh/ca``; once the bundle distrusts the key, that is no CA any more."""
    async with ca_desk(tmp_path) as desk:
        client = CaClient(desk.address, DOMAIN, desk.clock)
        await client.use(desk.roots, Revocations())
        assert len(await client.bundles(0)) == 1
        await client.use(desk.roots, Revocations(keys=frozenset({key_digest(desk.ca.issuer.certificate)})))
        with pytest.raises(CaUnverifiedError) as caught:
            await client.bundles(0)
        assert caught.value.refusal.reason is Reason.REVOKED
        await client.close()


WHOLE = b'HTTP/1.1 200 OK\r\n\r\n{"bundles": []}'
"""An answer whose end is the end of the connection."""


async def answer_and_end(false: FalseCa, sock: socket.socket, *, properly: bool) -> None:
    channel = Context(false.shows, VerifyParams(DOMAIN, anonymous=True)).server(("http/1.1",), false.clock)
    with sock:
        await run(shake_hands(sock, channel))
        channel.write_bytes(WHOLE)
        if properly:
            channel.close()
        await sockets.send_all(sock, channel.take_all())
        sock.shutdown(socket.SHUT_WR)
        while await sockets.receive(sock, 65536):
            pass


@pytest.mark.parametrize("properly", [True, False], ids=["close_notify", "bare FIN"])
async def test_an_answer_that_is_cut_off_by_a_bare_fin_is_no_answer(properly: bool, tmp_path: Path) -> None:
    """Anybody in between can end a TCP connection, and so an answer that lasts to its end; nobody but the CA ends TLS."""
    async with ca_desk(tmp_path) as desk, desk.false_ca() as false, trio.open_nursery() as nursery:
        false.answer = partial(answer_and_end, false, properly=properly)
        client = CaClient(false.address, DOMAIN, desk.clock)
        await client.use(desk.roots, Revocations())
        if properly:
            assert await client.bundles(0) == []
        else:
            with pytest.raises(CaError):
                await client.bundles(0)
        await client.close()
        nursery.cancel_scope.cancel()
