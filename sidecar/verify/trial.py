"""One run of `sidecar verify` over a mesh, wherever it is: ask, announce, try, ask again, judge. I/O, by what it is given.

The order matters. Each callee is told first whose probes to expect, so that none of them alarms anybody. Only then strangers
and callers try. Last each callee is asked what it recorded, until every try has its record or :data:`RECORD_SECONDS` are
over: what it saw must be what we saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sidecar.verify import judgement, stranger
from sidecar.verify.doors import Door
from sidecar.verify.judgement import Attempt, Check, Edge, Listener, Report, Seen, Status
from sidecar.verify.stranger import Credential

EXPECT_SECONDS = 120.0
"""How long callees expect our probes."""

RECORD_SECONDS = 3.0
_AT_ONCE = 8
_T = TypeVar("_T")
_R = TypeVar("_R")

AttemptAll = Callable[[Sequence[tuple[Listener, Attempt]], Mapping[Attempt, Credential]], list[Seen]]
ReachAll = Callable[[Sequence[str]], list[tuple[bool | None, str]]]


@dataclass(slots=True)
class App:
    """Where an app must not be reached. ``how``: in which way it might be, for people."""

    service: str
    address: str
    how: str


@dataclass(slots=True)
class Place:
    """A mesh to be verified. ``doors``: the sidecars that can be asked, by service. ``credentials``: the probe's own.
    ``attempt_all`` and ``reach_all``: who plays the stranger, where that is not this process."""

    name: str
    trust_domain: str
    doors: dict[str, Door] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    credentials: dict[Attempt, Credential] = field(default_factory=dict)
    apps: list[App] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    attempt_all: AttemptAll = stranger.attempt_all
    reach_all: ReachAll = stranger.reach_all


def run(place: Place, clock: Callable[[], datetime], *, through_app: bool = False) -> Report:
    """Tries everything and judges it. Once more if a sidecar has renewed its certificate meanwhile, as each does every half
    hour: its calls were announced with the one before."""
    report, before, after = _run(place, clock, through_app)
    if before == after:
        return report
    return _run(place, clock, through_app)[0]


def _run(
    place: Place, clock: Callable[[], datetime], through_app: bool
) -> tuple[Report, dict[str, str], dict[str, str]]:
    """One time. Returns the report, and the certificate that each sidecar had before and afterwards."""
    began = time.monotonic()
    report = Report(place.name, clock(), not_covered=list(place.not_covered))
    credentials = place.credentials | {Attempt.FOREIGN_CA: stranger.foreign(place.trust_domain, clock())}
    told = _ask_all(place.doors, lambda door: door.seen())
    _announce(place, told, credentials)

    wanted = _wanted(place, credentials, report)
    with ThreadPoolExecutor(2) as both:
        attempts = both.submit(place.attempt_all, wanted, credentials)
        calls = both.submit(_call_all, place, through_app)
        seen, answers = attempts.result(), calls.result()
    seen += [Seen(judgement.Outcome.UNREACHABLE, "was not tried")] * (len(wanted) - len(seen))
    later = _seen_later(place, [one.source for one in seen if one.source], _ids(answers))
    records = {name: _list(one.get("records")) for name, one in later.items()}
    later |= _ask_all({name: it for name, it in place.doors.items() if name not in later}, lambda door: door.seen())

    for service, one in told.items():
        check, held = judgement.judge_certificate(service, one, clock())
        report.checks.append(check)
        report.held += [held] if held is not None else []
    for edge, answer in zip(place.edges, answers, strict=True):
        ours = told.get(edge.caller, {})
        theirs = records.get(edge.callee) if edge.callee in place.doors else None
        report.checks += judgement.judge_edge(edge, answer, theirs, str(ours.get("identity", "")))
        if edge.allowed and edge.caller in place.doors and edge.callee in place.doors:
            report.checks.append(judgement.judge_policy(edge, ours, told[edge.callee]))
    for (listener, what), attempted in zip(wanted, seen, strict=True):
        theirs = records.get(listener.service)
        source, asked = attempted.source, listener.service in place.doors
        # The newest: a port may have been ours in an earlier run.
        record = next((it for it in reversed(theirs or []) if source and it.get("peer_address") == source), None)
        report.checks.append(judgement.judge_attempt(listener, what, attempted, record, asked))
    for listener in place.listeners:
        if listener.until:
            report.checks.append(judgement.judge_permissive(listener, told.get(listener.service, {})))
        if own := _certificates(told).get(listener.service):
            shown = [one.presented for (at, _), one in zip(wanted, seen, strict=True) if at == listener]
            report.checks.append(judgement.judge_presented(listener, shown, own))
    report.checks += place.checks
    reached = place.reach_all([app.address for app in place.apps]) if place.apps else []
    report.checks += [
        judgement.judge_app(app.service, app.address, app.how, was, detail)
        for app, (was, detail) in zip(place.apps, reached, strict=True)
    ]
    report.seconds = time.monotonic() - began
    return report, _certificates(told), _certificates(later)


def _certificates(told: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The fingerprint of each sidecar's certificate, of those that tell it."""
    found = {service: one.get("certificate") for service, one in told.items()}
    return {service: str(one.get("sha256")) for service, one in found.items() if isinstance(one, Mapping)}


