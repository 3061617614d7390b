"""Who speaks plaintext: kept over a restart, named, warned of before they are cut, and never trusted."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import CaIdentity, Config, Inbound
from sidecar.documents.address import Address
from sidecar.lifecycle import plaintext_watch as module
from sidecar.lifecycle.gauges import plaintext_callers
from sidecar.lifecycle.plaintext_watch import FILE, MAX_FILE, PlaintextWatch, file_of, kept_callers, who_would_be_cut
from sidecar.observe.plaintext import PlaintextCallers
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy.node import Node
from tests.beds.clock import moment
from tests.beds.patience import PATIENCE
from tests.unit.lifecycle.test_ending_watch import MESH, Lines
from tests.unit.proxy.test_node import AUTHORITY, node

NOW = AUTHORITY.now
LAST = NOW.date() + timedelta(days=30)


def port(until: date | None = LAST, name: str = "http") -> Inbound:
    mode: Any = "strict" if until is None else "permissive"
    address = Address("127.0.0.1", 0)
    return Inbound(port=name, listen=address, apps=(address,), mode=mode, until=until)


class Watched:
    """A sidecar's watch; ``now`` is its wall clock."""

    def __init__(self, directory: Path | None, *ports: Inbound) -> None:
        self.now: datetime = NOW
        self.node: Node = node(parse_mesh(MESH, "mesh.yaml"))
        self.lines = Lines()
        self.node.log = self.lines  # type: ignore[assignment]
        self.node.clock = lambda: self.now
        identity = self.node.config.identity
        if directory is not None:
            identity = CaIdentity(ca="https://ca:1", state_dir=directory, root=directory / "root.pem")
        self.node.config = replace(self.node.config, inbound=ports, identity=identity)
        self.watch = PlaintextWatch(self.node)

    def note(self, address: str = "192.0.2.7:1", *, allowed: bool = True) -> None:
        self.node.callers.note("http", address, self.now, allowed=allowed)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the resolver says, by address; an exception is raised."""
    found: dict[str, Any] = {"192.0.2.7": "old.internal"}

    def ask(address: tuple[str, int], _flags: int) -> tuple[str, str]:
        said = found.get(address[0], socket.gaierror("no name"))
        if isinstance(said, Exception):
            raise said
        return (said() if callable(said) else said), "0"

    monkeypatch.setattr(socket, "getnameinfo", ask)
    return found


async def test_it_outlives_a_restart(tmp_path: Path) -> None:
    before = Watched(tmp_path, port())
    before.note()
    await before.watch.look()
    [caller] = kept_callers(tmp_path / FILE)
    assert (caller.address, caller.name, caller.count) == ("192.0.2.7", "old.internal", 1)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    after = Watched(tmp_path, port())
    await after.watch.read()
    assert [one.as_json() for one in after.node.callers.current()] == [caller.as_json()]
    assert after.lines.told == []


async def test_it_is_written_once_a_minute_if_it_has_changed_and_at_the_end(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    here = Watched(tmp_path, port())
    here.note()
    await here.watch.look()
    here.note()
    await here.watch.look()
    assert [one.count for one in kept_callers(tmp_path / FILE)] == [1]
    mock_clock.jump(module.SAVE_SECONDS)
    await here.watch.look()
    assert [one.count for one in kept_callers(tmp_path / FILE)] == [2]
    (tmp_path / FILE).unlink()
    mock_clock.jump(module.SAVE_SECONDS)
    await here.watch.look()
    assert not (tmp_path / FILE).exists(), "nothing has changed"
    here.now += timedelta(days=1)
    async with trio.open_nursery() as running:
        running.start_soon(here.watch.run)
        while here.watch._day == NOW.date():
            await trio.lowlevel.checkpoint()
        here.note()
        running.cancel_scope.cancel()
    assert [one.count for one in kept_callers(tmp_path / FILE)] == [3]


async def test_a_sidecar_without_a_place_forgets_and_one_without_permissive_ports_does_nothing(tmp_path: Path) -> None:
    here = Watched(None, port())
    assert file_of(here.node.config) is None
    here.note()
    await here.watch.read()
    await here.watch.look()
    assert who_would_be_cut(here.node.config, NOW) == []
    with trio.fail_after(PATIENCE):
        await Watched(tmp_path, port(None)).watch.run()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "said", [b"", b"[]", b"\xff", b'{"version": 1, "callers": 5}', b"[" * 100_000, b" " * (MAX_FILE + 1)]
)
async def test_a_damaged_file_is_told_and_not_taken(tmp_path: Path, said: bytes) -> None:
    (tmp_path / FILE).write_bytes(said)
    here = Watched(tmp_path, port())
    await here.watch.read()
    [(event, message)] = here.lines.told
    assert event == "plaintext_forgotten"
    assert message.startswith(f"{tmp_path / FILE}: the callers of before cannot be read: ")
    assert here.node.callers.current() == []
    [line] = who_would_be_cut(here.node.config, NOW)
    assert line.startswith(f"{tmp_path / FILE}: who speaks plaintext cannot be read: ")


async def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ValueError, match="no file"):
        kept_callers(tmp_path / FILE)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=r"."):
        kept_callers(tmp_path / FILE)
    [line] = who_would_be_cut(Watched(tmp_path, port()).node.config, NOW)
    assert "cannot be read" in line


async def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, mock_clock: MockClock) -> None:
    here = Watched(tmp_path / "gone", port())
    for _ in range(3):
        here.note()
        mock_clock.jump(module.SAVE_SECONDS)
        await here.watch.look()
    assert [event for event, _ in here.lines.told] == ["plaintext_forgotten"]
    (tmp_path / "gone").mkdir()
    mock_clock.jump(module.SAVE_SECONDS)
    await here.watch.look()
    assert kept_callers(tmp_path / "gone" / FILE)


async def test_names_are_looked_up_escaped_and_never_waited_for_long(
    names: dict[str, Any], mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = moment(0.1)
    hung = threading.Event()
    names["192.0.2.8"] = "\x1b[2J.evil"
    names["192.0.2.9"] = lambda: hung.wait(20)
    here = Watched(None, port())
    for number in (7, 8, 9, 10):
        here.note(f"192.0.2.{number}:1")
    here.note("")
    await here.watch.look()
    hung.set()
    told = {one.address: (one.name, one.asked) for one in here.node.callers.current()}
    assert told == {
        "192.0.2.7": ("old.internal", True), "192.0.2.8": ("?[2J.evil", True), "192.0.2.9": ("", True),
        "192.0.2.10": ("", False), "": ("", False),
    }  # fmt: skip
    async with here.watch._threads:
        pass  # the thread of that look-up has ended
    await here.watch.look()
    assert all(one.asked for one in here.node.callers.current())


async def test_without_a_thread_a_name_is_asked_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Watched(None, port())
    here.note()

    async def none(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", none)
    await here.watch.look()
    assert [one.name for one in here.node.callers.current()] == [""]


async def test_from_a_week_before_the_day_it_is_said_daily_who_is_cut() -> None:
    here = Watched(None, port(), port(LAST + timedelta(days=90), "tls"))
    here.note()
    here.note("192.0.2.99:1", allowed=False)
    await here.watch.look()
    assert here.lines.told == []
    here.now = NOW + timedelta(days=24)
    here.note()
    for _ in range(3):
        await here.watch.look()
    [(event, message)] = here.lines.told
    assert event == "permissive_ends_soon"
    at = f"{here.now:%F %H:%M}"
    assert message == (
        f"http takes plaintext until {LAST}; who is cut then: 192.0.2.7 (old.internal): 2 connections, last {at}"
    )
    here.now += timedelta(days=1)
    await here.watch.look()
    assert [event for event, _ in here.lines.told] == ["permissive_ends_soon"] * 2


async def test_a_machine_that_slept_over_the_day_is_told_of_it() -> None:
    here = Watched(None, port())
    here.note()
    await here.watch.look()
    here.now = NOW + timedelta(days=36)
    here.note("192.0.2.5:1", allowed=False)
    await here.watch.look()
    [(event, message)] = here.lines.told
    assert event == "permissive_over"
    assert message == (
        f"http took plaintext until {LAST}, and refuses it since; who spoke it: nobody in the last 7 days; "
        "write `mode: strict` there"
    )


async def test_who_tries_again_after_the_day_is_told_too() -> None:
    here = Watched(None, port())
    here.now = NOW + timedelta(days=30)
    here.note()
    await here.watch.look()
    here.lines.told.clear()
    here.now += timedelta(days=1)
    here.note(allowed=False)
    await here.watch.look()
    [(event, message)] = here.lines.told
    assert event == "permissive_over"
    assert "who spoke it: 192.0.2.7" in message


async def test_a_look_up_that_hangs_takes_no_turn_of_another_and_no_name_of_before(
    names: dict[str, Any], mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = moment(0.1)
    hung = threading.Event()
    names["192.0.2.9"] = lambda: hung.wait(20)
    here = Watched(None, port())
    for number in (9, 7):
        here.note(f"192.0.2.{number}:1")
    for one in here.node.callers.current():
        one.name = "of before"
    await here.watch.look()
    await here.watch.look()
    told = {one.address: (one.name, one.asked) for one in here.node.callers.current()}
    assert told == {"192.0.2.9": ("of before", True), "192.0.2.7": ("of before", False)}
    hung.set()
    async with here.watch._threads:
        pass  # the thread of that look-up has ended
    await here.watch.look()
    assert [one.name for one in here.node.callers.current() if one.address == "192.0.2.7"] == ["old.internal"]


async def test_strict_is_not_switched_on_silently(tmp_path: Path) -> None:
    before = Watched(tmp_path, port())
    before.note()
    await before.watch.look()
    strict = Watched(tmp_path, port(None))
    await strict.watch.run()
    at = f"{NOW:%F %H:%M}"
    who = f"192.0.2.7 (old.internal): 1 connection, last {at}"
    assert strict.lines.told == [
        ("strict_cuts_callers", f"http is strict now, and these spoke plaintext to it lately and are refused: {who}")
    ]
    both = Watched(tmp_path, port(None), port())  # two listeners of one port: the second takes plaintext
    await both.watch.read()
    both.watch._tell_of_strict_ports()
    assert both.lines.told == []
    late = Watched(tmp_path, port(None))
    late.now = NOW + timedelta(days=8)
    await late.watch.run()
    assert late.lines.told == []
    spoke = "these spoke plaintext to api:http in the last 7 days and"
    config: Config = strict.node.config
    at_check = f"{config.path}: {spoke}"
    assert who_would_be_cut(config, NOW) == [f"{at_check} are refused, as it is strict: {who}"]
    config = before.node.config
    assert who_would_be_cut(config, NOW) == [f"{at_check} would be refused if it were strict now: {who}"]
    assert who_would_be_cut(config, NOW + timedelta(days=8)) == []


def test_what_is_kept_is_plain_json(tmp_path: Path) -> None:
    callers = PlaintextCallers()
    callers.note("http", "10.0.0.1:1", NOW, allowed=True)
    assert json.loads(json.dumps(callers.to_keep()))["version"] == 1


def test_the_metrics_count_those_who_were_let_in_lately() -> None:
    here = Watched(None, port(), port(None, "tls"))
    here.note()
    here.note("10.0.0.2:1", allowed=False)
    assert plaintext_callers(here.node) == {"http": 1}
    here.now += timedelta(days=8)
    assert plaintext_callers(here.node) == {"http": 0}
