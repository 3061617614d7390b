"""A relay on real sockets of loopback, with a channel in place of TLS: connections to drive by hand, and their endings."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import trio
import trio.testing

from sidecar.identity.reasons import Reason
from sidecar.relay.duplex import Buffer, Channel, Duplex, Ending
from sidecar.relay.poller import EdgePoller, LevelPoller, Poller
from sidecar.relay.relay import Outcome, Relay
from sidecar.transport import sockets
from tests.beds.patience import PATIENCE
from tests.beds.simulation import FakeChannel

POLLERS: list[type[EdgePoller] | type[LevelPoller]] = [EdgePoller, LevelPoller]
T = TypeVar("T")


@contextmanager
def tcp_pair(kernel_room: int | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback, neither of which blocks; ``kernel_room``: how much the kernel holds."""
    with socket.socket() as listener, socket.socket() as here:
        for sock in (listener, here):
            if kernel_room is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_room)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_room)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        here.connect(listener.getsockname())
        there, _ = listener.accept()
        with there:
            sockets.prepare(here)
            sockets.prepare(there)
            yield here, there


async def carry(
    relay: Relay, duplex: Duplex, net: socket.socket, app: socket.socket, **limits: float | None
) -> Ending | Reason:
    """One connection from here to its end: how it ended. If it is cancelled, the relay has let go of the sockets."""
    over, outcomes = trio.Event(), list[Outcome]()

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        over.set()

    link = relay.carry(duplex, net, app, done, **limits)
    try:
        await over.wait()
    finally:
        relay.stop(link)
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes[0]


def fill(sock: socket.socket, data: bytes = b"x" * 65536) -> int:
    """Sends ``data`` again and again until the kernel takes no more; returns how many bytes it took."""
    sent = 0
    while True:
        try:
            sent += sock.send(data[sent % len(data) :])
        except BlockingIOError:
            return sent


def drain(sock: socket.socket) -> bytes:
    """What is there to read now."""
    data = b""
    while True:
        try:
            more = sock.recv(1 << 20)
        except BlockingIOError:
            return data
        if not more:
            return data
        data += more


class Passthrough:
    """A channel whose ciphertext is the plaintext: for bulk. It knows no ends: those are the sockets' own."""

    ended = unread = False
    quiet = True
    dataless = 0

    def __init__(self) -> None:
        self._in, self._out = bytearray(), bytearray()

    def feed(self, buffer: Buffer, size: int) -> None:
        self._in += buffer.view[:size]

    def read(self, buffer: Buffer) -> int:
        return self._move(self._in, buffer)

    def write(self, buffer: Buffer, size: int) -> None:
        self._out += buffer.view[:size]

    def close(self) -> None: ...

    def pending(self) -> int:
        return len(self._out)

    def rest(self) -> None: ...

    def take(self, buffer: Buffer) -> int:
        return self._move(self._out, buffer)

    @staticmethod
    def _move(source: bytearray, buffer: Buffer) -> int:
        size = min(len(source), buffer.size)
        buffer.view[:size] = source[:size]
        del source[:size]
        return size


class CountingPoller:
    """Another poller, and how often it was asked."""

    def __init__(self, inner: Poller) -> None:
        self.asked = 0
        self._inner = inner
        self.add, self.remove, self.rearm = inner.add, inner.remove, inner.rearm
        self.fileno, self.close = inner.fileno, inner.close

    def poll(self) -> Any:
        self.asked += 1
        return self._inner.poll()


class Connection:
    """One carried connection. ``net`` and ``app`` are the far ends, the test's; ``duplex`` is what the relay moves."""

    def __init__(self, duplex: Duplex, net: socket.socket, app: socket.socket) -> None:
        self.duplex = duplex
        self.net, self.app = net, app
        self.near_net = self.near_app = net  # set by the bed
        self.scope = trio.CancelScope()
        self.outcome: Outcome | trio.Cancelled | None = None
        self._over = trio.Event()

    async def end(self, patience: float = PATIENCE) -> Outcome | trio.Cancelled:
        with trio.fail_after(patience):
            await self._over.wait()
        assert self.outcome is not None
        return self.outcome

    async def ending(self) -> Ending:
        outcome = await self.end()
        assert isinstance(outcome, Ending), outcome
        return outcome

    def finish(self, outcome: Outcome | trio.Cancelled) -> None:
        self.outcome = outcome
        self._over.set()


class Bed:
    """A relay under test."""

    def __init__(self, nursery: trio.Nursery, poller: Poller, stack: ExitStack, relay: type[Relay] = Relay) -> None:
        self.poller = CountingPoller(poller)
        self.relay = relay(lambda size: Buffer(bytearray(size)), self.poller)
        self.nursery = nursery
        self.stack = stack

    def start(self) -> None:
        self.nursery.start_soon(self.relay.run)

    def duplex(self, channel: Channel | None = None, *, tolerant: bool = False) -> Duplex:
        return Duplex(channel or FakeChannel(), self.relay.buffers, tolerate_missing_close_notify=tolerant)

    def connection(
        self, channel: Channel | None = None, *, tolerant: bool = False, kernel_room: int | None = None, **limits: Any
    ) -> Connection:
        """A new connection; it is carried from the next tick on."""
        near_net, net = self.stack.enter_context(tcp_pair(kernel_room))
        near_app, app = self.stack.enter_context(tcp_pair(kernel_room))
        connection = Connection(self.duplex(channel, tolerant=tolerant), net, app)
        connection.near_net, connection.near_app = near_net, near_app
        self.nursery.start_soon(self._carry, connection, limits)
        return connection

    async def _carry(self, connection: Connection, limits: dict[str, Any]) -> None:
        """As a session does it: whoever called owns the sockets again, and closes them as the ending says."""
        near_net, near_app = connection.near_net, connection.near_app
        try:
            with connection.scope:
                outcome = await carry(self.relay, connection.duplex, near_net, near_app, **limits)
                if isinstance(outcome, Ending):
                    self._close(near_app, by_reset=outcome.reset_app)
                    self._close(near_net, by_reset=outcome.reset_net)
                connection.finish(outcome)
        except Exception as error:
            connection.finish(error)

    @staticmethod
    def _close(sock: socket.socket, *, by_reset: bool) -> None:
        if by_reset:
            sockets.hard_close(sock)
        else:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)  # closed with the test: unread bytes would make a reset of a close

    async def settle(self) -> None:
        """Until nothing moves any more."""
        with trio.fail_after(PATIENCE):
            await trio.testing.wait_all_tasks_blocked(0.001)

    async def is_at_rest(self) -> bool:
        """Whether the relay asks its poller no more, for as long as nothing happens. One that spins would ask at each
        tick; a few late events of the kernel's (a window that opens) are none of its doing."""
        before = self.poller.asked
        for _ in range(500):
            await trio.lowlevel.checkpoint()
        return self.poller.asked <= before + 25

    async def until(self, condition: Callable[[], T]) -> T:
        """Lets everything run until the condition holds, and returns what it returned."""
        with trio.fail_after(PATIENCE):
            while not (result := condition()):
                await trio.lowlevel.checkpoint()
        return result
