"""What is laid over the application."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, OVERRIDE, inject
from sidecar.inject.options import Options
from sidecar.inject.override import WELL, health_check
from tests.inject.applications import OPTIONS, inputs
from tests.inject.bed import again


class _Loader(yaml.SafeLoader):
    """Compose's tags, as pairs."""


def _tagged(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return (node.tag, loader.construct_mapping(node, deep=True))
    assert isinstance(node, yaml.SequenceNode)
    return (node.tag, loader.construct_sequence(node, deep=True))


for _tag in ("!override", "!reset"):
    _Loader.add_constructor(_tag, _tagged)


def override(services: dict[str, Any], networks: dict[str, Any] | None = None, options: Options = OPTIONS) -> Any:
    text = inject(inputs(services, networks, options=options)).files[OVERRIDE]
    return yaml.load(text, _Loader)  # noqa: S506  # a safe loader with two tags


def with_publish(publish: Any) -> Options:
    return Options(state="/state", user="1:1", publish=publish)


PORTS = [
    {"target": 80, "published": "8080", "protocol": "tcp"},
    {"target": 81, "published": "8081", "host_ip": "127.0.0.2", "protocol": "tcp"},
]


def test_networks_are_replaced_and_links_reset() -> None:
    found = override({"web": {"links": ["db:x"], "depends_on": ["db"]}, "db": {"expose": ["1"]}})["services"]
    assert found["web"]["networks"] == ("!override", {"web-private": {}})
    assert found["web"]["links"] == ("!reset", [])
    assert found["web"]["depends_on"] == {
        "db": {"condition": "service_started", "required": True},
        "web-mesh": {"condition": "service_healthy"},
        "db-mesh": {"condition": "service_healthy"},
    }
    assert "links" not in found["db"]


def test_only_a_callee_that_was_waited_for_is() -> None:
    done = {"condition": "service_completed_successfully", "required": True}
    maybe = {"condition": "service_healthy", "required": False}
    services: dict[str, Any] = {"web": {"depends_on": {"job": done, "db": maybe}}, "db": {"expose": ["1"]}, "job": {}}
    waits = override(services)["services"]["web"]["depends_on"]
    assert waits == {
        "web-mesh": {"condition": "service_healthy"},
        "db-mesh": {"condition": "service_healthy", "required": False},
    }


def test_published_ports() -> None:
    services: dict[str, Any] = {"web": {"ports": PORTS}, "db": {"expose": ["1"]}}
    assert "ports" not in override(services)["services"]["web"]
    assert override(services, options=with_publish("drop"))["services"]["web"]["ports"] == ("!reset", [])
    tag, ports = override(services, options=with_publish("loopback"))["services"]["web"]["ports"]
    assert tag == "!override"
    assert [port["host_ip"] for port in ports] == ["127.0.0.1", "127.0.0.2"]
    assert "ports" not in override(services, options=with_publish("drop"))["services"]["db"]


def test_the_twin_what_is_on_loopback_already_stays() -> None:
    services: dict[str, Any] = {"web": {"ports": PORTS[1:]}, "db": {"expose": ["1"]}}
    assert "ports" not in override(services, options=with_publish("loopback"))["services"]["web"]


def test_the_sidecar_s_place() -> None:
    found = override({"web": {"profiles": ["p"]}, "db": {"expose": ["1"]}})
    sidecar = found["services"]["web-mesh"]
    assert sidecar["networks"]["sidecar-mesh"]["aliases"] == ["web.mesh"]
    assert sidecar["networks"]["web-private"]["aliases"] == ["db"]
    assert sidecar["profiles"] == ["p"]
    assert "profiles" not in found["services"]["db-mesh"]
    assert "secrets" not in sidecar
    assert "secrets" not in found
    (secret,) = [it for it in sidecar["volumes"] if "enrolment" in it["source"]]
    assert (secret["source"], secret["read_only"]) == ("${MESH_STATE:-/state}/enrolment/web", True)
    state = [it["source"] for it in sidecar["volumes"] if not it.get("read_only")]
    assert state == ["${MESH_STATE:-/state}/sidecars/web"]
    assert all(not it["bind"]["create_host_path"] for it in sidecar["volumes"])
    assert "build" not in sidecar
    assert found["services"]["mesh-ca"]["build"]["args"] == {"BASE": "${MESH_BASE:-python:3.14-slim}"}
    assert found["services"]["mesh-ca"]["image"] == sidecar["image"] == "shop-sidecar:0123456789ab"


def test_a_network_is_internal_only_if_the_app_had_no_other() -> None:
    networks = {"in": {"internal": True}}
    services: dict[str, Any] = {
        "a": {"networks": {"in": None}}, "b": {"networks": {"in": None, "default": None}, "expose": ["1"]}, "c": {},
    }  # fmt: skip
    found = override(services, networks)["networks"]
    assert found["a-private"].get("internal") is True
    assert "internal" not in found["b-private"]
    assert found["sidecar-mesh"]["internal"] is True


@pytest.mark.parametrize(("label", "added"), [("traefik.enable", True), ("other", False)])
def test_traefik_is_told_by_which_network(label: str, added: bool) -> None:
    services: dict[str, Any] = {
        "router": {"image": "traefik:v3", "volumes": [{"type": "bind", "source": "/run/docker.sock"}]},
        "web": {"labels": {label: "true"}}, "db": {"expose": ["1"]},
    }  # fmt: skip
    found = override(services)["services"]
    assert found["web"].get("labels") == ({"traefik.docker.network": "shop_web-plain"} if added else None)
    assert found["router"]["networks"][1] == {"default": {}, "db-plain": {}, "web-plain": {}}


def test_a_kept_network_is_kept_as_it_was() -> None:
    attachment = {"aliases": ["w"], "priority": 5}
    found = override(
        {"web": {"networks": {"outer": attachment, "default": None}}, "db": {"expose": ["1"]}},
        {"outer": {"external": True}},
    )
    assert found["services"]["web"]["networks"][1] == {"web-private": {"aliases": ["w"]}, "outer": attachment}


BOUNDED = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"driver": "local", "options": {"max-size": "1m", "tag": "a$$b"}}, None),
        ({"driver": "journald"}, None),
        ({"options": {"max-size": "1m"}}, None),
        (None, BOUNDED),
        ({"driver": "none"}, BOUNDED),  # refusals would be seen nowhere
        ({"driver": "splunk", "options": {"splunk-token": "hunter2", "splunk-url": "https://x"}}, BOUNDED),
    ],
)
def test_a_sidecar_s_log_goes_where_its_app_s_goes_and_is_bounded(own: Any, expected: Any) -> None:
    given = inject(inputs({"web": {"logging": own} if own else {}, "db": {"expose": ["1"]}}))
    found = yaml.load(given.files[OVERRIDE], _Loader)["services"]  # noqa: S506  # a safe loader with two tags
    assert found["web-mesh"]["logging"] == (expected or own)
    assert found["db-mesh"]["logging"] == found["mesh-ca"]["logging"] == BOUNDED
    assert "hunter2" not in "".join(given.files.values())
    hidden = "web: logging.options.splunk-token is not copied to its sidecar: its log is kept here, 3 files of 10 MB"
    assert (hidden in given.warnings) == (own is not None and own.get("driver") == "splunk")


