"""What `sidecar verify` tries, what each try must show, and the judgement. Pure; fails closed.

How this works. A *check* is one promise about one subject: an edge, a listener, a certificate. Its evidence comes from two
sides that do not trust each other's word: what the caller saw (a refusal, or being let in), and what the callee recorded of
that same connection. A check is ``ok`` only if both are there and agree. What could not be tried is ``not tried``, which is
no pass: a report proves something only if every check is ``ok`` and there is at least one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sidecar.identity.reasons import Reason

MAX_SHOWN = 8
"""Callers that are named in one check."""


class Status(StrEnum):
    """The result of one check."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what became of it. ``subject``: of whom. ``tried``: what was done. ``seen``: the evidence."""

    kind: str
    subject: str
    tried: str
    status: Status
    seen: str


class Attempt(StrEnum):
    """What a stranger tries at a listener. The value is the name of its check."""

    PLAINTEXT = "plaintext"
    NO_CERTIFICATE = "no certificate"
    FOREIGN_CA = "foreign CA"
    OLDER_TLS = "TLS 1.2"
    NO_RULE = "valid identity, no rule"
    EXPIRED = "expired certificate"
    REVOKED = "revoked certificate"


EXPECTED = {
    Attempt.PLAINTEXT: Reason.PLAINTEXT_REFUSED,
    Attempt.NO_CERTIFICATE: Reason.NO_CERTIFICATE,
    Attempt.FOREIGN_CA: Reason.UNKNOWN_CA,
    Attempt.OLDER_TLS: Reason.TLS_VERSION,
    Attempt.NO_RULE: Reason.POLICY_DENIED,
    Attempt.EXPIRED: Reason.EXPIRED,
    Attempt.REVOKED: Reason.REVOKED,
}
"""The reason by which the callee must record each."""

TRIED = {
    Attempt.PLAINTEXT: "spoke plaintext to it",
    Attempt.NO_CERTIFICATE: "TLS 1.3 without a certificate",
    Attempt.FOREIGN_CA: "a certificate that another CA signed",
    Attempt.OLDER_TLS: "offered TLS 1.2 and nothing newer",
    Attempt.NO_RULE: "a good certificate of the mesh, of mesh/probe, which no rule names",
    Attempt.EXPIRED: "a certificate of mesh/probe that has ended",
    Attempt.REVOKED: "a certificate of mesh/probe that was revoked",
}


class Outcome(StrEnum):
    """What a stranger saw. Only ``REFUSED`` is a refusal: an alert, a verdict, or the connection's end, before a byte."""

    REFUSED = "refused"
    LET_IN = "let in"
    SILENT = "neither let in nor refused"
    BROKEN = "what answers does not speak TLS 1.3"
    UNREACHABLE = "cannot be reached"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one attempt showed. ``source``: our own address, by which the callee's record of it is found. ``presented``: the
    SHA-256 of the certificate that the listener showed, as hex digits; "" if none. ``word``: the callee's verdict, if it
    gave one."""

    outcome: Outcome
    detail: str
    source: str = ""
    presented: str = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a service accepts mutual TLS for one of its ports. ``until``: the day until which it takes plaintext too; empty
    if it takes none."""

    service: str
    port: str
    address: str
    until: str = ""

    def __str__(self) -> str:
        return f"{self.service}:{self.port} at {self.address}"


