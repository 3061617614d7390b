"""What is its owner's alone, and what is no file to be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.documents.regular import Regular
from sidecar.host.private import Alone, Unfit, UnfitError, exposure, read_checked, read_file


def status(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 100, 0, 0, 0))


@pytest.fixture
def _user_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("_user_1000")
@pytest.mark.parametrize(
    ("mode", "owner", "by_mode", "ours", "ours_or_group_s"),
    [
        (0o600, 1000, None, None, None),
        (0o400, 1000, None, None, None),
        (0o700, 1000, None, None, None),
        (0o640, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        (0o620, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        (0o610, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        (0o604, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        (0o602, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        (0o601, 1000, Unfit.SHARED, Unfit.SHARED, Unfit.SHARED),
        # Another user's
        (0o600, 1001, None, Unfit.FOREIGN, None),
        (0o644, 1001, Unfit.SHARED, Unfit.FOREIGN, Unfit.SHARED),
        # Root's: PostgreSQL's rule lets one group read it
        (0o640, 0, Unfit.SHARED, Unfit.FOREIGN, None),
        (0o440, 0, Unfit.SHARED, Unfit.FOREIGN, None),
        (0o660, 0, Unfit.SHARED, Unfit.FOREIGN, Unfit.SHARED),
        (0o650, 0, Unfit.SHARED, Unfit.FOREIGN, Unfit.SHARED),
        (0o644, 0, Unfit.SHARED, Unfit.FOREIGN, Unfit.SHARED),
    ],
)
def test_what_is_its_owner_s_alone(
    mode: int, owner: int, by_mode: Unfit | None, ours: Unfit | None, ours_or_group_s: Unfit | None
) -> None:
    found = status(mode, owner)
    assert exposure(found, Alone.BY_MODE) is by_mode
    assert exposure(found, Alone.OURS) is ours
    assert exposure(found, Alone.OURS_OR_GROUPS) is ours_or_group_s


def test_a_process_of_root_s_takes_no_key_that_a_group_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert exposure(status(0o640, 0), Alone.OURS_OR_GROUPS) is Unfit.SHARED
    assert exposure(status(0o600, 0), Alone.OURS_OR_GROUPS) is None


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(b"secret")
    return path


def unfit(path: Path, limit: int = 10, alone: Alone | None = None) -> Unfit:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(UnfitError) as refused:
        read_file(path, limit, alone)
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"  # noqa: PTH208
    return refused.value.unfit


def test_what_is_fit_is_read(key: Path) -> None:
    for alone in (None, *Alone):
        assert read_file(key, 6, alone) == b"secret"


def test_one_that_others_can_read_is_read_only_where_that_does_not_matter(key: Path) -> None:
    key.chmod(0o604)
    assert read_file(key, 6) == b"secret"
    for alone in Alone:
        assert unfit(key, alone=alone) is Unfit.SHARED


def test_another_user_s_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1)
    assert unfit(key, alone=Alone.OURS) is Unfit.FOREIGN
    assert read_file(key, 6, Alone.BY_MODE) == b"secret"


def test_no_more_is_read_than_the_limit(key: Path) -> None:
    assert unfit(key, 5) is Unfit.TOO_LARGE


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    for name in ("fifo", "directory"):
        assert unfit(tmp_path / name) is Unfit.IRREGULAR
        assert unfit(tmp_path / name, alone=Alone.OURS) is Unfit.IRREGULAR


def test_a_symlink_is_followed_unless_it_must_not_be(key: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(key)
    assert read_file(tmp_path / "link", 6, Alone.BY_MODE) == b"secret"
    with pytest.raises(OSError, match="symbolic links"):
        read_file(tmp_path / "link", 6, Alone.BY_MODE, follow=False)


def test_a_name_is_looked_up_in_the_directory_that_was_opened(key: Path, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert read_file("key", 6, dir_fd=descriptor) == b"secret"
        with pytest.raises(FileNotFoundError):
            read_file("none", 6, dir_fd=descriptor)
    finally:
        os.close(descriptor)


# -- secret mounts -----------------------------------------------------------------------------------------------------


def mounted_secret(mode: int = 0o444, *, read_only: bool = True, device: int = -1) -> Regular:
    found = os.stat_result((stat.S_IFREG | mode, 0, device, 1, 0, 0, 100, 0, 0, 0))
    return Regular(b"secret", found, read_only=read_only, access=(mode, 0, 0))


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o440])
def test_a_secret_mount_s_mode_cannot_be_changed_and_is_taken(mode: int) -> None:
    found = mounted_secret(mode)
    assert read_checked(lambda: found, 9, Alone.OURS_OR_GROUPS) == b"secret"


@pytest.mark.parametrize(
    ("found", "alone"),
    [
        (mounted_secret(read_only=False), Alone.OURS_OR_GROUPS),
        (mounted_secret(0o446), Alone.OURS_OR_GROUPS),
        (mounted_secret(0o464), Alone.OURS_OR_GROUPS),
        (mounted_secret(0o445), Alone.OURS_OR_GROUPS),
        (mounted_secret(0o454), Alone.OURS_OR_GROUPS),
        (mounted_secret(device=Path("/").stat().st_dev), Alone.OURS_OR_GROUPS),
        (mounted_secret(), Alone.BY_MODE),
    ],
)
def test_and_nothing_else_that_others_can_read(found: Regular, alone: Alone) -> None:
    with pytest.raises(UnfitError) as refused:
        read_checked(lambda: found, 9, alone)
    assert refused.value.unfit is Unfit.SHARED
