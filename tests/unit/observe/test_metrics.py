"""What is counted of the access log, and that it stays bounded."""

from __future__ import annotations

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.metrics import LAST_REFUSALS, Metrics
from sidecar.observe.record import ConnectionRecord


def ended(reason: Reason = Reason.OK, *, outbound: bool = False, presented: bool = False) -> ConnectionRecord:
    record = ConnectionRecord("outbound" if outbound else "inbound", "api", "http", 0.0, peer_address="10.0.0.7:1")
    record.unverified = {"sha256": "ab"} if presented else {}
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


def test_what_is_let_in_is_opened_and_ends_there_and_the_rest_is_refused() -> None:
    metrics = Metrics()
    first, further, refused = ended(outbound=True), ended(outbound=True), ended(Reason.EXPIRED, outbound=True)
    further.reused = True
    for one in (first, further):
        metrics.let_in(one, one.started + 0.25, stream=True)
    raw = ended()
    metrics.let_in(raw, raw.started, stream=False)
    (edge, traffic), (_, other) = metrics.edges.items()
    assert (edge, traffic.opened, traffic.live) == (("outbound", "db", "db:5432", ""), 2, 2)
    assert (traffic.opening, other.opening) == (0.5, 0.0)
    assert (metrics.streams, metrics.reused, other.streams) == (2, 1, 0)
    further.rule = "a rule that changed meanwhile"  # and yet it ends where it was opened
    for one in (first, further, refused):
        metrics.add(one, "2026-01-01T00:00:00Z")
    assert (traffic.opened, traffic.live) == (2, 0)
    assert (traffic.ended, traffic.refused) == ({Reason.OK: 2}, {Reason.EXPIRED: 1})
    assert len(metrics.edges) == 2


def test_what_verify_tries_is_refused_as_a_probe() -> None:
    metrics, tried = Metrics(), ended(Reason.POLICY_DENIED)
    tried.probe = True
    metrics.add(tried, "now")
    metrics.add(ended(Reason.POLICY_DENIED), "now")
    (traffic,) = metrics.edges.values()
    assert traffic.refused == {Reason.PROBE: 1, Reason.POLICY_DENIED: 1}


def test_a_trial_that_was_let_in_ends_as_a_probe_and_its_twin_as_a_call() -> None:
    for trial, reason in ((True, Reason.PROBE), (False, Reason.OK)):
        metrics, tried = Metrics(), ended()
        tried.trial = trial
        traffic = metrics.let_in(tried, 1.0, stream=True)
        metrics.add(tried, "now")
        assert (traffic.opened, traffic.ended) == (1, {reason: 1})


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
        "peer_address": "10.0.0.7:1",
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


def test_a_flood_of_one_kind_hides_no_other() -> None:
    """Sixty port checks hid an attack: each kind has places of its own."""
    metrics = Metrics()
    metrics.add(ended(Reason.PLAINTEXT_REFUSED, outbound=True), "alarm")
    metrics.add(ended(Reason.UNKNOWN_CA, presented=True), "certificate")
    metrics.add(ended(Reason.PLAINTEXT_REFUSED), "stranger")
    for kind in (ended(Reason.UNKNOWN_CA, presented=True), ended(Reason.HANDSHAKE_TIMEOUT)):
        for _ in range(LAST_REFUSALS - 1):
            metrics.add(kind, "flood")
    assert [one.at for one in metrics.refusals if one.at != "flood"] == ["alarm", "certificate", "stranger"]
    assert len(metrics.refusals) == 2 * LAST_REFUSALS + 1
    for kind in (ended(Reason.UNKNOWN_CA, presented=True), ended(Reason.HANDSHAKE_TIMEOUT)):
        metrics.add(kind, "flood")
    assert [one.at for one in metrics.refusals if one.at != "flood"] == ["alarm"], "and each is bounded"


def test_probes_and_what_was_folded_have_no_place_but_are_counted() -> None:
    metrics = Metrics()
    metrics.add(ended(Reason.PROBE), "now")
    metrics.add(ended(Reason.NO_CERTIFICATE), "now", folded=True)
    assert metrics.refusals == []
    assert (sum(metrics.ended.values()), metrics.folded) == (2, 1)
    metrics.add(ended(Reason.NO_CERTIFICATE), "now")
    assert len(metrics.refusals) == 1
