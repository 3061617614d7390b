"""What happened to a connection, in words, from what its two ends logged. Pure.

:func:`tell` makes the document that ``--json`` prints; :func:`as_text` formats it for people. Everything in a log may be
false: it is told as what the log says, and no decision is made from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sidecar.explain.records import Entry
from sidecar.identity.reasons import Reason
from sidecar.meanings.glossary import of_event, of_reason
from sidecar.meanings.meaning import PLACEHOLDERS, Meaning, Side, filled, names_in

MAX_CONNECTIONS = 10
"""How many connections of one channel are told; the last ones."""

MAX_ENTRIES = 8
"""How many lines of one connection are told. It has two, and an alarm or a bug."""

ALARMS = frozenset({"mitm_suspected", "neighbour_met"})
"""The events of a caller about whoever answers in its target's place."""

_WELL = frozenset({Reason.OK.value, Reason.PROBE.value})
_SIDES = ("outbound", "inbound")
_ROLES = {"outbound": "which calls", "inbound": "which was called"}


def tell(wanted: str, entries: Iterable[Entry], searched: Sequence[str], mesh: str = "") -> dict[str, Any]:
    """What is known of the connection, or of each on the channel ``wanted``. ``searched``: what was read, for people.
    ``mesh``: where the mesh file is, if that is known."""
    lines: dict[str, dict[str, Entry]] = {}  # by connection, then by what they say: a log may be given twice
    left_out = False
    for entry in entries:
        mine = lines.setdefault(entry.get("connection_id"), {})
        if len(mine) < MAX_ENTRIES:
            mine.setdefault(json.dumps([*entry.fields.items(), entry.text]), entry)
        if len(lines) > MAX_CONNECTIONS:
            del lines[min(lines, key=_number)]
            left_out = True
    return {
        "id": wanted,
        "searched": list(searched),
        "connections": [_connection(one, [*lines[one].values()], mesh) for one in sorted(lines, key=_number)],
        "earlier_left_out": left_out,
    }


def _number(connection_id: str) -> int:
    """The number of a connection on its channel; 0 for the channel's own handshake."""
    return int(connection_id.partition("-")[2] or 0)


def _connection(connection_id: str, entries: list[Entry], mesh: str) -> dict[str, Any]:
    ends = {side: one for side in _SIDES if (one := _line(entries, side)) is not None}
    known = _known(connection_id, ends, entries, mesh)
    told = [_filled(meaning, known) for meaning in _meanings(ends, entries)]
    return {
        "connection_id": connection_id,
        "caller": known["CALLER"],
        "target": known["TARGET"],
        "ends": [{"from": one.source, "text": one.text, **one.fields} for one in ends.values()],
        "events": [{"from": one.source, **one.fields} for one in entries if one.get("event") != "connection"],
        "meanings": told,
    }


def _line(entries: Iterable[Entry], side: str) -> Entry | None:
    return next((one for one in entries if one.get("event") == "connection" and one.get("direction") == side), None)


def _known(connection_id: str, ends: Mapping[str, Entry], entries: Sequence[Entry], mesh: str) -> dict[str, str]:
    """What is put in place of the names in capitals."""
    caller, called = ends.get("outbound"), ends.get("inbound")
    alarm = next((one for one in entries if one.get("event") in ALARMS), None)
    target = "" if called is None else ":".join(filter(None, (called.get("service"), called.get("port"))))
    for one in (alarm, caller):
        target = target if one is None else one.get("upstream") or target
    us = caller or alarm
    source = us.get("service") if us is not None else _service(called.get("peer_id")) if called is not None else ""
    address = next((one.get("peer_address") for one in (alarm, caller, called) if one and one.get("peer_address")), "")
    first = caller or called or alarm
    known = {
        "CALLER": source,
        "TARGET": target,
        "ADDRESS": address,
        "HOST": address.rpartition(":")[0].strip("[]"),
        "ID": connection_id,
        "SERVICE": "" if first is None else first.get("service"),
    }
    return {**known, "MESH": mesh} if mesh else known


def _service(identity: str) -> str:
    """A service's name, as a rule has it; any other identity whole."""
    path = identity.removeprefix("spiffe://").partition("/")[2]
    return path if path and "/" not in path else identity


def _meanings(ends: Mapping[str, Entry], entries: Iterable[Entry]) -> list[Meaning]:
    """What is explained, the likeliest cause first: where the other end refused, its own word."""
    caller, called = ends.get("outbound"), ends.get("inbound")
    words: list[tuple[str, Side]] = []
    if caller is not None:
        words.append((caller.get("reason"), "outbound"))
        if caller.get("peer_reason"):
            words.insert(0, (caller.get("peer_reason"), "inbound"))
    if called is not None:
        refused_there = caller is not None and caller.get("reason") == Reason.PEER_REFUSED
        words.insert(0 if refused_there else len(words), (called.get("reason"), "inbound"))
        if called.get("peer_reason"):
            words.append((called.get("peer_reason"), "outbound"))
    found = [meaning for word, side in words if (meaning := of_reason(word, side)) is not None]
    if len(found) > 1:  # the other end's own word says more
        found = [one for one in found if one.word != Reason.PEER_REFUSED]
    events = [one.get("event") for one in entries if one.get("event") != "connection"]
    found += [meaning for word in events if (meaning := of_event(word)) is not None]
    unlike_ok = [one for one in found if one.word not in _WELL]
    return list(dict.fromkeys(unlike_ok or found[:1]))


