"""The CA's metrics, for Prometheus. No label contains input of a caller, so the number of series is bounded."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from sidecar.observe import exposition
from sidecar.observe.exposition import Family, single


class Metrics:
    """The metrics of one CA."""

    def __init__(self) -> None:
        self._requests = Counter[tuple[str, ...]]()
        self._issued = Counter[tuple[str, ...]]()
        self._denied = Counter[tuple[str, ...]]()
        self._refused = Counter[tuple[str, ...]]()
        self._is_store_up = False

    def answered(self, path: str, status: int) -> None:
        self._requests[path, str(status)] += 1

    def issued(self, how: str) -> None:
        self._issued[how,] += 1

    def denied(self, reason: str) -> None:
        self._denied[reason,] += 1

    def refused(self, reason: str) -> None:
        self._refused[reason,] += 1

    def store_up(self, *, up: bool) -> None:
        self._is_store_up = up

    def text(self, issuing_not_after: datetime, bundle: int, followers: int) -> bytes:
        """All metrics, in Prometheus's text format."""
        return exposition.text(
            [
                Family("mesh_ca_requests_total", "counter", "Answers.", ("path", "status"), self._requests),
                Family(
                    "mesh_ca_issued_total",
                    "counter",
                    "Certificates, by how they were obtained.",
                    ("how",),
                    self._issued,
                ),
                Family("mesh_ca_denied_total", "counter", "Denials, by their reason.", ("reason",), self._denied),
                Family(
                    "mesh_ca_handshakes_refused_total",
                    "counter",
                    "Connections refused before any request.",
                    ("reason",),
                    self._refused,
                ),
                single(
                    "mesh_ca_issuing_not_after_seconds",
                    "gauge",
                    "When the issuing CA ends.",
                    issuing_not_after.timestamp(),
                ),
                single("mesh_ca_bundle_version", "gauge", "The newest trust bundle.", bundle),
                single("mesh_ca_followers", "gauge", "Sidecars that have polled this process.", followers),
                single("mesh_ca_store_up", "gauge", "1 while the store answers.", self._is_store_up),
            ]
        )
