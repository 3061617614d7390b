"""What a process of ours asks of its system before it holds a key: no core dumps, and as many descriptors as there are."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_memory_private() -> None:
    """No core dump of this process, which would put keys on a disk; and, on Linux, no look into its memory or environment
    (``/proc/PID/mem``, ptrace) for other processes of the same user, such as the app beside a sidecar."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # The limit alone does not hold where the system pipes core dumps to a program (core(5)). Should the call not be
        # allowed here, that limit is what there is.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_descriptor_limit() -> None:
    """Two descriptors a connection: take as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
