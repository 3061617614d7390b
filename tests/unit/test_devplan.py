"""Local ports of a mesh on one machine: the same every time, each call of each caller its own."""

from __future__ import annotations

from datetime import UTC, datetime

from sidecar.devplan import FIRST_PORT, LAST_PORT, environment, plan
from sidecar.mesh import parse_mesh
from sidecar.names import Target

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MESH = """
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}, dev: {app: {http: 8081}, calls: {"api:http": 18080, "db:5432": 15432}}}
  api: {ports: {http: 8080, metrics: 9090}}
  worker: {}
  db: {ports: 5432}
policy:
  - {from: [web, worker], to: "api:http"}
  - {from: api, to: db}
"""


def test_what_is_named_is_taken_and_the_rest_is_derived() -> None:
    made = plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    calls = {(call.caller, str(call.target)): call for call in made.calls}
    assert calls["web", "api:http"].local_port == 18080
    assert FIRST_PORT <= calls["worker", "api:http"].local_port <= LAST_PORT
    assert calls["worker", "api:http"].local_port != calls["api", "db:5432"].local_port
    assert made.apps[Target("web", "http")] == 8081


def test_a_call_that_the_policy_denies_has_a_port_only_if_it_was_named() -> None:
    made = plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    calls = {(call.caller, str(call.target)): call for call in made.calls}
    assert not calls["web", "db:5432"].decision.allowed
    assert calls["web", "db:5432"].local_port == 15432
    assert ("worker", "db:5432") not in calls


def test_an_app_that_nobody_placed_listens_at_its_own_number_if_that_is_its_alone() -> None:
    made = plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    assert made.apps[Target("db", "5432")] == 5432
    assert made.apps[Target("api", "metrics")] == 9090
    assert FIRST_PORT <= made.apps[Target("api", "http")] <= LAST_PORT  # 8080 is declared twice


def test_ports_are_the_same_every_time_whatever_else_is_in_the_mesh() -> None:
    one = plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    grown = MESH.replace("  worker: {}", "  worker: {}\n  audit: {ports: {log: 7000}}")
    other = plan(parse_mesh(grown, "mesh.yaml"), NOW)
    assert one == plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    assert {(call.caller, call.target, call.local_port) for call in one.calls} <= {
        (call.caller, call.target, call.local_port) for call in other.calls
    }
    assert one.apps.items() <= other.apps.items()


def test_no_two_things_share_a_port() -> None:
    services = "\n".join(f"  s{number}: {{ports: {{http: 8080, admin: 80}}}}" for number in range(40))
    rules = "policy: [{from: '*', to: '*'}]"
    made = plan(parse_mesh(f"trust_domain: shop.internal\nservices:\n{services}\n{rules}", "mesh.yaml"), NOW)
    ports = [*made.apps.values(), *(call.local_port for call in made.calls)]
    assert len(made.calls) == 40 * 80
    assert len(ports) == len(set(ports))


def test_the_environment_of_an_app_names_its_port_and_its_callees() -> None:
    made = plan(parse_mesh(MESH, "mesh.yaml"), NOW)
    web = environment(made, "web")
    assert web["HTTP_PORT"] == web["PORT"] == "8081"
    assert web["API_HTTP_ADDRESS"] == "127.0.0.1:18080"
    assert "API_HOST" not in web  # it has two ports
    api = environment(made, "api")
    assert api["DB_P5432_PORT"] == api["DB_PORT"]
    assert api["DB_HOST"] == "127.0.0.1"
    assert environment(made, "db") == {"P5432_PORT": "5432", "PORT": "5432"}
