"""Members of clusters: who they are, whether they are meshed or stay together, and who only looks like one."""

from __future__ import annotations

from typing import Any

from sidecar.inject.clusters import Cluster, cluster_references, find_clusters, told, with_clusters
from sidecar.inject.edges import Text, find_mentions
from sidecar.inject.visibility import find_apps
from tests.inject.applications import application


def clusters(services: dict[str, Any], texts: dict[str, str] | None = None, **networks: Any) -> tuple[Cluster, ...]:
    whole = application(services, networks)
    apps = find_apps(whole)
    mounted = {name: (Text("f", text, "mounted"),) for name, text in (texts or {}).items()}
    return find_clusters(whole, apps, find_mentions(whole, apps, mounted, {}), mounted, {})


def shown(found: tuple[Cluster, ...]) -> list[tuple[str, str, bool]]:
    return [(it.name, " ".join(it.members), it.by_name) for it in found]


def mongo(name: str) -> dict[str, Any]:
    return {"image": "mongo", "command": ["mongod", "--replSet", name]}


def test_members_say_the_same() -> None:
    found = clusters(
        {"a": mongo("r"), "b": mongo("r"), "c": mongo("s"), "d": mongo("s"), "app": {"image": "example/app"}}
    )
    assert shown(found) == [("MongoDB replica set", "a b", True), ("MongoDB replica set", "c d", True)]


def test_the_twins_that_are_none() -> None:
    assert clusters({"a": mongo("r"), "b": mongo("s")}) == ()
    assert clusters({"a": mongo("r"), "b": {"image": "mongo"}}) == ()
    assert clusters({"a": mongo("r"), "b": {**mongo("r"), "networks": {"other": None}}}, other={}) == ()
    assert clusters({"a": {"image": "rabbitmq"}, "b": {"image": "rabbitmq"}}) == ()
    client = {"image": "example/app", "environment": {"DATABASE": "gcomm://a,b"}}
    assert clusters({"a": {"image": "redis"}, "b": client, "c": client}) == ()


def test_members_that_only_others_name() -> None:
    sentinel = {"image": "redis", "command": "redis-sentinel /etc/s.conf"}
    services = {"main": {"image": "redis"}, "s1": sentinel, "s2": sentinel, "other": {"image": "redis"}}
    config = dict.fromkeys(("s1", "s2"), "sentinel monitor m main 6379 2\nhost = main")
    assert shown(clusters(services, config)) == [("set of Redis servers and Sentinels", "main s1 s2", False)]


def test_a_sentinel_by_its_image_alone() -> None:
    services: dict[str, Any] = {
        "main": {"image": "redis"},
        "watch": {"image": "bitnami/redis-sentinel:7", "environment": {"REDIS_MASTER_HOST": "main"}},
        "app": {"image": "acme/app", "environment": {"SENTINELS": "watch:26379"}},
        "other": {"image": "acme/app"},
    }
    assert shown(clusters(services)) == [("set of Redis servers and Sentinels", "app main watch", False)]
    exporter = {**services["watch"], "image": "acme/redis-exporter"}
    assert clusters({**services, "watch": exporter}) == ()


def test_members_that_others_name_by_a_node() -> None:
    joins = {"image": "rabbitmq", "environment": {"RABBITMQ_CLUSTER_NODE_NAME": "rabbit@main"}}
    cookie = {"image": "rabbitmq", "environment": {"RABBITMQ_ERLANG_COOKIE": "x"}}
    services = {"main": cookie, "a": joins, "b": joins, "other": cookie}
    assert shown(clusters(services)) == [("RabbitMQ cluster", "a b main", True)]


def test_members_that_others_name_by_the_variable_that_makes_them_members() -> None:
    cookie = {"image": "rabbitmq", "environment": {"RABBITMQ_ERLANG_COOKIE": "x"}}
    joins = {"image": "rabbitmq", "environment": {"RABBITMQ_CLUSTER_WITH": "rabbit@main"}}
    services = {"main": cookie, "a": joins, "other": cookie}
    assert shown(clusters(services)) == [("RabbitMQ cluster", "a main", True)]
    elsewhere = {"image": "rabbitmq", "environment": {"RABBITMQ_CLUSTER_WITH": "far", "NODE_NAME": "main"}}
    assert clusters({**services, "a": elsewhere}) == ()
    assert clusters({**services, "main": {"image": "example/app"}}) == ()


