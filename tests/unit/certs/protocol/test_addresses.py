"""Where the CA is: every address of its name, the ones that work first, and the last good answer while the resolver
is mute."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from certs.protocol.addresses import LOOKUP_SECONDS, MAX_ADDRESSES, MOST_LOOKUPS, CaAddresses, Place
from sidecar.documents.address import Address
from tests.beds.patience import PATIENCE

NAME = Address("ca.mesh", 8443)


def v4(last: int) -> Place:
    return Place(socket.AF_INET, (f"192.0.2.{last}", 8443))


def v6(last: int) -> Place:
    return Place(socket.AF_INET6, (f"2001:db8::{last}", 8443, 0, 0))


class Resolver:
    """As the system's: ``answer`` is what it says, or raises. While ``mute`` is set, it says nothing."""

    def __init__(self, *places: Place) -> None:
        self.places: tuple[Place, ...] | OSError = places
        self.asked: list[tuple[Any, ...]] = []
        self.speaks = threading.Event()
        self.speaks.set()
        self.heard = threading.Event()
        self.said = threading.Event()

    def __call__(self, *question: Any, **flags: Any) -> list[Any]:
        self.asked.append(question)
        self.heard.set()
        self.speaks.wait(PATIENCE)
        try:
            if isinstance(self.places, OSError):
                raise self.places
            return [(one.family, flags["type"], 6, "", one.address) for one in self.places]
        finally:
            self.said.set()


async def test_a_number_is_not_asked_for() -> None:
    assert await CaAddresses(Address("192.0.2.7", 8443)).places() == [v4(7)]
    assert await CaAddresses(Address("2001:db8::7", 8443)).places() == [v6(7)]


async def test_the_families_take_turns_and_a_liar_s_thousands_are_not_all_tried() -> None:
    resolver = Resolver(v6(1), v6(2), v4(1))
    assert await CaAddresses(NAME, resolver).places() == [v6(1), v4(1), v6(2)]
    assert resolver.asked == [("ca.mesh", 8443)]
    resolver.places = tuple(v4(number) for number in range(200))
    assert await CaAddresses(NAME, resolver).places() == [v4(number) for number in range(MAX_ADDRESSES)]


async def test_it_is_looked_up_each_time() -> None:
    resolver = Resolver(v4(1))
    addresses = CaAddresses(NAME, resolver)
    assert await addresses.places() == [v4(1)]
    resolver.places = (v4(2),)
    assert await addresses.places() == [v4(2)]


async def test_what_failed_is_tried_last_until_it_works_again() -> None:
    addresses = CaAddresses(NAME, Resolver(v4(1), v4(2), v4(3)))
    await addresses.places()
    addresses.put_behind(v4(1))
    assert await addresses.places() == [v4(2), v4(3), v4(1)]
    addresses.put_behind(v4(2))
    assert await addresses.places() == [v4(3), v4(1), v4(2)]
    addresses.put_behind(v4(1))
    assert await addresses.places() == [v4(3), v4(2), v4(1)]
    addresses.works(v4(1))
    addresses.works(v4(3))
    assert await addresses.places() == [v4(1), v4(3), v4(2)]


async def test_an_address_that_is_gone_is_forgotten() -> None:
    resolver = Resolver(v4(1), v4(2))
    addresses = CaAddresses(NAME, resolver)
    addresses.put_behind(v4(1))
    resolver.places = (v4(2),)
    await addresses.places()
    resolver.places = (v4(1), v4(2))
    assert await addresses.places() == [v4(1), v4(2)]


@pytest.mark.parametrize("fault", [OSError("no such host"), ()])
async def test_a_resolver_that_fails_leaves_the_last_good_answer(fault: OSError | tuple[Place, ...]) -> None:
    resolver = Resolver(v4(1))
    addresses = CaAddresses(NAME, resolver)
    await addresses.places()
    resolver.places = fault
    assert await addresses.places() == [v4(1)]
    with pytest.raises(OSError, match=r"no such host|no address"):  # the twin: there was none
        await CaAddresses(NAME, resolver).places()


async def jumps(clock: MockClock, step: Callable[[], Any], seconds: float) -> Any:
    """The result of a step that takes so much virtual time."""
    got: list[Any] = []

    async def run() -> None:
        got.append(await step())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(seconds * 0.99)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        clock.jump(seconds * 0.02)
    return got[0]


async def test_a_mute_resolver_leaves_it_too_and_its_late_answer_counts(mock_clock: MockClock) -> None:
    resolver = Resolver(v4(1))
    addresses = CaAddresses(NAME, resolver)
    await addresses.places()
    for event in (resolver.speaks, resolver.heard, resolver.said):
        event.clear()
    resolver.places = (v4(2),)
    assert await jumps(mock_clock, addresses.places, LOOKUP_SECONDS) == [v4(1)]
    await trio.to_thread.run_sync(resolver.heard.wait)  # a thread starts when the machine lets it, not by this clock
    for _ in range(MOST_LOOKUPS - 1):
        resolver.heard.clear()
        assert await jumps(mock_clock, addresses.places, LOOKUP_SECONDS) == [v4(1)]
        await trio.to_thread.run_sync(resolver.heard.wait)
    for _ in range(3):  # whatever their number, threads do not pile up
        assert await jumps(mock_clock, addresses.places, LOOKUP_SECONDS) == [v4(1)]
    assert len(resolver.asked) == 1 + MOST_LOOKUPS
    resolver.places = (v4(2),)
    resolver.speaks.set()
    await trio.to_thread.run_sync(resolver.said.wait)
    assert await addresses.places() == [v4(2)]


async def test_a_look_up_that_hangs_does_not_hide_that_the_name_is_known_by_now() -> None:
    """As that of a CA whose container has not started yet, where the server outside never answers."""
    resolver = Resolver(v4(1))
    addresses = CaAddresses(NAME, resolver)
    resolver.speaks.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(addresses.places)
        await trio.to_thread.run_sync(resolver.heard.wait)
        nursery.cancel_scope.cancel()  # its connection's time is up
    hangs, resolver.speaks = resolver.speaks, threading.Event()
    resolver.speaks.set()
    try:
        with trio.fail_after(PATIENCE / 2):
            assert await addresses.places() == [v4(1)]
    finally:
        hangs.set()


async def test_the_first_answer_is_waited_for_as_long_as_the_caller_likes(mock_clock: MockClock) -> None:
    resolver = Resolver(v4(1))
    addresses = CaAddresses(NAME, resolver)
    resolver.speaks.clear()
    async with trio.open_nursery() as nursery:
        got: list[list[Place]] = []

        async def ask() -> None:
            got.append(await addresses.places())

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(60)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        resolver.speaks.set()
    assert got == [[v4(1)]]
