"""Who plays the stranger: what it saw is told as it was, and only a refusal is called one."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.transport import sockets
from sidecar.verify import stranger
from sidecar.verify.judgement import Attempt, Listener, Outcome, Seen
from sidecar.verify.stranger import Credential, attempt, foreign, reach
from tests.beds.certificates import Authority
from tests.beds.mesh import App, Foreigner, mesh_bed
from tests.beds.processes import free_port
from tests.beds.verified import pem

Handler = Callable[[socket.socket], Awaitable[None]]


async def tried(what: Attempt, handler: Handler, credential: Credential | None = None) -> Seen:
    """What one attempt at this server shows."""

    async def handle(sock: socket.socket, _app: App) -> None:
        try:
            await handler(sock)
        except (SSL.Error, EOFError):
            return

    async with mesh_bed() as bed:
        app = await bed.app(handle)
        there = Listener("api", "http", str(app.address))
        return await trio.to_thread.run_sync(partial(attempt, there, what, credential))


def serving(*answer: bytes, alpn: bytes = b"mesh/1/http", close: bool = False) -> Handler:
    async def serve(sock: socket.socket) -> None:
        peer = Foreigner(sock, Authority().leaf("api"), server=True, alpn=(alpn,) if alpn else ())
        await peer.handshake()
        for part in answer:
            await peer.send(part)
        if close:
            await peer.close()
        else:
            await trio.sleep_forever()

    return serve


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(3, "big") + payload


@pytest.mark.parametrize(
    ("server", "outcome", "word"),
    [
        (serving(b"\x02ok"), Outcome.LET_IN, "ok"),
        (serving(b"\x0dpolicy", b"_denied"), Outcome.REFUSED, "policy_denied"),
        (serving(b"\x05he"), Outcome.SILENT, ""),
        (serving(b"HTTP/1.1 400"), Outcome.LET_IN, ""),
        (serving(close=True), Outcome.REFUSED, ""),
        (serving(), Outcome.SILENT, ""),
        (serving(frame(2, b"\0\0\0\1"), frame(3, b"probe"), alpn=b"mesh/2/http"), Outcome.LET_IN, "probe"),
        (serving(frame(2, b"\0\0\0\1") + frame(3, b"policy_denied"), alpn=b"mesh/2/http"), Outcome.REFUSED, "policy_denied"),
        (serving(frame(2, b"\0\0\0\1"), alpn=b"mesh/2/http"), Outcome.SILENT, ""),
        (serving(frame(4, b"data"), alpn=b"mesh/2/http"), Outcome.LET_IN, ""),
        (serving(b"hello", alpn=b""), Outcome.LET_IN, ""),
    ],
)  # fmt: skip
async def test_what_follows_the_handshake_counts(
    server: Handler, outcome: Outcome, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stranger, "SECONDS", 0.5)
    seen = await tried(Attempt.NO_CERTIFICATE, server)
    assert (seen.outcome, seen.word) == (outcome, word)
    assert len(seen.presented) == 64
    assert seen.source.startswith("127.0.0.1:")


async def raw(sock: socket.socket, answer: bytes) -> None:
    await sockets.receive(sock, 65536)
    await sockets.send_all(sock, answer)


@pytest.mark.parametrize("what", [one for one in Attempt if one is not Attempt.PLAINTEXT])
async def test_a_server_without_tls_is_no_refusal(what: Attempt) -> None:
    assert (await tried(what, partial(raw, answer=b"HTTP/1.1 400 Bad Request\r\n"))).outcome is Outcome.BROKEN


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(b"hello", Outcome.LET_IN), (b"", Outcome.REFUSED), (b"\x15\x03\x03\0\2\2\x28", Outcome.REFUSED)],
)
async def test_what_a_server_says_to_plaintext(answer: bytes, outcome: Outcome) -> None:
    assert (await tried(Attempt.PLAINTEXT, partial(raw, answer=answer))).outcome is outcome


async def test_an_older_tls_is_seen_at_both_kinds_of_server() -> None:
    assert (await tried(Attempt.OLDER_TLS, serving())).outcome is Outcome.LET_IN

    async def only_1_3(sock: socket.socket) -> None:
        only = Foreigner(
            sock,
            Authority().leaf("api"),
            server=True,
            configure=lambda it: it.set_min_proto_version(SSL.TLS1_3_VERSION),
        )
        await only.handshake()

    seen = await tried(Attempt.OLDER_TLS, only_1_3)
    assert (seen.outcome, seen.detail) == (Outcome.REFUSED, "by the TLS alert protocol_version")


async def test_its_certificate_is_the_one_that_it_was_given() -> None:
    mine, met = Authority().leaf("mesh/probe"), []

    async def look(sock: socket.socket) -> None:
        peer = Foreigner(sock, Authority().leaf("api"), server=True)
        await peer.handshake()
        met.append(peer.tls.get_peer_certificate().to_cryptography())
        await peer.send(b"\x02ok")
        await peer.receive()

    await tried(Attempt.NO_RULE, look, pem(mine))
    await tried(Attempt.NO_CERTIFICATE, serving(b"\x02ok"), None)
    assert met == [mine.certificate]


async def test_nobody_there_and_no_address() -> None:
    for text in (f"127.0.0.1:{free_port()}", "nobody.invalid:80", "no address"):
        assert attempt(Listener("api", "http", text), Attempt.PLAINTEXT, None).outcome is Outcome.UNREACHABLE


async def test_whether_an_address_is_reached() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        assert (await trio.to_thread.run_sync(reach, str(app.address)))[0] is True
    assert reach(f"127.0.0.1:{free_port()}")[0] is False
    assert reach("no address")[0] is None


def test_a_foreign_certificate_says_the_right_name_and_is_another_each_time() -> None:
    one, other = (foreign("shop.internal", utc_now()) for _ in range(2))
    one.check()
    assert one.fingerprint != other.fingerprint


def test_a_key_of_another_certificate_is_refused() -> None:
    one, other = (pem(Authority().leaf("mesh/probe")) for _ in range(2))
    with pytest.raises((ValueError, OSError)):
        Credential(one.certificate, other.key).check()
