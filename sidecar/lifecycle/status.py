"""``sidecar status``: a sidecar's identity, its end, permitted callers, live connections, the last refusals. Pure.

:func:`describe` makes the document that ``--json`` prints; :func:`as_text` formats it for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sidecar import __version__
from sidecar.config.sidecar_yaml import Config, Inbound
from sidecar.identity.spiffe import Svid
from sidecar.observe.alarms import alarm_lines
from sidecar.observe.metrics import Metrics
from sidecar.observe.plaintext import Caller
from sidecar.observe.traffic import Edge, Traffic
from sidecar.policy.decide import callers, decide
from sidecar.policy.ending import Ending
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import PLAINTEXT


@dataclass(frozen=True, slots=True)
class CurrentState:
    """The state at one moment, of a process that began at ``started_at``.

    ``live``: (direction, other end, port or target) of each connection that was let in.
    ``unwell``: the reasons why no connection succeeds now, a sentence each; empty if all is well. ``trust``: the versions of
    the CA's bundle and list; empty without a CA. ``strangers``: connections whose peer has not proved an identity yet, at
    most ``max_strangers``. ``log_lost``: lines. ``waiting``: the listeners that
    are not open yet, a sentence each. ``idle_channels``: kept, without a connection now. ``alarms``: as JSON, the one that
    was met last is last. ``ending``: calls that are refused soon, since a rule runs out. ``plaintext``: callers without
    TLS."""

    config: Config
    mesh: Mesh
    svid: Svid
    started_at: datetime
    live: Sequence[tuple[str, str, str]]
    unwell: Sequence[str]
    trust: Mapping[str, Any]
    draining: bool
    strangers: int
    max_strangers: int
    log_lost: int
    idle_channels: int = 0
    waiting: Sequence[str] = ()
    reload_refused: Sequence[str] = ()
    alarms: Sequence[Mapping[str, Any]] = ()
    ending: Sequence[Ending] = ()
    plaintext: Sequence[Caller] = ()


def describe(
    now: datetime, state: CurrentState, metrics: Metrics, who: Callable[[Mesh, str, str, datetime], list[str]] = callers
) -> dict[str, Any]:
    """The status as values that JSON can hold. ``who``: :func:`callers`, or what remembers its answers."""
    config, mesh, svid = state.config, state.mesh, state.svid
    live = Counter(state.live)
    return {
        "service": config.service,
        "identity": str(svid.id),
        "certificate_until": f"{svid.not_after:%FT%TZ}",
        "certificate_serial": f"{svid.serial:x}",
        "release": __version__,
        "started_at": f"{state.started_at:%FT%TZ}",
        "healthy": not state.unwell,
        "unwell": list(state.unwell),
        "draining": state.draining,
        "waiting": list(state.waiting),
        "policy": mesh.version,
        "reload_refused": list(state.reload_refused),
        "ending": [one.as_json() for one in state.ending],
        "trust": dict(state.trust),
        "inbound": [
            {
                "port": one.port,
                "listen": str(one.listen),
                "apps": [str(app) for app in one.apps],
                "may_call": _may_call(who(mesh, config.service, one.port, now), one, now),
                "mode": "permissive" if one.takes_plaintext(now) else "strict",
                "until": None if one.until is None else str(one.until),
                "tolerates_missing_close_notify": one.tolerate_missing_close_notify,
            }
            for one in config.inbound
        ],
        "outbound": [
            {
                "to": one.shown,
                "listen": str(one.listen),
                "peers": [str(peer) for peer in one.peers],
                "allowed": not one.ambiguous_with
                and decide(mesh, mesh.identity(config.service), one.service, one.port, now).allowed,
                "tolerates_missing_close_notify": one.tolerate_missing_close_notify,
            }
            for one in config.outbound
        ],
        "connected": [
            {"direction": direction, "peer": peer, "port": port, "connections": number}
            for (direction, peer, port), number in sorted(live.items())
        ],
        "ended": [
            {"direction": direction, "port": port, "decision": decision, "reason": reason, "connections": number}
            for (direction, port, decision, reason), number in sorted(metrics.ended.items())
        ],
        "edges": _edges(metrics.edges),
        "channels": {
            "idle": state.idle_channels,
            "streams": metrics.streams,
            "reused": metrics.reused,
        },
        "strangers": {"now": state.strangers, "limit": state.max_strangers},
        "log": {"folded": metrics.folded, "lost": state.log_lost},
        "alarms": list(state.alarms),
        "plaintext": [one.as_json() for one in state.plaintext],
        "refused_lately": [one.to_dict() for one in reversed(metrics.refusals)],
    }


def _may_call(found: list[str], port: Inbound, now: datetime) -> list[str]:
    """The callers that the policy lets in; plaintext only where the port takes it."""
    return found if port.takes_plaintext(now) else [one for one in found if one != str(PLAINTEXT)]


def _edges(edges: Mapping[Edge, Traffic]) -> list[dict[str, Any]]:
    """Who calls whom, the busiest first."""
    busiest = sorted(edges.items(), key=lambda one: (-one[1].opened - one[1].refused.total(), one[0]))
    return [
        {
            **edge._asdict(),
            "opened": traffic.opened,
            "opening_ms": round(traffic.opening * 1000),
            "live": traffic.live,
            "ended": {str(reason): number for reason, number in traffic.ended.items()},
            "refused": {str(reason): number for reason, number in traffic.refused.items()},
            "to_app": traffic.to_app,
            "from_app": traffic.from_app,
            "streams": traffic.streams,
            "reused": traffic.reused,
        }
        for edge, traffic in busiest
    ]


def as_text(status: Mapping[str, Any]) -> str:
    """The document of :func:`describe`, its text escaped already, as lines for people."""
    lines = [f"{status['service']}  {status['identity']}  certificate until {status['certificate_until']}"]
    lines += [f"  NOT WELL: {sentence}" for sentence in status["unwell"]]
    lines += [f"  waiting: {sentence}" for sentence in status.get("waiting", ())]  # an older sidecar does not tell
    if status["draining"]:
        lines.append("  draining: it ends as soon as no request is in flight")
    lines += [f"  REFUSED at the last reload: {sentence}" for sentence in status.get("reload_refused", ())]
    for one in status.get("ending", ()):
        day, rule = one["until"], one["rule"]
        lines.append(f"  ENDS SOON: {one['from']} -> {one['to']} is refused after {day}, when rule '{rule}' runs out")
    for one in status["inbound"]:
        if one.get("mode") == "permissive":  # an older sidecar does not tell
            told = (
                "who speaks it is cut then"
                if str(PLAINTEXT) in one["may_call"]
                else "no rule says `from: plaintext`, so it is refused"
            )
            lines.append(f"  PERMISSIVE: {one['port']} takes plaintext until {one['until']}; {told}")
    if version := status.get("policy"):
        lines.append(f"  policy version {version}")
    if status["trust"]:
        lines.append("  " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in status["trust"].items()))
    for alarm in status.get("alarms", ()):  # an older sidecar does not tell
        lines += alarm_lines(alarm)
    lines += _section(
        "inbound",
        (
            (
                f"{one['port']} on {one['listen']}",
                f"-> {', '.join(one['apps'])}",
                f"may call: {_listed(one['may_call'])}",
            )
            for one in status["inbound"]
        ),
    )
    lines += _section(
        "outbound",
        (
            (
                f"{one['to']} on {one['listen']}",
                f"-> {', '.join(one['peers'])}",
                "allowed" if one["allowed"] else "DENIED by the policy",
            )
            for one in status["outbound"]
        ),
    )
    lines += _section(
        "connected",
        ((one["direction"], one["peer"], one["port"], f"{one['connections']} open") for one in status["connected"]),
    )
    if plaintext := status.get("plaintext"):
        lines += _section("plaintext callers", (_plaintext_row(one) for one in plaintext))
    lines += _section(
        "refused lately",
        ((one["at"], one["direction"], one["reason"], _what_was_refused(one)) for one in status["refused_lately"]),
    )
    if status["refused_lately"]:
        lines.append("  `sidecar explain` says of each reason, and of each id, what it means and what to do")
    log, strangers = status.get("log", {}), status.get("strangers", {})  # an older sidecar does not tell
    if folded := log.get("folded"):
        lines.append(f"and {folded} strangers' connections, folded into summaries in the log")
    if (kept := status.get("channels", {})).get("streams"):
        lines.append(
            f"kept channels: {kept['idle']} idle now; {kept['reused']} of {kept['streams']} connections needed no handshake"
        )
    if now := strangers.get("now"):
        lines.append(f"strangers now: {now} of at most {strangers.get('limit')} connections without a proved identity")
    if lost := log.get("lost"):
        lines.append(f"{lost} lines of the log were LOST, since nobody read them or the disk was full")
    return "\n".join(lines)


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = list(rows)
    if not table:
        return [f"{title}: none"]
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    return [
        f"{title}:",
        *(
            "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ),
    ]


def _plaintext_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    name = f" ({one['name']})" if one["name"] else ""
    number = f"{one['count']} connection{'' if one['count'] == 1 else 's'}"
    return (
        one["port"],
        f"{one['address']}{name}",
        number,
        f"last {one['last']}",
        "let in" if one["allowed"] else "REFUSED",
    )


def _what_was_refused(one: Mapping[str, Any]) -> str:
    ending = f"(id {one['connection_id']})" if one.get("connection_id") else ""  # none before the peer's first message
    return " ".join(filter(None, (one["message"], ending)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
