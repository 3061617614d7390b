"""What an app is told of its callers counts only where nobody else can tell it: each way to it is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.beside import told_who_calls
from sidecar.inject.facts import Facts, Place
from sidecar.inject.injection import Injection, inject
from tests.inject.applications import OPTIONS, apps, inputs
from tests.unit.inject.test_facts import injected, refusal, wiring

TOLD: dict[str, Any] = {"sidecar": {"inbound": {"80": {"proxy_protocol": "tls"}}}}
KNOWN: dict[str, Any] = {"sidecar": {"inbound": {"80": {"proxy_protocol": "tls", "i_know": True}}}}


def text(db: dict[str, Any] | None = None, x_mesh: dict[str, Any] | None = None, **more: Any) -> str:
    services: dict[str, Any] = {"web": {"depends_on": ["db"]}, "db": {"expose": ["80"], **(db or {})}, **more}
    services["db"]["x-mesh"] = TOLD | (x_mesh or {})
    return yaml.safe_dump({"services": services}, sort_keys=False)


def published(host_ip: str = "", target: int = 80, protocol: str = "tcp") -> dict[str, Any]:
    port = {"mode": "ingress", "target": target, "published": "8080", "protocol": protocol}
    return {"ports": [port | ({"host_ip": host_ip} if host_ip else {})]}


def is_told(injection: Injection) -> bool:
    return wiring(injection, "db").inbound[0].proxy_protocol == "tls"


def test_an_app_that_only_its_sidecar_reaches_is_told() -> None:
    injection = injected(text())
    assert is_told(injection)
    assert not any("proxy_protocol" in warning for warning in injection.warnings)


OUTSIDER = {"image": "example.org/backup", "x-mesh": {"mesh": False}}
CALLS: dict[str, Any] = {"depends_on": ["backup"]}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "a published port": (published(), {}, {}, "at published port 80 (--publish drop)"),
    "one of loopback": (published("127.0.0.1"), {}, {}, "at published port 80"),
    "one moved to loopback": (published(), {}, {"publish": "loopback"}, "at published port 80"),
    "the host's network": ({}, {"agent": {"network_mode": "host"}}, {}, "by agent, on the host's network"),
    "an outsider": (CALLS, {"backup": OUTSIDER}, {}, "by backup, not in the mesh (the app calls it)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_beside_the_sidecar_is_refused_by_name_unless_somebody_knows(way: str) -> None:
    db, more, options, what = WAYS[way]
    (told,) = refusal(text(db, **more), options=replace(OPTIONS, **options))
    assert "x-mesh: 'proxy_protocol' of port 80 cannot be trusted: db can be reached beside its sidecar, " in told
    assert what in told
    assert told.startswith("compose.yaml:")
    assert is_told(injected(text(db, KNOWN, **more), options=replace(OPTIONS, **options)))
    elsewhere = {"sidecar": {"inbound": {**TOLD["sidecar"]["inbound"], "81": {"i_know": True}}}, "ports": [80, 81]}
    assert what in refusal(text(db, elsewhere, **more), options=replace(OPTIONS, **options))[0]


@pytest.mark.parametrize("knows", [True, False])
def test_a_network_on_which_it_stays_is_a_way(knows: bool) -> None:
    db = {"networks": {"outer": None, "default": None}, "expose": ["80"], "x-mesh": KNOWN if knows else TOLD}
    services = {"web": {"depends_on": ["db"]}, "db": db}
    given = inputs(services, {"outer": {"external": True, "name": "outer"}})
    if knows:
        assert is_told(inject(given))
        return
    with pytest.raises(
        UsageError, match="beside its sidecar, on network outer, on which it stays \\(it is external, and its"
    ):
        inject(given)


@pytest.mark.parametrize(
    ("db", "options"),
    [
        (published(), {"publish": "drop"}),
        (published(protocol="udp"), {}),
        ({**published(target=81), "expose": ["80"]}, {}),
    ],
)
def test_what_is_no_way_to_this_port_is_not_refused(db: dict[str, Any], options: dict[str, Any]) -> None:
    said = text(db, {"ports": [80]})
    assert is_told(injected(said, options=replace(OPTIONS, **options)))


def test_an_outsider_that_the_app_does_not_call_meets_its_sidecar_and_is_no_way() -> None:
    assert is_told(injected(text(backup=OUTSIDER)))


def test_a_port_that_is_not_told_may_be_reached_as_before() -> None:
    said = yaml.safe_load(text(published()))
    said["services"]["db"]["x-mesh"] = {"sidecar": {"inbound": {"80": {"proxy_protocol": "off"}}}}
    assert not is_told(injected(yaml.safe_dump(said)))


@pytest.mark.parametrize(("port", "warned"), [(80, True), (81, False)])
def test_a_health_check_of_the_port_is_warned_of(port: int, warned: bool) -> None:
    check = {"healthcheck": {"test": ["CMD", "curl", f"http://localhost:{port}/health"]}}
    injection = injected(text(check, {"ports": [80]}))
    what = "db: its health check calls port 80, which expects a PROXY protocol header (proxy_protocol: tls)"
    assert any(what in warning for warning in injection.warnings) is warned


def test_it_is_said_of_one_service_and_not_of_all() -> None:
    said = "x-mesh: {sidecar: {inbound: {'*': {i_know: true}}}}\n" + text()
    assert any("belongs to a service's port, not to the defaults of all" in line for line in refusal(said))


def test_it_is_said_of_a_port_and_not_of_a_service() -> None:
    (told,) = refusal(text(x_mesh={"i_know": True}))
    assert told.endswith(" i_know: belongs to a port: sidecar: {inbound: {PORT: {i_know: true}}}")
    (told,) = refusal(text(x_mesh={"sidecar": {"inbound": {"80": {"i_know": "yes"}}}}))
    assert told.endswith("inbound.80.i_know: is not true or false")


WIRED = {"inbound": [{"port": "http", "identity_header": "x-forwarded-client-cert"}]}


@pytest.mark.parametrize("known", [False, True])
def test_a_header_of_http_is_refused_as_the_header_of_a_connection_is(known: bool) -> None:
    (db,) = apps({"db": {"healthcheck": {"test": ["CMD", "curl", "http://localhost:80/"]}}}).values()
    facts = Facts(Place("compose.yaml", {(): 7}))
    ways: dict[int | None, tuple[str, ...]] = {80: ("at published port 80",), None: ("by x",)}

    def told(ways: dict[int | None, tuple[str, ...]]) -> list[str]:
        return told_who_calls(db, WIRED, facts, {"http": 80}, ways, {"http"} if known else ())

    if not known:
        with pytest.raises(
            UsageError, match=r"^compose.yaml:7: x-mesh: 'identity_header' of port http cannot be trusted: .*"
        ):
            told(ways)
    assert told(ways if known else {81: ways[80]}) == [
        "db: its health check calls port 80, which is told who calls by a header (identity_header: "
        "x-forwarded-client-cert): the check comes without one, and the app must answer it"
    ]


def test_limits_are_given_by_x_mesh_too() -> None:
    said = text(x_mesh={"sidecar": {"inbound": {"80": {"limits": {"connections": 5}}}}})
    assert wiring(injected(said), "db").inbound[0].limits.connections == 5
