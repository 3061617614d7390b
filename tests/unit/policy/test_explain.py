"""Why a call is allowed or denied, and the policy file's own tests."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id
from sidecar.policy.decide import decide
from sidecar.policy.explain import NearMiss, explain, run_tests
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import PLAINTEXT

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)

SERVICES = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 80}}
  api: {ports: {http: 80, metrics: 90}}
  db: {ports: 5432}
"""


def mesh(*rules: str, tests: str = "[]") -> Mesh:
    policy = "".join(f"  - {rule}\n" for rule in rules) or "  []\n"
    return parse_mesh(f"{SERVICES}policy:\n{policy}tests: {tests}\n", "mesh.yaml")


def test_run_tests() -> None:
    tested = mesh(
        "{from: web, to: 'api:http'}",
        tests="[{from: web, to: api, expect: allow}, {from: db, to: api, expect: deny},"
        " {from: 'spiffe://other/web', to: db, expect: deny}]",
    )
    results = run_tests(tested, NOW)
    assert [(str(result.test.source), str(result.target), result.passed) for result in results] == [
        ("spiffe://shop.internal/web", "api:http", True),
        ("spiffe://shop.internal/web", "api:metrics", False),
        ("spiffe://shop.internal/db", "api:http", True),
        ("spiffe://shop.internal/db", "api:metrics", True),
        ("spiffe://other/web", "db:5432", True),
    ]
    assert run_tests(mesh(), NOW) == []


class TestExplain:
    RULES = (
        "{name: web-api, from: web, to: 'api:http'}",
        "{name: old, from: web, to: db, until: 2020-01-01}",
        "{name: trial, from: web, to: db, mode: dry-run}",
        "{name: others, from: api, to: db}",
        "{name: elsewhere, from: api, to: web}",
    )

    def test_denied_with_near_misses_and_the_rule_to_write(self) -> None:
        before = mesh(*self.RULES)
        explanation = explain(before, before.identity("web"), "db", "5432", NOW)
        assert not explanation.decision.allowed
        assert [(end.sidecar, end.allowed) for end in explanation.ends] == [
            ("web's own sidecar", False),
            ("db's sidecar", False),
        ]
        assert "the peer is spiffe://shop.internal/db and no other" in explanation.ends[0].checks
        assert explanation.near_misses == (
            NearMiss("web-api", 7, "is for this caller, but to api:http"),
            NearMiss("old", 8, "fits, but held until 2020-01-01"),
            NearMiss("trial", 9, "fits and would allow, but is a dry run"),
            NearMiss("others", 10, "is for db:5432, but from api"),
        )
        assert explanation.would_allow == '  - from: ["web"]\n    to: ["db:5432"]\n'
        after = parse_mesh(f"{SERVICES}policy:\n{explanation.would_allow}", "mesh.yaml")
        assert decide(after, after.identity("web"), "db", "5432", NOW).allowed

    def test_the_rule_to_write_for_somebody_outside_of_the_file(self) -> None:
        source = SpiffeId("shop.internal", ("batch", "x"))
        explanation = explain(mesh(), source, "db", "5432", NOW)
        assert explanation.ends[0].sidecar == "the holder of spiffe://shop.internal/batch/x (no service of this mesh)"
        after = parse_mesh(f"{SERVICES}policy:\n{explanation.would_allow}", "mesh.yaml")
        assert decide(after, source, "db", "5432", NOW).allowed

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ("other/web", ("db", "5432")),  # no rule can name another trust domain
            ("shop.internal/undeclared", ("db", "5432")),  # to be declared first
            ("shop.internal/web", ("db", "x")),
            ("shop.internal/web", ("x", "5432")),
        ],
    )
    def test_no_rule_alone_would_allow(self, source: str, target: tuple[str, str]) -> None:
        explanation = explain(mesh(), parse_spiffe_id(f"spiffe://{source}"), *target, NOW)
        assert (explanation.decision.allowed, explanation.would_allow, explanation.near_misses) == (False, None, ())

    def test_another_trust_domain_has_no_near_misses(self) -> None:
        assert explain(mesh("{from: web, to: db}"), SpiffeId("other", ("web",)), "db", "5432", NOW).near_misses == ()

    def test_denied_by_a_rule(self) -> None:
        shut = mesh(
            "{name: open, from: web, to: db}",
            "{name: shut, from: '*', to: db, action: deny}",
            "{name: shut-too, from: web, to: '*', action: deny}",
        )
        explanation = explain(shut, shut.identity("web"), "db", "5432", NOW)
        assert (explanation.decision.rule, explanation.would_allow) == ("shut", None)
        assert explanation.near_misses == (
            NearMiss("open", 7, "fits, but deny beats allow"),
            NearMiss("shut-too", 9, "fits, and says the same"),
        )

    def test_allowed(self) -> None:
        opened = mesh("{name: open, from: web, to: db}", "{name: twice, from: '*', to: db}")
        explanation = explain(opened, opened.identity("web"), "db", "5432", NOW)
        assert explanation.decision.allowed
        assert all(end.allowed for end in explanation.ends)
        assert explanation.would_allow is None
        assert explanation.near_misses == (NearMiss("twice", 8, "fits, and says the same"),)


def test_a_caller_without_tls_is_judged_at_one_end() -> None:
    asked = mesh("{from: '*', to: db}", tests="[{from: plaintext, to: db, expect: deny}]")
    explanation = explain(asked, PLAINTEXT, "db", "5432", NOW)
    [end] = explanation.ends
    assert (end.sidecar, end.allowed) == ("db's sidecar", False)
    assert "`mode: permissive`" in end.checks
    assert explanation.would_allow == '  - from: [plaintext]\n    to: ["db:5432"]\n'
    assert [miss.rule for miss in explanation.near_misses] == ["*->db"]
    assert [result.passed for result in run_tests(asked, NOW)] == [True]
    assert [result.passed for result in run_tests(mesh("{from: plaintext, to: db}"), NOW)] == []
    assert explain(mesh("{from: plaintext, to: db}"), PLAINTEXT, "db", "5432", NOW).decision.allowed


def test_a_person_has_no_policy_where_it_dials() -> None:
    asked = mesh("{from: user/alice, to: db}", tests="[{from: user/bob, to: db, expect: deny}]\npeople: [alice, bob]")
    explanation = explain(asked, asked.source("user/alice"), "db", "5432", NOW)
    assert explanation.decision.allowed
    first, second = explanation.ends
    assert first.sidecar == "the `sidecar connect` of user/alice"
    assert first.checks.startswith("when the pass is made, that the policy lets")
    assert second.sidecar == "db's sidecar"
    assert [result.passed for result in run_tests(asked, NOW)] == [True]
    assert explain(asked, asked.source("user/bob"), "db", "5432", NOW).would_allow == (
        '  - from: ["user/bob"]\n    to: ["db:5432"]\n'
    )
