"""Who may be given a pass; each refusal beside the pass that is made."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certs.registrar.passes import permitted
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import parse_mesh

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MESH = parse_mesh(
    """\
trust_domain: shop.internal
services:
  web: {ports: {http: 80, tls: 443}}
  db: {ports: {postgres: 5432}}
people: [alice, bob, carol]
policy:
  - {from: user/alice, to: db}
  - {from: "*", to: "*"}
  - {from: user/bob, to: db, until: 2026-05-31}
  - {from: user/bob, to: "web:http", mode: dry-run}
  - {from: user/carol, to: [db, web]}
  - {name: not-carol, from: user/carol, to: db, action: deny}
max_leaf_ttl: 2h
""",
    "mesh.yaml",
)


@pytest.mark.parametrize("name", ["alice", "user/alice"])
@pytest.mark.parametrize("to", ["db", "db:postgres"])
def test_whom_a_rule_lets_call(name: str, to: str) -> None:
    person, target = permitted(MESH, name, to, HOUR, NOW)
    assert (str(person), str(target)) == ("spiffe://shop.internal/user/alice", "db:postgres")


@pytest.mark.parametrize(
    ("name", "to", "ttl", "why"),
    [
        ("alcie", "db", HOUR, "--person: mesh.yaml declares no person 'alcie' (did you mean 'alice'?)"),
        (
            "zoe",
            "db",
            HOUR,
            "--person: mesh.yaml declares no person 'zoe'; to declare one, add to mesh.yaml: people: [zoe]",
        ),
        ("a/b", "db", HOUR, "--person: mesh.yaml declares no person 'a/b'"),
        (
            "web",
            "db",
            HOUR,
            "--person: mesh.yaml declares no person 'web'; to declare one, add to mesh.yaml: people: [web]",
        ),
        ("alice", "bd", HOUR, "--to: unknown service 'bd' (did you mean 'db'?)"),
        ("carol", "web", HOUR, "--to: 'web' has several ports: say which of web:http, web:tls"),
        ("alice", "*", HOUR, "--to: '*' is not one port: say service:port"),
        (
            "alice",
            "web:http",
            HOUR,
            "user/alice may not call web:http: no rule allows it; to allow it, add to `policy:` in mesh.yaml: "
            '- {from: ["user/alice"], to: ["web:http"]}',
        ),
        (
            "bob",
            "db",
            HOUR,
            "user/bob may not call db:postgres: rule 'user/bob->db' (mesh.yaml:9) allowed it until 2026-05-31 and ran out; "
            'no other rule does; to allow it, add to `policy:` in mesh.yaml: - {from: ["user/bob"], to: ["db:postgres"]}',
        ),
        ("alice", "db", timedelta(seconds=59), "--ttl: a pass is good for 1 minute to 24 hours, not for 59 s"),
        ("alice", "db", timedelta(hours=25), "--ttl: a pass is good for 1 minute to 24 hours, not for 25 h"),
        (
            "alice",
            "db",
            timedelta(hours=2),
            "--ttl: every sidecar refuses a pass of more than 119 min (max_leaf_ttl in mesh.yaml)",
        ),
    ],
)
def test_who_gets_none(name: str, to: str, ttl: timedelta, why: str) -> None:
    with pytest.raises(UsageError) as raised:
        permitted(MESH, name, to, ttl, NOW)
    assert str(raised.value) == why


def test_neither_a_dry_run_nor_a_denied_one() -> None:
    with pytest.raises(UsageError, match="no rule allows it"):
        permitted(MESH, "bob", "web:http", HOUR, NOW)
    with pytest.raises(UsageError, match=r"'not-carol' .* denies it; deny beats allow"):
        permitted(MESH, "carol", "db", HOUR, NOW)
    assert permitted(MESH, "carol", "web:http", HOUR, NOW)


@pytest.mark.parametrize("ttl", [timedelta(minutes=1), timedelta(minutes=119)])
def test_how_long_a_pass_may_be_good(ttl: timedelta) -> None:
    assert permitted(MESH, "alice", "db", ttl, NOW)


def test_the_longest() -> None:
    usual = replace(MESH, max_leaf_ttl=timedelta(hours=25))
    assert permitted(usual, "alice", "db", timedelta(hours=24), NOW)
    with pytest.raises(UsageError, match="1 minute to 24 hours"):
        permitted(usual, "alice", "db", timedelta(hours=24, seconds=1), NOW)
