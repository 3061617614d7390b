"""``inject``: from the input about an application to the text of every file. Pure.

The same input gives the same bytes, so ``--check`` can compare. Everything that differs between machines and days (the user,
the state directory, the addresses in use, the date) is part of the input and of the last run's record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from hashlib import sha256
from ipaddress import IPv4Network
from typing import Any

from sidecar.documents.problems import did_you_mean
from sidecar.identity.reasons import UsageError
from sidecar.inject import outsiders, scraping
from sidecar.inject.application import MARK, Application, ComposeService, read_application
from sidecar.inject.beside import told_who_calls, ways_beside
from sidecar.inject.clusters import cluster_references, find_clusters, told, with_clusters
from sidecar.inject.edges import Edge, Text, find_edges, find_mentions, find_static_references, find_subnet_mentions
from sidecar.inject.exclusions import ASKS_DOCKER, exclude, udp_beside
from sidecar.inject.facts import Place, known_ways, read_facts, refuse_contradictions, with_facts
from sidecar.inject.kept import Earlier, is_stale, keep, lets_in_more
from sidecar.inject.layout import layout_of, parse_override
from sidecar.inject.listening import is_worker, listening_ports
from sidecar.inject.meshtext import OBSERVE, Existing, edited_ports, mesh_text, observe_lasts, port_names, proposals
from sidecar.inject.options import Options, Record, record_line
from sidecar.inject.override import override_text
from sidecar.inject.picture import left_out, lost_networks, picture, warnings
from sidecar.inject.placement import readers_of, refuse_readable_state, writers_of
from sidecar.inject.ports import Port, infer_ports, settle
from sidecar.inject.published import Published, publish, published_network
from sidecar.inject.published import entries as published_entries
from sidecar.inject.published import notes as published_notes
from sidecar.inject.questions import require_ports, unreached
from sidecar.inject.references import exposed_ports
from sidecar.inject.subnets import Placement, Taken, dynamic_half, fixed_addresses, place, prefix_for
from sidecar.inject.topology import CA, MESH, OUT, Layout, Topology, lay_out, refuse_networks, sidecar_of
from sidecar.inject.visibility import App, find_apps, shared_networks
from sidecar.inject.wellknown import is_broker
from sidecar.inject.wiring import needs_of, numbers_at, wiring, wiring_path, wiring_text
from sidecar.policy.decide import decide

OVERRIDE = "compose.mesh.yaml"
MESH_DIRECTORY = "mesh"
MESH_FILE = f"{MESH_DIRECTORY}/mesh.yaml"

ROOM_FOR_SIDECARS, ROOM_FOR_CONTAINERS = 120, 60
"""What a network has room for at least, if ``--subnets`` is large enough: new services, and ``--scale``."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """``config`` is Compose's own JSON, ``texts`` and ``dockerfiles`` are by service, ``real`` resolves symlinks, ``image``
    is the fingerprint of the image's build context, ``places`` are where the ``x-mesh`` of each service is written.
    ``relayout`` chooses all networks anew, ``all_names`` gives every app the names of all that it can reach.
    ``earlier`` are the files of the last run; of its sidecars, those in ``upgrade`` get this version's image."""

    config: Any
    files: tuple[str, ...]
    texts: Mapping[str, tuple[Text, ...]]
    dockerfiles: Mapping[str, str]
    project: str
    real: Callable[[str], str]
    options: Options
    taken: tuple[Taken, ...]
    today: date
    image: str
    before: Record | None = None
    existing: Existing | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    relayout: bool = False
    all_names: bool = False
    earlier: Earlier | None = None
    upgrade: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Injection:
    """``files`` are texts by path in the project. Each of ``services`` needs an enrolment secret. ``kept`` are
    the services of the mesh that stay as another version of this program wrote them. ``lost`` are the names of
    the networks that services are no longer on."""

    files: Mapping[str, str]
    trust_domain: str
    services: tuple[str, ...]
    edges: tuple[Edge, ...]
    ports: Mapping[str, tuple[Port, ...]]
    topology: Topology
    placement: Placement
    picture: str
    kept: tuple[str, ...]
    lost: tuple[str, ...]
    warnings: tuple[str, ...]


