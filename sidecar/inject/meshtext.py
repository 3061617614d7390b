"""``mesh.yaml``: written once, afterwards only added to. Pure.

How this works. While the file is unedited, each run writes it anew, so it follows the application. Once a person has edited
it, every byte stays: new services and rules are inserted, and nothing is removed. A rule that an earlier run proposed and
that is missing now was removed by a person, and is not proposed again. So a run of ``inject`` never allows what a person
has forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Edge
from sidecar.inject.ports import Port
from sidecar.inject.yamltext import Commented, Flow, block, comment, flow, scalar
from sidecar.policy.decide import decide
from sidecar.policy.ending import ending_rules
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import PLAINTEXT

OBSERVE = "observe"
"""The name of the rule that ``--observe`` writes."""

OBSERVE_DAYS = 14

END = ("# The end of the file: while it is in force, a text without this line is incomplete and is refused.", "...")


@dataclass(frozen=True, slots=True)
class Existing:
    """The present ``mesh.yaml``. ``edited`` since ``inject`` wrote it; ``proposed`` are the rules of earlier runs, None if
    there is no record of them."""

    text: str
    mesh: Mesh
    edited: bool
    proposed: frozenset[str] | None


def observe_lasts(existing: Existing | None, today: date) -> bool:
    """Whether the rule that ``--observe`` writes is in force, or this run writes it: a person may have removed it."""
    if existing is None:
        return True
    rules = [rule for rule in existing.mesh.rules if rule.name == OBSERVE]
    if not rules:
        return OBSERVE not in (existing.proposed or ())
    return any(rule.until is None or rule.until >= today for rule in rules)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule that the application gives a reason for. ``name`` is the default name of such a rule in the policy. ``caller``
    is a service, or ``plaintext``."""

    caller: str
    to: tuple[str, ...]
    why: str
    until: date | None = None

    @property
    def name(self) -> str:
        return f"{self.caller}->{','.join(self.to)}"


@dataclass(frozen=True, slots=True)
class MeshText:
    """``proposed`` are all rules proposed so far, including this run's."""

    text: str
    mesh: Mesh
    proposed: frozenset[str]
    notes: tuple[str, ...]


def edited_ports(existing: Existing | None) -> dict[str, dict[str, int]]:
    """The ports that an edited file declares. They take precedence over inferred ports."""
    if existing is None or not existing.edited:
        return {}
    return {name: dict(service.ports) for name, service in existing.mesh.services.items()}


def port_names(ports: tuple[Port, ...], edited: Mapping[str, int] | None) -> dict[str, int]:
    """An app's ports by name: the edited names, or else the numbers as names."""
    return dict(edited) if edited is not None else {str(port.number): port.number for port in ports}


def proposals(edges: Iterable[Edge], ports: Mapping[str, Mapping[str, int]]) -> tuple[Proposal, ...]:
    """One rule for each edge: to the ports that were found for it, or to all ports of the callee."""
    found = []
    for edge in edges:
        names = [name for name, number in ports[edge.callee].items() if number in edge.ports]
        to = tuple(f"{edge.callee}:{name}" for name in names) or ((edge.callee,) if ports[edge.callee] else ())
        if to:
            found.append(Proposal(edge.caller, to, "; ".join(edge.where[:4]) + ("; …" if len(edge.where) > 4 else "")))
    return tuple(found)


def mesh_text(
    trust_domain: str,
    names: Mapping[str, Mapping[str, int]],
    origins: Mapping[str, tuple[Port, ...]],
    rules: tuple[Proposal, ...],
    *,
    observe: bool,
    today: date,
    files: tuple[str, ...],
    filename: str,
    existing: Existing | None,
) -> MeshText:
    """``names`` are the ports by app, ``origins`` say how they were found. Raises :class:`UsageError` if new lines cannot be
    inserted into an edited file."""
    known = frozenset(rule.name for rule in rules) | ({OBSERVE} if observe else frozenset())
    if existing is not None and existing.edited:
        added = _added_to(existing, names, origins, rules, known, observe=observe, today=today, filename=filename)
        return replace(added, notes=(*_ending(added.mesh, today), *added.notes))
    before = existing.proposed or frozenset() if existing is not None else frozenset()
    until = _until(existing, today)
    text = _fresh(trust_domain, names, origins, rules, until if observe else None, files)
    mesh = parse_mesh(text, filename)
    return MeshText(text, mesh, known | before, tuple(_ending(mesh, today)))


