"""Regular files are read whole; what is none is refused, never waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar.documents.regular import IrregularError, read_regular


def test_a_file_is_read_up_to_a_byte_more_than_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert [read_regular(file, limit).content for limit in (3, 4, 5, 9)] == [b"1234", b"12345", b"12345", b"12345"]
    assert read_regular(file, 9).access[1:] == (os.getuid(), os.getgid())


@pytest.mark.parametrize("what", ["fifo", "device", "socket", "directory"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    if what == "fifo":
        os.mkfifo(path)  # to open it as any other file waits for a writer
    elif what == "device":
        path = Path("/dev/zero")
    elif what == "directory":
        path = tmp_path
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.close()
    with pytest.raises((IrregularError, OSError)) as refused:
        read_regular(path, 9)
    expected = {"directory": "Is a directory", "socket": "No such device or address"}
    assert expected.get(what, "Not a regular file") in str(refused.value)


def test_a_link_is_followed_unless_it_must_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    assert read_regular(link, 9).content == b"1"
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(link, 9, follow=False)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    (tmp_path / "file").write_bytes(b"1")
    read_regular(tmp_path / "file", 9)
    with pytest.raises(IrregularError):
        read_regular(tmp_path, 9)
    assert opened() == before
