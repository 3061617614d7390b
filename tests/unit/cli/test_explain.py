"""``sidecar explain``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main
from sidecar.meanings.glossary import EVERY, words
from sidecar.observe import probe
from sidecar.observe.logs import json_line

ID = "9ff9410d905a0f96"
OUT = {
    "direction": "outbound", "service": "web", "port": "redis", "peer_address": "10.0.0.7:6379", "upstream": "cache:redis",
    "decision": "deny", "rule": "web->cache:redis", "reason": "peer_refused", "peer_reason": "policy_denied",
    "connection_id": ID, "message": "refused: \x1b[2J",
}  # fmt: skip
IN = {
    "direction": "inbound", "service": "cache", "port": "redis", "peer_id": "spiffe://shop.internal/web", "decision": "deny",
    "reason": "policy_denied", "connection_id": ID,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(probe.LISTEN, raising=False)
    return tmp_path


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ("explain", *arguments), input=stdin, catch_exceptions=False)


def line(fields: dict[str, str]) -> str:
    return json_line("warning", "connection", fields) + "\n"


def test_a_word() -> None:
    result = run("certificate_failed")
    assert result.exit_code == 0
    assert result.stdout.startswith("certificate_failed (event of the log)\n  A new certificate was not obtained.")
    assert "  Likely causes, the likeliest first:\n    1. " in result.stdout
    assert "  Next:\n    - `docker compose ps --all`" in result.stdout


def test_a_word_with_two_meanings() -> None:
    result = run("revoked", "--json")
    found = json.loads(result.stdout)
    assert [one["kind"] for one in found] == ["reason of a connection", "reason of a connection", "refusal of the CA"]
    assert run("revoked").stdout.count("\nrevoked (") == 2


def test_an_unknown_word() -> None:
    result = run("polcy_denied")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'policy_denied'?" in result.stderr
    assert run("\x1b[2J").stderr.strip().isprintable()


def test_all_words() -> None:
    listed = run().stdout
    assert all(f"  {word} " in listed for word in words())
    assert len(json.loads(run("--json").stdout)) == len(EVERY)


def test_a_connection_in_both_ends_logs(here: Path) -> None:
    (here / "web.log").write_text(f"no line of ours {ID}\n{line(OUT)}")
    (here / "cache.log").write_bytes(b"\xff\x00\n" + line(IN).encode() + line(IN).encode()[:50])
    result = run(ID, "--log", "web.log", "--log", "cache.log")
    assert result.exit_code == 0
    assert f"connection {ID}: web -> cache:redis\n" in result.stdout
    assert "`sidecar policy explain MESH --from web --to cache:redis`" in result.stdout
    assert "found in: cache.log" in result.stdout
    assert all(text.isprintable() for text in result.stdout.splitlines())
    (one,) = json.loads(run(ID, "--log", "web.log", "--log", "cache.log", "--json").stdout)["connections"]
    assert [end["from"] for end in one["ends"]] == ["web.log", "cache.log"]


def test_a_connection_on_stdin() -> None:
    assert run(ID, "--log", "-", stdin=f"web-mesh-1  | {line(OUT)}").exit_code == 0


def test_a_connection_that_is_in_no_log(here: Path) -> None:
    (here / "web.log").write_text(line(OUT))
    result = run("0" * 16, "--log", "web.log")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no line of connection 0000000000000000 in web.log" in result.stderr
    assert "rotated" in result.stderr


def test_a_log_goes_with_a_connection() -> None:
    result = run("expired", "--log", "web.log")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--log: goes with a connection_id" in result.stderr


def test_no_log_at_all() -> None:
    result = run(ID)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "where are the logs? Give --log FILE" in result.stderr


def test_the_refusals_of_a_running_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"at": "2026-11-30T06:00:00Z", "message": "", **IN}
    answer = json.dumps({"service": "cache", "refused_lately": [refusal]}).encode()
    monkeypatch.setattr(probe, "ask", lambda *_: (200, answer))
    monkeypatch.setenv(probe.LISTEN, "127.0.0.1:15000")
    result = run(ID)
    assert result.exit_code == 0
    assert "found in: status of cache" in result.stdout
    assert "Read: the last refusals of the sidecar at 127.0.0.1:15000." in result.stdout


def test_each_of_the_two_explains_names_the_other() -> None:
    assert "`sidecar policy explain`" in run("--help").stdout
    other = CliRunner().invoke(main, ("policy", "explain", "--help")).stdout
    assert "`sidecar explain`" in " ".join(other.split())
