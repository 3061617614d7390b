"""Which rules are looked at for a call: all that fit, in the file's order, and few of thousands."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from sidecar.policy.decide import Kind, callers, decide
from sidecar.policy.index import FEW, Index
from sidecar.policy.mesh import Mesh, Rule, parse_mesh
from sidecar.policy.names import ADMIN_PORT, PLAINTEXT, Target
from tests.specimens import mesh_with

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SERVICES, RULES = 100, 10_000


@pytest.fixture(scope="module")
def large() -> Mesh:
    """10,000 rules: every service may call the first port of every service, and the last rule denies one call."""
    lines = ["trust_domain: shop.internal", "services:"]
    lines += [f"  s{number}: {{ports: {{a: 1000, b: 1001}}}}" for number in range(SERVICES)]
    lines += ["policy:"]
    lines += [
        f'  - {{name: r{number}, from: [s{number % SERVICES}], to: ["s{number // SERVICES}:a"]}}'
        for number in range(RULES)
    ]
    lines += ['  - {name: last, from: "*", to: ["s7:a"], action: deny}']
    return parse_mesh("\n".join(lines), "mesh.yaml")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the rules that are asked whether they fit."""
    found: list[str] = []
    fits = Rule.fits

    def counted(rule: Rule, *call: object) -> bool:
        found.append(rule.name)
        return fits(rule, *call)  # type: ignore[arg-type]

    monkeypatch.setattr(Rule, "fits", counted)
    return found


def test_few_of_ten_thousand_rules_are_looked_at(large: Mesh, looked_at: list[str]) -> None:
    assert decide(large, large.identity("s5"), "s6", "a", NOW).rule == "r605"
    assert looked_at == ["r605"]
    looked_at.clear()
    assert decide(large, large.identity("s5"), "s6", "b", NOW).kind is Kind.NO_RULE
    assert looked_at == []


def test_a_rule_for_everybody_is_looked_at_too(large: Mesh, looked_at: list[str]) -> None:
    assert decide(large, large.identity("s5"), "s7", "a", NOW).rule == "last"
    assert looked_at == ["r705", "last"]


def test_the_callers_of_one_port_take_no_look_at_each_rule_for_each_service(large: Mesh, looked_at: list[str]) -> None:
    assert callers(large, "s6", "a", NOW) == [f"s{number}" for number in range(SERVICES)]
    assert callers(large, "s7", "a", NOW) == []
    assert len(looked_at) == 3 * SERVICES


MANY = [f"s{number}" for number in range(FEW + 1)]


@pytest.mark.parametrize(
    "source", [["s1"], MANY, ["*"], ["spiffe://shop.internal/*"], ["s2", "spiffe://shop.internal/s1/**"]]
)
@pytest.mark.parametrize("target", [["s1"], ["s1:a"], MANY, ["*"], ["s2", "s1"]])
def test_a_rule_is_found_however_much_it_names(source: list[str], target: list[str]) -> None:
    services = json.dumps({name: {"ports": {"a": 1, "b": 2}} for name in MANY})
    written = json.dumps({"name": "it", "from": source, "to": target})
    mesh = parse_mesh(mesh_with(services=services, rest=f"policy: [{written}]"), "mesh.yaml")
    [rule] = mesh.rules
    for caller in MANY:
        for callee in (Target("s1", "a"), Target("s2", "b"), Target("s3", "a"), Target("s1", ADMIN_PORT)):
            expected = [rule] if rule.fits(mesh.identity(caller), callee) else []
            assert mesh.rules_that_fit(mesh.identity(caller), callee) == expected
            assert mesh.rules_for(callee) == ([rule] if callee in rule.targets else [])


def test_an_index_of_nothing_finds_nothing() -> None:
    empty: Index[Rule] = Index([])
    assert empty.candidates(("s1",), Target("s1", "a")) == []
    assert empty.for_target(Target("s1", "a")) == []


def test_a_rule_for_callers_without_tls_is_looked_at_for_them_alone(looked_at: list[str]) -> None:
    rules = ["plaintext", "web", ["web", "plaintext"]]
    written = [{"name": f"r{number}", "from": source, "to": "*"} for number, source in enumerate(rules)]
    mesh = parse_mesh(mesh_with(rest=f"policy: {json.dumps(written)}"), "mesh.yaml")
    assert decide(mesh, PLAINTEXT, "web", "http", NOW).rule == "r0"
    assert looked_at == ["r0", "r2"]
    assert decide(mesh, mesh.identity("web"), "web", "http", NOW).rule == "r1"
