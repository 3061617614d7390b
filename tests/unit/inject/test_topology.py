"""Which networks there are afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.exclusions import ASKS_DOCKER
from sidecar.inject.topology import Topology, sidecar_of
from tests.inject.applications import topology


def callees(found: Topology, name: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(slot.network, slot.callees) for slot in found.slots[name]]


def test_one_network_for_callees_on_different_ports_and_one_more_for_each_clash() -> None:
    services = {
        name: {"expose": ports} for name, ports in (("a", ["1"]), ("b", ["2"]), ("c", ["1"]), ("d", ["1", "2"]))
    }
    found = topology({"web": {}, **services})
    assert callees(found, "web") == [
        ("web-private", ("a", "b")),
        ("web-private-2", ("c",)),
        ("web-private-3", ("d",)),
    ]
    assert callees(topology({"web": {}, "a": services["a"], "b": services["b"]}), "web") == [
        ("web-private", ("a", "b"))
    ]


def test_neighbours_that_nobody_is_foreseen_to_call_share_a_network() -> None:
    services = {
        "web": {},
        **{name: {"expose": ["8080"]} for name in ("a", "b", "c", "d", "e")},
        "f": {"expose": ["9090"]},
    }
    called = {("web", "b", None), ("web", "b", 8080)}
    found = topology(services, is_foreseen=lambda *call: call in called)
    assert callees(found, "web") == [("web-private", ("b", "f")), ("web-private-2", ("a", "c", "d", "e"))]
    assert callees(found, "f") == [("f-private", ("a", "b", "c", "d", "e", "web"))]
    assert callees(found, "a") == [("a-private", ("b", "c", "d", "e", "f", "web"))]


def test_the_twin_a_port_at_which_one_of_them_is_called_is_its_own() -> None:
    services = {"web": {}, "mq": {"expose": ["5672", "15672"]}, "ui": {"expose": ["15672"]}, "x": {"expose": ["5672"]}}
    called = {("web", "mq", None), ("web", "mq", 5672)}
    found = topology(services, is_foreseen=lambda *call: call in called)
    assert callees(found, "web") == [("web-private", ("mq", "ui")), ("web-private-2", ("x",))]


def test_who_shares_no_network_is_not_carried() -> None:
    networks: dict[str, Any] = {"one": {}, "two": {}}
    found = topology(
        {
            "a": {"networks": {"one": None}},
            "b": {"networks": {"one": None, "two": None}},
            "c": {"networks": {"two": None}},
        },
        networks,
    )
    assert callees(found, "a") == [("a-private", ("b",))]
    assert callees(found, "b") == [("b-private", ("a", "c"))]


def test_outsiders_meet_each_app_s_sidecar_on_a_network_of_its_own() -> None:
    services: dict[str, Any] = {"a": {"expose": ["1"]}, "b": {"expose": ["1"], "hostname": "bb"}, "router": {}, "x": {}}
    found = topology(services, excluded={"router": ASKS_DOCKER, "x": "is special"})
    assert [(it.network, it.app, it.outsiders, it.names, [*it.beside]) for it in found.plain] == [
        ("a-plain", "a", ("router", "x"), ("a",), ["router"]),
        ("b-plain", "b", ("router", "x"), ("b", "bb"), ["router"]),
    ]
    assert [it.networks() for it in found.plain] == [
        ("a-plain", "a-plain-beside"),
        ("b-plain", "b-plain-beside"),
    ]
    assert found.parted == (("a", "x"), ("b", "x"))
    assert found.is_plaintext("router", "a")
    assert not found.is_plaintext("a", "b")
    assert found.stays == {}


def test_who_asks_docker_meets_the_app_itself_under_its_names() -> None:
    found = topology({"a": {"expose": ["1"]}, "b": {}, "router": {}}, excluded={"router": ASKS_DOCKER})
    assert [(it.network, it.app, it.names) for it in found.plain] == [("a-plain", "a", ()), ("b-plain", "b", ())]
    assert [it.networks() for it in found.plain] == [("a-plain",), ("b-plain",)]


def test_an_app_that_nobody_can_call_and_that_calls_no_outsider_meets_none() -> None:
    found = topology({"a": {}, "b": {}, "x": {}}, excluded={"x": "is special"})
    assert found.plain == ()
    assert found.parted == (("a", "x"), ("b", "x"))


def test_the_only_app_on_a_network_leaves_it_too() -> None:
    services: dict[str, Any] = {
        "a": {"networks": {"default": None, "side": None}, "expose": ["1"]}, "b": {}, "x": {"networks": {"side": None}},
    }  # fmt: skip
    found = topology(services, {"side": {}}, excluded={"x": "is special"})
    assert found.stays == {}
    assert [(it.network, it.instead_of) for it in found.plain] == [("a-plain", "side")]


def test_two_apps_on_an_external_network_are_a_pair_in_plaintext_and_said_so() -> None:
    outer: dict[str, Any] = {"outer": {"external": True}}
    both: dict[str, Any] = {"networks": {"outer": None, "default": None}}
    found = topology({"a": both, "b": both, "c": {}}, outer)
    assert set(found.stays) == {("a", "outer"), ("b", "outer")}
    assert list(found.plaintext) == [("a", "b")]
    assert callees(found, "a") == [("a-private", ("c",))]
    alone = topology({"a": both, "b": {}, "c": {}}, outer)
    assert alone.plaintext == {}
    assert callees(alone, "a") == [("a-private", ("b", "c"))]


def test_who_could_meet_nobody_is_left_alone() -> None:
    found = topology({"a": {}, "b": {}, "c": {"networks": {"other": None}}}, {"other": {}})
    assert found.excluded == {"c": "shares no network with another service"}
    gone = topology({"a": {}, "b": {}}, excluded={"b": "is special"})
    assert gone.excluded == {"b": "is special", "a": "shares no network with a service that could be in the mesh"}
    assert gone.slots == {}


@pytest.mark.parametrize(("name", "what"), [("mesh-ca", "service"), ("a-mesh", "service")])
def test_a_service_that_has_the_name_of_one_of_ours(name: str, what: str) -> None:
    with pytest.raises(UsageError, match=f"^{what} '{name}' exists already"):
        topology({"a": {}, "b": {}, name: {}})


def test_a_network_that_has_the_name_of_one_of_ours() -> None:
    with pytest.raises(UsageError, match=r"^network 'a-private' exists already"):
        topology({"a": {}, "b": {}}, {"a-private": {}})
    with pytest.raises(UsageError, match=r"^network 'sidecar-mesh' exists already"):
        topology({"a": {}, "b": {}}, {"sidecar-mesh": {}})
    services: dict[str, Any] = {"a": {"expose": ["1"]}, "b": {}, "router": {}, "x": {}}
    for name in ("a-plain", "a-plain-beside"):
        with pytest.raises(UsageError, match=f"^network '{name}' exists already"):
            topology(services, {name: {}}, {"router": ASKS_DOCKER, "x": "is special"})
        assert topology({"a": {"expose": ["1"]}, "b": {}}, {name: {}}).slots, "the twin"


def _named(way: str, name: str) -> dict[str, Any]:
    if way == "domain":
        return dict(zip(("hostname", "domainname"), name.split("."), strict=True))
    ways: dict[str, dict[str, Any]] = {
        "container_name": {"container_name": name},
        "hostname": {"hostname": name},
        "alias": {"networks": {"default": {"aliases": [name]}}},
        "link": {"links": [f"a:{name}"]},
    }
    return ways[way]


@pytest.mark.parametrize("way", ["container_name", "hostname", "domain", "alias", "link"])
@pytest.mark.parametrize("name", ["a.app", "b.mesh", "A.App"])
@pytest.mark.parametrize("of", ["x", "b"])
def test_attack_a_name_by_which_sidecars_call(way: str, name: str, of: str) -> None:
    """A sidecar that asks for it would be led to whoever has it on another of its networks."""
    services: dict[str, Any] = {"a": {"expose": ["1"]}, "b": {}, "x": {}}
    services[of] = _named(way, name)
    with pytest.raises(UsageError, match=f"^service '{of}' has the name '{name}', by which inject lets sidecars find"):
        topology(services, excluded={"x": "is special"})


@pytest.mark.parametrize("name", ["c.app", "c.mesh", "app", "a.app.example"])
def test_the_twin_a_name_by_which_none_calls(name: str) -> None:
    services: dict[str, Any] = {"a": {"expose": ["1"]}, "b": {}, "x": {"container_name": name}}
    assert topology(services, excluded={"x": "is special"}).slots.keys() == {"a", "b"}
    assert topology({"a": {"container_name": "a.app"}, "b": {}}).slots, "no outsider meets it: it has no such name"


def test_a_name_by_which_the_ca_is_called() -> None:
    with pytest.raises(UsageError, match=r"^service 'x' has the name 'mesh-ca'"):
        topology({"a": {}, "b": {}, "x": {"container_name": "mesh-ca"}}, excluded={"x": "is special"})


def test_the_twin_names_like_ours_that_are_in_nobodys_way() -> None:
    assert sorted(topology({"a": {}, "b": {}, "c-mesh": {}}, {"private": {}}).slots) == ["a", "b", "c-mesh"]
    assert sidecar_of("c-mesh") == "c-mesh-mesh"
