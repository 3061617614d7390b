"""The audit log's chain: whatever is done to an entry, or to their order, is found; an honest log has no faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.store.audit import START, Entry, chained, faults

texts = st.text(max_size=20)
details = st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans()), max_size=3)


def log(*happened: tuple[int, str, str, Mapping[str, object]]) -> list[Entry]:
    """A log as the store writes it."""
    entries: list[Entry] = []
    for number, (at, event, identity, detail) in enumerate(happened, 1):
        previous = entries[-1].hash if entries else START
        entries.append(chained(previous, number, at, event, identity, detail))
    return entries


LOG = log(
    (100, "init", "", {"trust_domain": "shop.internal"}),
    (101, "token_made", "spiffe://shop.internal/api", {}),
    (102, "issued", "spiffe://shop.internal/api", {"how": "token", "serial": "1f"}),
    (103, "revoked", "spiffe://shop.internal/api", {"before": 104}),
    (104, "issued", "spiffe://shop.internal/web", {"how": "secret", "serial": "2f"}),
)

logs = st.lists(st.tuples(st.integers(0, 1 << 40), texts, texts, details), max_size=8).map(lambda rows: log(*rows))


def test_an_honest_log_has_no_faults() -> None:
    assert list(faults(LOG)) == []
    assert list(faults([])) == []


@settings(deadline=None)
@given(logs)
def test_nor_has_any_other(entries: list[Entry]) -> None:
    assert list(faults(entries)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"at": 99},
        {"event": "denied"},
        {"identity": "spiffe://shop.internal/web"},
        {"detail": '{"how":"token","serial":"20"}'},
        {"hash": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_entry_is_named(change: dict[str, object]) -> None:
    changed = [*LOG[:2], replace(LOG[2], **change), *LOG[3:]]  # type: ignore[arg-type]  # any field, any value
    first = next(iter(faults(changed)))
    assert first.startswith("entry 3 (")
    assert first.endswith("was changed, or what came before it was")


def test_an_entry_that_was_changed_and_hashed_anew_breaks_the_next() -> None:
    forged = chained(LOG[1].hash, 3, 102, "issued", "spiffe://shop.internal/evil", {})
    assert list(faults([*LOG[:2], forged, *LOG[3:]])) == [
        "entry 4 (revoked spiffe://shop.internal/api) was changed, or what came before it was"
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_entry_that_was_taken_out_is_missed(number: int) -> None:
    told = list(faults([entry for entry in LOG if entry.number != number]))
    assert told[0] == f"entry {number} is missing: {number + 1} follows {number - 1}"


def test_one_taken_out_with_the_others_renumbered() -> None:
    closed = [LOG[0], *(replace(entry, number=entry.number - 1) for entry in LOG[2:])]
    assert len(list(faults(closed))) == 3


def test_two_entries_in_each_other_s_place() -> None:
    assert list(faults([LOG[0], LOG[2], LOG[1], *LOG[3:]]))
    swapped = [LOG[0], replace(LOG[2], number=2), replace(LOG[1], number=3), *LOG[3:]]
    assert len(list(faults(swapped))) >= 2


def test_an_end_that_was_cut_off_is_not_seen_by_the_chain_alone() -> None:
    """So it is said in the module, and ``certs audit --verify --expect`` is there."""
    assert list(faults(LOG[:3])) == []


@settings(deadline=None)
@given(logs.filter(bool), st.data())
def test_whatever_is_changed_in_whichever_entry(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(entries) - 1))
    field = data.draw(st.sampled_from(["number", "at", "event", "identity", "detail", "hash"]))
    old = getattr(entries[at], field)
    new = data.draw((st.integers() if isinstance(old, int) else texts).filter(lambda value: value != old))
    changed = [*entries[:at], replace(entries[at], **cast("dict[str, Any]", {field: new})), *entries[at + 1 :]]
    assert list(faults(changed))


@settings(deadline=None)
@given(logs, st.data())
def test_no_other_order_of_the_same_entries_is_good(entries: list[Entry], data: st.DataObject) -> None:
    other = data.draw(st.permutations(entries))
    assert bool(list(faults(other))) == (list(other) != entries)


@settings(deadline=None)
@given(texts, texts, texts, texts)
def test_text_does_not_move_from_one_field_to_the_next(one: str, two: str, three: str, four: str) -> None:
    left, right = chained(START, 1, 0, one, two, {}), chained(START, 1, 0, three, four, {})
    assert (left.hash == right.hash) == ((one, two) == (three, four))


def test_the_order_of_a_detail_s_keys_does_not_count() -> None:
    assert chained(START, 1, 0, "a", "b", {"x": 1, "y": 2}) == chained(START, 1, 0, "a", "b", {"y": 2, "x": 1})