def _ending(mesh: Mesh, today: date) -> Iterator[str]:
    """A sentence for each rule that allows something and runs out within a week."""
    for rule in ending_rules(mesh, datetime.combine(today, time(), UTC)):
        if rule.plaintext:
            yield (
                f"{mesh.filename}:{rule.line}: rule '{rule.name}' runs out after {rule.until}, and who still calls in "
                "plaintext is refused then: `sidecar status --all` names them; another `until` there gives them time"
            )
            continue
        yield (
            f"{mesh.filename}:{rule.line}: rule '{rule.name}' runs out after {rule.until}, and what no other rule allows is "
            "refused then: `sidecar policy learn` adds rules for what was seen; `sidecar status --all` names the calls"
        )


def _until(existing: Existing | None, today: date) -> date:
    """The end of the observation period: that of an earlier run, unless it has passed."""
    ends = [rule.until for rule in existing.mesh.rules if rule.name == OBSERVE] if existing is not None else []
    return next((end for end in ends if end is not None and end >= today), today + timedelta(days=OBSERVE_DAYS))


def _fresh(
    trust_domain: str,
    names: Mapping[str, Mapping[str, int]],
    origins: Mapping[str, tuple[Port, ...]],
    rules: tuple[Proposal, ...],
    until: date | None,
    files: tuple[str, ...],
) -> str:
    lines = [
        f"# The services, and which may call which. `sidecar inject` wrote this from {comment(' and '.join(files))};",
        "# it is yours to edit: another run keeps your edits and adds what is new.",
        "# A call that is not allowed here is refused; both sidecars log it, with the rule that would allow it.",
        f"trust_domain: {scalar(trust_domain)}",
        "services:",
        *(line for name in names for line in _service_lines(name, names[name], origins.get(name, ()))),
    ]
    if until is not None:
        lines += ["policy:", *_observe_lines(until), *(line for rule in rules for line in _rule_lines(rule))]
    elif rules:
        lines += ["policy:  # default: deny", *(line for rule in rules for line in _rule_lines(rule))]
    else:
        lines += ["policy: []  # default: deny"]
    return "\n".join([*lines, *END]) + "\n"


def _service_lines(name: str, ports: Mapping[str, int], origins: tuple[Port, ...]) -> list[str]:
    if not ports:
        return block({name: Commented(Flow({}), "calls, is not called")}, 2)
    value = next(iter(ports.values())) if len(ports) == 1 and str(*ports.values()) in ports else dict(ports)
    texts = dict.fromkeys(port.origin for port in origins if port.number in ports.values())
    return block({name: Commented(Flow({"ports": value}), "; ".join(texts) or "given")}, 2)


def _rule_lines(rule: Proposal) -> list[str]:
    to = list(rule.to) if len(rule.to) > 1 else rule.to[0]
    until = {} if rule.until is None else {"until": rule.until}
    return [f"  - {flow({'from': rule.caller, 'to': to, **until})}  # {comment(rule.why)}"]


def _observe_lines(until: date) -> list[str]:
    return [
        "  # Every service may call every other until that day, and the access logs show which calls are made.",
        "  # `sidecar policy learn` adds rules for those; what no other rule allows is refused afterwards.",
        f'  - {{name: {OBSERVE}, from: "*", to: "*", until: {until}}}',
    ]


# --- adding to an edited file ------------------------------------------------------------------------------------------


def _added_to(
    existing: Existing,
    names: Mapping[str, Mapping[str, int]],
    origins: Mapping[str, tuple[Port, ...]],
    rules: tuple[Proposal, ...],
    known: frozenset[str],
    *,
    observe: bool,
    today: date,
    filename: str,
) -> MeshText:
    mesh, notes = existing.mesh, []
    lasting = replace(mesh, rules=tuple(rule for rule in mesh.rules if rule.name != OBSERVE or rule.until is None))
    new = [name for name in names if name not in mesh.services]
    wanted = []
    opened = _opened(existing.proposed or ())
    for rule in rules:
        if _is_allowed(lasting, rule, today) or (rule.until is not None and rule.until < today):
            continue
        removed = (
            rule.name in existing.proposed or (rule.caller == str(PLAINTEXT) and _callee(rule) in opened)
            if existing.proposed is not None
            else not {rule.caller, _callee(rule)} & {*new}
        )
        if removed:
            notes.append(f"{filename}: {rule.name} ({rule.why}) is not allowed there, and stays so")
        else:
            wanted.append(rule)
    services = [line for name in new for line in _service_lines(name, names[name], origins.get(name, ()))]
    policy = [line for rule in wanted for line in _rule_lines(rule)]
    proposed = existing.proposed or frozenset()
    if observe and OBSERVE not in proposed and all(rule.name != OBSERVE for rule in mesh.rules):
        policy += _observe_lines(today + timedelta(days=OBSERVE_DAYS))
    text = insert(insert(existing.text, "services", services, filename), "policy", policy, filename)
    notes += [f"{filename}: service '{name}' is no longer in the mesh" for name in mesh.services if name not in names]
    for old in mesh.rules:
        has_reason = _opened([old.name]) & _opened(known)
        if old.name in proposed - known and old.name != OBSERVE and not has_reason:
            notes.append(f"{filename}:{old.line}: the application no longer gives a reason for rule '{old.name}'")
    for name in names:
        ours = {port.number: port.origin for port in origins.get(name, ())}
        declared = mesh.services[name].ports.values() if name in mesh.services else ours
        for number in ours.keys() - set(declared):
            notes.append(f"{filename}: port {number} of '{name}' ({ours[number]}) is not declared there")
    return MeshText(text, _checked(text, existing, new, len(wanted), filename), proposed | known, tuple(notes))


