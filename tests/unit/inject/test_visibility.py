"""Apps, and by which names they see each other."""

from __future__ import annotations

from sidecar.inject.visibility import app_of, leads_to, names_for, neighbours, shared_networks
from tests.inject.applications import apps


def test_a_shared_network_namespace_is_one_app() -> None:
    found = apps(
        {
            "vpn": {"container_name": "tunnel"},
            "a": {"network_mode": "service:vpn"},
            "b": {"network_mode": "service:a"},
            "c": {"network_mode": "container:tunnel"},
            "d": {"network_mode": "container:stranger"},
        }
    )
    assert {name: [it.name for it in app.members] for name, app in found.items()} == {
        "vpn": ["vpn", "a", "b", "c"],
        "d": ["d"],
    }
    assert app_of(found)["c"] == "vpn"


def test_neighbours_share_a_network() -> None:
    found = apps(
        {
            "a": {"networks": {"one": None}},
            "b": {"networks": {"one": None, "two": None}},
            "c": {"networks": {"two": None}},
        },
        {"one": {}, "two": {}},
    )
    assert neighbours(found["b"], found) == ("a", "c")
    assert neighbours(found["a"], found) == ("b",)
    assert shared_networks(found["a"], found["c"]) == ()


def test_names_are_those_of_the_shared_network_and_never_ones_own() -> None:
    found = apps(
        {
            "a": {"networks": {"one": {"aliases": ["mine"]}}, "links": ["b:linked"]},
            "b": {
                "networks": {"one": {"aliases": ["near", "mine"]}, "two": {"aliases": ["far"]}},
                "hostname": "host-b",
            },
        },
        {"one": {}, "two": {}},
    )
    assert set(names_for(found["a"], found, ["b"])) == {"b", "host-b", "near", "linked"}


def test_a_name_of_two_leads_to_the_one_that_is_called_so() -> None:
    found = apps(
        {
            "web": {},
            "x": {"networks": {"default": {"aliases": ["y", "both"]}}},
            "y": {"networks": {"default": {"aliases": ["both"]}}},
        }
    )
    names = names_for(found["web"], found, ["x", "y"])
    assert names["both"] == ["x", "y"]
    assert leads_to(names) == {"x": "x", "y": "y", "both": "x"}
