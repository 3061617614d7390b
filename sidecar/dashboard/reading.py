"""What the CA shows, read: reports, alarms and the CA's own words become typed, bounded values. Pure.

How this works. A report is what a sidecar says of itself, and a sidecar that was taken over says what it likes. The CA has
checked the size of a report and the types at its top. Here everything below that is read as if an enemy had written it: a
value of the wrong type counts as absent, a row that is no row is left out, text is made printable and cut, numbers are whole
and not negative. So nothing that follows meets a type that it does not expect. Only ``identity`` is proved: the CA takes it
from the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sidecar.documents.printable import printable
from sidecar.identity.reasons import Reason
from sidecar.observe.traffic import PLAINTEXT

MAX_TEXT = 300
MAX_NAME = 80
MAX_SIDECARS = 1000
MAX_ROWS = 256


@dataclass(frozen=True, slots=True)
class Flow:
    """One line of ``edges``: who calls whom, as one end saw it. ``key`` tells it from the others of its sidecar.
    ``plaintext``: the caller spoke no TLS, so it has no name."""

    key: tuple[str, str, str, str]
    caller: str
    callee: str
    port: str
    rule: str
    inbound: bool
    opened: int
    live: int
    refused: int
    to_callee: int
    to_caller: int
    streams: int
    reused: int
    opening_ms: int | None
    plaintext: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refusals that are alike, of one end. ``caller``: empty if nobody proved to be one."""

    service: str
    inbound: bool
    caller: str
    callee: str
    port: str
    reason: str
    address: str
    count: int
    first: datetime | None
    last: datetime | None
    message: str
    connection_id: str


@dataclass(frozen=True, slots=True)
class Plaintext:
    """Who still speaks plaintext to a permissive port."""

    port: str
    address: str
    name: str
    count: int
    first: datetime | None
    last: datetime | None
    allowed: bool


@dataclass(frozen=True, slots=True)
class Port:
    """An inbound port. ``until``: the day (UTC) through which a permissive one takes plaintext."""

    name: str
    may_call: tuple[str, ...]
    permissive: bool
    until: str


@dataclass(frozen=True, slots=True)
class Ending:
    """A call that is refused after a day, since the rule that allows it runs out."""

    caller: str
    target: str
    until: str
    rule: str


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The last report of one sidecar. ``received``: when the CA had it; ``fresh``: whether that was lately. ``sentences``:
    why it is not well; ``notes``: what else somebody has to look at."""

    service: str
    identity: str
    instance: str
    address: str
    received: datetime
    fresh: bool
    started_at: str
    release: str
    healthy: bool
    draining: bool
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    policy: str
    bundle: int | None
    not_after: datetime | None
    renews_at: datetime | None
    ports: tuple[Port, ...]
    calls: tuple[tuple[str, bool], ...]
    flows: tuple[Flow, ...]
    refusals: tuple[Refusal, ...]
    plaintext: tuple[Plaintext, ...]
    endings: tuple[Ending, ...]
    idle_channels: int
    streams: int
    reused: int
    log_lost: int
    cut: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """What may be an attack, as the CA keeps it."""

    id: str
    event: str
    severe: bool
    service: str
    upstream: str
    reason: str
    address: str
    expected: str
    presented: tuple[tuple[str, str], ...]
    first: datetime | None
    last: datetime | None
    count: int
    message: str
    next: str
    connection_id: str
    reported_by: str
    elsewhere: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """All that the CA shows at one moment. ``services``: of its mesh file; empty if it does not tell. ``unread``:
    reports beyond :data:`MAX_SIDECARS`."""

    now: datetime
    trust_domain: str = ""
    services: tuple[str, ...] = ()
    issuing_until: datetime | None = None
    root_until: datetime | None = None
    policy: str = ""
    bundle: int | None = None
    sidecars: tuple[Sidecar, ...] = ()
    alarms: tuple[Alarm, ...] = field(default=())
    unread: int = 0


def read(document: Mapping[str, Any], now: datetime) -> Shown:
    """``document``: what :data:`certs.protocol.looking.MESH_PATH` answers. ``now``: for an answer that does not tell."""
    ca = _mapping(document.get("ca"))
    entries, every = _rows(document, "reports", MAX_SIDECARS), document.get("reports")
    at = _time(document, "now") or now
    return Shown(
        now=at,
        trust_domain=_text(ca, "trust_domain", MAX_NAME),
        services=_texts(ca, "services", MAX_SIDECARS),
        issuing_until=_time(ca, "issuing_until"),
        root_until=_time(ca, "root_until"),
        policy=_text(ca, "policy", MAX_NAME),
        bundle=_number_or_none(ca, "bundle"),
        sidecars=tuple(one for entry in entries if (one := _sidecar(entry)) is not None),
        alarms=tuple(_alarm(one, at) for one in _rows(document, "alarms", MAX_ROWS)),
        unread=max(0, len(every) - MAX_SIDECARS) if isinstance(every, list) else 0,
    )


def service_of(identity: str) -> str:
    """The service of an identity, or the path of one that is no service's."""
    return identity.removeprefix("spiffe://").partition("/")[2] or identity


