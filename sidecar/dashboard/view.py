"""All that the page shows, made of what the CA shows: one document of plain values. Pure, but for the layout's library.

``mesh`` (what is looked at), ``verdict``, ``questions`` (by name), ``services`` (by name), ``pairs`` (by ``caller>callee``),
``refusals`` and ``alarms`` (by an id), ``layout``. Times are absolute, and the page counts: so the document is the same as
long as nothing happens, and little is sent (:mod:`sidecar.dashboard.changes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sidecar.dashboard import pairs as calls
from sidecar.dashboard.layout import layout
from sidecar.dashboard.pairs import pairs
from sidecar.dashboard.questions import answers, verdict
from sidecar.dashboard.rates import Rates
from sidecar.dashboard.reading import Shown, iso, read
from sidecar.dashboard.refused import alarms, refusals
from sidecar.dashboard.services import services
from sidecar.documents.printable import printable

MOST_SERVICES, MOST_PAIRS = 200, 2000
"""What is drawn, so that no report of invented names can make a page that no browser can show."""

_BAD = ("alarm", "refused")
_NEVER = datetime.fromtimestamp(0, UTC)

View = dict[str, Any]


class Watching:
    """What is seen over time. ``where``: what is looked at, in words. ``not_seen``: by service, the ways past its sidecar,
    of which no report can tell."""

    def __init__(self, where: str, not_seen: Mapping[str, Sequence[str]] | None = None) -> None:
        self._where = where
        self._not_seen = not_seen or {}
        self._rates = Rates()
        self._laid_out: tuple[Any, dict[str, Any]] = (None, {})
        self._last = Shown(_NEVER)

    def take(self, document: Mapping[str, Any], now: datetime) -> View:
        """What one look found becomes what the page shows. Of a look that failed (``error``) the page says so, beside what
        was seen before."""
        fault = document.get("error")
        if isinstance(fault, str):
            return self._view(
                self._last,
                {"fault": printable(fault[:500]), "since": "" if self._last.now == _NEVER else iso(self._last.now)},
            )
        shown = read(document, now)
        self._rates.take(calls.counters(shown))
        view = self._view(shown, {"fault": "", "since": ""})
        self._last = shown  # only of what could be shown
        return view

    def failed(self) -> View:
        """The same of a look that this program could not show, by a mistake of its own."""
        said = "The dashboard has met a bug of its own; its log has more. What the CA shows now is not shown here."
        return self._view(self._last, {"fault": said, "since": ""}, "The dashboard could not show what is now")

    def _view(self, shown: Shown, fault: Mapping[str, str | None], words: str = "The CA does not answer") -> View:
        found_pairs = pairs(shown, self._rates)
        found_refusals, found_alarms = refusals(shown), alarms(shown)
        _mark(found_pairs, found_refusals, found_alarms)
        found = services(shown, found_pairs)
        told = answers(shown, found, found_pairs, found_refusals, found_alarms, self._not_seen)
        said = verdict(told, found)
        every, every_pair = len(found), len(found_pairs)
        found, found_pairs = _drawn(found, found_pairs)
        if fault["fault"]:
            said = {"state": "bad", "text": f"{words}: what is below is of before."}
        return {
            "mesh": {
                "where": self._where,
                "trust_domain": shown.trust_domain,
                "left_out": _left_out(every - len(found), every_pair - len(found_pairs)),
                **fault,
            },
            "verdict": said,
            "questions": {one.id: one.as_json() for one in told},
            "services": found,
            "pairs": found_pairs,
            "refusals": found_refusals,
            "alarms": found_alarms,
            "layout": self._layout(found, found_pairs),
        }

    def _layout(self, found: Mapping[str, Any], found_pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        wanted = sorted(found), sorted((one["from"], one["to"]) for one in found_pairs.values())
        if self._laid_out[0] != wanted:
            self._laid_out = wanted, layout(*wanted)
        return self._laid_out[1]


def _drawn(
    found: dict[str, dict[str, Any]], found_pairs: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What there is room for: what is wrong before what is well. The answers are made of all."""
    if len(found) > MOST_SERVICES:
        bad = {one[end] for one in found_pairs.values() if one["state"] in _BAD for end in ("from", "to")}
        order = sorted(found, key=lambda name: (name not in bad, found[name]["state"] not in ("unwell", "silent")))
        kept = set(order[:MOST_SERVICES])
        found = {name: one for name, one in found.items() if name in kept}
    some = {key: one for key, one in found_pairs.items() if found.keys() >= {one["from"], one["to"]}}
    if len(some) > MOST_PAIRS:
        keys = set(sorted(some, key=lambda key: some[key]["state"] not in _BAD)[:MOST_PAIRS])
        some = {key: one for key, one in some.items() if key in keys}
    return found, some


def _left_out(services: int, some_pairs: int) -> str:
    if not services and not some_pairs:
        return ""
    return (
        f"{services} more services and {some_pairs} more calls are not shown here, since there are too many; the verdict "
        "and the four answers are of all."
    )


def _mark(
    found_pairs: dict[str, dict[str, Any]],
    found_refusals: Mapping[str, Mapping[str, Any]],
    found_alarms: Mapping[str, Mapping[str, Any]],
) -> None:
    """What a pair is at a glance: ``alarm``, ``refused`` (lately), ``plaintext``, ``idle`` (allowed, and not used yet) or
    ``ok``. A pair of which only a refusal or an alarm is known is added."""
    bad = {one["pair"]: one for one in found_refusals.values() if one["recent"]}
    alarmed = {one["pair"]: one for one in found_alarms.values() if one["severe"] and one["pair"]}
    for key, one in {**bad, **alarmed}.items():
        if key not in found_pairs:
            empty = {"opened": 0, "live": 0, "refused": 0, "up": 0, "down": 0, "rate": None, "opening_ms": None}
            found_pairs[key] = {"from": one["from"], "to": one["to"], "ports": {}, "plaintext": False, **empty}
    for key, pair in found_pairs.items():
        pair["state"] = (
            "alarm"
            if key in alarmed
            else "refused"
            if key in bad
            else "plaintext"
            if pair["plaintext"]
            else "ok"
            if pair["opened"]
            else "idle"
        )
