"""``x-mesh``: what a Compose file itself says for the mesh. Pure.

Facts, never rules: the ports of a service, whether it is in the mesh, whether it reads the metrics of the others' sidecars,
and keys of its own sidecar's ``sidecar.yaml``. Who may
call whom is in ``mesh.yaml`` alone. ``x-mesh`` at the top level holds defaults for all services; a service's own keys take
precedence. A fact that contradicts ``--port`` or an edited ``mesh.yaml`` is a :class:`UsageError` that names both.

How this works. The keys of ``sidecar`` are those of ``sidecar.yaml``, whatever that has: they are merged into the file that
``inject`` writes, and the whole is checked by its own parser. Only the keys that the wiring consists of (:data:`OURS`) are
refused. The entries of ``inbound`` are named by a port, those of ``outbound`` by a callee or one of its ports, or ``"*"``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate
from typing import Annotated, Any

import yaml

from sidecar.documents.document import DataPath, Document
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.documents.schema import Before, Shape, fit, frozen, nothing_is_empty
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.inject.visibility import App
from sidecar.policy.mesh import Mesh
from sidecar.policy.mesh_yaml import Ports

KEY = "x-mesh"
OURS: Mapping[str, tuple[str, ...]] = {
    "": ("service", "mesh", "identity", "admin"),
    "inbound": ("port", "listen", "app", "device"),
    "outbound": ("to", "listen", "peers", "allow_from", "device", "ambiguous_with"),
}
"""The keys of ``sidecar.yaml`` that ``inject`` writes: at the top, and in each entry of the two lists."""

KNOWS = "i_know"
"""In an entry of ``inbound``: a person knows that the app can be reached at this port beside its sidecar. No key of
``sidecar.yaml``."""

_PLAINTEXT = ("mode", "until", "server_first")
_DEEPEST = 8
_RULES = ("calls", "policy", "allow", "from", "to")


def _numbers_are_names(value: Any) -> Any:
    """``[8080, 9090]`` are two ports that are named by their numbers."""
    return {str(number): number for number in value} if isinstance(value, list) else value


@frozen(kw_only=True)
class _Shape(Shape):
    ports: Annotated[Ports, Before(_numbers_are_names, Any)] | None = None
    mesh: bool | None = None
    scrapes: bool | None = None
    sidecar: Annotated[dict[str, Any], Before(nothing_is_empty, Any)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an ``x-mesh`` is written: the lines of its parts in a file."""

    filename: str
    lines: Mapping[DataPath, int]

    def __str__(self) -> str:
        return f"{self.filename}:{self.lines[()]}"


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about one app. ``ports`` by name; None if nothing is said of them. ``scrapes``: it reads the metrics of the
    sidecars."""

    place: Place
    ports: Mapping[str, int] | None = None
    mesh: bool = True
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    scrapes: bool = False

    @property
    def numbers(self) -> tuple[int, ...] | None:
        return None if self.ports is None else tuple(dict.fromkeys(self.ports.values()))


def declares_ports(config: Mapping[str, Any], service: str) -> bool:
    said = config["services"].get(service, {}).get(KEY)
    return isinstance(said, dict) and said.get("ports") is not None


def has_facts(config: Mapping[str, Any]) -> bool:
    return KEY in config or any(KEY in service for service in config["services"].values())


def read_facts(
    config: Mapping[str, Any], apps: Mapping[str, App], places: Mapping[str, Place], filename: str
) -> dict[str, Facts]:
    """The facts about each app of which any are given. ``places`` are by service, that of the top level under ``""``.
    Raises :class:`UsageError` with all mistakes."""
    mistakes: list[str] = []
    read: dict[str, _Shape] = {}
    for name, raw in {"": config, **config["services"]}.items():
        if KEY not in raw:
            continue
        try:
            read[name] = _read(raw[KEY], places.get(name) or Place(filename, {(): 1}), top=not name)
        except UsageError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    found = {}
    for app in apps.values():
        # The owner of the network namespace comes last, so its word counts.
        names = [name for name in ("", *(it.name for it in app.members[::-1])) if name in read]
        if names:
            given = [places.get(name) or Place(filename, {(): 1}) for name in names]
            found[app.name] = _together([read[name] for name in names], given)
    return found


def _read(said: Any, place: Place, *, top: bool) -> _Shape:
    data = _unescaped({} if said is None else said)
    problems = Problems(Document(place.filename, data, place.lines))
    if isinstance(data, dict):
        for key in [key for key in data if key in _RULES]:
            problems.add((key,), f"{KEY} holds facts, never rules: who may call whom is in mesh/mesh.yaml alone")
            del data[key]
        for key in ("ports", "scrapes"):
            if top and key in data:
                problems.add((key,), "belongs to a service, not to the defaults of all")
        if data.pop(KNOWS, None) is not None:
            problems.add((KNOWS,), f"belongs to a port: sidecar: {{inbound: {{PORT: {{{KNOWS}: true}}}}}}")
        for path in _everywhere(data.get("sidecar")) if top else ():
            problems.add(("sidecar", *path), "belongs to a service's port, not to the defaults of all")
        for path in _ours(data.get("sidecar")):
            problems.add(("sidecar", *path), "is what `sidecar inject` writes: it cannot be given")
    return fit(_Shape, data, problems)


def _unescaped(value: Any) -> Any:
    """Compose writes each ``$`` as ``$$``; this is undone. Every key becomes text: ``{8080: …}`` names a port. So does a
    day, such as ``until: 2027-01-31``, which Compose's YAML takes for a time."""
    if isinstance(value, dict):
        return {str(key): _unescaped(it) for key, it in value.items()}
    if isinstance(value, list):
        return [_unescaped(it) for it in value]
    if isinstance(value, date):
        return f"{value:%Y-%m-%d}"
    return value.replace("$$", "$") if isinstance(value, str) else value


