"""Callers that are not in the mesh: they come to the sidecars in plaintext, until a day. Pure.

How this works. :mod:`topology` puts an app's sidecar, under the app's names, on a network with the outsiders that could call
the app before. Here its ports there become listeners in ``mode: permissive``, and ``mesh.yaml`` gets the rule ``from:
plaintext`` for exactly these ports. Both end on one day: :data:`DAYS` after the first run that met an outsider there. It is
in the record of the last run, and no run moves it. A person moves it, in the rule, and the listener follows at the next run;
or by ``until`` in ``x-mesh``. Either moves the ports that it names, and no other.

Not seen are those who can reach the app itself: :func:`notes` names them beside each, because a port is strict only where
nobody passes its sidecar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from ipaddress import IPv4Network
from typing import Any

from sidecar.documents.days import parse_day
from sidecar.inject.facts import Facts, inbound_keys
from sidecar.inject.meshtext import Existing, Proposal
from sidecar.inject.subnets import first_fixed
from sidecar.inject.topology import Topology, app_alias, is_met
from sidecar.inject.visibility import App, shared_networks
from sidecar.policy.decide import decide
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import PLAINTEXT, Target

DAYS = 14

SERVER_FIRST = frozenset({21, 22, 25, 110, 119, 143, 587, 3306, 4190, 5900})
"""Ports of protocols in which the server speaks first: FTP, SSH, SMTP, POP3, NNTP, IMAP, MySQL, Sieve, VNC. ``server_first``
in ``x-mesh`` is for the others."""

Ports = Mapping[str, Mapping[str, int]]
"""The ports of each app, by their names in ``mesh.yaml``."""

Days = Mapping[str, Mapping[str, date]]
"""The last day of plaintext of each port that takes it, by app and name."""

Ways = Mapping[str, Mapping[int | None, Collection[str]]]
"""By app, what :func:`sidecar.inject.beside.ways_beside` found."""


def met(topology: Topology) -> list[str]:
    """The apps whose sidecars outsiders meet."""
    return [app for app in topology.slots if is_met(app, topology)]


def last_days(
    topology: Topology,
    before: Mapping[str, date],
    existing: Existing | None,
    facts: Mapping[str, Facts],
    ports: Ports,
    today: date,
) -> tuple[dict[str, dict[str, date]], dict[str, date]]:
    """The last day of plaintext of each port, by its name, of each app that outsiders meet: strict ports have none. And the
    days to record, those of apps that they no longer meet too. ``before`` are the recorded ones, ``existing`` is the present
    ``mesh.yaml``: its rules count once a person has edited it."""
    recorded = {**before, **{app: today + timedelta(days=DAYS) for app in met(topology) if app not in before}}
    mesh = existing.mesh if existing is not None and existing.edited else None
    found: dict[str, dict[str, date]] = {}
    for app in met(topology):
        found[app] = {}
        for name, number in ports[app].items():
            said = inbound_keys(facts[app], name, number) if app in facts else {}
            if said.get("mode") != "strict":
                ruled = max(_ruled(mesh, Target(app, name)), default=recorded[app])
                found[app][name] = _said(said) or ruled
    return found, dict(sorted(recorded.items()))


def ruled(days: Days, mesh: Mesh) -> dict[str, dict[str, date]]:
    """The days of the ports that a rule of ``mesh.yaml``, as it is written now, opens or has opened to plaintext. One whose
    rule a person removed is strict from now on."""
    return {
        app: {name: day for name, day in by_port.items() if any(True for _ in _ruled(mesh, Target(app, name)))}
        for app, by_port in days.items()
    }


def _said(keys: Mapping[str, Any]) -> date | None:
    try:
        return parse_day(str(keys["until"]))
    except (KeyError, ValueError):
        return None  # what is no day is told where the facts are checked


def _ruled(mesh: Mesh | None, target: Target) -> Iterator[date]:
    for rule in mesh.rules if mesh is not None else ():
        if (
            rule.action == "allow"
            and rule.mode == "enforce"
            and rule.until is not None
            and rule.fits(PLAINTEXT, target)
        ):
            yield rule.until


def proposals(topology: Topology, days: Days) -> tuple[Proposal, ...]:
    """A rule for each app that outsiders meet and each day, so that no port is open for longer than its own."""
    return tuple(
        Proposal(
            str(PLAINTEXT),
            tuple(f"{app}:{name}" for name in names),
            f"{', '.join(_whom(app, topology))}: not in the mesh",
            day,
        )
        for app, by_port in days.items()
        for day, names in _by_day(by_port).items()
    )


def _by_day(days: Mapping[str, date]) -> dict[date, list[str]]:
    found: dict[date, list[str]] = {}
    for name, day in days.items():
        found.setdefault(day, []).append(name)
    return found


def _whom(app: str, topology: Topology) -> list[str]:
    return sorted({it for plain in topology.plain if plain.app == app and plain.names for it in plain.outsiders})


def entries(
    app: str, topology: Topology, ports: Ports, subnets: Mapping[str, IPv4Network], days: Mapping[str, date]
) -> list[dict[str, Any]]:
    """The entries of ``inbound`` at which outsiders meet the app's sidecar: strict where a port has no day."""
    return [
        {
            "port": name,
            "listen": f"{first_fixed(subnets[plain.network])}:{number}",
            "device": "auto",
            "app": f"{app_alias(app)}:{number}",
            **(_taking_plaintext(number, days[name]) if name in days else {"mode": "strict"}),
        }
        for plain in topology.plain
        if plain.app == app and plain.names
        for name, number in ports[app].items()
    ]


