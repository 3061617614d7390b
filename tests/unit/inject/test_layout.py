"""What runs stays where it is when something is added."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, OVERRIDE, Injection, inject
from sidecar.inject.layout import layout_data, layout_of_override, parse_layout, parse_override
from sidecar.inject.options import read_record
from sidecar.inject.subnets import Taken, dynamic_half
from sidecar.inject.topology import Layout
from tests.inject.applications import OPTIONS, inputs
from tests.inject.bed import again, stanzas

SHOP: dict[str, Any] = {
    "web": {"expose": ["80"], "depends_on": ["db"]},
    "db": {"image": "redis"},
    "mq": {"expose": ["5"]},
}
JOB: dict[str, Any] = {"job": {"expose": ["6379"], "environment": {"URL": "redis://db"}}}
CALLED: dict[str, Any] = {"web": {**SHOP["web"], "depends_on": ["db", "job"]}}


def second(first: Injection, services: dict[str, Any], mesh: str | None = None, **more: Any) -> Injection:
    return inject(replace(again(inputs(services), first, mesh), **more))


def changed(before: Injection, after: Injection) -> set[str]:
    """The services and networks of an earlier run whose part of the override is another now."""
    one, other = stanzas(before), stanzas(after)
    return {name for name in one if one[name] != other.get(name)}


def names(injection: Injection, app: str) -> list[str]:
    return sorted(name for slot in injection.topology.slots[app] for name in slot.names)


def test_a_new_service_moves_nothing_and_nobody_else_restarts() -> None:
    first = inject(inputs(SHOP))
    after = second(first, {**SHOP, **JOB})
    assert changed(first, after) == set()
    assert {path for path, text in first.files.items() if text != after.files[path]} == {OVERRIDE, MESH_FILE}
    assert names(after, "job") == ["db", "mq", "web"]
    who = "added later, and unknown to older services that are not foreseen to call it"
    said = f"{who}: job (to db, mq, web): --all-names tells all"
    assert said in after.warnings
    third = second(after, {**SHOP, **JOB})
    assert third.files == after.files
    assert said in third.warnings


def test_only_a_caller_of_the_new_service_gets_its_name() -> None:
    first = inject(inputs(SHOP))
    after = second(first, {**SHOP, **JOB, **CALLED})
    assert changed(first, after) == {"web", "web-mesh"}  # job has the port of db: one more network
    assert names(after, "web") == ["db", "job", "mq"]
    assert [slot.callees for slot in after.topology.slots["web"]] == [("db", "mq"), ("job",)]


@pytest.mark.parametrize("more", [{"all_names": True}, {"options": replace(OPTIONS, observe=True)}])
def test_all_names_for_all(more: dict[str, Any]) -> None:
    first = inject(inputs(SHOP))
    after = second(first, {**SHOP, **JOB}, **more)
    assert names(after, "db") == ["job", "mq", "web"]
    assert after.topology.hidden == ()
    assert second(after, {**SHOP, **JOB}).topology.slots == after.topology.slots


def test_whom_a_person_s_rule_lets_call_gets_the_name_too() -> None:
    first = inject(inputs(SHOP))
    after = second(first, {**SHOP, **JOB})
    mesh = after.files[MESH_FILE].replace("deny\n", 'deny\n  - {from: mq, to: "job:6379"}\n')
    third = second(after, {**SHOP, **JOB}, mesh)
    assert changed(after, third) == {"mq", "mq-mesh"}
    assert names(third, "mq") == ["db", "job", "web"]
    assert names(third, "db") == ["mq", "web"]


def test_a_new_service_takes_no_name_away() -> None:
    shop = {**SHOP, "db": {"image": "redis", "networks": {"default": {"aliases": ["cache"]}}}}
    first = inject(inputs(shop))
    after = second(first, {**shop, "cache": {"image": "redis"}, "web": {**SHOP["web"], "depends_on": ["db", "cache"]}})
    assert dict(after.topology.slots["web"][0].names)["cache"] == "db"
    assert after.topology.unclear["web", "cache"][0] == "db"
    fresh = second(first, {**shop, "cache": {"image": "redis"}}, relayout=True)
    assert [slot.names["cache"] for slot in fresh.topology.slots["web"] if "cache" in slot.names] == ["cache"]


def test_a_new_alias_of_an_old_service_is_told_to_its_callers() -> None:
    first = inject(inputs(SHOP))
    after = second(first, {**SHOP, "db": {"image": "redis", "networks": {"default": {"aliases": ["cache"]}}}})
    assert changed(first, after) == {"db", "web-mesh"}
    assert names(after, "web") == ["cache", "db", "mq"]
    assert ("mq", "db") in after.topology.hidden


def test_who_leaves_moves_nobody() -> None:
    first = inject(inputs({**SHOP, **JOB}))
    after = second(first, SHOP)
    assert {name for name in changed(first, after) if "job" not in name} == {"db-mesh", "mq-mesh", "web-mesh"}
    assert after.placement.subnets["sidecar-mesh"] == first.placement.subnets["sidecar-mesh"]
    assert len(after.topology.slots["web"]) == 2  # the network on which job was is kept: web would restart


def test_who_meets_outsiders_stays_there_and_others_come() -> None:
    router = {
        "image": "traefik:v3",
        "volumes": [{"type": "bind", "source": "/run/docker.sock"}],
        "networks": {"out": None},
    }
    both: dict[str, Any] = {"networks": {"default": None, "out": None}}
    shop = {**SHOP, "router": router, "web": {**SHOP["web"], **both}}
    first = inject(inputs(shop, {"out": {}}))
    after = inject(again(inputs({**shop, "blog": {"expose": ["80"], **both}}, {"out": {}}), first))
    assert changed(first, after) == {"router"}
    assert after.topology.stays == {}
    plain = [(it.network, it.instead_of) for it in after.topology.plain]
    assert plain == [("blog-plain", "out"), ("web-plain", "out")]
    assert not after.topology.is_plaintext("web", "blog")


@pytest.mark.parametrize("number", [20, 50])
def test_there_is_room_from_the_start(number: int) -> None:
    first = inject(inputs(SHOP))
    crowd = {f"s{index}": {"environment": {"URL": "redis://db"}} for index in range(number)}
    after = second(first, {**SHOP, **crowd})
    assert changed(first, after) == set()


def test_a_scaled_service_has_room_and_running_out_is_told() -> None:
    first = inject(inputs(SHOP))
    assert changed(first, second(first, {**SHOP, "db": {"image": "redis", "scale": 60}})) == {"db"} - {"db"}
    with pytest.raises(
        UsageError, match=r"^network db-private: .* has no room .*`sidecar inject --relayout`, .* outage"
    ):
        second(first, {**SHOP, "db": {"image": "redis", "scale": 70}})
    after = second(first, {**SHOP, "db": {"image": "redis", "scale": 70}}, relayout=True)
    assert after.placement.subnets["db-private"].prefixlen == 23
    assert after.warnings[0].startswith("--relayout moves ")


def test_little_room_is_told_with_the_flag_that_gives_more() -> None:
    narrow = replace(OPTIONS, subnets=IPv4Network("10.9.0.0/24"))
    first = inject(inputs(SHOP, options=narrow))
    more = "--relayout, in a larger range (--subnets), gives more, and is an outage"
    said = f"db, mq, web: room for 7 containers (--scale): {more}"
    assert said in first.warnings
    assert said in second(first, SHOP, options=narrow).warnings
    wider = second(first, SHOP, options=OPTIONS, relayout=True)
    assert not any("--scale" in note for note in wider.warnings)


@pytest.mark.parametrize(
    "given",
    [
        {"options": replace(OPTIONS, subnets=IPv4Network("192.168.0.0/16"))},
        {"networks": {"lan": {"ipam": {"config": [{"subnet": "10.0.0.0/8"}]}}}, "options": OPTIONS},
    ],
)
def test_what_would_move_everything_is_refused(given: dict[str, Any]) -> None:
    first = inject(inputs(SHOP))
    run = replace(again(inputs(SHOP, given.pop("networks", None)), first), **given)
    with pytest.raises(UsageError, match=r"^network .*`sidecar inject --relayout`"):
        inject(run)
    if given["options"] != OPTIONS:
        assert inject(replace(run, relayout=True)).placement.block.subnet_of(IPv4Network("192.168.0.0/16"))


def test_a_relayout_that_finds_nothing_to_move_says_nothing_and_changes_nothing() -> None:
    first = inject(inputs(SHOP))
    taken = tuple(Taken(subnet, "ours") for subnet in first.placement.subnets.values())
    after = second(first, SHOP, relayout=True, taken=taken)
    assert after.files == first.files
    assert not any("--relayout" in note for note in after.warnings)


def test_a_new_network_is_put_where_nothing_is_of_this_machine() -> None:
    first = inject(inputs(SHOP))
    elsewhere = second(first, {**SHOP, **JOB}).placement.subnets["job-private"]
    after = second(first, {**SHOP, **JOB}, taken=(Taken(elsewhere, "a VPN"),))
    assert not after.placement.subnets["job-private"].overlaps(elsewhere)
    assert changed(first, after) == set()


# -- the record, and what earlier versions wrote ---------------------------------------------------------------------------


def earlier(injection: Injection) -> str:
    """The override as versions without a record of the layout wrote it."""
    return re.sub(r', "layout": \{.*\}\}$', "}", injection.files[OVERRIDE], flags=re.MULTILINE)


def test_the_layout_is_read_from_an_override_without_a_record_of_it() -> None:
    shop = {**SHOP, "db": {"image": "redis", "networks": {"default": {"aliases": ["cache"]}}}}
    first = inject(inputs(shop))
    text = earlier(first)
    assert '"layout"' not in text
    found, recorded = read_record(text, OVERRIDE).layout, read_record(first.files[OVERRIDE], OVERRIDE).layout
    assert (found.subnets, found.addresses, found.callees) == (recorded.subnets, recorded.addresses, recorded.callees)
    assert found.names == {
        app: {name: callee if name == callee else "" for name, callee in it.items()}
        for app, it in recorded.names.items()
    }
    run = replace(again(inputs(shop), first), before=read_record(text, OVERRIDE))
    assert inject(run).files == first.files
    newcomer = replace(again(inputs({**shop, **JOB}), first), before=read_record(text, OVERRIDE))
    assert changed(first, inject(newcomer)) == set()


@pytest.mark.parametrize("old", ["    ipam: ", "      sidecar-mesh: {aliases: [web.mesh], ", "services:"])
def test_an_override_that_was_tampered_with(old: str) -> None:
    text = earlier(inject(inputs(SHOP)))
    assert old in text
    with pytest.raises(UsageError, match=r"^f:3: x-sidecar-inject: cannot be read"):
        read_record(text.replace(old, old + "[" if old != "services:" else "service:"), "f")


def test_back_as_it_was() -> None:
    layout = read_record(inject(inputs(SHOP)).files[OVERRIDE], OVERRIDE).layout
    assert parse_layout(layout_data(layout)) == layout
    assert layout != Layout()
    assert yaml.safe_load("x: 1") == {"x": 1}  # our tags are not every loader's
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("x: !reset []")
    assert layout_of_override("services: {a: {links: !reset []}}\nnetworks: {}\n") == Layout()


def test_the_gateway_of_each_new_network_is_written_down_and_of_an_old_one_only_if_it_was() -> None:
    """Otherwise an upgrade would make all networks anew, which is an outage."""
    first = inject(inputs(SHOP))
    networks = parse_override(first.files[OVERRIDE])["networks"]
    assert all("gateway" in it["ipam"]["config"][0] for it in networks.values())
    run = again(inputs({**SHOP, **JOB}), first)
    assert run.before is not None
    older = replace(run, before=replace(run.before, layout=replace(run.before.layout, gateways=frozenset())))
    after = inject(older)
    found = parse_override(after.files[OVERRIDE])["networks"]
    assert {name for name, it in found.items() if "gateway" in it["ipam"]["config"][0]} == {*found} - {*networks}
    route = yaml.safe_load(after.files["mesh/sidecars/web.yaml"])["outbound"][0]
    subnet = after.placement.subnets["web-private"]
    assert not any(dynamic_half(subnet)[0] in IPv4Network(it) for it in route["allow_from"])
    assert inject(again(older, after)).files == after.files
