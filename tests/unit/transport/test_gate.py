"""The gate: a few steps a tick, in turns, and nobody is forgotten, whoever gives up beside him."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import trio
import trio.testing

from sidecar.transport.gate import MAX_PROVED, STEPS_A_TICK, STRANGERS_A_TICK, STRANGERS_AHEAD, STRANGERS_SHARE, Gate
from tests.beds.patience import PATIENCE


class Ticks(trio.abc.Instrument):
    """Counts the passes of trio's loop."""

    def __init__(self) -> None:
        self.now = 0

    def after_io_wait(self, timeout: float) -> None:
        self.now += 1


async def crowd(gate: Gate, size: int, steps: int = 1, address: str | None = None) -> tuple[list[int], Counter[int]]:
    """So many tasks, each with so many steps to do: in which order they got through, and how many in which tick."""
    ticks, order, passed = Ticks(), list[int](), Counter[int]()

    async def one(number: int) -> None:
        for _ in range(steps):
            await gate.turn(address)
            order.append(number)
            passed[ticks.now] += 1

    trio.lowlevel.add_instrument(ticks)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(size):
                nursery.start_soon(one, number)
    trio.lowlevel.remove_instrument(ticks)
    return order, passed


@pytest.fixture
async def gate(nursery: trio.Nursery) -> Gate:
    gate = Gate()
    nursery.start_soon(gate.run)
    await trio.testing.wait_all_tasks_blocked()
    return gate


async def test_the_first_few_need_not_wait(gate: Gate) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()  # whoever waited would be cancelled
        for _ in range(STEPS_A_TICK):
            await gate.turn()
    assert not scope.cancelled_caught


async def test_the_twin_the_next_one_waits(gate: Gate) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(STEPS_A_TICK + 1):
            await gate.turn()
    assert scope.cancelled_caught


@pytest.mark.parametrize("steps", [1, 5])
async def test_a_flood_gets_a_few_steps_a_tick(gate: Gate, steps: int) -> None:
    _, passed = await crowd(gate, 40, steps)
    assert passed.total() == 40 * steps
    assert max(passed.values()) <= 2 * STEPS_A_TICK, (
        "one tick may hold the last of one opening and the first of the next"
    )
    ticks = sorted(passed)
    for first in range(len(ticks)):
        for last in range(first, len(ticks)):
            inside = sum(passed[tick] for tick in ticks[first : last + 1])
            assert inside <= STEPS_A_TICK * (ticks[last] - ticks[first] + 2)


async def test_first_come_first_served(gate: Gate) -> None:
    for _ in range(STEPS_A_TICK):
        await gate.turn()
    arrived, order = [], []

    async def one(number: int) -> None:
        arrived.append(number)
        await gate.turn()
        order.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
    # Those let through in one tick may run in either order.
    assert [set(order[at : at + STEPS_A_TICK]) for at in range(0, 20, STEPS_A_TICK)] == [
        set(arrived[at : at + STEPS_A_TICK]) for at in range(0, 20, STEPS_A_TICK)
    ]


async def test_nobody_slips_in_before_those_who_wait(gate: Gate) -> None:
    order = []

    async def one(name: str) -> None:
        await gate.turn()
        order.append(name)

    for _ in range(STEPS_A_TICK):
        await gate.turn()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(3 * STEPS_A_TICK):
                nursery.start_soon(one, "early")
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.start_soon(one, "late")
    assert order == ["early"] * 3 * STEPS_A_TICK + ["late"]


