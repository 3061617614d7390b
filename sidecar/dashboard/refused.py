"""What was refused, and whether it is an attack: refusals of the whole mesh, those that are alike in one, and the alarms,
each with the words of `sidecar explain`. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any

from sidecar.dashboard.pairs import STRANGERS, id_of
from sidecar.dashboard.reading import Alarm, Refusal, Shown, iso
from sidecar.identity.reasons import MITM_SUSPECTS, Reason
from sidecar.meanings.glossary import of_event, of_reason
from sidecar.meanings.meaning import Meaning, filled

MOST = 100
LATELY = timedelta(minutes=15)
"""What is older is told, and no longer red."""

IN_WORDS = "in the last 15 minutes"


class Kind(StrEnum):
    """What a refusal is, in one word: the first question about it is whether it is an attack."""

    ATTACK = "attack"
    STRANGER = "stranger"
    POLICY = "policy"
    FAULT = "fault"


SAID = {
    Kind.ATTACK: "may be an attack",
    Kind.STRANGER: "a stranger: it proved no identity of this mesh, and nothing reached the app",
    Kind.POLICY: "no attack by itself: a known service may not do this, by the policy",
    Kind.FAULT: "no attack: something does not work",
}

STOLEN = "may be a stolen key: a certificate that was revoked is in use"
_ENDED = "no sign of an attack: its certificate has ended, so it was not renewed, or a clock is wrong"
_EARLY = "no sign of an attack: its certificate is not valid yet, so a clock is wrong"

_JUDGED = {Reason.POLICY_DENIED, Reason.POLICY_CHANGED}
_DATED = {Reason.EXPIRED: _ENDED, Reason.NOT_YET_VALID: _EARLY}
_STRANGE = MITM_SUSPECTS | {Reason.HANDSHAKE_FAILED, Reason.HANDSHAKE_TIMEOUT, Reason.PROBE}


def verdict_of(one: Refusal) -> str:
    """Whether it is an attack, in words."""
    kind = kind_of(one)
    if kind is Kind.ATTACK and one.reason == Reason.REVOKED:
        return STOLEN
    return _DATED.get(Reason(one.reason), SAID[kind]) if kind is Kind.FAULT and one.reason in _DATED else SAID[kind]


def kind_of(one: Refusal) -> Kind:
    if one.reason == Reason.REVOKED and (one.caller or not one.inbound):
        return Kind.ATTACK
    if not one.inbound:
        return Kind.ATTACK if one.reason in MITM_SUSPECTS else Kind.POLICY if one.reason in _JUDGED else Kind.FAULT
    if one.reason in _JUDGED and one.caller:
        return Kind.POLICY
    return Kind.STRANGER if one.reason in _STRANGE or not one.caller else Kind.FAULT


def refusals(shown: Shown) -> dict[str, dict[str, Any]]:
    """The last :data:`MOST` groups by a key of their own, as values that JSON can hold: what may be an attack first, then as
    ``last`` tells. Each sidecar has its share, so that one that was taken over, and says much, hides nothing of another."""
    groups: dict[tuple[str, ...], list[Refusal]] = {}
    every = [one for sidecar in shown.sidecars for one in sidecar.refusals]
    told_by_callee = {(one.caller, one.callee, one.port) for one in every if one.inbound}
    for one in every:
        if one.reason == Reason.PEER_REFUSED and (one.caller, one.callee, one.port) in told_by_callee:
            continue  # the same at its other end, where the reason is
        key = ("in" if one.inbound else "out", one.caller, one.callee, one.port, one.reason)
        groups.setdefault(key, []).append(one)
    found = sorted(
        ((_key(key), _group(shown.now, some)) for key, some in groups.items()),
        key=lambda one: (one[1]["kind"] == Kind.ATTACK, one[1]["last"] or ""),
        reverse=True,
    )
    told: Counter[str] = Counter()
    places = {}
    for id_, group in found:
        places[id_] = told[group["seen_by"]]
        told[group["seen_by"]] += 1
    kept = set(sorted(places, key=places.__getitem__)[:MOST])
    return {id_: group for id_, group in found if id_ in kept}


def alarms(shown: Shown) -> dict[str, dict[str, Any]]:
    """By their ids, as values that JSON can hold."""
    return {one.id: _alarm(one) for one in shown.alarms if one.id}


def _group(now: datetime, some: list[Refusal]) -> dict[str, Any]:
    newest = max(some, key=lambda one: one.last.timestamp() if one.last else 0.0)
    firsts = [one.first or one.last for one in some if one.first or one.last]
    kind = kind_of(newest)
    known = {
        "ADDRESS": newest.address,
        "HOST": newest.address.rpartition(":")[0],
        "CALLER": newest.caller,
        "SERVICE": newest.service,
        "TARGET": f"{newest.callee}:{newest.port}" if newest.port else newest.callee,
        "ID": newest.connection_id,
        "REASON": newest.reason,
    }
    return {
        "pair": id_of(newest.caller or STRANGERS, newest.callee),
        "from": newest.caller or STRANGERS,
        "to": newest.callee,
        "port": newest.port,
        "reason": newest.reason,
        "kind": str(kind),
        "verdict": verdict_of(newest),
        "recent": newest.last is not None and now - newest.last <= LATELY,
        "seen_by": newest.service,
        "address": newest.address,
        "count": sum(one.count for one in some),
        "first": iso(min(filter(None, firsts), default=None)),
        "last": iso(newest.last),
        "message": newest.message,
        "id": newest.connection_id,
        **_words(of_reason(newest.reason, "inbound" if newest.inbound else "outbound"), known),
    }


def _alarm(one: Alarm) -> dict[str, Any]:
    callee, _, port = one.upstream.partition(":")
    known = {
        "ADDRESS": one.address,
        "HOST": one.address.rpartition(":")[0],
        "SERVICE": one.service,
        "CALLER": one.service,
        "TARGET": one.upstream,
        "ID": one.connection_id,
        "REASON": one.reason,
    }
    words = _words(of_event(one.event), known)
    return {
        "pair": id_of(one.service, callee) if callee else "",
        "from": one.service,
        "to": callee,
        "port": port,
        "event": one.event,
        "reason": one.reason,
        "severe": one.severe,
        "address": one.address,
        "expected": one.expected,
        "presented": dict(one.presented),
        "count": one.count,
        "first": iso(one.first),
        "last": iso(one.last),
        "message": one.message,
        "reported_by": one.reported_by,
        "elsewhere": list(one.elsewhere),
        "id": one.connection_id,
        "says": one.next,
        **words,
    }


def _words(meaning: Meaning | None, known: Mapping[str, str]) -> dict[str, Any]:
    """The words of `sidecar explain`; none of a reason that this release does not know."""
    if meaning is None:
        return {"means": "", "causes": [], "steps": []}
    return {
        "means": meaning.means,
        "causes": [filled(text, known) for text in meaning.causes],
        "steps": [filled(text, known) for text in meaning.steps],
    }


def _key(parts: Iterable[str]) -> str:
    return sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:16]
