"""Every metric of a sidecar: its name, its labels, what it means, and where its numbers come from. Pure.

Bounded: labels hold names of our own configuration, of the policy, and of verified identities, which
:mod:`~sidecar.observe.traffic` bounds, and words of this program. What an unverified peer sent is in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from sidecar.identity.reasons import Reason
from sidecar.observe.exposition import Metric, Samples, one
from sidecar.observe.metrics import Metrics
from sidecar.observe.traffic import Edges, Traffic

MAX_RULES = 16
"""So many rules that allow everything are told."""

_EDGE = ("direction", "peer", "port", "rule")

OPENED = Metric("sidecar_connections_opened_total", "counter", _EDGE, "Connections that were let in.")
CLOSED = Metric("sidecar_connections_closed_total", "counter", (*_EDGE, "reason"), "Those of them that ended.")
REFUSED = Metric(
    "sidecar_connections_refused_total", "counter", (*_EDGE, "reason"), "Connections that were never let in."
)
LIVE = Metric("sidecar_live_connections", "gauge", _EDGE, "Connections that are open now.")
ENDED = Metric(
    "sidecar_connections_total",
    "counter",
    ("direction", "port", "decision", "reason"),
    "Connections that ended, let in or not: the sum of closed and refused.",
)
TO_APP = Metric("sidecar_to_app_bytes_total", "counter", _EDGE, "Bytes to the app, those of live connections too.")
FROM_APP = Metric(
    "sidecar_from_app_bytes_total", "counter", _EDGE, "Bytes from the app, those of live connections too."
)
STREAMS = Metric("sidecar_streams_total", "counter", _EDGE, "Connections opened on channels that are kept.")
REUSED = Metric("sidecar_streams_reused_total", "counter", _EDGE, "Those of them that needed no handshake.")
IDLE = Metric("sidecar_idle_channels", "gauge", (), "Kept channels without a connection now, at either end.")
HANDSHAKE = Metric(
    "sidecar_handshake_duration_seconds",
    "histogram",
    ("direction",),
    "From accept (inbound) or connect (outbound) to a verified peer. Failed handshakes are not in it.",
)
CONNECT = Metric(
    "sidecar_connect_duration_seconds",
    "histogram",
    ("direction",),
    "To reach the app (inbound) or a peer (outbound), its look-up included. Failures are not in it.",
)
LAG = Metric(
    "sidecar_loop_lag_seconds", "histogram", (), "How late a timer of each second was: what connections waited for."
)
STRANGERS = Metric("sidecar_strangers", "gauge", (), "Connections whose peer has not proved an identity.")
CPU = Metric("sidecar_cpu_seconds_total", "counter", (), "CPU time of the process.")
STARTED = Metric("sidecar_start_timestamp_seconds", "gauge", (), "When it began to serve.")
HEALTHY = Metric("sidecar_healthy", "gauge", (), "1 while new connections can succeed.")
DRAINING = Metric("sidecar_draining", "gauge", (), "1 while it ends.")
WAITING = Metric(
    "sidecar_waiting_listeners", "gauge", (), "Listeners that are closed until what is behind them answers."
)
FOLDED = Metric("sidecar_log_folded_total", "counter", (), "Connections that have no line of their own in the log.")
LOST = Metric("sidecar_log_lost_total", "counter", (), "Lines of the log that were lost.")
ALARMS = Metric(
    "sidecar_alarms_total",
    "counter",
    ("event", "severity"),
    "What may be an attack, each time. Severity `alarm`: look now; `notice`: probably honest.",
)
BUILD = Metric("sidecar_build_info", "gauge", ("release", "python", "openssl"), "1. What runs, in the labels.")
POLICY = Metric("sidecar_policy_info", "gauge", ("version",), "1. The version of the mesh file in force, in the label.")
RELOAD = Metric(
    "sidecar_reload_refused", "gauge", (), "Changed files that are refused, so that the last good ones count."
)
ALLOW_ALL = Metric(
    "sidecar_policy_allow_all_until_timestamp_seconds",
    "gauge",
    ("rule",),
    "When a rule in force that allows every service every port ends; +Inf if it never does.",
)
ENDING = Metric(
    "sidecar_policy_ending_calls",
    "gauge",
    (),
    "Callers and ports in use that are refused within a week, when the last rule that allows them runs out.",
)
PLAINTEXT_CALLERS = Metric(
    "sidecar_plaintext_callers",
    "gauge",
    ("port",),
    "Addresses that were let in without TLS within a week, by the permissive port: who is cut when it is strict.",
)
PERMISSIVE = Metric(
    "sidecar_permissive_until_timestamp_seconds",
    "gauge",
    ("port",),
    "When a permissive port refuses plaintext from.",
)
CERTIFICATE = Metric("sidecar_certificate_not_after_timestamp_seconds", "gauge", (), "When our certificate ends.")
RENEWAL = Metric("sidecar_certificate_renewal_timestamp_seconds", "gauge", (), "When the next renewal is due.")
OBTAINED = Metric("sidecar_certificates_obtained_total", "counter", (), "Certificates that the CA gave us.")
RENEWALS_FAILED = Metric(
    "sidecar_certificate_attempts_failed_total", "counter", (), "Attempts to obtain a certificate that failed."
)
FAILING = Metric("sidecar_certificate_failing", "gauge", (), "1 if the last attempt to obtain a certificate failed.")
BUNDLE = Metric("sidecar_bundle_version", "gauge", (), "The trust bundle in force.")
LIST = Metric("sidecar_revocation_list_version", "gauge", (), "The list of revocations in force.")
LISTED = Metric("sidecar_revocation_list_timestamp_seconds", "gauge", (), "When that list was signed.")
FRESH = Metric(
    "sidecar_revocation_list_fresh_until_timestamp_seconds",
    "gauge",
    (),
    "Until when that list lets new connections in.",
)

METRICS = (
    OPENED, CLOSED, REFUSED, LIVE, ENDED, TO_APP, FROM_APP, STREAMS, REUSED, IDLE, HANDSHAKE, CONNECT, LAG, STRANGERS, CPU,
    STARTED, HEALTHY, DRAINING, WAITING, FOLDED, LOST, ALARMS, BUILD, POLICY, RELOAD, ALLOW_ALL, ENDING, PLAINTEXT_CALLERS,
    PERMISSIVE, CERTIFICATE,
    RENEWAL, OBTAINED, RENEWALS_FAILED, FAILING, BUNDLE, LIST, LISTED, FRESH,
)  # fmt: skip
"""All, in the order in which they are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberNumbers:
    """What a CA's member knows. Times are in seconds since 1970; None: not yet."""

    renews_at: float | None = None
    obtained: int = 0
    failed: int = 0
    failing: bool = False
    bundle: int | None = None
    list_version: int | None = None
    listed_at: float | None = None
    fresh_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The state of a sidecar at one moment, beside what :class:`~sidecar.observe.metrics.Metrics` counts. Times are in
    seconds since 1970. ``member``: None if no CA issues our certificate. ``alarms``: by event and severity.
    ``allow_all``: the ends of the rules that allow everything, by name. ``ending``: calls
    that a rule which runs out will refuse. ``plaintext``: callers
    without TLS, and ``permissive`` the end, of each permissive port."""

    release: str
    python: str
    openssl: str
    started_at: float
    cpu_seconds: float
    healthy: bool
    draining: bool
    waiting: int
    strangers: int
    idle_channels: int
    log_lost: int
    alarms: Mapping[tuple[str, str], int]
    policy: str
    reload_refused: int
    certificate_end: float
    allow_all: Mapping[str, float] = field(default_factory=dict)
    ending: int = 0
    plaintext: Mapping[str, int] = field(default_factory=dict)
    permissive: Mapping[str, float] = field(default_factory=dict)
    member: MemberNumbers | None = None


def families(metrics: Metrics, now: Numbers) -> Iterator[tuple[Metric, Samples]]:
    """The metrics with their numbers. One at a time: a sidecar with many edges has thousands of numbers, and other tasks may
    run between two metrics."""
    edges = metrics.edges
    yield OPENED, _by_edge(edges, attrgetter("opened"))
    yield CLOSED, _by_reason(edges, attrgetter("ended"))
    yield REFUSED, _by_reason(edges, attrgetter("refused"))
    yield LIVE, _by_edge(edges, attrgetter("live"))
    yield ENDED, metrics.ended
    yield TO_APP, _by_edge(edges, attrgetter("to_app"))
    yield FROM_APP, _by_edge(edges, attrgetter("from_app"))
    yield STREAMS, _by_edge(edges, attrgetter("streams"))
    yield REUSED, _by_edge(edges, attrgetter("reused"))
    yield IDLE, one(now.idle_channels)
    yield HANDSHAKE, {(direction,): it for direction, it in metrics.handshakes.items()}
    yield CONNECT, {(direction,): it for direction, it in metrics.connects.items()}
    yield LAG, {(): metrics.lag}
    yield STRANGERS, one(now.strangers)
    yield CPU, one(now.cpu_seconds)
    yield STARTED, one(now.started_at)
    yield HEALTHY, one(now.healthy)
    yield DRAINING, one(now.draining)
    yield WAITING, one(now.waiting)
    yield FOLDED, one(metrics.folded)
    yield LOST, one(now.log_lost)
    yield ALARMS, now.alarms
    yield BUILD, {(now.release, now.python, now.openssl): 1}
    yield POLICY, {(now.policy,): 1}
    yield RELOAD, one(now.reload_refused)
    yield ALLOW_ALL, {(rule,): end for rule, end in list(now.allow_all.items())[:MAX_RULES]}
    yield ENDING, one(now.ending)
    yield PLAINTEXT_CALLERS, {(port,): number for port, number in now.plaintext.items()}
    yield PERMISSIVE, {(port,): end for port, end in now.permissive.items()}
    yield CERTIFICATE, one(now.certificate_end)
    if (member := now.member) is not None:
        yield RENEWAL, {(): member.renews_at}
        yield OBTAINED, one(member.obtained)
        yield RENEWALS_FAILED, one(member.failed)
        yield FAILING, one(member.failing)
        yield BUNDLE, {(): member.bundle}
        yield LIST, {(): member.list_version}
        yield LISTED, {(): member.listed_at}
        yield FRESH, {(): member.fresh_until}


def _by_edge(edges: Edges, number: Callable[[Traffic], int]) -> Samples:
    return {edge: number(traffic) for edge, traffic in edges.items()}


def _by_reason(edges: Edges, counts: Callable[[Traffic], Mapping[Reason, int]]) -> dict[Any, int]:
    return {(*edge, reason): number for edge, traffic in edges.items() for reason, number in counts(traffic).items()}
