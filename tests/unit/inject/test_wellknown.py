"""Images and their ports."""

from __future__ import annotations

import pytest

from sidecar.inject.wellknown import is_router, known, split


@pytest.mark.parametrize(
    ("image", "port", "store"),
    [
        ("postgres", 5432, True),
        ("registry.test:5000/bitnami/postgresql:16@sha256:00", 5432, True),
        ("docker.elastic.co/elasticsearch/elasticsearch:8.1.0", 9200, True),
        ("nginx:alpine", 80, False),
        ("php:8.3-fpm", 9000, False),
        ("php:8-apache", 80, False),
        ("wordpress:6-fpm", 9000, False),
        ("wordpress", 80, False),
    ],
)
def test_known(image: str, port: int, store: bool) -> None:
    found = known(image)
    assert found is not None
    assert (found.ports[0], found.store) == (port, store)


@pytest.mark.parametrize("image", ["", "example/postgres-tools", "php:8-cli", "my-nginx-thing"])
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
