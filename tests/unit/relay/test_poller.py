"""Both pollers say the same: each readiness once, and again when it was lost; only epoll tells how a connection ended."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from itertools import product

import pytest
import trio

from sidecar.relay import poller as poller_module
from sidecar.relay.poller import BROKEN, ENDED, READABLE, RESET, WRITABLE, EdgePoller, LevelPoller, Poller, make_poller
from sidecar.transport import sockets
from tests.beds.patience import PATIENCE
from tests.beds.relay import POLLERS, drain, fill, tcp_pair


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    made: Poller = request.param()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with tcp_pair(16 * 1024) as pair:
        yield pair


Ends = tuple[socket.socket, socket.socket]


def told(poller: Poller) -> dict[int, int]:
    """What it says now, of all descriptors."""
    said: dict[int, int] = {}
    for descriptor, what in poller.poll():
        said[descriptor] = said.get(descriptor, 0) | what
    return said


def add(poller: Poller, sock: socket.socket) -> int:
    number = sock.fileno()
    poller.add(number)
    return number


def test_what_is_ready_already_is_told_once(poller: Poller, ends: Ends) -> None:
    here, there = ends
    there.send(b"x")
    number = add(poller, here)
    said = told(poller).get(number, 0) | told(poller).get(number, 0)
    assert said == READABLE | WRITABLE
    assert told(poller) == {}, "it is readable still, and known to be"


def test_it_is_told_again_after_it_was_lost(poller: Poller, ends: Ends) -> None:
    here, there = ends
    number = add(poller, here)
    told(poller)
    for _ in range(3):
        drain(here)
        poller.rearm(number, READABLE)
        assert told(poller) == {}
        there.send(b"x")
        assert told(poller).get(number, 0) & READABLE
        assert told(poller) == {}


def test_the_same_of_writing(poller: Poller, ends: Ends) -> None:
    here, there = ends
    number = add(poller, here)
    told(poller)
    fill(here)
    poller.rearm(number, WRITABLE)
    while drain(there):
        pass
    assert told(poller).get(number, 0) & WRITABLE
    assert told(poller) == {}


def test_a_readiness_that_comes_between_losing_it_and_saying_so_is_told(poller: Poller, ends: Ends) -> None:
    here, there = ends
    number = add(poller, here)
    told(poller)
    drain(here)
    there.send(b"x")
    poller.rearm(number, READABLE)
    assert told(poller).get(number, 0) & READABLE


def test_all_are_told_together(poller: Poller) -> None:
    with tcp_pair() as (one, two), tcp_pair() as (three, four):
        numbers = {add(poller, sock) for sock in (one, two, three, four)}
        assert set(told(poller)) == numbers


async def test_trio_can_wait_for_it(poller: Poller, ends: Ends) -> None:
    here, there = ends
    number = add(poller, here)
    told(poller)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.send_all, there, b"x")
        poller.rearm(number, READABLE)
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(poller.fileno())
    assert told(poller).get(number, 0) & READABLE


def test_who_was_removed_is_not_told_of_and_can_be_added_again(poller: Poller, ends: Ends) -> None:
    here, there = ends
    number = add(poller, here)
    poller.remove(number)
    there.send(b"x")
    assert told(poller) == {}
    poller.add(number)
    assert told(poller)[number] & READABLE
    told(poller)
    poller.remove(number)  # also while all that it could say is said
    assert told(poller) == {}
    with pytest.raises((OSError, KeyError)):
        poller.remove(number)


def test_what_was_never_added_cannot_be_removed(poller: Poller, ends: Ends) -> None:
    with pytest.raises((OSError, KeyError)):
        poller.remove(ends[0].fileno())


def test_ends_are_readable_once(poller: Poller, ends: Ends) -> None:
    """However an end looks to the kernel for ever after."""
    here, there = ends
    number = add(poller, here)
    told(poller)
    there.shutdown(socket.SHUT_WR)
    assert told(poller)[number] & READABLE
    assert told(poller) == {}
    sockets.hard_close(there)
    said = told(poller).get(number, 0)
    assert told(poller) == {}
    poller.rearm(number, READABLE | WRITABLE)
    said |= told(poller).get(number, 0)
    assert said & (READABLE | WRITABLE)
    assert told(poller) == {}


# -- what only one of them does ----------------------------------------------------------------------------------------


def test_epoll_tells_ends_apart(ends: Ends) -> None:
    here, there = ends
    poller = EdgePoller()
    number = add(poller, here)
    assert told(poller) == {number: WRITABLE}
    there.send(b"bytes")
    assert told(poller) == {number: READABLE | WRITABLE}
    there.shutdown(socket.SHUT_WR)
    assert told(poller) == {number: READABLE | WRITABLE | ENDED}
    sockets.hard_close(there)
    assert told(poller) == {number: READABLE | WRITABLE | ENDED | BROKEN | RESET}
    poller.close()


def test_epoll_tells_a_reset_from_ends_in_both_directions(ends: Ends) -> None:
    here, there = ends
    poller = EdgePoller()
    number = add(poller, here)
    here.shutdown(socket.SHUT_WR)
    there.shutdown(socket.SHUT_WR)
    said = told(poller)[number]
    assert said & BROKEN
    assert not said & RESET
    poller.close()


def test_epoll_tells_of_urgent_data(ends: Ends) -> None:
    here, there = ends
    poller = EdgePoller()
    number = add(poller, here)
    told(poller)
    there.send(b"!", socket.MSG_OOB)
    assert told(poller)[number] & ENDED
    poller.close()


def test_each_combination_of_epolls_flags_has_its_meaning() -> None:
    flags = (select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLPRI, select.EPOLLHUP, select.EPOLLERR)
    assert len(poller_module._EVENTS) == 64
    for chosen in product((False, True), repeat=6):
        is_in, is_out, rdhup, pri, hup, err = chosen
        what = poller_module._EVENTS[sum(flag for flag, on in zip(flags, chosen, strict=True) if on)]
        assert bool(what & READABLE) == (is_in or rdhup or hup or err)
        assert bool(what & WRITABLE) == (is_out or hup or err)
        assert bool(what & ENDED) == (rdhup or pri)
        assert bool(what & BROKEN) == (hup or err)
        assert bool(what & RESET) == err


def test_the_fastest_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    best = make_poller()
    assert isinstance(best, EdgePoller)
    best.close()
    monkeypatch.delattr(select, "epoll")
    other = make_poller()
    assert isinstance(other, LevelPoller)
    other.close()
