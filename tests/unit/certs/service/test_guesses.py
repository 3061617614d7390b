"""Wrong guesses are counted; right ones, however many at once, are not."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing
from certs.protocol.denial import Denial, Denied

from certs.service.guesses import Guesses
from certs.service.limits import Rate


async def guess(guesses: Guesses, ends: Exception | None = None, source: str = "a") -> str:
    """One turn, which takes a second; what came of it."""
    try:
        async with guesses.turn(source):
            await trio.sleep(1)
            if ends is not None:
                raise ends
    except Denied as denied:
        return str(denied.denial)
    except OSError:
        return "broken"
    return "ok"


async def at_once(guesses: Guesses, *ends: Exception | None) -> Counter[str]:
    found: Counter[str] = Counter()

    async def one(end: Exception | None) -> None:
        found[await guess(guesses, end)] += 1

    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(one, end)
    return found


def wrong() -> Denied:
    return Denied(Denial.BAD_PASS, "")


async def test_wrong_ones_use_up_their_source_s_turns(autojump_clock: trio.testing.MockClock) -> None:
    guesses = Guesses(Rate(2, 0.1))
    assert [await guess(guesses, wrong()) for _ in range(3)] == ["bad_pass", "bad_pass", "rate_limited"]
    assert await guess(guesses, source="b") == "ok"
    await trio.sleep(10)
    assert await guess(guesses) == "ok"


@pytest.mark.parametrize("end", [None, Denied(Denial.PASS_USED, ""), OSError()])
async def test_others_do_not(end: Exception | None, autojump_clock: trio.testing.MockClock) -> None:
    guesses = Guesses(Rate(1, 0))
    assert "rate_limited" not in [await guess(guesses, end) for _ in range(5)]


async def test_a_thousand_wrong_ones_at_once_are_a_thousand(autojump_clock: trio.testing.MockClock) -> None:
    assert await at_once(Guesses(Rate(10, 0)), *[wrong() for _ in range(1000)]) == {
        "bad_pass": 10,
        "rate_limited": 990,
    }


async def test_a_thousand_right_ones_at_once_all_have_their_turn(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    assert await at_once(Guesses(Rate(10, 0)), *[None] * 1000) == {"ok": 1000}
    assert trio.current_time() - began == pytest.approx(100)


async def test_right_ones_among_wrong_ones_are_found_while_turns_last(autojump_clock: trio.testing.MockClock) -> None:
    found = await at_once(Guesses(Rate(3, 0)), wrong(), None, wrong(), None, None, None)
    assert found == {"ok": 4, "bad_pass": 2}
    found = await at_once(Guesses(Rate(3, 0)), None, *[wrong() for _ in range(9)], None)
    assert found["bad_pass"] == 3, "in whatever order they came"
    assert found["ok"] + found["rate_limited"] == 8


async def test_who_gives_up_gives_its_turn_back(autojump_clock: trio.testing.MockClock) -> None:
    guesses = Guesses(Rate(1, 0))
    with trio.move_on_after(0.5):
        await guess(guesses, wrong())
    assert await guess(guesses) == "ok"
