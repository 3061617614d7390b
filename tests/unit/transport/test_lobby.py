"""The lobby: who speaks becomes a connection; who does not, costs a descriptor and nothing else."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.relay import poller
from sidecar.transport import lobby as lobby_module
from sidecar.transport.lobby import SECONDS_A_TICK, SILENCE_SECONDS, Guest, Left, Lobby
from sidecar.transport.sockets import hard_close
from tests.beds.patience import PATIENCE

HELLO = bytes((22, 3, 1, 0, 7)) + b"1234567"
SECONDS = 5.0


class Visitor:
    """One caller and its socket in the lobby. ``left``: how it has left."""

    def __init__(
        self, lobby: Lobby, stack: ExitStack, *, goes_first: bool = False, may_be_silent: bool = False
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.caller = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
            self.sock = stack.enter_context(server.accept()[0])
        self.left: list[Left] = []
        self.guest: Guest = lobby.enter(self.sock, self.left.append, goes_first=goes_first, may_be_silent=may_be_silent)

    async def leaves(self) -> Left:
        with trio.fail_after(PATIENCE):
            while not self.left:
                await trio.lowlevel.checkpoint()
        (how,) = self.left
        return how


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["the system's poller", "any system's"])
async def lobby(request: pytest.FixtureRequest, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Lobby:
    if request.param == "any system's":
        monkeypatch.setattr(lobby_module, "make_poller", poller.LevelPoller)
    lobby = Lobby(SECONDS)
    nursery.start_soon(lobby.run)
    return lobby


async def test_it_stays_until_its_first_message_is_whole(lobby: Lobby, stack: ExitStack) -> None:
    visitor = Visitor(lobby, stack)
    for at in range(len(HELLO)):
        await wait_all_tasks_blocked(0.01)
        assert not visitor.left, f"left with {at} bytes"
        visitor.caller.send(HELLO[at : at + 1])
    assert await visitor.leaves() is Left.SPOKE
    assert visitor.sock.recv(100) == HELLO  # nothing was taken
    assert len(lobby) == 0


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1", b"\x15", bytes((22, 3, 1, 255, 255))])
async def test_what_begins_no_hello_is_not_waited_for(lobby: Lobby, stack: ExitStack, first: bytes) -> None:
    visitor = Visitor(lobby, stack)
    visitor.caller.send(first)
    assert await visitor.leaves() is (Left.SPOKE if first[0] == 22 else Left.BARE)


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(
    ("first", "left"), [(b"", Left.UNUSED), (HELLO[:3], Left.CLOSED), (HELLO[:-1], Left.CLOSED), (HELLO, Left.SPOKE)]
)
async def test_who_closes(lobby: Lobby, stack: ExitStack, first: bytes, left: Left, by_reset: bool) -> None:
    visitor = Visitor(lobby, stack)
    visitor.caller.send(first)
    await wait_all_tasks_blocked(0.01)
    if by_reset:
        hard_close(visitor.caller)
    visitor.caller.close()
    how = await visitor.leaves()
    # A poller that does not tell an end leaves it to the connection's own task.
    assert how is left or (how is Left.SPOKE and isinstance(lobby._poller, poller.LevelPoller))
    assert visitor.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1 or how is not Left.SPOKE


async def test_who_says_nothing_is_late(mock_clock: MockClock, lobby: Lobby, stack: ExitStack) -> None:
    early, half = Visitor(lobby, stack), Visitor(lobby, stack)
    half.caller.send(HELLO[:-1])
    mock_clock.jump(SECONDS - 1)
    late = Visitor(lobby, stack)
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(1)
    assert await early.leaves() is await half.leaves() is Left.LATE
    await wait_all_tasks_blocked(0.01)
    assert not late.left
    mock_clock.jump(SECONDS)
    assert await late.leaves() is Left.LATE


@pytest.mark.parametrize("first", [b"", HELLO], ids=["that are late", "that speak"])
async def test_many_at_once_leave_in_portions(
    mock_clock: MockClock, lobby: Lobby, stack: ExitStack, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each reading takes a millisecond: so a portion is a few."""
    readings = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: next(readings) / 1000)
    most = int(SECONDS_A_TICK * 1000)
    visitors = [Visitor(lobby, stack) for _ in range(10 * most)]
    await wait_all_tasks_blocked(0.01)
    for visitor in visitors:
        visitor.caller.send(first)
    if not first:
        mock_clock.jump(SECONDS)
    before, portions = 0, list[int]()
    with trio.fail_after(PATIENCE):
        while before < len(visitors):
            await trio.lowlevel.checkpoint()
            now = sum(bool(visitor.left) for visitor in visitors)
            portions.append(now - before)
            before = now
    assert max(portions) <= 2 * most  # a portion at the end of one tick, and one at the begin of the next


