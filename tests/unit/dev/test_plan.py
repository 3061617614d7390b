"""Local ports of a mesh on one machine: the same every time, each call of each caller its own."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dev.plan import FIRST_PORT, LAST_PORT, banner, environment, news, plan
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import Target

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


def planned(services: str, *rules: str) -> Mesh:
    policy = "\n".join(f"  - {rule}" for rule in rules)
    return parse_mesh(f"trust_domain: shop.internal\nservices: {services}\npolicy:\n{policy}\n", "mesh.yaml")


@pytest.mark.parametrize(
    ("services", "message"),
    [
        (
            "{web: {}, a-b: {ports: 1}, a.b: {ports: 1}}",
            "A_B_P1_HOST would be both that of 'a-b:1' and that of 'a.b:1'",
        ),
        (
            "{web: {}, Api: {ports: 1}, api: {ports: 1}}",
            "API_P1_HOST would be both that of 'Api:1' and that of 'api:1'",
        ),
        (
            "{web: {}, a: {ports: {b-c: 1}}, a-b: {ports: {c: 1}}}",
            "A_B_C_HOST would be both that of 'a:b-c' and that of 'a-b:c'",
        ),
        (
            "{web: {}, a: {ports: {b: 1, c: 2}}, a-b: {ports: {d: 1}}}",
            "A_B_HOST would be both that of 'a:b' and that of 'a-b:d'",
        ),
        ("{web: {ports: {db: 1}}, db: {ports: 2}}", "DB_PORT would be both its own port 'db' and that of 'db:2'"),
        ("{web: {ports: {5: 1, p5: 2}}}", "P5_PORT would be both its own port '5' and its own port 'p5'"),
    ],
)
def test_names_that_become_one_variable_are_an_error_and_not_a_wrong_address(services: str, message: str) -> None:
    mesh = planned(services, '{from: web, to: "*"}')
    with pytest.raises(UsageError, match=message):
        environment(plan(mesh, NOW), "web")


def test_names_that_only_look_alike_are_none() -> None:
    mesh = planned("{web: {}, a-b: {ports: 1}, ab: {ports: 1}, a-b-c: {ports: 1}}", '{from: web, to: "*"}')
    assert {"A_B_PORT", "AB_PORT", "A_B_C_PORT"} <= environment(plan(mesh, NOW), "web").keys()


def test_a_collision_is_no_matter_of_those_who_do_not_call_both() -> None:
    mesh = planned(
        "{web: {}, job: {}, a-b: {ports: 1}, a.b: {ports: 1}}", "{from: web, to: a-b}", "{from: job, to: a.b}"
    )
    made = plan(mesh, NOW)
    assert environment(made, "web")["A_B_PORT"] != environment(made, "job")["A_B_PORT"]


@settings(deadline=None)
@given(st.text("ABCxyz019._-", min_size=1, max_size=8).filter(lambda name: name not in {".", ".."}))
def test_every_variable_has_a_name_that_a_shell_takes(name: str) -> None:
    mesh = planned(json.dumps({"caller": {}, name: {"ports": {"http": 80}}}), '{from: caller, to: "*"}')
    for variable in environment(plan(mesh, NOW), "caller"):
        assert re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable)


CALLS = "{web: {}, api: {ports: {http: 80}}}"


def test_a_call_that_a_change_forbids_keeps_its_place() -> None:
    before = plan(planned(CALLS, "{from: web, to: api}"), NOW)
    after = plan(planned(CALLS), NOW, before)
    assert [call.local_port for call in after.calls] == [call.local_port for call in before.calls]
    assert not after.calls[0].decision.allowed
    assert plan(planned(CALLS), NOW).calls == ()
    assert plan(planned("{web: {}, api: {}}"), NOW, before).calls == ()  # nobody is there to be called


def test_news_are_what_came_what_moved_and_what_went() -> None:
    one = plan(planned(CALLS, "{from: web, to: api}"), NOW)
    port = one.calls[0].local_port
    assert news(one, one) == []
    grown = plan(planned("{web: {}, api: {ports: {http: 80}}, db: {ports: 5432}}", '{from: web, to: "*"}'), NOW, one)
    assert news(one, grown) == [
        f"web calls db:5432 at 127.0.0.1:{grown.calls[1].local_port}",
        "db serves 5432 from its app on 127.0.0.1:5432",
    ]
    assert news(grown, one) == ["db no longer serves 5432", "web no longer calls db:5432"]
    moved = plan(planned("{web: {dev: {calls: {api: 18080}}}, api: {ports: {http: 80}}}", "{from: web, to: api}"), NOW)
    assert news(one, moved) == ["web calls api:http at 127.0.0.1:18080"]
    denied = plan(planned(CALLS), NOW, one)
    assert news(one, denied) == [f"web calls api:http at 127.0.0.1:{port}  (denied: every call is refused)"]


def test_the_banner_names_everybody() -> None:
    mesh = planned("{web: {}, api: {ports: {http: 80}}, idle: {}}", "{from: web, to: api}")
    made = plan(mesh, NOW)
    assert (
        banner(mesh, made)
        == f"""\
shop.internal: 3 services, each behind its own sidecar; the CA is in memory

  web
    calls api:http at 127.0.0.1:{made.calls[0].local_port}

  api
    serves http from its app on 127.0.0.1:{made.apps[Target("api", "http")]}

  idle
    neither calls nor is called"""
    )
