"""Applications to inject, the real Compose to ask, and what must hold of every result.

A case is a directory: ``compose.yaml`` with whatever it mounts, and ``expected.yaml``, written by hand from reading it: who
calls whom, at which ports, what is not meshed, what is said. ``missed`` are calls that are there and cannot be found.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from sidecar.config.sidecar_yaml import CaIdentity, Config
from sidecar.config.wiring import load_config
from sidecar.inject.application import read_application
from sidecar.inject.composecli import Compose, find_compose
from sidecar.inject.injection import MESH_FILE, OVERRIDE, Injection, Inputs, inject
from sidecar.inject.kept import Earlier
from sidecar.inject.meshtext import Existing
from sidecar.inject.mounted import read_texts
from sidecar.inject.options import Options, read_record
from sidecar.inject.topology import CA, MESH, sidecar_of
from sidecar.inject.visibility import find_apps, neighbours
from sidecar.policy.decide import decide
from sidecar.policy.mesh import parse_mesh

CASES = Path(__file__).parent / "cases"
TODAY = date(2026, 11, 24)
NOW = datetime.combine(TODAY, time(), UTC)
OPTIONS = Options(state="/home/somebody/.local/state/sidecar/case", user="1000:1000")


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would change what Compose reads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("COMPOSE_", "DOCKER_"))}
    return kept | more


@cache
def compose() -> Compose:
    return find_compose(environment())


@dataclass(frozen=True)
class Case:
    """An application, and what is to be found in it."""

    name: str

    @property
    def path(self) -> Path:
        return CASES / self.name

    @property
    def expected(self) -> dict[str, Any]:
        return dict(yaml.safe_load((self.path / "expected.yaml").read_text()))

    def inputs(self, **changes: Any) -> Inputs:
        config = _config(self.path / "compose.yaml")
        read = read_texts(config, self.path)
        inputs = Inputs(
            config, ("compose.yaml",), read.texts, read.dockerfiles, str(self.path), str, OPTIONS, (), TODAY, "0"
        )
        return replace(inputs, **changes)


def all_cases() -> list[Case]:
    return [Case(path.name) for path in sorted(CASES.iterdir())]


@cache
def _config(path: Path) -> Any:
    return compose().config([path], environment())[0]


@cache
def outcome(case: Case) -> Injection:
    return inject(case.inputs())


def again(inputs: Inputs, first: Injection, mesh: str | None = None) -> Inputs:
    """The input of a second run, after ``mesh.yaml`` was left as it was, or became ``mesh``."""
    record = read_record(first.files[OVERRIDE], OVERRIDE)
    text = first.files[MESH_FILE] if mesh is None else mesh
    edited = sha256(text.encode()).hexdigest() != record.mesh_sha256
    existing = Existing(text, parse_mesh(text, MESH_FILE), edited, record.proposed)
    wirings = {sidecar_of(name): first.files[f"mesh/sidecars/{name}.yaml"] for name in first.services}
    earlier = Earlier(first.files[OVERRIDE], wirings)
    return replace(inputs, before=record, existing=existing, options=record.options, earlier=earlier)


def stanzas(injection: Injection) -> dict[str, str]:
    """The text of each service and network of the override, without comments."""
    found: dict[str, str] = {}
    text = re.sub(r"(?m)(^|(?<=[^\"] ))\s*# .*$", "", injection.files[OVERRIDE]) + "\n"
    for block in re.split(r"(?m)^(?=\w)", text):
        found |= {it.partition(":")[0].strip(' "'): it.strip() for it in re.split(r"(?m)^(?=  [\w\"])", block)[1:]}
    return found


def edge_texts(injection: Injection) -> list[str]:
    """``web -> api:8080``, a line a port."""
    found = []
    for edge in injection.edges:
        ports = edge.ports or [port.number for port in injection.ports[edge.callee]]
        found += [f"{edge.caller} -> {edge.callee}:{port}" for port in ports] or [f"{edge.caller} -> {edge.callee}"]
    return sorted(found)


def merged(injection: Injection, base: Path, directory: Path) -> Any:
    """What the real Compose makes of the application and the override together."""
    (directory / OVERRIDE).write_text(injection.files[OVERRIDE])
    return compose().config([base, directory / OVERRIDE], environment())[0]


@cache
def merged_case(case: Case) -> Any:
    """The same of a case as it is; asked of Compose once, and so not to be changed."""
    with tempfile.TemporaryDirectory() as directory:
        return merged(outcome(case), case.path / "compose.yaml", Path(directory))


def configs(injection: Injection, directory: Path) -> dict[str, Config]:
    """Every sidecar's configuration, read by the project's own parser from files."""
    for path, text in injection.files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    return {name: load_config(directory / f"mesh/sidecars/{name}.yaml", {}) for name in injection.services}


# -- what must hold, whatever the application. Each gives what breaks it. -----------------------------------------------


def shared_between_apps(injection: Injection, after: Mapping[str, Any]) -> list[str]:
    """Networks on which two apps of the mesh are, and are not listed as a pair in plaintext."""
    members: dict[str, set[str]] = {}
    for name in injection.services:
        for network in after["services"][name].get("networks") or {}:
            members.setdefault(network, set()).add(name)
    return [
        f"{network}: {one} and {other}"
        for network, names in members.items()
        for one in names
        for other in names
        if one < other and not injection.topology.is_plaintext(one, other)
    ]


def own_names_carried(inputs: Inputs, injection: Injection, after: Mapping[str, Any]) -> list[str]:
    """Names of an app that its own sidecar would answer to, where the app is, or where another app of the mesh is."""
    apps = find_apps(read_application(inputs.config, "compose.yaml"))
    broken = []
    for name in injection.services:
        for network, raw in after["services"][sidecar_of(name)]["networks"].items():
            near = {it for it in injection.services if network in (after["services"][it].get("networks") or {})}
            if near and network != MESH:
                broken += [f"{name}: {it}" for it in {*(raw or {}).get("aliases", ())} & apps[name].own_names()]
    return broken


def aliases_of(after: Mapping[str, Any], service: str, *, private: bool = True) -> set[str]:
    networks = after["services"][service]["networks"]
    return {
        alias
        for network, raw in networks.items()
        if (network != MESH) == private
        for alias in (raw or {}).get("aliases") or ()
    }


def edges_without_listener(
    inputs: Inputs, injection: Injection, after: Mapping[str, Any], wiring: Mapping[str, Config]
) -> list[str]:
    """Pairs that shared a network and are not left in plaintext, of which one cannot call a port of the other through its
    sidecar: the name leads to an address, and there the port leads to that service and no other, and to its sidecar. Where
    nothing says that it does call it, the port may be a refusal that names it."""
    broken = []
    called = {(edge.caller, edge.callee, port) for edge in injection.edges for port in edge.ports or [None]}
    apps = find_apps(read_application(inputs.config, "compose.yaml"))
    for caller in injection.services:
        for callee in neighbours(apps[caller], apps):
            if callee not in injection.services or injection.topology.is_plaintext(caller, callee):
                continue
            place = _address_of(callee, caller, after)
            for port in injection.ports[callee]:
                found = [
                    outbound
                    for outbound in wiring[caller].outbound
                    if (outbound.listen.host, outbound.listen.port) == (place, port.number)
                ]
                foreseen = {(caller, callee, port.number), (caller, callee, None)} & called
                if not foreseen and len(found) == 1 and found[0].ambiguous_with:
                    if callee not in found[0].shown.replace(":", " ").split():
                        broken.append(f"{caller} -> {callee}:{port.number} is refused without its name")
                    continue
                if (
                    [it.service for it in found] != [callee]
                    or found[0].ambiguous_with
                    or not _arrives(found[0].peers[0].host, callee, after, wiring)
                ):
                    broken.append(f"{caller} -> {callee}:{port.number}")
    return broken


def _address_of(name: str, caller: str, after: Mapping[str, Any]) -> str | None:
    """What the name leads to for the caller: the address, on a network of both, of the one that has it as an alias."""
    if sidecar_of(caller) not in after["services"]:
        networks = after["services"][sidecar_of(name)]["networks"].items()
        near = set(after["services"][caller]["networks"])
        own = [it["ipv4_address"] for key, it in networks if key in near and name in (it.get("aliases") or ())]
        return own[0] if own else None
    near = set(after["services"][caller]["networks"])
    found = [
        raw["ipv4_address"]
        for network, raw in after["services"][sidecar_of(caller)]["networks"].items()
        if network in near and name in (raw.get("aliases") or ())
    ]
    return found[0] if len(found) == 1 else None


def _arrives(peer: str, callee: str, after: Mapping[str, Any], wiring: Mapping[str, Config]) -> bool:
    """Whether a peer's name is the callee's sidecar on the mesh network, and that listens there."""
    networks = after["services"][sidecar_of(callee)]["networks"]
    at = networks[MESH]
    return peer in at["aliases"] and at["ipv4_address"] in {it.listen.host for it in wiring[callee].inbound}


def outsiders_without_way(
    inputs: Inputs, injection: Injection, after: Mapping[str, Any], wiring: Mapping[str, Config]
) -> list[str]:
    """Outsiders that shared a network with an app of the mesh, and can no longer call a port of it: its name leads neither
    to a listener of its sidecar that takes plaintext, nor to the app itself, which is said then."""
    broken = []
    apps = find_apps(read_application(inputs.config, "compose.yaml"))
    for app in injection.services:
        for outsider in {*neighbours(apps[app], apps)} - {*injection.services}:
            near = set(after["services"][outsider]["networks"])
            met = near & set(after["services"][app]["networks"])
            place = _address_of(app, outsider, after)
            listening = {
                it.listen.port for it in wiring[app].inbound if it.listen.host == place and it.mode == "permissive"
            }
            for port in injection.ports[app]:
                if port.number not in listening and not met:
                    broken.append(f"{outsider} -> {app}:{port.number}")
            told = [it for it in injection.warnings if (outsider in it and app in it and "see" in it) or "stay" in it]
            if met and not told:
                broken.append(f"{outsider} passes {app}'s sidecar, and nothing says so")
    return broken


def app_names_on_the_mesh(injection: Injection, after: Mapping[str, Any]) -> list[str]:
    """Who is on the mesh network and is no sidecar, and every alias there that is no ``<service>.mesh``."""
    allowed = {sidecar_of(name) for name in injection.services} | {CA}
    strangers = [
        name for name, raw in after["services"].items() if MESH in (raw.get("networks") or {}) and name not in allowed
    ]
    return strangers + [
        alias
        for name in injection.services
        for alias in aliases_of(after, sidecar_of(name), private=False)
        if alias != f"{name}.mesh"
    ]


def wrongly_decided(injection: Injection) -> list[str]:
    """Calls that the policy denies though the application makes them, and those that it allows though nothing says so."""
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    wanted = set()
    for edge in injection.edges:
        ports = edge.ports or [port.number for port in injection.ports[edge.callee]]
        wanted |= {(edge.caller, edge.callee, port) for port in ports}
    wrong = []
    for caller in injection.services:
        for callee in injection.services:
            for name, number in mesh.services[callee].ports.items():
                allowed = decide(mesh, mesh.identity(caller), callee, name, NOW).allowed
                plain = injection.topology.is_plaintext(caller, callee)
                if allowed != ((caller, callee, number) in wanted and not plain):
                    wrong.append(f"{caller} -> {callee}:{number}: {'allowed' if allowed else 'denied'}")
    return wrong


def values_in_comments(inputs: Inputs, injection: Injection) -> list[str]:
    """Values of variables, of four characters or more, that stand in a comment or in what is said."""
    values = {
        value
        for raw in inputs.config["services"].values()
        for value in (raw.get("environment") or {}).values()
        if value and len(value) > 3
    }
    said = [injection.picture, *injection.warnings]
    for text in injection.files.values():
        said += re.findall(r"(?:^|\s)#.*$", text, re.MULTILINE)
    names = "|".join(map(re.escape, inputs.config["services"]))
    telling = {value for value in values if not re.fullmatch(rf"(?:{names})?:?\d*", value)}
    return [value for value in telling for text in said if value in text]


def held_by_another(injection: Injection, after: Mapping[str, Any], wiring: Mapping[str, Config]) -> list[str]:
    """Mounts of keys and secrets (the state) that are not the container's own, or could be written to, and sidecars whose
    secret is in no mounted directory: a mounted file is never replaced. No container gets a secret otherwise."""
    wrong = []
    for name, service in after["services"].items():
        state = {
            mount["source"].removeprefix(OPTIONS.state).strip("/"): mount
            for mount in service.get("volumes") or ()
            if mount["type"] == "bind" and f"{mount['source']}/".startswith(f"{OPTIONS.state}/")
        }
        app = next((app for app in injection.services if sidecar_of(app) == name), None)
        own = {"trust", f"enrolment/{app}", f"sidecars/{app}"} if app else {"ca"} if name == CA else set()
        written = {source for source, mount in state.items() if not mount.get("read_only")}
        if state.keys() != own or written != {source for source in own if source in ("ca", f"sidecars/{app}")}:
            wrong.append(f"{name}: {sorted(state)}, writes {sorted(written)}")
        if app and str(_enrolment(wiring[app]).parent) != state.get(f"enrolment/{app}", {}).get("target"):
            wrong.append(f"{name}: reads {_enrolment(wiring[app])}")
        if (app or name == CA) and service.keys() & {"secrets", "configs", "volumes_from", "env_file"}:
            wrong.append(f"{name}: {sorted(service)}")
    return wrong


def _enrolment(config: Config) -> Path:
    assert isinstance(config.identity, CaIdentity)
    assert config.identity.enrolment is not None
    return config.identity.enrolment


def overlapping(injection: Injection) -> list[str]:
    subnets = list(injection.placement.subnets.items())
    return [
        f"{one} {other}"
        for index, (one, subnet) in enumerate(subnets)
        for other, further in subnets[index + 1 :]
        if subnet.overlaps(further)
    ]


def report() -> Iterator[str]:
    """Edges found of edges there, and ports inferred of ports needed, a line a case and the sum."""
    total = [0, 0, 0, 0]
    for case in all_cases():
        expected, injection = case.expected, outcome(case)
        there = {*expected["edges"], *expected.get("missed", [])}
        found = there & set(edge_texts(injection))
        needed = {edge.partition(" -> ")[2] for edge in there if ":" in edge and _callee(edge) in injection.services}
        known = {f"{name}:{port.number}" for name, ports in injection.ports.items() for port in ports} & needed
        numbers = [len(found), len(there), len(known), len(needed)]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        yield _line(case.name, numbers)
    yield _line("in all", total)


def _callee(edge: str) -> str:
    return edge.partition(" -> ")[2].partition(":")[0]


def _line(name: str, numbers: list[int]) -> str:
    return "{:24} edges {:3} of {:3}   ports {:3} of {:3}".format(name, *numbers)
