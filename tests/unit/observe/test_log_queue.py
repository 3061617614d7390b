"""The log's way out: to write a line never waits, what is lost is counted and said, what matters has room of its own."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sidecar.observe import log_queue
from sidecar.observe.log_queue import LogQueue, Rank

LINE = "x" * 479 + "\n"
PATIENCE = 30.0
"""Seconds: reached by a failing test only."""


def lost_line(number: int) -> str:
    return f"lost {number}\n"


class Pipe:
    """A pipe, and a reader that begins when it is told to."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.queue = LogQueue(self.writer, lost_line)
        self._data = b""
        self.open = True

    def all(self) -> list[str]:
        """Reads everything that was written until the queue was empty, and ends the pipe."""
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        assert self.queue.flush(PATIENCE)
        os.close(self.writer)
        self.open = False
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return self._data.decode().splitlines(keepends=True)

    def _read(self) -> None:
        while data := os.read(self.reader, 1 << 16):
            self._data += data


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    one = Pipe()
    yield one
    if one.open:
        one.all()
    os.close(one.reader)


# -- when lines are written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", list(Rank))
def test_lines_that_come_close_are_gathered_unless_one_is_an_alarm(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, rank: Rank
) -> None:
    monkeypatch.setattr(log_queue, "GATHER_SECONDS", PATIENCE)
    monkeypatch.setattr(log_queue, "BUSY_SECONDS", PATIENCE)
    pipe.queue.write("first\n")
    assert os.read(pipe.reader, 100) == b"first\n", "a single line is written at once"
    pipe.queue.write("second\n")
    pipe.queue.write("third\n", rank)
    os.set_blocking(pipe.reader, False)
    waits = select.select([pipe.reader], [], [], PATIENCE / 2 if rank is Rank.ALARM else 0.3)[0]
    assert [os.read(one, 100) for one in waits] == ([b"second\nthird\n"] if rank is Rank.ALARM else [])
    os.set_blocking(pipe.reader, True)


# -- nobody reads ------------------------------------------------------------------------------------------------------


def test_writing_waits_for_nobody_and_written_and_lost_add_up(pipe: Pipe) -> None:
    number = 3 * log_queue.ROOM_LINES[Rank.ORDINARY]
    stalled(pipe)
    for index in range(number):
        pipe.queue.write(f"{index}\n")
    lost = pipe.queue.lost
    assert lost > 0
    lines = [line for line in pipe.all() if line != LINE]
    assert lines[-1] == f"lost {lost}\n", "said as soon as there is room, with no other line"
    assert [int(line) for line in lines[:-1]] == list(range(number - lost)), "in order"


def test_the_bytes_are_bounded_too(pipe: Pipe) -> None:
    long = "y" * (1 << 16) + "\n"
    for _ in range(200):
        pipe.queue.write(long)
    waiting = 200 - pipe.queue.lost
    assert waiting * len(long) <= log_queue.ROOM_BYTES[Rank.ORDINARY] + (1 << 16)
    assert len(pipe.all()) == waiting + 1


def test_what_was_lost_is_said_in_its_place(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_queue, "ROOM_LINES", {Rank.ORDINARY: 2, Rank.PRESENTED: 3, Rank.ALARM: 4})
    stalled(pipe)
    for line in ("1\n", "2\n", "3\n"):
        pipe.queue.write(line)
    pipe.queue.write("alarm\n", Rank.ALARM)
    assert [line for line in pipe.all() if line != LINE] == ["1\n", "lost 2\n", "alarm\n"]
    assert pipe.queue.lost == 2


def stalled(pipe: Pipe) -> None:
    """Fills the pipe, so that the thread waits with one line in its hands."""
    os.set_blocking(pipe.writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe.writer, LINE.encode())
    os.set_blocking(pipe.writer, True)
    pipe.queue.write(LINE)


# -- what matters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flood", "kept"),
    [(Rank.ORDINARY, Rank.PRESENTED), (Rank.ORDINARY, Rank.ALARM), (Rank.PRESENTED, Rank.ALARM)],
)
def test_a_flood_does_not_push_out_what_matters_more(pipe: Pipe, flood: Rank, kept: Rank) -> None:
    for _ in range(2 * log_queue.ROOM_LINES[Rank.ALARM]):
        pipe.queue.write(LINE, flood)
    lost = pipe.queue.lost
    for index in range(500):
        pipe.queue.write(f"{index}\n", kept)
    assert pipe.queue.lost == lost, "its own part of the queue is free"
    pipe.queue.write(LINE, flood)
    assert pipe.queue.lost == lost + 1, "and the flood has no part in it"
    lines = pipe.all()
    assert [line for line in lines if line[0].isdigit()] == [f"{index}\n" for index in range(500)]


