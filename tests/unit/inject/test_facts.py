"""``x-mesh``: facts reach the wiring, whatever key they are; rules, contradictions and what inject writes are refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
import yaml

from sidecar.config.reference import keys
from sidecar.config.sidecar_yaml import Config
from sidecar.config.wiring import parse_config
from sidecar.identity.reasons import UsageError
from sidecar.inject import facts as facts_module
from sidecar.inject.facts import OURS, find_places, has_facts
from sidecar.inject.injection import MESH_FILE, Injection, inject
from sidecar.policy.mesh import parse_mesh
from tests.inject.applications import OPTIONS, config, inputs
from tests.inject.bed import again

COMPOSE = """\
x-mesh: {sidecar: {log_format: console}}
services:
  web:
    depends_on: [db]
  db:
    image: redis
    x-mesh:
      ports:
        redis: 6379
      sidecar:
        timeouts:
          drain: 9s
"""


def injected(text: str = COMPOSE, **more: Any) -> Injection:
    """As it is with the Compose file ``text``."""
    data = yaml.safe_load(text)
    top = {key: data[key] for key in data if key.startswith("x-")}
    given = inputs(data["services"], **more)
    return inject(replace(given, config=config(data["services"], **top), places=find_places([("compose.yaml", text)])))


def wiring(injection: Injection, service: str) -> Config:
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    return parse_config(injection.files[f"mesh/sidecars/{service}.yaml"], f"{service}.yaml", {}, mesh)


def refusal(text: str, **more: Any) -> list[str]:
    with pytest.raises(UsageError) as refused:
        injected(text, **more)
    return str(refused.value).splitlines()


def test_defaults_and_a_service_s_own() -> None:
    injection = injected()
    db, web = wiring(injection, "db"), wiring(injection, "web")
    assert (db.timeouts.drain, db.timeouts.wait, db.log_format) == (9.0, 300.0, "console")
    assert (web.timeouts.drain, web.log_format) == (8.0, "console")
    assert "db: {ports: {redis: 6379}}" in injection.files[MESH_FILE]
    assert [str(it.target) for it in web.outbound] == ["db:redis"]


def test_the_twin_without_any() -> None:
    text = "services: {web: {depends_on: [db]}, db: {image: redis}}"
    assert not has_facts(config({"web": None}))
    assert "db: {ports: 6379}" in injected(text).files[MESH_FILE]
    assert wiring(injected(text), "db").log_format == "json"


@pytest.mark.parametrize(
    ("ports", "written"),
    [
        ("6379", "{ports: 6379}"),
        ("[6379, 16379]", '{ports: {"6379": 6379, "16379": 16379}}'),
        ("{a: 6379, b: 1}", "{ports: {a: 6379, b: 1}}"),
        ("[]", "{}"),
    ],
)
def test_ports(ports: str, written: str) -> None:
    text = f"services: {{web: {{depends_on: [db]}}, db: {{image: redis, x-mesh: {{ports: {ports}}}}}}}"
    assert f"  db: {written}" in injected(text).files[MESH_FILE]


VALUES: dict[str, Any] = {
    "access_log": "refusals",
    "has_replicas": True,
    "keep": 7,
    "log_format": "console",
    "timeouts.handshake": "7s",
    "timeouts.connect": "7s",
    "timeouts.drain": "7s",
    "timeouts.wait": "7s",
    "limits.connections": 7,
    "inbound[].require_alpn": True,
    "inbound[].tolerate_missing_close_notify": True,
    "inbound[].idle_timeout": "7s",
    "inbound[].max_age": "7s",
    "outbound[].require_alpn": True,
    "outbound[].tolerate_missing_close_notify": True,
    "outbound[].idle_timeout": "7s",
    "outbound[].max_age": "7s",
    "inbound[].proxy_protocol": "tls",
    "inbound[].identity_header": "x-forwarded-client-cert",
    "inbound[].limits.connections": 7,
    "outbound[].limits.connections": 7,
    "inbound[].mode": "permissive",
    "inbound[].until": "2099-12-31",
    "inbound[].server_first": True,
}
"""A value of each key of ``sidecar.yaml`` that a person may want: whoever adds a key adds it here."""


ALONG = {"mode": "permissive", "until": "2099-12-31"}
TOGETHER = {f"inbound[].{key}": ALONG for key in ("mode", "until", "server_first")}
"""What a key needs beside it."""


def is_ours(key: str) -> bool:
    side, _, name = key.partition("[].")
    return name in OURS[side] if name else key.partition(".")[0] in OURS[""]


@pytest.mark.parametrize("key", [key.path for key in keys("sidecar")])
def test_every_key_of_sidecar_yaml_can_be_given_unless_the_wiring_consists_of_it(key: str) -> None:
    if key in ("inbound", "outbound", "timeouts", "limits", "inbound[].limits", "outbound[].limits"):
        return  # they hold others
    side, _, name = key.partition("[].")
    said: Any = VALUES.get(key)
    for step in reversed(name.split(".") if name else key.split(".")):
        said = {step: said}
    said = {side: {"*": TOGETHER.get(key, {}) | said}} if name else said
    db: dict[str, Any] = {"depends_on": ["web"], "expose": ["6379"]}
    services: dict[str, Any] = {"web": {"depends_on": ["db"], "expose": ["80"]}, "db": db}
    before: Any = wiring(injected(yaml.safe_dump({"services": services})), "db")
    db["x-mesh"] = {"sidecar": said}
    text = yaml.safe_dump({"services": services})
    if is_ours(key):
        assert any("is what `sidecar inject` writes" in line for line in refusal(text))
        return
    after: Any = wiring(injected(text), "db")
    if name:
        before, after = getattr(before, side)[0], getattr(after, side)[0]
    for step in (name or key).split("."):
        before, after = getattr(before, step), getattr(after, step)
    assert (str(after) if key.endswith("until") else after) == (7.0 if VALUES[key] == "7s" else VALUES[key])
    assert after != before


def test_a_default_that_is_not_wanted() -> None:
    text = COMPOSE.replace("drain: 9s", "wait: null")
    assert wiring(injected(text), "db").timeouts.wait is None


def test_entries_are_named_by_their_port_and_callee() -> None:
    text = """
