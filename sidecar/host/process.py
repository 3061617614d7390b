"""What a process sets up before it serves: no core dumps, private memory, a short collector, and as many descriptors as
allowed; and how the descriptors are divided."""

from __future__ import annotations

import ctypes
import gc
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4  # linux/prctl.h

OTHER_DESCRIPTORS = 24
"""For everything but connections: listeners, the admin port, log, files, epoll, look-ups, the connection to the CA."""

MAX_STRANGERS = 1024
"""Each is safe for a second, so this is how many a second can come before callers wait in the backlog. A processor core does
about as many handshakes. One that was answered and does not go on holds about 80 KB."""

_MIN_STRANGERS = 64


def keep_memory_private() -> None:
    """Disables core dumps, which would write keys to a disk. On Linux it also keeps other processes of the same user, such
    as the app beside a sidecar, from the memory and environment of this process (``/proc/PID/mem``, ptrace)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # The limit has no effect where the system pipes core dumps to a program (core(5)). Where this call is not permitted,
        # the limit is the only protection.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def settle_memory() -> None:
    """Takes everything that is in memory now, modules above all, out of the work of Python's collector, and lets it look
    seldom at the rest. Otherwise each full collection looks at all of it, and every connection waits: 150 ms were measured
    while 2,000 strangers came. A connection that ends leaves nothing for the collector. Call it once, when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 1_000, 10)  # in a flood a collection takes 1 to 3 µs an object


def raise_descriptor_limit() -> None:
    """Raises the limit of descriptors as far as the system allows. Each connection needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections fit: ``strangers`` not judged yet, and ``connections`` of judged peers and of our own app."""

    strangers: int
    connections: int


def descriptor_limit() -> int:
    """How many descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def capacity(connections: int, descriptors: int) -> Capacity:
    """Divides the descriptors so that strangers never use up those of judged peers and of our own calls.

    ``connections``: how many are wanted (``limits.connections``). ``descriptors``: how many may be open. Of them

    * :data:`OTHER_DESCRIPTORS` are kept for the program itself;
    * strangers get half of the rest, one each, but no more than the wanted connections (at least 64) and
      :data:`MAX_STRANGERS`;
    * the others are for connections, two each: the peer's socket and the app's.
    """
    free = descriptors - OTHER_DESCRIPTORS
    strangers = max(1, min(free // 2, max(connections, _MIN_STRANGERS), MAX_STRANGERS))
    return Capacity(strangers, max(1, min(connections, (free - strangers) // 2)))


def shortage(connections: int, descriptors: int) -> str | None:
    """A warning if the descriptors suffice for less than nine tenths of the wanted connections; otherwise None."""
    fits = capacity(connections, descriptors)
    if fits.connections >= connections * 0.9:
        return None
    return (
        f"limits.connections is {connections}, but with {descriptors} file descriptors {fits.connections} connections fit "
        f"(two each), beside {fits.strangers} that have not proved an identity yet: raise the limit of descriptors "
        f"(ulimit -n), or lower limits.connections"
    )


def keep_loop_responsive() -> None:
    """Lets the loop's thread run again soon while another thread computes, as for a change of a large ``mesh.yaml``. The
    loop gives up the interpreter at each system call, and by default gets it back after 5 ms. Measured with 3,000 rules: the
    99th percentile of its lag falls from 20 ms to 1 ms. It costs nothing while only one thread runs."""
    sys.setswitchinterval(0.0005)


@contextmanager
def hangup_ignored() -> Iterator[None]:
    """SIGHUP, which asks for a reload, has no effect during the block where nothing inside of it receives it. By default it
    ends a process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
