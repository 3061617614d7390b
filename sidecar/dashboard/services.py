"""The services of the mesh: how each is, when its certificate ends, what of it is unlike the others. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sidecar.dashboard.pairs import PLAINTEXT, STRANGERS
from sidecar.dashboard.reading import Shown, Sidecar

LATE = timedelta(minutes=3)
"""After so long past its time a renewal is late: a sidecar tries again within a minute, and reports each five seconds."""

WELL, UNWELL, DRAINING, SILENT, UNKNOWN, STRANGER = "well", "unwell", "draining", "silent", "unknown", "stranger"


def services(shown: Shown, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name: every service that reports, is in the CA's mesh file, or is an end of a pair."""
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
        found[name] = _service(shown.now, name, some, policy, bundle, release)
    return found


def _service(
    now: datetime, name: str, some: Sequence[Sidecar], policy: str, bundle: int | None, release: str
) -> dict[str, Any]:
    if not some:
        stranger = name in (STRANGERS, PLAINTEXT)
        return {"name": name, "state": STRANGER if stranger else UNKNOWN, "replicas": 0, **_NOTHING}
    soonest = min(some, key=lambda one: one.not_after.timestamp() if one.not_after else float("inf"))
    drift = list(_drift(some, policy, bundle, release))
    return {
        "name": name,
        "identity": some[0].identity,
        "state": _state(some),
        "replicas": len(some),
        "sentences": list(dict.fromkeys(text for one in some for text in one.sentences)),
        "heard": f"{max(one.received for one in some):%FT%TZ}",
        "not_after": _iso(soonest.not_after),
        "renews_at": _iso(soonest.renews_at),
        "certificate": certificate_state(now, soonest),
        "policy": some[0].policy,
        "bundle": some[0].bundle,
        "release": some[0].release,
        "drift": drift,
        "streams": sum(one.streams for one in some),
        "reused": sum(one.reused for one in some),
        "idle_channels": sum(one.idle_channels for one in some),
        "ports": [
            {"name": port.name, "may_call": list(port.may_call), "permissive": port.permissive, "until": port.until}
            for port in some[0].ports
        ],
        "plaintext": [
            {
                "port": one.port,
                "address": one.address,
                "name": one.name,
                "count": one.count,
                "last": _iso(one.last),
                "allowed": one.allowed,
            }
            for sidecar in some
            for one in sidecar.plaintext
        ],
        "log_lost": sum(one.log_lost for one in some),
        "cut": sum(one.cut for one in some),
    }


_NOTHING: Mapping[str, Any] = {
    "identity": "", "sentences": [], "heard": None, "not_after": None, "renews_at": None, "certificate": "unknown",
    "policy": "", "bundle": None, "release": "", "drift": [], "streams": 0, "reused": 0, "idle_channels": 0, "ports": [],
    "plaintext": [], "log_lost": 0, "cut": 0,
}  # fmt: skip


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
        return "late" if one.renews_at + LATE < now else "good"
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


def _iso(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%FT%TZ}"