@pytest.mark.parametrize("rank", list(Rank))
def test_no_rank_is_without_bounds(pipe: Pipe, rank: Rank) -> None:
    for _ in range(2 * log_queue.ROOM_LINES[rank]):
        pipe.queue.write(LINE, rank)
    assert pipe.queue.lost > 0


# -- a stream that fails -----------------------------------------------------------------------------------------------


class Fickle:
    """``os.write`` that fails while ``broken``; of the first write then it takes ``some`` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, some: int = 0) -> None:
        self.broken = True
        self.some = some
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if not self.broken:
            return self._write(descriptor, data)
        if self.some:
            taken, self.some = self.some, 0
            return self._write(descriptor, data[:taken])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_could_not_be_written_is_lost_counted_and_said(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fickle = Fickle(monkeypatch)
    for index in range(3):
        pipe.queue.write(f"{index}\n")
        assert pipe.queue.flush(PATIENCE)
    assert pipe.queue.lost == 3
    fickle.broken = False
    pipe.queue.write("again\n")
    pipe.queue.write("and again\n")
    assert pipe.all() == ["lost 3\n", "again\n", "and again\n"]
    assert pipe.queue.lost == 3


@pytest.mark.parametrize(("some", "rest"), [(2, ["on\n", "lost 1\n", "three\n"]), (4, ["one\n", "three\n"])])
def test_where_a_write_broke_off_decides(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, some: int, rest: list[str]
) -> None:
    fickle = Fickle(monkeypatch, some)
    pipe.queue.write("one\n")
    assert pipe.queue.flush(PATIENCE)
    fickle.broken = False
    pipe.queue.write("three\n")
    assert pipe.all() == rest


def test_a_reader_that_went_away_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    queue = LogQueue(writer, lost_line)
    queue.write("x\n")
    assert queue.flush(PATIENCE)
    assert queue.lost == 1
    os.close(writer)


def test_a_stream_that_another_program_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    for _ in range(2_000):
        pipe.queue.write(LINE)
    assert pipe.all() == [LINE] * 2_000


def test_without_a_thread_lines_are_lost_and_the_next_is_tried(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        pipe.queue.write("one\n")
        assert pipe.queue.flush(0.0)
    pipe.queue.write("two\n")
    assert pipe.all() == ["lost 1\n", "two\n"]


def test_what_has_no_place_in_the_encoding_is_escaped() -> None:
    reader, writer = os.pipe()
    queue = LogQueue(writer, lost_line, "ascii")
    queue.write("\u2028é\n")
    assert queue.flush(PATIENCE)
    assert os.read(reader, 100) == b"\\u2028\\xe9\n"
    os.close(reader)
    os.close(writer)


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_a_stream_in_memory_is_written_at_once() -> None:
    stream = io.StringIO()
    output = log_queue.output(stream, lost_line)
    output.write("one\n", Rank.ALARM)
    assert stream.getvalue() == "one\n"
    assert output.flush()
    stream.close()
    output.write("two\n")
    assert output.lost == 1


# -- the end of the process --------------------------------------------------------------------------------------------

PROGRAM = """\
import os, sys
from sidecar.observe.logs import Log
log = Log(style="json")
for index in range(int(sys.argv[1])):
    log.info("line", index=index)
"""


def program(number: int, more: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM + more, str(number)], stdout=subprocess.PIPE)


def test_all_lines_are_written_before_the_process_ends() -> None:
    with program(2_000) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert [line.count(b'"line"') for line in out.splitlines()] == [1] * 2_000


def test_a_process_ends_though_nobody_reads() -> None:
    with program(20_000) as process:
        assert process.wait(PATIENCE) == 0, "its pipe is full"
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert 0 < len(lines) < 20_000


def test_a_child_has_a_thread_of_its_own_and_none_of_the_parent_s_lines() -> None:
    fork = "if os.fork() == 0:\n    log.info('child')\nelse:\n    os.wait()\n    log.info('parent')\n"
    with program(500, fork) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert [out.count(word) for word in (b'"line"', b'"child"', b'"parent"')] == [500, 1, 1]


@pytest.mark.parametrize("rank", list(Rank))
def test_it_may_be_interrupted_by_one_that_writes_too(rank: Rank) -> None:
    """As a finalizer does, between any two steps of another call; here a signal's handler."""
    code = f"""
import os, signal, time
from sidecar.observe.log_queue import LogQueue, Rank
queue, rank = LogQueue(os.open(os.devnull, os.O_WRONLY), str), Rank({int(rank)})
signal.signal(signal.SIGALRM, lambda *_: queue.write("between\\n", rank))
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
end = time.monotonic() + 1
while time.monotonic() < end:
    queue.write("line\\n", rank)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
