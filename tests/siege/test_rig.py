"""The rig's own parts: who attacks, where they are kept, what the options say."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import asdict
from pathlib import Path

import pytest
import trio

from sidecar.policy.mesh import parse_mesh
from tests.beds.ca_processes import echo_app
from tests.beds.patience import PATIENCE
from tests.siege import honest
from tests.siege.__main__ import FLOODS, LEAST_FLOOD, _some_of, flood_seconds, main
from tests.siege.actions import ACTIONS, RESOLVER
from tests.siege.attackers import ATTACKS, Field, flood, large
from tests.siege.besieged import MESH, big_mesh
from tests.siege.cgroup import cgroup, homes
from tests.siege.defences import DEFENCES, replaced
from tests.siege.figures import lost
from tests.siege.kinds import KINDS


def test_every_kind_is_somebodys() -> None:
    assert set(ATTACKS) == {kind.name for kind in KINDS.values() if kind.by is not None}
    assert {*ACTIONS, RESOLVER} == {kind.name for kind in KINDS.values() if kind.by is None}
    assert all(0 < kind.least < kind.rate for kind in KINDS.values())


def test_every_defence_is_against_some_kind() -> None:
    assert all(defence.kinds and set(defence.kinds) <= set(KINDS) for defence in DEFENCES.values())
    assert all(name == defence.name for name, defence in DEFENCES.items())


def test_what_is_removed_is_there() -> None:
    """In a process of its own, since it stays removed."""
    code = "from tests.siege.defences import DEFENCES\nfor one in DEFENCES.values(): one.remove()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="must follow the code"):
        replaced("tests.siege.defences", "Defence.nothing", 1)()


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    assert _some_of(KINDS)("idle,garbage") == ["idle", "garbage"]
    with pytest.raises(ArgumentTypeError, match="no such name: storm; there are: half-open"):
        _some_of(KINDS)("idle,storm")


def test_floods_take_what_the_seconds_leave_to_them() -> None:
    assert flood_seconds(0, 2) == LEAST_FLOOD
    assert flood_seconds(900, 1) > 2 * flood_seconds(450, 1)
    assert FLOODS == 3


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0})
    assert main([]) == 2
    assert "this needs two" in capsys.readouterr().err


def test_without_root_the_kind_that_needs_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["--only", "silent-resolver"]) == 2
    assert "left out: silent-resolver" in capsys.readouterr().err


def test_a_big_mesh_has_so_many_services_and_rules_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.siege.besieged.RULES", 30)  # parsing 3,000 takes seconds, which is what they are for
    small, big = parse_mesh(MESH, "mesh.yaml"), parse_mesh(big_mesh(1), "mesh.yaml")
    assert len(big.services) == 30 + len(small.services)
    assert len(big.rules) == 30 + len(small.rules)
    assert big_mesh(1) != big_mesh(2)


def test_a_huge_certificate_has_the_size_that_it_is_named_for() -> None:
    assert 85_000 < len(large(90_000).der) < 95_000
    assert 28_000 < len(large(29_500).der) < 32_000


def test_what_is_told_to_attackers_is_what_they_hear() -> None:
    field = Field("idle", True, ("h", 1), ("h", 2), (("h", 3), ("h", 4)), "peer", "revoked", ("h", 5))
    assert Field.of(json.loads(json.dumps(asdict(field)))) == field


# -- cgroups -----------------------------------------------------------------------------------------------------------


def test_a_cgroup_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io")
    with cgroup("siege", 0.2, [1], tmp_path) as group:
        assert group.directories == [tmp_path / "siege"]
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +cpuset"
        assert {path.name: path.read_text() for path in (tmp_path / "siege").iterdir()} == {
            "cpuset.cpus": "1",
            "cpu.weight": "20",
        }
        group.add(7)
        assert (tmp_path / "siege" / "cgroup.procs").read_text() == "7\n"


def test_a_cgroup_of_version_1(tmp_path: Path) -> None:
    for name in ("cpu", "cpuset"):
        (tmp_path / name).mkdir()
    with cgroup("siege", 30, [0, 1], tmp_path) as group:
        assert group.directories == [tmp_path / "cpuset" / "siege", tmp_path / "cpu" / "siege"]
        assert (tmp_path / "cpuset" / "siege" / "cpuset.cpus").read_text() == "0,1"
        assert (tmp_path / "cpu" / "siege" / "cpu.shares").read_text() == "30720"


def test_where_no_cgroup_can_be_made_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), cgroup("siege", 1, [0], tmp_path / "nowhere"):
        pass


def test_where_a_process_goes_back_to() -> None:
    root = Path("/r")
    assert homes("0::/user.slice\n", root) == [root / "user.slice"]
    assert homes("3:cpuset:/\n2:cpuacct:/\n1:cpu:/a\n0::/\n", root) == [root / "cpuset", root / "cpu/a", root]


# -- attackers and honest callers, against an app ----------------------------------------------------------------------


async def test_idle_attackers_are_counted_and_all_closed() -> None:
    accepted: list[str] = []
    ended = trio.Event()

    async def note(stream: trio.SocketStream) -> None:
        accepted.append(stream.socket.getpeername()[0])
        try:
            await stream.receive_some()
        except trio.BrokenResourceError:
            ended.set()

    async def three() -> None:
        while len(accepted) < 3:  # noqa: ASYNC110 (the listener of a real socket)
            await trio.sleep(0.01)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, note, [listener])
            here = listener.socket.getsockname()
            field = Field("idle", True, here, here, (here, here), "", "", here)
            done = (await flood([field], three))["done"]
            assert done["idle"] >= 3
            assert len(set(accepted)) == len(accepted)  # an address each
            await ended.wait()
            nursery.cancel_scope.cancel()


async def test_honest_calls_come_back_and_are_lost_where_nobody_answers() -> None:
    async with echo_app() as address:
        host, _, port = address.partition(":")
        traffic = honest.Traffic()
        tasks = [
            traffic.probe("probe", (host, int(port)), 100),
            traffic.calls("new", 50, lambda: honest.ask_anew((host, int(port)))),
            traffic.calls("nobody", 50, lambda: honest.ask_anew((host, 1))),
        ]
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
                while min(len(calls.made) for calls in traffic.sorts.values()) < 3:  # noqa: ASYNC110 (real sockets)
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
    assert lost(traffic.sorts["probe"].made) == lost(traffic.sorts["new"].made) == 0
    assert lost(traffic.sorts["nobody"].made) == len(traffic.sorts["nobody"].made)
