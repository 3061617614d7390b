"""No session is ever resumed: a resumed one would skip the judgement of the certificate."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from OpenSSL import SSL

from sidecar.transport import sockets
from tests.attacks.stage import HONEST, attacked_call, attacked_port
from tests.beds.mesh import Foreigner, connect

_lib: Any = vars(SSL)["_lib"]


async def test_a_client_that_offers_its_session_gets_a_full_handshake() -> None:
    """Whatever a client saved after the handshake, or after the first bytes, or at the end."""
    async with attacked_port() as port:
        sessions: list[Any] = []
        contexts: list[SSL.Context] = []
        credential = port.bed.authority.leaf("web")
        caller = await port.foreigner(credential, configure=contexts.append)
        with caller.sock:
            await caller.handshake()
            sessions.append(caller.tls.get_session())
            assert await caller.verdict() == "ok"
            sessions.append(caller.tls.get_session())
            await caller.send(HONEST)
            assert await caller.receive() == HONEST
            sessions.append(caller.tls.get_session())
            await caller.close()
            assert await caller.receive() == b""
            sessions.append(caller.tls.get_session())
        for number, session in enumerate(sessions, 2):
            again = await port.foreigner(credential)
            again.tls = SSL.Connection(contexts[0], None)  # a session works only with the context that it came from
            again.tls.set_connect_state()
            again.tls.set_alpn_protos([b"mesh/1/http"])
            again.tls.set_session(session)
            with again.sock:
                await again.handshake()
                assert _lib.SSL_session_reused(again.tls._ssl) == 0
                assert await again.verdict() == "ok"
                await again.close()
                assert await again.receive() == b""
            line = await port.sidecar.log.connection(number)
            assert (line["reason"], line["resumed"]) == ("ok", False)
            assert line["peer_id"] == "spiffe://shop.internal/web"


async def test_a_server_that_issues_tickets_never_sees_one_again() -> None:
    resumed: list[int] = []
    async with attacked_call() as call:
        contexts: list[SSL.Context] = []
        credential = call.bed.authority.leaf("api")

        def tickets(context: SSL.Context) -> None:
            context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
            context.set_session_id(b"impostor")
            contexts.append(context)

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, credential, server=True, configure=tickets)
            if len(contexts) > 1:  # the same context, and so the same ticket keys
                peer.tls.set_context(contexts[0])
            await peer.handshake()
            resumed.append(_lib.SSL_session_reused(peer.tls._ssl))
            await peer.send(b"\x02ok" + HONEST)
            with contextlib.suppress(SSL.Error, EOFError):
                await peer.receive()

        call.impostor.answer = answer
        for _ in range(3):
            with await connect(call.entry) as client:
                assert await sockets.receive(client, 100) == HONEST
        for number in (1, 2, 3):
            assert (await call.sidecar.log.connection(number))["resumed"] is False
    assert resumed == [0, 0, 0]