async def test_who_comes_from_where_peers_are_goes_first(
    lobby: Lobby, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: next(readings) / 1000)
    others = [Visitor(lobby, stack) for _ in range(20)]
    peer = Visitor(lobby, stack, goes_first=True)
    await wait_all_tasks_blocked(0.01)
    for visitor in (*others, peer):
        visitor.caller.send(HELLO)
    assert await peer.leaves() is Left.SPOKE
    assert sum(bool(visitor.left) for visitor in others) <= 2 * SECONDS_A_TICK * 1000
    for visitor in others:
        assert await visitor.leaves() is Left.SPOKE


async def test_who_was_expelled_is_forgotten_even_if_another_has_its_descriptor(lobby: Lobby, stack: ExitStack) -> None:
    visitor = Visitor(lobby, stack)
    await wait_all_tasks_blocked(0.01)
    visitor.caller.send(HELLO)
    assert lobby.expel(visitor.guest)
    assert not lobby.expel(visitor.guest)
    visitor.sock.close()
    other = Visitor(lobby, stack)
    assert not lobby.expel(visitor.guest), "it would expel another"
    other.caller.send(HELLO)
    assert await other.leaves() is Left.SPOKE
    assert not lobby.expel(other.guest)
    assert not visitor.left


async def test_at_the_end_all_leave_and_nobody_enters(stack: ExitStack) -> None:
    lobby = Lobby(SECONDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.run)
        visitor = Visitor(lobby, stack)
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert visitor.left == [Left.CANCELLED]
    assert Visitor(lobby, stack).left == [Left.CANCELLED]
    assert len(lobby) == 0


async def test_the_first_byte_tells_tls_from_anything_else(lobby: Lobby, stack: ExitStack) -> None:
    for said, how in ((b"\x16\x03", None), (b"GET", Left.BARE), (b"\x00", Left.BARE), (HELLO, Left.SPOKE)):
        visitor = Visitor(lobby, stack)
        visitor.caller.sendall(said)
        if how is None:
            await wait_all_tasks_blocked()
            assert not visitor.left
        else:
            assert await visitor.leaves() is how


async def test_who_may_be_silent_leaves_as_such(lobby: Lobby, stack: ExitStack, mock_clock: MockClock) -> None:
    silent, strict = Visitor(lobby, stack, may_be_silent=True), Visitor(lobby, stack)
    begun = Visitor(lobby, stack, may_be_silent=True)
    begun.caller.sendall(HELLO[:1])
    await wait_all_tasks_blocked()
    mock_clock.jump(SILENCE_SECONDS * 0.99)
    await wait_all_tasks_blocked()
    assert not silent.left
    mock_clock.jump(SILENCE_SECONDS * 0.02)
    assert await silent.leaves() is Left.SILENT
    await wait_all_tasks_blocked()
    assert (strict.left, begun.left) == ([], [])
    mock_clock.jump(SECONDS)
    assert (await strict.leaves(), await begun.leaves()) == (Left.LATE, Left.LATE)


async def test_many_silent_ones_leave_in_portions(
    lobby: Lobby, stack: ExitStack, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = [Visitor(lobby, stack, may_be_silent=True) for _ in range(5)]
    await wait_all_tasks_blocked()
    monkeypatch.setattr(lobby_module, "SECONDS_A_TICK", 0)
    mock_clock.jump(SILENCE_SECONDS)
    assert {await visitor.leaves() for visitor in visitors} == {Left.SILENT}


async def test_a_byte_at_the_last_moment_is_no_silence(stack: ExitStack, mock_clock: MockClock) -> None:
    """The event of it has not been seen when the time is over: the socket is asked."""
    lobby = Lobby(SECONDS)
    spoke, reset, ended = (Visitor(lobby, stack, may_be_silent=True) for _ in range(3))
    spoke.caller.sendall(HELLO)
    hard_close(reset.caller)
    ended.caller.shutdown(socket.SHUT_WR)
    mock_clock.jump(SILENCE_SECONDS)
    assert not lobby._part_with_silent()
    assert [one.left for one in (spoke, reset, ended)] == [[], [], []]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.run)
        assert [await one.leaves() for one in (spoke, reset, ended)] == [Left.SPOKE, Left.UNUSED, Left.UNUSED]
        nursery.cancel_scope.cancel()