def test_members_that_say_their_own_name_are_meshed() -> None:
    roach = {"image": "cockroachdb/cockroach", "command": "start --join=a,b"}
    assert shown(clusters({"a": roach, "b": roach})) == [("CockroachDB cluster", "a b", False)]
    services = {name: {**roach, "hostname": name} for name in "ab"}
    assert shown(clusters(services)) == [("CockroachDB cluster", "a b", True)]


def test_patroni_tells_its_own_address_unless_it_is_given_a_name() -> None:
    bare = {"image": "patroni", "environment": {"PATRONI_SCOPE": "x"}}
    said = {"image": "patroni", "environment": {"PATRONI_POSTGRESQL_CONNECT_ADDRESS": "db:5432"}}
    named = dict.fromkeys("ab", "connect_address: db:5432")
    assert shown(clusters({"a": bare, "b": bare})) == [("Patroni cluster", "a b", False)]
    assert shown(clusters({"a": said, "b": bare})) == [("Patroni cluster", "a b", False)]
    assert shown(clusters({"a": said, "b": said})) == [("Patroni cluster", "a b", True)]
    assert shown(clusters({"a": bare, "b": bare}, named)) == [("Patroni cluster", "a b", True)]


def test_clients_that_are_told_addresses_belong_to_it() -> None:
    node = {"image": "redis", "command": "redis-server --cluster-enabled yes"}
    services = {"a": node, "b": node, "app": {"environment": {"REDIS_HOST": "a"}}, "other": {"depends_on": ["a"]}}
    assert shown(clusters(services)) == [("Redis Cluster", "a app b", False)]


def test_a_url_without_a_port_is_at_the_ports_of_the_kind() -> None:
    minio = {"image": "minio/minio", "command": "server http://m{1...2}/data"}
    whole = application({"m1": minio, "m2": minio})
    apps = find_apps(whole)
    mentions = find_mentions(whole, apps, {}, {})
    found = with_clusters(mentions, find_clusters(whole, apps, mentions, {}, {}), apps)
    assert {(it.caller, it.callee, it.port) for it in found} == {("m1", "m2", 9000), ("m2", "m1", 9000)}


def test_what_the_settings_of_a_source_say() -> None:
    whole = application({"a": {}, "b": {}, "c": {}})
    eureka = "eureka:\n  client:\n    service-url:\n      defaultZone: http://c:8761/eureka"
    texts = {
        "a": (Text("src/application.yml", "eureka.client.serviceUrl.defaultZone: http://c", "build"),),
        "b": (Text("src/application.yml", "eureka.client.serviceUrl.defaultZone: http://c", "build"),),
        "c": (Text("notes.py", eureka, "build"),),
    }
    apps = find_apps(whole)
    found = find_clusters(whole, apps, find_mentions(whole, apps, texts, {}), texts, {"c": "eureka"})
    assert shown(found) == [("set of services that find each other through a registry", "a b c", False)]


def test_members_by_name_call_each_other_at_the_ports_of_their_kind_and_at_their_own() -> None:
    kafka = {
        name: {
            "image": "apache/kafka",
            "environment": {"KAFKA_NODE_ID": str(number), "KAFKA_ADVERTISED_LISTENERS": f"IN://{name}:2909{number}"},
        }
        for number, name in enumerate(("k1", "k2"))
    }
    apps = find_apps(application(kafka))
    found = clusters(kafka)
    assert [(it.caller, it.callee, it.port) for it in with_clusters((), found, apps)] == [
        ("k2", "k1", 29090),
        ("k1", "k2", 29091),
    ]
    assert list(told(found)) == ["k1, k2 are a Kafka cluster: each may call the others"]
    assert list(cluster_references(found)) == []


def test_members_by_address_stay_on_their_network() -> None:
    nodes = {
        name: {"image": "elasticsearch:8.1", "environment": {"discovery.seed_hosts": other}}
        for name, other in (("es1", "es2"), ("es2", "es1"))
    }
    found = clusters({**nodes, "kibana": {"image": "kibana"}})
    (reference,) = cluster_references(found)
    assert (reference.caller, reference.callee, reference.network) == ("es1", "es2", "default")
    assert "a Elasticsearch" not in reference.reason
    assert "Elasticsearch or OpenSearch cluster" in reference.reason
    assert list(told(found)) == []
    whole = application(nodes)
    mentions = find_mentions(whole, find_apps(whole), {}, {})
    named = [(it.caller, it.callee, it.port) for it in with_clusters(mentions, found, find_apps(whole))]
    assert sorted(named) == [("es1", "es2", 9300), ("es2", "es1", 9300)]
    assert {it.port for it in with_clusters(mentions, (), find_apps(whole))} == {None}
