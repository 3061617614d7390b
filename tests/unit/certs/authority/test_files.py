"""Files of keys and certificates: whole or not at all, and nobody else's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certs.authority import files
from sidecar.host import atomic
from sidecar.host.atomic import PUBLIC, SECRET, NewFile
from sidecar.identity.reasons import UsageError
from tests.commands import ran, refused

TWO = [NewFile("a.key", b"secret", SECRET), NewFile("a.pem", b"public", PUBLIC)]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.usefixtures("no_umask")
def test_modes_hold_under_any_umask(tmp_path: Path) -> None:
    made = tmp_path / "x" / "y"
    files.make_directory(made)
    files.write(made, TWO, force=False)
    assert [mode(path) for path in (tmp_path / "x", made, made / "a.key", made / "a.pem")] == [
        0o700,
        0o700,
        0o600,
        0o644,
    ]
    assert content(made) == {"a.key": b"secret", "a.pem": b"public"}


@pytest.mark.usefixtures("no_umask")
def test_a_key_is_never_readable_by_others_not_even_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_mode))
    files.write(tmp_path, TWO[:1], force=False)
    assert {stat.S_IMODE(each) for each in seen if stat.S_ISREG(each)} == {0o600}


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    files.write(tmp_path, TWO[:1], force=False)
    with pytest.raises(UsageError, match=r"already there: .*a\.key; nothing was written"):
        files.write(tmp_path, [TWO[1], NewFile("a.key", b"new", SECRET)], force=False)
    assert content(tmp_path) == {"a.key": b"secret"}
    files.write(tmp_path, [NewFile("a.key", b"new", SECRET)], force=True)
    assert content(tmp_path) == {"a.key": b"new"}


def test_a_forced_key_does_not_inherit_the_old_one_s_mode(tmp_path: Path) -> None:
    (tmp_path / "a.key").touch(mode=0o644)
    files.write(tmp_path, TWO, force=True)
    assert mode(tmp_path / "a.key") == 0o600


@pytest.mark.parametrize("force", [False, True])
def test_symlinks_and_directories_are_not_overwritten(tmp_path: Path, force: bool) -> None:
    target = tmp_path / "target"
    for name in ("link", "dangling", "directory"):
        out = tmp_path / name
        out.mkdir()
        if name == "directory":
            (out / "a.pem").mkdir()
        else:
            (out / "a.pem").symlink_to(target)
        with pytest.raises(UsageError):
            files.write(out, TWO, force=force)
        assert not target.exists() or target.read_bytes() == b"untouched"
        assert [path.name for path in out.iterdir()] == ["a.pem"]
        target.write_bytes(b"untouched")


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path, [NewFile("a.pem", b"old", PUBLIC)], force=False)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        files.write(tmp_path, TWO, force=True)
    assert content(tmp_path) == {"a.pem": b"old"}


def test_half_of_a_set_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.rename, []

    def failing(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(*arguments, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(UsageError, match="Input/output error"):
        files.write(tmp_path, TWO, force=False)
    assert content(tmp_path) == {}


def test_an_interrupt_takes_back_too_and_stays_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "sync_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path, TWO, force=False)
    assert content(tmp_path) == {}


def test_reading(tmp_path: Path) -> None:
    files.write(tmp_path, TWO, force=False)
    assert files.read(tmp_path / "a.key", secret=True) == b"secret"
    assert files.read(tmp_path / "a.pem") == b"public"
    (tmp_path / "most").write_bytes(b"x" * files.MAX_BYTES)
    assert len(files.read(tmp_path / "most")) == files.MAX_BYTES


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601, 0o644, 0o660])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, bits: int) -> None:
    key = tmp_path / "a.key"
    key.write_bytes(b"secret")
    key.chmod(bits)
    for check in (lambda: files.read(key, secret=True), lambda: files.check_secret(key)):
        with pytest.raises(UsageError, match=r"chmod 600 .*a\.key") as refused:
            check()
        assert "secret" not in str(refused.value).replace("a.key", "")
    key.chmod(0o400)
    assert files.read(key, secret=True) == b"secret"
    files.check_secret(key)


def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (files.MAX_BYTES + 1))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (
        ("large", "larger than 64 KiB"),
        ("fifo", "not a regular file"),
        ("directory", "directory"),
        ("missing", "No such file"),
        ("loop", "symbolic links"),
    ):
        with pytest.raises(UsageError, match=why):
            files.read(tmp_path / name)


def test_a_missing_secret_is_no_secret_told(tmp_path: Path) -> None:
    files.check_secret(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="cannot check"):
        files.check_secret(tmp_path / "loop")


def test_missing_names(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("nowhere")
    assert files.missing(tmp_path, ["a", "b", "c"]) == ["c"]


def test_directories_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot make the directory"):
            files.make_directory(path)
    with pytest.raises(UsageError, match="cannot open the directory"), files.locked(tmp_path / "none", exclusive=False):
        pass


def test_a_directory_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="chmod o-w"), files.locked(tmp_path, exclusive=False):
        pass
    tmp_path.chmod(0o775)
    with files.locked(tmp_path, exclusive=False):
        pass


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it another user's."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def test_what_is_another_user_s_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_owner(tmp_path)
    with pytest.raises(UsageError, match="cannot check"):
        files.check_owner(tmp_path / "none")
    give_away(tmp_path, monkeypatch)
    with pytest.raises(
        UsageError, match=r"belongs to another user \(.+\), who could replace what is in it: run this as"
    ):
        files.check_owner(tmp_path)


def test_what_is_root_s_is_anybody_s_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    files.check_owner(Path("/"))


@pytest.mark.parametrize("name", ["", "store.db"])
def test_a_ca_or_store_of_another_user_is_neither_used_nor_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")
    ran("issue", "ca", "web", "--out", "web")
    give_away(tmp_path / "ca" / name, monkeypatch)
    commands = [["issue", "ca", "web", "--out", "other"], ["enrolment", "ca", "web"], ["revoke", "ca", "web"]]
    if not name:
        commands += [["renew-issuing", "ca"], ["init", "ca", "--trust-domain", "shop.internal", "--force"]]
    for words in commands:
        assert "as that user" in refused(*words), words
    assert not Path("other").exists()


@pytest.mark.parametrize("mode_", [0o660, 0o602])
def test_a_store_that_others_may_write_to_is_refused(
    mode_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")
    Path("ca/store.db").chmod(mode_)
    assert "others may write to it: chmod 600 ca/store.db" in refused("list", "ca")
    Path("ca/store.db").chmod(0o640)
    ran("list", "ca")


def test_who_writes_waits_for_who_reads_at_this_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = files.locked(tmp_path, exclusive=False)
    reading.__enter__()
    monkeypatch.setattr("certs.authority.files.time.sleep", lambda _: reading.__exit__(None, None, None))
    with files.locked(tmp_path, exclusive=True):
        pass


def test_one_writer_or_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WRITER_WAITS_SECONDS", 0.05)

    def is_free(*, exclusive: bool) -> bool:
        try:
            with files.locked(tmp_path, exclusive=exclusive):
                return True
        except UsageError as error:
            return "try again" not in str(error)

    with files.locked(tmp_path, exclusive=False):
        assert is_free(exclusive=False)
        assert not is_free(exclusive=True)
    with files.locked(tmp_path, exclusive=True):
        assert not is_free(exclusive=False)
    assert is_free(exclusive=True)
