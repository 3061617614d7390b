"""The CA's metrics, for Prometheus. No label contains input of a caller, so the number of series is bounded."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The metrics of one CA, in their own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("mesh_ca_requests", "Answers.", ["path", "status"], registry=self._registry)
        self._issued = Counter(
            "mesh_ca_issued", "Certificates, by how they were obtained.", ["how"], registry=self._registry
        )
        self._denied = Counter("mesh_ca_denied", "Denials, by their reason.", ["reason"], registry=self._registry)
        self._refused = Counter(
            "mesh_ca_handshakes_refused", "Connections refused before any request.", ["reason"], registry=self._registry
        )
        self._issuing = Gauge("mesh_ca_issuing_not_after_seconds", "When the issuing CA ends.", registry=self._registry)
        self._bundle = Gauge("mesh_ca_bundle_version", "The newest trust bundle.", registry=self._registry)
        self._followers = Gauge("mesh_ca_followers", "Sidecars that have polled this process.", registry=self._registry)
        self._store = Gauge("mesh_ca_store_up", "1 while the store answers.", registry=self._registry)

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def issued(self, how: str) -> None:
        self._issued.labels(how).inc()

    def denied(self, reason: str) -> None:
        self._denied.labels(reason).inc()

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def store_up(self, *, up: bool) -> None:
        self._store.set(int(up))

    def text(self, issuing_not_after: datetime, bundle: int, followers: int) -> bytes:
        """All metrics, in Prometheus's text format."""
        self._issuing.set(issuing_not_after.timestamp())
        self._bundle.set(bundle)
        self._followers.set(followers)
        return generate_latest(self._registry)
