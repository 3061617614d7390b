"""Who called whom, folded from access logs and from reports. Pure; fails closed: what may be no call of the mesh is none.

How this works. Both ends log a connection, so each end's lines are counted apart, and the larger number is the connections.
Only a verified identity of the mesh counts, and a caller without TLS, as what it is. What was refused as an attack, a probe,
an unverified or a foreign peer is counted as left out, and makes no call. An alarm is remembered with what it is about.

A sidecar that was taken over logs and reports what it likes. So it is kept apart whether the *callee's* sidecar saw a call,
or the caller's own alone.

Bounded: :data:`MAX_CALLS` calls, whatever the logs hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, is_segment, parse_spiffe_id
from sidecar.observe.traffic import OTHERS
from sidecar.observe.traffic import PLAINTEXT as PLAINTEXT_PEER
from sidecar.policy.names import PLAINTEXT, Caller, Plaintext, Target

MAX_CALLS = 10_000
MAX_ALARMS = 1000
MAX_RULES = 16
MAX_NUMBER = 2**53

CARRIED = frozenset(
    {
        Reason.OK,
        Reason.CLIENT_RESET,
        Reason.APP_RESET,
        Reason.IDLE_TIMEOUT,
        Reason.MAX_AGE,
        Reason.DRAINED,
        Reason.POLICY_CHANGED,
    }
)
"""How a connection ends that was let in and carried what it should. Of others that were let in the peer may be no honest
one (``truncated``, ``revoked``), or nothing was reached."""

ALARMS = frozenset({"mitm_suspected", "tampering_suspected", "neighbour_met", "identity_elsewhere", "identity_moved"})


class Call(NamedTuple):
    """A caller, and the port that it calls."""

    source: Caller
    target: Target

    def __str__(self) -> str:
        return f"{self.caller} -> {self.target}"

    @property
    def caller(self) -> str:
        """The caller as a rule names it."""
        source = self.source
        if isinstance(source, Plaintext) or (source.service is None and source.person is None):
            return str(source)
        return "/".join(source.segments)

    @property
    def order(self) -> tuple[bool, str, Target]:
        """Calls in the order of these are those of identities, by name, then those without TLS."""
        return isinstance(self.source, Plaintext), str(self.source), self.target


@dataclass(slots=True)
class Tally:
    """What was seen of one call. ``allowed`` and ``denied``: connections by the end that tells of them (``inbound``: the
    callee's). ``rules``: the names of the rules that allowed it then."""

    allowed: Counter[str] = field(default_factory=Counter)
    denied: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None
    rules: set[str] = field(default_factory=set)

    @property
    def connections(self) -> int:
        """Those that were let in."""
        return max(self.allowed.values(), default=0)

    @property
    def refusals(self) -> int:
        """Those that the policy refused."""
        return max(self.denied.values(), default=0)

    @property
    def seen_by_callee(self) -> bool:
        return self.allowed["inbound"] > 0

    def at(self, time: datetime | None) -> None:
        if time is not None:
            self.first = time if self.first is None else min(self.first, time)
            self.last = time if self.last is None else max(self.last, time)


class Seen:
    """The calls of one mesh. ``left_out``: lines that make no call, by the reason."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.calls: dict[Call, Tally] = {}
        self.left_out: Counter[str] = Counter()
        self.foreign: set[str] = set()
        self._alarms: set[tuple[str, str]] = set()
        self._too_many_alarms = False

    def take(self, line: Mapping[str, Any]) -> None:
        """One line of a log, as JSON has it. A line of another event is none of ours."""
        event = line.get("event")
        if event in ALARMS:
            self._alarm(line)
        elif event == "connection":
            self._connection(line)

    def take_report(self, identity: str, report: Mapping[str, Any]) -> None:
        """What one sidecar reports: ``edges`` and ``alarms`` of it. ``identity``: whose it is."""
        own = self._ours(identity)
        if own is None or own.service is None:
            return
        times = [time_of(report.get("started_at")), time_of(report.get("at"))]
        for alarm in _dicts(report.get("alarms")):
            self._alarm(alarm)
        for edge in _dicts(report.get("edges")):
            call = self._call_of_edge(own, edge)
            if call is None:
                self.left_out["not told in full"] += 1
                continue
            ended = _numbers(edge.get("ended"))
            bad = sum(number for reason, number in ended.items() if reason not in CARRIED)
            opened = _number(edge.get("opened")) - bad
            denied = _numbers(edge.get("refused")).get(Reason.POLICY_DENIED, 0)
            self._count(call, str(edge.get("direction")), max(opened, 0), denied, times, edge.get("rule"))

    def is_alarmed(self, call: Call) -> bool:
        """Whether there was an alarm about this call, or about the identity of either end."""
        if self._too_many_alarms:
            return True
        caller, target = call.caller, call.target
        ends = {(caller, str(target)), (target.service, str(target)), (caller, ""), (target.service, "")}
        return not ends.isdisjoint(self._alarms)

    # --- one line ----------------------------------------------------------------------------------------------------

    def _connection(self, line: Mapping[str, Any]) -> None:
        reason, is_allowed = line.get("reason"), line.get("decision") == "allow"
        # Of an outbound call that the callee's policy refused, its verdict is the reason of the peer.
        by_peer = reason == Reason.PEER_REFUSED and line.get("peer_reason") == Reason.POLICY_DENIED
        is_denied = not is_allowed and (reason == Reason.POLICY_DENIED or by_peer)
        if line.get("probe") or reason == Reason.PROBE:
            self.left_out["a probe"] += 1
        elif line.get("direction") not in {"inbound", "outbound"}:
            self.left_out["not told in full"] += 1
        elif not is_denied and not (is_allowed and reason in CARRIED):
            self.left_out["refused as an attack or a fault, or broken off"] += 1
        elif (call := self._call_of(line, is_denied=is_denied)) is not None:
            time = time_of(line.get("time"))
            self._count(call, str(line["direction"]), int(is_allowed), int(is_denied), [time], line.get("rule"))

    def _call_of(self, line: Mapping[str, Any], *, is_denied: bool) -> Call | None:
        peer, service = line.get("peer_id"), line.get("service")
        if line.get("plaintext") is True:
            target = _target(f"{service}:{line.get('port')}")
            return None if target is None or peer is not None else Call(PLAINTEXT, target)
        # Before a caller's sidecar dials it asks its policy, so a refused call has no peer yet.
        unmet = peer is None and is_denied and line.get("direction") == "outbound"
        identity = None if unmet else self._ours(peer)
        if (identity is None and not unmet) or not isinstance(service, str) or not is_segment(service):
            return None
        if line.get("direction") == "inbound" and identity is not None:
            target = _target(f"{service}:{line.get('port')}")
            return None if target is None else Call(identity, target)
        target = _target(line.get("upstream"))
        if target is None or (identity is not None and identity.service != target.service):
            self.left_out["not told in full"] += 1
            return None
        return Call(SpiffeId(self.trust_domain, (service,)), target)

    def _call_of_edge(self, own: SpiffeId, edge: Mapping[str, Any]) -> Call | None:
        peer, port = edge.get("peer"), edge.get("port")
        if edge.get("direction") == "outbound":
            target = _target(port)
            return None if target is None else Call(own, target)
        target = _target(f"{own.service}:{port}")
        if edge.get("direction") == "inbound" and target is not None and peer == PLAINTEXT_PEER:
            return Call(PLAINTEXT, target)
        segments = tuple(peer.split("/")) if isinstance(peer, str) else ()
        if edge.get("direction") != "inbound" or target is None or peer == OTHERS or not all(map(is_segment, segments)):
            return None
        return Call(SpiffeId(self.trust_domain, segments), target) if segments else None

    def _ours(self, text: Any) -> SpiffeId | None:
        """A verified identity of this mesh."""
        try:
            identity = parse_spiffe_id(text) if isinstance(text, str) else None
        except InvalidIdentityError:
            identity = None
        if identity is None:
            self.left_out["of an unverified peer"] += 1
            return None
        if identity.trust_domain != self.trust_domain:
            self.left_out["of another trust domain"] += 1
            if len(self.foreign) < MAX_RULES:
                self.foreign.add(identity.trust_domain)
            return None
        return identity

    def _count(self, call: Call, end: str, allowed: int, denied: int, times: list[datetime | None], rule: Any) -> None:
        if not allowed and not denied:
            return
        if call not in self.calls and len(self.calls) >= MAX_CALLS:
            self.left_out[f"of more than {MAX_CALLS} callers and ports"] += 1
            return
        tally = self.calls.setdefault(call, Tally())
        tally.allowed[end] += allowed
        tally.denied[end] += denied
        for time in times:
            tally.at(time)
        if allowed and isinstance(rule, str) and rule and len(tally.rules) < MAX_RULES:
            tally.rules.add(rule)

    def _alarm(self, line: Mapping[str, Any]) -> None:
        service, upstream = line.get("service"), line.get("upstream")
        if line.get("severity") == "notice" or not isinstance(service, str):
            return
        if len(self._alarms) >= MAX_ALARMS:
            self._too_many_alarms = True
            return
        self._alarms.add((service.rpartition("/")[2], upstream if isinstance(upstream, str) else ""))


def time_of(value: Any) -> datetime | None:
    """A time of a log, in UTC; None for what is none."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        return None if found is None or found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _target(text: Any) -> Target | None:
    if not isinstance(text, str):
        return None
    service, _, port = text.partition(":")
    return Target(service, port) if is_segment(service) and is_segment(port) else None


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _numbers(value: Any) -> dict[str, int]:
    return {name: _number(number) for name, number in value.items()} if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MAX_NUMBER else 0
