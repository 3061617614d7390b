"""The JSON Schemas accept what the parser accepts, refuse what it does not know, and say what it does by default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from datetime import timedelta
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator

from sidecar.config.environment import variables
from sidecar.config.reference import FileKind, duration_text, file_schema, keys, reference, shape_schema
from sidecar.config.sidecar_yaml import Config, ConfigShape
from sidecar.documents.document import DataPath, part, parts
from sidecar.documents.durations import parse_duration
from sidecar.documents.schema import Before, Between, Shape, frozen, keys_at, read_by
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.meanings.glossary import EVERY
from sidecar.policy.mesh import Mesh, parse_mesh
from tests.specimens import FILES, FULL, HEAD, MESH_TEXT, WHOLE_MESH, WITH_FINGERPRINT, parsed

KINDS: tuple[FileKind, ...] = ("mesh", "sidecar")
VALIDATORS = {kind: Draft202012Validator(file_schema(kind)) for kind in KINDS}

MESHES = {
    "little": "trust_domain: shop.internal\nservices: {}\n",
    "specimen": MESH_TEXT,
    "whole": WHOLE_MESH,
    "empty": "trust_domain: shop.internal\nservices: {a: }\npolicy:\ntests:\nmax_leaf_ttl:\n",
    "names that YAML 1.1 would take for something else": "trust_domain: x\nservices: {no: {ports: {on: 80}}, 1.5: {}}\n",
}
SIDECARS = {
    "little": HEAD,
    "specimen": FULL,
    "files": FILES,
    "a fingerprint": WITH_FINGERPRINT,
    "empty": HEAD + "inbound:\noutbound:\nadmin:\ntimeouts:\nlimits:\n",
    "nothing in a list's item": HEAD + 'inbound:\n  - {port: http, listen: "0.0.0.0:1", app: "a:1", idle_timeout: }\n',
    "a port by its number": HEAD.replace("api", "db") + 'inbound: [{port: 5432, listen: "0.0.0.0:1", app: ["a:2"]}]\n',
    "a Unix socket": HEAD + 'admin: {listen: "unix:/run/sidecar.sock"}\nlog_format: console\n',
}
EXAMPLES: list[tuple[FileKind, str]] = [
    *(("mesh", text) for text in MESHES.values()),
    *(("sidecar", text) for text in SIDECARS.values()),
]
NAMES = [f"mesh: {name}" for name in MESHES] + [f"sidecar: {name}" for name in SIDECARS]


def read(kind: FileKind, text: str) -> Mesh | Config:
    return parse_mesh(text, "mesh.yaml") if kind == "mesh" else parsed(text)


def complaints(kind: FileKind, data: Any) -> list[str]:
    return [error.message for error in VALIDATORS[kind].iter_errors(data)]


def data_of(text: str) -> Any:
    return parse_yaml(text, "x.yaml").data


def as_file(data: Any) -> str:
    """YAML is a superset of JSON."""
    return json.dumps(data)


def mappings_with_fixed_keys(data: Any, path: DataPath = ()) -> Iterator[DataPath]:
    """Where in the data a key that nobody knows can be put: everywhere, but where keys are the user's own."""
    if isinstance(data, dict) and path[-1:] not in (("services",), ("ports",), ("app",), ("calls",)):
        yield path
    for step, inner in parts(data):
        yield from mappings_with_fixed_keys(inner, (*path, step))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_json_schema_of_its_draft(kind: FileKind) -> None:
    schema = file_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=NAMES)
def test_what_the_parser_accepts(kind: FileKind, text: str) -> None:
    read(kind, text)
    assert complaints(kind, data_of(text)) == []


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=NAMES)
def test_a_key_that_nobody_knows_is_refused_wherever_it_is(kind: FileKind, text: str) -> None:
    data = data_of(text)
    for path in mappings_with_fixed_keys(data):
        broken = deepcopy(data)
        part(broken, *path)["xyzzy"] = 1
        with pytest.raises(UsageError, match="unknown key 'xyzzy'"):
            read(kind, as_file(broken))
        assert complaints(kind, broken) != [], path


