"""What cannot be behind a sidecar, each beside one that can."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import find_mentions
from sidecar.inject.exclusions import exclude, udp_beside
from sidecar.inject.visibility import find_apps
from tests.inject.applications import application, apps

SOCKET = {"type": "bind", "source": "/var/run/docker.sock"}


def excluded(services: dict[str, Any], *only: str, **images: str) -> dict[str, str]:
    whole = application(services)
    found = find_apps(whole)
    return exclude(found, find_mentions(whole, found, {}, {}), frozenset(only), images)


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ({"network_mode": "host"}, "host's network"),
        ({"network_mode": "none"}, "has no network"),
        ({"network_mode": "bridge"}, "network of Docker itself"),
        ({"network_mode": "container:x"}, "a container of another application"),
        ({"image": "traefik:v3", "volumes": [SOCKET]}, "asking Docker"),
        ({"image": "traefik:v3", "command": "--providers.docker.endpoint=tcp://x:2375"}, "asking Docker"),
        ({"image": "jwilder/nginx-proxy", "environment": {"DOCKER_HOST": "tcp://x:2375"}}, "asking Docker"),
        ({"expose": ["53/udp"]}, "UDP only"),
    ],
)
def test_excluded(service: dict[str, Any], reason: str) -> None:
    assert reason in excluded({"x": service, "other": {}})["x"]


@pytest.mark.parametrize(
    "service",
    [
        {},
        {"image": "traefik:v3", "command": "--providers.file.filename=/x"},
        {"image": "portainer/portainer", "volumes": [SOCKET]},
        {"expose": ["53/udp", "53/tcp"]},
        {"expose": ["8125/udp", "8126/tcp"]},
    ],
)
def test_the_twin_not_excluded(service: dict[str, Any]) -> None:
    assert excluded({"x": service, "other": {}}) == {}


def test_a_router_that_is_built() -> None:
    services = {"x": {"volumes": [SOCKET]}, "other": {}}
    assert "asking Docker" in excluded(services, x="traefik:v3")["x"]
    assert excluded(services, x="alpine") == {}


def test_called_at_a_udp_port() -> None:
    services: dict[str, Any] = {"x": {"expose": ["8125/udp", "8126/tcp"]}, "web": {"environment": {"S": "x:8125"}}}
    assert excluded(services) == {"x": "is called at UDP port 8125, which mutual TLS does not carry"}
    services["web"] = {"environment": {"S": "x:8126"}}
    assert excluded(services) == {}
    services["x"] = {"expose": ["8125/udp"]}
    assert excluded(services) == {}  # it is called at a TCP port too
    services["web"] = {"environment": {"S_HOST": "x"}}
    assert "UDP only" in excluded(services)["x"]
    services["x"] = {"expose": ["8125/udp", "8126/tcp"]}
    assert udp_beside(apps(services)["x"]) == (8125,)
    assert udp_beside(apps(services)["web"]) == ()


def test_what_it_serves_over_udp_is_for_the_world_outside() -> None:
    services: dict[str, Any] = {"x": {"expose": ["8125/udp"], "environment": {"DB_HOST": "db"}}, "db": {}}
    assert excluded(services) == {}
    services["db"] = {"environment": {"X_HOST": "x"}}
    assert "UDP only" in excluded(services)["x"]


def test_only() -> None:
    services: dict[str, Any] = {"a": {}, "b": {}, "c": {"network_mode": "service:b"}, "d": {}}
    assert excluded(services, "a", "c") == {"d": "is left out by --only"}
    with pytest.raises(UsageError, match=r"^--only: there is no service 'aa' \(did you mean 'a'\?\)"):
        excluded({"a": {}, "b": {}}, "aa")