def inject(inputs: Inputs) -> Injection:
    """Raises :class:`UsageError` for everything that the user must change first."""
    name, options = inputs.files[0], inputs.options
    application = read_application(inputs.config, name)
    if application.mark is not None:
        raise UsageError(f"{OVERRIDE} is among the files ({MARK}): name only those that it was made from")
    refuse_readable_state(application, options.state, inputs.project, inputs.real)
    apps = find_apps(application)
    facts = read_facts(inputs.config, apps, inputs.places, name)

    # Which app calls which, at which ports.
    texts = _with_configs(application, inputs.texts)
    mentions = find_mentions(application, apps, texts, inputs.dockerfiles)
    bases = {service: exposed_ports(text)[1] for service, text in inputs.dockerfiles.items()}
    clusters = find_clusters(application, apps, mentions, texts, bases)
    mentions = with_clusters(mentions, clusters, apps)
    excluded = exclude(apps, mentions, frozenset(options.only), bases)
    for app, it in facts.items():
        if not it.mesh:
            excluded.setdefault(app, f"says `mesh: false` ({it.place})")
    edited = edited_ports(inputs.existing)
    refuse_contradictions(facts, options.ports, edited, inputs.existing.text if inputs.existing is not None else "")
    _refuse_unknown(options.ports, apps, edited)
    said = {app: it.ports for app, it in facts.items() if it.ports is not None}
    given = {**options.ports, **{app: tuple(ports.values()) for app, ports in said.items()}}
    answers = {**given, **{app: tuple(ports.values()) for app, ports in edited.items()}}
    named = {apps[it.callee].owner.name for it in mentions}
    brokers = {app.name for app in apps.values() for it in app.members if _is_broker(it, bases)}
    consumers = {apps[it.caller].owner.name for it in mentions if it.callee in brokers and it.kind != "shared"}
    workers = _workers(application, inputs.dockerfiles, texts, named, consumers)
    listening = {
        service.name: listening_ports(service, inputs.dockerfiles.get(service.name, ""), texts.get(service.name, ()))
        for service in application.services.values()
        if service.name not in workers
    }
    ports = infer_ports(apps, mentions, inputs.dockerfiles, answers, listening)
    at_a_port = {apps[it.callee].owner.name for it in mentions if it.port is not None and it.kind != "shared"}
    jobs = {name for name in workers - at_a_port if not application.services[name].declared("tcp")}
    edges = settle(find_edges(mentions), ports, jobs)

    # The networks and their addresses.
    layout = inputs.before.layout if inputs.before is not None and not inputs.relayout else Layout()
    static = (*find_static_references(application, apps, texts), *cluster_references(clusters))
    is_foreseen = _foreseen(inputs, edges)
    calls = _why_called(edges, lasts=options.observe and observe_lasts(inputs.existing, inputs.today))
    topology = lay_out(application, apps, excluded, static, ports, layout, is_foreseen, calls)
    if not topology.slots:
        reasons = "\n".join(left_out(topology.excluded))
        raise UsageError(f"{name}: there are no two services that a mesh could connect\n{reasons}")
    inside = tuple(it for it in edges if _is_meshed(it, topology) or _comes_from_outside(it, apps, topology))
    require_ports(mentions, inside, ports, answers)
    names = {app: port_names(ports[app], edited.get(app, said.get(app))) for app in topology.slots}
    taken = {app: numbers_at(app, topology, names) for app in topology.slots}
    published = publish(options.publish_mesh, apps, names, topology.excluded, taken, options.publish)
    refuse_networks(application, {published_network(one.app) for one in published})
    placement = place(
        application.name,
        _sizes(apps, topology, published),
        options.subnets,
        inputs.taken,
        inputs.before.block if inputs.before is not None else None,
        _declared(application),
        layout.subnets,
    )
    addresses = fixed_addresses(placement.subnets[MESH], [*topology.slots, CA], layout.addresses)

    # The files.
    days_before = inputs.before.plaintext if inputs.before is not None else {}
    days, recorded = outsiders.last_days(topology, days_before, inputs.existing, facts, names, inputs.today)
    ways = {app: ways_beside(apps[app], apps, topology, options) for app in topology.slots}
    scrapers = [app for app in topology.slots if app in facts and facts[app].scrapes]
    written = mesh_text(
        _trust_domain(application.name, inputs.existing),
        names,
        ports if not edited else infer_ports(apps, mentions, inputs.dockerfiles, given, listening),
        (
            *proposals([it for it in inside if it.caller in topology.slots], names),
            *scraping.proposals(scrapers, topology.slots),
            *outsiders.proposals(topology, days),
        ),
        observe=options.observe,
        today=inputs.today,
        files=inputs.files,
        filename=MESH_FILE,
        existing=inputs.existing,
    )
    days = outsiders.ruled(days, written.mesh)
    if written.mesh.alarm is not None:
        refuse_networks(application, {OUT})
    digest = sha256(written.text.encode()).hexdigest()
    untouched = inputs.existing is None or not inputs.existing.edited
    mesh_sha256 = digest if untouched else inputs.before.mesh_sha256 if inputs.before is not None else ""
    # Also of what is gone: Docker keeps a network that the files no longer have, and could not give it another subnet.
    subnets = {**layout.subnets, **placement.subnets}
    laid_out = layout_of(topology, subnets, addresses, filter(layout.has_gateway, subnets))
    unseen = outsiders.not_seen(ways)
    record = Record(options, inputs.files, placement.block, mesh_sha256, written.proposed, laid_out, recorded, unseen)
    wirings: dict[str, str] = {}
    scrape: dict[str, str] = {}
    needs: dict[str, str] = {}
    told_callers: list[str] = []
    for app in topology.slots:
        at_host = [it for it in published if it.app == app]
        data = wiring(
            app, topology, names, placement.subnets, addresses[app], at_host, days.get(app), layout, application.name
        )
        if app in facts:
            strict = {entry["listen"] for entry in published_entries(at_host, placement.subnets)}
            strict |= {entry["listen"] for entry in data["inbound"] if app in days and "mode" not in entry}
            data = with_facts(data, facts[app], names, written.mesh, strict)
            known = known_ways(facts[app], app, names)
            told_callers += told_who_calls(apps[app], data, facts[app], names[app], ways[app], known)
        if callees := scraping.scraped(app, written.mesh, topology.slots, inputs.today):
            offered = scraping.listeners(app, callees, topology, names, placement.subnets, layout)
            data["outbound"] = [*data["outbound"], *offered]
            scrape[scraping.targets_path(app)] = scraping.targets_text(offered)
        wirings[app] = wiring_text(data)
        needs[app] = needs_of(data, facts[app].sidecar if app in facts else {}, is_foreseen)
    image = f"{application.name}-sidecar:{inputs.image}"
    override = override_text(
        application,
        apps,
        topology,
        placement,
        addresses,
        needs,
        options,
        image,
        inputs.files,
        record_line(record),
        posts_alarms=written.mesh.alarm is not None,
        published=published,
        layout=layout,
    )
    kept: tuple[str, ...] = ()
    wider: list[str] = []
    if inputs.earlier is not None and is_stale(inputs.earlier.override, image):
        older = {name: parse_override(text) for name, text in inputs.earlier.wirings.items()}
        met = {name: needs_of(data, {}, is_foreseen) for name, data in older.items()}
        override, kept = keep(override, inputs.earlier, met, inputs.upgrade, options.state)
        newer = {sidecar_of(app): parse_override(text) for app, text in wirings.items() if sidecar_of(app) in kept}
        wider = [name for name, data in newer.items() if lets_in_more(older[name], data)]
        wirings |= {app: inputs.earlier.wirings[sidecar_of(app)] for app in topology.slots if sidecar_of(app) in kept}
    files = {OVERRIDE: override, MESH_FILE: written.text}
    files |= {f"{MESH_DIRECTORY}/{wiring_path(app)}": text for app, text in wirings.items()}
    files |= {f"{MESH_DIRECTORY}/{path}": text for path, text in scrape.items()}
    readers = readers_of(application, options.state, inputs.project, inputs.real)
    writers = writers_of(application, inputs.project, inputs.real)
    plain = {name for name in topology.slots if workers.issuperset(it.name for it in apps[name].members)}
    quiet = {
        name
        for name in topology.slots
        if name in answers or name in plain or any(it.declared("udp") for it in apps[name].members)
    }
    silent = unreached(topology.slots, mentions, edges, ports, quiet, plain - answers.keys(), observe=options.observe)
    found = warnings(edges, apps, topology, options, readers, writers)
    return Injection(
        files=files,
        trust_domain=written.mesh.trust_domain,
        services=tuple(topology.slots),
        edges=edges,
        ports=ports,
        topology=topology,
        placement=placement,
        picture=picture(edges, topology, names),
        kept=kept,
        lost=lost_networks(application, topology),
        warnings=(
            *silent,
            *_kept_notes(kept, wider),
            *_layout_notes(inputs, topology, ports, placement),
            *found,
            *outsiders.notes(topology, names, days, written.mesh, ways, inputs.today, _listening(apps, ports)),
            *outsiders.shared_names(apps, topology),
            *published_notes(published),
            *told_callers,
            *told(clusters),
            *_subnet_notes(find_subnet_mentions(application, apps, texts), topology),
            *written.notes,
        ),
    )


