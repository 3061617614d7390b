"""The four questions of whoever looks at a mesh, answered in words: is everything encrypted, who calls whom, what was
refused and is it an attack, what expires next. And the verdict of all of them. Pure.

An answer is a list of parts: text, or ``{"at": time}``, which the page shows as the time until or since then. So an answer
is the same as long as nothing happens, and the page counts by itself.

Nothing here says "yes" of what is not known: a sidecar without a report makes an answer uncertain, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sidecar.dashboard.reading import Ending, Shown, iso
from sidecar.dashboard.refused import IN_WORDS
from sidecar.identity.reasons import Reason
from sidecar.observe.alarms import MITM_SUSPECTED

GOOD, LOOK, BAD, UNKNOWN = "good", "look", "bad", "unknown"
_WORST = (GOOD, UNKNOWN, LOOK, BAD)

SOON = timedelta(days=14)
"""What nobody renews by itself is told from so long before its end."""

_NAMED, _PAIRS = 3, 4
_CLAUSE = 3

_OF_REASON = {
    "expired": "No sign of an attack: its certificate has ended.",
    "not_yet_valid": "No sign of an attack: its certificate is not valid yet.",
}
_ATTACK = {
    "policy": "No sign of an attack: no rule allows it.",
    "stranger": "Somebody tries who proved no identity; nothing got in.",
    "fault": "No sign of an attack: something does not work.",
}

Part = str | dict[str, str]
Services = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """``short``: for the verdict, if this is the worst; a sentence."""

    id: str
    question: str
    state: str
    parts: tuple[Part, ...]
    short: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"question": self.question, "state": self.state, "answer": list(self.parts)}


def answers(
    shown: Shown,
    services: Services,
    pairs: Services,
    refusals: Services,
    alarms: Services,
    not_seen: Mapping[str, Sequence[str]] | None = None,
) -> list[Answer]:
    """The four, in the order in which they are asked. ``not_seen``: by service, the ways past its sidecar."""
    return [
        _encrypted(services, not_seen or {}),
        _calls(services, pairs, shown.unread),
        _refused(refusals, alarms),
        _ends(shown, services),
    ]


def verdict(answers: Sequence[Answer], services: Services) -> dict[str, str]:
    """The first line of the page: the worst of the answers, in one sentence."""
    worst = max(answers, key=lambda one: _WORST.index(one.state))
    reporting = sum(1 for one in services.values() if one["replicas"])
    if not reporting:
        return {"state": UNKNOWN, "text": "No sidecar has reported yet, so nothing is known."}
    if worst.state == GOOD:
        return {
            "state": GOOD,
            "text": f"All is well: {_let_in(reporting)}, nothing refused {IN_WORDS}, "
            "every certificate renewed in time.",
        }
    more = sum(1 for one in answers if one is not worst and one.state in (LOOK, BAD))
    tail = f" {more} more below." if more else ""
    return {"state": worst.state, "text": f"{worst.short}{tail}"}


def _encrypted(services: Services, not_seen: Mapping[str, Sequence[str]]) -> Answer:
    question = "Is everything encrypted?"
    reporting = [name for name, one in services.items() if one["replicas"]]
    missing = [name for name, one in services.items() if one["state"] in ("unknown", "silent")]
    clear = [(name, port) for name, one in services.items() for port in one["ports"] if port["permissive"]]
    ways = [f"who comes {way}, past {name}'s sidecar" for name, some in not_seen.items() for way in some]
    unseen = f" NOT SEEN: {listed(ways)}." if ways else ""
    if not reporting:
        return Answer("encrypted", question, UNKNOWN, ("Not known: no sidecar has reported.",), "Nothing is known yet.")
    if clear:
        where = listed([f"{name}:{port['name']}" for name, port in clear])
        callers = sum(len(one["plaintext"]) for one in services.values())
        many = _number(callers, "caller") if callers else "no caller so far"
        parts: tuple[Part, ...] = (f"No: {where} still {_takes(len(clear))} plaintext ({many}).{unseen}",)
        return Answer("encrypted", question, LOOK, parts, f"Not everything is encrypted: {where} takes plaintext.")
    text = f"Yes: {_let_in(len(reporting))}."
    if missing:
        short = f"{listed(missing)} {'does' if len(missing) == 1 else 'do'} not report."
        what = f"{text} Not known: {listed(missing)}, without a report now.{unseen}"
        return Answer("encrypted", question, LOOK, (what,), short)
    if ways:
        short = f"NOT SEEN: {listed(ways, 1)}."
        return Answer("encrypted", question, LOOK, (f"{text}{unseen}",), short)
    return Answer("encrypted", question, GOOD, (text,))


def _let_in(reporting: int) -> str:
    """Of what does not pass a sidecar nothing is known."""
    return f"all that the sidecars of {_number(reporting, 'service')} let in is mutual TLS 1.3"


def _calls(services: Services, pairs: Services, unread: int) -> Answer:
    question = "Who calls whom?"
    busy = [one for one in pairs.values() if one["opened"]]
    rate = sum(one["rate"] or 0 for one in busy)
    unwell = [name for name, one in services.items() if one["state"] == "unwell"]
    drifted = [name for name, one in services.items() if one["drift"]]
    noted = [f"{name}: {note}" for name, one in services.items() for note in one["notes"]]
    noted += [f"reports that are too many and were not read: {unread}"] if unread else []
    busiest = sorted(busy, key=lambda one: -(one["rate"] or 0))
    named = listed([f"{one['from']} → {one['to']}" for one in busiest], _PAIRS)
    text = f"{named}. {_rate(rate)} now." if busy else "Nobody has called anybody yet."
    if unwell:
        return Answer("calls", question, BAD, (f"{text} NOT WELL: {listed(unwell)}.",), f"{listed(unwell)}: not well.")
    if drifted:
        many = "has another version" if len(drifted) == 1 else "have another version"
        short = f"{listed(drifted)} {many} than the others."
        more = f" {_sentence(listed(noted))}" if noted else ""
        return Answer("calls", question, LOOK, (f"{text} {short}{more}",), short)
    if noted:
        return Answer("calls", question, LOOK, (f"{text} {_sentence(listed(noted))}",), _sentence(listed(noted, 1)))
    return Answer("calls", question, GOOD, (text,))


def _refused(refusals: Services, alarms: Services) -> Answer:
    question = "What was refused, and is it an attack?"
    severe = [one for one in alarms.values() if one["severe"]]
    recent = [one for one in refusals.values() if one["recent"]]
    attacks = [one for one in recent if one["kind"] == "attack"]
    harmless = [one for one in recent if one["kind"] != "attack"]
    besides = (" Besides, ", *_last_of(harmless)) if harmless else ()
    if severe:
        newest = _newest(severe)
        where = f"{newest['from']} → {newest['to']}" if newest["to"] else newest["from"]
        stopped = " It was refused, and got nothing." if newest["event"] == MITM_SUSPECTED else ""
        short = f"This may be an attack ({where}): {_sentence(_gist(newest['message']))}{stopped}"
        what = f"{_number(len(severe), 'alarm')}, the last {where} ({newest['reason'] or newest['event']})"
        parts: tuple[Part, ...] = (f"It may be: {what}", *_at(newest["last"]), f".{stopped} What to do is below.")
        return Answer("refused", question, BAD, (*parts, *besides), short)
    if attacks:
        newest = _newest(attacks)
        stolen = newest["reason"] == Reason.REVOKED
        text = f"It may be{' a stolen key' if stolen else ''}: {_sentence(newest['message'])}"
        return Answer("refused", question, BAD, (text, *besides), text)
    if harmless:
        return Answer("refused", question, LOOK, _last_of(harmless), "".join(map(str, _last_of(harmless, timed=False))))
    old = f" {_number(len(refusals), 'older refusal')} below." if refusals else ""
    return Answer("refused", question, GOOD, (f"Nothing {IN_WORDS}, and no alarm.{old}",))


def _newest(some: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(some, key=lambda one: str(one["last"] or ""))


def _last_of(some: Sequence[Mapping[str, Any]], *, timed: bool = True) -> tuple[Part, ...]:
    """The last refusal, how many more there are, and what it means."""
    newest = _newest(some)
    what = f"{newest['from']} → {newest['to']}" + (f":{newest['port']}" if newest["port"] else "")
    more = f", and {len(some) - 1} more" if len(some) > 1 else ""
    said = _OF_REASON.get(newest["reason"], _ATTACK["fault"]) if newest["kind"] == "fault" else _ATTACK[newest["kind"]]
    return (f"{what} was refused", *_at(newest["last"] if timed else None), f"{more}. {said}")


def _ends(shown: Shown, services: Services) -> Answer:
    question = "What expires next?"
    over = [name for name, one in services.items() if one["certificate"] == "over"]
    if over:
        text = f"{listed(over)}: the certificate has ended, so every peer refuses it."
        return Answer("ends", question, BAD, (text,), text)
    late = [(name, one) for name, one in services.items() if one["certificate"] in ("late", "ends")]
    if late:
        name, one = min(late, key=lambda pair: str(pair[1]["not_after"]))
        why = "was not renewed in time and ends" if one["certificate"] == "late" else "ends"
        more = f" And of {_number(len(late) - 1, 'more service')}." if len(late) > 1 else ""
        parts: tuple[Part, ...] = (f"{name}'s certificate {why} ", {"at": str(one["not_after"])}, f".{more}")
        return Answer("ends", question, BAD, parts, f"{name}'s certificate {why} soon.")
    ended = [what for at, what in _authorities(shown) if at <= shown.now]
    if ended:
        text = f"{ended[0].removesuffix('ends')}has ended: nothing that it signed is taken, and nobody renews."
        return Answer("ends", question, BAD, (text,), text)
    soon = sorted(_dated(shown), key=lambda one: one[0])
    if soon and soon[0][0] - shown.now < SOON:
        at, what = soon[0]
        return Answer("ends", question, LOOK, (f"{what} ", {"at": str(iso(at))}, "."), f"{what} soon.")
    untold = [name for name, one in services.items() if one["replicas"] and one["certificate"] == "unknown"]
    if untold:
        text = f"Not known: {listed(untold)} {'does' if len(untold) == 1 else 'do'} not tell when its certificate ends."
        return Answer("ends", question, UNKNOWN, (text,), text)
    certificates = [(one["not_after"], name, one["renews_at"]) for name, one in services.items() if one["not_after"]]
    if not certificates:
        return Answer("ends", question, UNKNOWN, ("Not known.",), "Nothing is known of certificates.")
    until, name, renews = min(certificates)
    how = (" It renews itself ", {"at": renews}, ".") if renews else (" It is renewed by itself.",)
    return Answer("ends", question, GOOD, (f"{name}'s certificate ", {"at": until}, ".", *how))


def _authorities(shown: Shown) -> Iterator[tuple[datetime, str]]:
    if shown.issuing_until is not None:
        yield shown.issuing_until, "the CA's issuing certificate ends"
    if shown.root_until is not None:
        yield shown.root_until, "the root's certificate ends"


def _dated(shown: Shown) -> Iterator[tuple[datetime, str]]:
    """What nothing renews by itself: when, and in words that a time follows."""
    yield from _authorities(shown)
    seen: set[Ending] = set()
    for sidecar in shown.sidecars:
        for port in sidecar.ports:
            if port.permissive and (at := _end_of(port.until, shown)) is not None:
                yield at, f"plaintext to {sidecar.service}:{port.name} is refused"
        for one in sidecar.endings:
            if one not in seen and (at := _end_of(one.until, shown)) is not None:
                seen.add(one)
                yield at, f"the rule {one.rule} ends, and {one.caller} → {one.target} is refused"


def _end_of(day: str, shown: Shown) -> datetime | None:
    """The end of a day, UTC."""
    try:
        return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=shown.now.tzinfo) + timedelta(days=1)
    except (ValueError, OverflowError):
        return None


def listed(names: Sequence[str], most: int = _NAMED) -> str:
    """The first few, and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rate(rate: float) -> str:
    return f"{rate:.1f} new connections a second" if rate else "No new connection"


def _at(time: str | None) -> tuple[Part, ...]:
    return (" ", {"at": time}) if time else ()


def _takes(number: int) -> str:
    return "takes" if number == 1 else "take"


def _gist(message: str) -> str:
    """The last clause, which says what it comes to; all of it if that is no clause of its own."""
    clause = message.rpartition(": ")[2]
    return clause if clause.count(" ") >= _CLAUSE else message


def _sentence(text: str) -> str:
    text = text.removeprefix("refused: ")
    return text if not text or text[-1] in ".!?…" else f"{text}."
