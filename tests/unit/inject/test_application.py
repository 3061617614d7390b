"""Compose's JSON as values."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.application import MARK, read_application
from tests.inject.applications import application


def test_a_service_with_everything() -> None:
    service = application(
        {
            "web": {
                "image": "nginx:1.27",
                "container_name": "front",
                "hostname": "www",
                "domainname": "shop.test",
                "networks": {"default": {"aliases": ["w"], "ipv4_address": "10.0.0.5"}},
                "links": ["db:mysql", "cache"],
                "environment": {"A": "$$x", "B": None},
                "entrypoint": ["sh"],
                "command": ["-c", "echo $$HOME"],
                "healthcheck": {"test": ["CMD", "true"]},
                "expose": ["8080", "3000-3002", "53/udp"],
                "ports": [{"target": 80, "published": "8080", "protocol": "tcp"}, {"target": 53, "protocol": "udp"}],
                "volumes": [{"type": "bind", "source": "/x/docker.sock"}, {"type": "volume", "source": "data"}],
                "build": {"context": "/src", "additional_contexts": {"lib": "/lib"}},
                "deploy": {"replicas": 3},
                "dns": ["10.0.0.9"],
            }
        }
    ).services["web"]
    assert service.own_names() == {"web", "front", "www", "www.shop.test", "w"}
    assert service.names_on("default") == ("web", "front", "www", "www.shop.test", "w")
    assert service.links == (("db", "mysql"), ("cache", "cache"))
    assert service.environment == {"A": "$x"}
    assert service.command == "sh -c echo $HOME"
    assert service.declared("tcp") == (8080, 3000, 3001, 3002, 80)
    assert service.declared("udp") == (53,)
    assert service.mounts == ("/x/docker.sock",)
    assert service.has_docker_socket
    assert service.builds == ("/src", "/lib")
    assert (service.replicas, service.addresses) == (3, ("10.0.0.9",))
    assert [port.is_loopback for port in service.published] == [False, False]


def test_a_service_with_nothing() -> None:
    service = application({"db": None}).services["db"]
    assert (service.image, service.replicas, service.command, service.declared("tcp")) == ("", 1, "", ())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_a_port_on_loopback(address: str) -> None:
    service = application({"db": {"ports": [{"target": 1, "host_ip": address}]}}).services["db"]
    assert service.published[0].is_loopback


def test_networks_and_inline_configs() -> None:
    found = application(
        {"db": {"configs": [{"source": "c"}, {"source": "file"}]}},
        {"lan": {"ipam": {"config": [{"subnet": "10.0.0.0/24"}]}, "internal": True}, "outer": {"external": True}},
        configs={"c": {"content": "a $$b"}, "file": {"file": "/x"}},
    )
    assert found.networks["lan"].subnets == ("10.0.0.0/24",)
    assert (found.networks["lan"].internal, found.networks["outer"].external) == (True, True)
    assert found.config_texts["db"] == (("config c", "a $b"),)


def test_the_mark_of_an_earlier_injection() -> None:
    assert application({"a": None}).mark is None
    assert application({"a": None}, **{MARK: {"x": 1}}).mark == {"x": 1}


@pytest.mark.parametrize("data", [None, [], {}, {"services": {}}, {"services": []}])
def test_nothing_to_put_into_a_mesh(data: Any) -> None:
    with pytest.raises(UsageError, match=r"^compose.yaml: has no services"):
        read_application(data, "compose.yaml")


@pytest.mark.parametrize("name", ["..", ".", "-a", "a..b", "123", "a" * 60, "0x10"])
def test_a_name_that_is_no_identity_or_host(name: str) -> None:
    with pytest.raises(UsageError, match=r"^compose.yaml: service '.*': its name cannot be an identity"):
        application({name: None})


@pytest.mark.parametrize("name", ["a", "a_b", "A.b", "no", "1a", "a" * 58])
def test_the_twin_names_that_are(name: str) -> None:
    assert list(application({name: None}).services) == [name]
