"""The services of the mesh: how each is, when its certificate ends, what of it is unlike the others. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sidecar.dashboard.pairs import OTHER_CALLERS, PLAINTEXT, STRANGERS
from sidecar.dashboard.reading import Shown, Sidecar, iso

LATE = timedelta(minutes=3)
"""After so long past its time a renewal is late: a sidecar tries again within a minute, and reports each five seconds."""

WELL, UNWELL, DRAINING, SILENT = "well", "unwell", "draining", "silent"
UNKNOWN, OTHER, STRANGER = "unknown", "other", "stranger"
"""Without a report: a service of the mesh file, which must have one; somebody whom calls name (a person, a probe, another
mesh), of whom none is expected; and the nodes that stand for many."""

_CERTIFICATES = ("good", "unknown", "ends", "late", "over")


def services(shown: Shown, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name: every service that reports or is in the CA's mesh file, and whoever else is an end of a pair."""
    reports: dict[str, list[Sidecar]] = defaultdict(list)
    for sidecar in shown.sidecars:
        reports[sidecar.service].append(sidecar)
    ends = (one[end] for one in pairs.values() for end in ("from", "to"))
    names = dict.fromkeys([*shown.services, *reports, *ends])
    policy, bundle, release = _common(shown)
    found = {}
    for name in names:
        # A replica that is gone is told for an hour more: it does not count while another one is there.
        some = [one for one in reports[name] if one.fresh] or reports[name][-1:]
        if some:
            found[name] = _service(shown.now, name, some, policy, bundle, release)
        else:
            many = name in (STRANGERS, PLAINTEXT, OTHER_CALLERS)
            state = UNKNOWN if name in shown.services else STRANGER if many else OTHER
            found[name] = {"name": name, "state": state, "replicas": 0, **_NOTHING}
    return found


def _service(
    now: datetime, name: str, some: Sequence[Sidecar], policy: str, bundle: int | None, release: str
) -> dict[str, Any]:
    soonest = min(some, key=lambda one: one.not_after.timestamp() if one.not_after else float("inf"))
    drift = list(_drift(some, policy, bundle, release))
    return {
        "name": name,
        "identity": some[0].identity,
        "state": _state(some),
        "replicas": len(some),
        "sentences": list(dict.fromkeys(text for one in some for text in one.sentences)),
        "notes": list(dict.fromkeys(text for one in some for text in one.notes)),
        "heard": iso(max(one.received for one in some)),
        "not_after": iso(soonest.not_after),
        "renews_at": iso(soonest.renews_at),
        "certificate": max((certificate_state(now, one) for one in some), key=_CERTIFICATES.index),
        "policy": _each(one.policy for one in some),
        "bundle": _each(one.bundle for one in some),
        "release": _each(one.release for one in some),
        "drift": drift,
        "streams": sum(one.streams for one in some),
        "reused": sum(one.reused for one in some),
        "idle_channels": sum(one.idle_channels for one in some),
        "ports": _ports(some),
        "plaintext": [
            {
                "port": one.port,
                "address": one.address,
                "name": one.name,
                "count": one.count,
                "last": iso(one.last),
                "allowed": one.allowed,
            }
            for sidecar in some
            for one in sidecar.plaintext
        ],
        "log_lost": sum(one.log_lost for one in some),
        "cut": sum(one.cut for one in some),
    }


_NOTHING: Mapping[str, Any] = {
    "identity": "", "sentences": [], "notes": [], "heard": None, "not_after": None, "renews_at": None,
    "certificate": "unknown", "policy": "", "bundle": None, "release": "", "drift": [], "streams": 0, "reused": 0,
    "idle_channels": 0, "ports": [], "plaintext": [], "log_lost": 0, "cut": 0,
}  # fmt: skip


def _ports(some: Iterable[Sidecar]) -> list[dict[str, Any]]:
    """Each port once, with whoever may call it at any replica: permissive if it is at one of them."""
    found: dict[str, dict[str, Any]] = {}
    for port in (port for one in some for port in one.ports):
        new = {"name": port.name, "may_call": [], "permissive": False, "until": ""}
        told = found.setdefault(port.name, new)
        told["may_call"] = list(dict.fromkeys([*told["may_call"], *port.may_call]))
        told["permissive"] |= port.permissive
        told["until"] = max(told["until"], port.until)
    return list(found.values())


def _each(values: Iterable[Any]) -> Any:
    """What all replicas say, or what each of them says."""
    every = list(dict.fromkeys(values))
    return every[0] if len(every) == 1 else ", ".join("unknown" if one in ("", None) else str(one) for one in every)


def _state(some: Iterable[Sidecar]) -> str:
    states = [
        SILENT if not one.fresh else DRAINING if one.draining else WELL if one.healthy else UNWELL for one in some
    ]
    return max(states, key=(WELL, DRAINING, SILENT, UNWELL).index)


def certificate_state(now: datetime, one: Sidecar) -> str:
    """``good``: it is renewed in time. ``late``: it ought to be renewed by now. ``ends``: nothing says that it is renewed,
    and it has less than a day. ``over``."""
    if one.not_after is None:
        return "unknown"
    if one.not_after <= now:
        return "over"
    if one.renews_at is not None:
        return "late" if now - one.renews_at > LATE else "good"
    return "ends" if one.not_after - now < timedelta(days=1) else "good"


def _common(shown: Shown) -> tuple[str, int | None, str]:
    """The versions that count: the CA's, or else what most have."""
    fresh = [one for one in shown.sidecars if one.fresh]
    return (
        shown.policy or _most(one.policy for one in fresh) or "",
        _most(one.bundle for one in fresh if one.bundle is not None) if shown.bundle is None else shown.bundle,
        _most(one.release for one in fresh) or "",
    )


def _most(values: Iterable[Any]) -> Any:
    found = Counter(values).most_common(1)
    return found[0][0] if found else None


def _drift(some: Iterable[Sidecar], policy: str, bundle: int | None, release: str) -> Iterable[str]:
    for one in some:
        if one.policy and one.policy != policy:
            yield f"its policy is {one.policy}, and the mesh's is {policy}"
        if one.bundle is not None and one.bundle != bundle:
            yield f"its trust bundle is {one.bundle}, and the mesh's is {bundle}"
        if one.release != release:
            yield f"its release is {one.release or 'unknown'}, and most have {release}"
