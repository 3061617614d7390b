"""Whom a real CA on loopback lets in, and how it stops to."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sqlite3
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from certs.protocol import wire
from certs.protocol.client import CaDeniedError, CaError
from certs.service import listener
from certs.service.listener import ANONYMOUS_SECONDS, DRAIN_SECONDS, HANDSHAKE_SECONDS
from sidecar.documents.address import Address
from sidecar.observe.folding import LINES
from sidecar.transport import sockets
from sidecar.transport.http1 import Request, Response
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import KeyPair
from tests.beds.asking import until
from tests.beds.ca import CaBed, identity_of, serving
from tests.beds.ca_files import API, CaFiles
from tests.beds.certificates import Authority as Forger
from tests.beds.certificates import csr
from tests.beds.clock import Clock
from tests.beds.patience import PATIENCE

MESH = "trust_domain: shop.internal\nservices: {api: {ports: 80}, web: {}}\n"
GET = b"GET /v1/revocations HTTP/1.1\r\nHost: ca\r\n\r\n"


@pytest.fixture
def site(tmp_path: Path) -> CaFiles:
    return new_site(tmp_path)


def new_site(path: Path, clock: Clock | None = None) -> CaFiles:
    """With a store outside of the CA's directory, which some tests take away."""
    return CaFiles(path, clock, mesh=MESH, db=path / "store.db")


# -- whom it lets in ---------------------------------------------------------------------------------------------------


async def told(ca: CaBed, keys: KeyPair) -> Any:
    """Asks once with these keys, and must be refused; returns the line that says so."""
    with pytest.raises(CaError):
        async with ca.client(keys) as client:
            await client.bundles(0)
    await ca.log.until(lambda: bool(ca.log.events("refused")))
    (line,) = ca.log.events("refused")
    assert line["level"] == "warning"
    assert line["peer_address"].startswith("127.0.0.1:")
    assert line["message"].startswith("refused: the CA ")
    return line


