"""A text shown again and again: on a terminal in place, on a pipe one after another, until a signal."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from sidecar.host.redraw import Look, watch, watch_lines

START = datetime(2026, 11, 30, 6, tzinfo=UTC)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Turns:
    """A clock of one second a turn, and a sleep that ends the watch after so many turns by a signal."""

    def __init__(self, turns: int, number: signal.Signals = signal.SIGINT) -> None:
        self.left, self.number, self.slept = turns, number, list[float]()
        self._now = START - timedelta(seconds=1)

    def clock(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.left -= 1
        if not self.left:
            signal.raise_signal(self.number)


def looks(*found: Look) -> Callable[[], Look]:
    rest: Iterator[Look] = iter(found)
    return lambda: next(rest)


def shown(out: io.StringIO, *found: Look, number: signal.Signals = signal.SIGINT) -> str:
    turns = Turns(len(found), number)
    watch(looks(*found), 2.0, out, turns.clock, turns.sleep)
    assert turns.slept == [2.0] * len(found)
    return out.getvalue()


def test_a_pipe_has_one_text_after_another() -> None:
    text = shown(io.StringIO(), Look("one"), Look(fault="gone\x1b"), Look("two"))
    assert text == (
        "2026-11-30T06:00:00Z, every 2 s; Ctrl-C ends it\none\n\n"
        "2026-11-30T06:00:01Z, NO ANSWER since 2026-11-30T06:00:01Z, asking again\ngone\\x1b\n\n"
        "2026-11-30T06:00:02Z, every 2 s; Ctrl-C ends it\ntwo\n\n"
    )


def test_a_terminal_is_redrawn_in_place_and_put_back() -> None:
    text = shown(Terminal(), Look("one\ntwo"), Look("three"))
    begin, *pictures = text.split("\x1b[H")
    assert begin == "\x1b[?1049h\x1b[?25l\x1b[?7l"
    assert len(pictures) == 2
    assert "\x1b[2J" not in text  # to erase all first would flicker
    assert pictures[0].endswith("one\x1b[K\ntwo\x1b[K\x1b[J")
    assert pictures[1].endswith("three\x1b[K\x1b[J\x1b[?7h\x1b[?25h\x1b[?1049l")


def test_on_a_terminal_the_last_text_stays_while_nothing_answers() -> None:
    text = shown(Terminal(), Look("one"), Look(fault="gone"), Look(fault="gone"), Look("two"))
    last = text.split("\x1b[H")[3]
    assert "06:00:02Z, NO ANSWER since 2026-11-30T06:00:01Z, asking again\x1b[K\ngone" in last
    assert "Found at 2026-11-30T06:00:00Z:" in last
    assert "one" in last
    assert "NO ANSWER" not in text.split("\x1b[H")[4]


def test_nothing_answers_from_the_start() -> None:
    assert "Found at" not in shown(Terminal(), Look(fault="gone"))


def test_more_than_a_window_holds_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Window(Terminal):
        def fileno(self) -> int:
            return 1

    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 5)))
    picture = shown(Window(), Look("\n".join(map(str, range(10))))).split("\x1b[H")[1]
    assert picture.count("\n") == 4
    assert "… and 8 more lines" in picture


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_it_and_the_old_handlers_are_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    assert shown(Terminal(), Look("one"), number=number).endswith("\x1b[?1049l")
    assert signal.getsignal(number) is before


def test_a_bug_puts_the_terminal_back_too() -> None:
    out = Terminal()

    def broken() -> Look:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        watch(broken, 1.0, out)
    assert out.getvalue().endswith("\x1b[?1049l")


def test_lines_for_programs() -> None:
    out, turns = io.StringIO(), Turns(3)
    number = iter(range(9))
    watch_lines(lambda: json.dumps({"number": next(number)}), 1.0, out, turns.sleep)
    assert out.getvalue() == '{"number": 0}\n{"number": 1}\n{"number": 2}\n'
