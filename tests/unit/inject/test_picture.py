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
    "quiet": {"restart": "no", "volumes": [{"type": "bind", "source": "/var/run/docker.sock"}]},
    "router": {"network_mode": None, "networks": {"default": None}, "expose": ["53/udp"]},
}


def test_the_picture() -> None:
    assert inject(inputs(SERVICES)).picture.splitlines() == [
        "  web ══► api:81  environment URL",
        "  web ──► router  depends_on",
        "  quiet: no call from it or to it was found",
    ]


def test_an_order_of_start_is_a_call_if_there_is_something_to_call() -> None:
    services: dict[str, Any] = {
        "web": {"depends_on": ["migrate", "api"]},
        "migrate": {"depends_on": ["api"], "restart": "no"},
        "api": {"expose": ["80"]},
    }
    assert inject(inputs(services)).picture.splitlines() == [
        "  migrate ══► api:80  depends_on",
        "  web     ══► api:80  depends_on",
    ]


def test_what_a_person_must_know() -> None:
    said = list(inject(inputs(SERVICES)).warnings)
    assert said == [
        "router is not in the mesh: it serves UDP only, which mutual TLS does not carry",
        "traffic between router and web stays plaintext: router serves UDP only, which mutual TLS does not carry",
        "web: reachable without the mesh at published ports 80, 443: for whoever reaches this host, and for containers "
        "through the gateway of their networks (--publish loopback or --publish drop)",
        "api: its 2 replicas share one sidecar; traffic among them is plaintext",
        "api: services of the mesh can no longer reach its UDP port 9",
        "api, in share one network namespace, so one identity: api",
        "api: its external_links lead out of the application and do not work in its private network",
        "quiet has the Docker socket, and with it full control of this machine",
        "router comes to web in plaintext, by its sidecar, until 2026-12-08 (UTC): `sidecar status --all` counts who does; "
        "then it is refused. `until` of the rule in mesh/mesh.yaml is yours to change",
        "web: strict is not complete, also after 2026-12-08: its sidecar does not see who comes at published port 80 "
        "(--publish drop); at published port 443 (--publish drop); by router, not in the mesh (the app calls it)",
        "router can reach api past its sidecar, not seen: the app serves UDP, which no sidecar carries",
        "quiet can no longer call router, as nothing says that it does: if so, name that in `depends_on`",
    ]
    assert "9999" not in str(said)


def test_what_holds_of_several_is_one_line() -> None:
    services: dict[str, Any] = {
        "host": {"network_mode": "host"},
        **{
            name: {
                "environment": {"DNS_HOST": "dns"},
                "networks": {"default": None, **({"outer": None} if name != "c" else {})},
                "ports": [{"target": 80}, {"target": number}],
            }
            for name, number in (("a", 81), ("b", 82), ("c", 83))
        },
        "dns": {"expose": ["53/udp"]},
        "d": {"expose": ["80"], "environment": {"A": "c:80"}},
    }
    injection = inject(inputs(services, {"outer": {"name": "outer", "external": True}, "own": {"name": "shop_own"}}))
    said = [line for line in injection.warnings if "is not in the mesh" not in line]
    assert [line.partition(":")[0] for line in said] == [
        "traffic between dns and a, b, c stays plaintext",
        "a, b stay on network outer",
        "a, b, c",
        "dns comes to a, b, c, d in plaintext, by their sidecars, until 2026-12-08 (UTC)",
        *(f"{name}: strict is not complete, also after 2026-12-08".partition(":")[0] for name in ("a", "b", "c", "d")),
        "d can no longer call dns, as nothing says that it does",
    ]
    assert "published ports 80, 81, 82, 83:" in said[2]
    quiet = inject(inputs({"a": {}, "b": {}})).picture
    assert quiet == "  a, b: no call from them or to them was found"
    assert injection.lost == ("shop_default",)


def test_the_twin_that_loses_no_network() -> None:
    services: dict[str, Any] = {
        "a": {"networks": {"x": None, "outer": None}},
        "b": {"networks": {"x": None}},
        "c": {"networks": {"outer": None}},
    }
    found = inject(inputs(services, {"x": {"name": "x"}, "outer": {"name": "outer", "external": True}}))
    assert found.lost == ("x",)


def test_the_twin_nothing_to_say() -> None:
    dropped = Options("/state", "1:1", publish="drop")
    services: dict[str, Any] = {"web": {**SERVICES["web"], "depends_on": []}, "api": {}}
    assert inject(inputs(services, options=dropped)).warnings == ()
