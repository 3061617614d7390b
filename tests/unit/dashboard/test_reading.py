"""What the CA shows is read as if an enemy had written the reports: nothing of a wrong type, size or shape gets further."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dashboard.reading import MAX_NAME, MAX_ROWS, MAX_TEXT, iso, read, service_of
from sidecar.dashboard.view import Watching
from tests.beds.dashboard import NOW, entry, inbound, mitm, outbound, refusal, shop, shown

TIMES = st.sampled_from(
    [
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "2026-11-30T08:59:59Z",
        "2026-11-30",
        "2026-11-30T09:00:00+14:00",
        "soon",
    ]
)
JSON = st.recursive(
    TIMES
    | st.just(10**400)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    "edges",
    "refusals",
    "inbound",
    "outbound",
    "certificate",
    "channels",
    "plaintext",
    "ending",
    "unwell",
    "policy",
]


def test_a_healthy_mesh() -> None:
    found = read(shop(), NOW)
    assert (found.trust_domain, found.bundle, found.policy) == ("shop.internal", 3, "0123456789ab")
    assert [one.service for one in found.sidecars] == ["web", "api", "db", "cache", "reporting"]
    api = found.sidecars[1]
    assert (api.healthy, api.fresh, api.streams, api.reused) == (True, True, 10, 9)
    assert api.not_after == datetime(2026, 11, 30, 9, 50, tzinfo=UTC)
    assert api.calls == (("db:postgres", True), ("cache:redis", True))


def test_the_ends_of_a_flow_are_the_same_from_both_sides() -> None:
    found = read(
        shown(entry("web", edges=[outbound("api:http", 7)]), entry("api", edges=[inbound("web", "http", 7)])), NOW
    )
    (out,), (into,) = (one.flows for one in found.sidecars)
    assert (out.caller, out.callee, out.port) == (into.caller, into.callee, into.port) == ("web", "api", "http")
    assert (out.to_callee, out.to_caller) == (into.to_callee, into.to_caller) == (700, 6300)


def test_a_probe_is_nobody_s_call_and_no_refusal() -> None:
    edge = inbound("web", "http", 7, ended={"probe": 2, "ok": 5}, refused={"probe": 3, "expired": 1})
    (one,) = read(shown(entry("api", edges=[edge])), NOW).sidecars
    assert (one.flows[0].opened, one.flows[0].refused) == (5, 1)
    (one,) = read(shown(entry("api", edges=[inbound("web", "http", 1, ended={"probe": 9})])), NOW).sidecars
    assert one.flows[0].opened == 0, "whatever a report says"


def test_a_call_whose_target_is_not_one() -> None:
    (one,) = read(shown(entry("web", edges=[outbound("api:http or db:sql", 1)])), NOW).sidecars
    assert (one.flows[0].callee, one.flows[0].port) == ("api", "http or db:sql")


def test_what_may_not_be_there_yet() -> None:
    port = {"port": "postgres", "may_call": ["api"], "mode": "permissive", "until": "2026-12-31"}
    caller = {"port": "postgres", "address": "10.0.0.5", "name": "old.lan", "count": 4, "last": "2026-11-30T08:00:00Z"}
    (one,) = read(shown(entry("db", inbound=[port], plaintext=[caller])), NOW).sidecars
    assert (one.ports[0].permissive, one.ports[0].until) == (True, "2026-12-31")
    assert (one.plaintext[0].name, one.plaintext[0].count, one.plaintext[0].allowed) == ("old.lan", 4, False)
    (old,) = read(shown(entry("db", inbound=[{"port": "postgres"}])), NOW).sidecars
    assert (old.ports[0].permissive, old.plaintext) == (False, ())


@pytest.mark.parametrize("text", ["\x1b[2J", "a\u202eb", "line\nbreak", "\ud800", "\u2066x\u2069", "\x00"])
def test_what_controls_a_terminal_or_turns_text_round_is_escaped(text: str) -> None:
    one = refusal("policy_denied", "http", message=text, peer=text)
    found = read(shown(entry("api", refusals=[one], unwell=[text])), NOW).sidecars[0]
    assert found.refusals[0].message.isprintable()
    assert found.refusals[0].caller.isprintable()
    assert all(sentence.isprintable() for sentence in found.sentences)


def test_ten_kilobytes_are_cut_and_marked() -> None:
    found = read(shown(entry("api", policy="p" * 10_000, refusals=[refusal("x", "http", message="m" * 10_000)])), NOW)
    (one,) = found.sidecars
    assert (len(one.policy), one.policy[-1]) == (MAX_NAME, "…")
    assert (len(one.refusals[0].message), one.refusals[0].message[-1]) == (MAX_TEXT, "…")


def test_so_many_rows_and_no_more() -> None:
    (one,) = read(shown(entry("api", edges=[inbound(f"s{at}", "http", 1) for at in range(500)])), NOW).sidecars
    assert len(one.flows) == MAX_ROWS


@pytest.mark.parametrize("number", [-5, 1e400, -(10**400), float("nan"), "7", True, None, [], {}])
def test_a_number_that_is_none(number: Any) -> None:
    (one,) = read(shown(entry("api", edges=[inbound("web", "http", 1, live=number)])), NOW).sidecars
    assert one.flows[0].live == 0


@pytest.mark.parametrize(
    "time", ["", "soon", 7, None, "9" * 50, "0001-01-01T00:00:00+20:00", "9999-12-31T23:59:59-20:00"]
)
def test_a_time_that_is_none(time: Any) -> None:
    (one,) = read(shown(entry("api", certificate={"not_after": time})), NOW).sidecars
    assert one.not_after is None


def test_a_number_that_no_page_can_count_with() -> None:
    (one,) = read(shown(entry("api", edges=[inbound("web", "http", 1, live=10**400)])), NOW).sidecars
    assert one.flows[0].live == 1 << 53


def test_nothing_was_refused_after_the_report_that_tells_it() -> None:
    never: dict[str, Any] = {"first": "9999-12-31T23:59:59Z", "last": "9999-12-31T23:59:59Z"}
    said: dict[str, Any] = {"refusals": [refusal("revoked", "http") | never], "plaintext": [{"port": "http", **never}]}
    found = read(shown(entry("api", late=5, **said), alarms=[mitm(**never)]), NOW)
    (one,) = found.sidecars
    assert [one.refusals[0].first, one.refusals[0].last, one.plaintext[0].last] == [one.received] * 3
    assert (found.alarms[0].first, found.alarms[0].last) == (NOW, NOW)


def test_a_year_has_four_digits() -> None:
    assert iso(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00Z"


def test_an_entry_without_an_identity_is_left_out() -> None:
    document = shown(entry("api"))
    document["reports"] += [{**entry("db"), "identity": ""}, {**entry("db"), "received": "never"}, "nothing", 7]
    assert [one.service for one in read(document, NOW).sidecars] == ["api"]


def test_an_answer_that_says_nothing() -> None:
    assert read({}, NOW).now == NOW
    assert read({"ca": [], "reports": {}, "alarms": 3}, NOW).sidecars == ()


def test_an_alarm() -> None:
    (one,) = read(shown(alarms=[mitm()]), NOW).alarms
    assert (one.severe, one.count, one.upstream) == (True, 4, "cache:redis")
    assert one.presented[0] == ("subject", "CN=reporting")


def test_whose_identity() -> None:
    assert service_of("spiffe://shop.internal/api") == "api"
    assert service_of("spiffe://shop.internal/mesh/probe") == "mesh/probe"
    assert service_of("nonsense") == "nonsense"


@given(
    st.dictionaries(st.sampled_from(NAMES), JSON | st.lists(st.dictionaries(st.text(max_size=9), JSON)), max_size=6),
    st.fixed_dictionaries({"not_after": TIMES, "renews_at": TIMES}),
    TIMES,
    JSON,
)
def test_no_report_whatever_it_says_ends_the_dashboard(
    said: dict[str, Any], certificate: dict[str, Any], at: str, alarm: Any
) -> None:
    """All of it, to the page's document, which is JSON."""
    some = [refusal("revoked", "http", last=at, peer="x"), refusal("policy_denied", "http", first=at)]
    document = shown(
        entry("api", **said),
        entry("web", edges=[{"direction": "outbound", **said}], certificate=certificate, refusals=some),
        alarms=[alarm],
        issuing_until=at,
        root_until=at,
    )
    view = Watching("a test").take(document, NOW)
    assert set(view["services"]) >= {"api", "web"}
    json.dumps(view, allow_nan=False)
