"""Lines of an access log, as sidecars write them."""

from __future__ import annotations

from typing import Any

from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord

AT = "2026-06-01T10:00:00Z"
DOMAIN = "shop.internal"


def inbound(caller: str, target: str, *, time: str | None = AT, domain: str = DOMAIN, **changes: Any) -> dict[str, Any]:
    """The callee's line of a connection that the rule ``observe`` let in."""
    service, _, port = target.partition(":")
    record = ConnectionRecord(
        "inbound", service, port, 0.0, peer_id=f"spiffe://{domain}/{caller}", upstream="127.0.0.1:1"
    )
    return _line(record, time, changes)


def outbound(
    caller: str, target: str, *, time: str | None = AT, domain: str = DOMAIN, **changes: Any
) -> dict[str, Any]:
    """The caller's line of the same."""
    service, _, port = target.partition(":")
    record = ConnectionRecord("outbound", caller, port, 0.0, peer_id=f"spiffe://{domain}/{service}", upstream=target)
    return _line(record, time, changes)


def plaintext(target: str, **changes: Any) -> dict[str, Any]:
    """The callee's line of a connection without TLS that a rule let in."""
    return inbound("x", target, peer_id=None, plaintext=True, **changes)


def _line(record: ConnectionRecord, time: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    record.decision, record.rule = "allow", "observe"
    record.end(Reason.OK)
    return {"time": time, "level": "info", "event": "connection", **record.finish(0.1), **changes}
