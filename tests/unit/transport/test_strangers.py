"""The budget for strangers: who is counted, who is cut, who is safe. The property test compares it with a slow model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.transport.strangers import ENDING_AT_ONCE, SAFE_SECONDS, Stranger, Strangers, address_key


class Door:
    """A budget, who was cut in which order, and how often somebody left."""

    def __init__(self, limit: int) -> None:
        self.cut: list[str] = []
        self.freed = 0
        self.strangers = Strangers(limit, self._free)

    def _free(self) -> None:
        self.freed += 1

    def enter(self, name: str, host: str = "10.0.0.1", now: float = 0.0) -> Stranger:
        return self.strangers.enter(host, now, lambda: self.cut.append(name))


def test_while_there_is_room_nobody_is_cut_however_many_are_of_one_address() -> None:
    door = Door(100)
    for number in range(99):
        door.enter(str(number))
    assert not door.strangers.full
    assert door.strangers.make_room(1000) == 0
    assert door.cut == []


def test_the_twin_when_it_is_full_the_oldest_is_cut_and_so_there_is_room() -> None:
    door = Door(3)
    for number in range(3):
        door.enter(str(number), now=number)
    assert door.strangers.full
    assert door.strangers.make_room(5) == 0
    assert door.cut == ["0"]
    assert len(door.strangers) == 2


def test_the_address_with_the_most_is_cut_even_if_others_are_older() -> None:
    door = Door(5)
    door.enter("old", "10.0.0.1", 0)
    door.enter("old too", "10.0.0.1", 0)
    for number in range(3):
        door.enter(f"flood {number}", "10.0.0.2", 10)
    assert door.strangers.make_room(20) == 0
    assert door.cut == ["flood 0"]


def test_those_without_a_complete_hello_are_cut_first() -> None:
    door = Door(3)
    greeted = door.enter("greeted", now=0)
    door.enter("silent", now=5)
    door.enter("silent too", now=6)
    door.strangers.known(greeted, 0)
    for _ in range(3):
        assert door.strangers.cut_one(20) == 0
    assert door.cut == ["silent", "silent too", "greeted"]


def test_between_equal_addresses_one_with_a_silent_stranger_is_cut_first() -> None:
    door = Door(2)
    greeted = door.enter("greeted", "10.0.0.1", 0)
    door.enter("silent", "10.0.0.2", 5)
    door.strangers.known(greeted, 0)
    assert door.strangers.make_room(20) == 0
    assert door.cut == ["silent"]


@pytest.mark.parametrize("age", [0.0, 0.999])
def test_who_is_younger_than_a_second_is_safe_and_then_there_is_no_room(age: float) -> None:
    door = Door(1)
    door.enter("young", now=10)
    assert door.strangers.make_room(10 + age) == pytest.approx(SAFE_SECONDS - age)
    assert door.cut == []
    assert door.strangers.make_room(10 + SAFE_SECONDS) == 0


def test_who_has_just_become_a_second_old_is_cut() -> None:
    door = Door(1)
    door.enter("stranger", now=10.0)
    assert door.strangers.make_room(10.0 + SAFE_SECONDS) == 0
    assert door.cut == ["stranger"]


def test_a_known_one_is_cut_if_the_silent_ones_are_too_young() -> None:
    door = Door(2)
    greeted = door.enter("greeted", now=0)
    door.strangers.known(greeted, 0)
    door.enter("young", now=9.5)
    assert door.strangers.make_room(10) == 0
    assert door.cut == ["greeted"]


def test_the_second_counts_from_the_complete_hello() -> None:
    door = Door(1)
    slow = door.enter("slow", now=0)
    door.strangers.known(slow, 10)
    assert door.strangers.make_room(10.5) == pytest.approx(0.5)


def test_a_busy_one_is_never_cut_and_counts_in_the_budget() -> None:
    door = Door(1)
    busy = door.enter("busy")
    door.strangers.busy(busy, 0)
    assert door.strangers.full
    assert door.strangers.make_room(1e9) == math.inf
    door.strangers.known(busy, 1e9)
    assert door.strangers.make_room(1e9) == SAFE_SECONDS
    assert door.strangers.make_room(1e9 + 2) == 0
    assert door.cut == ["busy"]


def test_busy_ones_do_not_shield_those_of_another_address() -> None:
    door = Door(3)
    for number in range(2):
        door.strangers.busy(door.enter(f"busy {number}", "10.0.0.1"), 0)
    door.enter("idle", "10.0.0.2")
    assert door.strangers.make_room(5) == 0
    assert door.cut == ["idle"]


def test_who_was_judged_counts_nowhere() -> None:
    door = Door(2)
    judged = door.enter("judged")
    door.strangers.leave(judged, 1)
    door.strangers.leave(judged, 1)
    door.enter("other")
    assert (len(door.strangers), door.freed, door.strangers.full) == (1, 1, False)
    assert door.strangers.cut_one(9) == 0
    assert door.strangers.cut_one(9) == math.inf
    assert door.cut == ["other"]
    assert not judged.is_cut


def test_late_news_of_those_who_left_or_were_cut_changes_nothing() -> None:
    door = Door(2)
    gone, cut = door.enter("gone"), door.enter("cut")
    door.strangers.leave(gone, 0)
    door.strangers.cut_one(5)
    for stranger in (gone, cut):
        door.strangers.known(stranger, 6)
        door.strangers.busy(stranger, 6)
    assert (len(door.strangers), cut.is_cut) == (0, True)
    door.strangers.leave(cut, 7)
    assert door.freed == 2


def test_only_so_many_ends_at_once() -> None:
    door = Door(100)
    strangers = [door.enter(str(number)) for number in range(100)]
    assert [door.strangers.cut_one(5) for _ in range(ENDING_AT_ONCE + 1)] == [0] * ENDING_AT_ONCE + [math.inf]
    assert door.strangers.full
    door.strangers.leave(strangers[0], 6)
    assert door.strangers.cut_one(6) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1", "::ffff:10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "", True),
        ("", "10.0.0.1", False),
        ("::1", "::1", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """A stranger, as the model knows it."""

    it: Stranger
    key: str
    stage: str
    since: float


class Model:
    """The same rules, by looking at everybody each time."""

    def __init__(self, limit: int) -> None:
        self.people: list[Seen] = []
        self.strangers = Strangers(limit)
        self.now = 0.0

    def enter(self, key: str) -> None:
        seen: Seen

        def cut() -> None:
            seen.stage = "cut"

        seen = Seen(self.strangers.enter(key, self.now, cut), key, "silent", self.now)
        self.people.append(seen)

    def make_room(self, limit: int) -> None:
        held = [one for one in self.people if one.stage != "cut"]
        stages = {id(one): one.stage for one in held}
        cuttable = [one for one in held if one.stage != "busy"]
        sizes = Counter(one.key for one in cuttable)
        largest = {key for key, size in sizes.items() if size == max(sizes.values())}
        old = [one for one in cuttable if one.key in largest and self.now - one.since >= SAFE_SECONDS]
        ending = len(self.people) - len(held)

        wait = self.strangers.make_room(self.now)
        cut = [one for one in held if one.stage == "cut"]
        if len(held) < limit and ending < ENDING_AT_ONCE:
            assert (wait, cut) == (0, [])
        elif ending >= ENDING_AT_ONCE or not cuttable:
            assert (wait, cut) == (math.inf, [])
        elif wait:
            assert cut == []
            assert wait <= SAFE_SECONDS + 1e-9  # of rounding
            assert not old or len(largest) > 1  # of several, the one that has been so large for longest is asked
        else:
            (victim,) = cut
            beside = [one for one in old if one.key == victim.key]
            first = min(beside, key=lambda one: (stages[id(one)] == "known", one.since))
            assert (stages[id(victim)], victim.since) == (stages[id(first)], first.since)


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "enter", "enter", "known", "busy", "leave", "room", "wait"]), st.integers(0, 99)
    ),
    max_size=80,
)


@settings(max_examples=300)
@given(steps, st.integers(1, 12))
def test_it_does_as_the_slow_model_does(steps: list[tuple[str, int]], limit: int) -> None:
    model = Model(limit)
    for step, number in steps:
        if step == "enter":
            model.enter(f"10.0.0.{number % 4}")
        elif step == "wait":
            model.now += number / 50
        elif step == "room":
            model.make_room(limit)
        elif model.people:
            person = model.people[number % len(model.people)]
            if step == "leave":
                model.strangers.leave(person.it, model.now)
                model.people.remove(person)
            elif step == "known" and person.stage in ("silent", "busy"):
                model.strangers.known(person.it, model.now)
                person.stage, person.since = "known", model.now
            elif step == "busy" and person.stage in ("silent", "known"):
                model.strangers.busy(person.it, model.now)
                person.stage, person.since = "busy", model.now
        assert len(model.strangers) == sum(one.stage != "cut" for one in model.people)
    for person in model.people:
        model.strangers.leave(person.it, model.now)
    assert len(model.strangers) == 0
    assert not model.strangers._addresses
    assert not model.strangers._ranked
    assert model.strangers._largest == 0
