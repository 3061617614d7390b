"""``compose/observability``: what Prometheus's own tool says of the rules, the configuration and the metrics, and that each
alert and each panel asks for metrics that there are.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.protocol import catalogue as ca
from certs.service.metrics import Metrics as CaMetrics
from sidecar.inject.facts import read_facts
from sidecar.inject.injection import inject
from sidecar.observe import catalogue
from sidecar.observe.catalogue import families
from sidecar.observe.exposition import text
from tests.beds.admin import NUMBERS
from tests.beds.processes import needs
from tests.inject.applications import apps, inputs
from tests.unit.certs.service.test_metrics import NUMBERS as OF_THE_CA
from tests.unit.observe.test_catalogue import MEMBER, counted

OURS = Path(__file__).parents[2] / "compose/observability"
PROMETHEUS = OURS / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "mesh.rules.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((OURS / "grafana/dashboards/mesh.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAMES = {metric.name for metric in (*catalogue.METRICS, *ca.METRICS)} | {
    f"{metric.name}_{part}"
    for metric in catalogue.METRICS
    if metric.kind == "histogram"
    for part in ("bucket", "sum", "count")
}

STATES = """\
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series: [{series}]
    promql_expr_test:
      - {{expr: 'count by (alertname, service) (ALERTS{{alertstate="firing"}})', eval_time: {at}m, exp_samples: [{fires}]}}
