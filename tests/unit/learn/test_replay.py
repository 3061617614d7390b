"""Which past connections another file would treat otherwise."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sidecar.learn.replay import Change, as_json, replay
from sidecar.learn.seen import Seen
from tests.unit.learn.lines import DOMAIN, inbound, plaintext
from tests.unit.learn.test_rules import NOW, mesh

DENY = "{name: no, from: web, to: api, action: deny}"


def seen(*lines: dict[str, Any]) -> Seen:
    found = Seen(DOMAIN)
    for line in lines:
        found.take(line)
    return found


SEEN = seen(inbound("web", "api:http"), inbound("web", "api:http"), inbound("web", "db:sql", time=None))


def lines(changes: list[Change]) -> list[str]:
    return [change.line() for change in changes]


def test_nothing_changes() -> None:
    assert replay(mesh(), mesh(), SEEN, NOW, NOW) == []


def test_what_would_be_refused() -> None:
    changes = replay(mesh(), mesh(DENY), SEEN, NOW, NOW)
    assert lines(changes) == [
        "REFUSED  web -> api:http  2 connections, last 2026-06-01 10:00: before, rule 'observe' (mesh.yaml:8) allows it; "
        "now, rule 'no' (mesh.yaml:9) denies it"
    ]
    assert as_json(changes, SEEN) == {
        "calls": 2,
        "refused": 1,
        "allowed": 0,
        "left_out": {},
        "changes": [
            {
                "from": "spiffe://shop.internal/web",
                "to": "api:http",
                "connections": 2,
                "before": "allow",
                "after": "deny",
                "rule_before": "observe",
                "rule_after": "no",
                "why_before": "rule 'observe' (mesh.yaml:8) allows it",
                "why_after": "rule 'no' (mesh.yaml:9) denies it",
                "first": "2026-06-01T10:00:00Z",
                "last": "2026-06-01T10:00:00Z",
            }
        ],
    }


def test_what_would_be_allowed_is_no_refusal() -> None:
    [change] = replay(mesh(DENY), mesh(), SEEN, NOW, NOW)
    assert not change.is_refusal
    assert change.line().startswith("allowed  web -> api:http  2 connections")


def test_what_runs_out_until_a_day() -> None:
    changes = replay(mesh("{from: web, to: db}"), mesh("{from: web, to: db}"), SEEN, NOW, NOW + timedelta(days=7))
    assert [str(change.call) for change in changes] == ["web -> api:http"]
    assert changes[0].is_refusal


def test_refusals_come_first_and_the_most_frequent_of_them() -> None:
    both = replay(mesh(DENY), mesh("{name: other, from: web, to: db, action: deny}"), SEEN, NOW, NOW)
    assert [(str(one.call), one.is_refusal) for one in both] == [("web -> db:sql", True), ("web -> api:http", False)]
    assert ", last" not in both[0].line()
    assert "first" not in both[0].as_json()
    all_over = replay(mesh(), mesh(), SEEN, NOW, NOW + timedelta(days=7))
    assert [one.connections for one in all_over] == [2, 1]


def test_callers_without_tls_would_be_refused() -> None:
    [change] = replay(mesh("{name: old, from: plaintext, to: db}"), mesh(), seen(plaintext("db:sql")), NOW, NOW)
    assert change.line().startswith(
        "REFUSED  plaintext -> db:sql  1 connection, last 2026-06-01 10:00: before, rule 'old'"
    )
    assert change.as_json()["from"] == "plaintext"
