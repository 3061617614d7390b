"""`sidecar status` and `sidecar health`, against a sidecar that runs, one that does not, and a file without `admin:`."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from sidecar.cli.commands import main
from sidecar.identity.reasons import UsageError
from sidecar.inject import overview
from sidecar.observe import probe
from tests.beds.patience import PATIENCE
from tests.beds.processes import SIDECAR, Shop, output, sidecar_process

INBOUND = 'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.make(tmp_path, ["api"])


async def test_a_sidecar_that_runs_tells_of_itself(shop: Shop, tmp_path: Path) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "unix:{tmp_path}/admin.sock"}}\n')
    async with sidecar_process(file) as api:
        assert api.started["admin"] == f"{tmp_path}/admin.sock"
        assert await output(*SIDECAR, "health", file) == "well\n"
        assert "may call: web" in await output(*SIDECAR, "status", file)
        said = json.loads(await output(*SIDECAR, "status", "--json", file))
        assert (said["identity"], said["healthy"]) == ("spiffe://shop.internal/api", True)


def refuses(code: int, *arguments: str | Path) -> str:
    """What a command says that ends with this code; in this process."""
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr


def test_nobody_there(shop: Shop, tmp_path: Path) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "unix:{tmp_path}/admin.sock"}}\n')
    for command in ("health", "status"):
        assert "no sidecar answers at" in refuses(1, command, file)


def test_no_admin_in_the_file(shop: Shop) -> None:
    file = shop.wiring("api", INBOUND)
    for command in ("health", "status"):
        assert "has no `admin:`" in refuses(2, command, file)


@pytest.mark.parametrize("listen", ["0.0.0.0:15000", "10.0.0.1:15000", "unix:relative.sock"])
def test_an_admin_port_for_others_is_refused(shop: Shop, listen: str) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "{listen}"}}\n')
    assert "admin.listen" in refuses(2, "run", file)


# -- what answers there is something else ------------------------------------------------------------------------------

WELL: dict[str, Any] = {
    "service": "api", "identity": "spiffe://shop.internal/api", "certificate_until": "2026-01-01T00:00:00Z",
    "healthy": True, "unwell": [], "draining": False, "trust": {}, "inbound": [], "outbound": [], "connected": [],
    "ended": [], "refused_lately": [],
}  # fmt: skip
EVIL = "\x1b[2J\n\u202egood"


def status(monkeypatch: pytest.MonkeyPatch, body: bytes, *words: str, code: int = 200) -> Any:
    """What the command makes of this answer."""
    monkeypatch.setattr(probe, "ask", lambda *_: (code, body))
    return CliRunner().invoke(main, ["status", *words], env={probe.LISTEN: "127.0.0.1:1"})


def test_what_it_says_drives_no_terminal_and_forges_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"at": EVIL, "direction": EVIL, "reason": EVIL, "message": EVIL}
    trust = {EVIL: EVIL}
    said = WELL | {"service": EVIL, "unwell": [EVIL], "trust": trust, "refused_lately": [refusal]}
    for words in ([], ["--json"]):
        result = status(monkeypatch, json.dumps(said).encode(), *words)
        assert result.exit_code == 0, result.output
        assert all(line.isprintable() for line in result.stdout.split("\n"))
    assert status(monkeypatch, json.dumps(WELL).encode()).stdout.startswith("api  spiffe://shop.internal/api  ")


@pytest.mark.parametrize("words", [[], ["--json"]])
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000],
)
def test_what_is_no_json_is_a_sentence(body: bytes, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = status(monkeypatch, body, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "document",
    [
        None, 5, [], {}, "text",
        {**WELL, "unwell": 5},
        {**WELL, "inbound": [5]},
        {**WELL, "inbound": [{}]},
        {**WELL, "trust": [1]},
        {**WELL, "log": 5},
        {**WELL, "refused_lately": [{"at": 5, "direction": None, "reason": [], "message": {}}]},
    ],
)  # fmt: skip
def test_json_of_something_else_is_a_sentence(document: object, monkeypatch: pytest.MonkeyPatch) -> None:
    result = status(monkeypatch, json.dumps(document).encode())
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not a sidecar, or one of another version" in result.stderr


def test_an_answer_that_is_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result = status(monkeypatch, json.dumps(WELL).encode(), code=403)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "HTTP 403" in result.stderr


# -- again and again ---------------------------------------------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch, *answers: object, words: tuple[str, ...] = ()) -> Any:
    """What `--watch` prints while these are answered, one after another; the signal comes instead of another look."""
    rest = iter(answers)

    def ask(*_: object) -> tuple[int, bytes]:
        answer = next(rest, None)
        if answer is None:
            signal.raise_signal(signal.SIGINT)
        if isinstance(answer, Exception):
            raise answer
        return 200, json.dumps(answer).encode()

    monkeypatch.setattr(probe, "ask", ask)
    return CliRunner().invoke(main, ["status", "--watch", "0.1", *words], env={probe.LISTEN: "127.0.0.1:1"})


def test_a_watch_goes_on_while_the_sidecar_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    result = watched(monkeypatch, WELL, ConnectionRefusedError(111, "Connection refused"), WELL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("Ctrl-C ends it\napi  spiffe://shop.internal/api  ") == 2
    assert "NO ANSWER since " in result.stdout
    assert "no sidecar answers at 127.0.0.1:1: Connection refused; is it running, and is this" in result.stdout


def test_a_watch_for_programs_is_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    result = watched(monkeypatch, WELL, OSError("gone"), WELL, words=("--json",))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [lines[0], lines[2]] == [WELL, WELL]
    assert lines[1]["error"].startswith("no sidecar answers at 127.0.0.1:1: gone; is it running")


@pytest.mark.parametrize("words", [["--watch", "sidecar.yaml"], ["--watch", "0"], ["--watch=nan"], ["--watch=1e9"]])
def test_a_time_that_is_none(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = status(monkeypatch, json.dumps(WELL).encode(), *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--watch: " in result.stderr


def test_a_watch_of_no_project_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["status", "--all", "--watch"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "run this where `sidecar inject` was run" in result.stderr


def test_a_watch_of_a_project_goes_on_when_compose_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ca: dict[str, list[Any]] = {"certificates": [], "revoked": [], "sidecars that ask": []}
    answers: Any = iter(
        [{"sidecars": {}, "ca": ca}, UsageError("compose.mesh.yaml: is being written"), {"sidecars": {}, "ca": ca}]
    )

    def collect(*_: object) -> Any:
        if (found := next(answers, None)) is None:
            signal.raise_signal(signal.SIGINT)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(overview, "collect", collect)
    result = CliRunner().invoke(main, ["status", "--all", "--watch=0.1"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("CA  answers: 0 certificates") == 2
    assert "asking again\ncompose.mesh.yaml: is being written" in result.stdout


async def test_a_watch_of_a_real_sidecar_outlives_it_and_ends_without_a_traceback(shop: Shop, tmp_path: Path) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "unix:{tmp_path}/admin.sock"}}\n')
    command = [*SIDECAR, "status", str(file), "--watch=0.1"]
    watching = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert watching.stdout is not None
        assert watching.stderr is not None
        async with sidecar_process(file):
            await until(watching.stdout, b"may call: web")
        await until(watching.stdout, b"NO ANSWER since")
        async with sidecar_process(file):
            await until(watching.stdout, b"may call: web")
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 0
        assert await watching.stderr.receive_some() == b""
    finally:
        watching.kill()


async def until(stream: trio.abc.ReceiveStream, wanted: bytes) -> None:
    """Reads until this has come."""
    seen = b""
    with trio.fail_after(PATIENCE):
        while wanted not in seen:
            more = await stream.receive_some()
            assert more, seen
            seen += more
