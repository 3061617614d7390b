"""Free memory goes back to the system.

How this works. What was freed stays with the C library for later, for good if a few bytes behind it are in use. So a flood
of handshakes, which takes about 80 KB each, or one large ``mesh.yaml`` would leave a process at its highest size.
:func:`give_back` asks the C library now and then how much is free. If much was freed since the last time, the library is
told to return it (malloc_trim(3)). That takes about 5 ms, in a thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import trio

LOOK_SECONDS = 5.0
FREED_BYTES = 4 << 20
"""So much must have been freed since the last look, on balance."""


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3), glibc 2.33 or newer."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
        )
    ]


def c_library() -> tuple[Callable[[], int], Callable[[], object]] | None:
    """How to ask how many bytes are free in the C library, and how to return them to the system; None where it has no such
    calls."""
    library = ctypes.CDLL(None)
    try:
        info, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:
        return None
    info.restype = _Mallinfo2
    return lambda: int(info().fordblks), lambda: trim(ctypes.c_size_t(0))


async def give_back() -> None:
    """Returns free memory to the system whenever much was freed. Runs until cancelled; returns at once where the C library
    cannot do that."""
    calls = c_library()
    if calls is None:
        return
    free, trim = calls
    before = free()
    while True:
        await trio.sleep(LOOK_SECONDS)
        now = free()
        if now - before >= FREED_BYTES:
            await trio.to_thread.run_sync(trim)
            before = now
        before = min(before, now)
