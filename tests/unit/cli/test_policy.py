"""``sidecar policy``: test, explain, learn and diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import policy as module
from sidecar.cli.commands import main
from sidecar.learn import gather
from sidecar.learn.rules import Evidence
from sidecar.learn.seen import Seen
from tests.unit.learn.lines import inbound, outbound

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

    def test_junit(self, here: Path) -> None:
        assert run("test", "--junit", "results.xml").exit_code == 0
        assert '<testsuite name="mesh.yaml" tests="2" failures="0"' in (here / "results.xml").read_text()
        (here / "m.yaml").write_text(MESH + "  - {from: web, to: api, expect: allow}\n", encoding="utf-8")
        assert run("test", "m.yaml", "--junit", "results.xml").exit_code == 1
        assert "<failure " in (here / "results.xml").read_text()

    def test_junit_where_nothing_can_be_written(self) -> None:
        result = run("test", "--junit", "missing/results.xml")
        assert result.exit_code == 2
        assert result.stderr == "error: --junit missing/results.xml: cannot be written: No such file or directory\n"

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
        ("rules", "room"),
        [
            ("{name: few, from: web, to: db, connections: 5}", "5 by few"),
            (
                "{name: few, from: web, to: db, connections: 5}\n  - {name: more, from: '*', to: db, connections: 7}",
                "5 by few, then 7 by more",
            ),
            (
                "{name: few, from: web, to: db, connections: 5}\n  - {name: rest, from: '*', to: db}",
                "5 by few, then any number by rest",
            ),
        ],
    )
    def test_limits(self, here: Path, rules: str, room: str) -> None:
        (here / "mesh.yaml").write_text(MESH.replace("tests:", f"  - {rules}\ntests:"), encoding="utf-8")
        result = run("explain", "--from", "web", "--to", "db")
        assert f"\nAt once into one sidecar, of all callers that a rule covers: {room}.\n" in result.stdout

    def test_no_limit_is_not_spoken_of(self) -> None:
        assert "At once" not in run("explain", "--from", "web", "--to", "api:http").stdout

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


# -- learn and diff ----------------------------------------------------------------------------------------------------

OBSERVED = MESH.replace("policy:\n", 'policy:\n  - {name: observe, from: "*", to: "*", until: 2999-01-01}\n')


def log(directory: Path, *lines: dict[str, Any]) -> str:
    path = directory / "a.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


class TestLearn:
    def test_it_prints_the_file_with_the_learned_rules(self, here: Path) -> None:
        (here / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")
        given = log(here, inbound("web", "db:5432"), inbound("web", "api:http"), outbound("api", "db:5432"))
        result = run("learn", "--log", given)
        assert result.exit_code == 0, result.stderr
        rest = iter(result.stdout.splitlines())
        assert all(line in rest for line in OBSERVED.splitlines())
        at = "first 2026-06-01 10:00, last 2026-06-01 10:00"
        assert [line for line in result.stdout.splitlines() if line not in OBSERVED.splitlines()] == [
            '  - {from: web, to: "db:5432"}  # 1 connection, ' + at,
            f"  # the caller's own sidecar alone tells of it; 1 connection, {at}:",
            '  # - {from: api, to: "db:5432"}',
        ]
        assert (
            result.stderr == "1 rules learned, 1 written commented out for you to enable; 1 calls are allowed already\n"
        )
        assert (here / "mesh.yaml").read_text() == OBSERVED

    def test_it_writes_in_place_if_told_to_and_the_mode_of_the_file_stays(self, here: Path) -> None:
        (here / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")
        (here / "mesh.yaml").chmod(0o640)
        given = log(here, inbound("web", "db:5432"))
        assert run("learn", "--log", given, "--write").stdout == ""
        written = (here / "mesh.yaml").read_text()
        assert '- {from: web, to: "db:5432"}' in written
        assert (here / "mesh.yaml").stat().st_mode & 0o777 == 0o640
        assert run("learn", "--log", given, "--write").exit_code == 0
        assert (here / "mesh.yaml").read_text() == written

    def test_a_directory_that_cannot_be_written(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_files: object) -> None:
            raise PermissionError(13, "no")

        (here / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")
        monkeypatch.setattr(module, "write_files", fails)
        result = run("learn", "--log", log(here, inbound("web", "db:5432")), "--write")
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "error: mesh.yaml: cannot be written: no")

    def test_another_rule_is_replaced_if_told_to(self, here: Path) -> None:
        given = log(here, inbound("web", "api:http", rule="front"))
        assert "1 calls are allowed already" in run("learn", "--log", given).stderr
        result = run("learn", "--log", given, "--instead-of", "front")
        assert '- {from: web, to: "api:http"}  # 1 connection' in result.stdout
        wrong = run("learn", "--log", given, "--instead-of", "fromt")
        assert (wrong.exit_code, wrong.stderr) == (2, "error: --instead-of: mesh.yaml has no rule 'fromt'\n")

    def test_notes_and_what_is_left_out(self, here: Path) -> None:
        given = log(here, inbound("web", "gone:http"), inbound("web", "api:http", probe=True))
        assert run("learn", "--log", given).stderr.splitlines()[1:] == [
            "note: web -> gone:http: one of them is not declared in mesh.yaml",
            "left out: 1 a probe",
        ]

    def test_reports_from_stdin(self, here: Path) -> None:
        (here / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")
        edge = {"direction": "inbound", "peer": "web", "port": "5432", "rule": "observe", "opened": 7}
        given = json.dumps({"reports": [{"identity": "spiffe://shop.internal/db", "report": {"edges": [edge]}}]})
        result = CliRunner().invoke(main, ["policy", "learn", "--reports", "-"], input=given, catch_exceptions=False)
        assert '- {from: web, to: "db:5432"}  # 7 connections\n' in result.stdout

    @pytest.mark.parametrize("command", [["learn"], ["diff", "mesh.yaml", "mesh.yaml"]])
    def test_bad_input(self, here: Path, command: list[str]) -> None:
        def refused(*arguments: str) -> str:
            result = run(*command, *arguments)
            assert (result.exit_code, result.stdout) == (2, "")
            return result.stderr

        assert refused().startswith("error: where are the logs? Give --log FILE")
        assert refused("--log", "-", "--reports", "-") == "error: stdin can be read once only\n"
        assert "cannot be read" in refused("--log", "missing")
        foreign = log(here, inbound("web", "api:http", domain="other.internal"))
        assert refused("--log", foreign) == (
            "error: all that is told is of another mesh: other.internal, and not shop.internal (mesh.yaml)\n"
        )
        assert refused("--log", log(here)).startswith("error: no connection between services of this mesh is told of")
        expired = refused("--log", log(here, inbound("web", "api:http", reason="expired", decision="deny")))
        assert expired.endswith("; left out: 1 refused as an attack or a fault, or broken off\n")
        (here / "mesh.yaml").write_text("trust_domain: shop.internal\nservices: [\n", encoding="utf-8")
        assert refused("--log", foreign).startswith("error: mesh.yaml:")


class TestDiff:
    def test_nothing_changes(self, here: Path) -> None:
        result = run("diff", "mesh.yaml", "mesh.yaml", "--log", log(here, inbound("web", "api:http")))
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == "1 calls seen: 0 would be refused, 0 would be allowed, the rest does not change\n"

    def test_something_would_be_refused(self, here: Path) -> None:
        (here / "new.yaml").write_text(
            MESH.replace('from: web, to: "api:http"}\n  - {name: trial', "from: api, to: db}\n  - {name: trial"),
            encoding="utf-8",
        )
        given = log(here, inbound("web", "api:http"), inbound("web", "api:http", probe=True))
        result = run("diff", "mesh.yaml", "new.yaml", "--log", given)
        assert result.exit_code == 1
        assert result.stdout.splitlines() == [
            "REFUSED  web -> api:http  1 connection, last 2026-06-01 10:00: before, rule 'front' (mesh.yaml:7) allows it; "
            "now, no rule allows it",
            "1 calls seen: 1 would be refused, 0 would be allowed, the rest does not change",
        ]
        assert result.stderr == "left out: 1 a probe\n"
        found = run("diff", "mesh.yaml", "new.yaml", "--log", given, "--json")
        assert (found.exit_code, json.loads(found.stdout)["refused"], found.stderr) == (1, 1, "")
        back = run("diff", "new.yaml", "mesh.yaml", "--log", given)
        assert (back.exit_code, back.stdout[:27]) == (0, "allowed  web -> api:http  1")

    def test_what_runs_out_until_a_day(self, here: Path) -> None:
        (here / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")
        given = log(here, inbound("web", "db:5432"))
        for day, code in (("2999-01-01", 0), ("2999-01-02", 1)):
            assert run("diff", "mesh.yaml", "mesh.yaml", "--log", given, "--at", day).exit_code == code
        assert run("diff", "mesh.yaml", "mesh.yaml", "--log", given, "--at", "soon").exit_code == 2


def test_in_a_project_the_logs_and_the_files_are_those_of_the_application(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "compose.mesh.yaml").touch()
    (here / "mesh").mkdir()
    (here / "mesh" / "mesh.yaml").write_text(OBSERVED, encoding="utf-8")

    def read(_project: Path, _environ: object, seen: Seen) -> None:
        seen.take(inbound("web", "db:5432"))
        seen.take(inbound("api", "db:5432"))

    def said(_mesh: object, _environ: object, _today: object, commented: Any) -> Evidence:
        return Evidence(lambda call: call.caller == "web", commented=commented)

    monkeypatch.setattr(gather, "read_compose", read)
    monkeypatch.setattr(gather, "evidence_of_project", said)
    result = run("learn")
    assert (result.exit_code, result.stderr.partition(";")[0]) == (
        0,
        "1 rules learned, 1 written commented out for you to enable",
    )
    assert "# no file of the application mentions it; 1 connection" in result.stdout