"""
STATE: list[tuple[str, dict[str, str], int, list[tuple[str, str]]]] = [
    ("an alarm", {'sidecar_alarms_total{service="api",severity="alarm"}': "0 0 0 1 1 1"}, 4, [("MeshAlarm", "api")]),
    ("a notice", {'sidecar_alarms_total{service="api",severity="notice"}': "0 0 0 1 1 1"}, 4, []),
    ("no alarm lately", {'sidecar_alarms_total{service="api",severity="alarm"}': "3x30"}, 20, []),
    (
        "a certificate that nobody renewed",
        {
            'sidecar_certificate_not_after_timestamp_seconds{service="api"}': "3600x60",
            'sidecar_certificate_renewal_timestamp_seconds{service="api"}': "1800x60",
        },
        46,
        [("MeshCertificateNearItsEnd", "api")],
    ),
    (
        "one that is about to be renewed",
        {
            'sidecar_certificate_not_after_timestamp_seconds{service="api"}': "3600x60",
            'sidecar_certificate_renewal_timestamp_seconds{service="api"}': "1800x60",
        },
        44,
        [],
    ),
    (
        "one that another program renews",
        {
            'sidecar_certificate_not_after_timestamp_seconds{service="api"}': "3660x60",
            'sidecar_certificate_not_after_timestamp_seconds{service="web"}': "9660x60",
        },
        2,
        [("MeshCertificateNearItsEnd", "api")],
    ),
    (
        "renewals that fail, and one that failed once",
        {
            'sidecar_certificate_failing{service="api"}': "0 1 1 1 1 1",
            'sidecar_certificate_failing{service="web"}': "0 1 1 0 1 0",
        },
        4,
        [("MeshRenewalsFailing", "api")],
    ),
    (
        "an old list, and one that is signed each minute",
        {
            'sidecar_revocation_list_timestamp_seconds{service="api"}': "0x30",
            'sidecar_revocation_list_timestamp_seconds{service="web"}': "0+60x30",
        },
        15,
        [("MeshRevocationListOld", "api")],
    ),
    (
        "two policies for long",
        {
            'sidecar_policy_info{service="api",version="a"}': "1x30",
            'sidecar_policy_info{service="web",version="b"}': "1x30",
        },
        9,
        [("MeshPolicyDrift", "")],
    ),
    (
        "two policies for a moment",
        {
            'sidecar_policy_info{service="api",version="a"}': "1x30",
            'sidecar_policy_info{service="web",version="a"}': "1 stale 1x20",
            'sidecar_policy_info{service="web",version="b"}': "_ 1 stale",
        },
        9,
        [],
    ),
    (
        "a dated rule that allows all, and one that is over",
        {
            'sidecar_policy_allow_all_until_timestamp_seconds{service="api",rule="observe"}': "90000x9",
            'sidecar_policy_allow_all_until_timestamp_seconds{service="web",rule="old"}': "1x9",
        },
        3,
        [("MeshAllowsAll", "api")],
    ),
    ("a file that is refused", {'sidecar_reload_refused{service="api"}': "0 1 1 1"}, 3, [("MeshReloadRefused", "api")]),
    ("not well", {'sidecar_healthy{service="api"}': "1 0 0 0", 'sidecar_healthy{service="web"}': "1x3"}, 3,
     [("MeshUnhealthy", "api")]),
    ("away", {'up{job="mesh",service="api"}': "0x9", 'up{job="mesh",service="web"}': "1x9"}, 5,
     [("MeshSidecarNotScraped", "api")]),
    (
        "refusals, and port checks",
        {
            'sidecar_connections_refused_total{service="api",reason="policy_denied"}': "0+60x20",
            'sidecar_connections_refused_total{service="web",reason="probe"}': "0+60x20",
        },
        15,
        [("MeshRefusals", "api")],
    ),
    ("a log that is lost", {'sidecar_log_lost_total{service="api"}': "0 0 5 5"}, 3, [("MeshLogLost", "api")]),
]  # fmt: skip


def promtool(*arguments: str | Path, stdin: bytes = b"") -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert b"error" not in done.stderr + done.stdout.lower(), done.stderr.decode()


@needs("promtool")
def test_the_rules_and_the_configuration_are_good(tmp_path: Path) -> None:
    promtool("check", "rules", PROMETHEUS / "mesh.rules.yml")
    config = (PROMETHEUS / "prometheus.yml").read_text().replace("/etc/mesh-scrape/", f"{tmp_path}/")
    (tmp_path / "mesh.rules.yml").write_text((PROMETHEUS / "mesh.rules.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(config)
    files = scraped().files
    (tmp_path / "prometheus.json").write_text(files["mesh/scrape/prometheus.json"])
    promtool("check", "config", tmp_path / "prometheus.yml")
    promtool("check", "service-discovery", tmp_path / "prometheus.yml", "mesh")


@needs("promtool")
@pytest.mark.parametrize(("what", "series", "at", "fires"), STATE, ids=[what for what, *_ in STATE])
def test_an_alert_fires_in_its_state_and_in_no_other(
    tmp_path: Path, what: str, series: dict[str, str], at: int, fires: list[tuple[str, str]]
) -> None:
    assert what
    given = ", ".join(f"{{series: '{name}', values: '{values}'}}" for name, values in series.items())
    expected = ", ".join(
        f'{{labels: \'{{alertname="{alert}"' + (f',service="{service}"' if service else "") + "}', value: 1}"
        for alert, service in fires
    )
    file = tmp_path / "states.yml"
    file.write_text(STATES.format(rules=PROMETHEUS / "mesh.rules.yml", series=given, at=at, fires=expected))
    promtool("test", "rules", file)


def test_every_alert_has_its_state() -> None:
    assert {rule["alert"] for rule in RULES} == {alert for *_, fires in STATE for alert, _ in fires}


@needs("promtool")
def test_the_dashboard_s_queries_are_promql(tmp_path: Path) -> None:
    """As the expressions of rules, since that is what the tool reads."""
    rules = [
        {"record": f"q{number}", "expr": query.replace("$__rate_interval", "5m").replace("$service", "api")}
        for number, query in enumerate(QUERIES)
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "queries.yml")


@needs("promtool")
def test_the_metrics_follow_the_conventions() -> None:
    numbers = replace(NUMBERS, member=MEMBER, allow_all={"observe": float("inf")})
    promtool("check", "metrics", stdin=text(families(counted(), numbers)))
    of_the_ca = CaMetrics()
    for count in (of_the_ca.issued, of_the_ca.denied, of_the_ca.refused):
        count("word")
    of_the_ca.answered("/v1/enrol", 200)
    promtool("check", "metrics", stdin=of_the_ca.text(OF_THE_CA))


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_what_is_asked_for_is_there(query: str) -> None:
    assert set(re.findall(r"\b(?:sidecar|mesh_ca)_\w+", query)) <= NAMES


def test_panels_do_not_overlap_and_each_has_a_title() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] for panel in DASHBOARD["panels"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def scraped() -> Any:
    """The snippet beside an application of two services, injected."""
    snippet = yaml.safe_load((OURS / "compose.yaml").read_text())["services"]
    services = {
        name: {
            "image": raw["image"],
            "x-mesh": raw["x-mesh"],
            "depends_on": raw.get("depends_on", []),
        }
        for name, raw in snippet.items()
    }
    mounted = {
        "grafana": (OURS / "grafana/provisioning/datasources/prometheus.yml").read_text(),
        "prometheus": (PROMETHEUS / "prometheus.yml").read_text(),
    }
    shop: dict[str, Any] = {"web": {"depends_on": ["db"]}, "db": {"image": "redis"}}
    return inject(inputs({**shop, **services}, texts=mounted))


def test_the_snippet_is_meshed_and_scrapes_every_other_sidecar() -> None:
    injection = scraped()
    targets = json.loads(injection.files["mesh/scrape/prometheus.json"])
    assert [one["labels"]["service"] for one in targets] == ["db", "grafana", "web"]
    calls = {(edge.caller, edge.callee) for edge in injection.edges}
    assert ("grafana", "prometheus") in calls
    assert not {callee for caller, callee in calls if caller == "prometheus"}


def test_a_default_of_all_services_cannot_make_each_a_scraper() -> None:
    services: dict[str, Any] = {"web": {}, "db": {}}
    with pytest.raises(Exception, match="belongs to a service"):
        read_facts({"services": services, "x-mesh": {"scrapes": True}}, apps(services), {}, "compose.yaml")
