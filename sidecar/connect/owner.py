"""Which user of this machine has opened a connection to one of our ports on loopback.

How this works. Everybody on a machine can connect to its loopback addresses, and a pass is one person's. Linux lists every
TCP socket with the number of its user in ``/proc/net/tcp`` and ``/proc/net/tcp6``. The caller's socket is the one whose two
addresses are ours the other way round. A socket that its program has closed already is listed as root's, without an inode:
nobody knows whose it was.

:func:`owner` is pure.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_LOCAL, _REMOTE, _USER, _INODE = 1, 2, 7, 9
_MAPPED = bytes(10) + b"\xff\xff"

Ends = tuple[tuple[str, int], tuple[str, int]]
"""The addresses of a connection: the caller's, and ours."""


def can_tell() -> bool:
    """Whether this system has such tables."""
    return sys.platform == "linux"


def find_owner(ends: Ends) -> int | None:
    """The user's number; None if no such socket is listed. It reads files of the kernel, which may be long: call it in a
    thread."""
    for path in TABLES:
        with suppress(OSError), path.open() as table:
            if (found := owner(table, ends)) is not None:
                return found
    return None


def owner(table: Iterable[str], ends: Ends) -> int | None:
    """The number of the user to whom the caller's socket belongs, by the lines of one table."""
    caller, ours = (_spellings(*end) for end in ends)
    for line in table:
        fields = line.split()
        if len(fields) > _INODE and fields[_LOCAL] in caller and fields[_REMOTE] in ours and fields[_INODE] != "0":
            return int(fields[_USER])
    return None


def _spellings(host: str, port: int) -> set[str]:
    """An address as the tables spell it: that of an IPv6 socket that has an IPv4 address, too."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    every = {packed, _MAPPED + packed} if len(packed) == 4 else {packed, packed.removeprefix(_MAPPED)}
    return {f"{_words(one)}:{port:04X}" for one in every}


def _words(packed: bytes) -> str:
    """Bytes as the kernel prints them: each four as a number of the machine."""
    parts = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(part, sys.byteorder):08X}" for part in parts)