async def test_it_opens_again_after_a_rest(gate: Gate) -> None:
    for _ in range(3):
        _, passed = await crowd(gate, 7)
        assert passed.total() == 7
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("seed", range(30))
async def test_nobody_is_lost_when_others_give_up(gate: Gate, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    through = set()

    async def one(number: int, scope: trio.CancelScope) -> None:
        with scope:
            for _ in range(chance.randrange(4)):
                await trio.lowlevel.cancel_shielded_checkpoint()
            await gate.turn()
            through.add(number)

    scopes = [trio.CancelScope() for _ in range(30)]
    impatient = set(chance.sample(range(30), 15))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(one, number, scope)
            for number in impatient:
                for _ in range(chance.randrange(3)):
                    await trio.lowlevel.checkpoint()
                scopes[number].cancel()
    assert through >= set(range(30)) - impatient
    _, passed = await crowd(gate, 5)
    assert passed.total() == 5, "and it still opens"


# -- turns -------------------------------------------------------------------------------------------------------------


async def order_of(gate: Gate, *arriving: str | None) -> list[str | None]:
    """The order in which these are let through, if they arrive in this one while the gate is shut. None is our own."""
    order: list[str | None] = []

    async def one(address: str | None) -> None:
        await gate.turn(address)
        order.append(address)

    for _ in range(STEPS_A_TICK):
        await gate.turn("somebody")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for address in arriving:
                nursery.start_soon(one, address)
    return order


async def test_no_address_holds_up_another(gate: Gate) -> None:
    order = await order_of(gate, *["flood"] * 50, "b", "b", "c")
    assert {"b", "c"} <= set(order[:6])
    assert order.count("flood") == 50


async def test_inbound_handshakes_do_not_hold_up_our_own(gate: Gate) -> None:
    order = await order_of(gate, *[f"{number % 20}" for number in range(100)], *[None] * 5)
    assert order[: 2 * 5 + STEPS_A_TICK].count(None) == 5


async def test_nor_do_our_own_hold_up_the_others(gate: Gate) -> None:
    order = await order_of(gate, *[None] * 50, *["a"] * 5)
    assert order[: (5 // STRANGERS_A_TICK + 2) * STEPS_A_TICK].count("a") == 5


async def test_what_no_other_kind_needs_either_gets(gate: Gate) -> None:
    gate.prove("proved")
    for kind in (None, "proved"):
        _, passed = await crowd(gate, 20, address=kind)
        assert max(passed.values()) >= STEPS_A_TICK


async def test_strangers_get_a_part_of_a_tick_at_most(gate: Gate) -> None:
    _, passed = await crowd(gate, 20, address="a")
    assert STRANGERS_A_TICK <= max(passed.values()) <= 2 * STRANGERS_A_TICK < STEPS_A_TICK * 2, (
        "one tick may hold the last of one opening and the first of the next"
    )


@pytest.mark.parametrize("seed", range(10))
async def test_nobody_is_lost_in_any_queue_when_others_give_up(gate: Gate, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    through = set()
    scopes = [trio.CancelScope() for _ in range(60)]

    async def one(number: int) -> None:
        with scopes[number]:
            for _ in range(chance.randrange(4)):
                await trio.lowlevel.cancel_shielded_checkpoint()
            await gate.turn(chance.choice([None, "a", "b", "c"]))
            through.add(number)

    impatient = set(chance.sample(range(60), 30))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, number)
            for number in impatient:
                for _ in range(chance.randrange(3)):
                    await trio.lowlevel.checkpoint()
                scopes[number].cancel()
    assert through >= set(range(60)) - impatient
    await trio.testing.wait_all_tasks_blocked()
    assert not any(line._queues for line in gate._lines), "no address stays behind"


async def test_addresses_of_peers_have_turns_of_their_own_however_many_strangers_wait(gate: Gate) -> None:
    order: list[str] = []

    async def step(address: str | None) -> None:
        await gate.turn(address)
        order.append(address or "own")

    gate.prove("10.0.0.1")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(step, f"10.9.0.{number}")
            for address in ("10.0.0.1", "10.0.0.1", None):
                nursery.start_soon(step, address)
    late = [order.index("10.0.0.1"), len(order) - 1 - order[::-1].index("10.0.0.1"), order.index("own")]
    assert len(order) == 303
    assert max(late) - min(late) <= 6
    assert order[-1].startswith("10.9"), "strangers were still waiting then"


async def test_only_the_latest_addresses_of_peers_are_remembered(gate: Gate) -> None:
    gate.prove("10.0.0.1")
    gate.prove("10.0.0.2")
    gate.prove("10.0.0.1")
    for number in range(MAX_PROVED - 1):
        gate.prove(f"10.1.{number // 256}.{number % 256}")
    assert "10.0.0.1" in gate._proved
    assert "10.0.0.2" not in gate._proved
    assert len(gate._proved) == MAX_PROVED


async def test_who_waits_without_a_task_is_called_once_in_turn_and_not_if_it_has_left(gate: Gate) -> None:
    order: list[str] = []
    leaves = []
    while gate.passes("a"):
        pass
    for name in ("first", "left", "second"):
        leaves.append(gate.wait("a", math.inf, lambda is_turn, name=name: order.append(f"{name} {is_turn}")))  # type: ignore[misc]
    leaves[1]()
    assert order == []
    await trio.testing.wait_all_tasks_blocked()
    assert order == ["first True", "second True"]
    for leave in leaves:
        leave()
    assert not any(line._queues for line in gate._lines)
    gate.wait("a", 1e6, lambda _: None)()
    assert not any(gate._ends.values()), "nobody who has left is remembered until its time"


async def test_who_waits_for_too_long_is_told(mock_clock: trio.testing.MockClock, gate: Gate) -> None:
    """Strangers who have used up their share wait for longer than they may."""
    told: list[tuple[bool, float]] = []
    gate.count("stranger", 100.0)
    for until in (3.0, 2.0, 1e6):
        assert not gate.passes("stranger")
        gate.wait("stranger", until, lambda is_turn: told.append((is_turn, trio.current_time())))
    gone = gate.wait("stranger", 2.5, lambda _: pytest.fail("it has left"))
    gone()
    for _ in range(4):
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked()
    assert told == [(False, 2.0), (False, 3.0)]
    mock_clock.jump(1000)  # the twin: its turn comes
    await trio.testing.wait_all_tasks_blocked()
    assert told[2:] == [(True, 1004.0)]


# -- the share of those whom nobody knows ------------------------------------------------------------------------------


STEP = 1 / 16
"""Seconds: of which sums are exact."""


async def flood(gate: Gate, address: str, seconds: float, passed: list[float]) -> None:
    """Takes one step after the other, each of so many seconds of CPU time."""
    while True:
        await gate.turn(address)
        gate.count(address, seconds)
        passed.append(trio.current_time())


async def test_strangers_get_their_share_of_time_and_others_are_not_counted(
    mock_clock: trio.testing.MockClock, gate: Gate, nursery: trio.Nursery
) -> None:
    passed: list[float] = []
    nursery.start_soon(flood, gate, "stranger", STEP, passed)
    await trio.testing.wait_all_tasks_blocked()
    assert len(passed) == STRANGERS_AHEAD / STEP + 1, "what they have saved up, and the step that uses it up"
    gate.prove("peer")
    for address in (None, "peer"):  # the twins: others pass meanwhile, as often as they like
        with trio.fail_after(PATIENCE):
            for _ in range(50):
                await gate.turn(address)
                gate.count(address, 1.0)
    for second in range(1, 21):
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        used = len(passed) * STEP
        assert used <= STRANGERS_AHEAD + second * STRANGERS_SHARE + STEP
    assert used >= 20 * STRANGERS_SHARE


async def test_one_stranger_uses_up_the_time_of_another(mock_clock: trio.testing.MockClock, gate: Gate) -> None:
    gate.count("stranger", 10.0)
    waits = trio.CancelScope()
    with waits:
        async with trio.open_nursery() as nursery:

            async def stranger() -> None:
                await gate.turn("another")
                pytest.fail("passed")

            nursery.start_soon(stranger)
            await trio.testing.wait_all_tasks_blocked()
            waits.cancel()
    assert waits.cancelled_caught
