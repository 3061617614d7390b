"""Meshes for tests of the dashboard: what a CA shows, as documents, made of a few words; and a dashboard that shows them."""

from __future__ import annotations

import io
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from sidecar.dashboard.board import Board
from sidecar.dashboard.server import DashboardServer
from sidecar.dashboard.view import Watching
from sidecar.observe.logs import Log
from sidecar.observe.traffic import PLAINTEXT

NOW = datetime(2026, 11, 30, 9, tzinfo=UTC)
TOKEN = "the-token-of-a-test-which-is-long-enough"


def iso(at: datetime) -> str:
    return f"{at:%FT%TZ}"


def inbound(peer: str, port: str, opened: int, **more: Any) -> dict[str, Any]:
    """An edge of a report, of the sidecar that is called."""
    edge = {"direction": "inbound", "peer": peer, "port": port, "rule": f"{peer}-may", "opened": opened, "live": 0}
    edge |= {"ended": {}, "refused": {}, "to_app": 100 * opened, "from_app": 900 * opened}
    return edge | {"streams": opened, "reused": opened * 9 // 10, "opening_ms": 2 * opened, **more}


def in_plaintext(port: str, opened: int, **more: Any) -> dict[str, Any]:
    """The edge of those who speak plaintext to a permissive port."""
    return inbound(PLAINTEXT, port, opened, **({"streams": 0, "reused": 0} | more))


def outbound(to: str, opened: int, **more: Any) -> dict[str, Any]:
    """An edge of a report, of the sidecar that calls."""
    edge = {"direction": "outbound", "peer": to.partition(":")[0], "port": to, "rule": "", "opened": opened, "live": 0}
    edge |= {"ended": {}, "refused": {}, "to_app": 900 * opened, "from_app": 100 * opened}
    return edge | {"streams": opened, "reused": opened * 9 // 10, "opening_ms": 4 * opened, **more}


def refusal(reason: str, port: str, now: datetime = NOW, **more: Any) -> dict[str, Any]:
    """A group of refusals of a report, inbound if not told otherwise."""
    at = iso(now - timedelta(seconds=20))
    found = {"direction": "inbound", "port": port, "reason": reason, "address": "10.0.0.9:41000", "count": 3}
    return found | {"first": at, "last": at, "message": f"refused: {reason}", "connection_id": "0" * 16, **more}


def entry(
    service: str, now: datetime = NOW, *, late: float = 0, instance: str = "0" * 32, **said: Any
) -> dict[str, Any]:
    """What the CA shows of one sidecar. ``late``: seconds since its report. ``said``: what is unlike a healthy one's."""
    received = now - timedelta(seconds=late)
    report = {
        "version": 1,
        "release": "0.1.0",
        "at": iso(received),
        "started_at": iso(NOW - timedelta(hours=2)),
        "healthy": True,
        "unwell": [],
        "draining": False,
        "waiting": [],
        "policy": "0123456789ab",
        "bundle": 3,
        "reload_refused": [],
        "certificate": {
            "serial": "1f",
            "not_after": iso(now + timedelta(minutes=50)),
            "renews_at": iso(now + timedelta(minutes=20)),
        },
        "inbound": [],
        "outbound": [],
        "edges": [],
        "refusals": [],
        "alarms": [],
        "channels": {"idle": 1, "streams": 10, "reused": 9},
        "log_lost": 0,
    }
    return {
        "identity": f"spiffe://shop.internal/{service}",
        "instance": instance,
        "address": "10.0.0.2:40000",
        "serial": "1f",
        "received": iso(received),
        "fresh": late <= 20,
        "report": report | said,
    }


def shown(
    *entries: dict[str, Any], alarms: list[dict[str, Any]] | None = None, now: datetime = NOW, **ca: Any
) -> dict[str, Any]:
    """What the CA shows of a mesh."""
    own = {
        "trust_domain": "shop.internal",
        "services": [one["identity"].rpartition("/")[2] for one in entries],
        "issuing_until": iso(now + timedelta(days=80)),
        "root_until": iso(now + timedelta(days=3600)),
        "policy": "0123456789ab",
        "bundle": 3,
    }
    return {"now": iso(now), "ca": own | ca, "alarms": alarms or [], "reports": list(entries)}


def shop(now: datetime = NOW, calls: int = 100, **changes: dict[str, Any]) -> dict[str, Any]:
    """The shop of the demo, in which all is well. ``calls``: how often each was made. ``changes``: by service, what its
    report says otherwise."""
    said: dict[str, dict[str, Any]] = {
        "web": {
            "inbound": [{"port": "http", "may_call": ["gateway"]}],
            "outbound": [{"to": "api:http", "allowed": True}],
            "edges": [outbound("api:http", calls)],
        },
        "api": {
            "inbound": [{"port": "http", "may_call": ["web", "reporting"]}],
            "outbound": [{"to": "db:postgres", "allowed": True}, {"to": "cache:redis", "allowed": True}],
            "edges": [
                inbound("web", "http", calls, live=2),
                inbound("reporting", "http", calls // 20),
                outbound("db:postgres", calls // 2),
                outbound("cache:redis", 2 * calls),
            ],
        },
        "db": {
            "inbound": [{"port": "postgres", "may_call": ["api"]}],
            "edges": [inbound("api", "postgres", calls // 2, live=4)],
        },
        "cache": {
            "inbound": [{"port": "redis", "may_call": ["api"]}],
            "edges": [inbound("api", "redis", 2 * calls, live=1)],
        },
        "reporting": {
            "outbound": [{"to": "api:http", "allowed": True}],
            "edges": [outbound("api:http", calls // 20)],
        },
    }
    alarms = changes.pop("alarms", {}).get("current")
    return shown(
        *(entry(name, now, **(one | changes.get(name, {}))) for name, one in said.items()), alarms=alarms, now=now
    )


def denied(now: datetime = NOW) -> dict[str, Any]:
    """What db's report says of a caller that no rule allows."""
    message = "refused: db may not be called by reporting at port postgres: no rule allows it"
    return refusal("policy_denied", "postgres", now, peer="spiffe://shop.internal/reporting", message=message)


def mitm(now: datetime = NOW, **more: Any) -> dict[str, Any]:
    """An alarm: reporting answers in cache's place."""
    message = (
        "refused: api expected spiffe://shop.internal/cache at 10.0.0.7:6379 but met spiffe://shop.internal/reporting "
        "(valid, same CA): something answers in cache's place"
    )
    found: dict[str, Any] = {"id": "d0c301c08957f2ae", "event": "mitm_suspected", "severity": "alarm", "service": "api"}
    found |= {"upstream": "cache:redis", "reason": "unexpected_peer", "peer_address": "10.0.0.7:6379"}
    found |= {"expected": "spiffe://shop.internal/cache", "first": iso(now - timedelta(seconds=40))}
    found |= {"presented": {"subject": "CN=reporting", "sha256": "ab" * 32}, "count": 4, "message": message}
    found |= {"last": iso(now - timedelta(seconds=8)), "next": "find out who has the address 10.0.0.7:6379"}
    return found | {"connection_id": "9ff9410d905a0f96", "reported_by": "spiffe://shop.internal/api", **more}


def twin(now: datetime = NOW) -> dict[str, Any]:
    """An alarm: somebody else uses api's certificate."""
    message = (
        "a certificate of spiffe://shop.internal/api is in use at 10.0.0.66, and this sidecar has not asked for it"
    )
    found = mitm(now, id="77aa01c08957f2ae", event="identity_elsewhere", message=message, next="revoke it")
    return {name: value for name, value in found.items() if name not in ("upstream", "expected", "reason", "presented")}


def large(services: int = 30, pairs: int = 200, now: datetime = NOW, calls: int = 100, seed: int = 1) -> dict[str, Any]:
    """A mesh of many services and calls, the same for the same seed."""
    chosen = random.Random(seed)  # noqa: S311
    names = [f"service-{at:02}" for at in range(services)]
    wanted: set[tuple[int, int]] = set()
    while len(wanted) < pairs:
        a, b = sorted(chosen.sample(range(services), 2))
        if b - a < services // 2:
            wanted.add((a, b))
    edges: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for a, b in sorted(wanted):
        times = calls * chosen.randint(1, 9)
        edges[names[a]].append(outbound(f"{names[b]}:http", times))
        edges[names[b]].append(inbound(names[a], "http", times))
    return shown(*(entry(name, now, edges=some) for name, some in edges.items()), now=now)


class Shown:
    """A dashboard whose mesh a test makes."""

    def __init__(self, where: str, port: int = 0) -> None:
        self.board = Board()
        self.watching = Watching(where)
        self.log = io.StringIO()
        self.server = DashboardServer(self.board, Log(self.log, "json"), port, token=TOKEN)
        self.url = self.server.url
        self.origin = self.url.partition("/#")[0]

    def show(self, document: dict[str, Any], now: datetime = NOW) -> None:
        self.board.put(self.watching.take(document, now))


@asynccontextmanager
async def dashboard(where: str = "a test", port: int = 0) -> AsyncIterator[Shown]:
    one = Shown(where, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.server.run)
        yield one
        nursery.cancel_scope.cancel()
