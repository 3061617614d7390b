"""Live connections: registered first, judged again on a change, cut with a reason, in portions."""

from __future__ import annotations

import trio
import trio.testing

from sidecar.identity import SpiffeId
from sidecar.reasons import Reason
from sidecar.registry import CUT_A_TICK, JUDGED_A_TICK, Claim, Live, Registry

CLAIM = Claim(SpiffeId("shop.internal", ("web",)), "api", "http", b"root")
OTHER = Claim(SpiffeId("shop.internal", ("job",)), "api", "http", b"root")


def web_may_not(claim: Claim) -> Reason | None:
    return Reason.POLICY_CHANGED if claim.source.service == "web" else None


async def connection(registry: Registry, claim: Claim | None, lives: list[Live]) -> None:
    with registry.enter() as live:
        live.claim = claim
        lives.append(live)
        await trio.sleep_forever()


async def test_the_forbidden_are_cut_with_the_reason_and_the_others_live_on() -> None:
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        for claim in (CLAIM, OTHER, CLAIM):
            nursery.start_soon(connection, registry, claim, lives)
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 3
        assert await registry.rejudge(web_may_not) == 2
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 1
        assert sorted(live.reason or "" for live in lives) == ["", "policy_changed", "policy_changed"]
        nursery.cancel_scope.cancel()
    assert len(registry) == 0


async def test_a_connection_that_nobody_has_judged_yet_is_left_to_its_first_judgement() -> None:
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection, registry, None, lives)
        await trio.testing.wait_all_tasks_blocked()
        assert await registry.rejudge(lambda _: Reason.POLICY_CHANGED) == 0
        assert lives[0].reason is None
        nursery.cancel_scope.cancel()


async def test_the_first_reason_counts_and_a_cut_one_is_not_judged_again() -> None:
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection, registry, CLAIM, lives)
        await trio.testing.wait_all_tasks_blocked()
        lives[0].cut(Reason.TRUST_CHANGED)
        lives[0].cut(Reason.POLICY_CHANGED)
        assert await registry.rejudge(web_may_not) == 0
    assert lives[0].reason is Reason.TRUST_CHANGED


async def test_an_end_from_outside_is_no_cut() -> None:
    registry, lives = Registry(), list[Live]()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection, registry, CLAIM, lives)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert lives[0].reason is None
    assert len(registry) == 0


async def test_many_are_judged_and_cut_in_portions_so_that_others_get_their_turn() -> None:
    registry, lives, turns = Registry(), list[Live](), 0
    count = 2 * JUDGED_A_TICK

    async def neighbour() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(connection, registry, CLAIM, lives)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(neighbour)
        await trio.lowlevel.checkpoint()
        before = turns
        assert await registry.rejudge(web_may_not) == count
        assert turns - before >= count // CUT_A_TICK - 1
        nursery.cancel_scope.cancel()
