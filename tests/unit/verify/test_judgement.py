"""The judgement: what is a pass, and what is none. Each pass has its twin that is not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.verify.judgement import (
    EXPECTED,
    TRIED,
    Attempt,
    Check,
    Edge,
    Listener,
    Outcome,
    Report,
    Seen,
    Status,
    judge_app,
    judge_attempt,
    judge_certificate,
    judge_edge,
    judge_permissive,
    judge_policy,
    judge_presented,
)  # fmt: skip

AT = datetime(2026, 12, 1, 12, tzinfo=UTC)
LISTENER = Listener("api", "http", "10.0.0.1:8080")
EDGE = Edge("web", "api:http", allowed=True)
REFUSED = Seen(Outcome.REFUSED, "by an alert", "10.0.0.9:5000")


def test_every_attempt_has_its_reason_and_its_words() -> None:
    assert EXPECTED.keys() == TRIED.keys() == set(Attempt)


@pytest.mark.parametrize("what", Attempt)
def test_a_refusal_that_the_callee_recorded_by_its_reason_is_a_pass(what: Attempt) -> None:
    check = judge_attempt(LISTENER, what, REFUSED, {"reason": EXPECTED[what]}, asked=True)
    assert (check.status, check.kind) == (Status.OK, what)


@pytest.mark.parametrize("what", Attempt)
def test_any_other_reason_is_none(what: Attempt) -> None:
    check = judge_attempt(LISTENER, what, REFUSED, {"reason": "handshake_failed"}, asked=True)
    assert check.status is Status.FAILED
    assert "as handshake_failed and not as" in check.seen


def test_a_refusal_without_a_record_is_none() -> None:
    check = judge_attempt(LISTENER, Attempt.PLAINTEXT, REFUSED, None, asked=True)
    assert (check.status, "no record" in check.seen) == (Status.FAILED, True)


def test_where_nobody_can_be_asked_a_refusal_is_all_there_is_and_it_says_so() -> None:
    check = judge_attempt(LISTENER, Attempt.PLAINTEXT, REFUSED, None, asked=False)
    assert (check.status, "was not asked for" in check.seen) == (Status.OK, True)


def test_a_verdict_of_another_reason_is_none_even_there() -> None:
    seen = Seen(Outcome.REFUSED, "by a verdict", "x", "", "handshake_failed")
    assert judge_attempt(LISTENER, Attempt.NO_RULE, seen, None, asked=False).status is Status.FAILED
    seen = Seen(Outcome.REFUSED, "by a verdict", "x", "", "policy_denied")
    assert judge_attempt(LISTENER, Attempt.NO_RULE, seen, None, asked=False).status is Status.OK


@pytest.mark.parametrize("outcome", [Outcome.LET_IN, Outcome.SILENT, Outcome.BROKEN])
def test_what_is_no_refusal_is_none_whatever_the_callee_says(outcome: Outcome) -> None:
    record = {"reason": "plaintext_refused", "rule": "for-now"}
    check = judge_attempt(LISTENER, Attempt.PLAINTEXT, Seen(outcome, "x"), record, asked=True)
    assert (check.status, "by rule 'for-now'" in check.seen) == (Status.FAILED, True)
    assert judge_attempt(LISTENER, Attempt.PLAINTEXT, Seen(outcome, "x"), None, asked=False).status is Status.FAILED


def test_what_could_not_be_tried_is_no_pass() -> None:
    seen = Seen(Outcome.UNREACHABLE, "no route")
    check = judge_attempt(LISTENER, Attempt.PLAINTEXT, seen, {"reason": "plaintext_refused"}, asked=True)
    assert check.status is Status.NOT_TRIED
    assert not Report("m", AT, [check]).proved


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (["aa", "", "aa"], Status.OK),
        (["aa", "bb"], Status.FAILED),
        (["bb"], Status.FAILED),
        (["", ""], Status.NOT_TRIED),
    ],
)
def test_who_answers_must_be_the_sidecar_that_was_asked(shown: list[str], status: Status) -> None:
    assert judge_presented(LISTENER, shown, "aa").status is status


RESULT = {
    "address": "10.0.0.1:8080",
    "result": "ok",
    "peer_id": "spiffe://d/api",
    "connection_id": "c1-1",
    "app": False,
}
RECORD = {"connection_id": "c1-1", "decision": "allow", "peer_id": "spiffe://d/web", "rule": "web->api"}


def edge(result: dict[str, Any], records: list[dict[str, Any]] | None, who: str = "spiffe://d/web") -> Check:
    (check,) = judge_edge(EDGE, {"results": [result]}, records, who)
    return check


def test_an_edge_that_both_ends_recorded_is_a_pass() -> None:
    assert edge(RESULT, [{}, RECORD]).status is Status.OK


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"connection_id": "c2-1"}, "no record"),
        ({"decision": "deny"}, "recorded as deny"),
        ({"peer_id": "spiffe://d/other"}, "of spiffe://d/other"),
    ],
)
def test_an_edge_that_the_callee_recorded_otherwise_is_none(change: dict[str, str], word: str) -> None:
    check = edge(RESULT, [RECORD | change])
    assert (check.status, word in check.seen) == (Status.FAILED, True)


def test_two_connections_without_an_id_are_not_the_same() -> None:
    assert edge(RESULT | {"connection_id": None}, [RECORD | {"connection_id": None}]).status is Status.FAILED


def test_an_edge_whose_callee_cannot_be_asked_says_so() -> None:
    check = edge(RESULT, None)
    assert (check.status, "was not asked" in check.seen) == (Status.OK, True)


def test_a_peer_that_gives_no_verdict_is_told() -> None:
    check = edge(RESULT | {"verdict": False}, None)
    assert (check.status, "no verdict" in check.seen) == (Status.OK, True)


def test_a_refused_edge_says_why() -> None:
    check = edge({"address": "x", "result": "refused", "reason": "unexpected_peer", "message": "met another"}, [RECORD])
    assert (check.status, check.seen) == (Status.FAILED, "at x: unexpected_peer: met another")
    (check,) = judge_edge(EDGE, {"reason": "policy_denied"}, [])
    assert (check.status, "its own sidecar: policy_denied" in check.seen) == (Status.FAILED, True)


@pytest.mark.parametrize(("app", "status"), [(False, Status.NOT_TRIED), (True, Status.FAILED)])
def test_a_callee_without_kept_channels_needs_its_app(app: bool, status: Status) -> None:
    refused = {"address": "x", "result": "refused", "peer_reason": "no_application_protocol", "app": app}
    assert edge(refused, [RECORD]).status is status


@pytest.mark.parametrize("answer", [{"error": "gone"}, {"results": []}, {}])
def test_an_edge_that_was_not_called_is_no_pass(answer: dict[str, Any]) -> None:
    (check,) = judge_edge(EDGE, answer, [])
    assert check.status is Status.NOT_TRIED


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"reason": "policy_denied"}, Status.OK),
        ({"reason": "not_declared"}, Status.OK),
        ({"reason": "connect_failed"}, Status.FAILED),
        ({"results": [RESULT]}, Status.FAILED),
        ({"error": "gone"}, Status.NOT_TRIED),
    ],
)
def test_a_forbidden_edge_must_be_refused_by_its_own_sidecar(answer: dict[str, Any], status: Status) -> None:
    (check,) = judge_edge(Edge("web", "db:sql", allowed=False), answer, [])
    assert (check.kind, check.status) == ("forbidden edge", status)


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [("a", "a", Status.OK), ("a", "b", Status.FAILED), (None, "a", Status.NOT_TRIED), ("a", "", Status.NOT_TRIED)],
)
def test_both_ends_must_have_one_policy(ours: str | None, theirs: str, status: Status) -> None:
    assert judge_policy(EDGE, {"policy": ours}, {"policy": theirs}).status is status


@pytest.mark.parametrize(
    ("begins", "ends", "status"),
    [
        ("2026-12-01T11:00:00Z", "2026-12-01T12:30:00Z", Status.OK),
        ("2026-12-01T11:00:00Z", "2026-12-01T12:00:00Z", Status.FAILED),
        ("2026-12-01T12:00:01Z", "2026-12-01T13:00:00Z", Status.FAILED),
        ("", "", Status.FAILED),
    ],
)
def test_a_certificate_must_be_good_now(begins: str, ends: str, status: Status) -> None:
    told = {"identity": "spiffe://d/api", "certificate": {"not_before": begins, "not_after": ends, "issuer": "CN=x"}}
    check, held = judge_certificate("api", told, AT)
    assert check.status is status
    assert held is not None
    assert (held.holder, held.until, held.issuer) == ("api", ends, "CN=x")


def test_a_certificate_that_nobody_tells_is_no_pass() -> None:
    check, held = judge_certificate("api", {"error": "gone"}, AT)
    assert (check.status, held) == (Status.NOT_TRIED, None)


@pytest.mark.parametrize(("reached", "status"), [(False, Status.OK), (True, Status.FAILED), (None, Status.NOT_TRIED)])
def test_an_app_must_not_be_reached(reached: bool | None, status: Status) -> None:
    assert judge_app("api", "10.0.0.1:80", "here", reached, "x").status is status


def test_a_report_is_a_proof_only_if_all_is_ok_and_something_was_tried() -> None:
    ok, failed = (Check("k", "s", "t", one, "x") for one in (Status.OK, Status.FAILED))
    assert Report("m", AT, [ok]).proved
    assert not Report("m", AT, [ok, failed]).proved
    assert not Report("m", AT, []).proved


def test_a_permissive_listener_is_never_strict_and_who_speaks_plaintext_is_named() -> None:
    at = Listener("api", "http", "10.0.0.1:8080", "2027-01-31")

    def called(number: int, **more: Any) -> dict[str, Any]:
        return {"port": "http", "address": f"10.0.0.{number}", "count": number, "last": "L", "allowed": True, **more}

    told = [called(1), called(2, allowed=False), called(3, port="tls"), "x"]
    check = judge_permissive(at, {"plaintext": told})
    assert (check.kind, check.status) == ("plaintext", Status.FAILED)
    assert check.seen == "takes plaintext until 2027-01-31, so it is not strict; who does still: 10.0.0.1 (1, last L)"
    nobody = judge_permissive(at, {"plaintext": []})
    assert (nobody.status, nobody.seen.partition("; ")[2]) == (Status.FAILED, "who does still: nobody of whom it knows")
    many = judge_permissive(at, {"plaintext": [called(number) for number in range(10)]})
    assert many.seen.endswith("10.0.0.7 (7, last L) and 2 more")
    few = judge_permissive(at, {"plaintext": [called(number) for number in range(8)]})
    assert few.seen.endswith("10.0.0.7 (7, last L)")
    for silent in ({}, {"error": "gone"}, {"plaintext": "x"}):
        check = judge_permissive(at, silent)
        assert (check.status, check.seen.partition("; ")[2]) == (
            Status.FAILED,
            "its sidecar does not tell who speaks it",
        )
