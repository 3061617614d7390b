"""What is refused soon: nothing that another rule allows, and nothing that ends later."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from sidecar.policy.ending import SOON_DAYS, Ending, ending_rules, endings
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import Target

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
OBSERVE = '{name: observe, from: "*", to: "*", until: 2026-06-03}'
API = Target("api", "http")


def mesh(*rules: str) -> Mesh:
    head = "trust_domain: t\nservices: {web: {}, api: {ports: {http: 80}}}\npolicy:\n"
    return parse_mesh(head + "".join(f"  - {rule}\n" for rule in rules), "m")


def of(file: Mesh, now: datetime = NOON) -> list[Ending | None]:
    return list(endings(file, [(file.identity("web"), API)], now))


def test_what_one_rule_alone_allows() -> None:
    [found] = of(mesh(OBSERVE))
    assert found == Ending("web", "api:http", "observe", date(2026, 6, 3))
    assert str(found) == "web -> api:http"
    assert found.as_json() == {"from": "web", "to": "api:http", "rule": "observe", "until": "2026-06-03"}


@pytest.mark.parametrize(
    "other",
    [
        '{from: web, to: "api:http"}',
        "{name: longer, from: web, to: api, until: 2026-12-31}",
        "{name: no, from: web, to: api, action: deny}",
    ],
)
def test_what_another_rule_allows_or_denies(other: str) -> None:
    assert of(mesh(OBSERVE, other)) == [None]


def test_a_dry_run_allows_nothing() -> None:
    assert of(mesh(OBSERVE, "{from: web, to: api, mode: dry-run}")) != [None]


def test_of_two_ends_the_later_one_counts() -> None:
    [found] = of(mesh(OBSERVE, "{name: a, from: web, to: api, until: 2026-06-05}"))
    assert found == Ending("web", "api:http", "a", date(2026, 6, 5))


@pytest.mark.parametrize(
    ("day", "ends"),
    [(-1, False), (0, True), (SOON_DAYS - 1, True), (SOON_DAYS, False), (SOON_DAYS + 30, False)],
)
def test_soon_is_within_seven_days_its_own_included(day: int, ends: bool) -> None:
    until = NOON.date() + timedelta(days=day)
    file = mesh(f"{{name: trial, from: web, to: api, until: {until}}}")
    assert [rule.name for rule in ending_rules(file, NOON)] == ["trial"] * ends
    assert (of(file) != [None]) is ends


def test_rules_that_do_not_allow_end_nothing() -> None:
    file = mesh("{name: dry, from: web, to: api, mode: dry-run, until: 2026-06-02}", "{name: x, from: web, to: api}")
    assert ending_rules(file, NOON) == []


def test_the_first_end_is_the_first() -> None:
    file = mesh(
        OBSERVE, "{name: b, from: web, to: api, until: 2026-06-02}", "{name: a, from: web, to: api, until: 2026-06-02}"
    )
    assert [rule.name for rule in ending_rules(file, NOON)] == ["a", "b", "observe"]
