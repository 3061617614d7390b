"""A report: what is taken of one, whoever wrote it, and how one that is too large is made to fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.protocol.report import MAX_BYTES, MAX_LIST, MAX_PARTS, MAX_TEXT, encode, parse

WHOLE: dict[str, Any] = {
    "version": 1,
    "release": "0.1.0",
    "at": "2026-11-30T06:00:00Z",
    "healthy": True,
    "unwell": [],
    "policy": "abc",
    "bundle": 3,
    "certificate": {"serial": "1f", "not_after": "2026-11-30T07:00:00Z", "renews_at": None},
    "edges": [{"direction": "inbound", "peer": "web", "port": "http", "rule": "r", "ended": {"ok": 3}, "to_app": 2.5}],
    "alarms": [{"id": "00", "presented": {"uri": "spiffe://x/y"}}],
}


def written(**changes: Any) -> bytes:
    return json.dumps({**WHOLE, **changes}).encode()


def test_what_is_encoded_is_what_is_parsed() -> None:
    assert parse(encode(WHOLE)) == WHOLE


def test_fields_of_a_newer_release_are_left_out_and_absent_ones_are_absent() -> None:
    assert parse(written(moon="full")) == WHOLE
    assert parse(b'{"version": 1}') == {"version": 1}
    assert parse(encode({"version": 1, "bundle": None})) == {"version": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "of version 1"),
        (b"7", "of version 1"),
        (b'{"version": 2}', "of version 1"),
        (b'{"version": true, "x": 1}', "version is not as it should be"),
        (b'{"healthy": true}', "of version 1"),
        (b'{"version": 1, "version": 1}', "not JSON"),
        (b'{"version": 1, "strangers": NaN}', "not JSON"),
        (b'{"version": 1, "certificate": {"x": Infinity}}', "not JSON"),
        (b'{"version": 1, "certificate": {"x": 1e999}}', "too large"),
        (b'{"version": 1, "certificate": {"x": ' + b"9" * 30 + b"}}", "too large"),
        (b'{"version": 1, "strangers": 9223372036854775808}', "too large"),
        (b'{"version": 1, "alarms": [[[[[1]]]]]}', "nested too deep"),
        (b'{"version": 1, "alarms": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deep"),
        (b'{"version": 1, "alarms": [' + b"[]," * MAX_PARTS, "too many parts"),
        (b'{"version": 1, "policy": "' + b"x" * MAX_BYTES + b'"}', "at most 32 KiB"),
        (written(healthy="yes"), "healthy is not as it should be"),
        (written(healthy=1), "healthy is not as it should be"),
        (written(bundle=True), "bundle is not as it should be"),
        (written(edges={}), "edges is not as it should be"),
        (written(policy=None), "policy is not as it should be"),
    ],
)
def test_what_is_no_report(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(data)


def test_each_text_list_and_object_is_bounded() -> None:
    found = parse(
        written(unwell=["x" * 2 * MAX_TEXT] * 3, waiting=[""] * 2 * MAX_LIST, channels={f"k{n}": n for n in range(99)})
    )
    assert [len(one) for one in found["unwell"]] == [MAX_TEXT] * 3
    assert (len(found["waiting"]), len(found["channels"])) == (MAX_LIST, 40)


def test_a_report_that_is_too_large_loses_the_ends_of_its_lists_alarms_last() -> None:
    alarms = [{"id": str(number), "message": "x" * 100} for number in range(20)]
    refusals = [{"reason": "policy_denied", "message": "y" * 400} for _ in range(300)]
    data = encode({**WHOLE, "alarms": alarms, "refusals": refusals})
    assert len(data) <= MAX_BYTES
    found = parse(data)
    assert found["alarms"] == alarms
    assert 0 < len(found["refusals"]) < 300
    assert found["cut"] == 300 - len(found["refusals"])
    data = encode({**WHOLE, "alarms": [{"message": "x" * 400}] * 500})
    assert len(data) <= MAX_BYTES
    assert len(parse(data)["alarms"]) > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*WHOLE, "x"]) | st.text(), inner),
)


OTHERS = {name: JSON for name in (*WHOLE, "cut") if name != "version"}


@given(JSON | st.fixed_dictionaries({"version": st.just(1)}, optional=OTHERS))
def test_whatever_is_written_is_refused_in_words_or_small_and_can_be_written_again(value: Any) -> None:
    try:
        found = parse(json.dumps(value).encode())
    except ValueError:
        return
    assert parse(encode(found)) == {name: one for name, one in found.items() if one is not None}


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="report"):
        parse(data)
