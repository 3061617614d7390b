"""What a process sets up before it holds a key: no core dumps, private memory, and as many descriptors as allowed."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_memory_private() -> None:
    """Disables core dumps, which would write keys to a disk. On Linux it also keeps other processes of the same user, such
    as the app beside a sidecar, from the memory and environment of this process (``/proc/PID/mem``, ptrace)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # The limit has no effect where the system pipes core dumps to a program (core(5)). Where this call is not permitted,
        # the limit is the only protection.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_descriptor_limit() -> None:
    """Raises the limit of descriptors as far as the system allows. Each connection needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