def _kept_notes(kept: tuple[str, ...], wider: list[str]) -> Iterator[str]:
    if kept:
        shown = f"{kept[0]} keeps its image" if not kept[1:] else f"{kept[0]} and {len(kept) - 1} more keep their image"
        yield f"{shown} of another version of sidecar, and need not restart: `sidecar inject --upgrade` renews one by one"
    if wider:
        them, they, apps = ("them", "they take", "their apps'") if wider[1:] else ("it", "it takes", "its app's")
        yield (
            f"{', '.join(wider)}: until `sidecar inject --upgrade` renews {them}, {they} what comes by a gateway for {apps} "
            "calls: the host's own programs, and what arrives at published ports"
        )


def _layout_notes(
    inputs: Inputs, topology: Topology, ports: Mapping[str, tuple[Port, ...]], placement: Placement
) -> Iterator[str]:
    before = inputs.before.layout.subnets if inputs.before is not None else {}
    moved = [name for name, subnet in before.items() if placement.subnets.get(name, subnet) != subnet]
    if moved:
        yield (
            f"--relayout moves {len(moved)} network{'s' if moved[1:] else ''} ({', '.join(moved)}): this is an outage, "
            "because everything must be stopped for it: `docker compose down`, then `docker compose up -d`"
        )
    unseen: dict[str, list[str]] = {}
    for caller, callee in topology.hidden:
        if ports[callee]:
            unseen.setdefault(callee, []).append(caller)
    if unseen:
        listed = ", ".join(f"{callee} (to {', '.join(callers)})" for callee, callers in sorted(unseen.items()))
        yield f"added later, and unknown to older services that are not foreseen to call it: {listed}: --all-names tells all"
    rooms = {
        app: min(dynamic_half(placement.subnets[slot.network]).num_addresses - 1 for slot in slots)
        for app, slots in topology.slots.items()
    }
    narrow = [app for app, room in rooms.items() if room < ROOM_FOR_CONTAINERS]
    if narrow:
        shown = ", ".join(narrow[:3]) + (f" and {len(narrow) - 3} more" if narrow[3:] else "")
        yield (
            f"{shown}: room for {min(rooms[app] for app in narrow)} containers (--scale): --relayout, in a larger "
            "range (--subnets), gives more, and is an outage"
        )


