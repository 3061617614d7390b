"""Followed files: a change counts once, when it has settled; what is wrong is reported once, and the last good stays."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.documents.regular import IrregularError, Read, Regular, read_regular
from sidecar.host import disk, follow
from sidecar.host.follow import MAX_BYTES, Contents, Follower, ReportOnce, Unread, Watch, mounted, read_all
from sidecar.identity.reasons import UsageError

A, B = Path("a"), Path("b")


def holds(content: bytes) -> Regular:
    return Regular(content, os.stat_result(range(10)), read_only=False, access=(0o100600, 0, 0))


def now(a: bytes | None, b: bytes | None = None) -> Contents:
    """What was found: None where a file could not be read."""
    gone = Unread("gone", FileNotFoundError())
    return {path: gone if content is None else holds(content) for path, content in ((A, a), (B, b))}


def test_what_does_not_change_is_never_told() -> None:
    watch = Watch(now(b"1"))
    assert [watch.look(now(b"1")) for _ in range(3)] == [None, None, None]


def test_a_change_is_told_once_and_only_when_it_was_seen_twice() -> None:
    watch = Watch(now(b"1"))
    assert watch.look(now(b"2")) is None
    assert watch.look(now(b"2")) == now(b"2")
    assert watch.look(now(b"2")) is None


def test_a_file_that_is_being_written_settles_first() -> None:
    watch = Watch(now(b"old"))
    assert watch.look(now(b"n")) is None
    assert watch.look(now(b"ne")) is None
    assert watch.look(now(b"new")) is None
    assert watch.look(now(b"new")) == now(b"new")


def test_two_files_that_belong_together_are_told_together() -> None:
    watch = Watch(now(b"certificate 1", b"key 1"))
    assert watch.look(now(b"certificate 1", b"key 2")) is None
    assert watch.look(now(b"certificate 2", b"key 2")) is None
    assert watch.look(now(b"certificate 2", b"key 2")) == now(b"certificate 2", b"key 2")


def test_a_change_that_is_taken_back_before_it_settled_is_none() -> None:
    watch = Watch(now(b"1"))
    assert watch.look(now(b"2")) is None
    assert watch.look(now(b"1")) is None
    assert watch.look(now(b"1")) is None


def test_a_file_that_vanishes_is_a_change_and_so_is_its_return() -> None:
    watch = Watch(now(b"1"))
    assert watch.look(now(None)) is None
    assert watch.look(now(None)) == now(None)
    assert watch.look(now(b"1")) is None
    assert watch.look(now(b"1")) == now(b"1")


def test_another_mode_or_owner_is_a_change_and_another_time_is_none() -> None:
    """A key that was refused because others could read it is tried again after ``chmod``."""
    assert holds(b"1") == replace(holds(b"1"), status=os.stat_result(range(1, 11)))
    for other in ({"access": (0o100644, 0, 0)}, {"access": (0o100600, 0, 1)}, {"read_only": True}):
        assert holds(b"1") != replace(holds(b"1"), **other)


def found(*paths: Path) -> list[bytes | str]:
    """What each file holds, or why it cannot be read."""
    contents: dict[Path, Regular | Unread] = {}
    read_all(paths, contents)
    return [one.content if isinstance(one, Regular) else one.why for one in contents.values()]


def test_reading_follows_renames_and_symlinks_and_bounds_what_it_takes(tmp_path: Path) -> None:
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "current"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    link.symlink_to(first)
    content, missing, directory = found(link, tmp_path / "missing", tmp_path)
    assert (content, directory) == (b"one", "Is a directory")
    assert "No such file" in str(missing)
    fresh = tmp_path / "fresh"
    fresh.symlink_to(second)
    fresh.rename(link)
    assert found(link) == [b"two"]
    second.write_bytes(b"x" * (MAX_BYTES + 9))
    assert found(link) == [b"x" * (MAX_BYTES + 1)]


# -- reporting once ----------------------------------------------------------------------------------------------------


class Faults:
    """What was reported, in order."""

    def __init__(self, *, exact: bool = False, quiet: float = 0.0) -> None:
        self.lines: list[str] = []
        self.once = ReportOnce[str](
            lambda topic, fault: self.lines.append(f"{topic}: {fault}"),
            lambda topic: self.lines.append(f"{topic} is mended"),
            exact=exact,
            quiet=quiet,
        )


def test_a_fault_is_reported_once_until_it_is_over() -> None:
    faults = Faults()
    told = [faults.once.report("mesh", fault) for fault in ("bad", "bad", None, None, "bad")]
    assert told == [True, False, True, False, True]
    assert faults.lines == ["mesh: bad", "mesh is mended", "mesh: bad"]


def test_a_fault_that_becomes_another_one_is_reported() -> None:
    faults = Faults()
    for fault in ("bad", "worse", "bad"):
        assert faults.once.report("mesh", fault)
    assert faults.lines == ["mesh: bad", "mesh: worse", "mesh: bad"]


@pytest.mark.parametrize("exact", [False, True])
def test_digits_make_another_fault_only_where_faults_are_told_apart_exactly(exact: bool) -> None:
    faults = Faults(exact=exact)
    faults.once.report("ca", "no answer at 12:59:59")
    assert faults.once.report("ca", "no answer at 13:00:00") is exact
    assert not faults.once.report("ca", "no answer at 13:00:00")


def test_topics_have_nothing_to_do_with_each_other() -> None:
    faults = Faults()
    faults.once.report("mesh", "bad")
    assert faults.once.report("key", "bad")
    faults.once.report("mesh", None)
    assert not faults.once.report("key", "bad")
    assert faults.lines == ["mesh: bad", "key: bad", "mesh is mended"]


def test_there_are_faults_until_the_last_one_is_over() -> None:
    once = Faults().once
    assert not once
    once.report("mesh", "bad")
    once.report("key", "bad")
    once.report("mesh", None)
    assert once
    once.report("key", None)
    assert not once


def test_a_renewed_topic_is_reported_again_and_no_other() -> None:
    faults = Faults()
    faults.once.report("mesh", "bad")
    faults.once.report("key", "bad")
    faults.once.renew(["mesh", "what was never at fault"])
    assert faults.once
    assert not faults.once.report("key", "bad")
    assert faults.once.report("mesh", "bad")
    assert not faults.once.report("mesh", "bad")
    faults.once.renew(["mesh"])
    assert faults.once.report("mesh", None), "it is mended all the same"


@pytest.fixture
def quiet() -> Faults:
    return Faults(quiet=60.0)


async def test_a_fault_that_comes_and_goes_is_reported_once_and_its_end_too(
    quiet: Faults, mock_clock: MockClock
) -> None:
    for second in range(20):
        assert quiet.once.report("mesh", "bad at 1") is (second == 0)
        assert quiet.once
        quiet.once.remind()
        mock_clock.jump(1)
        quiet.once.report("mesh", None)
        assert not quiet.once
        mock_clock.jump(1)
    assert quiet.lines == ["mesh: bad at 1", "mesh is mended"]


async def test_a_fault_that_is_back_to_stay_is_reported_a_minute_after_it_was(
    quiet: Faults, mock_clock: MockClock
) -> None:
    for fault in ("bad", None, "bad"):
        quiet.once.report("mesh", fault)
    mock_clock.jump(59)
    quiet.once.remind()
    assert quiet.lines == ["mesh: bad", "mesh is mended"]
    mock_clock.jump(1)
    quiet.once.remind()
    quiet.once.remind()
    assert quiet.lines[2:] == ["mesh: bad"]
    quiet.once.report("mesh", None)
    assert quiet.lines[3:] == ["mesh is mended"]


async def test_another_fault_and_one_of_another_source_are_reported_at_once(
    quiet: Faults, mock_clock: MockClock
) -> None:
    for fault in ("bad", None, "worse", None):
        quiet.once.report("mesh", fault)
    assert quiet.lines == ["mesh: bad", "mesh is mended", "mesh: worse", "mesh is mended"]
    quiet.once.renew(["mesh"])
    assert quiet.once.report("mesh", "worse")


# -- following ---------------------------------------------------------------------------------------------------------


class Two:
    """Two files that hold numbers, followed as two topics; ``values`` are in force."""

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self.paths = {name: path / name for name in ("a", "b")}
        for one in self.paths.values():
            one.write_text("1")
        self.values = {"a": 1, "b": 1}
        self.takes = 0
        self.bugs: list[str] = []
        self.faults = Faults()
        self.breaks: Exception | None = None
        self.waiting: list[str] = []
        self.follower = Follower(
            {name: [one] for name, one in self.paths.items()},
            self.take,
            self.faults.once,
            lambda error: self.bugs.append(type(error).__name__),
            again=again,
            waits=self.waiting.append,
        )

    def load(self, name: str) -> Callable[[Read], int]:
        def parse(read: Read) -> int:
            try:
                text = read(self.paths[name], MAX_BYTES).content.decode()
            except (OSError, IrregularError) as error:
                raise UsageError(str(error)) from error
            if text == "bug":
                raise ZeroDivisionError
            try:
                return int(text)
            except ValueError as error:
                raise UsageError(f"{text} is no number") from error

        return parse

    @staticmethod
    def opens(good: int, value: int) -> str | None:
        """A hundred opens."""
        return f"{value} is a lot" if value >= max(100, good + 1) else None

    async def take(self) -> None:
        self.takes += 1
        values = {
            name: await self.follower.attempt(name, self.load(name), self.values[name], "kept", opens=self.opens)
            for name in "ab"
        }
        if self.breaks is not None:
            raise self.breaks
        self.values = values

    async def looks(self, number: int = 3) -> None:
        for _ in range(number):
            await self.follower.look()


@pytest.fixture
async def two(tmp_path: Path) -> Two:
    made = Two(tmp_path)
    await made.looks()
    assert made.takes == 1, "what changed before the first look is not missed"
    return made


async def test_what_is_good_is_taken_once(two: Two) -> None:
    two.paths["a"].write_text("2")
    await two.looks(1)
    assert two.values["a"] == 1, "it has not settled"
    await two.looks()
    assert (two.values, two.takes) == ({"a": 2, "b": 1}, 2)


async def test_what_is_refused_keeps_its_last_good_value_and_keeps_nothing_else_out(two: Two) -> None:
    two.paths["a"].write_text("x")
    two.paths["b"].write_text("2")
    await two.looks(9)
    assert two.values == {"a": 1, "b": 2}
    assert two.faults.lines == ["a: x is no number; kept"]
    two.paths["a"].write_text("3")
    await two.looks()
    assert two.values == {"a": 3, "b": 2}
    assert two.faults.lines[1:] == ["a is mended"]


async def test_a_refusal_is_reported_for_each_change_of_its_own_file(two: Two) -> None:
    two.paths["a"].write_text("x")
    await two.looks()
    two.paths["b"].write_text("2")
    await two.looks()
    assert len(two.faults.lines) == 1
    two.paths["a"].write_text("y")
    await two.looks()
    two.paths["a"].write_text("x1")
    await two.looks()
    two.paths["a"].write_text("x2")
    await two.looks()
    assert [line.split()[1] for line in two.faults.lines] == ["x", "y", "x1", "x2"]


async def test_a_reload_by_hand_waits_for_no_look_and_reports_again(two: Two) -> None:
    two.paths["a"].write_text("x")
    two.paths["b"].write_text("2")
    await two.follower.reload()
    assert two.values == {"a": 1, "b": 2}
    await two.looks()
    assert two.takes == 2, "what it took is known"
    await two.follower.reload()
    assert two.faults.lines == ["a: x is no number; kept"] * 2


async def test_what_is_taken_back_after_a_reload_by_hand_is_a_change(two: Two) -> None:
    two.paths["a"].write_text("2")
    await two.follower.reload()
    two.paths["a"].write_text("1")
    await two.looks()
    assert two.values["a"] == 1


async def test_a_bug_in_one_value_is_logged_and_keeps_nothing_else_out(two: Two) -> None:
    two.paths["a"].write_text("bug")
    two.paths["b"].write_text("2")
    await two.looks()
    assert (two.bugs, two.values, two.faults.lines) == (["ZeroDivisionError"], {"a": 1, "b": 2}, [])


async def test_a_bug_in_taking_is_logged_and_the_next_change_is_taken(two: Two) -> None:
    two.breaks = LookupError()
    two.paths["a"].write_text("2")
    await two.looks()
    assert (two.bugs, two.values["a"]) == (["LookupError"], 1)
    two.breaks = None
    two.paths["a"].write_text("3")
    await two.looks()
    assert two.values["a"] == 3


@pytest.mark.parametrize("again", [False, True])
async def test_what_is_refused_is_tried_again_without_a_change_only_where_that_was_asked_for(
    tmp_path: Path, again: bool
) -> None:
    two, locked = Two(tmp_path, again=again), True

    async def take() -> None:
        def load(_read: Read) -> int:
            if locked:
                raise UsageError("locked by another program")
            return 2

        two.values["a"] = await two.follower.attempt("a", load, two.values["a"], "kept")

    two.follower._take = take
    await two.looks(6)
    locked = False
    await two.looks()
    assert two.values["a"] == (2 if again else 1)
    assert two.faults.lines == ["a: locked by another program; kept", *(["a is mended"] if again else [])]
    two.paths["b"].write_text("x")
    takes = two.takes
    await two.looks(6)
    assert two.takes == takes, "no topic is at fault"


async def test_where_refusals_are_tried_again_a_change_is_no_other_refusal(tmp_path: Path) -> None:
    two = Two(tmp_path, again=True)
    for text in ("x1", "x2"):
        two.paths["a"].write_text(text)
        await two.looks()
    assert two.faults.lines == ["a: x1 is no number; kept"]


async def test_a_refusal_of_what_is_in_no_file_has_no_file_tried_again(tmp_path: Path) -> None:
    two = Two(tmp_path, again=True)
    await two.looks()

    def load(_read: Read) -> int:
        raise UsageError("no store")

    for _ in range(4):
        assert await two.follower.attempt("store", load, 1, "kept") == 1
        await two.looks()
    assert two.takes == 1
    assert two.faults.lines == ["store: no store; kept"]


async def test_what_is_parsed_is_what_was_read(two: Two) -> None:
    """The file may have changed since, or may hang now."""
    take = two.take

    async def changes_first() -> None:
        two.paths["a"].write_text("9")
        await take()

    two.follower._take = changes_first
    two.paths["a"].write_text("2")
    await two.looks(2)
    assert two.values["a"] == 2
    await two.looks(2)
    assert two.values["a"] == 9


# -- what could allow more ---------------------------------------------------------------------------------------------


async def seconds(two: Two, clock: MockClock, number: int) -> None:
    for _ in range(number):
        clock.jump(1)
        await two.looks(1)


async def test_what_opens_waits_until_nothing_changed_for_five_seconds_and_says_so_once(
    two: Two, mock_clock: MockClock
) -> None:
    two.paths["a"].write_text("100")
    await seconds(two, mock_clock, 5)
    assert two.values["a"] == 1
    advice = "takes effect when the file has not changed for 5 s; SIGHUP puts it in force now"
    assert two.waiting == [f"{two.paths['a']}: 100 is a lot; {advice}; kept"]
    await seconds(two, mock_clock, 1)
    assert two.values["a"] == 100
    await seconds(two, mock_clock, 20)
    assert (two.takes, len(two.waiting)) == (3, 1)
    assert two.faults.lines == []


async def test_what_only_closes_waits_for_nothing_but_to_settle(two: Two, mock_clock: MockClock) -> None:
    two.paths["a"].write_text("0")
    await two.looks(2)
    assert (two.values["a"], two.waiting) == (0, [])


@pytest.mark.parametrize("touch", [True, False])
async def test_a_file_whose_time_of_change_changes_is_still_being_written(
    two: Two, mock_clock: MockClock, touch: bool
) -> None:
    two.paths["a"].write_text("100")
    for number in range(4):
        await seconds(two, mock_clock, 3)
        if touch:
            os.utime(two.paths["a"], (number, number))
    assert two.values["a"] == (1 if touch else 100)
    await seconds(two, mock_clock, 7)
    assert two.values["a"] == 100
    assert len(two.waiting) == 1


async def test_the_half_of_a_file_that_opens_is_gone_when_the_rest_is_written(two: Two, mock_clock: MockClock) -> None:
    two.paths["a"].write_text("100")
    await seconds(two, mock_clock, 4)
    two.paths["a"].write_text("10")
    await seconds(two, mock_clock, 2)
    assert two.values["a"] == 10
    await seconds(two, mock_clock, 20)
    assert two.values["a"] == 10


async def test_another_change_that_opens_waits_anew(two: Two, mock_clock: MockClock) -> None:
    for text in ("100", "200"):
        two.paths["a"].write_text(text)
        await seconds(two, mock_clock, 4)
    await seconds(two, mock_clock, 1)
    assert two.values["a"] == 1
    await seconds(two, mock_clock, 1)
    assert (two.values["a"], len(two.waiting)) == (200, 2)


async def test_what_waits_keeps_no_other_topic_out_and_no_other_topic_lets_it_in(
    two: Two, mock_clock: MockClock
) -> None:
    two.paths["a"].write_text("100")
    await seconds(two, mock_clock, 2)
    two.paths["b"].write_text("2")
    await seconds(two, mock_clock, 2)
    assert two.values == {"a": 1, "b": 2}
    await seconds(two, mock_clock, 2)
    assert two.values == {"a": 100, "b": 2}


async def test_a_reload_by_hand_waits_for_nothing_and_the_next_change_does(two: Two, mock_clock: MockClock) -> None:
    two.paths["a"].write_text("100")
    await two.follower.reload()
    assert (two.values["a"], two.waiting) == (100, [])
    two.paths["a"].write_text("200")
    await seconds(two, mock_clock, 4)
    assert two.values["a"] == 100


async def test_a_refusal_is_over_when_what_waited_is_in_force(two: Two, mock_clock: MockClock) -> None:
    two.paths["a"].write_text("x")
    await seconds(two, mock_clock, 2)
    two.paths["a"].write_text("100")
    await seconds(two, mock_clock, 3)
    assert two.faults.lines == ["a: x is no number; kept"]
    await seconds(two, mock_clock, 3)
    assert two.faults.lines[1:] == ["a is mended"]


async def test_a_bug_in_the_comparison_opens_nothing(two: Two, mock_clock: MockClock) -> None:
    def broken(_good: int, _value: int) -> str | None:
        raise ZeroDivisionError

    two.opens = broken  # type: ignore[assignment, method-assign]
    two.paths["a"].write_text("2")
    await seconds(two, mock_clock, 20)
    assert (two.values["a"], set(two.bugs)) == (1, {"ZeroDivisionError"})


async def test_a_restless_file_keeps_no_other_out(two: Two) -> None:
    two.paths["b"].write_text("2")
    for number in range(6):
        two.paths["a"].write_text(str(number))
        await two.follower.look()
    assert two.values == {"a": 1, "b": 2}
    await two.looks(2)
    assert two.values == {"a": 5, "b": 2}


async def test_a_look_and_a_reload_do_not_overlap(two: Two) -> None:
    take, inside = two.take, 0

    async def slow() -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await trio.testing.wait_all_tasks_blocked()
        await take()
        inside -= 1

    two.follower._take = slow
    two.paths["a"].write_text("2")
    await two.looks(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.follower.look)
        nursery.start_soon(two.follower.reload)
        nursery.start_soon(two.follower.reload)
    assert (two.values["a"], two.bugs) == (2, [])
    assert two.takes >= 3


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["fifo", "directory", "device"])
async def test_what_is_no_regular_file_is_refused_and_the_good_file_is_taken_when_it_is_back(
    two: Two, what: str
) -> None:
    path = two.paths["a"]
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    two.paths["b"].write_text("2")
    await two.looks(9)
    assert two.values == {"a": 1, "b": 2}
    [line] = two.faults.lines
    assert line.endswith("Is a directory; kept" if what == "directory" else "Not a regular file; kept")
    if what == "directory":
        path.rmdir()
    else:
        path.unlink()
    path.write_text("3")
    await two.looks()
    assert two.values == {"a": 3, "b": 2}
    assert two.faults.lines[1:] == ["a is mended"]


class Mount:
    """A network mount that can go away: who reads a file of it waits until it is back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gone: Path | None = None
        self.waiting = 0
        self._back = threading.Event()
        monkeypatch.setattr(follow, "read_regular", self._read)

    def _read(self, path: Path, limit: int) -> Regular:
        if path == self.gone:
            self.waiting += 1
            self._back.wait()
            self.waiting -= 1
        return read_regular(path, limit)

    async def looked_at(self, follower: Follower, clock: MockClock) -> None:
        """A first look, which waits; not by autojump, which would pass while other threads work."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.look)
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.jump(disk.PATIENCE)

    async def returns(self) -> None:
        self.gone = None
        self._back.set()
        while disk.threads().borrowed_tokens:
            await trio.lowlevel.checkpoint()


async def test_a_file_that_hangs_stops_nothing_is_told_once_and_is_followed_again(
    two: Two, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(monkeypatch)
    mount.gone = two.paths["a"]
    two.paths["a"].write_text("2")
    two.paths["b"].write_text("2")
    await mount.looked_at(two.follower, mock_clock)
    await two.looks(9)  # they do not wait: the clock stands still
    assert (two.values, mount.waiting) == ({"a": 1, "b": 2}, 1)
    assert two.faults.lines == [
        "a: the file system does not answer; is it a network mount that is gone?; kept",
    ]
    two.paths["b"].write_text("3")
    await two.looks()
    await two.follower.reload()
    assert (two.values, mount.waiting) == ({"a": 1, "b": 3}, 1)
    await mount.returns()
    await two.looks()
    assert two.values == {"a": 2, "b": 3}
    assert two.faults.lines[-1] == "a is mended"


async def test_of_files_that_belong_together_the_one_that_hangs_is_named(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(monkeypatch)
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    for path in (certificate, key):
        path.write_text("1")
    mount.gone = key
    faults = Faults()

    def load(read: Read) -> int:
        for path in (certificate, key):
            try:
                read(path, MAX_BYTES)
            except OSError as error:
                raise UsageError(f"{path.name}: {error}") from error
        return 2

    async def take() -> None:
        await follower.attempt("pair", load, 1, "kept")

    follower = Follower({"pair": [certificate, key]}, take, faults.once, lambda _: None)
    await mount.looked_at(follower, mock_clock)
    for _ in range(5):
        await follower.look()
    [line] = faults.lines
    assert line.startswith("pair: key: the file system does not answer")
    await mount.returns()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_lack_of_descriptors_is_called_that_and_is_no_change_of_any_file(
    two: Two, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(path: Path, limit: int) -> Regular:
        if path == two.paths["a"]:
            raise OSError(number, os.strerror(number))
        return read_regular(path, limit)

    with monkeypatch.context() as patch:
        patch.setattr(follow, "read_regular", fails)
        two.paths["b"].write_text("2")
        await two.looks(5)
        await two.follower.reload()
        [line] = two.faults.lines
        assert line.startswith("descriptors: no file descriptor is left")
        assert two.values == {"a": 1, "b": 2}, "what can be read is followed"
        two.paths["a"].write_text("2")
    await two.looks()
    assert two.values == {"a": 2, "b": 2}
    assert two.faults.lines[1:] == ["descriptors is mended"]


async def test_another_error_of_the_system_is_a_fault_of_the_file(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, _limit: int) -> Regular:
        raise OSError(errno.EIO, f"Input/output error of {path.name}")

    monkeypatch.setattr(follow, "read_regular", fails)
    await two.looks()
    assert [line.partition(": ")[0] for line in two.faults.lines] == ["a", "b"]


async def test_what_could_never_be_read_keeps_its_first_value(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Regular:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(follow, "read_regular", fails)
    fresh = Follower({"a": [two.paths["a"]]}, two.take, two.faults.once, lambda _: None)
    await fresh.reload()
    assert await fresh.attempt("a", two.load("a"), 7, "kept") == 7


# -- mounts ------------------------------------------------------------------------------------------------------------

MOUNTINFO = """\
22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 35 98:0 /a {directory} rw,noatime master:1 - ext4 /dev/root rw
37 35 98:0 /b {file} rw,noatime master:1 - ext4 /dev/root rw
"""


def fake_mounts(tmp_path: Path, file: str) -> Path:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO.format(directory=tmp_path / "own", file=file))
    return mounts


def test_a_file_that_is_a_mount_is_told_from_one_in_a_mounted_directory(tmp_path: Path) -> None:
    mesh, key = tmp_path / "mesh.yaml", tmp_path / "own" / "key.pem"
    mounts = fake_mounts(tmp_path, str(mesh))
    assert mounted([mesh, key], mounts) == [mesh]
    link = tmp_path / "link.yaml"
    link.symlink_to(mesh)
    assert mounted([link, key], mounts) == [link]


def test_a_mount_with_a_space_in_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "my mesh\\1"
    directory.mkdir()
    name = str(directory / "mesh.yaml").replace("\\", "\\134").replace(" ", "\\040")
    assert mounted([directory / "mesh.yaml"], fake_mounts(tmp_path, name)) == [directory / "mesh.yaml"]


def test_a_system_that_does_not_tell_of_mounts(tmp_path: Path) -> None:
    assert mounted([tmp_path], tmp_path / "missing") == []


def test_this_machine_s_own_mounts_can_be_read() -> None:
    assert mounted([Path("/proc")]) == ([Path("/proc")] if Path("/proc/self/mountinfo").exists() else [])
