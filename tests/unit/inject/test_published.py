"""``--publish-mesh``: mutual TLS at an address of the host, and never a listener that takes plaintext."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import OVERRIDE, Injection, inject
from sidecar.inject.options import read_record
from sidecar.inject.published import FIRST_INSIDE, Asked, parse_asked, published_network
from sidecar.inject.subnets import Taken, dynamic_half
from sidecar.inject.topology import MESH, private_network
from tests.inject.applications import OPTIONS, inputs
from tests.inject.bed import again
from tests.unit.inject.test_facts import injected, wiring
from tests.unit.inject.test_override import _Loader

SERVICES: dict[str, Any] = {"web": {"depends_on": ["db"], "expose": ["80"]}, "db": {"image": "redis"}}
DB = {"db": Asked()}


def published(asked: dict[str, Asked], services: dict[str, Any] = SERVICES, **options: Any) -> Injection:
    return inject(inputs(services, options=replace(OPTIONS, publish_mesh=asked, **options)))


def override(injection: Injection) -> Any:
    return yaml.load(injection.files[OVERRIDE], _Loader)  # noqa: S506  # a safe loader with two tags


def fault(asked: dict[str, Asked], services: dict[str, Any] = SERVICES, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        published(asked, services, **options)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("db", {"db": Asked()}),
        ("db=5433", {"db": Asked("127.0.0.1", 5433)}),
        ("db:redis=0.0.0.0:5433", {"db:redis": Asked("0.0.0.0", 5433)}),
        ("db=[::1]:5433", {"db": Asked("::1", 5433)}),
        ("db=none", {"db": None}),
    ],
)
def test_what_is_asked(text: str, asked: dict[str, Asked | None]) -> None:
    assert parse_asked([text]) == asked


@pytest.mark.parametrize(
    "text", ["", "=5", "db=", "db=x", "db=10.0.0.5", "db=host:5", "db=1.2.3.4:0", "db=0", "db=70000", "a:b:c", "db:=5"]
)
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--publish-mesh: .* is not SERVICE\[:PORT\]\[=ADDR:PORT\]: write db"):
        parse_asked([text])


def test_a_network_of_its_own_and_one_listener_on_it() -> None:
    injection = published(DB)
    data, network = override(injection), published_network("db")
    assert [name for name, it in data["services"].items() if network in _networks(it)] == ["db-mesh"]
    assert "internal" not in data["networks"][network]
    assert data["services"]["db-mesh"]["ports"] == [
        {"target": FIRST_INSIDE, "host_ip": "127.0.0.1", "published": "6379", "protocol": "tcp"}
    ]
    at = data["services"]["db-mesh"]["networks"][network]["ipv4_address"]
    config = wiring(injection, "db")
    inbound = [(it.port, str(it.listen), it.device, str(it.apps[0])) for it in config.inbound if it.listen.host == at]
    assert inbound == [("6379", f"{at}:{FIRST_INSIDE}", "auto", "db:6379")]
    assert config.admin is not None
    others = [*(it.listen for it in config.outbound), config.admin.listen, config.admin.mesh_listen]
    assert at not in {getattr(it, "host", None) for it in others}


def _networks(service: dict[str, Any]) -> Any:
    found = service["networks"]
    return found[1] if isinstance(found, tuple) else found


def test_the_twin_nobody_is_published_who_was_not_asked_for() -> None:
    data = override(inject(inputs(SERVICES)))
    assert not any("ports" in service for service in data["services"].values())
    assert published_network("db") not in data["networks"]
    assert "ports" not in override(published(DB))["services"]["web-mesh"]


ALL: dict[str, Any] = {
    "web": {"depends_on": ["db"], "expose": ["80", str(FIRST_INSIDE)]},
    "db": {"image": "redis", "depends_on": ["web"], "x-mesh": {"scrapes": True}},
    "more": {"expose": [str(FIRST_INSIDE + 1), "6379"], "depends_on": ["db"]},
}


def test_attack_a_published_port_never_leads_to_a_plaintext_listener() -> None:
    """Whichever of the sidecar's networks the engine sends it to: no other listener has the number. And of those networks,
    the one it is for is the first by name, which is how the engine chooses."""
    injection = published(DB, ALL)
    data = override(injection)
    (port,) = data["services"]["db-mesh"]["ports"]
    config = wiring(injection, "db")
    assert config.outbound, "it has listeners that take plaintext"
    assert port["target"] not in {it.listen.port for it in config.outbound}
    assert [it.listen.port for it in config.inbound].count(port["target"]) == 1
    opened = [name for name in data["services"]["db-mesh"]["networks"] if not data["networks"][name].get("internal")]
    assert min(opened) == published_network("db")
    assert published_network("db") < f"{'db'}-plain" < private_network("db", 0)
    assert data["networks"][MESH]["internal"]


def test_attack_what_comes_by_a_gateway_may_use_no_plaintext_listener() -> None:
    """In the gateway's name come the host's programs, and what a userland proxy carries from a published port."""
    for injection in (published(DB, ALL), inject(inputs(ALL))):
        for service in injection.services:
            for route in wiring(injection, service).outbound:
                (allowed,) = route.allow_from
                subnet = next(it for it in injection.placement.subnets.values() if it.supernet_of(IPv4Network(allowed)))
                assert subnet.network_address + 1 not in allowed
                assert allowed == dynamic_half(subnet), "the twin: the addresses that containers get"


def test_other_keys_of_x_mesh_hold_there_too() -> None:
    text = "services: {web: {depends_on: [db]}, db: {image: redis, x-mesh: {sidecar: {inbound: {'*': {max_age: 2h}}}}}}"
    injection = injected(text, options=replace(OPTIONS, publish_mesh=DB))
    assert {it.max_age for it in wiring(injection, "db").inbound} == {7200.0}


def test_it_stays_and_is_written_the_same() -> None:
    given = inputs(SERVICES, options=replace(OPTIONS, publish_mesh={"db": Asked("0.0.0.0", 5433)}))
    first = inject(given)
    assert read_record(first.files[OVERRIDE], OVERRIDE).options.publish_mesh == given.options.publish_mesh
    assert inject(again(given, first)).files == first.files
    ended = again(given, first)
    after = inject(replace(ended, options=replace(ended.options, publish_mesh={})))
    assert "ports" not in override(after)["services"]["db-mesh"]
    # Docker has its network still, and Compose cannot give that another subnet.
    taken = (Taken(first.placement.subnets[published_network("db")], "a network of this machine"),)
    again_so = replace(again(given, after), options=given.options, taken=taken)
    assert inject(again_so).files == first.files
    assert after.files[OVERRIDE].count("publish") < first.files[OVERRIDE].count("publish")


PORTS: dict[str, Any] = {"ports": [{"target": 6379, "published": "6379", "protocol": "tcp"}]}
RANGE: dict[str, Any] = {"ports": [{"target": 80, "published": "6378-6380", "protocol": "tcp", "host_ip": "127.0.0.1"}]}


@pytest.mark.parametrize("web", [PORTS, RANGE])
def test_a_port_that_is_taken(web: dict[str, Any]) -> None:
    services: dict[str, Any] = {**SERVICES, "web": {"depends_on": ["db"], "expose": ["80"], **web}}
    told = fault(DB, services)
    assert told == (
        "--publish-mesh: db: 127.0.0.1:6379 is taken by web, which publishes it in the Compose file: give another, as "
        "db=127.0.0.1:6380"
    )
    assert published({"db": Asked("127.0.0.1", 6381)}, services)


def beside(ports: dict[str, Any], *, meshed: bool = True) -> dict[str, Any]:
    """One more service, which publishes these ports."""
    return {**SERVICES, "more": {"expose": ["9"], "x-mesh": {"mesh": meshed}, "depends_on": ["db"], **ports}}


AT_LOOPBACK: dict[str, Any] = {"ports": [PORTS["ports"][0] | {"host_ip": "127.0.0.1"}]}
BOTH: dict[str, Any] = {"ports": [*AT_LOOPBACK["ports"], PORTS["ports"][0] | {"published": "7"}]}
ELSEWHERE = {"db": Asked("10.0.0.5", 6379)}


@pytest.mark.parametrize(
    ("services", "publish", "asked"),
    [
        (beside(AT_LOOPBACK), "drop", DB),
        (beside(AT_LOOPBACK, meshed=False), "drop", DB),
        (beside(PORTS, meshed=False), "drop", DB),
        (beside(PORTS, meshed=False), "loopback", ELSEWHERE),
        (beside(PORTS), "loopback", DB),
        (beside(PORTS), "loopback", {"db": Asked("0.0.0.0", 6379)}),
        (beside(PORTS), "keep", ELSEWHERE),
    ],
)
def test_what_the_override_leaves_published_is_taken(services: Any, publish: str, asked: dict[str, Asked]) -> None:
    assert "is taken by more, which publishes it in the Compose file" in fault(asked, services, publish=publish)


@pytest.mark.parametrize(
    ("services", "publish", "asked"),
    [
        (beside(PORTS), "drop", DB),
        (beside(BOTH), "drop", DB),
        (beside(PORTS), "loopback", ELSEWHERE),
        (beside(AT_LOOPBACK), "keep", ELSEWHERE),
    ],
)
def test_the_twin_what_it_takes_away_is_free(services: Any, publish: str, asked: dict[str, Asked]) -> None:
    data = override(published(asked, services, publish=publish))["services"]
    assert publish != "drop" or data["more"]["ports"] == ("!reset", [])
    assert data["db-mesh"]["ports"]


def test_a_name_comes_before_a_number() -> None:
    db = {"x-mesh": {"ports": {"http": 80, "80": 8080}}}
    for target, port in (("db:80", "80"), ("db:http", "http"), ("db:8080", "80")):
        config = wiring(published({target: Asked()}, {**SERVICES, "db": db}), "db")
        assert [it.port for it in config.inbound if it.listen.port == FIRST_INSIDE] == [port]


def test_a_network_of_the_application_with_the_name_of_its_own() -> None:
    networks: dict[str, Any] = {"db-mesh-published": {}}
    given = inputs(SERVICES, networks, options=replace(OPTIONS, publish_mesh=DB))
    with pytest.raises(UsageError, match=r"^network 'db-mesh-published' exists already, and inject adds one"):
        inject(given)
    assert inject(replace(given, options=OPTIONS)), "the twin"


def test_the_twin_other_protocols_and_addresses() -> None:
    udp = {"ports": [PORTS["ports"][0] | {"protocol": "udp"}, PORTS["ports"][0] | {"host_ip": "127.0.0.2"}]}
    assert published(DB, {**SERVICES, "web": {"depends_on": ["db"], "expose": ["80"], **udp}})
    two = {"db": Asked("127.0.0.1", 70), "web": Asked("127.0.0.1", 70)}
    assert "web: 127.0.0.1:70 is taken by --publish-mesh db" in fault(two)


@pytest.mark.parametrize(
    ("target", "services", "told"),
    [
        ("bd", SERVICES, "there is no service 'bd' with a network of its own (did you mean 'db'?); `--publish-mesh bd"),
        ("x", {**SERVICES, "x": {"network_mode": "host"}}, "'x' is not in the mesh: it uses the host's network"),
        ("db:pg", SERVICES, "'db' has no port 'pg', but 6379"),
        ("web", {**SERVICES, "web": {"depends_on": ["db"]}}, "no port of 'web' is known: say which it listens"),
        ("web", {**SERVICES, "web": {"expose": ["1", "2"], "depends_on": ["db"]}}, "has the ports 1, 2: name one, as web:1"),
    ],
)  # fmt: skip
def test_what_cannot_be_published(target: str, services: dict[str, Any], told: str) -> None:
    assert told in fault({target: Asked()}, services)


def test_what_is_left_out_by_only_is_not_published() -> None:
    three: dict[str, Any] = {**SERVICES, "api": {"depends_on": ["db"], "expose": ["1"]}}
    told = fault({"api": Asked()}, three, only=("web", "db"))
    assert (
        told == "--publish-mesh: 'api' is not in the mesh: it is left out by --only; `--publish-mesh api=none` ends it"
    )


def test_several_ports_of_one_service_share_its_network() -> None:
    services: dict[str, Any] = {**SERVICES, "db": {"expose": ["1", "2"]}}
    injection = published({"db:1": Asked(), "db:2": Asked("0.0.0.0", 9)}, services)
    ports = override(injection)["services"]["db-mesh"]["ports"]
    assert [(it["target"], it["host_ip"], it["published"]) for it in ports] == [
        (FIRST_INSIDE, "127.0.0.1", "1"),
        (FIRST_INSIDE + 1, "0.0.0.0", "9"),
    ]
    assert sum("every machine that reaches this host can try" in it for it in injection.warnings) == 1