def test_there_are_as_many_places_for_it_as_there_are_mappings() -> None:
    assert [*mappings_with_fixed_keys(data_of(WHOLE_MESH))].count(("services", "web", "dev")) == 1
    assert ("timeouts",) in mappings_with_fixed_keys(data_of(FULL))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("mesh", "trust_domain: x"),
        ("mesh", "services: {}"),
        ("mesh", "trust_domain: 5\nservices: {}"),
        ("mesh", "trust_domain: x\nservices: [a]"),
        ("mesh", "trust_domain: x\nservices: {a: {ports: '80'}}"),
        ("mesh", "trust_domain: x\nservices: {a: {ports: {http: 0}}}"),
        ("mesh", "trust_domain: x\nservices: {a: {ports: 65536}}"),
        ("mesh", "trust_domain: x\nservices: {a: {dev: {app: 80}}}"),
        ("mesh", MESH_TEXT + "reenrol_window: 24\n"),
        ("mesh", MESH_TEXT + "reenrol_window: 24 hours\n"),
        ("mesh", MESH_TEXT + 'reenrol_window: ""\n'),
        ("mesh", MESH_TEXT.replace("2027-01-31", "2027-1-31")),
        ("mesh", MESH_TEXT.replace("{from: web,", "{from: web, action: alow,")),
        ("mesh", MESH_TEXT.replace("{from: web,", "{")),
        ("mesh", MESH_TEXT.replace("{from: web,", "{from: ,")),
        ("sidecar", "service: api\nmesh: m\n"),
        ("sidecar", HEAD.replace("k.pem", "[k.pem]")),
        ("sidecar", HEAD + "inbound: {}"),
        ("sidecar", HEAD + "inbound: [x]"),
        ("sidecar", HEAD + "admin: {}"),
        ("sidecar", HEAD + "timeouts: {drain: 8}"),
        ("sidecar", HEAD + "limits: {connections: 0}"),
        ("sidecar", HEAD + "limits: {connections: 1000001}"),
        ("sidecar", HEAD + "limits: {connections: '5'}"),
        ("sidecar", HEAD + "log_format: jsn"),
        ("sidecar", FULL.replace("true", "1")),
        ("sidecar", FULL.replace('peers: "cache.mesh:6379"', "peers: 6379")),
    ],
)
def test_a_value_of_another_kind(kind: FileKind, text: str) -> None:
    with pytest.raises(UsageError):
        read(kind, text)
    assert complaints(kind, data_of(text)) != []


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_says_what_it_is_and_what_holds_without_it(kind: FileKind) -> None:
    schema = file_schema(kind)
    for mapping in (schema, *schema["$defs"].values()):
        assert mapping["additionalProperties"] is False
        for name, found in mapping["properties"].items():
            assert found["description"][-1] in ".-", name
            assert name in mapping.get("required", ()) or "default" in found, name
            assert {"type", "anyOf", "$ref"} & found.keys(), name


def with_defaults(kind: FileKind, data: Any) -> Any:
    """The data with every key that has a default, written out."""
    schema: Any = VALIDATORS[kind].schema
    resolved = {f"#/$defs/{name}": shape for name, shape in schema["$defs"].items()}

    def filled(found: Any, value: Any) -> Any:
        shapes = [resolved.get(one.get("$ref", ""), one) for one in (found, *found.get("anyOf", ()))]
        for shape in shapes:
            if "properties" in shape and isinstance(value, dict):
                known = {name: it["default"] for name, it in shape["properties"].items() if "default" in it}
                return {name: filled(shape["properties"][name], it) for name, it in (known | value).items()}
            if shape.get("type") == "array" and isinstance(value, list):
                return [filled(shape["items"], item) for item in value]
            if isinstance(shape.get("additionalProperties"), dict) and isinstance(value, dict):
                return {name: filled(shape["additionalProperties"], it or {}) for name, it in value.items()}
        return value

    return filled(schema, data)


