"""Images and their ports."""

from __future__ import annotations

import pytest

from sidecar.inject.wellknown import is_broker, is_router, known, serves_files, split


@pytest.mark.parametrize(
    ("image", "port", "is_web"),
    [
        ("postgres", 5432, False),
        ("registry.test:5000/bitnami/postgresql:16@sha256:00", 5432, False),
        ("docker.elastic.co/elasticsearch/elasticsearch:8.1.0", 9200, False),
        ("nginx:alpine", 80, True),
        ("php:8.3-fpm", 9000, False),
        ("php:8-apache", 80, True),
        ("wordpress:6-fpm", 9000, False),
        ("example/webmail:1.6-fpm-alpine", 9000, False),
        ("example/shop-php-fpm", 9000, False),
        ("itzg/minecraft-server", 25565, False),
        ("nvcr.io/nvidia/tritonserver:23.06-py3", 8000, False),
        ("registry.test/own/skywalking-oap-server:9", 11800, False),
        ("wordpress", 80, True),
        ("edoburu/pgbouncer:1", 5432, False),
        ("bitnami/pgbouncer", 6432, False),
        ("jaegertracing/all-in-one:1", 4317, False),
    ],
)
def test_known(image: str, port: int, is_web: bool) -> None:
    found = known(image)
    assert found is not None
    assert (found.clients[0], found.is_web) == (port, is_web)


@pytest.mark.parametrize(
    ("image", "clients", "peers", "administration"),
    [
        ("clickhouse/clickhouse-server:24", {8123, 9000}, {9009}, set()),
        ("mailhog/mailhog", {1025}, set(), {8025}),
        ("minio/minio", {9000}, set(), {9001}),
        ("bitnami/kafka", {9092}, {9093}, set()),
        ("elasticsearch:8.1", {9200}, {9300}, set()),
        ("rabbitmq:3-management", {5672}, {4369, 25672}, {15672, 15692}),
    ],
)
def test_what_each_port_is_for(image: str, clients: set[int], peers: set[int], administration: set[int]) -> None:
    found = known(image)
    assert found is not None
    assert (set(found.clients), set(found.peers), set(found.administration)) == (clients, peers, administration)
    assert {found.role(port) for port in clients} == {"client"}
    assert {found.role(port) for port in peers} <= {"peer"}
    assert {found.role(port) for port in administration} <= {"administration"}
    assert found.role(1) == ""


@pytest.mark.parametrize(
    "image", ["", "example/all-in-one", "example/server", "example/postgres-tools", "php:8-cli", "my-nginx-thing"]
)
def test_not_known(image: str) -> None:
    assert known(image) is None


def test_a_name_and_a_tag() -> None:
    assert split("a.test:5000/b/C:D") == ("c", "d")
    assert split("a@sha256:0") == ("a", "")


def test_routers() -> None:
    assert is_router("traefik:v3")
    assert is_router("nginxproxy/nginx-proxy:1")
    assert is_router("lucaslorentz/caddy-docker-proxy")
    assert not is_router("nginx")
    assert not is_router("haproxy")


@pytest.mark.parametrize(
    ("image", "expected"), [("rabbitmq:3", True), ("bitnami/kafka", True), ("redis", False), ("x/y", False)]
)
def test_brokers(image: str, *, expected: bool) -> None:
    assert is_broker(image) is expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [("nginx:1", True), ("x/httpd", True), ("wordpress", False), ("php:apache", False), ("", False)],
)
def test_web_servers_that_run_no_programs(image: str, *, expected: bool) -> None:
    assert serves_files(image) is expected
