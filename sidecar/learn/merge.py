"""Learned rules in the text of a mesh file: what is there stays byte for byte. Pure; fails closed.

What comes out is parsed again. It must hold the rules that were there and the learned ones, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.inject.meshtext import insert
from sidecar.learn.rules import Learned
from sidecar.learn.seen import Call
from sidecar.policy.mesh import Mesh, parse_mesh

_COMMENTED = re.compile(r"\s*#[\s#]*-\s*(\{.*\})")


def merged(text: str, mesh: Mesh, learned: Learned) -> str:
    """``text``, which is that of ``mesh``, with the learned rules in its policy. Raises :class:`UsageError` where its policy
    is written so that nothing can be added."""
    lines = [line for rule in (*learned.rules, *learned.offers) for line in rule.lines()]
    after = insert(text, "policy", lines, mesh.filename)
    cannot = f"{mesh.filename}: nothing can be added as it is written; write the policy as a block, or add there:\n"
    cannot += "\n".join(lines)
    try:
        found = parse_mesh(after, mesh.filename)
    except UsageError as error:
        raise UsageError(cannot) from error
    before = [rule.as_written() for rule in mesh.rules]
    added = [(rule.from_, rule.to, rule.action, rule.mode, rule.until) for rule in found.rules[len(before) :]]
    expected = [(rule.callers, rule.targets, "allow", "enforce", None) for rule in learned.rules]
    if [rule.as_written() for rule in found.rules[: len(before)]] != before or added != expected:
        raise UsageError(cannot)
    if (found.trust_domain, found.services.keys()) != (mesh.trust_domain, mesh.services.keys()):
        raise UsageError(cannot)
    return after


def commented_out(text: str, mesh: Mesh) -> frozenset[Call]:
    """The calls of the rules that are commented out in the file, each on a line of its own. What is no rule is none."""
    return frozenset(call for line in text.split("\n") for call in _calls_of(line, mesh))


def _calls_of(line: str, mesh: Mesh) -> Iterator[Call]:
    found = _COMMENTED.match(line)
    if found is None:
        return
    try:
        rule = parse_yaml(found[1], mesh.filename).data
    except UsageError:
        return
    if not isinstance(rule, dict):
        return
    for source in _names(rule.get("from")):
        for target in _names(rule.get("to")):
            try:
                yield from (Call(mesh.source(source), one) for one in mesh.targets(target))
            except ValueError:
                continue  # it names what is not declared, or not any more


def _names(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, str)]
