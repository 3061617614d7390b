"""Learned rules in a file that people edit: every byte stays, and what comes out is what was learned."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.learn import merge
from sidecar.learn.merge import commented_out, merged
from sidecar.learn.rules import Evidence, Learned, learn
from sidecar.learn.seen import Seen
from sidecar.policy.mesh import parse_mesh
from tests.unit.learn.lines import DOMAIN, inbound
from tests.unit.learn.test_rules import NOW, OBSERVE, SERVICES
from tests.unit.learn.test_seen import WEB_API, call

TEXT = SERVICES + OBSERVE
NOTHING = Learned((), (), 0, ())


def again(text: str, *, mentioned: tuple[str, ...] = ("web",)) -> str:
    """``text`` after a run that has seen web and api calling."""
    mesh, seen = parse_mesh(text, "mesh.yaml"), Seen(DOMAIN)
    for line in (inbound("web", "api:http"), inbound("api", "db:sql"), inbound("web", "db:sql")):
        seen.take(line)
    evidence = Evidence(lambda one: one.caller in mentioned, commented=commented_out(text, mesh))
    return merged(text, mesh, learn(mesh, seen, evidence, NOW, {"observe"}))


def test_rules_are_added_and_offers_are_commented_out() -> None:
    assert again(TEXT).removeprefix(TEXT).splitlines() == [
        "  # web -> api:http: 1 connection, first 2026-06-01 10:00, last 2026-06-01 10:00",
        "  # web -> db:sql: 1 connection, first 2026-06-01 10:00, last 2026-06-01 10:00",
        '  - {from: web, to: ["api:http", "db:sql"]}',
        "  # no file of the application mentions it; 1 connection, first 2026-06-01 10:00, last 2026-06-01 10:00:",
        '  # - {from: api, to: "db:sql"}',
    ]


def test_a_second_time_changes_nothing() -> None:
    assert again(again(TEXT)) == again(TEXT)


def test_a_rule_that_a_person_comments_out_does_not_come_back() -> None:
    edited = again(TEXT).replace("  - {from: web", "  #- {from: web")
    assert again(edited) == edited


def test_an_offer_that_a_person_enables_is_a_rule() -> None:
    enabled = again(TEXT).replace("# - {from: api", "- {from: api")
    assert again(enabled) == enabled
    assert [rule.name for rule in parse_mesh(enabled, "m").rules] == ["observe", "web->api:http,db:sql", "api->db:sql"]


@pytest.mark.parametrize(
    "text",
    [
        "# mine\r\n" + TEXT.replace("\n", "\r\n"),
        TEXT + "tests:\n  - {from: web, to: db, expect: deny}\n\n# the end\n",
        TEXT.replace("  - {name", "- {name"),
        TEXT + "    # \u2028 \x85\n",
        SERVICES.replace("policy:", "policy: []"),
        SERVICES.removesuffix("policy:\n"),
        TEXT + "# last\n...\n",
    ],
)
def test_every_byte_stays(text: str) -> None:
    try:
        after = again(text)
    except UsageError:
        assert "\u2028" in text  # a character that YAML takes for the end of a line
        return
    rest = iter(after.split("\n"))
    assert all(line in rest for line in text.replace("policy: []", "policy: ").split("\n"))
    assert again(after) == after


def test_nothing_to_add() -> None:
    assert merged(TEXT, parse_mesh(TEXT, "m"), NOTHING) == TEXT


def test_a_policy_on_one_line_is_refused_with_the_lines() -> None:
    with pytest.raises(UsageError, match=r"^mesh\.yaml: `policy` is written on one line.*\n.*\n.*\n  - \{from: web"):
        again(SERVICES.replace("policy:", "policy: [{from: web, to: api, mode: dry-run}]"))


def test_a_text_to_which_nothing_can_be_added_is_refused() -> None:
    text = SERVICES.replace("policy:\n", "policy:\n    [{from: web, to: api, mode: dry-run},\n    ]\n")
    with pytest.raises(UsageError, match="nothing can be added as it is written"):
        again(text)


def test_a_text_whose_rules_would_become_others_is_refused() -> None:
    """``policy`` inside of another block is not the policy."""
    text = '? "policy"\n: []\n' + SERVICES.removesuffix("policy:\n")
    with pytest.raises(UsageError, match="nothing can be added as it is written"):
        again(text)


@pytest.mark.parametrize(
    "after",
    [
        TEXT + '  - {from: cli, to: "db:sql"}\n',
        TEXT.replace("observe", "other") + '  - {from: web, to: ["api:http", "db:sql"]}\n',
        TEXT.replace("cli: {}", "") + '  - {from: web, to: ["api:http", "db:sql"]}\n',
    ],
)
def test_only_what_was_learned_is_added(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "insert", lambda *_: after)
    with pytest.raises(UsageError, match="nothing can be added as it is written"):
        again(TEXT)


def test_and_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    after = TEXT + '  - {from: web, to: ["api:http", "db:sql"]}\n'
    monkeypatch.setattr(merge, "insert", lambda *_: after)
    assert again(TEXT) == after


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        ('# - {from: web, to: "api:http"}', {WEB_API}),
        ('    ## - {from: web, to: "api:http"}  # 3 connections', {WEB_API}),
        ("#- {from: [web, gone], to: [db, gone]}", {call("web", "db:sql")}),
        ("# - {name: x, from: web, to: api}", {WEB_API, call("web", "api:metrics")}),
        ("# - {from: web, to: 7}", set()),
        ("# - {from: web}", set()),
        ("# - {from: web, to: [}", set()),
        ("# - {}", set()),
        ("# web -> api:http", set()),
        ('- {from: web, to: "api:http"}', set()),
    ],
)
def test_what_is_commented_out(line: str, calls: set[object]) -> None:
    assert commented_out(f"a\n{line}\nb", parse_mesh(TEXT, "m")) == calls
