"""How a connection gets its peer: judged and noted at both ends, or refused; never nobody."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.announced import Announced
from sidecar.observe.metrics import Metrics
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.proxy.peer import SPREAD, VerifiedPeer, establish
from sidecar.relay.strand import run
from sidecar.transport import tls
from sidecar.transport.accepting import Room
from sidecar.transport.gate import Gate
from sidecar.transport.handshake import receive_verdict
from sidecar.transport.strangers import Stranger, Strangers
from tests.beds.certificates import Authority, Credential

MESH = Authority()
API, WEB = (SpiffeId("shop.internal", (name,)) for name in ("api", "web"))
SECONDS = 5.0


def keys(credential: Credential) -> tls.KeyPair:
    assert isinstance(credential.key, tls.PrivateKey)
    return tls.KeyPair(credential.chain, credential.key, MESH.roots)


def context(shows: tls.KeyPair | tuple[Any, ...], **params: Any) -> tls.Context:
    return tls.Context(shows, VerifyParams("shop.internal", **params))


class End:
    """One end of a connection, and what came of it."""

    def __init__(self, direction: Direction, sock: socket.socket, channel: tls.TlsChannel, gate: Gate) -> None:
        timeouts = SimpleNamespace(handshake=SECONDS)
        self.node: Any = SimpleNamespace(
            config=SimpleNamespace(timeouts=timeouts),
            gate=gate,
            time=trio.current_time,
            announced=Announced(),
            metrics=Metrics(),
        )
        self.record = ConnectionRecord(direction, "api", "http", started=trio.current_time())
        self.sock, self.channel = sock, channel
        self.peer: VerifiedPeer | None = None
        self.refused: Refused | None = None
        self.stranger: Stranger | None = None

    async def establish(self) -> None:
        try:
            self.peer = await run(
                establish(self.node, self.sock, self.channel, self.record, self.record.started, self.stranger)
            )
        except Refused as refusal:
            self.refused = refusal


@asynccontextmanager
async def ends(
    callee: tls.Context | None = None,
    caller: tls.Context | None = None,
    *,
    callee_clock: Callable[[], datetime] = utc_now,
    caller_clock: Callable[[], datetime] = utc_now,
) -> AsyncIterator[tuple[End, End]]:
    """api's end and web's, connected, their handshake not begun."""
    here = (callee or context(keys(MESH.leaf("api")))).server(["mesh/1/http"], callee_clock)
    there = (caller or context(keys(MESH.leaf("web")))).client(["mesh/1/http"], API, caller_clock)
    left, right = socket.socketpair()
    with left, right:
        for sock in (left, right):
            sock.setblocking(False)
        async with trio.open_nursery() as nursery:
            gate = Gate()
            nursery.start_soon(gate.run)
            yield End("inbound", left, here, gate), End("outbound", right, there, gate)
            nursery.cancel_scope.cancel()


async def both(*them: End) -> None:
    async with trio.open_nursery() as nursery:
        for one in them:
            nursery.start_soon(one.establish)


async def test_both_ends_get_the_peer_and_note_it() -> None:
    async with ends() as (api, web):
        await both(api, web)
    assert (api.refused, web.refused) == (None, None)
    assert api.peer is not None
    assert web.peer is not None
    assert (api.peer.id, web.peer.id) == (WEB, API)
    assert api.peer.anchor == web.peer.anchor == certificate_digest(MESH.root.certificate)
    assert len(api.peer.path) == len(web.peer.path) == 3
    assert (api.record.peer_id, web.record.peer_id) == (str(WEB), str(API))
    assert api.record.connection_id == web.record.connection_id is not None
    for one in (api, web):
        assert one.record.tls_group == "X25519MLKEM768"
        assert one.record.handshake_ms is not None
        assert one.record.handshake_ms > 0
        assert (one.record.unverified, one.record.resumed) == ({}, False)


async def test_a_caller_without_a_certificate_is_no_peer_though_its_terms_let_anybody_in() -> None:
    """Only the CA's terms do; should a sidecar's ever, a connection without a judged peer is refused all the same."""
    async with ends(context(keys(MESH.leaf("api")), anonymous=True), context(MESH.roots)) as (api, web):
        await both(api, web)
    assert api.channel.established
    assert api.peer is None
    assert api.refused is not None
    assert api.refused.reason is Reason.NO_CERTIFICATE
    assert api.record.peer_id is None


async def test_what_a_refused_peer_showed_is_noted_as_a_claim() -> None:
    stranger = Authority().leaf("web")
    async with ends(caller=context(keys(stranger))) as (api, web):
        await both(api, web)
    assert api.refused is not None
    assert api.refused.reason is Reason.UNKNOWN_CA
    assert "spiffe://shop.internal/web" in str(api.record.unverified)
    assert (api.record.peer_id, api.record.tls_group) == (None, None)
    assert api.record.handshake_ms is not None
    assert api.record.connection_id is not None


async def test_a_silent_peer_has_the_handshake_s_time(autojump_clock: MockClock) -> None:
    async with ends() as (api, _):
        await api.establish()
    assert api.refused is not None
    assert (api.refused.reason, api.refused.detail) == (
        Reason.HANDSHAKE_TIMEOUT,
        "received no complete handshake within 5 s",
    )
    assert api.record.handshake_ms == pytest.approx(1000 * SECONDS)
    assert api.record.connection_id is None


# -- strangers: their deadlines are spread, their ends take turns ------------------------------------------------------


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
async def test_a_stranger_s_deadline_is_later_by_chance(
    part: float, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: part)
    async with ends() as (api, _):
        api.stranger = Strangers(1).enter("10.0.0.1", 0.0, lambda: None)
        await api.establish()
    assert api.record.handshake_ms == pytest.approx(1000 * SECONDS * (1 + SPREAD * part))


async def test_the_twin_our_own_outbound_deadline_is_as_it_is_written(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 1.0)
    async with ends() as (_, web):
        await web.establish()
    assert web.record.handshake_ms == pytest.approx(1000 * SECONDS)


class Turns(Gate):
    """Nobody passes without a turn. Notes who asks for one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str | None] = []

    def passes(self, address: str | None = None) -> bool:
        return False

    def wait(self, address: str | None, until: float, done: Callable[[bool], object]) -> Callable[[], object]:
        self.asked.append(address)
        trio.lowlevel.current_trio_token().run_sync_soon(done, True)
        return lambda: None


