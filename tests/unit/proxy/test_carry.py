"""A session records how it ended and how much it carried, and closes each side as its ending says: reset or clean."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import parse_spiffe_id
from sidecar.observe.metrics import Metrics
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy import carry
from sidecar.proxy.inbound import _ENDINGS
from sidecar.proxy.live import Admission, Live
from sidecar.relay.duplex import Ending, How
from sidecar.relay.strand import Carry, Steps, Stopped, run
from sidecar.transport import sockets
from tests.beds.mesh import inbound
from tests.beds.patience import PATIENCE

OPTIONS = replace(inbound("http"), idle_timeout=60.0)


NOW = datetime(2026, 6, 1, tzinfo=UTC)


def admitted(peer: str, left: timedelta, source: str | None = None) -> Admission:
    """A peer whose certificate is good for so long yet."""
    svid: Any = SimpleNamespace(id=parse_spiffe_id(f"spiffe://shop.internal/{peer}"), not_after=NOW + left)
    return Admission(parse_spiffe_id(f"spiffe://shop.internal/{source or peer}"), "api", "http", svid, (), b"")


class Ends:
    """One session with the far ends of its sockets: ``client`` beyond the network, ``app`` beyond the app's socket. Nothing
    is carried: it is told how it ends."""

    def __init__(self, outcome: Ending | Reason | Exception | None, person: timedelta | None = None) -> None:
        """``person``: the caller is a person, whose pass ends then."""
        self.outcome = outcome
        self.live = Live()
        if person is not None:
            self.live.admission = admitted("user/alice", person)
        self.told: Carry | None = None
        self.record = ConnectionRecord("inbound", "api", "http", started=0.0)
        self.record.peer_id = None if person is None else "spiffe://shop.internal/user/alice"
        self.net, self.client = tcp_pair()
        self.app_socket, self.app = tcp_pair()

    async def run(self) -> None:
        await run(self._steps())

    def _steps(self) -> Steps[None]:
        node: Any = SimpleNamespace(
            relay=SimpleNamespace(buffers=None), metrics=Metrics(), clock=lambda: NOW, time=lambda: 0.0
        )
        channel: Any = None
        carried = carry.carry(node, OPTIONS, channel, self.net, self.app_socket, self.record, self.live, _ENDINGS)
        wanted: Any = next(carried)
        self.told = wanted
        wanted.duplex.to_app, wanted.duplex.from_app = 11, 22
        try:
            if self.outcome is None:
                carried.throw(Stopped())
            elif isinstance(self.outcome, Exception):
                carried.throw(self.outcome)
            else:
                carried.send(self.outcome)
        except StopIteration as over:
            yield from over.value.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
    return one, other


@asynccontextmanager
async def ends(outcome: Ending | Reason | Exception | None, person: timedelta | None = None) -> AsyncIterator[Ends]:
    both = Ends(outcome, person)
    with both.net, both.client, both.app_socket, both.app:
        yield both


async def is_reset(sock: socket.socket) -> bool:
    with trio.fail_after(PATIENCE):
        try:
            assert await sockets.receive(sock, 1) == b""
        except ConnectionResetError:
            return True
    return False


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(How.OK), "ok"),
        (Ending(How.TRUNCATED, "cut", reset_app=True), "truncated"),
        (Ending(How.APP_RESET, "gone", reset_net=True), "app_reset"),
        (Ending(How.PEER_RESET, "gone", reset_app=True), "client_reset"),
        (Ending(How.PEER_ALERT, "refused", reset_app=True), "peer_refused"),
        (Ending(How.APP_RESET, "early"), "app_reset"),
    ],
)
async def test_each_side_hears_the_ending_as_it_was(ending: Ending, reason: str, autojump_clock: MockClock) -> None:
    async with ends(ending) as both:
        await both.run()
        assert both.record.reason == reason
        assert both.record.message == ending.detail
        assert (both.record.bytes_to_app, both.record.bytes_from_app) == (11, 22)
        assert await is_reset(both.app) is ending.reset_app
        assert await is_reset(both.client) is ending.reset_net
        assert both.net.fileno() == both.app_socket.fileno() == -1


async def test_what_a_peer_still_sends_does_not_cost_it_what_was_said_last(autojump_clock: MockClock) -> None:
    """A close with bytes unread would be a reset, which destroys an early answer that is still on its way."""
    async with ends(Ending(How.APP_RESET, "answered early")) as both:
        await sockets.send_all(both.net, b"the answer")
        await sockets.send_all(both.client, b"more of the upload" * 1000)
        await both.run()
        assert await sockets.receive(both.client, 100) == b"the answer"
        assert not await is_reset(both.client)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Reason.IDLE_TIMEOUT, r"no byte came for .* s \(idle_timeout\)"),
        (Reason.MAX_AGE, r"it was open for .* s \(max_age\)"),
    ],
)
async def test_what_we_cut_is_a_reset_on_both_sides_and_names_the_limit(reason: Reason, message: str) -> None:
    async with ends(reason) as both:
        await both.run()
        assert both.record.reason is reason
        assert re.fullmatch(message, both.record.message or "")
        assert await is_reset(both.app)
        assert await is_reset(both.client)


async def test_bytes_are_counted_whatever_happens() -> None:
    async with ends(RuntimeError("a bug in the pump")) as both:
        with pytest.raises(RuntimeError):
            await both.run()
        assert (both.record.bytes_to_app, both.record.bytes_from_app) == (11, 22)
        assert both.record.reason is None  # whoever guards the session says it
    async with ends(None) as both:
        with pytest.raises(Stopped):
            await both.run()
        assert (both.record.bytes_to_app, both.record.bytes_from_app) == (11, 22)


async def test_the_listener_s_times_are_the_relay_s() -> None:
    async with ends(Ending(How.OK)) as both:
        await both.run()
    assert both.told is not None
    assert (both.told.idle_timeout, both.told.max_age) == (OPTIONS.idle_timeout, OPTIONS.max_age)


async def test_a_peer_that_does_not_close_keeps_its_record_waiting_for_a_time_only(autojump_clock: MockClock) -> None:
    async with ends(Ending(How.APP_RESET, "answered early")) as both:
        before = trio.current_time()
        await both.run()
        assert trio.current_time() - before <= carry.UPLOAD_SECONDS + 1
        assert both.record.reason == "app_reset"  # decided before the wait


def test_a_connection_of_a_person_ends_with_the_pass_and_that_of_a_service_does_not() -> None:
    node: Any = SimpleNamespace(clock=lambda: NOW)

    def longest(peer: str, left: timedelta, source: str | None = None) -> float:
        live = Live()
        live.admission = admitted(peer, left, source)
        return carry._longest(node, OPTIONS, live)

    assert longest("user/alice", timedelta(minutes=5)) == 300
    assert longest("user/alice", timedelta(days=3)) == OPTIONS.max_age
    assert longest("user/alice", -timedelta(seconds=1)) == -1
    assert longest("web", timedelta(minutes=5)) == OPTIONS.max_age
    assert longest("db", timedelta(minutes=5), source="user/alice") == OPTIONS.max_age  # the other end of a person's


async def test_the_end_of_a_pass_is_recorded_as_its_end() -> None:
    async with ends(Reason.MAX_AGE, timedelta(seconds=9)) as both:
        await both.run()
        assert both.record.reason is Reason.EXPIRED
        assert both.record.message == "cut: the pass of spiffe://shop.internal/user/alice has ended, and is not renewed"
        assert both.told is not None
        assert both.told.max_age == 9
        assert await is_reset(both.app)
        assert await is_reset(both.client)
