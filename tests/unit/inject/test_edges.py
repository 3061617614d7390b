"""Who calls whom, by everything that says so; where it was found and never what stands there."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.inject.edges import (
    Text,
    find_edges,
    find_mentions,
    find_static_references,
    find_subnet_mentions,
    only_on_files,
)
from sidecar.inject.visibility import find_apps
from tests.inject.applications import application

SERVICES: dict[str, Any] = {"db": {}, "api": {"hostname": "back"}}


def edges(web: dict[str, Any], text: Text | None = None) -> list[tuple[str, str, tuple[int, ...], tuple[str, ...]]]:
    whole = application({"web": web, **SERVICES})
    texts = {"web": (text,)} if text else {}
    found = find_edges(find_mentions(whole, find_apps(whole), texts, {}))
    return [(it.caller, it.callee, it.ports, it.where) for it in found]


def test_each_thing_that_says_so() -> None:
    assert edges({"depends_on": ["db"]}) == [("web", "db", (), ("depends_on",))]
    assert edges({"links": ["db:x"], "depends_on": ["db"]}) == [("web", "db", (), ("links",))]
    assert edges({"environment": {"URL": "http://back:81"}}) == [("web", "api", (81,), ("environment URL",))]
    assert edges({"command": ["run", "db:5432"]}) == [("web", "db", (5432,), ("command",))]
    assert edges({"healthcheck": {"test": "curl http://api:82"}}) == [("web", "api", (82,), ("healthcheck",))]
    assert edges({}, Text("x.conf", "\nhost = db", "mounted")) == [("web", "db", (), ("x.conf:2",))]
    assert edges({}, Text("x.py", "db:5432", "build")) == [("web", "db", (5432,), ("x.py:1",))]


def test_the_twins_that_say_nothing() -> None:
    completed = {"depends_on": {"db": {"condition": "service_completed_successfully"}}}
    assert edges(completed) == []
    assert edges({"environment": {"URL": "http://web:81"}}) == []
    assert edges({"networks": {}, "environment": {"URL": "http://back:81"}}) == []
    assert edges({}, Text("x.py", "host = db", "build")) == []
    assert edges({}, Text("x.py", "db:5432", "shared")) == []


def test_what_its_dockerfile_and_its_build_say() -> None:
    whole = application({"web": {"build": {"args": {"API_URL": "http://api:82"}}}, **SERVICES})
    dockerfiles = {"web": "FROM nginx\nENV DB_HOST=db \\\n DB_PORT=81\nARG API_URL=http://api:83"}
    found = find_edges(find_mentions(whole, find_apps(whole), {}, dockerfiles))
    assert [(it.callee, it.ports, it.where) for it in found] == [
        ("api", (82,), ("build argument API_URL",)),
        ("db", (81,), ("Dockerfile DB_HOST",)),
    ]


def test_a_database_does_not_use_the_variables_of_others() -> None:
    shared = {"API_URL": "http://api:81"}
    whole = application({"cache": {"image": "redis", "environment": shared}, "web": {"environment": shared}, "api": {}})
    found = find_edges(find_mentions(whole, find_apps(whole), {}, {}))
    assert [(it.caller, it.callee) for it in found] == [("web", "api")]
    whole = application({"cache": {"image": "redis", "environment": shared}, "web": {}, "api": {}})
    found = find_edges(find_mentions(whole, find_apps(whole), {}, {}))
    assert [(it.caller, it.callee) for it in found] == [("cache", "api")]


def test_what_runs_in_browsers_does_not_use_a_servers_database() -> None:
    shared = {"DB_HOST": "db", "API_HOST": "api"}
    services = {"frontend": {"environment": shared}, "api": {"environment": shared}, "db": {"image": "postgres"}}
    whole = application(services)
    found = find_edges(find_mentions(whole, find_apps(whole), {}, {}))
    assert [(it.caller, it.callee) for it in found] == [("api", "db"), ("frontend", "api")]
    whole = application({**services, "api": {}})
    found = find_edges(find_mentions(whole, find_apps(whole), {}, {}))
    assert [(it.caller, it.callee) for it in found] == [("frontend", "api"), ("frontend", "db")]


def test_a_key_means_the_port_of_the_protocol_it_names() -> None:
    def found(hub: dict[str, Any], environment: dict[str, str]) -> tuple[int, ...]:
        whole = application({"hub": hub, "web": {"environment": environment}})
        return find_edges(find_mentions(whole, find_apps(whole), {}, {}))[0].ports

    hub = {"expose": ["1883", "8883", "8080"]}
    assert found(hub, {"MQTT_HOST": "hub"}) == (1883, 8883)
    assert found(hub, {"MQTT_HOST": "hub", "MQTT_PORT": "8080"}) == (8080,)
    assert found(hub, {"LDAP_HOST": "hub"}) == ()
    assert found({"image": "itzg/minecraft-server"}, {"RCON_HOST": "hub"}) == (25575,)


@pytest.mark.parametrize(
    "command", ["cp -r /a /b", "sh -c 'mkdir -p /a && cp -r /a/. /b; exit 0;'", "/bin/chown 1000 /x"]
)
def test_a_command_on_files_calls_nobody(command: str) -> None:
    assert only_on_files(command)


@pytest.mark.parametrize(
    "command", ["", "cp -r /a /b && ./load", "sh -c './run | cat'", "cpulimit x", "echo a || psql"]
)
def test_the_twin_a_command_that_does_more(command: str) -> None:
    assert not only_on_files(command)


def test_a_name_that_the_configuration_gives_to_something_of_its_own() -> None:
    conf = "upstream api {\n  server api:82;\n}\nproxy_pass http://api;"
    assert edges({}, Text("x.conf", conf, "mounted")) == [("web", "api", (82,), ("x.conf:2",))]
    assert edges({}, Text("x.conf", "proxy_pass http://api;", "mounted")) == [("web", "api", (80,), ("x.conf:1",))]


def test_configuration_in_its_source() -> None:
    assert edges({}, Text("application.yml", "host: db", "build")) == [("web", "db", (), ("application.yml:1",))]
    assert edges({}, Text("x.py", "host: db", "build")) == []


def test_programs_are_no_configuration_wherever_they_are() -> None:
    assert edges({}, Text("x.py", "host = db", "mounted")) == []
    assert edges({}, Text("x.js", "target: 'db'", "mounted")) == []
    assert edges({}, Text("x.js", "host: 'db'", "mounted")) == [("web", "db", (), ("x.js:1",))]
    assert edges({}, Text("x.sh", "HOST=db", "mounted")) == [("web", "db", (), ("x.sh:1",))]
    assert edges({"build": {"args": {"TARGET": "db", "API_HOST": "api"}}}) == [
        ("web", "api", (), ("build argument API_HOST",))
    ]


def test_variables_in_its_files() -> None:
    web = {"environment": {"WHERE": "api", "AT": "82"}}
    text = Text("x.conf", "proxy_pass http://${WHERE}:${env:AT};", "mounted")
    assert edges(web, text) == [("web", "api", (82,), ("x.conf:1",))]


def test_all_of_one_callee_is_one_edge() -> None:
    found = edges({"depends_on": ["db"], "environment": {"A": "db:1000", "B": "db:999", "C": "db:1000"}})
    assert found == [("web", "db", (999, 1000), ("depends_on", "environment A", "environment B", "environment C"))]


def test_a_member_of_a_shared_namespace_calls_as_its_owner() -> None:
    whole = application({"vpn": {}, "in": {"network_mode": "service:vpn", "environment": {"X": "db:5432"}}, **SERVICES})
    (edge,) = find_edges(find_mentions(whole, find_apps(whole), {}, {}))
    assert (edge.caller, edge.callee, edge.where) == ("vpn", "db", ("in: environment X",))


def test_static_addresses() -> None:
    networks: dict[str, Any] = {"lan": {}}
    services: dict[str, Any] = {
        "a": {"networks": {"lan": None}, "extra_hosts": ["plc=10.0.0.9"]},
        "b": {"networks": {"lan": {"ipv4_address": "10.0.0.9"}}, "command": "listen 10.0.0.9"},
        "c": {"networks": {"lan": None}, "command": "10.0.0.99 110.0.0.9 10.0.0.9.1"},
        "d": {"command": "10.0.0.9"},
    }
    whole = application(services, networks)
    found = find_static_references(whole, find_apps(whole), {})
    assert [(it.caller, it.callee, it.network, it.where) for it in found] == [("a", "b", "lan", "extra_hosts or dns")]


def test_subnets() -> None:
    networks: dict[str, Any] = {"lan": {"ipam": {"config": [{"subnet": "10.0.0.0/24"}]}}}
    services: dict[str, Any] = {
        "a": {"networks": {"lan": None}, "environment": {"ALLOW": "127.0.0.0/8 10.0.0.0/24"}},
        "b": {"networks": {"lan": None}, "command": "10.0.0.0/245 110.0.0.0/24 10.0.0.0"},
        "c": {"command": "10.0.0.0/24"},
    }
    whole = application(services, networks)
    assert find_subnet_mentions(whole, find_apps(whole), {}) == (("a", "lan", "environment ALLOW"),)