@dataclass(frozen=True, slots=True)
class Edge:
    """A call that a sidecar's configuration declares. ``allowed``: by its policy."""

    caller: str
    to: str
    allowed: bool

    def __str__(self) -> str:
        return f"{self.caller} -> {self.to}"

    @property
    def callee(self) -> str:
        return self.to.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate and who holds it."""

    holder: str
    identity: str
    until: str
    issuer: str
    serial: str


@dataclass(slots=True)
class Report:
    """The whole of it. ``not_covered``: what this run says nothing of, for people."""

    mesh: str
    at: datetime
    checks: list[Check] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def proved(self) -> bool:
        """Whether something was tried, and all of it is as it must be."""
        return bool(self.checks) and all(one.status is Status.OK for one in self.checks)

    def count(self, status: Status) -> int:
        return sum(one.status is status for one in self.checks)


def judge_attempt(
    listener: Listener, attempt: Attempt, seen: Seen, record: Mapping[str, Any] | None, asked: bool
) -> Check:
    """A stranger's attempt. ``record``: the callee's, None if it has none of this connection. ``asked``: whether the callee
    could be asked; if not, only that it refuses is known, and the check says so."""
    expected, status, told = EXPECTED[attempt], Status.FAILED, seen.detail
    recorded = str(record["reason"]) if record is not None else None
    if seen.outcome is Outcome.UNREACHABLE:
        status, told = Status.NOT_TRIED, f"cannot be reached: {seen.detail}"
    elif seen.outcome is not Outcome.REFUSED:
        rule = record.get("rule") if record is not None else None
        told = f"{seen.outcome}: {seen.detail}" + (f", by rule '{rule}'" if rule else "")
        if recorded is not None:
            told += f"; its record says {recorded}"
    elif not asked and seen.word not in ("", expected):
        told = f"refused as {seen.word} and not as {expected}"
    elif not asked:
        status, told = Status.OK, f"refused ({seen.detail}); its own reason was not asked for"
    elif recorded is None:
        told = f"refused ({seen.detail}), but its sidecar has no record of it: something else answers, or it was pushed out"
    elif recorded != expected:
        told = f"refused as {recorded} and not as {expected} ({seen.detail})"
    else:
        status, told = Status.OK, f"refused: {recorded} ({seen.detail})"
    return Check(str(attempt), str(listener), TRIED[attempt], status, told)


def judge_permissive(listener: Listener, told: Mapping[str, Any]) -> Check:
    """A listener that takes plaintext, which is not what a mesh promises: so it fails, whoever may speak it. ``told``: what
    its sidecar tells."""
    tried, callers = "asked its sidecar who speaks plaintext", told.get("plaintext")
    seen = f"takes plaintext until {listener.until}, so it is not strict"
    if not isinstance(callers, list):
        seen += "; its sidecar does not tell who speaks it"
        return Check(str(Attempt.PLAINTEXT), str(listener), tried, Status.FAILED, seen)
    of_port = [one for one in callers if isinstance(one, Mapping) and one.get("port") == listener.port]
    who = [
        f"{one.get('address')} ({one.get('count')}, last {one.get('last')})" for one in of_port if one.get("allowed")
    ]
    more = f" and {len(who) - MAX_SHOWN} more" if len(who) > MAX_SHOWN else ""
    seen += f"; who does still: {', '.join(who[:MAX_SHOWN]) or 'nobody of whom it knows'}{more}"
    return Check(str(Attempt.PLAINTEXT), str(listener), tried, Status.FAILED, seen)


def judge_presented(listener: Listener, presented: Iterable[str], own: str) -> Check:
    """Whether what answers at a listener is the sidecar that was asked. ``presented``: the certificates that strangers were
    shown there; ``own``: the one that the sidecar says it has."""
    shown = {one for one in presented if one}
    subject, tried = str(listener), "compared the certificate shown with the one its sidecar holds"
    if not shown:
        return Check("who answers", subject, tried, Status.NOT_TRIED, "no certificate was shown to any stranger")
    if shown != {own}:
        other = next(iter(shown - {own}))
        seen = f"shows the certificate {other[:16]}…, and the sidecar holds {own[:16]}…: something answers in its place"
        return Check("who answers", subject, tried, Status.FAILED, seen)
    return Check("who answers", subject, tried, Status.OK, f"the same: {own[:16]}…")


def judge_edge(
    edge: Edge, answer: Mapping[str, Any], records: Sequence[Mapping[str, Any]] | None, caller_id: str = ""
) -> list[Check]:
    """What a sidecar answered that was asked to call. ``records``: the callee's; None if it could not be asked."""
    if not edge.allowed:
        return [_denied(edge, answer)]
    if "error" in answer:
        return [_edge(edge, Status.NOT_TRIED, f"its sidecar does not answer: {answer['error']}")]
    if word := answer.get("reason"):
        return [_edge(edge, Status.FAILED, f"refused by its own sidecar: {word}" + _more(answer))]
    results = answer.get("results") or []
    if not results:
        return [_edge(edge, Status.NOT_TRIED, "no address was called")]
    return [_called(edge, result, records, caller_id) for result in results]


def _denied(edge: Edge, answer: Mapping[str, Any]) -> Check:
    tried = "asked its sidecar to call it, which the policy forbids"
    if "error" in answer:
        return Check("forbidden edge", str(edge), tried, Status.NOT_TRIED, f"does not answer: {answer['error']}")
    word = answer.get("reason")
    status = Status.OK if word in (Reason.POLICY_DENIED, "not_declared") else Status.FAILED
    seen = f"its own sidecar refuses it: {word}" if word else "its sidecar calls it, although the policy forbids it"
    return Check("forbidden edge", str(edge), tried, status, seen)