services:
  web:
    depends_on: [db]
    x-mesh:
      sidecar:
        outbound: {"*": {max_age: 1h}, db: {max_age: 2h}, "db:2": {max_age: 3h}, "db:one": {max_age: 4h}}
  db:
    image: redis
    x-mesh: {ports: {one: 1, two: 2, three: 3}, sidecar: {inbound: {3: {max_age: 5h}, two: {max_age: 6h}}}}
"""
    injection = injected(text)
    assert [it.max_age / 3600 for it in wiring(injection, "web").outbound] == [4, 3, 2]
    assert [it.max_age / 3600 for it in wiring(injection, "db").inbound] == [24, 6, 5]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("drain: 9x", "compose.yaml:12: timeouts.drain: '9x' is not a duration"),
        ("drian: 9s", "compose.yaml:12: timeouts: unknown key 'drian' (did you mean 'drain'?)"),
    ],
)
def test_a_mistake_is_told_where_it_is_written(said: str, line: str) -> None:
    (told,) = refusal(COMPOSE.replace("drain: 9s", said))
    assert told.startswith(line)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("[]", "compose.yaml:5: must be a mapping (key: value), not a list"),
        ("{prots: 1}", "compose.yaml:5: unknown key 'prots' (did you mean 'ports'?)"),
        ("{ports: 0}", "compose.yaml:5: ports: a port is 1 to 65535, not 0"),
        (
            "{ports: {Http: 80}}",
            "compose.yaml:5: ports.Http: 'Http' is no port name: 1 to 63 of a-z 0-9 and, inside, -",
        ),
        ("{mesh: maybe}", "compose.yaml:5: mesh: must be true or false, not 'maybe'"),
        (
            "{calls: [api]}",
            "compose.yaml:5: calls: x-mesh holds facts, never rules: who may call whom is in mesh/mesh.yaml",
        ),
        ("{sidecar: [1]}", "compose.yaml:5: sidecar: must be a mapping (key: value), not a list"),
        ("{sidecar: {identity: {}}}", "compose.yaml:5: sidecar.identity: is what `sidecar inject` writes"),
        (
            "{sidecar: {inbound: {1: {listen: x}}}}",
            "compose.yaml:5: sidecar.inbound.1.listen: is what `sidecar inject`",
        ),
        ("{sidecar: {inbound: [1]}}", "compose.yaml:5: inbound: must be a mapping from the names of its entries"),
        ("{sidecar: {inbound: {1: 2}}}", "compose.yaml:5: inbound: must be a mapping from the names of its entries"),
        (
            "{sidecar: {inbound: {6380: {max_age: 1h}}}}",
            "compose.yaml:5: inbound.6380: there is no such port here",
        ),
        ("{sidecar: {outbound: {wbe: {max_age: 1h}}}}", "compose.yaml:5: outbound.wbe: there is no such port here"),
    ],
)
def test_a_mistake(said: str, line: str) -> None:
    (told,) = refusal(f"services:\n  web:\n    depends_on: [db]\n  db: {{image: redis, x-mesh:\n    {said}}}\n")
    assert told.startswith(line)


def test_ports_are_no_default_of_all() -> None:
    (told,) = refusal("x-mesh: {ports: 1}\nservices: {web: {depends_on: [db]}, db: {image: redis}}")
    assert told == "compose.yaml:1: ports: belongs to a service, not to the defaults of all"


def test_who_stays_outside() -> None:
    text = COMPOSE + "  backup: {depends_on: [db], x-mesh: {mesh: false}}\n"
    injection = injected(text)
    assert injection.topology.excluded == {"backup": "says `mesh: false` (compose.yaml:13)"}
    assert injection.services == ("db", "web")


def test_the_twin_all_but_some() -> None:
    text = COMPOSE.replace("x-mesh: {s", "x-mesh: {mesh: false, s").replace(
        "      ports", "      mesh: true\n      ports"
    )
    text = (
        text.replace("depends_on: [db]", "depends_on: [db]\n    x-mesh: {mesh: true}")
        + "  backup: {depends_on: [db]}\n"
    )
    assert injected(text).services == ("db", "web")


def test_an_answer_of_this_run_that_says_otherwise() -> None:
    assert refusal(COMPOSE, options=replace(OPTIONS, ports={"db": (1,)})) == [
        "compose.yaml:8: x-mesh: the ports of 'db' are redis: 6379, but --port says 1: leave that out"
    ]
    assert injected(options=replace(OPTIONS, ports={"db": (6379,)})).ports["db"][0].number == 6379


def test_an_edited_policy_that_says_otherwise() -> None:
    first = injected()
    text = first.files[MESH_FILE].replace("redis: 6379", "redis: 6380")
    data = yaml.safe_load(COMPOSE)
    given = replace(
        inputs(data["services"]), config=config(data["services"]), places=find_places([("c.yaml", COMPOSE)])
    )
    with pytest.raises(UsageError) as refused:
        inject(again(given, first, text))
    assert str(refused.value) == (
        "c.yaml:8: x-mesh: the ports of 'db' are redis: 6379, but mesh/mesh.yaml:6 says redis: 6380: correct one of the two"
    )
    same = inject(again(given, first, first.files[MESH_FILE] + "# mine\n"))
    assert same.files[MESH_FILE] == first.files[MESH_FILE] + "# mine\n"


def test_members_of_one_network_namespace_are_one_app() -> None:
    text = """
