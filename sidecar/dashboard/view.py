"""All that the page shows, made of what the CA shows: one document of plain values. Pure, but for the layout's library.

``mesh`` (what is looked at), ``verdict``, ``questions`` (by name), ``services`` (by name), ``pairs`` (by ``caller>callee``),
``refusals`` and ``alarms`` (by an id), ``layout``. Times are absolute, and the page counts: so the document is the same as
long as nothing happens, and little is sent (:mod:`sidecar.dashboard.changes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sidecar.dashboard import pairs as calls
from sidecar.dashboard.layout import layout
from sidecar.dashboard.pairs import pairs
from sidecar.dashboard.questions import answers, verdict
from sidecar.dashboard.rates import Rates
from sidecar.dashboard.reading import Shown, read
from sidecar.dashboard.refused import alarms, refusals
from sidecar.dashboard.services import services
from sidecar.documents.printable import printable

MOST_SERVICES, MOST_PAIRS = 200, 2000
"""What is drawn, so that no report of invented names can make a page that no browser can show."""

_NEVER = datetime.fromtimestamp(0, UTC)

View = dict[str, Any]


class Watching:
    """What is seen over time. ``where``: what is looked at, in words."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._rates = Rates()
        self._laid_out: tuple[Any, dict[str, Any]] = (None, {})
        self._last = Shown(_NEVER)

    def take(self, document: Mapping[str, Any], now: datetime) -> View:
        """What one look found becomes what the page shows. Of a look that failed (``error``) the page says so, beside what
        was seen before."""
        fault = document.get("error")
        if isinstance(fault, str):
            return self._view(self._last, {"fault": printable(fault[:500]), "since": _iso(self._last.now)})
        self._last = shown = read(document, now)
        self._rates.take(calls.counters(shown))
        return self._view(shown, {"fault": "", "since": ""})

    def _view(self, shown: Shown, fault: Mapping[str, str]) -> View:
        found_pairs = dict(list(pairs(shown, self._rates).items())[:MOST_PAIRS])
        found_refusals, found_alarms = refusals(shown), alarms(shown)
        _mark(found_pairs, found_refusals, found_alarms)
        found = dict(list(services(shown, found_pairs).items())[:MOST_SERVICES])
        found_pairs = {key: one for key, one in found_pairs.items() if found.keys() >= {one["from"], one["to"]}}
        told = answers(shown, found, found_pairs, found_refusals, found_alarms)
        said = verdict(told, found)
        if fault["fault"]:
            said = {"state": "bad", "text": "The CA does not answer: what is below is of before."}
        return {
            "mesh": {"where": self._where, "trust_domain": shown.trust_domain, **fault},
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


def _iso(at: datetime) -> str:
    return "" if at == _NEVER else f"{at:%FT%TZ}"
