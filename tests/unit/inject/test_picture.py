"""What is said to people."""

from __future__ import annotations

from typing import Any

from sidecar.inject.injection import inject
from sidecar.inject.options import Options
from tests.inject.applications import inputs

SERVICES: dict[str, Any] = {
    "web": {
        "environment": {"URL": "http://api:81", "SECRET": "hunter2"},
        "depends_on": ["router"],
        "ports": [{"target": 80, "published": "9999", "protocol": "tcp"}, {"target": 443, "protocol": "tcp"}],
    },
    "api": {"scale": 2, "expose": ["9/udp"], "external_links": ["x"]},
    "in": {"network_mode": "service:api"},
    "quiet": {"volumes": [{"type": "bind", "source": "/var/run/docker.sock"}]},
    "router": {"network_mode": None, "networks": {"default": None}, "expose": ["53/udp"]},
}


def test_the_picture() -> None:
    assert inject(inputs(SERVICES)).picture.splitlines() == [
        "  web ══► api:81  environment URL",
        "  web ──► router  depends_on",
        "  quiet: no call from it or to it was found",
    ]


def test_what_a_person_must_know() -> None:
    said = list(inject(inputs(SERVICES)).warnings)
    assert said == [
        "router is not in the mesh: it serves UDP only, which mutual TLS does not carry",
        "traffic between router and web stays plaintext: router serves UDP only, which mutual TLS does not carry",
        "api: its 2 replicas share one sidecar; traffic among them is plaintext",
        "api: services of the mesh can no longer reach its UDP port 9",
        "api, in share one network namespace, so one identity: api",
        "api: its external_links lead out of the application and do not work in its private network",
        "quiet has the Docker socket, and with it full control of this machine",
        "web: reachable without the mesh, also from containers through the gateway of their networks: published "
        "ports 80, 443 (--publish loopback or --publish drop)",
    ]
    assert "9999" not in str(said)


def test_the_twin_nothing_to_say() -> None:
    dropped = Options("/state", "1:1", publish="drop")
    services: dict[str, Any] = {"web": {**SERVICES["web"], "depends_on": []}, "api": {}}
    assert inject(inputs(services, options=dropped)).warnings == ()