services:
  web: {depends_on: [db]}
  db: {image: redis, x-mesh: {ports: 1, sidecar: {log_format: json}}}
  beside: {network_mode: "service:db", x-mesh: {ports: 2, sidecar: {log_format: console, limits: {connections: 5}}}}
"""
    db = wiring(injected(text), "db")
    assert (sorted(it.port for it in db.inbound), db.log_format, db.limits.connections) == (["1", "2"], "json", 5)


def test_dollars_are_as_they_were_written() -> None:
    (told,) = refusal(
        "services:\n  web: {depends_on: [db]}\n  db: {image: redis, x-mesh: {sidecar: {log_format: $$x}}}"
    )
    assert "not '$x'" in told


def test_places() -> None:
    one = "x-a: &a\n  x-mesh: {ports: 1}\nservices:\n  a:\n    <<: *a\n  b:\n    <<: [*a]\n  c: {}\n"
    two = "services:\n\n  b: !reset null\n  d:\n    x-mesh:\n      ports: 1\n"
    found = find_places([("one", one), ("two", two), ("three", "a: [")])
    assert {name: str(place) for name, place in found.items()} == {
        "a": "one:2",
        "b": "one:2",
        "c": "one:8",
        "d": "two:6",
    }


def test_a_day_without_quotes_is_a_day() -> None:
    """Compose's YAML takes it for a time, and prints it as one."""
    said = {"http": {"until": datetime(2027, 1, 31, tzinfo=UTC)}, 80: [date(2027, 2, 1), "$$x"]}
    assert facts_module._unescaped(said) == {"http": {"until": "2027-01-31"}, "80": ["2027-02-01", "$x"]}
