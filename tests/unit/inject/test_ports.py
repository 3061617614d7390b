"""Ports: each source in its turn, and what is left is asked for."""

from __future__ import annotations

from typing import Any

from sidecar.inject.edges import Text, find_edges, find_mentions
from sidecar.inject.ports import Port, infer_ports, settle
from sidecar.inject.visibility import find_apps
from tests.inject.applications import application


def ports(
    db: dict[str, Any],
    web: dict[str, Any] | None = None,
    text: Text | None = None,
    dockerfile: str | None = None,
    given: dict[str, tuple[int, ...]] | None = None,
) -> tuple[Port, ...]:
    whole = application({"db": db, "web": web or {}})
    apps = find_apps(whole)
    mentions = find_mentions(whole, apps, {"web": (text,)} if text else {}, {})
    return infer_ports(apps, mentions, {"db": dockerfile} if dockerfile else {}, given or {})["db"]


EVERYTHING: dict[str, Any] = {
    "expose": ["1001"],
    "command": "--port 1003",
    "healthcheck": {"test": "curl localhost:1004"},
    "image": "nginx",
}
KNOWN = "what its image is known for"
CALLER = {"environment": {"X": "db:1002"}}


def test_in_this_order() -> None:
    text, dockerfile = Text("f", "db:1005", "shared"), "FROM nginx\nEXPOSE 1006"
    left = dict(EVERYTHING)
    assert ports(left, {}, text, dockerfile) == (Port(1001, "ports or expose"),)
    del left["expose"]
    assert ports(left, CALLER, text, dockerfile) == (Port(1002, "environment X of web"),)
    assert ports(left, {}, text, dockerfile) == (Port(1003, "its command"),)
    del left["command"]
    assert ports({**left, "environment": {"PORT": "1007"}}, {}, text, dockerfile) == (Port(1007, "its variables"),)
    assert ports(left, {}, text, dockerfile) == (Port(1004, "its health check"),)
    del left["healthcheck"]
    assert ports(left, {}, text, dockerfile) == (Port(1005, "f:1 of web"),)
    assert ports(left, {}, None, dockerfile) == (Port(1006, "its Dockerfile"),)
    assert ports(left, {}, None, "FROM nginx") == (Port(80, KNOWN, "client"),)
    assert ports(left) == (Port(80, KNOWN, "client"),)
    assert ports({"image": "example/x"}) == ()


def test_what_callers_write_is_there_besides_what_is_declared() -> None:
    assert [it.number for it in ports({"expose": ["1001"]}, CALLER)] == [1001, 1002]


def test_what_is_known_of_the_image_is_hidden_by_nothing() -> None:
    def numbers(db: dict[str, Any], web: dict[str, Any] | None = None) -> dict[int, str]:
        return {it.number: it.role for it in ports(db, web)}

    everything = {4369: "peer", 5672: "client", 15672: "administration", 15692: "administration", 25672: "peer"}
    broker = {"image": "rabbitmq", "ports": [{"target": 15672, "protocol": "tcp"}]}
    assert numbers(broker, {"depends_on": ["db"]}) == everything
    assert numbers(broker) == everything
    assert numbers(broker, {"environment": {"X": "db:5673"}}) == everything | {5673: ""}
    health = {"image": "clickhouse/clickhouse-server", "healthcheck": {"test": "wget localhost:8123/ping"}}
    assert numbers(health) == {8123: "client", 9000: "client", 9009: "peer"}
    assert numbers({"image": "nginx", "expose": ["8080"]}, {"depends_on": ["db"]}) == {8080: ""}


def test_an_app_that_moves_its_port_is_not_at_the_old_one() -> None:
    assert [it.number for it in ports({"image": "redis", "command": "redis-server --port 6380"})] == [6380]
    listeners = {"KAFKA_ADVERTISED_LISTENERS": "IN://db:29092,OUT://localhost:9092"}
    assert [it.number for it in ports({"image": "bitnami/kafka", "environment": listeners})] == [9093, 29092]
    assert [it.number for it in ports({"image": "redis", "command": "redis-server --port 6379"})] == [6379]


def settled(db: dict[str, Any], web: dict[str, Any]) -> tuple[int, ...]:
    whole = application({"db": db, "web": web})
    apps = find_apps(whole)
    mentions = find_mentions(whole, apps, {}, {})
    (edge,) = settle(find_edges(mentions), infer_ports(apps, mentions, {}, {}))
    return edge.ports


def test_an_edge_that_names_no_port_leads_to_the_clients_ports() -> None:
    assert settled({"image": "rabbitmq"}, {"depends_on": ["db"]}) == (5672,)
    assert settled({"image": "redis"}, {"depends_on": ["db"]}) == ()
    assert settled({"image": "example/x", "expose": ["1", "2"]}, {"depends_on": ["db"]}) == ()
    assert settled({"image": "rabbitmq"}, {"environment": {"X": "http://db:15672"}}) == (15672,)


def test_an_edge_that_names_one_port_and_elsewhere_none() -> None:
    both = {"X": "http://db:8123", "DB_HOST": "db"}
    assert settled({"image": "clickhouse/clickhouse-server"}, {"environment": both}) == (8123, 9000)
    assert settled({"image": "clickhouse/clickhouse-server"}, {"environment": {"X": "http://db:8123"}}) == (8123,)
    assert settled({"image": "example/x"}, {"environment": both}) == (8123,)


def test_a_url_without_a_port_of_who_does_not_listen_there() -> None:
    url = {"environment": {"X": "http://db/index"}}
    assert settled({"image": "elasticsearch"}, url) == (80, 9200)
    assert settled({"image": "elasticsearch", "expose": ["80"]}, url) == (80,)
    assert settled({"image": "elasticsearch"}, {"environment": {"X": "http://db:9300"}}) == (9300,)
    assert settled({"image": "nginx"}, url) == (80,)


def test_who_starts_after_a_job_does_not_call_it() -> None:
    def settled_with(web: dict[str, Any]) -> int:
        whole = application({"db": {"image": "elasticsearch"}, "web": web})
        apps = find_apps(whole)
        mentions = find_mentions(whole, apps, {}, {})
        return len(settle(find_edges(mentions), infer_ports(apps, mentions, {}, {}), {"db"}))

    assert settled_with({"depends_on": ["db"]}) == 0
    assert settled_with({"environment": {"X_HOST": "db"}}) == 1


def test_udp_is_no_port() -> None:
    assert [it.number for it in ports({"expose": ["8125/udp", "8126"]}, {"environment": {"X": "db:8125"}})] == [8126]


def test_an_answer_is_final() -> None:
    assert ports(EVERYTHING, CALLER, given={"db": (7,)}) == (Port(7, "given"),)
    assert ports(EVERYTHING, given={"db": ()}) == ()


def test_a_job_does_not_serve_at_the_ports_of_its_image() -> None:
    whole = application({"job": {"image": "oryd/hydra"}, "db": {"image": "postgres"}})
    apps = find_apps(whole)
    as_jobs, as_servers = infer_ports(apps, (), {}, {}, {}), infer_ports(apps, (), {}, {}, {"job": {}, "db": {}})
    assert [[it.number for it in found[name]] for found in (as_jobs, as_servers) for name in ("job", "db")] == [
        [],
        [5432],
        [4444, 4445],
        [5432],
    ]