def _sidecar(entry: Mapping[str, Any]) -> Sidecar | None:
    said, identity, received = _mapping(entry.get("report")), _text(entry, "identity"), _time(entry, "received")
    if not identity or received is None:
        return None
    service = service_of(identity)[:MAX_NAME]
    certificate, channels = _mapping(said.get("certificate")), _mapping(said.get("channels"))
    lost, cut = _number(said, "log_lost"), _number(said, "cut")
    notes = (
        *(f"not open: {text}" for text in _texts(said, "waiting")),
        *(f"refused at the last reload: {text}" for text in _texts(said, "reload_refused")),
        *([f"{lost} lines of its log were LOST"] if lost else ()),
        *([f"{cut} entries did not fit into its report"] if cut else ()),
    )
    return Sidecar(
        service=service,
        identity=identity,
        instance=_text(entry, "instance", MAX_NAME),
        address=_text(entry, "address", MAX_NAME),
        received=received,
        fresh=entry.get("fresh") is True,
        started_at=_text(said, "started_at", MAX_NAME),
        release=_text(said, "release", MAX_NAME),
        healthy=said.get("healthy") is True,
        draining=said.get("draining") is True,
        sentences=_texts(said, "unwell"),
        notes=notes,
        policy=_text(said, "policy", MAX_NAME),
        bundle=_number_or_none(said, "bundle"),
        not_after=_time(certificate, "not_after"),
        renews_at=_time(certificate, "renews_at"),
        ports=tuple(map(_port, _rows(said, "inbound"))),
        calls=tuple((_text(one, "to", MAX_NAME), one.get("allowed") is True) for one in _rows(said, "outbound")),
        flows=tuple(_flow(service, one) for one in _rows(said, "edges")),
        refusals=tuple(_refusal(service, one, received) for one in _rows(said, "refusals")),
        plaintext=tuple(_plaintext(one, received) for one in _rows(said, "plaintext")),
        endings=tuple(map(_ending, _rows(said, "ending"))),
        idle_channels=_number(channels, "idle"),
        streams=_number(channels, "streams"),
        reused=_number(channels, "reused"),
        log_lost=lost,
        cut=cut,
    )


def _port(one: Mapping[str, Any]) -> Port:
    return Port(
        _text(one, "port", MAX_NAME),
        tuple(text[:MAX_NAME] for text in _texts(one, "may_call")),
        one.get("mode") == "permissive",
        _text(one, "until", MAX_NAME),
    )


def _ends(service: str, one: Mapping[str, Any], peer: str) -> tuple[bool, str, str, str]:
    """Whether this end was called, the caller, the callee and its port. Outbound, the port is written ``callee:port``."""
    port = _text(one, "port", MAX_NAME)
    if one.get("direction") != "outbound":
        return True, peer, service, port
    callee, colon, name = port.partition(":")
    return False, service, (callee if colon and " " not in name else peer) or port, name if colon else ""


def _flow(service: str, one: Mapping[str, Any]) -> Flow:
    inbound, caller, callee, port = _ends(service, one, _text(one, "peer", MAX_NAME))
    plaintext = inbound and caller == PLAINTEXT  # no identity is reported by that name
    to_app, from_app, rule = _number(one, "to_app"), _number(one, "from_app"), _text(one, "rule", MAX_NAME)
    refused, ended = (_mapping(one.get(name)) for name in ("refused", "ended"))
    probes = _number(ended, Reason.PROBE)  # a port check, `sidecar verify`, a listener that waits: nobody's call
    return Flow(
        key=("inbound" if inbound else "outbound", caller if inbound else callee, port, rule),
        caller="" if plaintext else caller,
        callee=callee,
        port=port,
        rule=rule,
        inbound=inbound,
        opened=max(_number(one, "opened") - probes, 0),
        live=_number(one, "live"),
        refused=sum(_number(refused, name) for name in refused if name != Reason.PROBE),
        to_callee=to_app if inbound else from_app,
        to_caller=from_app if inbound else to_app,
        streams=_number(one, "streams"),
        reused=_number(one, "reused"),
        opening_ms=_number_or_none(one, "opening_ms"),
        plaintext=plaintext,
    )


