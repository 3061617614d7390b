"""Which changes of a mesh file could allow more: each that could, beside its twin, which only closes or changes nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sidecar.documents.schema import fields_of
from sidecar.policy import opening as module
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.mesh_yaml import MeshShape, RuleShape, ServiceShape
from sidecar.policy.opening import may_open, opening

SERVICES = """\
  web: {ports: {http: 80}}
  api: {ports: {http: 80, metrics: 90}}
  db: {ports: 5432}
  batch:
"""


def mesh(*rules: str, services: str = SERVICES, more: str = "") -> Mesh:
    policy = "".join(f"  - {rule}\n" for rule in rules) or "  []\n"
    return parse_mesh(f"trust_domain: shop.internal\nservices:\n{services}policy:\n{policy}{more}", "mesh.yaml")


WEB_API = "{from: web, to: 'api:http'}"
NOT_WEB = "{name: no, from: web, to: 'api:http', action: deny}"
PATTERN = "{from: 'spiffe://shop.internal/batch/*', to: db}"
DEEP = "{from: 'spiffe://shop.internal/batch/**', to: db}"
NOT_DEEP = "{name: no, from: 'spiffe://shop.internal/batch/**', to: db, action: deny}"


@pytest.mark.parametrize(
    ("less", "more"),
    [
        # an allow that is new or wider
        ([], [WEB_API]),
        ([WEB_API], ["{from: [web, db], to: 'api:http'}"]),
        ([WEB_API], ["{from: web, to: api}"]),
        ([WEB_API], ["{from: web, to: '*'}"]),
        ([WEB_API], ["{from: '*', to: 'api:http'}"]),
        (["{from: '*', to: db}"], ["{from: 'spiffe://shop.internal/*', to: db}"]),
        ([], ["{from: plaintext, to: db}"]),
        (["{from: '*', to: db}"], ["{from: ['*', plaintext], to: db}"]),
        (["{from: [web, plaintext], to: db}", WEB_API], ["{from: [web, plaintext], to: [db, 'api:http']}"]),
        (["{name: no, from: plaintext, to: db, action: deny}"], []),
        ([PATTERN], [DEEP]),
        (["{from: 'spiffe://shop.internal/batch/one', to: db}"], [PATTERN]),
        (["{from: batch, to: db}"], [PATTERN, "{from: batch, to: db}"]),
        (["{from: web, to: db, until: 2027-01-31}"], ["{from: web, to: db, until: 2027-02-01}"]),
        (["{from: web, to: db, until: 2027-01-31}"], ["{from: web, to: db}"]),
        (["{from: web, to: db, mode: dry-run}"], ["{from: web, to: db}"]),
        # of two rules that each cover a part, neither covers it all
        (["{from: web, to: db}", "{from: api, to: web}"], ["{from: [web, api], to: [db, web]}"]),
        (["{from: web, to: api}", "{from: web, to: db, until: 2027-01-31}"], ["{from: web, to: [api, db]}"]),
        # a deny that is gone or narrower
        ([WEB_API, NOT_WEB], [WEB_API]),
        ([NOT_WEB], []),
        ([NOT_WEB], ["{name: no, from: web, to: 'api:http', action: deny, mode: dry-run}"]),
        ([NOT_WEB], ["{name: no, from: api, to: 'api:http', action: deny}"]),
        ([NOT_WEB], ["{name: no, from: web, to: 'api:metrics', action: deny}"]),
        ([NOT_WEB], ["{name: no, from: web, to: 'api:http'}"]),
        ([NOT_DEEP], ["{name: no, from: 'spiffe://shop.internal/batch/*', to: db, action: deny}"]),
        ([NOT_DEEP], ["{name: no, from: ['spiffe://shop.internal/batch/*/*', batch], to: db, action: deny}"]),
    ],
)
def test_more_is_allowed_or_less_denied(less: list[str], more: list[str]) -> None:
    assert may_open(mesh(*less), mesh(*more))
    if not less or not more or len(less) == len(more) == 1:
        assert not may_open(mesh(*more), mesh(*less)) or "deny" in str(more)
    assert not may_open(mesh(*less), mesh(*less))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([WEB_API], []),
        ([], [NOT_WEB]),
        (["{from: '*', to: '*'}"], [WEB_API]),
        # the same in other words
        (["{from: [web, db], to: 'api:http'}"], [WEB_API, "{from: db, to: 'api:http'}"]),
        ([WEB_API, "{from: db, to: 'api:http'}"], ["{from: [web, db], to: 'api:http'}"]),
        (["{from: web, to: 'api:http'}", "{from: web, to: 'api:metrics'}"], ["{from: web, to: api}"]),
        ([WEB_API], ["{name: other, from: web, to: 'api:http'}"]),
        ([WEB_API, NOT_WEB], [NOT_WEB, WEB_API]),
        ([DEEP], [PATTERN]),
        ([DEEP], ["{from: ['spiffe://shop.internal/batch/one', batch], to: db}"]),
        (["{from: 'spiffe://shop.internal/**', to: db}"], ["{from: '*', to: db}"]),
        ([NOT_DEEP], ["{name: no, from: 'spiffe://shop.internal/**', to: '*', action: deny}"]),
        # two patterns that together are as wide as one
        (
            ["{name: no, from: 'spiffe://shop.internal/batch/**', to: db, action: deny}"],
            ["{name: no, from: ['spiffe://shop.internal/batch/**/*', batch], to: db, action: deny}"],
        ),
        # a trial decides nothing
        ([], ["{from: web, to: db, mode: dry-run}"]),
        (["{name: no, from: web, to: db, action: deny, mode: dry-run}"], []),
        (["{from: web, to: db}"], ["{from: web, to: db, until: 2027-01-31}"]),
    ],
)
def test_a_change_that_only_closes_or_says_the_same(old: list[str], new: list[str]) -> None:
    assert opening(mesh(*old), mesh(*new)) is None


@pytest.mark.parametrize(
    ("old", "new", "opens"),
    [
        ([""], ["connections: 9"], False),
        (["connections: 9"], ["connections: 9"], False),
        (["connections: 9"], ["connections: 8"], False),
        (["connections: 9"], [], False),
        (["connections: 9"], [""], True),
        (["connections: 9"], ["connections: 10"], True),
        (["connections: 9"], ["connections: 9, name: another"], True),
        (["connections: 9"], ["connections: 9", "connections: 9, name: another"], True),
        (["connections: 9, until: 2030-01-01"], ["connections: 8"], True),
        (["connections: 9"], ["connections: 8, until: 2030-01-01"], False),
    ],
)
def test_room_for_more_connections_opens_and_for_fewer_closes(old: list[str], new: list[str], opens: bool) -> None:
    def rules(limits: list[str]) -> Mesh:
        return mesh(*(f"{{from: web, to: db, {limit}}}" for limit in limits))

    assert may_open(rules(old), rules(new)) is opens


def test_a_rule_of_the_same_limit_for_more_callers_opens() -> None:
    few, many = (f"{{name: x, from: {it}, to: db, connections: 9}}" for it in ("web", "[web, api]"))
    assert may_open(mesh(few), mesh(many))
    assert not may_open(mesh(many), mesh(few))


def test_two_patterns_one_for_each_length_are_within_one_and_not_the_reverse() -> None:
    both = mesh("{from: ['spiffe://shop.internal/batch/*', 'spiffe://shop.internal/batch/*/*'], to: db}")
    assert not may_open(mesh(DEEP), both)
    assert may_open(both, mesh(DEEP))


@pytest.mark.parametrize(
    ("less", "more", "what"),
    [
        (SERVICES, SERVICES + "  new:\n", "service 'new' is new"),
        ("  web: {ports: {http: 80}}\n", "  web: {ports: {http: 80, more: 81}}\n", "port web:more is new"),
        ("  web:\n", "  web: {ports: 80}\n", "port web:80 is new"),
    ],
)
def test_a_service_or_port_that_is_new_opens_and_one_that_is_gone_closes(less: str, more: str, what: str) -> None:
    assert what in str(opening(mesh(services=less), mesh(services=more)))
    assert opening(mesh(services=more), mesh(services=less)) is None


@pytest.mark.parametrize("other", ["{ports: {http: 81}}", "{ports: {http: 80}, dev: {app: {http: 9999}}}"])
def test_what_has_no_more_and_less_opens_either_way(other: str) -> None:
    one, two = mesh(services="  web: {ports: {http: 80}}\n"), mesh(services=f"  web: {other}\n")
    assert may_open(one, two)
    assert may_open(two, one)


def test_a_denial_to_what_is_gone_denied_nothing_that_is_left() -> None:
    """A service goes with every rule about it."""
    with_db = mesh("{name: no, from: web, to: [db], action: deny}", WEB_API)
    without = mesh(WEB_API, services=SERVICES.replace("  db: {ports: 5432}\n", ""))
    assert opening(with_db, without) is None


def test_a_denial_to_all_is_less_when_one_of_them_is_no_service_any_more_but_may_still_call() -> None:
    rules = ("{name: no, from: '*', to: db, action: deny}", "{from: 'spiffe://shop.internal/*', to: db}")
    assert may_open(mesh(*rules), mesh(*rules, services=SERVICES.replace("  batch:\n", "")))


@pytest.mark.parametrize("key", sorted(module.LONGER_OPENS))
def test_a_limit_that_is_longer_opens_and_a_shorter_one_closes(key: str) -> None:
    short, long = mesh(more=f"{key}: 2h\n"), mesh(more=f"{key}: 3h\n")
    assert key in str(opening(short, long))
    assert opening(long, short) is None


def test_an_older_trust_bundle_that_counts_opens_and_a_newer_one_closes() -> None:
    low, high = mesh(more="bundle_at_least: 7\n"), mesh(more="bundle_at_least: 8\n")
    assert "bundle_at_least is 7, and was 8" in str(opening(high, low))
    assert opening(low, high) is None


def test_another_trust_domain_opens_and_another_test_does_not() -> None:
    one = mesh(WEB_API)
    assert may_open(one, replace(one, trust_domain="else.internal"))
    assert opening(one, mesh(WEB_API, more="tests: [{from: web, to: db, expect: deny}]\n")) is None


def test_a_key_that_is_unknown_here_opens_if_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGER_OPENS", module.LONGER_OPENS - {"reenrol_window"})
    one = mesh()
    assert may_open(one, replace(one, reenrol_window=timedelta(hours=1)))
    assert not may_open(one, replace(one))


def test_every_key_of_a_rule_and_of_a_service_is_compared() -> None:
    """A key that is added to the file must be given a meaning here: it would open unseen."""
    assert set(fields_of(RuleShape)) == {"name", "from_", "to", "action", "mode", "until", "connections"}
    assert set(fields_of(ServiceShape)) == {"ports", "dev", "instances"}
    others = {"trust_domain", "alarm"}  # these open if they differ
    assert module.COMPARED_APART | module.LONGER_OPENS | module.LOWER_OPENS | others == set(fields_of(MeshShape))


def test_what_is_too_much_to_compare_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = mesh("{from: [web, db], to: api}"), mesh("{from: web, to: api}")
    assert not may_open(wide, narrow)
    monkeypatch.setattr(module, "MAX_COMPARISONS", 1)
    assert may_open(wide, narrow)
    assert not may_open(wide, wide)


def test_a_pattern_with_too_many_samples_is_within_nothing_but_itself() -> None:
    wild = "{from: 'spiffe://shop.internal/**/a/**/b/**/c/**', to: db}"
    assert may_open(mesh("{from: 'spiffe://shop.internal/**/a/**/b/**/*/**', to: db}"), mesh(wild))
    assert not may_open(mesh(wild), mesh(wild.replace("to: db", "to: [db]")))


def test_the_rule_is_named_with_its_line() -> None:
    assert opening(mesh(), mesh(WEB_API)) == "rule 'web->api:http' (mesh.yaml:8) allows more than before"
    assert opening(mesh(NOT_WEB), mesh()) == "rule 'no' is gone, or denies less than before"


def test_a_pattern_with_more_samples_than_are_tried_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = mesh("{from: 'spiffe://shop.internal/**', to: db}")
    deep = mesh(DEEP)
    (pattern,), (other,) = deep.rules[0].patterns, wide.rules[0].patterns
    number = len(list(pattern.samples(len(other.segments))))
    for most, opens in ((number, False), (number - 1, True)):
        monkeypatch.setattr(module, "MAX_SAMPLES", most)
        assert may_open(wide, deep) is opens


def test_a_new_person_opens_and_one_that_is_gone_does_not() -> None:
    one, two = mesh(more="people: [alice]\n"), mesh(more="people: [bob, alice]\n")
    assert opening(one, two) == "person 'bob' is new"
    assert not may_open(two, one)
    assert not may_open(two, mesh(more="people: [alice, bob]\n"))