def _is_allowed(mesh: Mesh, rule: Proposal, today: date) -> bool:
    now = datetime.combine(today, time(), UTC)
    try:
        caller = PLAINTEXT if rule.caller == str(PLAINTEXT) else mesh.identity(rule.caller)
        targets = [target for text in rule.to for target in mesh.targets(text)]
    except (KeyError, ValueError):
        return False
    return all(decide(mesh, caller, target.service, target.port, now).allowed for target in targets)


def _opened(rules: Iterable[str]) -> set[str]:
    """The services to which proposals of this name let plaintext in. What a person removed of them stays removed whatever
    their ports are called by then, and whichever of them share a day."""
    begin = f"{PLAINTEXT}->"
    targets = (it for name in rules if name.startswith(begin) for it in name.removeprefix(begin).split(","))
    return {target.partition(":")[0] for target in targets}


def _callee(rule: Proposal) -> str:
    return rule.to[0].partition(":")[0]


def insert(text: str, key: str, added: list[str], filename: str) -> str:
    """Inserts ``added`` at the end of the top-level block ``key``, before the blank lines and comments that follow it.
    Every byte that is there stays. Raises :class:`UsageError` if the block is written on one line."""
    if not added:
        return text
    lines = text.removesuffix("\n").split("\n")  # and nothing else ends a line: a comment may hold any character
    head = next((i for i, line in enumerate(lines) if re.match(rf"[\"']?{key}[\"']?\s*:", line)), None)
    if head is None:
        end = next((i for i, line in enumerate(lines) if re.match(r"\.\.\.(?:\s|$)", line)), len(lines))
        return "\n".join([*lines[:end], f"{key}:", *added, *lines[end:]]) + "\n"
    rest = lines[head].partition(":")[2].partition("#")[0].strip()
    if rest in {"[]", "{}"}:
        lines[head] = lines[head].replace(rest, "", 1)
        rest = ""
    if rest:
        raise _cannot_add(added, key, filename)
    end = next((i for i in range(head + 1, len(lines)) if re.match(r"[^\s#-]|---|\.\.\.", lines[i])), len(lines))
    while end > head + 1 and re.match(r"\s*(?:#.*)?$", lines[end - 1]) and not re.match(r"\s+#", lines[end - 1]):
        end -= 1
    first = next((line for line in lines[head + 1 : end] if re.match(r"\s*[^\s#]", line)), "  ")
    indent = " " * (len(first) - len(first.lstrip())) if first.strip() else "  "
    fitted = [indent + line.removeprefix("  ") for line in added]
    return "\n".join([*lines[:end], *fitted, *lines[end:]]) + "\n"


def _checked(text: str, existing: Existing, new: list[str], rules: int, filename: str) -> Mesh:
    """The mesh of what was written. It must be what was there, and what is new: no less and no other."""
    try:
        mesh = parse_mesh(text, filename)
    except UsageError as error:
        raise UsageError(
            f"{filename}: nothing can be added as it is written; write services and policy as blocks"
        ) from error
    kept, before = ([rule.as_written() for rule in rules] for rules in (mesh.rules, existing.mesh.rules))
    if kept[: len(before)] != before or set(mesh.services) != {*existing.mesh.services, *new}:
        raise UsageError(f"{filename}: nothing can be added as it is written; write services and policy as blocks")
    return mesh


def _cannot_add(added: list[str], key: str, filename: str) -> UsageError:
    return UsageError(
        f"{filename}: `{key}` is written on one line; write it as a block, or add there:\n" + "\n".join(added)
    )
