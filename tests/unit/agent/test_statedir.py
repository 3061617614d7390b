"""``state_dir`` is ours alone, or it is refused with a sentence; and each file in it is whole, old or new."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.agent.statedir import MAX_BYTES, StateDir
from sidecar.identity.reasons import UsageError


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    made = StateDir(tmp_path / "state")
    yield made
    made.close()


# -- the directory -----------------------------------------------------------------------------------------------------


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = StateDir(tmp_path / "state")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    made.close()


def test_one_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    StateDir(tmp_path / "state").close()


def test_its_parent_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing: does not exist, so state_dir cannot be created in it"):
        StateDir(tmp_path / "missing" / "state")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o710, 0o701])
def test_one_that_others_can_look_into_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"can be read by others .mode {mode:04o}.; do: chmod 700 {path}"):
        StateDir(path)
    path.chmod(0o700)
    StateDir(path).close()


def test_a_symlink_is_refused_wherever_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to("real")
    with pytest.raises(UsageError, match="cannot be state_dir: is a symlink"):
        StateDir(tmp_path / "state")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot be state_dir: is a symlink"):
        StateDir(tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()
    StateDir(tmp_path / "real").close()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(UsageError, match="Not a directory; it must be a directory of its own"):
        StateDir(tmp_path / "state")


def test_another_user_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    with monkeypatch.context() as patched:
        uid = os.geteuid()
        patched.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(UsageError, match="belongs to another user, who could read the key in it"):
            StateDir(tmp_path / "state")
    StateDir(tmp_path / "state").close()


def test_it_is_one_sidecar_s_until_that_closes_it(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "state")
    with pytest.raises(UsageError, match="another sidecar is using this state_dir; each needs one of its own"):
        StateDir(tmp_path / "state")
    first.close()
    StateDir(tmp_path / "state").close()


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(UsageError):
        StateDir(tmp_path / "state")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "identity.pem.tmp").write_text("half")
    (tmp_path / "state" / "identity.pem").write_text("whole")
    StateDir(tmp_path / "state").close()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["identity.pem"]


# -- its files ---------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(state: StateDir) -> None:
    assert state.read("bundle.json") is None
    state.write("bundle.json", b"first")
    state.write("bundle.json", b"second")
    assert state.read("bundle.json") == b"second"
    assert [path.name for path in state.path.iterdir()] == ["bundle.json"]


def test_a_file_is_its_owner_s_alone_whatever_the_umask(state: StateDir) -> None:
    before = os.umask(0)
    try:
        state.write("identity.pem", b"key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((state.path / "identity.pem").stat().st_mode) == 0o600


def test_what_is_removed_is_gone_and_what_is_not_there_is_no_fault(state: StateDir) -> None:
    state.write("pending.pem", b"key")
    state.remove("pending.pem", "identity.pem")
    assert state.read("pending.pem") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_could_read_is_refused(state: StateDir, mode: int) -> None:
    state.write("identity.pem", b"key")
    file = state.path / "identity.pem"
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"can be read by others; do: chmod 600 {file}"):
        state.read("identity.pem")
    file.chmod(0o600)
    assert state.read("identity.pem") == b"key"


def test_another_user_s_file_is_refused(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write("identity.pem", b"key")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(UsageError, match="can be read by others"):
        state.read("identity.pem")


def test_a_symlink_in_a_file_s_place_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    (tmp_path / "other").touch(0o600)
    (tmp_path / "other").write_bytes(b"somebody else's")
    (state.path / "identity.pem").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="a symlink is not followed"):
        state.read("identity.pem")
    state.write("identity.pem", b"ours")  # replaces the link, and not what it leads to
    assert (tmp_path / "other").read_bytes() == b"somebody else's"
    assert state.read("identity.pem") == b"ours"


def test_a_symlink_in_the_way_of_a_write_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"somebody else's")
    (state.path / "identity.pem.tmp").symlink_to(tmp_path / "other")
    state.write("identity.pem", b"ours")
    assert (tmp_path / "other").read_bytes() == b"somebody else's"


def test_a_fifo_is_refused_and_not_waited_for(state: StateDir) -> None:
    os.mkfifo(state.path / "identity.pem", 0o600)
    with pytest.raises(UsageError, match="is not a regular file"):
        state.read("identity.pem")


def test_a_file_larger_than_any_of_ours_is_refused(state: StateDir) -> None:
    state.write("bundle.json", b"x" * MAX_BYTES)
    assert state.read("bundle.json") == b"x" * MAX_BYTES
    state.write("bundle.json", b"x" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="is larger than 4 MiB, so this program did not write it"):
        state.read("bundle.json")


def test_the_directory_that_was_checked_is_the_one_that_is_written_to(state: StateDir, tmp_path: Path) -> None:
    """Also after somebody has put another in its place."""
    state.path.rename(tmp_path / "moved")
    (tmp_path / "trap").mkdir()
    state.path.symlink_to(tmp_path / "trap")
    state.write("identity.pem", b"key")
    assert list((tmp_path / "trap").iterdir()) == []
    assert (tmp_path / "moved" / "identity.pem").read_bytes() == b"key"


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_and_no_litter(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    state.write("identity.pem", b"old")
    real: Callable[..., int] = getattr(os, call)

    def full(*args: object, **options: object) -> int:
        if call == "open" and not str(args[0]).endswith(".tmp"):
            return real(*args, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            state.write("identity.pem", b"new")
    assert state.read("identity.pem") == b"old"
    assert [path.name for path in state.path.iterdir()] == ["identity.pem"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real: Callable[..., None] = getattr(os, name)

        def call(*args: object, **options: object) -> None:
            calls.append(name)
            real(*args, **options)

        return call

    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, noted(name))
    state.write("identity.pem", b"key")
    assert calls == ["fsync", "rename", "fsync"]
