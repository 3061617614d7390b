"""A Prometheus among the services: rules, listeners and targets for it, and nothing else changes for anybody."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sidecar.config.wiring import parse_config
from sidecar.inject.injection import MESH_FILE, OVERRIDE, Injection, inject
from sidecar.inject.layout import parse_override
from sidecar.inject.scraping import FIRST_LOCAL
from sidecar.inject.wiring import MESH_NUMBER, mesh_number
from sidecar.policy.mesh import parse_mesh
from tests.inject.applications import OPTIONS, inputs
from tests.inject.bed import again

SHOP: dict[str, Any] = {"web": {"depends_on": ["db"]}, "db": {"image": "redis"}}
SCRAPED: dict[str, Any] = {**SHOP, "prometheus": {"image": "prom/prometheus", "x-mesh": {"scrapes": True}}}
TARGETS = "mesh/scrape/prometheus.json"


def wired(injection: Injection, app: str) -> Any:
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    return parse_config(injection.files[f"mesh/sidecars/{app}.yaml"], f"{app}.yaml", {}, mesh)


def test_every_sidecar_answers_the_mesh_for_itself_and_none_is_asked() -> None:
    injection = inject(inputs(SHOP))
    for app in SHOP:
        config = wired(injection, app)
        assert config.admin.mesh_listen.port == MESH_NUMBER
        assert not [it for it in config.outbound if it.port == "mesh-admin"]
    assert "mesh-admin" not in injection.files[MESH_FILE]
    assert not [path for path in injection.files if path.startswith("mesh/scrape")]
    assert mesh_number({"a": MESH_NUMBER, "b": MESH_NUMBER + 1}) == MESH_NUMBER + 2, "an app's own port stays its own"


def test_a_scraper_has_a_rule_and_a_port_of_its_own_for_each_callee() -> None:
    injection = inject(inputs(SCRAPED))
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    named = [rule.name for rule in mesh.rules if "mesh-admin" in rule.name]
    assert named == ["prometheus->db:mesh-admin", "prometheus->web:mesh-admin"]
    offered = [it for it in wired(injection, "prometheus").outbound if it.port == "mesh-admin"]
    assert [(it.service, it.listen.port, str(it.peers[0])) for it in offered] == [
        ("db", FIRST_LOCAL, f"db.mesh:{MESH_NUMBER}"),
        ("web", FIRST_LOCAL + 1, f"web.mesh:{MESH_NUMBER}"),
    ]
    assert len({it.listen.host for it in offered}) == 1
    assert all(it.allow_from and it.device == "auto" for it in offered)
    assert json.loads(injection.files[TARGETS]) == [
        {"targets": [str(it.listen)], "labels": {"instance": it.service, "service": it.service}} for it in offered
    ]


def test_no_other_sidecar_is_made_anew_when_a_scraper_is_added() -> None:
    given = inputs(SHOP)
    first = inject(given)
    second = inject(again(replace(given, config=inputs(SCRAPED).config), first, first.files[MESH_FILE]))
    before, after = (parse_override(it.files[OVERRIDE])["services"] for it in (first, second))
    for app in SHOP:
        assert after[f"{app}-mesh"] == before[f"{app}-mesh"]
        assert wired(second, app).outbound == wired(first, app).outbound
    assert "prometheus-mesh" in after


def test_a_further_callee_makes_the_scraper_s_sidecar_anew_and_no_other() -> None:
    given = inputs(SCRAPED)
    first = inject(given)
    more = inputs({**SCRAPED, "cache": {"image": "memcached"}})
    second = inject(again(replace(given, config=more.config), first, first.files[MESH_FILE]))
    before, after = (parse_override(it.files[OVERRIDE])["services"] for it in (first, second))
    assert after["prometheus-mesh"]["labels"] != before["prometheus-mesh"]["labels"]
    for app in SHOP:
        assert after[f"{app}-mesh"] == before[f"{app}-mesh"]
    assert [it["labels"]["service"] for it in json.loads(second.files[TARGETS])] == ["cache", "db", "web"]


def test_while_everything_is_observed_the_rules_are_there_too() -> None:
    injection = inject(inputs(SCRAPED, options=replace(OPTIONS, observe=True)))
    rules = parse_mesh(injection.files[MESH_FILE], MESH_FILE).rules
    assert [rule.name for rule in rules if rule.name != "web->db"] == [
        "observe",
        "prometheus->db:mesh-admin",
        "prometheus->web:mesh-admin",
    ]
    assert len(json.loads(injection.files[TARGETS])) == 2


def test_a_rule_that_a_person_wrote_is_enough_and_one_removed_stays_so() -> None:
    given = inputs(SHOP)
    first = inject(given)
    rule = '- {from: web, to: "db:mesh-admin"}\n'
    edited = first.files[MESH_FILE].replace("  - {from: web", f"  {rule}  - {{from: web", 1)
    injection = inject(again(given, first, edited))
    assert [str(it.target) for it in wired(injection, "web").outbound if it.port == "mesh-admin"] == ["db:mesh-admin"]
    assert "mesh/scrape/web.json" in injection.files

    given = inputs(SCRAPED)
    first = inject(given)
    lines = first.files[MESH_FILE].splitlines(keepends=True)
    edited = "".join(line for line in lines if "web:mesh-admin" not in line)
    injection = inject(again(given, first, edited))
    assert [it["labels"]["service"] for it in json.loads(injection.files[TARGETS])] == ["db"]
    assert any("prometheus->web:mesh-admin" in warning for warning in injection.warnings)
