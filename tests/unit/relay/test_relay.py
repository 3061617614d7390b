"""The relay on real sockets, with both pollers: what one connection may do to itself, and what it may not do to others."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing

from sidecar.identity.reasons import Reason
from sidecar.relay import relay as relay_module
from sidecar.relay.duplex import Ending, How
from sidecar.relay.liveness import SILENCE_SECONDS
from sidecar.relay.poller import READABLE, EdgePoller, LevelPoller
from sidecar.relay.relay import (
    ENDING_SECONDS,
    LOOKS,
    LOST_SECONDS,
    MAX_PASS_SECONDS,
    NEWS_BYTES,
    PASS_SECONDS,
    PUMP_BYTES,
    READ_BYTES,
    REST_BYTES,
    ROUND,
    Relay,
)
from sidecar.transport import sockets
from tests.beds.mesh import receive_all
from tests.beds.patience import PATIENCE
from tests.beds.relay import POLLERS, Bed, Connection, Passthrough, carry, drain, fill, tcp_pair
from tests.beds.simulation import CLOSE, DATA, FakeChannel, parse, record, records

DAYS = 1e6
"""Of a virtual clock."""
CLOSE_NOTIFY = record(CLOSE)


@pytest.fixture(params=POLLERS)
async def still(request: Any, nursery: trio.Nursery) -> AsyncIterator[Bed]:
    """A relay whose passes have not begun."""
    with ExitStack() as stack:
        yield Bed(nursery, request.param(), stack)


@pytest.fixture
async def bed(still: Bed) -> Bed:
    still.start()
    return still


async def ends_cleanly(bed: Bed, connection: Connection) -> Ending:
    """Both sides end, and the rest arrives."""
    await sockets.send_all(connection.net, CLOSE_NOTIFY)
    connection.app.shutdown(socket.SHUT_WR)
    return await connection.ending()


# -- bytes -------------------------------------------------------------------------------------------------------------


async def test_bytes_cross_and_each_end_becomes_the_other_sides_end(bed: Bed) -> None:
    one = bed.connection()
    await sockets.send_all(one.net, records(b"question"))
    assert await sockets.receive(one.app, 100) == b"question"
    await sockets.send_all(one.app, b"answer")
    assert parse(await sockets.receive(one.net, 100)).data == b"answer"
    assert await ends_cleanly(bed, one) == Ending(How.OK)
    assert await receive_all(one.app) == b""
    assert parse(await receive_all(one.net)).end == "close"
    assert (one.duplex.to_app, one.duplex.from_app) == (8, 6)


async def test_what_is_inside_the_channel_already_is_delivered_without_any_event(still: Bed) -> None:
    channel = FakeChannel()
    early = records(b"sent in the handshake's last flight")
    still.relay.buffers.cipher_in.view[: len(early)] = early
    channel.feed(still.relay.buffers.cipher_in, len(early))
    one = still.connection(channel)
    await still.settle()
    assert still.poller.asked == 0
    assert drain(one.app) == b"sent in the handshake's last flight"


async def test_half_close_app_first(bed: Bed) -> None:
    one = bed.connection()
    await sockets.send_all(one.app, b"question")
    one.app.shutdown(socket.SHUT_WR)
    await bed.settle()
    assert parse(drain(one.net))[:2] == (b"question", "close")
    assert one.outcome is None
    await sockets.send_all(one.net, records(b"a late answer") + CLOSE_NOTIFY)
    assert await receive_all(one.app) == b"a late answer"
    assert await one.ending() == Ending(How.OK)


async def test_half_close_peer_first(bed: Bed) -> None:
    one = bed.connection()
    await sockets.send_all(one.net, records(b"question") + CLOSE_NOTIFY)
    assert await receive_all(one.app) == b"question"
    assert one.outcome is None
    await sockets.send_all(one.app, b"a late answer")
    one.app.shutdown(socket.SHUT_WR)
    assert await one.ending() == Ending(How.OK)
    assert parse(await receive_all(one.net))[:2] == (b"a late answer", "close")


@pytest.mark.parametrize("before", [True, False])
async def test_an_end_that_comes_together_with_the_last_bytes_is_seen(bed: Bed, before: bool) -> None:
    """A short read says that a socket is drained, but a FIN behind it makes no other event."""
    one = bed.connection()
    if not before:
        await bed.settle()
    one.app.send(b"last words")
    one.app.shutdown(socket.SHUT_WR)
    one.net.send(records(b"cut off")[:-1])
    one.net.shutdown(socket.SHUT_WR)
    assert (await one.ending()).how is How.TRUNCATED
    two = bed.connection(tolerant=True)
    if not before:
        await bed.settle()
    two.app.send(b"last words")
    two.app.shutdown(socket.SHUT_WR)
    two.net.send(records(b"last words"))
    two.net.shutdown(socket.SHUT_WR)
    assert await two.ending() == Ending(How.OK)
    assert drain(two.app) == parse(drain(two.net)).data == b"last words"


async def test_an_urgent_byte_stays_in_the_stream_and_the_bytes_behind_it_are_not_left_lying(bed: Bed) -> None:
    """A read stops at the urgent mark, so a short one does not mean that the socket is drained."""
    one = bed.connection()
    await bed.settle()
    one.app.send(b"before ")
    one.app.send(b"!", socket.MSG_OOB)
    one.app.send(b"after")
    await bed.settle()
    assert parse(drain(one.net)).data == b"before !after"
    one.net.send(records(b"answer")[:3])
    one.net.send(records(b"answer")[3:4], socket.MSG_OOB)
    one.net.send(records(b"answer")[4:])
    await bed.settle()
    assert drain(one.app) == b"answer"


# -- backpressure ------------------------------------------------------------------------------------------------------


async def test_two_sides_that_do_not_read_stop_each_other_and_lose_nothing(bed: Bed) -> None:
    kernel = 64 * 1024
    one = bed.connection(Passthrough(), tolerant=True, kernel_room=kernel)
    down, up = bytes(range(251)), bytes(range(250, -1, -1))
    sent_down = sent_up = more = 0
    for _ in range(200):
        before = sent_down + sent_up
        sent_down += fill_on(one.net, down, sent_down)
        sent_up += fill_on(one.app, up, sent_up)
        await bed.settle()
        more = sent_down + sent_up - before
        if not more:
            break
    assert more == 0, "it went on taking bytes that nobody read"
    assert len(one.duplex._app_left) <= READ_BYTES
    assert len(one.duplex._net_left) <= READ_BYTES + 16384
    assert one.duplex._app_left
    assert one.duplex._net_left
    # Four kernel buffers each way (the kernel doubles what it is asked for), and what the relay may hold.
    assert max(sent_down, sent_up) < 4 * 2 * kernel + 2 * READ_BYTES
    assert await bed.is_at_rest(), "a socket that is readable, and may not be read, keeps it busy"
    got_down, got_up = b"", b""
    while len(got_down) < sent_down or len(got_up) < sent_up:
        got_down += drain(one.app)
        got_up += drain(one.net)
        await bed.settle()
    assert got_down == (down * (sent_down // 251 + 1))[:sent_down]
    assert got_up == (up * (sent_up // 251 + 1))[:sent_up]
    one.net.shutdown(socket.SHUT_WR)
    one.app.shutdown(socket.SHUT_WR)
    assert await one.ending() == Ending(How.OK)


def fill_on(sock: socket.socket, pattern: bytes, at: int) -> int:
    """Goes on with the endless repetition of a pattern, until the kernel takes no more."""
    shift = at % len(pattern)
    return fill(sock, pattern[shift:] + pattern[:shift])


# -- nobody harms the others -------------------------------------------------------------------------------------------


class Faulty(FakeChannel):
    def read(self, buffer: Any) -> int:
        if b"bug" in self._cipher:
            raise RuntimeError("a bug of ours")
        return super().read(buffer)


async def test_an_exception_in_one_pump_is_that_connections_alone(bed: Bed) -> None:
    many = [bed.connection(Faulty()) for _ in range(20)]
    await bed.settle()
    for number, one in enumerate(many):
        one.net.send(records(b"bug" if number == 7 else b"fine"))
    await bed.settle()
    assert isinstance(await many[7].end(), RuntimeError)
    for one in many[:7] + many[8:]:
        assert drain(one.app) == b"fine"
        assert await ends_cleanly(bed, one) == Ending(How.OK)


async def test_an_exception_in_the_very_first_pump_comes_out_too(bed: Bed) -> None:
    one = bed.connection(Faulty())
    one.net.send(records(b"bug"))
    assert isinstance(await one.end(), RuntimeError)
    assert not bed.relay._links


class Endless(socket.socket):
    """One that always has more to read, and takes all that is sent."""

    def recv_into(self, buffer: Any, *_: Any) -> int:
        return len(buffer)

    def send(self, data: Any, *_: Any) -> int:
        return len(data)


@pytest.mark.parametrize("make_poller", POLLERS)
async def test_a_bulk_connection_does_not_starve_small_ones(
    make_poller: Any, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in turns and bytes: all small ones are served before the bulk gets its third turn, and none is a long one."""
    turns: list[Any] = []
    shares: list[int] = []

    class Noting(Relay):
        def _pump(self, link: Any) -> None:
            turns.append(link.duplex)
            before = link.duplex.to_app + link.duplex.from_app
            super()._pump(link)
            shares.append(link.duplex.to_app + link.duplex.from_app - before)

    monkeypatch.setattr(relay_module, "PASS_SECONDS", 0.0)
    monkeypatch.setattr(relay_module, "MAX_PASS_SECONDS", 0.0)
    with ExitStack() as stack:
        bed = Bed(nursery, make_poller(), stack, Noting)
        bulk = bed.connection(Passthrough(), tolerant=True)
        bulk.near_net = stack.enter_context(Endless(fileno=bulk.near_net.detach()))
        bulk.near_app = stack.enter_context(Endless(fileno=bulk.near_app.detach()))
        small = [bed.connection() for _ in range(50)]
        await bed.settle()
        for one in small:
            one.net.send(records(b"small"))
        turns.clear()
        bed.start()
        await bed.until(lambda: all(one.duplex.to_app == 5 for one in small))
        assert 1 <= turns.count(bulk.duplex) <= 3
        assert all(turns.count(one.duplex) <= 2 for one in small)
        await bed.until(lambda: turns.count(bulk.duplex) > 10)
        assert max(shares) < PUMP_BYTES + READ_BYTES
        assert bulk.duplex.to_app
        assert bulk.duplex.from_app
        nursery.cancel_scope.cancel()


