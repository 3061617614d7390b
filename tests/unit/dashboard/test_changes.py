"""Only what has changed is sent, and it makes the same view of the one before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.dashboard.changes import applied, changes

ENTRIES = st.dictionaries(
    st.sampled_from("abcd"), st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2), max_size=4
)
SECTIONS = st.fixed_dictionaries({}, optional={"services": ENTRIES, "pairs": ENTRIES})


def test_what_is_new_another_and_gone() -> None:
    before = {"services": {"a": 1, "b": 2, "c": 3}, "pairs": {"x": 1}}
    after = {"services": {"a": 1, "b": 5, "d": 4}, "pairs": {"x": 1}}
    assert changes(before, after) == {"services": {"set": {"b": 5, "d": 4}, "gone": ["c"]}}


def test_of_the_same_nothing() -> None:
    assert changes({"services": {"a": [1]}}, {"services": {"a": [1]}}) == {}


@given(SECTIONS, SECTIONS)
def test_a_change_makes_the_one_of_the_other(
    before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]
) -> None:
    after = {name: after.get(name, {}) for name in {*before, *after}}  # a view has the same sections always
    found = applied(before, changes(before, after))
    assert {name: one for name, one in found.items() if one} == {name: one for name, one in after.items() if one}
