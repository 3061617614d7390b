"""What a person reads of each connection: nothing if it went well, and else why, without a word of the log."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from sidecar.connect.words import PersonLog, told
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.observe.record import ConnectionRecord

AT = "db.example.org:5432"


def line(refusal: Refused | None = None, reason: Reason = Reason.OK, message: str | None = None) -> dict[str, Any]:
    record = ConnectionRecord("outbound", "user/alice", "postgres", 0.0, upstream="db:postgres")
    if refusal is not None:
        record.refuse(refusal)
    record.end(reason, message)
    return record.finish(1.0)


def heard(refusal: Refused) -> str:
    return told(line(refusal), "user/alice", AT)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("policy_denied", "no rule of its mesh allows user/alice to call it now; ask whoever gave you the pass"),
        ("revoked", "this pass was revoked; ask whoever gave you the pass"),
        ("expired", "this pass has ended; ask whoever gave you the pass for another"),
        ("unknown_ca", "its root was replaced since"),
        ("connect_failed", "its app does not answer"),
        ("overloaded", "its limit of connections"),
    ],
)
def test_what_the_callee_answers(verdict: str, says: str) -> None:
    text = heard(Refused(Reason.PEER_REFUSED, "was refused", peer_reason=verdict))
    assert says in text
    assert text.startswith("db:postgres")


def test_an_answer_that_nobody_foresaw_is_told_as_it_is() -> None:
    text = heard(Refused(Reason.PEER_REFUSED, "was refused by it", peer_reason="too_warm"))
    assert text == "db:postgres: too_warm: was refused by it"


@pytest.mark.parametrize("reason", sorted(MITM_SUSPECTS))
def test_who_answers_in_its_place_is_an_alarm(reason: Reason) -> None:
    text = heard(Refused(reason, "met spiffe://shop.internal/web"))
    assert text.startswith(
        f"ALARM: what answers at {AT} is not db:postgres: met spiffe://shop.internal/web; nothing was sent"
    )


def test_what_cannot_be_reached() -> None:
    assert heard(Refused(Reason.CONNECT_FAILED, "cannot connect: refused")) == (
        f"cannot reach db:postgres at {AT}: cannot connect: refused"
    )
    assert heard(Refused(Reason.HANDSHAKE_TIMEOUT, "got nothing")).startswith(f"no answer of db:postgres at {AT}")


@pytest.mark.parametrize("reason", [Reason.OK, Reason.CLIENT_RESET, Reason.APP_RESET, Reason.DRAINED, Reason.MAX_AGE])
def test_of_what_the_program_sees_itself_nothing_is_said(reason: Reason) -> None:
    assert told(line(reason=reason), "user/alice", AT) == ""


def test_whose_connection_was_refused_here() -> None:
    refusal = Refused(Reason.POLICY_DENIED, "refused a connection to its port: it came from user 7")
    assert heard(refusal) == "refused a connection to its port: it came from user 7"


def test_a_cut() -> None:
    assert "cut: by its sidecar, if your pass was revoked" in told(line(reason=Reason.TRUNCATED), "user/alice", AT)


def test_the_log_writes_sentences_alone_and_escapes_them() -> None:
    stream = StringIO()
    log = PersonLog("user/alice", AT, stream)
    log.connection(line())
    log.info("certificate_renewed", message="x")
    log.alarm("mitm_suspected", message="x")
    log.summary({"reason": "x"})
    log.connection(line(Refused(Reason.CONNECT_FAILED, "met \x1b[31m\n")))
    log.warning("accept_paused", message="no descriptors")
    log.flush()
    first, second = stream.getvalue().splitlines()
    assert first == f"sidecar connect: cannot reach db:postgres at {AT}: met \\x1b[31m\\n"
    assert second == "sidecar connect: accept_paused: no descriptors"
