"""The CA's metrics, for Prometheus. No label contains input of a caller, so the number of series is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from certs.protocol.catalogue import (
    ALARMS,
    BUILD,
    BUNDLE,
    DENIED,
    FOLLOWERS,
    HEALTHY,
    ISSUED,
    ISSUER,
    LIST,
    LISTED,
    POLICY,
    REFUSED,
    REPORTS,
    REQUESTS,
    ROOT,
    STORE,
)
from sidecar.observe import exposition
from sidecar.observe.exposition import Metric, Samples, one


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The state of a CA at one moment. Times are in seconds since 1970."""

    issuing_end: float
    root_end: float
    bundle: int
    list_version: int
    listed_at: float
    followers: int
    reports: int
    alarms: Mapping[tuple[str, str], int]
    healthy: bool
    release: str
    policy: str


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

    def text(self, now: Numbers) -> bytes:
        """All metrics, in Prometheus's text format."""
        return exposition.text(self._families(now))

    def _families(self, now: Numbers) -> Iterator[tuple[Metric, Samples]]:
        yield REQUESTS, self._requests
        yield ISSUED, self._issued
        yield DENIED, self._denied
        yield REFUSED, self._refused
        yield ISSUER, one(now.issuing_end)
        yield ROOT, one(now.root_end)
        yield BUNDLE, one(now.bundle)
        yield LIST, one(now.list_version)
        yield LISTED, one(now.listed_at)
        yield FOLLOWERS, one(now.followers)
        yield REPORTS, one(now.reports)
        yield ALARMS, now.alarms
        yield STORE, one(self._is_store_up)
        yield HEALTHY, one(now.healthy)
        yield BUILD, {(now.release,): 1}
        yield POLICY, {(now.policy,): 1}
