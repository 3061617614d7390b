"""What is counted of the access log, and that it stays bounded."""

from __future__ import annotations

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.metrics import LAST_REFUSALS, Metrics
from sidecar.observe.record import ConnectionRecord


def ended(reason: Reason = Reason.OK, *, outbound: bool = False) -> ConnectionRecord:
    record = ConnectionRecord("outbound" if outbound else "inbound", "api", "http", 0.0)
    record.upstream = "db:5432" if outbound else "127.0.0.1:8081"
    record.bytes_to_app, record.bytes_from_app = 3, 5
    if reason is Reason.OK:
        record.decision = "allow"
        record.end(reason)
    else:
        record.refuse(Refused(reason, "says no"))
    return record


def test_each_end_is_counted_by_what_it_was_about() -> None:
    metrics = Metrics()
    for one in (ended(), ended(), ended(outbound=True), ended(Reason.EXPIRED)):
        metrics.add(one, "2026-01-01T00:00:00Z")
    assert metrics.ended == {
        ("inbound", "http", "allow", "ok"): 2,
        ("outbound", "db:5432", "allow", "ok"): 1,
        ("inbound", "http", "deny", "expired"): 1,
    }
    assert (metrics.to_app["inbound", "http"], metrics.from_app["outbound", "db:5432"]) == (9, 5)


def test_refusals_are_kept_and_what_was_let_in_is_not() -> None:
    metrics = Metrics()
    metrics.add(ended(), "then")
    metrics.add(ended(Reason.REVOKED), "now")
    (refusal,) = metrics.refusals
    assert (refusal.at, refusal.reason, refusal.message) == ("now", Reason.REVOKED, "refused: api says no")


def test_a_refusal_as_plain_values_has_what_is_known_and_its_message() -> None:
    metrics = Metrics()
    metrics.add(ended(Reason.REVOKED), "now")
    assert metrics.refusals[0].to_dict() == {
        "at": "now",
        "direction": "inbound",
        "port": "http",
        "upstream": "127.0.0.1:8081",
        "reason": "revoked",
        "message": "refused: api says no",
    }
    metrics.add(ConnectionRecord("inbound", "api", "http", 0.0), "then")
    assert metrics.refusals[1].to_dict() == {
        "at": "then",
        "direction": "inbound",
        "port": "http",
        "reason": "internal_error",
        "message": None,
    }


def test_only_the_last_refusals_are_kept() -> None:
    metrics = Metrics()
    for number in range(LAST_REFUSALS + 7):
        metrics.add(ended(Reason.REVOKED), str(number))
    assert len(metrics.refusals) == LAST_REFUSALS
    assert metrics.refusals[0].at == "7"
