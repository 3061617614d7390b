"""The report for the user: the calls and their protection, what is not in the mesh and why, what stays reachable. Pure.

Values of variables are never quoted, only the place where something was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized

from sidecar.inject.application import Application
from sidecar.inject.edges import Edge
from sidecar.inject.exclusions import udp_beside
from sidecar.inject.options import Options
from sidecar.inject.override import hidden_options
from sidecar.inject.topology import Topology
from sidecar.inject.visibility import App

Ports = Mapping[str, Mapping[str, int]]


def picture(edges: tuple[Edge, ...], topology: Topology, ports: Ports) -> str:
    """One line for each call: ``══►`` mutual TLS, ``──►`` plaintext. Who only starts after a service that listens on
    nothing, as after a job, does not call it."""
    rows = [_row(edge, topology, ports) for edge in edges if edge.bare or edge.ports or ports.get(edge.callee, True)]
    wide = max((len(caller) for caller, *_ in rows), default=0)
    right = max((len(callee) for _, _, callee, _ in rows), default=0)
    lines = [f"  {caller:{wide}} {arrow} {callee:{right}}  {where}".rstrip() for caller, arrow, callee, where in rows]
    silent = [name for name in topology.slots if all(name not in (edge.caller, edge.callee) for edge in edges)]
    if silent:
        lines.append(f"  {', '.join(silent)}: no call from {_them(silent)} or to {_them(silent)} was found")
    return "\n".join(lines)


def _row(edge: Edge, topology: Topology, ports: Ports) -> tuple[str, str, str, str]:
    numbers = [str(number) for number in ports.get(edge.callee, {}).values() if not edge.ports or number in edge.ports]
    callee = f"{edge.callee}:{','.join(numbers)}" if numbers else edge.callee
    plain = edge.caller not in topology.slots or edge.callee not in topology.slots
    arrow = "──►" if plain or topology.is_plaintext(edge.caller, edge.callee) else "══►"
    return edge.caller, arrow, callee, "; ".join(edge.where[:3]) + ("; …" if len(edge.where) > 3 else "")


def lost_networks(application: Application, topology: Topology) -> tuple[str, ...]:
    """The names of the networks that apps of the mesh are no longer on."""
    left = {
        key
        for name in topology.slots
        for key in application.services[name].networks
        if (name, key) not in topology.stays and key in application.networks
    }
    return tuple(sorted(application.networks[key].name for key in left))


def left_out(excluded: Mapping[str, str], what: str = "left out") -> Iterator[str]:
    """A line for each reason, with the services of which it holds."""
    together: dict[str, list[str]] = {}
    for name, reason in sorted(excluded.items()):
        together.setdefault(reason, []).append(name)
    for reason, names in together.items():
        is_, each = ("are", "each") if names[1:] else ("is", "it")
        yield f"{', '.join(names)} {is_} {what}: {each} {reason}"


def _stay_together(one: str, other: str, topology: Topology) -> bool:
    """Whether both are left out, or stay on a network, for the same reason: that is told of them together."""
    if topology.excluded.get(one, "") == topology.excluded.get(other):
        return True
    stays = topology.stays
    return any(stays.get((other, network)) == reason for (name, network), reason in stays.items() if name == one)


def _them(names: Sized) -> str:
    return "them" if len(names) > 1 else "it"


def _numbers(texts: Iterable[str]) -> str:
    numbers = list(texts)
    return f"port{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def warnings(
    edges: tuple[Edge, ...],
    apps: Mapping[str, App],
    topology: Topology,
    options: Options,
    readers: tuple[tuple[str, str], ...],
    writers: tuple[str, ...],
) -> Iterator[str]:
    """What the user must know of this mesh, the most serious first. What holds of several services is one line."""
    called = {(edge.caller, edge.callee) for edge in edges}
    yield from left_out(topology.excluded, "not in the mesh")
    pairs: dict[tuple[str, str], list[str]] = {}
    for (one, other), reason in topology.plaintext.items():
        if {(one, other), (other, one)} & called and not _stay_together(one, other, topology):
            first, second = (other, one) if other in topology.excluded else (one, other)
            pairs.setdefault((first, reason), []).append(second)
    for (first, reason), others in pairs.items():
        yield f"traffic between {first} and {', '.join(others)} stays plaintext: {reason}"
    staying: dict[tuple[str, str], list[str]] = {}
    for (name, network), reason in topology.stays.items():
        if name not in topology.excluded:
            staying.setdefault((network, reason), []).append(name)
    for (network, reason), names in staying.items():
        stay = "stay" if names[1:] else "stays"
        plain = "; traffic among them stays plaintext" if names[1:] else ""
        yield f"{', '.join(names)} {stay} on network {network}: {reason}{plain}"
    published = {
        name: [str(port.target) for port in apps[name].owner.published if not port.is_loopback]
        for name in topology.slots
        if options.publish == "keep"
    }
    opened = [name for name, ports in published.items() if ports]
    if opened:
        ports = _numbers(dict.fromkeys(port for name in opened for port in published[name]))
        yield (
            f"{', '.join(opened)}: reachable without the mesh at published {ports}: for whoever reaches this host, and for "
            "containers through the gateway of their networks (--publish loopback or --publish drop)"
        )
    for name in topology.slots:
        owner = apps[name].owner
        if owner.replicas > 1:
            yield f"{name}: its {owner.replicas} replicas share one sidecar; traffic among them is plaintext"
        for option in hidden_options(apps[name]):
            yield (
                f"{name}: logging.options.{option} is not copied to its sidecar: its log is kept here, 3 files of 10 MB"
            )
        udp = udp_beside(apps[name])
        if udp:
            yield f"{name}: services of the mesh can no longer reach its UDP {_numbers(map(str, udp))}"
        if len(apps[name].members) > 1:
            yield f"{', '.join(it.name for it in apps[name].members)} share one network namespace, so one identity: {name}"
        for member in apps[name].members:
            if member.has_docker_socket:
                yield f"{member.name} has the Docker socket, and with it full control of this machine"
            if member.external_links:
                yield f"{member.name}: its external_links lead out of the application and do not work in its private network"
    for name, path in readers:
        yield (
            f"{name} mounts {path}: if it runs as root, it can read the mesh's keys in {options.state}"
            + ("" if path == "/" else "; --state outside of it keeps them from it")
            + ("; if it can write there, it can change the policy and the Compose files" if name in writers else "")
        )
    for name in (it for it in writers if it not in dict(readers)):
        yield f"{name} mounts the project's directory: if it can write there, it can change the policy and the Compose files"
    for (name, word), (first, *all_) in topology.unclear.items():
        yield f"{name}: the name '{word}' led to {', '.join(sorted(set(all_)))}; now it leads to {first}"
