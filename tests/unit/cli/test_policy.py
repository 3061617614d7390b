"""``sidecar policy test`` and ``sidecar policy explain``."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 80, metrics: 90}}
  db: {ports: 5432}
policy:
  - {name: front, from: web, to: "api:http"}
  - {name: trial, from: web, to: db, mode: dry-run}
tests:
  - {from: web, to: "api:http", expect: allow}
  - {from: web, to: db, expect: deny}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.yaml").write_text(MESH, encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("policy", *arguments), catch_exceptions=False)


class TestTest:
    def test_all_pass(self) -> None:
        result = run("test")
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [
            "pass  mesh.yaml:10: web -> api:http: expected allow: web may call api:http:"
            " rule 'front' (mesh.yaml:7) allows it",
            "pass  mesh.yaml:11: web -> db:5432: expected deny: web may not call db:5432: no rule allows it",
            "2 passed, 0 failed",
        ]

    def test_one_fails(self, here: Path) -> None:
        (here / "m.yaml").write_text(MESH + "  - {from: web, to: api, expect: allow}\n", encoding="utf-8")
        result = run("test", "m.yaml")
        assert result.exit_code == 1
        assert result.stdout.splitlines()[-2:] == [
            "FAIL  m.yaml:12: web -> api:metrics: expected allow: web may not call api:metrics: no rule allows it",
            "3 passed, 1 failed",
        ]

    def test_there_are_none(self, here: Path) -> None:
        (here / "m.yaml").write_text("trust_domain: a\nservices: {}", encoding="utf-8")
        result = run("test", "m.yaml")
        assert (result.exit_code, result.stdout) == (
            0,
            "m.yaml: has no tests: write what must hold under `tests:`, and this checks it\n",
        )

    def test_no_file(self) -> None:
        result = run("test", "m.yaml")
        assert (result.exit_code, result.stderr) == (2, "error: m.yaml: cannot be read: No such file or directory\n")


class TestExplain:
    def test_denied(self) -> None:
        result = run("explain", "--from", "web", "--to", "db")
        assert result.exit_code == 0
        assert (
            result.stdout
            == """\
DENIED: web may not call db:5432: no rule allows it

Both ends decide, each for itself:
  web's own sidecar: no. It checks, before it dials, that the policy lets spiffe://shop.internal/web call db:5432; \
in the handshake, that the peer is spiffe://shop.internal/db and no other.
  db's sidecar: no. It checks, in the handshake, that the caller proves an identity of shop.internal; \
after it, that the policy lets that identity call db:5432, whatever the caller's sidecar decided.

Dry runs:
  trial would allow

Other rules that come near:
  front (mesh.yaml:7) is for this caller, but to api:http
  trial (mesh.yaml:8) fits and would allow, but is a dry run

To allow it, add to `policy:`

  - from: ["web"]
    to: ["db:5432"]
"""
        )

    def test_allowed(self) -> None:
        result = run("explain", "mesh.yaml", "--from", "spiffe://shop.internal/web", "--to", "api:http")
        assert result.exit_code == 0
        assert result.stdout.startswith("ALLOWED: web may call api:http: rule 'front' (mesh.yaml:7) allows it\n")
        assert "come near" not in result.stdout
        assert "To allow it" not in result.stdout

    @pytest.mark.parametrize(
        ("source", "target", "line"),
        [
            ("wbe", "db", "error: unknown service 'wbe' (did you mean 'web'?)"),
            ("web", "apii", "error: unknown service 'apii' (did you mean 'api'?)"),
            ("web", "api", "error: 'api' has several ports: say which of api:http, api:metrics"),
            ("web", "web", "error: service 'web' has no ports, so it cannot be called"),
            ("web", "*", "error: '*' is not one port: say service:port"),
            ("spiffe://x", "db", "error: 'spiffe://x' has no path, so it names no service"),
        ],
    )
    def test_a_question_that_has_no_answer(self, source: str, target: str, line: str) -> None:
        result = run("explain", "--from", source, "--to", target)
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{line}\n")

    def test_needs_both_ends(self) -> None:
        assert run("explain", "--from", "web").exit_code == 2