def _filled(meaning: Meaning, known: Mapping[str, str]) -> dict[str, Any]:
    made = {"word": meaning.word, **meaning.as_json()}
    for name in ("causes", "next"):
        made[name] = [filled(text, known) for text in made[name]]
    return made


# -- for people --------------------------------------------------------------------------------------------------------


def as_text(document: Mapping[str, Any]) -> str:
    """The document of :func:`tell` as lines for people."""
    lines = [line for one in document["connections"] for line in (*_connection_lines(one), "")]
    if document["earlier_left_out"]:
        lines.append(f"These are the last {MAX_CONNECTIONS} connections of the channel; earlier ones are left out.")
    return "\n".join([*lines, f"Read: {', '.join(document['searched'])}."])


def _connection_lines(one: Mapping[str, Any]) -> Iterator[str]:
    yield f"connection {one['connection_id']}: {one['caller'] or 'somebody'} -> {one['target'] or 'somewhere'}"
    ends = {end.get("direction"): end for end in one["ends"]}
    for side in _SIDES:
        yield from _end_lines(side, ends[side]) if side in ends else _missing(side, ends)
    for event in one["events"]:
        yield f"{event['event']}, logged by the sidecar of {event.get('service', 'a service')}, {event.get('time', '')}"
        yield from _facts(event, ("message", "expected", "presented", "evidence", "next"))
    for meaning in one["meanings"]:
        yield ""
        yield from meaning_lines(meaning)
    yield from names_left(one["meanings"])


def _end_lines(side: str, end: Mapping[str, Any]) -> Iterator[str]:
    at = f", {end['time']}" if end.get("time") else ""
    yield f"at the sidecar {_of(end)}{_ROLES[side]} ({side}){at}:"
    if end["text"]:
        yield f"  {end['text']}"
        return
    yield f"  {'let in' if end.get('decision') == 'allow' else 'refused'}: {end.get('reason', 'no reason given')}"
    yield from _facts(end, ("message", "peer_reason"))
    if end.get("peer_id"):
        yield f"  other end: {end['peer_id']} (proved) at {end.get('peer_address', 'an unknown address')}"
    elif end.get("peer_address"):
        yield f"  other end: {end['peer_address']}, which proved no identity"
    elif side == "outbound":
        yield "  other end: nobody was reached"
    yield from _facts(end, ("unverified",))
    yield f"  rule: {_rule(end)}"
    if end.get("bytes_to_app") or end.get("bytes_from_app") or end.get("decision") == "allow":
        took = f" in {end['duration_ms']:g} ms" if "duration_ms" in end else ""
        to_app, from_app = end.get("bytes_to_app", "unknown"), end.get("bytes_from_app", "unknown")
        yield f"  carried: {to_app} bytes to the app, {from_app} bytes from it{took}"
    yield f"  found in: {end['from']}"


def _of(end: Mapping[str, Any]) -> str:
    return f"of {end['service']}, " if end.get("service") else ""


def _rule(end: Mapping[str, Any]) -> str:
    if end.get("rule"):
        return str(end["rule"])
    if end.get("reason") == Reason.POLICY_DENIED:
        return "none; without a rule that allows it, a call is refused"
    if end.get("decision") == "allow":
        return "none is named in the line"
    return "none was asked: the connection ended before the policy was"


def _missing(side: str, ends: Mapping[Any, Any]) -> Iterator[str]:
    if not ends:
        return
    yield f"at the sidecar {_ROLES[side]} ({side}): no line in what was read"
    yield "  Its log was not read, or was rotated since; its `access_log:` leaves the line out; or nothing arrived there."


def _facts(line: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    shown = {
        "unverified": "it claimed, unproved",
        "presented": "it showed, unproved",
        "peer_reason": "the other end's word",
    }
    yield from (f"  {shown.get(name, name)}: {line[name]}" for name in names if line.get(name))


def meaning_lines(meaning: Mapping[str, Any]) -> Iterator[str]:
    """One entry of the glossary, as :meth:`Meaning.as_json` has it and with its ``word``."""
    side = f", {meaning['side']}" if meaning.get("side") else ""
    yield f"{meaning['word']} ({meaning['kind']}{side})"
    yield f"  {meaning['means']}"
    if meaning["causes"]:
        yield "  Likely causes, the likeliest first:"
        yield from (f"    {number}. {cause}" for number, cause in enumerate(meaning["causes"], 1))
    if meaning["next"]:
        yield "  Next:"
        yield from (f"    - {step}" for step in meaning["next"])


def names_left(meanings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What the names in capitals stand for that are left in these entries."""
    texts = [text for one in meanings for text in (*one["causes"], *one["next"])]
    left = sorted(set().union(*map(names_in, texts))) if texts else []
    if left:
        yield ""
        yield from (f"{name}: {PLACEHOLDERS[name]}" for name in left)
