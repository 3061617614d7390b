"""What is free goes back to the system when much was freed, and only then."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sidecar.host import memory
from sidecar.host.memory import FREED_BYTES, LOOK_SECONDS, c_library, give_back

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "trims"),
    [
        ([0, 0, 0], 0),
        ([FREED_BYTES, FREED_BYTES, FREED_BYTES], 0),
        ([0, FREED_BYTES, FREED_BYTES], 1),  # once: what went back still counts as free
        ([0, FREED_BYTES - 1, FREED_BYTES], 1),  # also little by little
        ([0, FREED_BYTES - 1, FREED_BYTES - 1], 0),
        ([9 * MIB, 1 * MIB, 9 * MIB, 1 * MIB, 9 * MIB], 2),  # used, freed, used and freed again
    ],
)
async def test_it_goes_back_when_much_was_freed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, free: list[int], trims: int
) -> None:
    left, trimmed = list(free), list[None]()
    monkeypatch.setattr(memory, "c_library", lambda: (lambda: left.pop(0), lambda: trimmed.append(None)))
    began = trio.current_time()
    with pytest.raises(IndexError):  # nothing is left
        await give_back()
    assert len(trimmed) == trims
    assert trio.current_time() - began == len(free) * LOOK_SECONDS


async def test_a_system_without_such_calls_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(memory, "c_library", lambda: None)
    with trio.fail_after(1):
        await give_back()


@pytest.mark.skipif(c_library() is None, reason="not glibc")
def test_what_was_freed_behind_a_byte_in_use_leaves_the_process() -> None:
    calls = c_library()
    assert calls is not None
    free, trim = calls
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    blocks = [library.malloc(60_000) for _ in range(1_000)]
    for block in blocks:
        library.memset(block, 1, 60_000)
    before = free()
    last = blocks.pop()
    for block in blocks:
        library.free(block)
    assert free() - before > 50 * MIB
    occupied = _resident_bytes()
    trim()
    assert occupied - _resident_bytes() > 40 * MIB
    library.free(last)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