def _refusal(service: str, one: Mapping[str, Any], received: datetime) -> Refusal:
    peer = _text(one, "peer")
    inbound, caller, callee, port = _ends(service, one, service_of(peer)[:MAX_NAME] if peer else "")
    return Refusal(
        service=service,
        inbound=inbound,
        caller=caller,
        callee=callee,
        port=port,
        reason=_text(one, "reason", MAX_NAME),
        address=_text(one, "address", MAX_NAME),
        count=max(1, _number(one, "count")),
        first=_past(one, "first", received),
        last=_past(one, "last", received),
        message=_text(one, "message"),
        connection_id=_text(one, "connection_id", MAX_NAME),
    )


def _plaintext(one: Mapping[str, Any], received: datetime) -> Plaintext:
    return Plaintext(
        _text(one, "port", MAX_NAME),
        _text(one, "address", MAX_NAME),
        _text(one, "name", MAX_NAME),
        _number(one, "count"),
        _past(one, "first", received),
        _past(one, "last", received),
        one.get("allowed") is True,
    )


def _ending(one: Mapping[str, Any]) -> Ending:
    texts = (_text(one, name, MAX_NAME) for name in ("from", "to", "until", "rule"))
    return Ending(*texts)


def _alarm(one: Mapping[str, Any], now: datetime) -> Alarm:
    presented = _mapping(one.get("presented"))
    return Alarm(
        id=_text(one, "id", MAX_NAME),
        event=_text(one, "event", MAX_NAME),
        severe=one.get("severity", "alarm") == "alarm",
        service=_text(one, "service", MAX_NAME),
        upstream=_text(one, "upstream", MAX_NAME),
        reason=_text(one, "reason", MAX_NAME),
        address=_text(one, "peer_address", MAX_NAME),
        expected=_text(one, "expected"),
        presented=tuple(
            (printable(str(name))[:MAX_NAME], printable(value)[:MAX_TEXT])
            for name, value in list(presented.items())[:10]
            if isinstance(value, str)
        ),
        first=_past(one, "first", now),
        last=_past(one, "last", now),
        count=max(1, _number(one, "count")),
        message=_text(one, "message", 2 * MAX_TEXT),
        next=_text(one, "next"),
        connection_id=_text(one, "connection_id", MAX_NAME),
        reported_by=_text(one, "reported_by"),
        elsewhere=_texts(one, "elsewhere", 10),
    )


# -- values that an enemy may have written ------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(of: Mapping[str, Any], name: str, most: int = MAX_ROWS) -> Iterator[Mapping[str, Any]]:
    value = of.get(name)
    return (one for one in value[:most] if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _texts(of: Mapping[str, Any], name: str, most: int = MAX_ROWS) -> tuple[str, ...]:
    value = of.get(name)
    some = value[:most] if isinstance(value, list) else []
    return tuple(printable(one[:MAX_TEXT])[:MAX_TEXT] for one in some if isinstance(one, str))


def _text(of: Mapping[str, Any], name: str, most: int = MAX_TEXT) -> str:
    """Escaped, and cut: with a mark, so that nobody takes a part for the whole."""
    value = of.get(name)
    if not isinstance(value, str):
        return ""
    text = printable(value[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(of: Mapping[str, Any], name: str) -> int:
    return _number_or_none(of, name) or 0


def _number_or_none(of: Mapping[str, Any], name: str) -> int | None:
    value = of.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):  # an int may be too large for that question
        return None
    return min(max(0, int(value)), 1 << 53)  # the largest that a page can count with


def _time(of: Mapping[str, Any], name: str) -> datetime | None:
    value = of.get(name)
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # the second: a zone leads out of the years 1 to 9999
        return None


def _past(of: Mapping[str, Any], name: str, known: datetime) -> datetime | None:
    """A time that has been: what is said to come later than the report itself is of its time."""
    found = _time(of, name)
    return None if found is None else min(found, known)


def iso(at: datetime | None) -> str | None:
    """As the page takes it, with four digits of each year."""
    return None if at is None else f"{at.replace(tzinfo=None).isoformat(timespec='seconds')}Z"
