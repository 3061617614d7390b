"""No two apps share a network; no app's own name leads to its sidecar; whoever could call still can, through both sidecars.

Generated applications, each through the real Compose; and each of these checks finds what breaks it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, Injection, Inputs, inject
from sidecar.inject.topology import MESH
from tests.inject import applications, bed

NAMES = ["a", "b", "c-1", "D", "no", "web", "web.x", "e_5"]
NETWORKS = ["default", "one", "two", "outer", "fixed"]
WORDS = ["alias", "other", *NAMES[:3]]


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=6, unique=True))
    made: dict[str, Any] = {}
    fixed = 10
    for index, name in enumerate(names):
        service: dict[str, Any] = {"image": draw(st.sampled_from(["example/x", "redis:7", "postgres:16"]))}
        service["expose"] = [
            str(it) for it in draw(st.lists(st.sampled_from([80, 8080, 5432]), max_size=3, unique=True))
        ]
        others = names[:index]
        owner = draw(st.sampled_from(others)) if others and draw(st.integers(0, 7)) == 0 else None
        if owner is not None:
            service["network_mode"] = f"service:{owner}"
        else:
            networks = draw(st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True))
            service["networks"] = {
                network: {"aliases": draw(st.lists(st.sampled_from(WORDS), max_size=2, unique=True))}
                for network in networks
            }
            if "fixed" in networks:
                fixed += 1
                service["networks"]["fixed"]["ipv4_address"] = f"10.66.0.{fixed}"
        if others:
            service["depends_on"] = draw(st.lists(st.sampled_from(others), max_size=2, unique=True))
            links = draw(st.lists(st.sampled_from(others), max_size=1)) if owner is None else []
            service["links"] = [f"{other}:{draw(st.sampled_from(WORDS))}" for other in links]
            callee = draw(st.sampled_from(others))
            service["environment"] = {"URL": f"http://{callee}:{draw(st.sampled_from([80, 9000]))}/"}
            if draw(st.integers(0, 5)) == 0:
                service["environment"]["BY_ADDRESS"] = "10.66.0.11"
        service["scale"] = draw(st.integers(1, 9))
        if draw(st.integers(0, 9)) == 0:
            service["volumes"] = [{"type": "bind", "source": "/var/run/docker.sock", "target": "/var/run/docker.sock"}]
            service["image"] = "traefik:v3"
        made[name] = service
    return {
        "name": "generated",
        "services": made,
        "networks": {
            "one": {},
            "two": {"internal": True},
            "outer": {"external": True},
            "fixed": {"ipam": {"config": [{"subnet": "10.66.0.0/24"}]}},
        },
    }


def inputs_of(base: Path, application: dict[str, Any]) -> Inputs:
    base.write_text(json.dumps(application))
    config, _ = bed.compose().config([base], bed.environment())
    answers = {
        name: () for name, raw in application["services"].items() if not raw["expose"] and "network_mode" not in raw
    }
    options = replace(bed.OPTIONS, ports=answers)
    return Inputs(config, ("compose.yaml",), {}, {}, str(base.parent), str, options, (), bed.TODAY, "0")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(services())
def test_whatever_the_application(application: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory, "compose.yaml")
        inputs = inputs_of(base, application)
        try:
            injection = inject(inputs)
        except UsageError as error:
            assert "no two services that a mesh could connect" in str(error)  # noqa: PT017  # the one refusal that there may be
            assume(False)
            raise
        after = bed.merged(injection, base, Path(directory))
        wiring = bed.configs(injection, Path(directory))
        assert bed.shared_between_apps(injection, after) == []
        assert bed.own_names_carried(inputs, injection, after) == []
        assert bed.app_names_on_the_mesh(injection, after) == []
        assert edges_without_listener(inputs, injection, after, wiring) == []
        assert bed.overlapping(injection) == []
        assert bed.values_in_comments(inputs, injection) == []
        assert inject(bed.again(inputs, injection)).files == injection.files


def as_compose_tells(application: dict[str, Any]) -> Inputs:
    """Without Compose, which takes its time."""
    alone = {name: raw for name, raw in application["services"].items() if "network_mode" not in raw}
    answers = {name: () for name, raw in alone.items() if not raw["expose"]}
    found = applications.inputs(application["services"], application["networks"])
    return replace(found, options=replace(found.options, ports=answers))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(services(), st.integers(2, 5), st.booleans(), st.data())
def test_nothing_that_runs_moves_for_newcomers(
    application: dict[str, Any], number: int, is_called: bool, data: st.DataObject
) -> None:
    """But for those who call one, share its network namespace, reach a port that nobody knew of, or are no longer foreseen
    to call somebody: a database that was given a variable of a newcomer's does not use it. And for those who meet a service
    outside of the mesh that comes into it: their sidecars leave the network of the two."""
    old = list(application["services"])[:number]
    new = [name for name in application["services"] if name not in old]
    for raw in (application["services"][name] for name in new):
        # These do move others, and it is said: an outsider, an external network, a call by a fixed address.
        assume(raw["image"] != "traefik:v3")
        raw.get("environment", {}).pop("BY_ADDRESS", None)
        if "networks" in raw:
            raw["networks"] = {key: it for key, it in raw["networks"].items() if key not in ("outer", "fixed")}
            raw["networks"] = raw["networks"] or {"default": {"aliases": []}}
    before = {**application, "services": {name: application["services"][name] for name in old}}
    moved = {str(application["services"][name].get("network_mode", "")).removeprefix("service:") for name in new}
    if new and is_called:
        caller = data.draw(st.sampled_from(old))
        application["services"][caller]["environment"] = {"NEW": f"http://{data.draw(st.sampled_from(new))}:80"}
        moved.add(caller)
    try:
        first = inject(as_compose_tells(before))
    except UsageError as error:
        assert "no two services that a mesh could connect" in str(error)  # noqa: PT017  # as above
        assume(False)
        raise
    inputs = as_compose_tells(application)
    run = replace(bed.again(inputs, first), options=inputs.options)
    after = inject(run)
    was, now = bed.stanzas(first), bed.stanzas(after)
    called = {edge.caller for edge in after.edges if edge.callee in new}
    known_better = {name for name, ports in first.ports.items() if ports != after.ports[name]}
    moved |= called | known_better
    still = {(edge.caller, edge.callee) for edge in after.edges}
    moved |= {edge.caller for edge in first.edges if (edge.caller, edge.callee) not in still}
    moved |= {name for name, slots in first.topology.slots.items() for it in slots if known_better & {*it.callees}}
    met = [{(plain.app, it) for plain in one.topology.plain for it in plain.outsiders} for one in (first, after)]
    moved |= {app for app, _ in met[0] ^ met[1]}
    for name in set(first.services) - moved:
        assert (was[name], was[f"{name}-mesh"]) == (now[name], now[f"{name}-mesh"])
    plain = {network for one in first.topology.plain if one.app in moved for network in one.networks()}
    stays = [name for name in first.placement.subnets if name not in plain]
    assert {name: was[name] for name in stays} == {name: now[name] for name in stays}
    assert was["mesh-ca"] == now["mesh-ca"]
    assert inject(bed.again(run, after)).files == after.files


def edges_without_listener(inputs: Inputs, injection: Injection, after: Any, wiring: Any) -> list[str]:
    """But for callees whose own name leads to another for this caller (told: ``unclear``), or is its own."""
    unclear = {(caller, word) for caller, word in injection.topology.unclear}
    own = {name: set(inputs.config["services"][name]["networks"]) for name in injection.services}
    broken = bed.edges_without_listener(inputs, injection, after, wiring)
    return [
        edge
        for edge in broken
        if (edge.split()[0], edge.split()[2].partition(":")[0]) not in unclear
        and not _is_own_alias(inputs, edge.split()[0], edge.split()[2].partition(":")[0], own)
    ]


def _is_own_alias(inputs: Inputs, caller: str, name: str, networks: Any) -> bool:
    raw = inputs.config["services"][caller]["networks"]
    return any(name in ((raw[network] or {}).get("aliases") or ()) for network in networks[caller])


# -- the twins: each check finds what breaks it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Injection, Any, Any]:
    case = bed.Case("proxy-two-backends")
    directory = tmp_path_factory.mktemp("broken")
    inputs, injection = case.inputs(), bed.outcome(case)
    after = bed.merged_case(case)
    return inputs, injection, after, bed.configs(injection, directory)


def test_a_shared_network_is_found(broken: tuple[Inputs, Injection, Any, Any]) -> None:
    _, injection, after, _ = broken
    assert bed.shared_between_apps(injection, after) == []
    after = copy.deepcopy(after)
    after["services"]["shop"]["networks"]["blog-private"] = None
    assert bed.shared_between_apps(injection, after) == ["blog-private: blog and shop"]


def test_an_own_name_is_found(broken: tuple[Inputs, Injection, Any, Any]) -> None:
    inputs, injection, after, _ = broken
    after = copy.deepcopy(after)
    after["services"]["shop-mesh"]["networks"]["shop-private"]["aliases"].append("shop")
    assert bed.own_names_carried(inputs, injection, after) == ["shop: shop"]


def test_an_app_on_the_mesh_is_found(broken: tuple[Inputs, Injection, Any, Any]) -> None:
    _, injection, after, _ = broken
    after = copy.deepcopy(after)
    after["services"]["shop"]["networks"][MESH] = None
    after["services"]["blog-mesh"]["networks"][MESH]["aliases"].append("blog")
    assert bed.app_names_on_the_mesh(injection, after) == ["shop", "blog"]


def test_a_call_that_leads_nowhere_is_found(broken: tuple[Inputs, Injection, Any, Any]) -> None:
    inputs, injection, after, wiring = broken
    without = {**wiring, "proxy": replace(wiring["proxy"], outbound=wiring["proxy"].outbound[1:])}
    assert bed.edges_without_listener(inputs, injection, after, without) == ["proxy -> blog:8080"]
    crossed = copy.deepcopy(after)
    networks = crossed["services"]["proxy-mesh"]["networks"]
    networks["proxy-private"]["aliases"], networks["proxy-private-2"]["aliases"] = ["shop"], ["blog"]
    assert bed.edges_without_listener(inputs, injection, crossed, wiring) == [
        "proxy -> blog:8080",
        "proxy -> shop:8080",
    ]


def test_a_wrong_decision_is_found(broken: tuple[Inputs, Injection, Any, Any]) -> None:
    _, injection, _, _ = broken
    text = injection.files[MESH_FILE]
    wider = text.replace("\n...", '\n  - {from: shop, to: "blog:8080"}\n...')
    narrower = text.replace('  - {from: proxy, to: "blog:8080"}', '  - {from: blog, to: "proxy:80"}')
    for changed, found in ((wider, ["shop -> blog:8080: allowed"]), (narrower, ["blog -> proxy:80: allowed"])):
        files = {**injection.files, MESH_FILE: changed}
        assert set(found) <= set(bed.wrongly_decided(replace(injection, files=files)))


def test_a_value_in_a_comment_is_found() -> None:
    case = bed.Case("web-and-database")
    injection = bed.outcome(case)
    assert bed.values_in_comments(case.inputs(), injection) == []
    files = {**injection.files, "x": "a: b  # password hunter2"}
    assert bed.values_in_comments(case.inputs(), replace(injection, files=files)) == ["hunter2"]
