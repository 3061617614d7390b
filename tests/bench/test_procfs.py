"""/proc: its lines, and a tree of processes that stays the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.bench import procfs
from tests.bench.errors import BenchError
from tests.bench.procfs import ProcessTree, Stat, descendants, parse_kilobytes, parse_listening, parse_stat

LINE = (
    "4242 (nginx) S 4241 4242 4242 0 -1 4194560 1234 0 0 0 150 70 8 3 20 0 1 0 987654 10000000 500 "
    "18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n"
)


def test_a_line_of_stat() -> None:
    assert parse_stat(LINE) == Stat(4242, "nginx", 4241, 150 + 70 + 8 + 3, 987654)


@pytest.mark.parametrize("name", ["a b", "(sd-pam)", "x) R 1 1", ")", "", "new\nline"])
def test_a_name_cannot_shift_the_fields(name: str) -> None:
    assert parse_stat(LINE.replace("(nginx)", f"({name})")) == Stat(4242, name, 4241, 231, 987654)


@pytest.mark.parametrize("text", ["", "4242 (nginx) S 1", "4242 nginx S 4241 4242"])
def test_what_is_no_line_of_stat(text: str) -> None:
    with pytest.raises(ValueError, match="stat"):
        parse_stat(text)


def test_kilobytes() -> None:
    text = "Name:\tx\nVmRSS:\t    1234 kB\nRssAnon:\t 1 kB\n"
    assert parse_kilobytes(text, "VmRSS") == 1234 * 1024
    assert parse_kilobytes(text, "RSS") is None


def test_listening_ports() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0100007F:2328 00000000:0000 0A 00000000:00000000\n"
        "   1: 00000000:0050 00000000:0000 0A 00000000:00000000\n"
        "   2: 0100007F:2329 0100007F:9C40 01 00000000:00000000\n"
    )
    assert parse_listening(text) == {9000, 80}


def test_descendants_are_those_of_the_root_alone() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 20: 1}
    stats = [Stat(pid, "x", parent, 0, 0) for pid, parent in parents.items()]
    assert [stat.pid for stat in descendants(stats, 10)] == [10, 11, 12, 13]
    assert descendants(stats, 99) == []


def test_a_tree_counts_what_is_used_and_sees_a_death() -> None:
    code = "import sys\nsys.stdin.readline()\nsum(range(10**7))\nprint('done', flush=True)\nsys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tree = ProcessTree("a child", process.pid)
        before = tree.cpu_seconds()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        assert tree.cpu_seconds() > before
        memory = tree.memory()
        assert memory.rss > 1e6
        assert memory.pss is None or 0 < memory.pss <= memory.rss
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(BenchError, match="a child"):
            tree.cpu_seconds()


def test_a_tree_of_nothing_is_refused() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(BenchError, match="has ended"):
        ProcessTree("nobody", process.pid)


def test_a_tree_sees_a_child_that_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [Stat(1, "master", 0, 5, 100), Stat(2, "worker", 1, 5, 101)]
    monkeypatch.setattr(procfs, "_all_stats", lambda: stats)
    tree = ProcessTree("it", 1)
    assert tree.cpu_seconds() > 0
    stats[1] = Stat(2, "worker", 1, 0, 999)
    with pytest.raises(BenchError, match="did one die"):
        tree.cpu_seconds()