async def test_a_stranger_is_refused_by_name(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        forged = Forger().leaf("api")
        assert isinstance(forged.key, ec.EllipticCurvePrivateKey)
        line = await told(ca, KeyPair(forged.chain, forged.key, site.ca.roots))
        assert line["reason"] == "unknown_ca"
        assert "spiffe://shop.internal/api" in str(line["unverified"])
        assert 'mesh_ca_handshakes_refused_total{reason="unknown_ca"} 1.0' in await ca.metrics()
        async with ca.client(site.keys()) as client:
            assert await client.bundles(0)


async def test_a_certificate_that_has_ended_is_refused_by_name(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        keys = site.keys()
        site.clock.now += timedelta(hours=1, seconds=1)
        assert (await told(ca, keys))["reason"] == "expired"
        async with ca.client() as client:
            assert await client.bundles(0), "without one it may ask, and enrol"


async def test_what_is_no_tls_is_refused_and_the_next_is_served(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
        await stream.send_all(GET)
        await ca.log.until(lambda: bool(ca.log.events("refused")))
        assert ca.log.events("refused")[0]["reason"] == "plaintext_refused"
        await stream.aclose()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_it_serves_on_every_address_of_its_host(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--listen localhost:8443` was ::1 alone where both exist."""
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("127.0.0.1", "127.0.0.2")]
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        async with serving(site, mock_clock, listen=Address("localhost", 0)) as ca:
            patch.undo()
            streams = [await trio.open_tcp_stream(ip, ca.address.port) for ip in ("127.0.0.1", "127.0.0.2")]
            for stream in streams:
                await stream.send_all(GET)
            await ca.log.until(lambda: len(ca.log.events("refused")) == 2)
            for stream in streams:
                await stream.aclose()
    assert [sock.fileno() for sock in ca.server.sockets] == [-1, -1]


async def test_who_looks_whether_the_port_is_open_is_no_news_and_who_leaves_a_handshake_is(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    hello = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    hello.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        hello.do_handshake()
    async with serving(site, mock_clock) as ca:
        for sent, lines in ((b"", 0), (hello.bio_read(16384), 1), (b"\x16", 2)):
            stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
            await stream.send_all(sent)
            await stream.send_eof()
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass  # until the CA has closed it, too
            await stream.aclose()
            await ca.look()
            assert [line["reason"] for line in ca.log.events("refused")] == ["handshake_failed"] * lines


async def test_strangers_are_folded_and_who_presents_a_certificate_is_not(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        for _ in range(LINES + 3):
            stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
            await stream.send_all(GET)
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            await stream.aclose()
        forged = Forger().leaf("api")
        assert isinstance(forged.key, ec.EllipticCurvePrivateKey)
        keys = KeyPair(forged.chain, forged.key, site.ca.roots)
        for _ in range(LINES + 3):
            with pytest.raises(CaError):
                async with ca.client(keys) as client:
                    await client.bundles(0)
        await ca.log.until(lambda: len(ca.log.events("refused")) == 2 * LINES + 3)
        reasons = [line["reason"] for line in ca.log.events("refused")]
        assert (reasons.count("plaintext_refused"), reasons.count("unknown_ca")) == (LINES, LINES + 3)
        assert f'mesh_ca_handshakes_refused_total{{reason="plaintext_refused"}} {LINES + 3}.0' in await ca.metrics()
    (line,) = ca.log.events("connection_summary")
    assert (line["service"], line["reason"], line["peer_address"]) == (
        wire.CA_SERVICE,
        "plaintext_refused",
        "127.0.0.1",
    )
    assert line["count"] == 3


@pytest.mark.parametrize(
    "first", [b"", bytes((22, 3, 1, 0, 6, 1, 0, 3, 232, 3, 3))], ids=["from the start", "after a first record"]
)
async def test_silence_is_not_waited_for(site: CaFiles, mock_clock: trio.testing.MockClock, first: bytes) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
        await stream.send_all(first)
        await ca.look()
        await ca.time.passes(HANDSHAKE_SECONDS)
        with pytest.raises(trio.BrokenResourceError):  # a reset
            await stream.receive_some()
        await stream.aclose()
        assert 'mesh_ca_handshakes_refused_total{reason="handshake_timeout"} 1.0' in await ca.metrics()


async def test_more_connections_of_members_than_it_may_have_are_closed_at_once(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    async with serving(site, mock_clock) as ca:
        held = [await ca.stream(site.keys()) for _ in range(3)]
        for stream in held:  # (its certificate is judged when the CA has read it, which an answer tells)
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
            assert b"200" in await stream.receive_some()
        with pytest.raises(CaError):
            async with ca.client() as client:
                await client.bundles(0)
        for stream in held:
            await stream.close()
        while "overloaded" not in await ca.metrics():
            await ca.look()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_one_identity_has_so_many_connections_and_no_more(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_OF_ONE_IDENTITY", 2)
    async with serving(site, mock_clock) as ca:
        api, others = site.keys(), [await asks(await ca.stream()) for _ in range(3)]
        assert not ca.server.gate._proved, "nobody proved an identity"
        held = [await asks(await ca.stream(site.keys())) for _ in range(2)]
        assert ca.server.connections.members == {API: 2}
        assert list(ca.server.gate._proved) == ["127.0.0.1"]
        for _ in range(2):
            with pytest.raises(CaError):
                async with ca.client(api) as client:
                    await client.bundles(0)
        assert ca.warnings() == ["spiffe://shop.internal/api has 2 connections; no more are accepted"]
        # The twins: another identity, nobody, and itself once it has fewer.
        for keys in (site.keys("web"), None):
            async with ca.client(keys) as client:
                assert await client.bundles(0)
        for one in held:
            assert await asks(one)
            await one.close()
        await until(lambda: not ca.server.connections.members)
        await (await asks(await ca.stream(api))).close()
        for one in others:
            await one.close()


async def asks(stream: SecureStream) -> SecureStream:
    """Has one request answered. After that its certificate is judged, too."""
    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
    assert b"200" in await stream.receive_some()
    return stream


# -- who is revoked ----------------------------------------------------------------------------------------------------


def places(ca: CaBed) -> tuple[int, int]:
    """How many connections count as members', and as anonymous."""
    return ca.server.connections.members.total(), len(ca.server.connections.room.strangers)


async def test_who_is_revoked_gets_in_as_anybody(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(site, mock_clock) as ca:
        keys = site.keys()
        member = await asks(await ca.stream(keys))
        assert places(ca) == (1, 0)
        ca.revokes("api")
        await until(lambda: API in ca.server.in_force.revoked.identities)
        monkeypatch.setattr(listener, "MAX_OF_ONE_IDENTITY", 0)  # so it is no member even before its first request
        late = await asks(await ca.stream(keys))
        assert places(ca) == (1, 1)
        monkeypatch.undo()
        await asks(member)  # it loses its place at its next request
        assert places(ca) == (0, 2)
        async with ca.client(keys) as client:
            with pytest.raises(CaDeniedError) as denied:
                await client.renew(csr().encode())
            assert denied.value.denial == "revoked"
            (line,) = ca.log.events("denied")
            assert line["message"].startswith(
                "this connection is of spiffe://shop.internal/api with a revoked certificate"
            )
            assert (await client.revocations("", "1" * 32, 1)).document is not None
        twin = await asks(await ca.stream(site.keys("web")))
        assert places(ca) == (1, 2)
        for stream in (member, late, twin):
            await stream.close()


# -- anonymous ---------------------------------------------------------------------------------------------------------


async def test_an_anonymous_connection_has_ten_seconds_for_each_request(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        silent, busy, member = await ca.stream(), await ca.stream(), await asks(await ca.stream(site.keys()))
        await ca.time.passes(ANONYMOUS_SECONDS * 0.6)
        await asks(busy)
        await busy.send_all(GET[:-2])  # the beginning of one counts for nothing
        await ca.time.passes(ANONYMOUS_SECONDS * 0.6)
        assert await silent.receive_some() == b""
        assert places(ca) == (1, 1)
        await ca.time.passes(ANONYMOUS_SECONDS * 0.6)
        with suppress(BrokenStreamError):
            assert await busy.receive_some() == b""
        assert places(ca) == (1, 0)
        await asks(member)
        for stream in (silent, busy, member):
            await stream.close()


async def test_room_is_made_by_who_waits_for_no_answer(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_STRANGERS", 2)
    async with serving(site, mock_clock) as ca:
        begun, go_on = trio.Event(), trio.Event()

        async def slowly(_request: Request) -> Response:
            begun.set()
            await go_on.wait()
            return Response(200)

        ca.server.connections.routes = {"/healthz": {"GET": slowly}}
        asking = await ca.stream()
        await asking.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
        await begun.wait()
        idle = await ca.stream()
        await ca.time.passes(3 * ANONYMOUS_SECONDS / 4)
        newcomer = await ca.stream()
        with pytest.raises(BrokenStreamError):  # the place of the one that asks nothing, by a reset
            await idle.receive_some()
        await ca.time.passes(ANONYMOUS_SECONDS / 2)
        go_on.set()
        assert b"200" in await asking.receive_some()
        for stream in (asking, idle, newcomer):
            await stream.close()


async def test_requests_of_strangers_pass_the_gate_and_those_of_members_do_not(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        turns: list[str | None] = []
        turn = ca.server.gate.turn

        async def note(address: str | None = None) -> None:
            turns.append(address)
            await turn(address)

        stranger, member = await ca.stream(), await asks(await ca.stream(site.keys()))
        ca.server.gate.turn = note  # type: ignore[method-assign]
        await asks(member)
        assert turns == []
        await asks(stranger)
        assert turns == ["127.0.0.1"]
        for stream in (stranger, member):
            await stream.close()


async def test_requests_that_are_denied_fill_no_log(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        async with ca.client() as client:
            for _ in range(LINES + 3):
                with pytest.raises(CaDeniedError):
                    await client.renew(csr().encode())
        assert len(ca.log.events("denied")) == LINES
    (line,) = ca.log.events("connection_summary")
    assert (line["reason"], line["count"]) == ("no_certificate", 3)
    assert "3 more requests of 127.0.0.1 ended alike" in line["message"]


async def test_descriptors_run_out_and_come_back(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        await ca.look()
        sock = socket.socket()
        taken: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            sock.connect((ca.address.host, ca.address.port))
            await ca.log.until(lambda: any("cannot accept connections" in warning for warning in ca.warnings()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        await ca.log.until(lambda: "accepting: good again" in ca.mended())
        assert sum("cannot accept" in warning for warning in ca.warnings()) == 1
        sock.close()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_a_bug_in_one_connection_ends_that_one(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with serving(site, mock_clock) as ca:
        monkeypatch.setattr(listener, "converse", broken)
        async with ca.client() as client:
            with pytest.raises(CaError):
                await client.bundles(0)
        monkeypatch.undo()
        async with ca.client() as client:
            assert await client.bundles(0)
        (line,) = ca.log.events("internal_error")
        assert "ZeroDivisionError" in line["exception"]
        assert line["peer_address"].startswith("127.0.0.1:")
        ca.log.lines.clear()


@pytest.mark.parametrize("first", [b"\x16", b"GET / HTTP/1.1\r\n\r\n"], ids=["in the lobby", "in its task"])
async def test_a_bug_in_the_line_of_one_refusal_ends_nothing_else(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with serving(site, mock_clock) as ca:
        monkeypatch.setattr(listener.CaListener, "log_refusal", broken)
        stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
        await stream.send_all(first)
        await stream.aclose()
        await ca.time.settles()
        monkeypatch.undo()
        await ca.look()  # the twin
        assert len(ca.log.events("internal_error")) == 1
        ca.log.lines.clear()


# -- how it ends -------------------------------------------------------------------------------------------------------


async def test_stopping_ends_who_is_idle_at_once(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        asked, new = await ca.stream(), await ca.stream()
        await asked.send_all(GET)
        assert (await asked.receive_some()).startswith(b"HTTP/1.1 200")
        began = trio.current_time()
        ca.stop.set()
        assert await new.receive_some() == b"", "a clean end"
        assert await asked.receive_some() == b""
        await asked.close()
        await new.close()
        await ca.stopped.wait()
        assert trio.current_time() - began < DRAIN_SECONDS
        with pytest.raises(CaError, match="cannot be reached"):
            async with ca.client() as client:
                await client.bundles(0)


async def test_stopping_lets_a_request_that_is_under_way_end(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret, granted = site.make_secret(API), []
        held = sqlite3.connect(site.db, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")  # the store is busy
        begun = trio.Event()
        write = ca.server.api.writer.write

        async def writing(operation: Any) -> Any:
            begun.set()
            return await write(operation)

        ca.server.api.writer.write = writing  # type: ignore[method-assign]

        async def enrol() -> None:
            granted.append(await ca.enrolled("api", secret))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enrol)
            await begun.wait()
            ca.stop.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not ca.stopped.is_set()
            held.execute("ROLLBACK")
        held.close()
        assert identity_of(granted[0]) == API


async def test_a_request_that_does_not_end_is_cut(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await ca.stream()
        await stream.send_all(b"POST /v1/nonce HTTP/1.1\r\nHost: ca\r\nContent-Length: 5\r\n\r\n12")
        await ca.look()
        ca.stop.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not ca.stopped.is_set()
        await ca.time.passes(DRAIN_SECONDS)
        with trio.fail_after(PATIENCE):
            assert await stream.receive_some() == b"", "no answer"
            await stream.close()
            await ca.stopped.wait()


async def test_a_caller_that_is_gone_before_it_is_accepted_harms_nobody(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    """Nobody knows its address any more; what it sent is there, so its refusal is told."""
    async with serving(site, mock_clock) as ca:
        for first in (b"GET / HTTP/1.1", bytes((22, 3, 1, 0, 6, 1, 0))):
            caller = socket.create_connection((ca.address.host, ca.address.port))
            caller.send(first)
            sockets.hard_close(caller)  # before the loop runs
        await ca.time.settles()
        await ca.look()
        await ca.look()  # the twin: it still serves
