"""One connection, from accept to close, as a plain generator: no task of trio.

How this works. A task costs as much as a third of all that a short connection needs. So a connection is a generator that
reads from top to bottom like an ``async`` function, and yields what it waits for:

* :class:`Ready`: a socket is ready, or a deadline has passed. It is resumed with whether the socket is ready.
* :class:`Carry`: the relay moves bytes until the stream ends. It is resumed with how, or the bug is raised in it.
* :class:`Called`: something calls back. It is resumed with the answer.
* a function without arguments that returns an awaitable: everything else that takes time (a look-up, several addresses
  at once). A task of trio runs it, for so long only. It is resumed with the result, or the exception is raised in it.

A :class:`Strand` resumes it, from the relay's pass or from the task that ends. :meth:`Strand.stop` raises :class:`Stopped`
where it waits; what a generator must give back it gives back in ``finally``, without waiting there. The same generator, if
it has nothing carried, also runs inside a task: :func:`run`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, Union

import trio

from sidecar.relay.duplex import Duplex
from sidecar.relay.poller import READABLE
from sidecar.relay.relay import Link, Outcome, Relay, Wait


@dataclass(frozen=True, slots=True)
class Ready:
    """Waits for a socket to be ready for ``what`` (``READABLE`` or ``WRITABLE``), which it may be already, and until a time
    of the loop's clock; the end of it is noticed within a second."""

    sock: socket.socket
    what: int = READABLE
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Carry:
    """Has the relay carry a stream, see :meth:`Relay.carry`."""

    duplex: Duplex
    net: socket.socket
    app: socket.socket
    idle_timeout: float | None
    max_age: float | None


@dataclass(frozen=True, slots=True)
class Called:
    """Waits until something calls back. ``begin`` gets what it is to call, once and not before ``begin`` returns; and
    returns what ends that, if nobody waits any more."""

    begin: Callable[[Callable[[bool], object]], Callable[[], object]]


Request = Union[Ready, Carry, Called, Callable[[], Awaitable[Any]]]  # noqa: UP007 (`|` does not take a Callable at run time)
T = TypeVar("T")
Steps = Generator[Request, Any, T]
"""A generator of these, which returns a T."""


class Stopped(BaseException):
    """The strand is to end now. No ``Exception``: nobody takes it for a fault of the connection."""


class Strand:
    """Runs one generator. ``ended`` is called once, when it has: with the exception that it should have caught, if any."""

    __slots__ = (
        "_ended", "_forgo", "_next", "_nursery", "_relay", "_running", "_scope", "_steps", "_stopped", "_waits",
    )  # fmt: skip

    def __init__(
        self, relay: Relay, nursery: trio.Nursery, steps: Steps[None], ended: Callable[[Exception | None], object]
    ) -> None:
        self._relay, self._nursery, self._steps, self._ended = relay, nursery, steps, ended
        self._waits: Link | Wait | None = None
        self._scope: trio.CancelScope | None = None
        self._forgo: Callable[[], object] | None = None
        self._next: tuple[Any, BaseException | None] | None = None
        self._running = self._stopped = False

    def start(self) -> None:
        """Runs it until it waits for the first time."""
        self._resume(None)

    def stop(self) -> None:
        """Ends it, now or as soon as it waits next. Further calls do nothing."""
        if self._stopped:
            return
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()
        elif self._waits is not None:
            self._relay.stop(self._waits)
            self._resume(None, Stopped())
        elif self._forgo is not None:
            self._forgo()
            self._resume(None, Stopped())

    def _resume(self, value: Any, error: BaseException | None = None) -> None:
        """Continues until it waits. What comes at once, while this runs, is taken up by the loop: no recursion."""
        self._waits = self._scope = self._forgo = None
        self._next = value, error
        if self._running:
            return
        self._running = True
        try:
            while self._next is not None:
                value, error = self._next
                self._next = None
                wanted = self._steps.send(value) if error is None else self._steps.throw(error)
                value = error = None
                if self._stopped:
                    self._next = None, Stopped()
                else:
                    self._begin(wanted)
        except (StopIteration, Stopped):
            self._end(None)
        except Exception as bug:
            self._end(bug)
        finally:
            self._running = False
            error = None  # its traceback holds this frame: a cycle

    def _begin(self, wanted: Request) -> None:
        if isinstance(wanted, Carry):
            link = self._relay.carry(
                wanted.duplex,
                wanted.net,
                wanted.app,
                self._carried,
                idle_timeout=wanted.idle_timeout,
                max_age=wanted.max_age,
            )
            self._waits = None if link.over else link
        elif isinstance(wanted, Ready):
            self._waits = self._relay.wait(wanted.sock, wanted.what, wanted.until, self._resume)
        elif isinstance(wanted, Called):
            self._forgo = wanted.begin(self._resume)
        else:
            self._scope = trio.CancelScope()
            self._nursery.start_soon(self._await, wanted, self._scope)

    def _carried(self, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self._resume(None, outcome)
        else:
            self._resume(outcome)

    async def _await(self, function: Callable[[], Awaitable[Any]], scope: trio.CancelScope) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            with scope:
                try:
                    value = await function()
                except Exception as caught:
                    error = caught
            if scope.cancelled_caught:
                error = Stopped()
        except BaseException:  # everything ends
            self._stopped = True
            self._resume(None, Stopped())
            raise
        try:
            self._resume(value, error)
        finally:
            value = error = None  # a traceback holds this frame: a cycle

    def _end(self, bug: Exception | None) -> None:
        ended, self._ended = self._ended, _nothing
        self._steps.close()
        ended(bug)


def _nothing(_: Exception | None) -> None:
    return


async def run(steps: Steps[T]) -> T:
    """Runs a generator that has nothing carried inside a task. If the task is cancelled, that is raised in the generator."""
    resume: Callable[[], Request] = partial(next, steps)
    try:
        while True:
            wanted = resume()
            try:
                answer = await _answer(wanted)
            except BaseException as error:
                resume = partial(steps.throw, error)
            else:
                resume = partial(steps.send, answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def _answer(wanted: Request) -> Any:
    if isinstance(wanted, Ready):
        return await _is_ready(wanted)
    if isinstance(wanted, Called):
        return await _is_called(wanted)
    assert not isinstance(wanted, Carry)  # noqa: S101 (only a strand has a relay)
    return await wanted()


async def _is_called(wanted: Called) -> bool:
    come, answers = trio.Event(), list[bool]()

    def called(answer: bool) -> None:
        answers.append(answer)
        come.set()

    forgo = wanted.begin(called)
    try:
        await come.wait()
    finally:
        forgo()
    return answers[0]


async def _is_ready(wanted: Ready) -> bool:
    with trio.move_on_at(wanted.until) as limit:
        if wanted.what == READABLE:
            await trio.lowlevel.wait_readable(wanted.sock)
        else:
            await trio.lowlevel.wait_writable(wanted.sock)
    return not limit.cancelled_caught
