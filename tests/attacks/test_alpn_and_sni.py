"""The port's name is in the ALPN, so that nobody can bend one port to another; SNI selects nothing at all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from OpenSSL import SSL

from sidecar.transport import sockets
from tests.attacks.records import plain_record
from tests.attacks.stage import HONEST, STOLEN, assert_refused, attacked_call, attacked_port
from tests.beds.certificates import Authority
from tests.beds.mesh import connect, inbound, mesh_bed, outbound

FOREIGN = {
    "another protocol": [b"h2"],
    "several others": [b"http/1.1", b"h2", b"redis"],
    "another port": [b"mesh/1/metrics"],
    "a prefix of ours": [b"mesh/1/htt", b"mesh/1/", b"mesh/1"],
    "ours and more": [b"mesh/1/httpx", b"mesh/1/http/", b"mesh/1/http\0"],
    "ours in capitals": [b"MESH/1/HTTP"],
    "a later version": [b"mesh/3/http"],
    "the longest": [b"x" * 255],
}


@pytest.mark.parametrize("offered", FOREIGN.values(), ids=FOREIGN)
async def test_protocols_without_ours_are_refused_at_a_port(offered: Sequence[bytes]) -> None:
    async with attacked_port() as port:
        alert = await port.attack(port.bed.authority.leaf("web"), alpn=offered)
        assert "no application protocol" in (alert or "")
        line = await port.refused("handshake_failed")
        assert "mesh/1/http" in line["message"]


async def test_ours_among_others_is_taken() -> None:
    async with attacked_port() as port:
        await port.honest(alpn=[b"h2", b"mesh/1/metrics", b"mesh/1/http"])


async def test_no_protocol_is_spoken_to_raw_unless_alpn_is_required() -> None:
    async with attacked_port() as port:
        await port.honest(alpn=[])
    async with attacked_port(require_alpn=True) as port:
        await port.attack(port.bed.authority.leaf("web"), alpn=[])
        await port.refused("handshake_failed")
    async with attacked_call() as call:
        await call.honest(alpn=[])
    async with attacked_call(require_alpn=True) as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), alpn=[]))
        await call.refused("handshake_failed", alarm=False)


async def test_without_alpn_the_policy_decides_all_the_same() -> None:
    async with attacked_port() as port:
        for credential, reason in ((port.bed.authority.leaf("db"), "policy_denied"), (None, "no_certificate")):
            await port.attack(credential, alpn=[])
            await port.refused(reason)


@pytest.mark.parametrize("chosen", [b"h2", b"mesh/1/metrics", b"mesh/1/http2", b"mesh/1/htt"])
async def test_a_server_that_chooses_what_was_not_offered(chosen: bytes) -> None:
    async with attacked_call() as call:
        await call.attack(
            call.impostor.shows(
                call.bed.authority.leaf("api"),
                configure=lambda context: context.set_alpn_select_callback(lambda *_: chosen),
            )
        )
        await call.refused("handshake_failed", alarm=False)


async def test_http_bent_to_metrics() -> None:
    """web may call both ports of api; somebody on the way leads the one to the other."""
    async with mesh_bed() as bed:
        http, metrics = await bed.app(), await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", http.address), inbound("metrics", metrics.address)])
        web = await bed.sidecar(
            "web",
            outbound=[
                outbound("api", "http", api.address("metrics")),
                outbound("api", "metrics", api.address("metrics")),
            ],
        )
        await assert_refused(web.address("api:http", "outbound"))
        there, here = await web.log.connection(), await api.log.connection()
        assert (there["reason"], there["decision"]) == ("peer_refused", "deny")
        assert there["peer_reason"] == "no_application_protocol"
        assert (here["reason"], here["decision"], here["port"]) == ("handshake_failed", "deny", "metrics")
        assert (http.connections, metrics.connections) == (0, 0)
        with await connect(web.address("api:metrics", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST


# -- SNI ---------------------------------------------------------------------------------------------------------------

ODD_NAMES: dict[str, bytes | None] = {
    "absent": None,
    "another service": b"db",
    "another domain": b"evil.org",
    "an address": b"127.0.0.1",
    "wild": b"*",
    "the longest": b"x" * 255,
    "control characters": b"api\x1b[2J\r\nHost: evil",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
async def test_sni_changes_no_verdict(name: bytes | None) -> None:
    async with attacked_port() as port:
        for credential, reason in (
            (port.bed.authority.leaf("db"), "policy_denied"),
            (Authority().leaf("web"), "unknown_ca"),
        ):
            caller = await port.foreigner(credential)
            if name is not None:
                caller.tls.set_tlsext_host_name(name)
            with caller.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
                await caller.handshake()
                await caller.send(STOLEN)
                await caller.receive()
            line = await port.refused(reason)
            assert "evil" not in str(line)
        caller = await port.foreigner(port.bed.authority.leaf("web"))
        if name is not None:
            caller.tls.set_tlsext_host_name(name)
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"


# -- a hello in pieces -------------------------------------------------------------------------------------------------


def in_segments(hello: bytes) -> list[bytes]:
    """One TCP segment a byte."""
    return [hello[at : at + 1] for at in range(len(hello))]


def in_records(hello: bytes) -> list[bytes]:
    """One TLS record a byte."""
    return [plain_record(0x16, hello[at : at + 1], b"\x03\x01") for at in range(5, len(hello))]


@pytest.mark.parametrize("cut", [in_segments, in_records])
async def test_a_hello_in_pieces_of_a_byte_gets_the_same_verdict(cut: Any) -> None:
    async with attacked_port() as port:
        for credential, reason in (
            (port.bed.authority.leaf("web"), None),
            (port.bed.authority.leaf("db"), "policy_denied"),
            (Authority().leaf("web"), "unknown_ca"),
            (None, "no_certificate"),
        ):
            caller = await port.foreigner(credential)
            with caller.sock:
                with contextlib.suppress(SSL.WantReadError):
                    caller.tls.do_handshake()
                for piece in cut(caller.tls.bio_read(65536)):
                    await sockets.send_all(caller.sock, piece)
                    await trio.lowlevel.checkpoint()
                with contextlib.suppress(SSL.Error, OSError, EOFError):
                    await caller.handshake()
                    if reason is None:
                        assert await caller.verdict() == "ok"
                        await caller.close()
                    await caller.receive()
            if reason is not None:
                await port.refused(reason)
            else:
                port.lines += 1
                port.served += 1
                assert (await port.sidecar.log.connection(port.lines))["decision"] == "allow"
                port.app.received += HONEST  # so that the twin's account is right: this one said nothing
