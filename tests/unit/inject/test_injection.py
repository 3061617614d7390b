"""The whole of it: what is refused, and that the same input gives the same bytes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, OVERRIDE, Injection, inject
from sidecar.inject.subnets import Taken
from sidecar.policy.mesh import parse_mesh
from tests.inject.applications import OPTIONS, config, inputs
from tests.inject.bed import again

SERVICES: dict[str, Any] = {"web": {"depends_on": ["db"]}, "db": {"image": "redis"}}


def test_the_same_input_the_same_bytes_whatever_the_order() -> None:
    turned = {name: SERVICES[name] for name in reversed(SERVICES)}
    assert inject(inputs(SERVICES)).files == inject(inputs(SERVICES)).files
    assert inject(inputs(turned)).files == inject(inputs(SERVICES)).files
    assert sorted(inject(inputs(SERVICES)).files) == [
        OVERRIDE,
        MESH_FILE,
        "mesh/sidecars/db.yaml",
        "mesh/sidecars/web.yaml",
    ]


@pytest.mark.parametrize(
    ("project", "domain"), [("shop", "shop.internal"), ("My_Shop--2", "my-shop--2.internal"), ("_", "app.internal")]
)
def test_the_trust_domain(project: str, domain: str) -> None:
    data = {**config(SERVICES), "name": project}
    injection = inject(replace(inputs(SERVICES), config=data))
    assert parse_mesh(injection.files[MESH_FILE], "m").trust_domain == injection.trust_domain == domain


def test_what_is_called_at_a_port_is_no_job_though_it_is_named_like_one() -> None:
    services = {"web": {"depends_on": ["seeder"]}, "seeder": {"healthcheck": {"test": "curl localhost:7000"}}}
    caller = {"environment": {"PEERS": "http://seeder:7000"}}
    assert inject(inputs({**services, "api": {}})).edges == ()
    found = inject(inputs({**services, "api": caller})).edges
    assert [(it.caller, it.callee) for it in found] == [("api", "seeder"), ("web", "seeder")]


def test_an_edited_trust_domain_stays() -> None:
    given = inputs(SERVICES)
    first = inject(given)
    edited = first.files[MESH_FILE].replace("shop.internal", "mine.test")
    assert inject(again(given, first, edited)).trust_domain == "mine.test"


def test_a_second_injection_is_recognised() -> None:
    data = {**config(SERVICES), "x-sidecar-inject": {}}
    with pytest.raises(UsageError, match=r"^compose.mesh.yaml is among the files"):
        inject(replace(inputs(SERVICES), config=data))


def test_nothing_left_to_mesh() -> None:
    with pytest.raises(UsageError) as refused:
        inject(inputs({"a": {}, "b": {"network_mode": "host"}}))
    assert str(refused.value).splitlines() == [
        "compose.yaml: there are no two services that a mesh could connect",
        "a is left out: it shares no network with another service",
        "b is left out: it uses the host's network, where no sidecar can be put between it and others",
    ]


def test_a_whole_application_that_is_one_cluster() -> None:
    member = {"image": "example/hadoop", "environment": {"CORE_CONF_fs_defaultFS": "hdfs://a:8020"}}
    with pytest.raises(UsageError) as refused:
        inject(inputs({"a": member, "b": member}))
    assert str(refused.value).splitlines() == [
        "compose.yaml: there are no two services that a mesh could connect",
        "a, b are left out: each stays on network default, and shares no other with a service of the mesh: "
        "they are a Hadoop cluster, whose members call each other at their own addresses",
    ]


def test_answers_for_whom_there_is_not() -> None:
    with pytest.raises(UsageError, match=r"^--port: there is no service 'bd' .*did you mean 'db'"):
        inject(inputs(SERVICES, options=replace(OPTIONS, ports={"bd": (1,)})))


def test_answers_and_an_edited_file() -> None:
    given = inputs(SERVICES)
    first = inject(given)
    run = again(given, first, first.files[MESH_FILE] + "# mine\n")
    with pytest.raises(UsageError, match=r"^--port: mesh/mesh.yaml was edited, and declares the ports of 'db'"):
        inject(replace(run, options=replace(OPTIONS, ports={"db": (1,)})))
    same = inject(replace(run, options=replace(OPTIONS, ports={"db": (6379,)})))
    assert same.files[MESH_FILE] == first.files[MESH_FILE] + "# mine\n"


def test_what_is_asked_for_and_answered() -> None:
    services: dict[str, Any] = {"web": {"environment": {"X_HOST": "x"}}, "x": {}}
    with pytest.raises(UsageError, match="--port x=…"):
        inject(inputs(services))
    answered = inject(inputs(services, options=replace(OPTIONS, ports={"x": (7,)})))
    assert '"7"' in answered.files["mesh/sidecars/x.yaml"]
    none = inject(inputs(services, options=replace(OPTIONS, ports={"x": ()})))
    assert "policy: []" in none.files[MESH_FILE]


def test_addresses_that_are_taken() -> None:
    lan = {"lan": {"ipam": {"config": [{"subnet": "10.9.0.0/16"}, {"subnet": "fd00::/64"}]}}}
    narrow = replace(OPTIONS, subnets=IPv4Network("10.9.0.0/20"))
    with pytest.raises(UsageError, match=r"overlaps networks that exist already: 10.9.0.0/16 \(network lan\)"):
        inject(inputs(SERVICES, lan, options=narrow))
    with pytest.raises(UsageError, match="a VPN"):
        inject(inputs(SERVICES, options=narrow, taken=(Taken(IPv4Network("10.9.0.0/16"), "a VPN"),)))
    assert inject(inputs(SERVICES, options=narrow)).placement.block == IPv4Network("10.9.0.0/20")


def test_a_state_that_is_mounted() -> None:
    services = {**SERVICES, "web": {"volumes": [{"type": "bind", "source": "/state"}]}}
    with pytest.raises(UsageError, match=r"^--state: "):
        inject(inputs(services))


def test_a_subnet_that_somebody_lets_in_is_told() -> None:
    lan = {"lan": {"ipam": {"config": [{"subnet": "10.9.0.0/16"}]}}}
    db = {"image": "redis", "networks": {"lan": None, "default": None}, "environment": {"ALLOW": "10.9.0.0/16"}}
    said = "db: environment ALLOW names the subnet of network lan: calls from there now come from db's sidecar"
    web: dict[str, Any] = {"networks": {"lan": None}, "depends_on": ["db"]}
    assert said in inject(inputs({"web": web, "db": db}, lan)).warnings
    db["environment"] = {}
    assert said not in inject(inputs({"web": web, "db": db}, lan)).warnings


ALIKE: dict[str, Any] = {
    "web": {"expose": ["80"], "depends_on": ["a"]},
    **{name: {"expose": ["8080"]} for name in ("a", "b", "c")},
}


def outbound(injection: Injection, app: str) -> list[tuple[str, list[str]]]:
    data = yaml.safe_load(injection.files[f"mesh/sidecars/{app}.yaml"])
    return sorted((entry["to"], entry.get("ambiguous_with", [])) for entry in data["outbound"])


def test_neighbours_that_nobody_is_foreseen_to_call_are_refused_at_one_address() -> None:
    first = inject(inputs(ALIKE))
    assert outbound(first, "web") == [("a:8080", []), ("b:8080", ["c:8080"])]
    assert outbound(first, "a") == [("b:8080", ["c:8080"]), ("web:80", [])]
    assert inject(again(inputs(ALIKE), first)).files == first.files


def test_the_twin_one_that_a_person_allows_gets_an_address_of_its_own() -> None:
    first = inject(inputs(ALIKE))
    text = first.files[MESH_FILE].replace("\n...", "\n  - {from: web, to: c}\n...")
    after = inject(again(inputs(ALIKE), first, text))
    assert outbound(after, "web") == [("a:8080", []), ("b:8080", []), ("c:8080", [])]
    everything = inject(inputs(ALIKE, options=replace(OPTIONS, observe=True)))
    assert all(not more for app in ALIKE for _, more in outbound(everything, app))
