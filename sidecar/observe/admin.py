"""What the admin port answers: health, ``/status`` and ``/metrics``. It is read-only.

``/livez``: 200 while the process answers. ``/healthz`` and ``/readyz``: 200 while connections can succeed, else 503 with the
reasons. Any of these paths answers HEAD too. :mod:`sidecar.observe.local` says who may ask. A listen address other than
loopback is refused when sidecar.yaml is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sidecar.observe import exposition
from sidecar.observe.exposition import Family, single
from sidecar.observe.metrics import Metrics
from sidecar.observe.traffic import Edges, Traffic
from sidecar.transport.http1 import Handler, Request, Response


@dataclass(frozen=True, slots=True)
class Source:
    """The answers, and what they are made of: ``unwell`` returns why no new connection can succeed, a sentence each,
    ``draining`` whether the sidecar is, ``status`` the current status document, ``metrics`` holds the counters."""

    unwell: Callable[[], list[str]]
    draining: Callable[[], bool]
    status: Callable[[], dict[str, Any]]
    metrics: Metrics

    def routes(self) -> dict[str, Mapping[str, Handler]]:
        return {
            "/livez": {"GET": self._livez},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/status": {"GET": self._status},
            "/metrics": {"GET": self._metrics},
        }

    async def _livez(self, _request: Request) -> Response:
        return Response.of(200, {"live": True})

    async def _healthz(self, _request: Request) -> Response:
        unwell = self._why_unwell()
        return Response.of(503 if unwell else 200, {"healthy": not unwell, "unwell": unwell})

    async def _readyz(self, _request: Request) -> Response:
        unwell = self._why_unwell()
        return Response.of(503 if unwell else 200, {"ready": not unwell, "unwell": unwell})

    def _why_unwell(self) -> list[str]:
        """Why no new connection can succeed, a sentence each."""
        return [*self.unwell(), *(["it is draining"] if self.draining() else [])]

    async def _status(self, _request: Request) -> Response:
        return Response.of(200, self.status())

    async def _metrics(self, _request: Request) -> Response:
        text = exposition.text(families(self.metrics, self.status()))
        return Response(200, text, exposition.CONTENT_TYPE)


def families(metrics: Metrics, status: Mapping[str, Any]) -> list[Family]:
    """The metrics, as Prometheus reads them. ``status``: the current status document."""
    ended, port = ("direction", "port", "decision", "reason"), ("direction", "port")
    lost, strangers, healthy = status["log"]["lost"], status["strangers"]["now"], status["healthy"]
    edges = metrics.edges
    return [
        Family("sidecar_connections_total", "counter", "Connections that ended.", ended, metrics.ended),
        Family(
            "sidecar_bytes_to_app_total", "counter", "Bytes sent to the app.", port, _sums(edges, attrgetter("to_app"))
        ),
        Family(
            "sidecar_bytes_from_app_total",
            "counter",
            "Bytes received from the app.",
            port,
            _sums(edges, attrgetter("from_app")),
        ),
        Family(
            "sidecar_live_connections", "gauge", "Connections that are open now.", port, _by_port(status["connected"])
        ),
        Family(
            "sidecar_streams_total",
            "counter",
            "Connections on channels that are kept.",
            port,
            _sums(edges, attrgetter("streams")),
        ),
        Family(
            "sidecar_streams_reused_total",
            "counter",
            "Those that needed no handshake.",
            port,
            _sums(edges, attrgetter("reused")),
        ),
        single("sidecar_idle_channels", "gauge", "Kept channels without a connection now.", status["channels"]["idle"]),
        single(
            "sidecar_log_folded_total",
            "counter",
            "Connections that have no line of their own in the log.",
            metrics.folded,
        ),
        single("sidecar_log_lost_total", "counter", "Lines of the log that were lost.", lost),
        single("sidecar_strangers", "gauge", "Connections whose peer has not proved an identity.", strangers),
        single("sidecar_healthy", "gauge", "1 while connections can succeed.", healthy),
    ]


def _sums(edges: Edges, number: Callable[[Traffic], int]) -> dict[tuple[str, str], int]:
    """A number of each edge, as sums by (direction, port)."""
    found: dict[tuple[str, str], int] = {}
    for edge, traffic in edges.items():
        key = (edge.direction, edge.port)
        found[key] = found.get(key, 0) + number(traffic)
    return found


def _by_port(connected: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for one in connected:
        key = (one["direction"], one["port"])
        found[key] = found.get(key, 0) + one["connections"]
    return found
