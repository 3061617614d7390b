"""One sidecar's file."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from sidecar.config.wiring import parse_config
from sidecar.inject.wiring import wiring, wiring_path, wiring_text
from sidecar.policy.mesh import parse_mesh
from tests.inject.applications import topology

MESH = "trust_domain: a.internal\nservices: {web: {ports: 80}, api: {ports: {http: 80}}, db: {ports: 5432}}\npolicy: []"


def test_every_port_of_every_callee_on_the_address_of_its_network_only() -> None:
    found = topology({"web": {"expose": ["80"]}, "api": {"expose": ["80"]}, "db": {"expose": ["5432"]}})
    ports = {"web": {"80": 80}, "api": {"http": 80}, "db": {"5432": 5432}}
    subnets = {"db-private": IPv4Network("10.0.0.0/28"), "db-private-2": IPv4Network("10.0.0.16/28")}
    text = wiring_text(wiring("db", found, ports, subnets, IPv4Address("10.1.0.9")))
    config = parse_config(text, "x/db.yaml", {}, parse_mesh(MESH, "mesh.yaml"))
    assert [(it.port, str(it.listen), str(it.apps[0])) for it in config.inbound] == [
        ("5432", "10.1.0.9:5432", "db:5432")
    ]
    assert [
        (str(it.target), str(it.listen), str(it.peers[0]), str(it.allow_from[0]), it.device) for it in config.outbound
    ] == [
        ("api:http", "10.0.0.2:80", "api.mesh:80", "10.0.0.8/29", "auto"),
        ("web:80", "10.0.0.18:80", "web.mesh:80", "10.0.0.24/29", "auto"),
    ]
    assert config.timeouts.wait == 300.0  # `wait-for-it web:80` must not succeed because a sidecar is there
    assert wiring_path("db") == "sidecars/db.yaml"


def test_an_app_on_several_networks_is_looked_for_on_each() -> None:
    found = topology({"web": {"expose": ["80"]}, "api": {"expose": ["80"]}, "db": {"expose": ["5432"]}})
    ports = {"web": {"80": 80}, "api": {"http": 80}, "db": {"5432": 5432}}
    subnets = {f"{name}-private{it}": IPv4Network("10.0.0.0/28") for name in ("db", "web") for it in ("", "-2")}
    apps = {
        app: wiring(app, found, ports, subnets, IPv4Address("10.1.0.9"), project="shop")["inbound"][0]["app"]
        for app in ("db", "web")
    }
    assert apps == {"db": ["db:5432", "db.shop_db-private-2:5432"], "web": "web:80"}
