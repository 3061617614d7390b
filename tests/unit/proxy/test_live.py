"""Live connections: registered first, judged again on a change, cut with a reason, in portions."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, parse_svid
from sidecar.proxy.live import CUT_A_TICK, JUDGED_A_TICK, Admission, Judged, Live, Registry
from tests.beds.certificates import Authority

PEER = parse_svid(Authority().leaf().der)
CLAIM = Admission(SpiffeId("shop.internal", ("web",)), "api", "http", PEER, (), b"root")
OTHER = Admission(SpiffeId("shop.internal", ("job",)), "api", "http", PEER, (), b"root")


def web_may_not(admission: Judged) -> Reason | None:
    return Reason.POLICY_CHANGED if str(admission.source).endswith("/web") else None


async def connection(registry: Registry, admission: Admission | None, lives: list[Live]) -> None:
    scope = trio.CancelScope()
    live = Live(scope.cancel)
    live.admission = admission
    registry.enter(live)
    lives.append(live)
    try:
        with scope:
            await trio.sleep_forever()
    finally:
        registry.leave(live)


async def test_the_forbidden_are_cut_with_the_reason_and_the_others_live_on() -> None:
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        for admission in (CLAIM, OTHER, CLAIM):
            nursery.start_soon(connection, registry, admission, lives)
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


async def test_admissions_are_of_the_judged_that_were_not_cut() -> None:
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        for admission in (CLAIM, None, OTHER):
            nursery.start_soon(connection, registry, admission, lives)
        await trio.testing.wait_all_tasks_blocked()
        next(live for live in lives if live.admission is OTHER).cut(Reason.REVOKED)
        assert registry.admissions() == [CLAIM]
        nursery.cancel_scope.cancel()


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


@pytest.mark.parametrize(("reason", "most"), [(Reason.POLICY_CHANGED, CUT_A_TICK), (None, JUDGED_A_TICK)])
async def test_five_thousand_are_judged_in_portions_so_that_others_get_their_turn(
    reason: Reason | None, most: int
) -> None:
    registry, lives, count = Registry(), list[Live](), 5_000
    judged, portions = 0, list[int]()

    def judge(_: Judged) -> Reason | None:
        nonlocal judged
        judged += 1
        return reason

    async def neighbour() -> None:
        nonlocal judged
        while True:
            judged = 0
            await trio.lowlevel.checkpoint()
            portions.append(judged)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(connection, registry, CLAIM, lives)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(neighbour)
        await trio.lowlevel.checkpoint()
        assert await registry.rejudge(judge) == (count if reason else 0)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    # Tasks of one tick run in any order, so two portions can lie between two turns of one neighbour, and never three.
    assert max(portions) <= 2 * most
    assert len([one for one in portions if one]) >= count / most / 2


async def test_a_connection_that_comes_while_others_are_judged_is_judged_by_what_is_in_force_then() -> None:
    """It is in no snapshot, and need not be: its first judgement is later than the change."""
    registry, lives = Registry(), list[Live]()
    async with trio.open_nursery() as nursery:
        for _ in range(2 * JUDGED_A_TICK):
            nursery.start_soon(connection, registry, OTHER, lives)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(registry.rejudge, web_may_not)
        registry.enter(late := Live())
        await trio.testing.wait_all_tasks_blocked()
        assert late.reason is None
        nursery.cancel_scope.cancel()


async def test_one_that_ends_while_others_are_judged_is_no_trouble() -> None:
    registry, lives = Registry(), list[Live]()

    def judge(_: Judged) -> Reason | None:
        for live in lives[-10:]:
            live.end()
        return None

    async with trio.open_nursery() as nursery:
        for _ in range(2 * JUDGED_A_TICK):
            nursery.start_soon(connection, registry, CLAIM, lives)
        await trio.testing.wait_all_tasks_blocked()
        assert await registry.rejudge(judge) == 0
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 2 * JUDGED_A_TICK - 10
        nursery.cancel_scope.cancel()


def test_a_claim_reads_as_who_calls_whom() -> None:
    assert str(CLAIM) == "spiffe://shop.internal/web -> api:http"


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_place_is_taken_once_all_are_taken_it_is_refused_and_one_given_back_is_free() -> None:
    registry, lives = Registry(), [Live() for _ in range(3)]
    for live in lives[:2]:
        registry.take_place(live, 2)
    with pytest.raises(Refused) as refused:
        registry.take_place(lives[2], 2)
    assert refused.value.reason is Reason.OVERLOADED
    assert "2 connections" in refused.value.detail
    registry.give_back(lives[2])
    assert registry.places == 2
    for _ in range(2):
        registry.give_back(lives[0])
    registry.take_place(lives[2], 2)
    assert registry.places == 2


def test_callers_without_tls_have_half_of_the_places_and_no_idle_channel_s() -> None:
    registry, ended, bare = Registry(), list[str](), [Live() for _ in range(3)]
    for live in bare[:2]:
        registry.take_place(live, 4, proved=False)
    with pytest.raises(Refused, match="2 connections without TLS") as refused:
        registry.take_place(bare[2], 4, proved=False)
    assert refused.value.reason is Reason.OVERLOADED
    proved = Live()
    registry.take_place(proved, 4)
    registry.give_back(proved)
    registry.give_back(bare[0])
    registry.give_back(bare[0])
    assert (registry.places, registry.bare) == (1, 1)
    for name in ("first", "second", "third"):
        idle(registry, ended, name)
    with pytest.raises(Refused, match=r"limit of 4 connections \(limits\.connections\)"):
        registry.take_place(bare[2], 4, proved=False)
    assert ended == []
    registry.take_place(Live(), 4)
    assert ended == ["first"]
    assert (registry.places, registry.bare) == (4, 1)


def test_who_is_cut_to_make_room_was_displaced_and_who_is_cut_for_another_reason_was_not() -> None:
    displaced, revoked = Live(), Live()
    displaced.cut(Reason.OVERLOADED)
    revoked.cut(Reason.REVOKED)
    assert (displaced.was_displaced, revoked.was_displaced, Live().was_displaced) == (True, False, False)


# -- idle channels -----------------------------------------------------------------------------------------------------


def idle(registry: Registry, ended: list[str], name: str) -> Live:
    def end() -> None:
        ended.append(name)
        registry.leave(live)

    live = Live(end)
    live.admission = CLAIM
    registry.take_place(live, 10)
    registry.enter(live)
    registry.set_idle(live, idle=True)
    return live


def test_an_idle_channel_gives_its_place_to_whoever_needs_one_the_longest_idle_first() -> None:
    registry, ended = Registry(), list[str]()
    first, second = idle(registry, ended, "first"), idle(registry, ended, "second")
    registry.take_place(Live(), 2)
    assert ended == ["first"]
    assert first.reason is Reason.IDLE_TIMEOUT
    registry.set_idle(second, idle=False)
    with pytest.raises(Refused):
        registry.take_place(Live(), 2)
    assert ended == ["first"]


def test_idle_channels_are_not_shown_and_all_end_at_once() -> None:
    registry, ended = Registry(), list[str]()
    busy = idle(registry, ended, "busy")
    idle(registry, ended, "one")
    idle(registry, ended, "two")
    registry.set_idle(busy, idle=False)
    assert registry.admissions() == [CLAIM]
    assert (registry.idle, len(registry)) == (2, 3)
    registry.end_idle()
    assert ended == ["one", "two"]
    assert (registry.idle, len(registry), registry.places) == (0, 1, 1)