def test_health_is_asked_at_once_until_it_is_there_and_seldom_from_then_on(tmp_path: Path) -> None:
    """By a real shell; ``sleep`` and the probe only say that they were called."""
    told = tmp_path / "told"
    for name, code in (("sleep", 0), ("probe", 1)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{told}\n[ {code} = 0 ] || [ -e {tmp_path}/up ]\n')
        (tmp_path / name).chmod(0o755)

    def check() -> tuple[int, list[str]]:
        told.write_text("")
        command = [part.replace(WELL, str(tmp_path / "well")) for part in health_check("probe a 'b c'")]
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(command, env={"PATH": path}, check=False)
        return done.returncode, told.read_text().splitlines()

    assert check() == (1, ["probe a b c"])
    assert check() == (1, ["probe a b c"])
    (tmp_path / "up").touch()
    assert check() == (0, ["probe a b c"])
    assert check() == (0, ["sleep 29", "probe a b c"])
    (tmp_path / "up").unlink()
    assert check() == (1, ["sleep 29", "probe a b c"])
    assert check() == (1, ["probe a b c"])


def test_a_place_that_cannot_be_written_to_costs_only_more_checks(tmp_path: Path) -> None:
    command = [part.replace(WELL, str(tmp_path / "none" / "well")) for part in health_check("true")]
    assert subprocess.run(command, capture_output=True, check=False).stderr == b""
    assert subprocess.run(command, check=False).returncode == 0


def test_the_ca_has_a_way_out_only_if_alarms_are_posted() -> None:
    given = inputs({"web": {"links": ["db:x"]}, "db": {"expose": ["1"], "deploy": {"replicas": 3}}})
    first = inject(given)
    edited = first.files[MESH_FILE].replace("\n...", "\nalarm: {url: 'https://hooks.example.com/x'}\n...")
    second = inject(again(given, first, edited))
    without, with_url = (yaml.load(one.files[OVERRIDE], _Loader) for one in (first, second))  # noqa: S506
    assert set(without["services"]["mesh-ca"]["networks"]) == {"sidecar-mesh"}
    assert "sidecar-alarm" not in without["networks"]
    assert set(with_url["services"]["mesh-ca"]["networks"]) == {"sidecar-mesh", "sidecar-alarm"}
    assert with_url["networks"]["sidecar-alarm"] == {}
    on_it = [name for name, one in with_url["services"].items() if "sidecar-alarm" in str(one.get("networks"))]
    assert on_it == ["mesh-ca"]
    assert "instances" not in first.files[MESH_FILE], "the replicas of an app share one sidecar, which has one identity"


def test_attack_the_ca_s_way_out_is_no_network_of_the_application() -> None:
    given = inputs({"web": {"links": ["db:x"]}, "db": {"expose": ["1"]}}, {"sidecar-alarm": {}})
    first = inject(given)
    edited = first.files[MESH_FILE].replace("\n...", "\nalarm: {url: 'https://hooks.example.com/x'}\n...")
    with pytest.raises(UsageError, match=r"^network 'sidecar-alarm' exists already, and inject adds one of that name"):
        inject(again(given, first, edited))