def _ours(sidecar: Any) -> Iterator[DataPath]:
    """The keys that may not be given."""
    if not isinstance(sidecar, dict):
        return
    yield from ((key,) for key in sidecar if key in OURS[""])
    for side in ("inbound", "outbound"):
        entries = sidecar.get(side)
        for entry, keys in entries.items() if isinstance(entries, dict) else ():
            yield from ((side, entry, key) for key in (keys if isinstance(keys, dict) else ()) if key in OURS[side])


def _everywhere(sidecar: Any) -> Iterator[DataPath]:
    inbound = sidecar.get("inbound") if isinstance(sidecar, dict) else None
    for name, keys in inbound.items() if isinstance(inbound, dict) else ():
        if isinstance(keys, dict) and KNOWS in keys:
            yield "inbound", name, KNOWS


def _together(shapes: list[_Shape], places: list[Place]) -> Facts:
    """What several say of one app; the last word counts."""
    ports = [shape.ports for shape in shapes if shape.ports is not None]
    meshed = [shape.mesh for shape in shapes if shape.mesh is not None]
    *_, sidecar = accumulate((shape.sidecar for shape in shapes), merged)
    place = places[-1]
    lines = {path: line for it in places if it.filename == place.filename for path, line in it.lines.items()}
    return Facts(
        Place(place.filename, lines),
        {name: number for mapping in ports for name, number in mapping.items()} if ports else None,
        meshed[-1] if meshed else True,
        sidecar,
        any(shape.scrapes for shape in shapes),
    )


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings in mappings are merged; any other value of ``other`` takes the place of the one before."""
    found = dict(one)
    for key, value in other.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def refuse_contradictions(
    facts: Mapping[str, Facts], given: Mapping[str, tuple[int, ...]], edited: Mapping[str, Mapping[str, int]], mesh: str
) -> None:
    """``given`` are from ``--port``; ``edited`` are the ports of an edited ``mesh.yaml``, the text ``mesh``. Raises
    :class:`UsageError`."""
    mistakes = []
    for app, it in facts.items():
        if it.ports is None:
            continue
        said = f"{it.place}: {KEY}: the ports of '{app}' are {_listed(it.ports)}"
        if app in given and set(given[app]) != set(it.ports.values()):
            mistakes.append(f"{said}, but --port says {', '.join(map(str, given[app])) or 'none'}: leave that out")
        if app in edited and dict(edited[app]) != dict(it.ports):
            line = parse_yaml(mesh, "mesh/mesh.yaml").line(("services", app, "ports"))
            other = f"mesh/mesh.yaml:{line} says {_listed(edited[app])}"
            mistakes.append(f"{said}, but {other}: correct one of the two")
    if mistakes:
        raise UsageError("\n".join(mistakes))


def _listed(ports: Mapping[str, int]) -> str:
    return ", ".join(str(n) if name == str(n) else f"{name}: {n}" for name, n in ports.items()) or "none"


def with_facts(
    wiring: Mapping[str, Any],
    facts: Facts,
    ports: Mapping[str, Mapping[str, int]],
    mesh: Mesh,
    strict: Collection[str] = (),
) -> dict[str, Any]:
    """The data of a ``sidecar.yaml`` with the facts in it. ``ports`` are those of each app. What ``inbound`` says of
    plaintext is not of the listeners in ``strict``. Raises :class:`UsageError` for what that file may not have."""
    from sidecar.config.sidecar_yaml import parse_shape  # 50 ms, which a run without facts does not need

    place = facts.place
    lines = {path[1:]: line for path, line in place.lines.items() if path[:1] == ("sidecar",)} | {(): place.lines[()]}
    data = merged(wiring, {key: value for key, value in facts.sidecar.items() if key not in ("inbound", "outbound")})
    problems = Problems(Document(place.filename, data, lines))
    for side in ("inbound", "outbound"):
        given = facts.sidecar.get(side) or {}
        if not isinstance(given, Mapping) or not all(isinstance(keys, Mapping) for keys in given.values()):
            problems.add((side,), 'must be a mapping from the names of its entries, or "*", to their keys')
            continue
        names = [_names(entry, str(wiring["service"]), side, ports) for entry in wiring[side]]
        data[side] = [
            _completed(entry, _said_of(given, known), strict) for entry, known in zip(wiring[side], names, strict=True)
        ]
        for name, keys in given.items():
            if side == "inbound" and not isinstance(keys.get(KNOWS, False), bool):
                problems.add((side, name, KNOWS), "is not true or false")
        all_names = {"*"}.union(*names)
        for name in given:
            if name not in all_names:
                problems.add((side, name), f"there is no such port here{did_you_mean(name, all_names)}")
    parse_shape(data, problems, mesh)
    return data


def _completed(entry: Mapping[str, Any], said: Mapping[str, Any], strict: Collection[str]) -> dict[str, Any]:
    """An entry of ``inbound`` or ``outbound`` with what is said of it."""
    left = (KNOWS, *_PLAINTEXT) if entry["listen"] in strict else (KNOWS,)
    return {**entry, **{key: it for key, it in said.items() if key not in left}}


def _said_of(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What is said of an entry that goes by these names; the last word counts."""
    return {key: it for name, keys in given.items() if name in names for key, it in keys.items()}