async def test_records_that_cost_much_time_and_few_bytes_do_not_starve_small_connections(
    still: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock finds a millisecond gone: so a pump is one step, and neighbours have turns between two."""
    clock = itertools.count()
    monkeypatch.setattr(relay_module, "perf_counter", lambda: next(clock) / 1000)
    flooded, small = still.connection(FakeChannel(at_once=1)), still.connection()
    await still.settle()
    flooded.net.send(record(DATA, b"!") * 500)
    still.start()
    await still.until(lambda: flooded.duplex.to_app > 0)
    small.net.send(records(b"small"))
    await still.until(lambda: small.duplex.to_app == 5)
    assert flooded.duplex.to_app < 50
    await still.until(lambda: flooded.duplex.to_app == 500)
    assert await ends_cleanly(still, flooded) == Ending(How.OK)


async def test_connections_that_have_much_to_do_are_not_starved_by_many_that_have_news(
    still: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has a turn after so many others, although these have news again before all were served."""
    monkeypatch.setattr(relay_module, "PASS_SECONDS", -1.0)
    monkeypatch.setattr(relay_module, "MAX_PASS_SECONDS", -1.0)
    monkeypatch.setattr(relay_module, "PUMP_SECONDS", -1.0)
    busy = [still.connection(Passthrough(), tolerant=True) for _ in range(2 * ROUND)]
    bulk = still.connection(FakeChannel(at_once=1))
    await still.settle()
    bulk.net.send(record(DATA, b"!") * 20)
    for one in busy:
        one.net.send(b"x")
    still.start()
    turns = 0
    while bulk.duplex.to_app < 20:
        assert turns < 40 * ROUND
        turns += 1
        for one in busy:
            if one.duplex.to_app:
                one.duplex.to_app = 0
                one.net.send(b"x")
        await trio.lowlevel.checkpoint()


async def test_the_time_of_a_pass_is_bounded_and_other_tasks_run_between_passes(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time at all, a pass is one pump; nobody in the queue is lost over that."""
    monkeypatch.setattr(relay_module, "PASS_SECONDS", -1.0)
    monkeypatch.setattr(relay_module, "MAX_PASS_SECONDS", -1.0)
    many = [bed.connection() for _ in range(20)]
    await bed.settle()
    for one in many:
        one.net.send(records(b"fine"))
    asked = bed.poller.asked
    await bed.until(lambda: all(one.duplex.to_app == 4 for one in many))
    assert bed.poller.asked - asked >= 20


@pytest.mark.parametrize(("others", "given"), [(0.0, PASS_SECONDS), (0.003, 0.003), (1.0, MAX_PASS_SECONDS)])
async def test_a_pass_lasts_as_long_as_what_others_did_since_the_last(
    others: float, given: float, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within limits: so connections get half of the loop's time, whatever else is asked of it."""
    now, passes = 0.0, list[float]()

    class Noting(Relay):
        def _run_pass(self, seconds: float) -> None:
            passes.append(seconds)
            super()._run_pass(seconds)

        def _pump(self, link: Any) -> None:
            nonlocal now
            now += MAX_PASS_SECONDS  # so that a pass is one pump
            super()._pump(link)

    async def busy() -> None:
        nonlocal now
        while True:
            now += others
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(relay_module, "perf_counter", lambda: now)
    with ExitStack() as stack:
        bed = Bed(nursery, POLLERS[0](), stack, Noting)
        many = [bed.connection() for _ in range(10)]
        await bed.settle()
        for one in many:
            one.net.send(records(b"fine"))
        nursery.start_soon(busy)
        bed.start()
        await bed.until(lambda: all(one.duplex.to_app == 4 for one in many))
        assert passes[0] == PASS_SECONDS
        assert given in [round(seconds, 9) for seconds in passes]
        assert max(passes) <= (MAX_PASS_SECONDS if others else PASS_SECONDS)
        nursery.cancel_scope.cancel()


async def test_who_moved_much_waits_for_those_with_news(still: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them at most is served first. And whoever had little to do is not taken for busy, however long the system let
    it wait meanwhile."""
    clock = itertools.count()
    monkeypatch.setattr(relay_module, "perf_counter", lambda: next(clock) / 1000)
    served = list[Any]()
    pump = still.relay._pump

    def noting(link: Any) -> None:
        served.append(link.duplex)
        pump(link)

    monkeypatch.setattr(still.relay, "_pump", noting)
    bulk, small = [still.connection(Passthrough(), tolerant=True) for _ in range(5)], still.connection()
    await still.settle()
    still.start()
    for turn in range(1, 5):
        served.clear()
        for one in bulk:
            one.net.sendall(bytes(NEWS_BYTES))
        small.net.send(record(DATA, b"!") * 20)
        await still.until(
            lambda: {one.duplex.to_app for one in bulk} == {turn * NEWS_BYTES} and small.duplex.to_app == turn * 20  # noqa: B023
        )
        for one in bulk:
            drain(one.app)
        if turn > 1:
            assert served.index(small.duplex) <= 1


# -- cancellation ------------------------------------------------------------------------------------------------------


class Untouchable(FakeChannel):
    """Somebody else's by now."""

    def feed(self, buffer: Any, size: int) -> None:
        raise AssertionError("bytes were read for a connection that was cancelled")

    def write(self, buffer: Any, size: int) -> None:
        raise AssertionError("bytes were read for a connection that was cancelled")


async def test_cancelling_detaches_at_once_and_the_sockets_can_be_carried_again(bed: Bed) -> None:
    with tcp_pair() as (near_net, net), tcp_pair() as (near_app, app):
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await carry(bed.relay, bed.duplex(), near_net, near_app)
            assert scope.cancelled_caught
            assert not bed.relay._links
        net.send(records(b"bytes"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, bed.relay, bed.duplex(), near_net, near_app)
            assert await sockets.receive(app, 100) == b"bytes"
            nursery.cancel_scope.cancel()


async def test_a_connection_that_is_cancelled_while_it_queues_is_not_pumped_any_more(
    still: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(still.relay, "_share", 0)  # every pump queues again at its first read
    first = still.connection(Untouchable())
    await still.settle()
    assert list(still.relay._rest)
    first.net.send(records(b"for the second"))
    first.scope.cancel()
    await still.settle()
    monkeypatch.undo()
    second = still.duplex()
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(still.relay, "_pump", lambda link: None)
        nursery.start_soon(carry, still.relay, second, first.near_net, first.near_app)
        await still.settle()
        monkeypatch.undo()
        still.start()
        with trio.fail_after(PATIENCE):
            assert await sockets.receive(first.app, 100) == b"for the second"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ticks", range(6))
async def test_cancelling_in_any_phase_leaves_nothing_behind(bed: Bed, ticks: int) -> None:
    one = bed.connection()
    one.net.send(records(b"bytes" * 1000))
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    one.scope.cancel()
    await bed.settle()
    assert not bed.relay._links
    assert not bed.relay._queue
    assert not bed.relay._rest
    with pytest.raises((OSError, KeyError)):
        bed.poller.remove(one.near_net.fileno())


@pytest.mark.parametrize("make_poller", POLLERS)
async def test_a_relay_that_stops_beside_its_connections_does_not_fail_them(make_poller: Any) -> None:
    for _ in range(20):  # trio runs the tasks of a tick in any order
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                bed = Bed(nursery, make_poller(), stack)
                bed.start()
                many = [bed.connection() for _ in range(3)]
                await bed.settle()
                nursery.cancel_scope.cancel()
            assert [one.outcome for one in many] == [None] * 3
            assert not bed.relay._links


async def test_sockets_that_cannot_be_watched_leave_nothing_behind(bed: Bed) -> None:
    with tcp_pair() as (near_net, _):
        closed = socket.socket()
        closed.close()
        for net, app in ((near_net, closed), (closed, near_net)):
            with pytest.raises((ValueError, OSError, KeyError)):
                await carry(bed.relay, bed.duplex(), net, app)
            assert not bed.relay._links
        one = bed.connection()
        assert await ends_cleanly(bed, one) == Ending(How.OK)


async def test_a_number_that_is_used_again_at_once_cannot_confuse_two_connections(bed: Bed) -> None:
    """As soon as one has ended, another takes its descriptors' very numbers, before the relay's next pass."""
    with ExitStack() as stack:
        (old_net, far_net), (old_app, far_app), (new_net, other_net), (new_app, other_app) = (
            stack.enter_context(tcp_pair()) for _ in range(4)
        )
        far_net.send(records(b"old") + CLOSE_NOTIFY)
        far_app.shutdown(socket.SHUT_WR)
        assert await carry(bed.relay, bed.duplex(), old_net, old_app) == Ending(How.OK)
        far_net.send(b"a late event of the old one")
        os.dup2(new_net.fileno(), old_net.fileno())
        os.dup2(new_app.fileno(), old_app.fileno())
        other_net.send(records(b"new"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, bed.relay, bed.duplex(), old_net, old_app)
            with trio.fail_after(PATIENCE):
                assert await sockets.receive(other_app, 100) == b"new"
            assert await receive_all(far_app) == b"old"
            nursery.cancel_scope.cancel()


async def test_an_event_of_a_number_that_nobody_has_is_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bed.connection()
    real = bed.poller.poll
    monkeypatch.setattr(bed.poller, "poll", lambda: [(999_999, READABLE), *real()])
    one.net.send(records(b"fine"))
    assert await sockets.receive(one.app, 100) == b"fine"


# -- resets ------------------------------------------------------------------------------------------------------------


async def test_what_an_app_sent_before_it_reset_arrives_and_then_the_peer_is_reset(bed: Bed) -> None:
    one = bed.connection()
    await bed.settle()
    one.app.send(b"said before")
    sockets.hard_close(one.app)
    ending = await one.ending()
    assert (ending.how, ending.reset_net) == (How.APP_RESET, True)
    said = await sockets.receive(one.net, 100)
    assert parse(said)[:2] == (b"said before", None)
    with pytest.raises(ConnectionResetError):
        await sockets.receive(one.net, 1)


async def test_what_a_peer_sent_before_it_was_cut_arrives_and_then_the_app_is_reset(bed: Bed) -> None:
    for cut in (sockets.hard_close, socket.socket.close):
        one = bed.connection()
        await bed.settle()
        one.net.send(records(b"authentic"))
        cut(one.net)
        ending = await one.ending()
        assert (ending.how, ending.reset_app) == (How.TRUNCATED, True)
        assert await sockets.receive(one.app, 100) == b"authentic"
        with pytest.raises(ConnectionResetError):
            await sockets.receive(one.app, 1)


async def test_a_reset_is_no_tolerated_end_although_a_send_has_heard_of_it_first(still: Bed) -> None:
    one = still.connection(tolerant=True)
    await still.settle()
    one.net.send(records(b"authentic"))
    sockets.hard_close(one.net)
    one.app.send(b"question")  # read first, so that sending it meets the reset
    still.start()
    ending = await one.ending()
    assert (ending.how, ending.reset_app) == (How.TRUNCATED, True)
    assert await sockets.receive(one.app, 100) == b"authentic"
    with pytest.raises(ConnectionResetError):
        await sockets.receive(one.app, 1)


async def test_the_twin_a_tolerated_fin_is_a_clean_end(bed: Bed) -> None:
    one = bed.connection(tolerant=True)
    one.net.send(records(b"authentic"))
    one.net.close()
    assert await receive_all(one.app) == b"authentic"
    one.app.close()
    assert await one.ending() == Ending(How.OK)


async def test_the_early_answer_of_an_app_that_closes_arrives_whole(bed: Bed) -> None:
    """HTTP 413: the app reads a little, answers, ends its direction, and closes while the upload goes on."""
    one = bed.connection(Passthrough(), tolerant=True)
    sent = fill(one.net)
    await bed.until(lambda: one.duplex.to_app > 0)
    one.app.send(b"413 Content Too Large")
    one.app.shutdown(socket.SHUT_WR)
    await bed.settle()
    one.app.close()  # with bytes unread, so the kernel resets
    while one.outcome is None:
        sent += fill(one.net)
        await bed.settle()
    ending = await one.ending()
    assert (ending.how, ending.reset_net) == (How.APP_RESET, False)
    assert one.duplex.to_app < sent
    assert await sockets.receive(one.net, 100) == b"413 Content Too Large"


async def test_the_twin_where_it_is_gone_before_its_answer_was_read(still: Bed) -> None:
    """The upload meets the broken socket first, while the FIN behind the answer is unread: EPIPE says that it is there."""
    one = still.connection(kernel_room=16 * 1024)
    one.net.send(records(b"a large"))
    await still.settle()
    one.app.send(b"413 Content Too Large")
    one.app.shutdown(socket.SHUT_WR)
    one.app.close()
    one.net.send(records(b" upload"))
    still.start()
    ending = await one.ending()
    assert (ending.how, ending.reset_net) == (How.APP_RESET, False)
    assert parse(await receive_all(one.net))[:2] == (b"413 Content Too Large", "close")


async def test_a_peer_that_ended_and_then_broke_is_noticed_while_the_app_is_silent(nursery: trio.Nursery) -> None:
    """Before or after its close_notify was read. Only epoll tells; elsewhere the app's next move does."""
    for at_once in (True, False):
        with ExitStack() as stack:
            bed = Bed(nursery, EdgePoller(), stack)
            bed.start()
            one = bed.connection()
            await bed.settle()
            one.net.send(CLOSE_NOTIFY)
            if not at_once:
                await bed.settle()
            sockets.hard_close(one.net)
            assert await one.ending() == Ending(How.OK)


async def test_an_app_that_ended_and_then_broke_is_noticed_while_the_peer_is_silent(nursery: trio.Nursery) -> None:
    """Before or after its FIN was read."""
    for at_once in (True, False):
        with ExitStack() as stack:
            bed = Bed(nursery, EdgePoller(), stack)
            bed.start()
            one = bed.connection()
            one.net.send(records(b"unread"))
            await bed.settle()
            one.app.send(b"its answer")
            one.app.shutdown(socket.SHUT_WR)
            if not at_once:
                await bed.settle()
            one.app.close()
            ending = await one.ending()
            assert (ending.how, ending.reset_net) == (How.APP_RESET, False)
            assert parse(await receive_all(one.net))[:2] == (b"its answer", "close")


async def test_the_same_where_nothing_tells(nursery: trio.Nursery) -> None:
    with ExitStack() as stack:
        bed = Bed(nursery, LevelPoller(), stack)
        bed.start()
        one = bed.connection()
        one.net.send(CLOSE_NOTIFY)
        await bed.settle()
        sockets.hard_close(one.net)
        await bed.settle()
        assert one.outcome is None
        assert await bed.is_at_rest()
        one.app.send(b"anybody there?")
        assert (await one.ending()).how is How.PEER_RESET


class Unanswered(socket.socket):
    """One whose kernel reports a segment that nobody has ever acknowledged."""

    looks = 0
    outstanding = True

    def getsockopt(self, level: int, option: int, size: int = 0, /) -> Any:
        if (level, option) != (socket.IPPROTO_TCP, socket.TCP_INFO):
            return super().getsockopt(level, option)
        self.looks += 1
        info = bytearray(size)
        info[24] = info[59] = self.outstanding
        return bytes(info)


@pytest.mark.parametrize("side", ["peer", "app"])
async def test_a_host_that_acknowledges_nothing_is_cut_though_the_other_one_is_busy(
    still: Bed, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(relay_module, "perf_counter", lambda: next(clock) / 100)
    one, honest = still.connection(), still.connection()
    if side == "peer":
        one.near_net = still.stack.enter_context(Unanswered(fileno=one.near_net.detach()))
    else:
        one.near_app = still.stack.enter_context(Unanswered(fileno=one.near_app.detach()))
    still.start()
    await still.settle()
    while one.outcome is None:
        (one.app if side == "peer" else one.net).send(b"!" if side == "peer" else records(b"!"))
        mock_clock.jump(1.0)
        await still.settle()
        assert next(clock) < 100 * 1000
    ending = await one.ending()
    assert ending.detail == f"the {side} acknowledged nothing for 30 s: its host or the network is gone"
    assert (ending.how, ending.reset_app, ending.reset_net) == (
        How.TRUNCATED if side == "peer" else How.APP_RESET,
        True,
        True,
    )
    assert next(clock) >= 100 * SILENCE_SECONDS
    assert honest.outcome is None


async def test_a_connection_that_is_idle_for_long_is_looked_at_less_often_and_noticed_all_the_same(
    still: Bed, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(relay_module, "perf_counter", lambda: next(clock) / 100)
    one = still.connection()
    one.near_net = net = still.stack.enter_context(Unanswered(fileno=one.near_net.detach()))
    net.outstanding = False
    still.start()
    assert await seconds_until(mock_clock, still, one, 100.0) is None
    net.looks = 0
    assert await seconds_until(mock_clock, still, one, 40.0 * LOOKS) is None
    assert 5 <= net.looks <= 15
    net.outstanding = True
    assert await seconds_until(mock_clock, still, one, 10_000.0) is not None
    assert (await one.ending()).how is How.TRUNCATED


async def test_no_look_at_what_is_no_tcp_socket_or_where_the_system_does_not_tell(
    still: Bed, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "SILENCE_SECONDS", 0.0)
    local, elsewhere = still.connection(), still.connection()
    local.near_app, far = socket.socketpair()
    still.stack.enter_context(local.near_app)
    still.stack.enter_context(far)
    sockets.prepare(still.connection().near_app)
    local.near_app.setblocking(False)
    still.start()
    for tells in (True, False):
        monkeypatch.setattr(relay_module, "_TELLS_TCP_INFO", tells)
        for _ in range(2 * LOOKS):
            mock_clock.jump(1.0)
            await still.settle()
    assert local.outcome is elsewhere.outcome is None


# -- nothing spins -----------------------------------------------------------------------------------------------------


async def test_at_rest_after_each_kind_of_end(bed: Bed) -> None:
    """A level-triggered poller would report these for ever; an edge-triggered one, each once."""
    app_ended, peer_ended, peer_left, both = (bed.connection() for _ in range(4))
    app_ended.app.shutdown(socket.SHUT_WR)
    peer_ended.net.send(CLOSE_NOTIFY)
    peer_left.net.send(CLOSE_NOTIFY)
    peer_left.net.shutdown(socket.SHUT_WR)  # a FIN that nobody reads
    both.net.send(records(b"unread"))
    await bed.settle()
    assert await bed.is_at_rest()
    assert all(one.outcome is None for one in (app_ended, peer_ended, peer_left, both))
    for one in (peer_ended, peer_left):
        one.app.close()
        assert await one.ending() == Ending(How.OK)


async def test_at_rest_while_an_app_that_reset_waits_for_a_peer_that_does_not_read(bed: Bed) -> None:
    one = bed.connection(Passthrough(), tolerant=True, kernel_room=16 * 1024)
    while fill(one.app):
        await bed.settle()
    sockets.hard_close(one.app)
    await bed.settle()
    assert one.outcome is None
    assert await bed.is_at_rest()
    while one.outcome is None:
        drain(one.net)
        await bed.settle()
    ending = await one.ending()
    assert (ending.how, ending.reset_net) == (How.APP_RESET, True)


async def stalled_behind_an_app(bed: Bed) -> Connection:
    """A peer that does not read, and an app that has sent more than there is room for."""
    one = bed.connection(Passthrough(), tolerant=True, kernel_room=16 * 1024)
    while fill(one.app):
        await bed.settle()
    return one


async def seconds_until(mock_clock: trio.testing.MockClock, bed: Bed, one: Connection, most: float) -> float | None:
    """How long it takes until the connection has ended; None if it has not by then."""
    waited = 0.0
    while waited <= most:
        await bed.settle()
        if one.outcome is not None:
            return waited
        mock_clock.jump(1.0)
        waited += 1.0
    return None


@pytest.mark.parametrize("fin_before", [False, True])
async def test_an_app_that_has_reset_ends_though_the_peer_reads_nothing(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, fin_before: bool
) -> None:
    """Before or after it was told that the peer's stream has ended."""
    with ExitStack() as stack:
        bed = Bed(nursery, EdgePoller(), stack)
        bed.start()
        one = await stalled_behind_an_app(bed)
        if fin_before:
            one.net.shutdown(socket.SHUT_WR)
            await bed.settle()
            assert await receive_all(one.app) == b""
        sockets.hard_close(one.app)
        waited = await seconds_until(mock_clock, bed, one, 2 * ENDING_SECONDS)
        assert waited is not None
        assert waited >= ENDING_SECONDS - 1
        assert await one.ending() == Ending(
            How.APP_RESET, "the app is gone, and the peer reads no more", reset_app=True, reset_net=True
        )


async def test_the_twins_an_app_that_ended_well_and_whose_peer_merely_pauses(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    """Closed in one direction, or in both, before the peer has read all: nothing of it is lost."""
    for both in (False, True):
        with ExitStack() as stack:
            bed = Bed(nursery, EdgePoller(), stack)
            bed.start()
            one = await stalled_behind_an_app(bed)
            one.app.shutdown(socket.SHUT_WR)
            if both:
                one.net.shutdown(socket.SHUT_WR)
                await bed.settle()
                assert await receive_all(one.app) == b""
            assert await seconds_until(mock_clock, bed, one, 300.0) is None
            said = 0
            while one.outcome is None and not (said and not both and not drain(one.net)):
                said += len(drain(one.net))
                await bed.settle()
            if both:
                assert await one.ending() == Ending(How.OK)


async def test_a_peer_that_has_reset_ends_though_the_app_reads_nothing(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    with ExitStack() as stack:
        bed = Bed(nursery, EdgePoller(), stack)
        bed.start()
        one = bed.connection(Passthrough(), tolerant=True, kernel_room=16 * 1024)
        while fill(one.net):
            await bed.settle()
        sockets.hard_close(one.net)
        waited = await seconds_until(mock_clock, bed, one, 2 * ENDING_SECONDS)
        assert waited is not None
        assert (await one.ending()).how is How.TRUNCATED


async def test_the_twin_a_peer_that_had_ended_before_it_was_gone(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    """Its stream is whole, and the app that pauses gets it; but it does not wait for ever."""
    with ExitStack() as stack:
        bed = Bed(nursery, EdgePoller(), stack)
        bed.start()
        one = bed.connection(Passthrough(), tolerant=True, kernel_room=16 * 1024)
        still_left = 0
        while still_left < 50:  # the kernel moves its buffers' bytes in its own time
            still_left = still_left + 1 if one.duplex._app_left else 0
            if not still_left:
                one.net.send(b"x" * 1000)
            await bed.settle()
        one.net.send(b"x" * 3000)
        one.net.shutdown(socket.SHUT_WR)
        await bed.settle()
        sockets.hard_close(one.net)
        assert await seconds_until(mock_clock, bed, one, 300.0) is None
        assert await seconds_until(mock_clock, bed, one, LOST_SECONDS) is not None
        assert (await one.ending()).detail == "the peer is gone, and the app reads no more"


# -- time --------------------------------------------------------------------------------------------------------------


class Resting(FakeChannel):
    rests = 0

    def rest(self) -> None:
        self.rests += 1


async def test_an_idle_connection_gives_back_memory_and_again_only_after_many_bytes(
    bed: Bed, mock_clock: trio.testing.MockClock
) -> None:
    channel = Resting()
    one = bed.connection(channel)
    for moved, rests in ((b"", 1), (b"few", 1), (b"x" * REST_BYTES, 2), (b"", 2)):
        one.app.send(moved)
        await bed.settle()
        assert channel.rests <= rests
        for _ in range(3):
            mock_clock.jump(1.0)
            await bed.settle()
        assert channel.rests == rests
        assert not one.duplex.out or moved == b"few"


async def test_the_twin_a_busy_one_keeps_it(bed: Bed, mock_clock: trio.testing.MockClock) -> None:
    channel = Resting()
    one = bed.connection(channel)
    for _ in range(20):
        one.app.send(b"x" * REST_BYTES)
        await bed.settle()
        drain(one.net)
        await bed.settle()
        mock_clock.jump(0.5)
        await bed.settle()
    assert channel.rests == 0


async def test_an_idle_connection_ends(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    one = bed.connection(idle_timeout=30.0)
    assert await one.end(DAYS) is Reason.IDLE_TIMEOUT
    assert 30.0 <= trio.current_time() - began <= 32.0


async def test_the_twins_a_busy_one_and_one_without_a_limit_live_on(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    busy, unlimited = bed.connection(idle_timeout=30.0), bed.connection()
    for _ in range(10):
        await trio.sleep(20.0)
        busy.net.send(records(b"!"))
        await trio.testing.wait_all_tasks_blocked()
        assert drain(busy.app) == b"!"
    assert busy.outcome is unlimited.outcome is None


async def test_a_connection_is_not_idle_because_the_relay_was(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    await trio.sleep(3600.0)
    began = trio.current_time()
    one = bed.connection(idle_timeout=30.0)
    assert await one.end(DAYS) is Reason.IDLE_TIMEOUT
    assert trio.current_time() - began >= 30.0


async def test_a_connection_that_is_too_old_ends_however_busy(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    one = bed.connection(max_age=100.0)
    for _ in range(200):
        if one.outcome is None:
            await trio.sleep(1.0)
            one.net.send(records(b"!"))
            drain(one.app)
    assert one.outcome is Reason.MAX_AGE
    assert 100.0 <= trio.current_time() - began <= 103.0


class LongFarewell(FakeChannel):
    """Ends with more bytes than the kernel takes."""

    length = 200_000

    def close(self) -> None:
        self._out += bytes(self.length - len(CLOSE_NOTIFY)) + CLOSE_NOTIFY


async def test_the_last_bytes_wait_so_long_for_a_peer_that_does_not_read(
    bed: Bed, mock_clock: trio.testing.MockClock
) -> None:
    one = await ending_with_bytes_left(bed)
    mock_clock.autojump_threshold = 0
    began = trio.current_time()
    assert await one.end(DAYS) == Ending(How.APP_RESET, "the app closed before it had read all")
    assert ENDING_SECONDS - 1 <= trio.current_time() - began <= ENDING_SECONDS + 2


async def test_the_twin_one_that_reads_now_and_then_gets_all_of_them(
    bed: Bed, mock_clock: trio.testing.MockClock
) -> None:
    one = await ending_with_bytes_left(bed)
    said, waited = b"", 0.0
    while one.outcome is None:
        mock_clock.jump(ENDING_SECONDS / 3)
        waited += ENDING_SECONDS / 3
        for _ in range(1000):  # the kernel opens its window in its own time
            heard = drain(one.net)
            said += heard
            await bed.settle()
            if heard or one.outcome is not None:
                break
    said += drain(one.net)
    assert len(said) == LongFarewell.length
    assert said.endswith(CLOSE_NOTIFY)
    assert waited > ENDING_SECONDS, "or this test would show nothing"


async def ending_with_bytes_left(bed: Bed) -> Connection:
    """An app that answered and closed early, before a peer that does not read."""
    one = bed.connection(LongFarewell(), kernel_room=8 * 1024)
    one.net.send(records(b"unread by the app"))
    await bed.settle()
    one.app.shutdown(socket.SHUT_WR)
    await bed.settle()
    one.app.close()
    one.net.send(records(b"more"))  # where no event tells, sending this does
    await bed.settle()
    assert one.duplex.decided is not None
    assert one.outcome is None
    return one
