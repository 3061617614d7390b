"""Which sockets are ready: edge-triggered epoll on Linux, level-triggered ``selectors`` elsewhere.

How this works. A poller reports that a registered descriptor became readable or writable. The relay keeps that until a call
would block, then calls :meth:`Poller.rearm`. Edge-triggered epoll needs no re-arming: the next edge is reported by itself
(epoll(7)). The level-triggered poller would report the same readiness again and again, so it stops watching what it has
reported until it is re-armed. The relay sees the same behaviour from both.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Iterable
from itertools import product
from typing import Any, Protocol

READABLE, WRITABLE, BROKEN, ENDED, RESET = 1, 2, 4, 8, 16
"""Bits of an event. ``ENDED``: a FIN or urgent data has arrived, so a short read does not mean that nothing is left.
``BROKEN``: reset, or closed in both directions. ``RESET``: reset, or timed out, unless a call has reported that already. A
poller that cannot detect these leaves them out."""


class Poller(Protocol):
    """``fileno()`` is readable while :meth:`poll` has events to report, so trio can wait for it."""

    def add(self, descriptor: int, /) -> None: ...
    def remove(self, descriptor: int, /) -> None: ...
    def rearm(self, descriptor: int, what: int, /) -> None: ...
    def poll(self) -> Iterable[tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class EdgePoller:
    """Linux: one ``epoll_ctl`` per descriptor for its whole life, see epoll(7)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close
        self.remove = self._epoll.unregister

    def add(self, descriptor: int) -> None:
        self._epoll.register(descriptor, _WATCHED)

    def rearm(self, descriptor: int, what: int) -> None:
        pass

    def poll(self) -> list[tuple[int, int]]:
        return [(descriptor, _EVENTS[flags & _EVENT_MASK]) for descriptor, flags in self._epoll.poll(0, 256)]


class LevelPoller:
    """Any system whose ``selectors`` have a descriptor to wait for (kqueue, epoll)."""

    def __init__(self) -> None:
        self._selector: Any = selectors.DefaultSelector()
        self._armed: dict[int, int] = {}

    def fileno(self) -> int:
        number: int = self._selector.fileno()
        return number

    def close(self) -> None:
        self._selector.close()

    def add(self, descriptor: int) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ | selectors.EVENT_WRITE)
        self._armed[descriptor] = selectors.EVENT_READ | selectors.EVENT_WRITE

    def remove(self, descriptor: int) -> None:
        if self._armed.pop(descriptor):
            self._selector.unregister(descriptor)

    def rearm(self, descriptor: int, what: int) -> None:
        armed = self._armed[descriptor]
        wanted = armed | (what & (READABLE | WRITABLE))
        if wanted != armed:
            self._watch(descriptor, armed, wanted)

    def poll(self) -> list[tuple[int, int]]:
        events = []
        for key, ready in self._selector.select(0):
            events.append((key.fd, ready))
            armed = self._armed[key.fd]
            self._watch(key.fd, armed, armed & ~ready)
        return events

    def _watch(self, descriptor: int, armed: int, wanted: int) -> None:
        self._armed[descriptor] = wanted
        if not wanted:
            self._selector.unregister(descriptor)
        elif armed:
            self._selector.modify(descriptor, wanted)
        else:
            self._selector.register(descriptor, wanted)


def make_poller() -> Poller:
    """The fastest poller that this system has."""
    return EdgePoller() if hasattr(select, "epoll") else LevelPoller()


def _event(flags: int) -> int:
    broken = bool(flags & (select.EPOLLHUP | select.EPOLLERR))
    return (
        (READABLE if broken or flags & (select.EPOLLIN | select.EPOLLRDHUP) else 0)
        | (WRITABLE if broken or flags & select.EPOLLOUT else 0)
        | (ENDED if flags & (select.EPOLLRDHUP | select.EPOLLPRI) else 0)
        | (BROKEN if broken else 0)
        | (RESET if flags & select.EPOLLERR else 0)
    )


if hasattr(select, "epoll"):
    _FLAGS = (select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLPRI, select.EPOLLHUP, select.EPOLLERR)
    _EVENT_MASK = sum(_FLAGS)
    _WATCHED = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
    # A table of all 64 combinations: an event costs one look-up.
    _EVENTS = {flags: _event(flags) for flags in map(sum, product(*((0, flag) for flag in _FLAGS)))}
