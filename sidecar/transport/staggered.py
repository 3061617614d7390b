"""The first of several attempts that succeeds, the attempts staggered (RFC 8305, "Happy Eyeballs").

How this works. A name may have several addresses, and some may be dead: an IPv6 address where IPv6 is broken, one of two
hosts that is down. An address that swallows what it is sent fails only after a long time. So :func:`first` starts the
attempt at the next address as soon as the latest one has failed, or after :data:`DELAY_SECONDS` without a result. The first
attempt that succeeds ends all others. What an attempt covers is the caller's choice: a TCP connection, or the TLS handshake
too, and then an address where something else answers ends nothing either.

The invariants:

* At most one result leaves :func:`first`. Every other result, also one that comes at the same moment or in spite of its
  cancellation, is given to ``discard``: no socket is left open.
* An exception that is no fault of a target (a bug) ends all attempts and is raised as it is, not in a group.
* It has no deadline of its own: the caller sets one over all attempts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

import trio

DELAY_SECONDS = 0.25
"""How long one attempt may take before the next starts beside it: the Connection Attempt Delay of RFC 8305 5 and 8."""

_Target = TypeVar("_Target")
_Result = TypeVar("_Result")


class AllFailedError(Exception):
    """No attempt succeeded. ``faults``: why, in the order in which they failed; empty if there was no target."""

    def __init__(self, faults: Sequence[Exception]) -> None:
        super().__init__("; ".join(map(str, faults)) or "there was nothing to try")
        self.faults = tuple(faults)


async def first(
    targets: Iterable[_Target],
    attempt: Callable[[_Target], Awaitable[_Result]],
    discard: Callable[[_Result], object],
    *,
    faults: tuple[type[Exception], ...] = (OSError,),
    delay: float = DELAY_SECONDS,
) -> _Result:
    """The result of the first attempt that succeeds. Targets are tried in their order.

    ``attempt`` must clean up after itself when it fails or is cancelled. ``faults``: what it raises where a target does not
    work. ``discard`` closes a result that is not needed. Raises :class:`AllFailedError`.
    """
    return await _Race(attempt, discard, faults).run(targets, delay)


def interleaved(addresses: Iterable[_Target], family: Callable[[_Target], object]) -> list[_Target]:
    """The addresses with their families in turn, beginning with the family of the first (RFC 8305 4). Otherwise a name with
    many addresses of one broken family would hide the other family behind all of them. Doubles are left out."""
    families: dict[object, list[_Target]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(family(address), []).append(address)
    longest = max(map(len, families.values()), default=0)
    return [one[at] for at in range(longest) for one in families.values() if at < len(one)]


class _Race(Generic[_Target, _Result]):
    def __init__(
        self,
        attempt: Callable[[_Target], Awaitable[_Result]],
        discard: Callable[[_Result], object],
        faults: tuple[type[Exception], ...],
    ) -> None:
        self._attempt = attempt
        self._discard = discard
        self._kinds = faults
        self._faults: list[Exception] = []
        self._bug: Exception | None = None
        self._won: list[_Result] = []  # one at most
        self._over = trio.CancelScope()

    async def run(self, targets: Iterable[_Target], delay: float) -> _Result:
        try:
            with self._over:
                async with trio.open_nursery() as nursery:
                    for target in targets:
                        failed = trio.Event()
                        nursery.start_soon(self._try, target, failed)
                        with trio.move_on_after(delay):
                            await failed.wait()
            if self._bug is not None:
                raise self._bug
        except BaseException:
            # A bug in one attempt, after another had succeeded.
            for result in self._won:
                self._discard(result)
            raise
        if not self._won:
            raise AllFailedError(self._faults)
        return self._won[0]

    async def _try(self, target: _Target, failed: trio.Event) -> None:
        try:
            result = await self._attempt(target)
        except self._kinds as fault:
            self._faults.append(fault)
            failed.set()
        except Exception as bug:
            self._bug = bug
            self._over.cancel()
        else:
            if self._won:
                self._discard(result)
            else:
                self._won.append(result)
                self._over.cancel()
