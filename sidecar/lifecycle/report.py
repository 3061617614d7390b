"""The report that a sidecar sends to its CA (:mod:`certs.protocol.report`), made from its status. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from certs.protocol.report import VERSION

MAX_PLAINTEXT = 50
"""Callers without TLS in a report, those that were let in first."""


def report_of(status: Mapping[str, Any], at: str) -> dict[str, Any]:
    """``status``: the document of :func:`sidecar.lifecycle.status.describe`. ``at``: the date and time (UTC)."""
    trust = status["trust"]
    return {
        "version": VERSION,
        "release": status["release"],
        "at": at,
        "started_at": status["started_at"],
        "healthy": status["healthy"],
        "unwell": status["unwell"],
        "draining": status["draining"],
        "waiting": status["waiting"],
        "policy": status["policy"],
        "bundle": int(trust["trust_bundle"]) if "trust_bundle" in trust else None,
        "list": trust.get("revocations_as_of"),
        "reload_refused": status["reload_refused"],
        "certificate": {
            "serial": status["certificate_serial"],
            "not_after": status["certificate_until"],
            "renews_at": trust.get("renews_at"),
        },
        "inbound": [{key: one[key] for key in ("port", "may_call", "mode", "until")} for one in status["inbound"]],
        "outbound": [{"to": one["to"], "allowed": one["allowed"]} for one in status["outbound"]],
        "edges": status["edges"],
        "refusals": grouped(status["refused_lately"]),
        "plaintext": status["plaintext"][:MAX_PLAINTEXT],
        "alarms": status["alarms"][::-1],  # what comes first is what is kept
        "channels": status["channels"],
        "ending": status["ending"],
        "strangers": status["strangers"]["now"],
        "log_lost": status["log"]["lost"],
    }


def grouped(refusals: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Refusals that are alike in one, with their number, the latest first. ``refusals``: as dictionaries, the latest first;
    of each group the latest one's address, message and connection are kept."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in refusals:
        key = tuple(one.get(name) for name in ("direction", "port", "upstream", "peer_id", "reason", "rule"))
        if (group := groups.get(key)) is not None:
            group["count"] += 1
            group["first"] = one["at"]
            continue
        found = {
            "direction": one["direction"],
            "port": one.get("upstream") if one["direction"] == "outbound" else one["port"],
            "reason": one["reason"],
            "peer": one.get("peer_id"),
            "address": one.get("peer_address") or one.get("client_address"),
            "count": 1,
            "first": one["at"],
            "last": one["at"],
            "message": one["message"],
            "connection_id": one.get("connection_id"),
        }
        groups[key] = {name: value for name, value in found.items() if value is not None}
    return list(groups.values())