def without_lines(mesh: Mesh | Config) -> str:
    """As text, since a mesh remembers its lines and these differ; and the digest of its text, which is left out."""
    return re.sub(r"version='[0-9a-f]{12}'", "", repr(mesh))


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=NAMES)
def test_a_default_that_is_written_out_changes_nothing(kind: FileKind, text: str) -> None:
    data = data_of(text)
    explicit = with_defaults(kind, data)
    assert len(as_file(explicit)) > len(as_file(data))
    assert complaints(kind, explicit) == []
    assert without_lines(read(kind, as_file(explicit))) == without_lines(read(kind, as_file(data)))


def test_a_default_that_is_another_one_would_change_something() -> None:
    assert without_lines(read("sidecar", HEAD)) != without_lines(read("sidecar", HEAD + "timeouts: {drain: 9s}"))
    assert without_lines(read("mesh", MESH_TEXT)) != without_lines(read("mesh", MESH_TEXT + "reenrol_window: 2h"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1s"), (60, "1m"), (90, "1m30s"), (3600, "1h"), (86_400, "1d"), (90_061, "1d1h1m1s")]
)
def test_a_duration_is_written_as_it_is_read(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text
    assert parse_duration(text) == timedelta(seconds=seconds)


def test_a_reader_that_does_not_say_what_it_reads_is_found() -> None:
    @frozen()
    class Silent(Shape):
        key: Annotated[int, Before(len)]
        """A number."""

    with pytest.raises(TypeError, match="has no input type"):
        shape_schema(Silent)


def test_a_schema_has_both_ends_and_the_pattern() -> None:
    @frozen()
    class Bounded(Shape):
        few: Annotated[int, Between(1, 3, "a few are")]
        """A number."""
        read: Annotated[float, read_by(float, "^[0-9.]+$")]
        """Text of a form."""
        text: Annotated[float, read_by(float)]
        """Any text."""

    assert {name: {**it, "description": ""} for name, it in shape_schema(Bounded)["properties"].items()} == {
        "few": {"type": "integer", "minimum": 1, "maximum": 3, "description": ""},
        "read": {"type": "string", "pattern": "^[0-9.]+$", "description": ""},
        "text": {"type": "string", "description": ""},
    }


def test_a_key_without_a_meaning_is_found() -> None:
    @frozen()
    class Silent(Shape):
        one: int
        """The first."""
        two: int

    with pytest.raises(TypeError, match=r"Silent\.two has no description"):
        shape_schema(Silent)


def test_the_reference_has_every_key_with_its_variable() -> None:
    text = reference()
    assert [key.path for key in keys("mesh")][:4] == [
        "trust_domain", "services", "services.<name>.ports", "services.<name>.dev",
    ]  # fmt: skip
    assert {".".join(map(str, path)) for path in variables().values()} < {key.path for key in keys("sidecar")}
    for name in variables():
        assert text.count(f"Variable: `{name}`.") == 1, name
    for key in (*keys("mesh"), *keys("sidecar")):
        assert f"| `{key.path}` | {key.type} | {key.default} | {key.meaning}" in text
        assert "" not in (key.type, key.default, key.meaning)
    assert "| `timeouts.drain` | duration | `8s` | For requests in flight to finish" in text
    assert "| `policy[].until` | text | no end |" in text


def test_each_row_of_the_reference_has_four_cells() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) == len(keys("mesh")) + len(keys("sidecar")) + len(EVERY)
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_a_new_key_is_in_both_by_itself() -> None:
    tops = {key.path for key in keys("sidecar") if "." not in key.path and "[" not in key.path}
    assert tops == set(keys_at(ConfigShape, ()))
