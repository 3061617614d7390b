"""Which calls become rules, which are offered to a person, and which are neither."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.learn.rules import Evidence, Learned, learn
from sidecar.learn.seen import Seen
from sidecar.policy.mesh import Mesh, parse_mesh
from tests.unit.learn.lines import DOMAIN, inbound, outbound, plaintext
from tests.unit.learn.test_seen import WEB_API, call

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SERVICES = """\
trust_domain: shop.internal
services:
  web: {}
  cli: {}
  api: {ports: {http: 80, metrics: 90}}
  db: {ports: {sql: 5432}}
policy:
"""
OBSERVE = '  - {name: observe, from: "*", to: "*", until: 2026-06-07}\n'
ALWAYS = Evidence(lambda _call: True)


def mesh(*rules: str) -> Mesh:
    return parse_mesh(SERVICES + OBSERVE + "".join(f"  - {rule}\n" for rule in rules), "mesh.yaml")


def learned(*lines: dict[str, Any], file: Mesh | None = None, evidence: Evidence = ALWAYS) -> Learned:
    seen = Seen(DOMAIN)
    for line in lines:
        seen.take(line)
    return learn(file or mesh(), seen, evidence, NOW, {"observe"})


def texts(found: Learned) -> list[str]:
    return [rule.text for rule in found.rules]


def against(found: Learned) -> list[str]:
    assert not found.rules
    return [rule.against for rule in found.offers]


def test_one_call_is_one_rule_with_what_was_seen_behind_it() -> None:
    found = learned(inbound("web", "api:http"), inbound("web", "api:http", time="2026-06-02T11:30:00Z"))
    [rule] = found.rules
    assert list(rule.lines()) == [
        '  - {from: web, to: "api:http"}  # 2 connections, first 2026-06-01 10:00, last 2026-06-02 11:30'
    ]
    assert (found.offers, found.covered, found.notes) == ((), 0, ())


def test_a_caller_has_one_rule_and_callers_of_the_same_ports_share_it() -> None:
    calls = ["web api:http", "cli api:http", "web db:sql", "cli db:sql", "api db:sql"]
    found = learned(*(inbound(*one.split(), time=None) for one in calls))
    assert texts(found) == ['{from: api, to: "db:sql"}', '{from: [cli, web], to: ["api:http", "db:sql"]}']
    assert list(found.rules[1].lines()) == [
        "  # cli -> api:http: 1 connection",
        "  # cli -> db:sql: 1 connection",
        "  # web -> api:http: 1 connection",
        "  # web -> db:sql: 1 connection",
        '  - {from: [cli, web], to: ["api:http", "db:sql"]}',
    ]


def test_the_rule_names_the_ports_that_were_seen_even_if_these_are_all() -> None:
    assert texts(learned(inbound("web", "db:sql"))) == ['{from: web, to: "db:sql"}']


def test_what_the_file_allows_already_needs_no_rule() -> None:
    found = learned(inbound("web", "api:http"), file=mesh("{from: web, to: api}"))
    assert (found.rules, found.offers, found.covered) == ((), (), 1)


def test_nor_does_what_a_person_allows_for_a_time() -> None:
    assert learned(inbound("web", "api:http"), file=mesh("{from: web, to: api, until: 2026-06-02}")).covered == 1


def test_a_deny_rule_stays() -> None:
    found = learned(inbound("web", "api:http"), file=mesh("{name: no, from: web, to: api, action: deny}"))
    assert (found.rules, found.offers) == ((), ())
    assert found.notes == ("web -> api:http: rule 'no' (mesh.yaml:9) denies it, and it stays so",)


@pytest.mark.parametrize(
    ("caller", "target"), [("gone", "api:http"), ("web", "gone:http"), ("web", "api:gone"), ("mesh/ca", "api:http")]
)
def test_what_is_not_declared_gets_no_rule(caller: str, target: str) -> None:
    found = learned(inbound(caller, target))
    assert (found.rules, found.offers) == ((), ())
    assert [note.endswith("one of them is not declared in mesh.yaml") for note in found.notes] == [True]


def test_an_identity_that_is_no_service_s_is_named_in_full() -> None:
    assert texts(learned(inbound("batch/one", "db:sql"))) == [
        '{from: "spiffe://shop.internal/batch/one", to: "db:sql"}'
    ]


# -- for a person ------------------------------------------------------------------------------------------------------


def test_what_no_file_mentions_is_offered_and_what_one_does_is_learned() -> None:
    evidence = Evidence(lambda one: one == WEB_API)
    found = learned(inbound("web", "api:http"), inbound("web", "db:sql"), evidence=evidence)
    assert texts(found) == ['{from: web, to: "api:http"}']
    [offer] = found.offers
    assert list(offer.lines()) == [
        "  # no file of the application mentions it; 1 connection, first 2026-06-01 10:00, last 2026-06-01 10:00:",
        '  # - {from: web, to: "db:sql"}',
    ]


def test_without_an_application_the_callee_must_have_seen_it() -> None:
    assert against(learned(outbound("web", "api:http"), evidence=Evidence())) == [
        "the caller's own sidecar alone tells of it"
    ]
    assert texts(learned(inbound("web", "api:http"), evidence=Evidence()))
    assert texts(learned(outbound("web", "api:http")))  # the application's files mention it


def test_an_alarm() -> None:
    alarm = {"event": "mitm_suspected", "service": "web", "upstream": "api:http"}
    assert against(learned(inbound("web", "api:http"), alarm)) == [
        "there was an ALARM about this call or one of its ends"
    ]


def test_what_was_refused_only() -> None:
    refused = inbound("web", "api:http", decision="deny", reason="policy_denied", rule=None)
    assert against(learned(refused)) == ["the policy refused it, nothing was let in"]
    assert texts(learned(refused, inbound("web", "api:http")))


def test_what_a_person_has_removed() -> None:
    evidence = Evidence(lambda _call: True, removed={WEB_API})
    assert against(learned(inbound("web", "api:http"), evidence=evidence)) == ["a rule for it was removed here by hand"]


def test_what_an_earlier_rule_allowed_and_none_does_now() -> None:
    assert against(learned(inbound("web", "api:http", rule="old"))) == ["old allowed it then, and no rule does now"]
    both = inbound("web", "api:http", rule="old"), inbound("web", "api:http")
    assert texts(learned(*both))


def test_what_ran_out() -> None:
    file = mesh("{name: trial, from: web, to: api, until: 2026-05-01}")
    assert against(learned(inbound("web", "api:http", rule="trial"), file=file)) == ["the rule that allowed it ran out"]


def test_what_is_commented_out_stays_so() -> None:
    found = learned(inbound("web", "api:http"), evidence=Evidence(lambda _call: True, commented={WEB_API}))
    assert (found.rules, found.offers) == ((), ())
    assert found.notes == ("web -> api:http: a rule for it is commented out in mesh.yaml, and stays so",)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken() -> None:
    file = mesh('{from: web, to: "api:http", mode: dry-run}', '{name: "learned 2: web->api:http", from: db, to: db}')
    [rule] = learned(inbound("web", "api:http"), file=file).rules
    assert rule.text == '{name: "learned 3: web->api:http", from: web, to: "api:http"}'


def test_commented_rules_have_names_of_their_own_too() -> None:
    file = mesh('{from: web, to: "api:http", mode: dry-run}')
    [offer] = learned(inbound("web", "api:http"), file=file, evidence=Evidence(lambda _call: False)).offers
    assert offer.text == '{name: "learned 2: web->api:http", from: web, to: "api:http"}'


def test_another_call_is_not_in_evidence() -> None:
    evidence = Evidence(lambda _call: True, removed={call("web", "db:sql")}, commented={call("cli", "api:http")})
    assert texts(learned(inbound("web", "api:http"), evidence=evidence))


def test_no_rule_is_learned_or_offered_for_callers_without_tls() -> None:
    found = learned(plaintext("db:sql"), inbound("web", "db:sql"))
    assert texts(found) == ['{from: web, to: "db:sql"}']
    assert found.offers == ()
    assert found.notes == (
        "plaintext -> db:sql: it proves nothing, so no rule is learned for it; to let it in, write one by hand",
    )
    assert learned(plaintext("db:sql"), file=mesh("{from: plaintext, to: db}")).covered == 1


def test_for_a_person_a_rule_is_offered_as_for_any_caller_and_only_if_declared() -> None:
    people = parse_mesh(SERVICES + OBSERVE + "people: [alice]\n", "mesh.yaml")
    lines = inbound("user/alice", "db:sql"), inbound("user/bob", "db:sql")
    found = learned(*lines, file=people, evidence=Evidence(lambda _call: False))
    assert found.rules == ()
    assert [offer.text for offer in found.offers] == ['{from: user/alice, to: "db:sql"}']
    assert found.notes == ("user/bob -> db:sql: one of them is not declared in mesh.yaml",)