def _subnet_notes(mentions: tuple[tuple[str, str, str], ...], topology: Topology) -> list[str]:
    return [
        f"{app}: {where} names the subnet of network {network}: calls from there now come from {app}'s sidecar"
        for app, network, where in mentions
        if app in topology.slots and (app, network) not in topology.stays
    ]


def _with_configs(application: Application, texts: Mapping[str, tuple[Text, ...]]) -> dict[str, tuple[Text, ...]]:
    """The texts of each service, and the inline configs that Compose mounts into it."""
    return {
        name: (*texts.get(name, ()), *(Text(label, text, "mounted") for label, text in inline))
        for name, inline in application.config_texts.items()
    }


def _foreseen(inputs: Inputs, edges: tuple[Edge, ...]) -> Callable[[str, str, int | None], bool]:
    """Whether a caller is foreseen to call a callee, at a port if one is given: by the application, or by a ``mesh.yaml``
    that a person edited."""
    called = {(edge.caller, edge.callee): edge.ports for edge in edges}
    mesh = inputs.existing.mesh if inputs.existing is not None and inputs.existing.edited else None
    now = datetime.combine(inputs.today, time(), UTC)

    def is_foreseen(caller: str, callee: str, port: int | None) -> bool:
        if inputs.all_names or inputs.options.observe:
            return True
        ports = called.get((caller, callee))
        if ports is not None and (port is None or not ports or port in ports):
            return True
        if mesh is None or not {caller, callee} <= mesh.services.keys():
            return False
        names = [name for name, number in mesh.services[callee].ports.items() if port in (None, number)]
        return any(decide(mesh, mesh.identity(caller), callee, name, now).allowed for name in names)

    return is_foreseen


