"""What ``tests/beds/forks.py`` starts is as what Python starts, so that tests of the one hold for the other."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from pathlib import Path
from statistics import mode

import pytest
import trio

from tests.beds import forks
from tests.beds.processes import CERTS, SIDECAR, Running, Shop, output, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks on Linux only")


NAMES = ("PPid", "Umask", "Uid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs")


def descriptors_of(process: Path) -> set[tuple[str, str]]:
    found = set()
    for file in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add((file.name, re.sub(r"\d+", "", str(file.readlink()))))
    return found


def status_of(process: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)


async def seen(program: Running) -> dict[str, object]:
    """A running process, as the system knows it, but for what is so for a moment only: a file that is followed is read now
    and then, and a thread that is made has all signals blocked."""
    process = Path(f"/proc/{program.process.pid}")
    statuses, looks = [], []
    for _ in range(20):
        statuses.append(status_of(process))
        looks.append(descriptors_of(process))
        await trio.sleep(0.05)
    descriptors = dict(set.intersection(*looks))
    return {
        **{name: mode(status[name] for status in statuses) for name in NAMES},
        "limits": (process / "limits").read_text(),
        "directory": (process / "cwd").readlink(),
        "standard": [descriptors.pop(number) for number in "012"],
        "descriptors": sorted(descriptors.values()),
    }


async def test_a_program_that_serves_and_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shop.wiring("api", 'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n')
    found = []
    for _ in range(2):
        async with running(*SIDECAR, "run", file, variables={"SIDECAR_LOG_FORMAT": "json"}) as program:
            await program.event("started")
            is_forked = isinstance(program.process, forks.Forked)
            state = await seen(program)
            program.signal(signal.SIGTERM)
            found.append((is_forked, state, await program.ended(), [line["event"] for line in program.said]))
        monkeypatch.setattr(forks, "can_start", lambda *_: False)
    (was_forked, *one), (is_forked, *other) = found
    assert (was_forked, is_forked) == (True, False)
    assert one == other


async def test_what_a_command_prints_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for _ in range(2):
        helped = await output(*CERTS, "--help", variables={"COLUMNS": "60"})
        refused = await output(*CERTS, "inspect", "nowhere.pem", cwd=tmp_path, check=False)
        asked = await output(*CERTS, "inspect", "-", stdin=b"no certificate", check=False)
        found.append((helped, refused, asked))
        monkeypatch.setattr(forks, "can_start", lambda *_: False)
    assert found[0] == found[1]
    assert "nowhere.pem" in found[0][1]


def test_another_python_is_started_by_python() -> None:
    env = forks._environment()
    assert forks.can_start(CERTS, env)
    assert not forks.can_start(CERTS, env | {"PYTHONPATH": "/elsewhere"})
    assert not forks.can_start(["sh", "-c", "true"], env)