def _called(
    edge: Edge, result: Mapping[str, Any], records: Sequence[Mapping[str, Any]] | None, caller_id: str
) -> Check:
    at = f"at {result.get('address')}"
    if result.get("result") != "ok":
        word = result.get("peer_reason") or result.get("reason")
        if word == "no_application_protocol" and not result.get("app"):
            seen = f"{at}: it keeps no channels (`keep: 0`), so a call cannot end before its app: use --through-app"
            return _edge(edge, Status.NOT_TRIED, seen)
        return _edge(edge, Status.FAILED, f"{at}: {word}" + _more(result))
    if result.get("verdict") is False:
        return _edge(
            edge, Status.OK, f"{at}: {result.get('peer_id')} proved itself; it gives no verdict (not a sidecar)"
        )
    if records is None:
        return _edge(edge, Status.OK, f"{at}: {result.get('peer_id')} let it in; the callee was not asked")
    mine = result.get("connection_id")
    record = next((one for one in records if mine and one.get("connection_id") == mine), None)
    if record is None:
        return _edge(
            edge, Status.FAILED, f"{at}: let in, but {edge.callee}'s sidecar has no record of it: who let it in?"
        )
    if record.get("decision") != "allow" or (caller_id and record.get("peer_id") != caller_id):
        seen = f"{at}: let in, but recorded as {record.get('decision')} of {record.get('peer_id')}"
        return _edge(edge, Status.FAILED, seen)
    through = "to the app" if result.get("app") else "up to the app"
    group = result.get("tls_group") or "TLS 1.3"
    return _edge(
        edge, Status.OK, f"{at}: carried {through} by rule '{record.get('rule')}', {group}; both recorded {mine}"
    )


def _edge(edge: Edge, status: Status, seen: str) -> Check:
    return Check("edge", str(edge), "its sidecar called it", status, seen)


def _more(told: Mapping[str, Any]) -> str:
    return f": {told['message']}" if told.get("message") else ""


def judge_policy(edge: Edge, caller: Mapping[str, Any], callee: Mapping[str, Any]) -> Check:
    """Whether both ends of an edge decide by the same policy."""
    tried = "compared the policy's version at both ends"
    ours, theirs = caller.get("policy"), callee.get("policy")
    if not ours or not theirs:
        return Check("policy", str(edge), tried, Status.NOT_TRIED, "one end does not tell its policy")
    if ours != theirs:
        seen = f"{edge.caller} has {ours} in force, {edge.callee} has {theirs}: one of them is stale"
        return Check("policy", str(edge), tried, Status.FAILED, seen)
    return Check("policy", str(edge), tried, Status.OK, f"both have {ours}")


def judge_certificate(service: str, told: Mapping[str, Any], now: datetime) -> tuple[Check, Held | None]:
    """The certificate that a sidecar holds, and whether it is good now."""
    tried, certificate = "asked for its certificate", told.get("certificate")
    if not isinstance(certificate, Mapping):
        seen = f"its sidecar does not answer: {told.get('error', 'it tells no certificate')}"
        return Check("certificate", service, tried, Status.NOT_TRIED, seen), None
    texts = {name: str(certificate.get(name, "")) for name in ("not_before", "not_after", "issuer", "serial")}
    held = Held(service, str(told.get("identity", "")), texts["not_after"], texts["issuer"], texts["serial"])
    at = f"{now:%FT%TZ}"  # the same format, which sorts as the times do
    if not texts["not_before"] <= at < texts["not_after"]:
        seen = f"is good from {texts['not_before']} to {texts['not_after']}, and it is {at}"
        return Check("certificate", service, tried, Status.FAILED, seen), held
    return Check("certificate", service, tried, Status.OK, f"good until {texts['not_after']}"), held


def judge_app(service: str, address: str, how: str, reached: bool | None, detail: str) -> Check:
    """Whether an app can be reached beside its sidecar. ``reached``: None if that could not be tried."""
    subject, tried = f"{service}'s app", f"connected to {address}, {how}"
    if reached is None:
        return Check("app beside its sidecar", subject, tried, Status.NOT_TRIED, detail)
    status = Status.FAILED if reached else Status.OK
    return Check("app beside its sidecar", subject, tried, status, f"{address}, {how}: {detail}")