def _why_called(edges: tuple[Edge, ...], *, lasts: bool) -> Callable[[str, str], str | None]:
    """Why an app must reach an outsider, if it must. ``lasts``: ``--observe`` lets everybody call everybody."""
    called = {(edge.caller, edge.callee) for edge in edges}
    perhaps = f"the app may call it, while the rule '{OBSERVE}' lasts" if lasts else None

    def why(app: str, outsider: str) -> str | None:
        return "the app calls it" if (app, outsider) in called else perhaps

    return why


def _is_broker(service: ComposeService, bases: Mapping[str, str]) -> bool:
    """By its image, or by its name where the image is the project's own."""
    return is_broker(bases.get(service.name, service.image)) or is_broker(service.name)


def _workers(
    application: Application,
    dockerfiles: Mapping[str, str],
    texts: Mapping[str, tuple[Text, ...]],
    named: Collection[str],
    consumers: Collection[str],
) -> frozenset[str]:
    """The services that are plainly workers or jobs. Others name those that are ``named``; ``consumers`` call a broker."""
    completing = {
        name
        for service in application.services.values()
        for name, dependency in service.depends_on.items()
        if dependency.condition == "service_completed_successfully"
    }
    return frozenset(
        name
        for name, service in application.services.items()
        if is_worker(
            service,
            dockerfiles.get(name, ""),
            texts.get(name, ()),
            completes=name in completing,
            named=name in named,
            consumes=name in consumers,
        )
    )


def _is_meshed(edge: Edge, topology: Topology) -> bool:
    both = edge.caller in topology.slots and edge.callee in topology.slots
    return both and not topology.is_plaintext(edge.caller, edge.callee)


def _listening(apps: Mapping[str, App], ports: Mapping[str, tuple[Port, ...]]) -> frozenset[str]:
    """The apps that can be called, by TCP or by UDP."""
    return frozenset(name for name, app in apps.items() if ports[name] or udp_beside(app))


def _comes_from_outside(edge: Edge, apps: Mapping[str, App], topology: Topology) -> bool:
    """Whether an outsider's call must lead to a port of a sidecar: so the port must be known."""
    reason = topology.excluded.get(edge.caller)
    if reason in (None, ASKS_DOCKER) or edge.callee not in topology.slots or udp_beside(apps[edge.callee]):
        return False
    shared = shared_networks(apps[edge.caller], apps[edge.callee])
    return any((edge.callee, network) not in topology.stays for network in shared)


def _refuse_unknown(
    given: Mapping[str, object], apps: Mapping[str, App], edited: Mapping[str, Mapping[str, int]]
) -> None:
    for name, numbers in given.items():
        if name not in apps:
            raise UsageError(
                f"--port: there is no service '{name}' with a network of its own{did_you_mean(name, apps)}"
            )
        if name in edited and tuple(edited[name].values()) != numbers:
            raise UsageError(f"--port: {MESH_FILE} was edited, and declares the ports of '{name}': change them there")


def _sizes(apps: Mapping[str, App], topology: Topology, published: tuple[Published, ...]) -> dict[str, tuple[int, int]]:
    """The prefix length of each network, with room for more services and containers, and the longest that will do."""
    sidecars = len(topology.slots) + 1
    found = {MESH: (prefix_for(max(ROOM_FOR_SIDECARS, 2 * sidecars), 1), prefix_for(sidecars, 1))}
    for name, slots in topology.slots.items():
        replicas = apps[name].owner.replicas
        size = prefix_for(1, max(ROOM_FOR_CONTAINERS, 2 * replicas)), prefix_for(1, replicas + 1)
        found |= {slot.network: size for slot in slots}
    found |= {published_network(one.app): (prefix_for(1, 1), prefix_for(1, 1)) for one in published}
    for plain in topology.plain:
        containers = sum(apps[name].owner.replicas for name in (plain.app, *plain.outsiders))
        room = max(ROOM_FOR_CONTAINERS, 2 * containers)
        found |= dict.fromkeys(plain.networks(), (prefix_for(1, room), prefix_for(1, containers + 1)))
    return found


def _declared(application: Application) -> list[Taken]:
    found = []
    for network in application.networks.values():
        for text in network.subnets:
            try:
                found.append(Taken(IPv4Network(text, strict=False), f"network {network.key}"))
            except ValueError:
                continue  # IPv6: none of the added networks is in it
    return found


def _trust_domain(project: str, existing: Existing | None) -> str:
    if existing is not None:
        return existing.mesh.trust_domain
    return (re.sub(r"[^a-z0-9-]+", "-", project.lower()).strip("-") or "app") + ".internal"