def _wanted(place: Place, credentials: Mapping[Attempt, Credential], report: Report) -> list[tuple[Listener, Attempt]]:
    """What strangers try; what they cannot is told in the report."""
    bare = (Attempt.PLAINTEXT, Attempt.NO_CERTIFICATE, Attempt.OLDER_TLS)
    able = [what for what in Attempt if what in bare or what in credentials]
    missing = [f"{what}: {_WITHOUT[what]}" for what in Attempt if what not in able]
    report.not_covered += missing if place.listeners else []
    # A permissive port may carry plaintext to its app, which no probe may reach.
    return [(at, what) for at in place.listeners for what in able if not (at.until and what is Attempt.PLAINTEXT)]


_WITHOUT = {
    Attempt.NO_RULE: "no certificate of mesh/probe was given (--identity)",
    Attempt.EXPIRED: "the probe has no certificate of its own that has ended",
    Attempt.REVOKED: "the probe has no certificate of its own that was revoked",
}


def _announce(place: Place, told: Mapping[str, Mapping[str, Any]], credentials: Mapping[Attempt, Credential]) -> None:
    """Tells every callee whose probes to expect."""
    callers = list(_certificates(told).values())
    strangers = [one.fingerprint for one in credentials.values()]
    callees = {one.service for one in place.listeners} | {edge.callee for edge in place.edges}
    _ask_all(
        {name: door for name, door in place.doors.items() if name in callees},
        lambda door: door.expect(callers, strangers, EXPECT_SECONDS),
    )


def _call_all(place: Place, through_app: bool) -> list[dict[str, Any]]:
    """Has each sidecar call all of its edges; the answers in the order of ``place.edges``."""
    of: dict[str, list[Edge]] = {}
    for edge in place.edges:
        of.setdefault(edge.caller, []).append(edge)

    def call(caller: str) -> dict[Edge, dict[str, Any]]:
        if (door := place.doors.get(caller)) is None:
            return {}
        answers = door.probe_all([edge.to for edge in of[caller]], through_app)
        return dict(zip(of[caller], answers, strict=True))

    told = {edge: answer for answers in _map(call, list(of)) for edge, answer in answers.items()}
    return [told.get(edge, {"error": "it cannot be asked"}) for edge in place.edges]


def _ids(answers: Iterable[Mapping[str, Any]]) -> list[str]:
    found = [one for answer in answers for one in answer.get("results") or () if one.get("verdict") is not False]
    return [str(one["connection_id"]) for one in found if one.get("result") == "ok" and one.get("connection_id")]


def _seen_later(place: Place, sources: Sequence[str], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the callees tell when all of our connections are among their records, or time is over."""
    until = time.monotonic() + RECORD_SECONDS
    callees = {one.service for one in place.listeners} | {edge.callee for edge in place.edges}
    doors = {name: door for name, door in place.doors.items() if name in callees}
    while True:
        found = _ask_all(doors, lambda door: door.seen())
        every = [record for one in found.values() for record in _list(one.get("records"))]
        addresses, known = {it.get("peer_address") for it in every}, {it.get("connection_id") for it in every}
        if not doors or (set(sources) <= addresses and set(ids) <= known) or time.monotonic() > until:
            return found
        time.sleep(0.1)  # noqa: TID251  # no event loop here


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _ask_all(doors: Mapping[str, Door], ask: Callable[[Door], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return dict(zip(doors, _map(ask, list(doors.values())), strict=True))


def _map(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    if not items:
        return []
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(function, items))


def failures(report: Report) -> list[Check]:
    """What is not ``ok``, what failed first."""
    order = {Status.FAILED: 0, Status.NOT_TRIED: 1}
    return sorted((one for one in report.checks if one.status in order), key=lambda one: order[one.status])
