"""Files are there whole, old or new, at whichever step the process ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.host.atomic import PUBLIC, SECRET, NewFile, remove_unfinished, write_files


class Killed(BaseException):
    """The process ends here."""


STEPS = ("open", "fsync", "rename", "close")


class Fuse:
    """Fails at the ``at``-th of the calls that change a disk, with ``error``; ``called`` are those that were made."""

    def __init__(
        self, patch: pytest.MonkeyPatch, at: int, error: BaseException, steps: tuple[str, ...] = STEPS
    ) -> None:
        self.called: list[str] = []
        for name in steps:
            patch.setattr(os, name, self._guard(name, getattr(os, name), at, error))

    def _guard(self, name: str, step: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.called.append(name)
            if len(self.called) == at:
                raise error
            return step(*arguments, **options)

        return guarded


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def content(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def two(what: bytes) -> list[NewFile]:
    return [NewFile("a", what, SECRET), NewFile("b", what, PUBLIC)]


def test_files_and_their_modes_whatever_the_umask(tmp_path: Path, directory: int) -> None:
    before = os.umask(0)
    try:
        write_files(two(b"x"), dir_fd=directory)
    finally:
        os.umask(before)
    assert content(tmp_path) == {"a": b"x", "b": b"x"}
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o600, 0o644]


def test_a_key_is_never_readable_by_others_not_even_before_it_has_its_name(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_mode))
    before = os.umask(0)
    try:
        write_files(two(b"x")[:1], dir_fd=directory)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each) for each in seen if stat.S_ISREG(each)} == {0o600}


def test_paths_in_several_directories(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write_files([NewFile(str(tmp_path / name), name.encode(), PUBLIC) for name in ("a", "below/b")])
    assert content(tmp_path) == {"a": b"a", "below/b": b"below/b"}


def test_all_are_on_the_disk_before_the_first_has_its_name_and_then_the_names_are(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fuse = Fuse(patch, 0, Killed(), ("fsync", "rename"))
        write_files(two(b"x"), dir_fd=directory)
    assert fuse.called == ["fsync", "fsync", "rename", "rename", "fsync"]


def test_each_directory_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    write_files([NewFile(str(tmp_path / name), b"", PUBLIC) for name in ("a", "below/b", "c")])
    assert [path for path in synced if path.is_dir()] == [tmp_path, tmp_path / "below"]


@pytest.mark.parametrize("at", range(1, 12))
def test_killed_at_any_step_each_file_is_whole(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write_files(two(b"old"), dir_fd=directory)
    with monkeypatch.context() as patch:
        fuse = Fuse(patch, at, Killed(), ("open", "fsync", "rename"))
        try:
            write_files(two(b"new"), dir_fd=directory)
            ended = True
        except Killed:
            ended = False
    found = content(tmp_path)
    assert found.keys() == {"a", "b"}, "and nothing else is left"
    assert set(found.values()) <= {b"old", b"new"}
    assert (found["a"], found["b"]) != (b"old", b"new"), "in the order given"
    if "rename" not in fuse.called[: at - 1]:
        assert set(found.values()) == {b"old"}
    if ended:
        assert set(found.values()) == {b"new"}


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
@pytest.mark.parametrize("take_back", [False, True])
def test_a_disk_that_fails_at_the_first_file_changes_nothing(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch, call: str, take_back: bool
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        Fuse(patch, 1, OSError(28, "No space left on device"), (call,))
        with pytest.raises(OSError, match="No space left"):
            write_files(two(b"new"), dir_fd=directory, take_back=take_back)
    assert content(tmp_path) == {"a": b"old"}


def test_half_of_a_set_is_taken_back_only_where_asked(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for take_back, left in ((True, {}), (False, {"a": b"new"})):
        with monkeypatch.context() as patch:
            Fuse(patch, 2, OSError(5, "Input/output error"), ("rename",))
            with pytest.raises(OSError, match="Input/output"):
                write_files(two(b"new"), dir_fd=directory, take_back=take_back)
        assert content(tmp_path) == left


def test_a_symlink_in_a_file_s_place_is_replaced_and_not_followed(tmp_path: Path, directory: int) -> None:
    (tmp_path / "other").write_bytes(b"somebody else's")
    (tmp_path / "a").symlink_to("other")
    write_files(two(b"x")[:1], dir_fd=directory)
    assert content(tmp_path) == {"a": b"x", "other": b"somebody else's"}
    assert not (tmp_path / "a").is_symlink()


def test_a_symlink_in_the_way_of_a_temporary_file_is_not_followed(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.host.atomic.secrets.token_hex", lambda _: "guessed")
    (tmp_path / "other").write_bytes(b"somebody else's")
    (tmp_path / ".a.guessed.tmp").symlink_to("other")
    with pytest.raises(FileExistsError):
        write_files(two(b"x")[:1], dir_fd=directory)
    assert (tmp_path / "other").read_bytes() == b"somebody else's"
    assert not (tmp_path / "a").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path, directory: int) -> None:
    (tmp_path / ".a.0123.tmp").write_bytes(b"half")
    (tmp_path / "a").write_bytes(b"whole")
    remove_unfinished(directory)
    assert content(tmp_path) == {"a": b"whole"}


def test_what_is_left_is_what_is_removed(tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed cleans up nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *_, **__: None)
        Fuse(patch, 1, Killed(), ("rename",))
        with pytest.raises(Killed):
            write_files(two(b"x"), dir_fd=directory)
    assert len(content(tmp_path)) == 2
    remove_unfinished(directory)
    assert content(tmp_path) == {}
