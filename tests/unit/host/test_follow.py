"""Followed files: a change counts once, when it has settled; what is wrong is reported once, and the last good stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.host.follow import MAX_BYTES, Follower, ReportOnce, Watch, mounted, read_all
from sidecar.identity.reasons import UsageError

A, B = Path("a"), Path("b")


def test_what_does_not_change_is_never_told() -> None:
    watch = Watch({A: b"1"})
    assert [watch.look({A: b"1"}) for _ in range(3)] == [None, None, None]


def test_a_change_is_told_once_and_only_when_it_was_seen_twice() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: b"2"}) is None
    assert watch.look({A: b"2"}) == {A: b"2"}
    assert watch.look({A: b"2"}) is None


def test_a_file_that_is_being_written_settles_first() -> None:
    watch = Watch({A: b"old"})
    assert watch.look({A: b"n"}) is None
    assert watch.look({A: b"ne"}) is None
    assert watch.look({A: b"new"}) is None
    assert watch.look({A: b"new"}) == {A: b"new"}


def test_two_files_that_belong_together_are_told_together() -> None:
    watch = Watch({A: b"certificate 1", B: b"key 1"})
    assert watch.look({A: b"certificate 1", B: b"key 2"}) is None
    assert watch.look({A: b"certificate 2", B: b"key 2"}) is None
    assert watch.look({A: b"certificate 2", B: b"key 2"}) == {A: b"certificate 2", B: b"key 2"}


def test_a_change_that_is_taken_back_before_it_settled_is_none() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: b"2"}) is None
    assert watch.look({A: b"1"}) is None
    assert watch.look({A: b"1"}) is None


def test_a_file_that_vanishes_is_a_change_and_so_is_its_return() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: None}) is None
    assert watch.look({A: None}) == {A: None}
    assert watch.look({A: b"1"}) is None
    assert watch.look({A: b"1"}) == {A: b"1"}


def test_reading_follows_renames_and_symlinks_and_bounds_what_it_takes(tmp_path: Path) -> None:
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "current"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    link.symlink_to(first)
    assert read_all([link, tmp_path / "missing", tmp_path]) == {
        link: b"one",
        tmp_path / "missing": None,
        tmp_path: None,
    }
    fresh = tmp_path / "fresh"
    fresh.symlink_to(second)
    fresh.rename(link)
    assert read_all([link]) == {link: b"two"}
    second.write_bytes(b"x" * (MAX_BYTES + 1))
    assert read_all([link]) == {link: None}


# -- reporting once ----------------------------------------------------------------------------------------------------


class Faults:
    """What was reported, in order."""

    def __init__(self, *, exact: bool = False) -> None:
        self.lines: list[str] = []
        self.once = ReportOnce[str](
            lambda topic, fault: self.lines.append(f"{topic}: {fault}"),
            lambda topic: self.lines.append(f"{topic} is mended"),
            exact=exact,
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
        self.follower = Follower(
            {name: [one] for name, one in self.paths.items()},
            self.take,
            self.faults.once,
            lambda error: self.bugs.append(type(error).__name__),
            again=again,
        )

    def load(self, name: str) -> Callable[[], int]:
        def read() -> int:
            text = self.paths[name].read_text()
            if text == "bug":
                raise ZeroDivisionError
            try:
                return int(text)
            except ValueError as error:
                raise UsageError(f"{text} is no number") from error

        return read

    async def take(self) -> None:
        self.takes += 1
        values = {name: await self.follower.attempt(name, self.load(name), self.values[name], "kept") for name in "ab"}
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
        def load() -> int:
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

    def load() -> int:
        raise UsageError("no store")

    for _ in range(4):
        assert await two.follower.attempt("store", load, 1, "kept") == 1
        await two.looks()
    assert two.takes == 1
    assert two.faults.lines == ["store: no store; kept"]


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
