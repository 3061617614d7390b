"""What is folded: strangers beyond a few lines, never a certificate; and nothing is lost, whatever the order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.folding import LINES, MAX_ADDRESSES, OTHERS, SECONDS, Folding, Listener, is_foldable
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.transport.tls_errors import CERTIFICATE_ALERTS

HTTP = Listener("inbound", "http")
METRICS = Listener("inbound", "metrics")


def flood(folding: Folding, number: int, address: str | None = "10.0.0.7:1", now: float = 0.0, **more: Any) -> int:
    """How many of these sockets are folded."""
    options: dict[str, Any] = {"listener": HTTP, "reason": "probe", **more}
    return sum(folding.fold(address=address, now=now, **options) for _ in range(number))


def test_the_first_have_lines_and_the_rest_a_summary() -> None:
    folding = Folding()
    assert flood(folding, LINES) == 0
    assert flood(folding, 3, now=1.0) == 3
    assert flood(folding, 2, now=SECONDS - 1) == 2
    assert folding.take_ended(SECONDS - 1) == []
    (summary,) = folding.take_ended(SECONDS)
    assert (summary.listener, summary.reason, summary.address) == (HTTP, "probe", "10.0.0.7")
    assert (summary.count, summary.since, summary.until) == (5, 1.0, SECONDS - 1)
    assert folding.take_all() == []
    assert flood(folding, LINES + 1, now=SECONDS) == 1, "and the next minute begins anew"


def test_each_reason_and_address_has_its_own_lines_and_all_ports_share_them() -> None:
    folding = Folding()
    assert flood(folding, LINES) == 0
    assert flood(folding, 2, listener=METRICS) == 2
    assert flood(folding, LINES, reason="no_certificate") == 0
    assert flood(folding, LINES, "10.0.0.8:1") == 0
    assert flood(folding, LINES, None) == 0
    assert flood(folding, 1) == 1
    assert [(one.listener, one.count) for one in folding.take_all()] == [(METRICS, 2), (HTTP, 1)]


@pytest.mark.parametrize(
    ("one", "other", "prefix"),
    [
        ("10.0.0.7:1", "10.0.0.7:65535", "10.0.0.7"),
        ("[2001:db8:0:1::1]:5", "[2001:db8:0:1:ffff::2]:6", "2001:db8:0:1::/64"),
        ("[fe80::1%eth0]:5", "[fe80::2]:6", "fe80::/64"),
    ],
)
def test_one_host_is_one_address(one: str, other: str, prefix: str) -> None:
    folding = Folding()
    assert flood(folding, LINES, one) == 0
    assert flood(folding, 1, other) == 1
    assert [summary.address for summary in folding.take_all()] == [prefix]


def test_another_network_is_another_address() -> None:
    folding = Folding()
    assert flood(folding, LINES, "[2001:db8:0:1::1]:5") == 0
    assert flood(folding, LINES, "[2001:db8:0:2::1]:5") == 0


def test_more_addresses_than_are_told_apart_share_one_place_a_reason() -> None:
    folding = Folding()
    for number in range(MAX_ADDRESSES):
        assert flood(folding, 1, f"10.0.{number // 256}.{number % 256}:1") == 0
    assert sum(flood(folding, 1, f"10.1.{number // 256}.{number % 256}:1") for number in range(1000)) == 1000 - LINES
    assert flood(folding, 1, "10.2.0.0:1", reason="no_certificate") == 0
    assert len(folding._minutes) == MAX_ADDRESSES + 2
    assert flood(folding, LINES, "10.0.0.0:1") == 1, "who was there before keeps its own"
    assert {(one.address, one.count) for one in folding.take_all()} == {(OTHERS, 1000 - LINES), ("10.0.0.0", 1)}
    assert folding.next_end is None


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([HTTP, METRICS, Listener("outbound", "5432", "db:5432")]),
            st.sampled_from(["probe", "no_certificate"]),
            st.sampled_from([None, "10.0.0.7:1", "[2001:db8::1]:1", "[2001:db8::2]:1"]),
            st.integers(1, 40),
        ),
        st.floats(0, 2 * SECONDS),
    ),
    max_size=40,
)


@given(EVENTS)
def test_lines_and_counts_add_up_to_sockets_and_no_key_has_more_lines_than_it_may(events: list[Any]) -> None:
    folding, now, seen, written, counted = Folding(), 0.0, 0, 0, 0
    lines: Counter[Any] = Counter()
    for event in events:
        if isinstance(event, float):
            now += event
            ended = folding.take_ended(now)
            assert all(one.count > 0 and one.since <= one.until <= now for one in ended)
            counted += sum(one.count for one in ended)
            assert folding.next_end is None or now < folding.next_end <= now + SECONDS
            continue
        listener, reason, address, number = event
        seen += number
        new = number - flood(folding, number, address, now, listener=listener, reason=reason)
        written += new
        # In any minute at most twice as many: the last of one minute of ours, and the first of the next.
        lines[reason, address and address.rpartition(":")[0][:9], now // SECONDS] += new
    counted += sum(one.count for one in folding.take_all())
    assert written + counted == seen
    assert all(number <= 2 * LINES for number in lines.values())


# -- what may be folded ------------------------------------------------------------------------------------------------


def refused(known: dict[str, Any], direction: Direction = "inbound", **more: Any) -> ConnectionRecord:
    record = ConnectionRecord(direction, "api", "http", 0.0)
    known = {"reason": Reason.HANDSHAKE_FAILED, **known, **more}
    reason = known.pop("reason")
    for name, value in known.items():
        setattr(record, name, value)
    record.refuse(Refused(reason, "says no", peer_reason=known.get("peer_reason")))
    return record


STRANGER = {"peer_address": "10.0.0.7:1"}


def test_a_stranger_may_be_folded() -> None:
    assert is_foldable(refused(STRANGER))
    assert is_foldable(refused(STRANGER, connection_id="abc"))
    assert is_foldable(refused(STRANGER, connection_id="abc", peer_reason="protocol_version"))


@pytest.mark.parametrize("known", [{"peer_id": "spiffe://shop.internal/web"}, {"unverified": {"sha256": "ab"}}])
def test_who_presented_a_certificate_may_not(known: dict[str, Any]) -> None:
    assert not is_foldable(refused(STRANGER | known))


@pytest.mark.parametrize("alert", sorted(CERTIFICATE_ALERTS))
def test_who_refused_ours_may_not_unless_it_had_not_seen_it(alert: str) -> None:
    """A stranger's first record can be any alert; it costs nothing, and is about nothing."""
    assert not is_foldable(refused(STRANGER, reason=Reason.PEER_REFUSED, connection_id="abc", peer_reason=alert))
    assert is_foldable(refused(STRANGER, reason=Reason.PEER_REFUSED, peer_reason=alert))


def test_what_was_let_in_may_not() -> None:
    record = ConnectionRecord("inbound", "api", "http", 0.0, decision="allow", peer_address="10.0.0.7:1")
    record.end(Reason.OK)
    assert not is_foldable(record)
    assert not is_foldable(refused(STRANGER, reason=Reason.CONNECT_FAILED, decision="allow"))


def test_a_call_of_our_app_may_not_once_a_peer_was_dialled() -> None:
    """What answers in the peer's place and presents nothing may be an attacker in the middle."""
    known = {"client_address": "127.0.0.1:5", "upstream": "db:5432"}
    assert is_foldable(refused(known, "outbound", reason=Reason.POLICY_DENIED))
    assert not is_foldable(refused(known | STRANGER, "outbound", reason=Reason.PLAINTEXT_REFUSED))
