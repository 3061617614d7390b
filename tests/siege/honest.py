"""The honest traffic, and the probes that show stalls. Open loop: each call is due at a time of its own, whatever became of
those before it, and how long it took is counted from there (as wrk2 does it): a stall shows in every call that it delays."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from certs.protocol.client import CaClient, CaError
from sidecar.identity.judge import Revocations
from tests.beds.ca_processes import Caller
from tests.bench.pairs import is_success
from tests.siege.figures import Call, Calls

DEADLINE = 5.0
"""Seconds after which a call is lost."""

FRAME = 64
Where = tuple[str, int]


async def scheduled(calls: Calls, rate: float, call: Callable[[], Awaitable[None]]) -> None:
    """Makes ``rate`` calls a second until cancelled, several at once where they take longer. What a call raises is what it
    was lost by."""

    async def one(due: float) -> None:
        made = Call(due, None)
        with trio.move_on_after(DEADLINE), contextlib.suppress(OSError, trio.BrokenResourceError, EOFError, CaError):
            await call()
            made = Call(due, trio.current_time() - due)
        calls.made.append(made)

    async with trio.open_nursery() as nursery:
        due = trio.current_time()
        while True:
            await trio.sleep_until(due)
            nursery.start_soon(one, due)
            calls.begun += 1
            due += 1 / rate


async def ask_anew(where: Where) -> None:
    """A connection of its own, a question, its answer, and the end from both sides."""
    async with await trio.open_tcp_stream(*where) as stream:
        await stream.send_all(bytes(FRAGMENT))
        await stream.send_eof()
        got = 0
        while data := await stream.receive_some():
            got += len(data)
    if got != FRAGMENT:
        raise EOFError(f"{got} bytes of {FRAGMENT}")


FRAGMENT = 512


async def healthz(where: Where) -> None:
    """What a container's health check asks."""
    async with await trio.open_tcp_stream(*where) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join([data async for data in stream])
    if not is_success(answer):
        raise EOFError(f"answered with {answer[:60]!r}")


async def ask_ca(client: CaClient) -> None:
    """Asks for nothing new, over the connection that it has, as a sidecar does every few seconds."""
    await client.revocations("", INSTANCE, 1)


async def renew(make: Callable[[], Caller], keeper: Caller) -> None:
    """A connection of its own, and a certificate. Several may be under way."""
    caller = make()
    caller.key, caller.chain = keeper.key, keeper.chain
    await caller.client.use(caller.keys, Revocations())
    try:
        await caller.renew()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await caller.client.close()
    keeper.key, keeper.chain = caller.key, caller.chain


INSTANCE = "5" * 32


class Probe:
    """A kept connection on which a frame is sent at each time that the schedule has, whether or not those before it came
    back. A connection that ends is made again; what was under way is lost."""

    def __init__(self, calls: Calls, where: Where, rate: float) -> None:
        self._calls = calls
        self._where = where
        self._every = 1 / rate
        self._waiting: dict[int, float] = {}
        self._numbers = itertools.count()

    async def run(self) -> None:
        while True:
            try:
                with trio.fail_after(DEADLINE):
                    stream = await trio.open_tcp_stream(*self._where)
            except (OSError, trio.TooSlowError):
                self._calls.made.append(Call(trio.current_time(), None))
                await trio.sleep(0.1)
                continue
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, nursery.cancel_scope)
                nursery.start_soon(self._receive, stream, nursery.cancel_scope)
            self._lose(list(self._waiting))

    async def _send(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        due = trio.current_time()
        while True:
            await trio.sleep_until(due)
            number = next(self._numbers)
            self._waiting[number] = due
            late = [one for one, since in self._waiting.items() if trio.current_time() - since > DEADLINE]
            if late:
                self._lose(late)
                scope.cancel()
            try:
                with trio.move_on_after(DEADLINE):
                    await stream.send_all(number.to_bytes(8, "big") * (FRAME // 8))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()
            due += self._every

    async def _receive(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        data = b""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while more := await stream.receive_some(65536):
                now, data = trio.current_time(), data + more
                while len(data) >= FRAME:
                    frame, data = data[:FRAME], data[FRAME:]
                    number = int.from_bytes(frame[:8], "big")
                    if (due := self._waiting.pop(number, None)) is not None and frame == frame[:8] * (FRAME // 8):
                        self._calls.made.append(Call(due, now - due))
        scope.cancel()

    def _lose(self, numbers: list[int]) -> None:
        self._calls.made += [Call(self._waiting.pop(number), None) for number in numbers]


class Traffic:
    """All honest traffic; it runs from the start of a run to its end. ``sorts`` by name."""

    def __init__(self) -> None:
        self.sorts: dict[str, Calls] = {}

    def probe(self, name: str, where: Where, rate: float) -> Callable[[], Awaitable[None]]:
        return Probe(self._sort(name), where, rate).run

    def calls(self, name: str, rate: float, call: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        return partial(scheduled, self._sort(name), rate, call)

    def _sort(self, name: str) -> Calls:
        return self.sorts.setdefault(name, Calls(name))
