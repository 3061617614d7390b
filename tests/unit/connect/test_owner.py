"""Whose a local connection is: of real sockets of this process, and of lines of the kernel's tables."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.connect import owner as module
from sidecar.connect.owner import Ends, find_owner, owner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")


@pytest.mark.parametrize(
    ("family", "listen", "connect"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_a_connection_of_this_process_is_ours(family: int, listen: str, connect: str) -> None:
    with ExitStack() as stack:
        of_listener = socket.AF_INET6 if ":" in listen else socket.AF_INET
        server = stack.enter_context(socket.create_server((listen, 0), family=of_listener))
        port = server.getsockname()[1]
        client = stack.enter_context(socket.socket(family))
        client.connect((connect, port))
        here = stack.enter_context(server.accept()[0])
        ends = here.getpeername()[:2], here.getsockname()[:2]
        assert find_owner(ends) == os.getuid()
        other = (ends[0][0], ends[0][1] ^ 1), ends[1]
        assert find_owner(other) is None
        client.close()
        here.sendall(b"x")
        assert find_owner(ends) is None  # closed by its program: nobody's


LITTLE = "0100007F" if sys.byteorder == "little" else "7F000001"
MAPPED = f"0000000000000000{'FFFF0000' if sys.byteorder == 'little' else '0000FFFF'}{LITTLE}"
ENDS: Ends = ("127.0.0.1", 0xC001), ("127.0.0.1", 0x1538)


def line(local: str, remote: str, user: int, inode: int) -> str:
    return (
        f"   1: {local} {remote} 01 00000000:00000000 00:00000000 00000000  {user}        0 {inode} 1 0 20 4 30 10 -1\n"
    )


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
OURS = line(f"{LITTLE}:1538", f"{LITTLE}:C001", 0, 5)


@pytest.mark.parametrize(
    ("lines", "user"),
    [
        ([HEAD, OURS, line(f"{LITTLE}:C001", f"{LITTLE}:1538", 1000, 7)], 1000),
        ([HEAD, OURS, line(f"{MAPPED}:C001", f"{MAPPED}:1538", 33, 7)], 33),
        ([HEAD, OURS], None),
        ([HEAD, OURS, line(f"{LITTLE}:C001", f"{LITTLE}:1538", 0, 0)], None),
        ([HEAD, OURS, line(f"{LITTLE}:C002", f"{LITTLE}:1538", 1000, 7)], None),
        ([HEAD, OURS, line(f"{LITTLE}:C001", f"{LITTLE}:1539", 1000, 7)], None),
        ([HEAD, line(f"{LITTLE}:C001", f"{LITTLE}:1538", 1000, 7)[:40]], None),
        ([], None),
    ],
)
def test_lines(lines: list[str], user: int | None) -> None:
    assert owner(lines, ENDS) == user


def test_without_tables_nobody_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "TABLES", (tmp_path / "none", tmp_path))
    assert find_owner(ENDS) is None
    assert module.can_tell()