def _taking_plaintext(number: int, day: date) -> dict[str, Any]:
    return {
        "mode": "permissive",
        "until": str(day),
        **({"server_first": True} if number in SERVER_FIRST else {}),
    }


def not_seen(ways: Ways) -> dict[str, list[str]]:
    """By app, the ways past its sidecar; those without any are left out."""
    found = {app: [way for them in by_port.values() for way in them] for app, by_port in sorted(ways.items())}
    return {app: them for app, them in found.items() if them}


def notes(
    topology: Topology,
    ports: Ports,
    days: Days,
    mesh: Mesh,
    ways: Ways,
    today: date,
    listening: Collection[str],
) -> Iterator[str]:
    """What to tell of outsiders, the most serious first. What holds of several services is one line. ``mesh`` is that of
    ``mesh.yaml`` as it is written now, ``listening`` are the outsiders that can be called."""
    unseen = not_seen(ways)
    groups: dict[tuple[tuple[str, ...], date], list[str]] = {}
    for app, by_port in days.items():
        let_in = {name: day for name, day in by_port.items() if day < today or _is_let_in(mesh, app, name, today)}
        for day, names in _by_day(let_in).items():
            whole = len(names) == len(ports[app])
            shown = [app] if whole else [f"{app}:{name}" for name in names]
            groups.setdefault((tuple(_whom(app, topology)), day), []).extend(shown)
    for (whom, day), apps in groups.items():
        them, come = ", ".join(whom), "come" if whom[1:] else "comes"
        if day < today:
            yield (
                f"plaintext to {', '.join(apps)} ended on {day}: {them} {'are' if whom[1:] else 'is'} refused there; "
                "`until` of the rule from plaintext, in mesh/mesh.yaml, gives it another day"
            )
        else:
            yield (
                f"{them} {come} to {', '.join(apps)} in plaintext, by {_its(apps)}, until {day} (UTC): `sidecar status "
                "--all` counts who does; then it is refused. `until` of the rule in mesh/mesh.yaml is yours to change"
            )
    alike: dict[tuple[str, date | None], list[str]] = {}
    for app in days:
        if app in unseen:
            alike.setdefault(("; ".join(unseen[app]), max(days[app].values(), default=None)), []).append(app)
    for (listed, last), apps in alike.items():
        see = "do not see" if apps[1:] else "does not see"
        after = f", also after {last}" if last is not None else ""
        yield f"{', '.join(apps)}: strict is not complete{after}: {_its(apps)} {see} who comes {listed}"
    past: dict[tuple[str, str], list[str]] = {}
    for plain in topology.plain:
        for outsider, why in plain.beside.items() if plain.app not in days else ():
            past.setdefault((outsider, why), []).append(plain.app)
    for (outsider, why), apps in past.items():
        names = list(dict.fromkeys(apps))
        yield f"{outsider} can reach {', '.join(names)} past {_its(names)}, not seen: {why}"
    parted: dict[str, list[str]] = {}
    for app, outsider in topology.parted:
        if outsider in listening:
            parted.setdefault(outsider, []).append(app)
    together: dict[tuple[str, ...], list[str]] = {}
    for outsider, apps in parted.items():
        together.setdefault(tuple(apps), []).append(outsider)
    for callers, called in together.items():
        does = "they do" if callers[1:] else "it does"
        yield (
            f"{', '.join(callers)} can no longer call {', '.join(called)}, as nothing says that {does}: if so, name that in "
            "`depends_on`"
        )


def shared_names(apps: Mapping[str, App], topology: Topology) -> Iterator[str]:
    """A sentence for each name that an app and an outsider share on a network which the app leaves."""
    for app in topology.slots:
        for outsider in sorted(it for it in topology.excluded if it in apps):
            one, other = apps[app].owner, apps[outsider].owner
            left = [it for it in shared_networks(apps[app], apps[outsider]) if (app, it) not in topology.stays]
            for name in sorted({name for it in left for name in {*one.names_on(it)} & {*other.names_on(it)}}):
                yield (
                    f"{app} and {outsider}, which is not in the mesh, share the name '{name}': Docker led to each in turn, "
                    "and now each caller is led to one of them alone; give them names of their own"
                )


def _is_let_in(mesh: Mesh, app: str, port: str, today: date) -> bool:
    return decide(mesh, PLAINTEXT, app, port, datetime.combine(today, time(), UTC)).allowed


def _its(apps: Collection[str]) -> str:
    """Of apps, or of their ports."""
    return "their sidecars" if len({app.partition(":")[0] for app in apps}) > 1 else "its sidecar"