@pytest.mark.parametrize("end", ["in time", "closes", "garbage"])
async def test_the_end_of_a_stranger_s_handshake_takes_a_turn(end: str, autojump_clock: MockClock) -> None:
    """In a queue of its own, so that it holds up no handshake of its address."""
    async with ends() as (api, web):
        api.node.gate = turns = Turns()
        api.stranger = Strangers(1).enter("10.0.0.1", 0.0, lambda: None)
        if end == "closes":
            web.sock.close()
        elif end == "garbage":
            web.sock.send(b"GET / HTTP/1.1")
        await api.establish()
    assert api.refused is not None
    assert turns.asked == (["10.0.0.1"] if end == "garbage" else []) + ["end 10.0.0.1"]


async def test_the_twin_who_is_let_in_needs_no_turn_for_an_end() -> None:
    async with ends() as (api, web):
        api.node.gate = turns = Turns()
        api.node.room = Room(1)
        api.stranger = api.node.room.strangers.enter("10.0.0.1", 0.0, lambda: None)
        await both(api, web)
    assert api.refused is None
    assert set(turns.asked) == {"10.0.0.1"}
    assert api.stranger._stage.name == "KNOWN"  # its ClientHello was complete


async def test_the_end_of_our_own_handshake_takes_none() -> None:
    stranger = Authority().leaf("api")
    async with ends(callee=context(keys(stranger))) as (api, web):
        web.node.gate = turns = Turns()
        await both(api, web)
    assert web.refused is not None
    assert set(turns.asked) == {None}


def ends_meanwhile() -> Callable[[], datetime]:
    """A clock on which every certificate of today is good when it is first looked at, and over the next time."""
    times = [utc_now()]

    def clock() -> datetime:
        return times.pop() if times else utc_now() + timedelta(days=400)

    return clock


async def test_a_caller_whose_certificate_ends_during_the_handshake_hears_a_verdict() -> None:
    """Its handshake is over by then, so no alert could tell it any more."""
    async with ends(callee_clock=ends_meanwhile()) as (api, web):
        await both(api, web)
        assert api.refused is not None
        assert api.refused.reason is Reason.EXPIRED
        assert api.peer is None
        with pytest.raises(Refused) as heard:
            await receive_verdict(web.sock, web.channel)
    assert heard.value.peer_reason == "expired"


async def test_a_callee_is_told_no_verdict() -> None:
    """Verdicts are the callee's; from a caller such bytes would be taken for its app's."""
    async with ends(caller_clock=ends_meanwhile()) as (api, web):
        await both(api, web)
        assert web.refused is not None
        assert web.refused.reason is Reason.EXPIRED
        assert api.refused is None
        with contextlib.suppress(BlockingIOError):
            api.channel.feed_bytes(api.sock.recv(65536))
        assert api.channel.read_some(100) == b""
