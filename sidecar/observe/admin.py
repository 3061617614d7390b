"""What the admin port answers: health, ``/status`` and ``/metrics``. It is read-only.

``/livez``: 200 while the process answers. ``/healthz`` and ``/readyz``: 200 while connections can succeed, else 503 with the
reasons. Any of these paths answers HEAD too. :mod:`sidecar.observe.local` says who may ask. A listen address other than
loopback is refused when sidecar.yaml is read. Of the mesh, those may ask for health and metrics whom a rule lets call
``mesh-admin`` (:mod:`sidecar.proxy.own_port`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from sidecar.observe import exposition
from sidecar.observe.catalogue import Numbers, families
from sidecar.observe.metrics import Metrics
from sidecar.transport.http1 import Handler, Request, Response, Routes


@dataclass(frozen=True, slots=True)
class Source:
    """The answers, and what they are made of: ``unwell`` returns why no new connection can succeed, a sentence each,
    ``draining`` whether the sidecar is, ``status`` the current status document, ``numbers`` the state in numbers,
    ``metrics`` holds the counters."""

    unwell: Callable[[], list[str]]
    draining: Callable[[], bool]
    status: Callable[[], dict[str, Any]]
    numbers: Callable[[], Numbers]
    metrics: Metrics

    def routes(self) -> dict[str, Mapping[str, Handler]]:
        return {
            "/livez": {"GET": self._livez},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/status": {"GET": self._status},
            "/metrics": {"GET": self._metrics},
        }

    def mesh_routes(self) -> Routes:
        """What ``mesh-admin`` answers: no status, which names addresses and people's mistakes. Each path is listed here, so
        that no new one is there by itself."""
        routes = self.routes()
        return {path: {"GET": routes[path]["GET"]} for path in ("/livez", "/healthz", "/readyz", "/metrics")}

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
        parts = []
        for family in families(self.metrics, self.numbers()):
            parts.append(exposition.text([family]))
            await trio.lowlevel.checkpoint()
        return Response(200, b"".join(parts), exposition.CONTENT_TYPE)
