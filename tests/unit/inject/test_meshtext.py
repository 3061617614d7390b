"""mesh.yaml: written anew while nobody edited it, only added to once somebody did, and never opened again."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from sidecar.documents.schema import fields_of
from sidecar.identity.reasons import UsageError
from sidecar.inject import meshtext
from sidecar.inject.injection import MESH_FILE, Injection, Inputs, inject
from sidecar.inject.options import Options
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.mesh_yaml import RuleShape
from tests.inject.applications import OPTIONS, TODAY, config, inputs
from tests.inject.bed import again

ONE: dict[str, Any] = {"web": {"environment": {"URL": "http://api:81"}}, "api": {}}
TWO: dict[str, Any] = {**ONE, "api": {"depends_on": ["db"]}, "db": {"image": "redis"}}


def first(services: dict[str, Any] = ONE, options: Options = OPTIONS) -> tuple[Inputs, Injection]:
    given = inputs(services, options=options)
    return given, inject(given)


def second(edit: str | None, services: dict[str, Any], **changes: Any) -> Injection:
    """A second run over ``services``, after ``mesh.yaml`` of the first became ``edit``."""
    given, before = first()
    return inject(replace(again(replace(given, config=config(services)), before, edit), **changes))


def text_of(injection: Injection) -> str:
    return injection.files[MESH_FILE]


def test_the_first_time() -> None:
    assert text_of(first(TWO)[1]).splitlines()[3:] == [
        "trust_domain: shop.internal",
        "services:",
        "  api: {ports: 81}  # environment URL of web",
        "  db: {ports: 6379}  # what its image is known for",
        "  web: {}  # calls, is not called",
        "policy:  # default: deny",
        "  - {from: api, to: db}  # depends_on",
        '  - {from: web, to: "api:81"}  # environment URL',
        *meshtext.END,
    ]
    assert parse_mesh(text_of(first(TWO)[1]), "m").ended


@pytest.mark.parametrize("edit", ["# mine\n", "\n"])
def test_what_is_added_to_an_edited_file_comes_before_the_line_that_ends_it(edit: str) -> None:
    edited = edit + text_of(first()[1])
    after = text_of(second(edited, TWO))
    assert after.splitlines()[-3:] == ["  - {from: api, to: db}  # depends_on", *meshtext.END]
    assert after.startswith(edit)
    without = edited.replace('policy:  # default: deny\n  - {from: web, to: "api:81"}  # environment URL\n', "")
    assert text_of(second(without, TWO)).splitlines()[-4:] == [
        meshtext.END[0],
        "policy:",
        "  - {from: api, to: db}  # depends_on",
        "...",
    ]


def test_as_long_as_nobody_edits_it_it_follows_the_application() -> None:
    assert text_of(second(None, TWO)) == text_of(first(TWO)[1])
    moved = {"web": {"environment": {"URL": "http://api:82"}}, "api": {}}
    assert "81" not in text_of(second(None, moved))


def test_every_byte_of_an_edited_file_stays_and_what_is_new_is_added() -> None:
    edited = "# mine\n" + text_of(first()[1]).replace("{ports: 81}", "{ports: {http: 81}}").replace(
        "api:81", "api:http"
    )
    edited = edited.replace("\n".join([*meshtext.END, ""]), "  - {name: mine, from: api, to: api}\n\n# the end\n")
    after = text_of(second(edited, TWO))
    assert after.splitlines() == [
        *edited.splitlines()[:7],
        "  web: {}  # calls, is not called",
        "  db: {ports: 6379}  # what its image is known for",
        "policy:  # default: deny",
        '  - {from: web, to: "api:http"}  # environment URL',
        "  - {name: mine, from: api, to: api}",
        "  - {from: api, to: db}  # depends_on",
        "",
        "# the end",
    ]
    wiring = second(edited, TWO).files["mesh/sidecars/web.yaml"]
    assert 'to: "api:http"' in wiring


def test_an_edited_file_with_nothing_new_is_left_as_it_is() -> None:
    edited = text_of(first()[1]) + "# mine\n"
    assert text_of(second(edited, ONE)) == edited


def test_a_rule_that_somebody_took_out_stays_out() -> None:
    edited = text_of(first()[1]).replace(
        'policy:  # default: deny\n  - {from: web, to: "api:81"}  # environment URL', "policy: []"
    )
    injection = second(edited, TWO)
    mesh = parse_mesh(text_of(injection), MESH_FILE)
    assert [rule.name for rule in mesh.rules] == ["api->db"]
    assert f"{MESH_FILE}: web->api:81 (environment URL) is not allowed there, and stays so" in injection.warnings


def test_the_twin_a_rule_that_was_never_proposed_is_added() -> None:
    edited = text_of(first()[1]) + "# mine\n"
    other = {**ONE, "web": {"environment": {"URL": "http://api:81"}}, "api": {"expose": ["81"], "depends_on": ["web"]}}
    other["web"]["expose"] = ["7"]
    edited = edited.replace("web: {}", "web: {ports: 7}")
    assert [rule.name for rule in parse_mesh(text_of(second(edited, other)), "m").rules] == ["web->api:81", "api->web"]


def test_without_a_record_only_rules_of_new_services_are_added() -> None:
    given, before = first()
    edited = text_of(before).replace('  - {from: web, to: "api:81"}  # environment URL\n', "  - {from: api, to: api}\n")
    run = again(replace(given, config=config(TWO)), before, edited)
    assert run.existing is not None
    injection = inject(replace(run, before=None, existing=replace(run.existing, proposed=None)))
    assert [rule.name for rule in parse_mesh(text_of(injection), "m").rules] == ["api->api", "api->db"]


def test_a_rule_by_another_name_is_enough() -> None:
    edited = text_of(first()[1]).replace('{from: web, to: "api:81"}', '{name: all, from: "*", to: "*"}')
    assert text_of(second(edited, ONE)) == edited


def test_what_has_no_reason_any_more_is_told_and_stays() -> None:
    edited = text_of(first()[1]) + "# mine\n"
    gone = {"web": {"image": "redis"}, "other": {"depends_on": ["web"]}}
    injection = second(edited, gone)
    assert "  api: {ports: 81}" in text_of(injection)
    assert f"{MESH_FILE}: service 'api' is no longer in the mesh" in injection.warnings
    assert any("the application no longer gives a reason for rule 'web->api:81'" in it for it in injection.warnings)


def test_a_port_that_an_edited_file_does_not_declare_is_told() -> None:
    edited = text_of(first()[1]) + "# mine\n"
    more = {**ONE, "api": {"expose": ["81", "99"]}}
    injection = second(edited, more)
    assert f"{MESH_FILE}: port 99 of 'api' (ports or expose) is not declared there" in injection.warnings
    assert ":99" not in str(injection.files)


@pytest.mark.parametrize(
    "edit",
    [
        "trust_domain: shop.internal\nservices: {web: {}, api: {ports: 81}}\npolicy: []\n",
        "{trust_domain: shop.internal, services: {web: {}, api: {ports: 81}}}\n",
    ],
)
def test_a_file_that_cannot_be_added_to_is_refused_and_nothing_is_guessed(edit: str) -> None:
    with pytest.raises(UsageError, match=rf"^{MESH_FILE}: "):
        second(edit, TWO)


def test_the_twin_other_ways_to_write_it() -> None:
    edit = "policy: []\n'services' :\n    web:\n    api:\n        ports: 81\n\ntrust_domain: shop.internal\n"
    after = text_of(second(edit, TWO))
    mesh = parse_mesh(after, "m")
    assert sorted(mesh.services) == ["api", "db", "web"]
    assert "    db: {ports: 6379}" in after


OTHER: dict[str, Any] = {
    "name": "x",
    "from_": ("b",),
    "to": ("b:2",),
    "action": "deny",
    "mode": "dry-run",
    "until": date(2027, 1, 1),
    "connections": 5,
}
"""A value other than that of the rule below, for each key of a rule."""


@pytest.mark.parametrize("key", [None, *fields_of(RuleShape)])
def test_what_is_added_changes_no_rule_that_was_there_in_any_of_its_keys(key: str | None) -> None:
    text = "trust_domain: t\nservices:\n  a: {ports: 1}\n  b: {ports: 2}\npolicy:\n  - {from: a, to: b}\n"
    mesh = parse_mesh(text, "m")
    if key is not None:
        mesh = replace(mesh, rules=(replace(mesh.rules[0], **{key: OTHER[key]}),))
    existing = meshtext.Existing(text, mesh, edited=True, proposed=frozenset())

    def add() -> meshtext.MeshText:
        names = {"a": {"1": 1}, "b": {"2": 2}, "c": {"3": 3}}
        return meshtext.mesh_text(
            "t", names, {}, (), observe=False, today=TODAY, files=(), filename="m", existing=existing
        )

    if key is None:  # the twin: nothing is changed
        assert list(add().mesh.services) == ["a", "b", "c"]
    else:
        with pytest.raises(UsageError, match="nothing can be added as it is written"):
            add()


OBSERVE = replace(OPTIONS, observe=True)


def test_observing() -> None:
    given, before = first(ONE, OBSERVE)
    rule, inferred = parse_mesh(text_of(before), "m").rules
    assert (rule.name, rule.from_, rule.to, rule.until) == ("observe", ("*",), ("*",), date(2026, 12, 8))
    assert (inferred.name, inferred.until) == ("web->api:81", None)
    later = again(replace(given, today=date(2026, 12, 1)), before)
    assert text_of(inject(later)) == text_of(before)
    over = again(replace(given, today=date(2027, 1, 1)), before)
    assert parse_mesh(text_of(inject(over)), "m").rules[0].until == date(2027, 1, 15)
    ended = replace(later, options=OPTIONS)
    assert [it.name for it in parse_mesh(text_of(inject(ended)), "m").rules] == ["web->api:81"]


@pytest.mark.parametrize("edit", ["", "# mine\n"])
def test_the_end_of_a_rule_is_told_a_week_before(edit: str) -> None:
    given, before = first(ONE, OBSERVE)

    def told(day: date) -> list[str]:
        later = again(replace(given, today=day), before, text_of(before) + edit)
        return [note for note in inject(later).warnings if "runs out after" in note]

    assert told(date(2026, 12, 1)) == []
    (note,) = told(date(2026, 12, 2))
    assert re.match(
        r"mesh/mesh\.yaml:\d+: rule 'observe' runs out after 2026-12-08, and what no other rule allows", note
    )


def test_what_is_observed_only_has_no_rule_of_its_own_yet() -> None:
    edited = text_of(first(ONE, OBSERVE)[1]) + "# mine\n"
    injection = second(edited, TWO, options=OBSERVE)
    assert [rule.name for rule in parse_mesh(text_of(injection), "m").rules] == ["observe", "web->api:81", "api->db"]


def test_observing_with_an_edited_file() -> None:
    edited = text_of(first()[1]) + "# mine\n"
    injection = second(edited, ONE, options=OBSERVE)
    assert [rule.name for rule in parse_mesh(text_of(injection), "m").rules] == ["web->api:81", "observe"]
    assert (parse_mesh(text_of(injection), "m").rules[1].until or TODAY) > TODAY
