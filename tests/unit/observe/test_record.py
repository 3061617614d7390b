"""A connection's record: it begins as a refusal, its first ending counts, and it finishes exactly once."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.observe.traffic import OTHERS

ALWAYS = {
    "direction", "service", "port", "peer_address", "peer_id", "upstream", "decision", "rule", "reason", "bytes_to_app",
    "bytes_from_app", "duration_ms", "handshake_ms", "tls_group", "resumed", "connection_id",
    "channel_id", "reused",
}  # fmt: skip


def record() -> ConnectionRecord:
    return ConnectionRecord("inbound", "api", "http", started=100.0)


def test_every_field_is_there_from_the_beginning() -> None:
    line = record().finish(100.0)
    assert line.keys() == ALWAYS
    assert (line["decision"], line["bytes_to_app"], line["bytes_from_app"]) == ("deny", 0, 0)
    assert line["resumed"] is False


def test_one_that_nobody_ended_is_our_bug() -> None:
    assert record().finish(100.0)["reason"] == "internal_error"


def test_it_finishes_once() -> None:
    one = record()
    one.finish(100.0)
    with pytest.raises(RuntimeError, match="twice"):
        one.finish(100.0)


def test_times_are_milliseconds_with_one_digit() -> None:
    one = record()
    one.handshake_ms = 1.26
    line = one.finish(100.01234)
    assert (line["duration_ms"], line["handshake_ms"]) == (12.3, 1.3)


def test_the_first_ending_counts() -> None:
    one = record()
    one.decision = "allow"
    one.end(Reason.OK, "all is well")
    one.end(Reason.DRAINED, "cut")
    one.refuse(Refused(Reason.POLICY_DENIED, "too late", peer_reason="x"))
    line = one.finish(100.0)
    assert (line["reason"], line["message"], line["decision"]) == ("ok", "all is well", "allow")
    assert "peer_reason" not in line


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.CONNECT_FAILED])
def test_a_refusal_takes_back_that_it_was_let_in(reason: Reason) -> None:
    one = record()
    one.decision = "allow"
    one.refuse(Refused(reason, "met somebody else", peer_reason="because"))
    line = one.finish(100.0)
    assert (line["decision"], line["reason"], line["peer_reason"]) == ("deny", str(reason), "because")
    assert line["message"] == "refused: api met somebody else"


def test_an_app_that_cannot_be_reached_was_let_in_all_the_same() -> None:
    """The policy's answer is in ``decision``; that nobody was there is in ``reason``."""
    for decision in ("allow", "deny"):
        one = record()
        one.decision = decision
        one.refuse(Refused(Reason.CONNECT_FAILED, "cannot reach it"))
        assert one.finish(100.0)["decision"] == decision


def test_what_is_said_only_where_there_is_something() -> None:
    one = record()
    one.client_address, one.peer_reason, one.message = "127.0.0.1:1", "expired", "so"
    one.dry_run, one.unverified = ("a", "b"), {"subject": "CN=x"}
    line = one.finish(100.0)
    assert line.keys() - ALWAYS == {"client_address", "peer_reason", "dry_run", "unverified", "message"}
    assert (line["dry_run"], line["unverified"]) == (["a", "b"], {"subject": "CN=x"})


def test_it_has_no_room_for_a_misspelt_field() -> None:
    with pytest.raises(AttributeError):
        record().bytes_to_ap = 5  # type: ignore[attr-defined]


def test_whoever_has_something_to_say_to_an_app_is_no_probe() -> None:
    for sent, marked in ((0, True), (1, False)):
        record = ConnectionRecord("inbound", "api", "http", 0, probe=True, bytes_to_app=sent, bytes_from_app=7)
        record.end(Reason.OK)
        assert record.finish(1).get("probe", False) is marked


def test_a_trial_s_line_is_a_probe_s_unless_it_says_something_or_stays_to_read() -> None:
    for sent, heard, marked in ((0, 1024, True), (1, 0, False), (0, 1025, False)):
        record = ConnectionRecord("inbound", "api", "http", 0, trial=True, bytes_to_app=sent, bytes_from_app=heard)
        record.end(Reason.OK)
        assert (record.finish(1).get("probe", False), record.trial) == (marked, marked)


def test_a_probe_that_was_let_in_is_no_refusal_and_a_port_check_is_one() -> None:
    for probe, decision in ((True, "allow"), (False, "deny")):
        record = ConnectionRecord("inbound", "api", "http", 0, probe=probe, decision="allow")
        record.refuse(Refused(Reason.PROBE, "has let it in"))
        assert (record.finish(1)["decision"], record.message) == (
            decision, "api has let it in" if probe else "refused: api has let it in",
        )  # fmt: skip


def test_a_caller_without_tls_is_no_identity_and_no_identity_is_one() -> None:
    record = ConnectionRecord("inbound", "api", "http", 0.0, plaintext=True)
    assert record.edge.peer == "plaintext"
    record.end(Reason.OK)
    line = record.finish(1.0)
    assert (line["plaintext"], line["peer_id"]) == (True, None)
    named = ConnectionRecord("inbound", "api", "http", 0.0, peer_id="spiffe://shop.internal/plaintext")
    assert named.edge.peer == OTHERS  # an identity that another CA gave
    named.end(Reason.OK)
    assert "plaintext" not in named.finish(1.0)