def inbound_keys(facts: Facts, name: str, number: int) -> dict[str, Any]:
    """What is said of an app's port. Empty where it is not written as it must be, which :func:`with_facts` refuses."""
    given = facts.sidecar.get("inbound")
    if not isinstance(given, Mapping) or not all(isinstance(keys, Mapping) for keys in given.values()):
        return {}
    return _said_of(given, ("*", name, str(number)))


def known_ways(facts: Facts, service: str, ports: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
    """The ports of which a person knows that they can be reached beside the sidecar. :func:`with_facts` took the facts."""
    given = facts.sidecar.get("inbound") or {}
    said = {name for name, keys in given.items() if keys.get(KNOWS)}
    return frozenset(
        name for name in ports[service] if not said.isdisjoint(_names({"port": name}, service, "inbound", ports))
    )


def _names(
    entry: Mapping[str, Any], service: str, side: str, ports: Mapping[str, Mapping[str, int]]
) -> tuple[str, ...]:
    """The names that an entry of ``inbound`` or ``outbound`` goes by."""
    if side == "inbound":
        return "*", entry["port"], str(ports[service][entry["port"]])
    callee, _, name = entry["to"].partition(":")
    return "*", callee, entry["to"], f"{callee}:{ports[callee][name]}"


# --- where it is written -----------------------------------------------------------------------------------------------


def find_places(texts: Iterable[tuple[str, str]]) -> dict[str, Place]:
    """Where the ``x-mesh`` of each service, and that of the top level (``""``), is written: in the last of these files, each
    a name and a text, that has it. A service that has it from elsewhere (``extends``) is where it is declared itself."""
    found: dict[str, Place] = {}
    for filename, text in texts:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError):  # Compose has read it: another dialect
            continue
        if (said := _value(root, KEY)) is not None:
            found[""] = _place(filename, said)
        for name, service in _pairs(_value(root, "services")):
            said = _value(service, KEY)
            if said is not None:
                found[name] = _place(filename, said)
            else:
                found.setdefault(name, Place(filename, {(): service.start_mark.line + 1}))
    return found


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a mapping and their values, those that ``<<`` merges in first."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value == "<<":
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _pairs(one)
    yield from ((str(key.value), value) for key, value in node.value if key.value != "<<")


def _value(node: Any, key: str) -> Any:
    return dict(_pairs(node)).get(key)


def _place(filename: str, said: Any) -> Place:
    lines: dict[DataPath, int] = {}
    left: list[tuple[DataPath, Any]] = [((), said)]
    while left:
        path, node = left.pop()
        if len(path) < _DEEPEST:
            lines[path] = node.start_mark.line + 1
            left += [((*path, name), value) for name, value in _pairs(node)]
    return Place(filename, lines)
