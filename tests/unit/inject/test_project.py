"""The project's files: compared, told, and written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.project import Change, diff, find_changes, read, read_text, write


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_written_and_then_nothing_to_write(tmp_path: Path) -> None:
    wanted = {"a": b"1", "mesh/sidecars/x.yaml": b"2"}
    write(tmp_path, find_changes(tmp_path, wanted))
    assert files(tmp_path) == wanted
    assert find_changes(tmp_path, wanted) == []


def test_what_is_needed_no_more_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    write(
        tmp_path,
        [Change(path, None, b"x") for path in ("mesh/sidecars/old.yaml", "mesh/image/old.whl", "mesh/mine.yaml")],
    )
    write(tmp_path, find_changes(tmp_path, {"mesh/sidecars/new.yaml": b"y"}))
    assert sorted(files(tmp_path)) == ["mesh/mine.yaml", "mesh/sidecars/new.yaml"]


def test_a_disk_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write(tmp_path, find_changes(tmp_path, {"a": b"new", "b": b"new"}))
    assert files(tmp_path) == {"a": b"old"}


def test_modes_stay(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SECRET=1")
    (tmp_path / ".env").chmod(0o600)
    write(tmp_path, find_changes(tmp_path, {".env": b"x"}))
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory"):
        with pytest.raises(UsageError, match="is no regular file"):
            read(tmp_path / name)
    assert read(tmp_path / "none") is None
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_text(tmp_path / "binary")


def test_the_diff() -> None:
    changes = [
        Change("new", None, b"1\n"),
        Change("changed", b"1\n", b"2\n"),
        Change("gone", b"1\n", None),
        Change("binary", b"\xff", b"\xfe"),
        Change("mesh/fresh", None, b"\xfe"),
        *(Change(f"mesh/sidecars/{name}", None, b"1\n") for name in "ab"),
    ]
    short = diff(changes, new_too=False).splitlines()
    assert short[:5] == ["--- a/changed", "+++ b/changed", "@@ -1 +1 @@", "-1", "+2"]
    assert short[5:7] == ["--- a/gone", "+++ /dev/null"]
    assert short[-2:] == ["changed: binary", "new: new, mesh/fresh, 2 files in mesh/sidecars"]
    assert diff(changes[:1], new_too=True).splitlines() == ["--- /dev/null", "+++ b/new", "@@ -0,0 +1 @@", "+1"]
