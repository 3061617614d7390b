"""The relay: every connection's bytes, moved by one trio task over one set of ready sockets.

How it works. Two trio tasks a connection would cost more than the bytes they move. Here a connection, once let in, is a
:class:`_Link` that plain functions pump: :class:`~sidecar.relay.duplex.Duplex` says what to do, :meth:`Relay._pump` does it. trio
sees one task, which waits on the poller's own descriptor, and one parked task a connection, which owns its sockets. What
keeps that sound:

* A *pass* never awaits. So no socket is closed, nor its number used again, while events that name it are being handled.
* An event only sets readiness and puts its link on the run queue; nothing that an edge said is lost when a pass ends early.
* A pass lasts about :data:`PASS_SECONDS`, a pump :data:`PUMP_BYTES`; whoever is not done queues again behind the others,
  and trio's other tasks (handshakes, timers, the control plane) run in between.
* An exception inside a pump ends that link, and comes out of its own :meth:`Relay.carry`.
* Cancelling ``carry`` takes its sockets out of the set before it returns; closing them is its caller's business.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from time import perf_counter

import trio

from sidecar.identity.reasons import Reason
from sidecar.relay.duplex import Buffer, Buffers, Duplex, Ending, Op
from sidecar.relay.poller import BROKEN, ENDED, READABLE, WRITABLE, Poller, make_poller

PASS_SECONDS = 0.002
PUMP_BYTES = 512 * 1024
READ_BYTES = 128 * 1024
SWEEP_SECONDS = 1.0
ENDING_SECONDS = 10.0
"""How long a connection whose end is decided may take to pass on its last bytes to somebody who does not read."""

_WAIT, _RECV_NET, _SEND_APP, _RECV_APP, _SEND_NET, _SHUT_APP, _END = Op


class _Link:
    """One connection in the relay. ``outcome``: the duplex's own ending, the reason of whoever cut it, or our bug."""

    __slots__ = (
        "active_at",
        "app",
        "app_ended",
        "app_fd",
        "done",
        "duplex",
        "expires_at",
        "idle_timeout",
        "net",
        "net_ended",
        "net_fd",
        "outcome",
        "queued",
    )

    def __init__(
        self, duplex: Duplex, net: socket.socket, app: socket.socket, idle_timeout: float | None, expires_at: float
    ) -> None:
        self.duplex = duplex
        self.net, self.app = net, app
        self.net_fd, self.app_fd = net.fileno(), app.fileno()
        self.net_ended = self.app_ended = False  # more may lie behind a short read, see `poller.ENDED`
        self.idle_timeout, self.expires_at = idle_timeout, expires_at
        self.active_at = trio.current_time()
        self.queued = False
        self.done = trio.Event()
        self.outcome: Ending | Reason | Exception | None = None


class Relay:
    """See the module. Use :meth:`run` in a nursery, and :meth:`carry` once a connection."""

    def __init__(self, make_buffer: Callable[[int], Buffer], poller: Poller | None = None) -> None:
        """``make_buffer`` comes from whoever makes the channels, which read and write it in place."""
        self._poller = poller or make_poller()
        self._links: dict[int, _Link] = {}
        self._queue: deque[_Link] = deque()
        self._now = 0.0
        self.buffers = Buffers(
            *(make_buffer(size) for size in (READ_BYTES, READ_BYTES, READ_BYTES, READ_BYTES + 16384))
        )

    async def carry(
        self,
        duplex: Duplex,
        net: socket.socket,
        app: socket.socket,
        *,
        idle_timeout: float | None = None,
        max_age: float | None = None,
    ) -> Ending | Reason:
        """Moves the bytes of one connection until it ends, and says how; times in seconds. The sockets are non-blocking,
        registered nowhere else, and stay open: their owner closes them, as the ending says."""
        expires_at = trio.current_time() + max_age if max_age is not None else float("inf")
        link = _Link(duplex, net, app, idle_timeout, expires_at)
        self._links[link.net_fd] = self._links[link.app_fd] = link
        try:
            self._poller.add(link.net_fd)
            self._poller.add(link.app_fd)
            self._now = link.active_at  # the last pass may be long ago
            self._pump(link)  # always once: data may be inside the channel already, where no event will tell
            await link.done.wait()
        finally:
            self._detach(link)
        if isinstance(link.outcome, Exception):
            raise link.outcome
        assert link.outcome is not None  # noqa: S101 (set before `done` is)
        return link.outcome

    async def run(self) -> None:
        """Serves all links until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            try:
                while True:
                    self._pass()
                    if self._queue:
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_readable(self._poller.fileno())
            finally:
                self._poller.close()

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        links, queue = self._links, self._queue
        self._now = trio.current_time()
        until = perf_counter() + PASS_SECONDS
        while True:
            for descriptor, what in self._poller.poll():
                link = links.get(descriptor)
                if link is not None:
                    self._note(link, descriptor, what)
                    if not link.queued:
                        link.queued = True
                        queue.append(link)
            if not queue:
                return
            for _ in range(len(queue)):
                link = queue.popleft()
                link.queued = False
                if links.get(link.net_fd) is link:  # else it ended, or was cancelled, while it queued
                    self._pump(link)
                if perf_counter() > until:
                    return

    def _note(self, link: _Link, descriptor: int, what: int) -> None:
        duplex = link.duplex
        if descriptor == link.net_fd:
            if what & READABLE:
                duplex.net_r = True
            if what & WRITABLE:
                duplex.net_w = True
            if what & (ENDED | BROKEN):
                link.net_ended = True
                if what & BROKEN:
                    duplex.peer_gone()
        else:
            if what & READABLE:
                duplex.app_r = True
            if what & WRITABLE:
                duplex.app_w = True
            if what & (ENDED | BROKEN):
                link.app_ended = True
                if what & BROKEN:
                    duplex.app_gone()

    def _pump(self, link: _Link) -> None:
        """Does what the duplex says until it must wait, ends, or has had its share."""
        try:
            self._turn(link)
        except Exception as error:
            self._finish(link, error)

    def _turn(self, link: _Link) -> None:
        duplex, net, app = link.duplex, link.net, link.app
        cipher_in, plain_in = self.buffers.cipher_in.view, self.buffers.plain_in.view
        share = PUMP_BYTES
        op = duplex.next()
        if op is not _WAIT:
            link.active_at = self._now
        while op is not _WAIT:
            try:
                if op is _RECV_NET:
                    if share <= 0:
                        break
                    size = net.recv_into(cipher_in)
                    share -= size
                    if size < READ_BYTES and size and not link.net_ended:
                        # A short read from a stream says that it is drained (epoll(7)): one call less.
                        duplex.net_r = False
                        self._poller.rearm(link.net_fd, READABLE)
                    op = duplex.received_net(size)
                elif op is _SEND_APP:
                    op = duplex.sent_app(app.send(duplex.out))
                elif op is _RECV_APP:
                    if share <= 0:
                        break
                    size = app.recv_into(plain_in)
                    share -= size
                    if size < READ_BYTES and size and not link.app_ended:
                        duplex.app_r = False
                        self._poller.rearm(link.app_fd, READABLE)
                    op = duplex.received_app(size)
                elif op is _SEND_NET:
                    op = duplex.sent_net(net.send(duplex.out))
                elif op is _SHUT_APP:
                    app.shutdown(socket.SHUT_WR)
                    op = duplex.shut_app()
                else:
                    self._finish(link, duplex.ending)
                    return
            except (BlockingIOError, InterruptedError):
                descriptor = link.net_fd if op in (_RECV_NET, _SEND_NET) else link.app_fd
                self._poller.rearm(descriptor, READABLE if op in (_RECV_NET, _RECV_APP) else WRITABLE)
                op = duplex.blocked(op)
            except OSError as error:
                op = duplex.shut_app() if op is _SHUT_APP else duplex.failed(op, after_fin=error.errno == errno.EPIPE)
        else:
            return
        link.queued = True
        self._queue.append(link)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _finish(self, link: _Link, outcome: Ending | Reason | Exception | None) -> None:
        """Ends a link once; the first outcome counts. Its task, when it runs next, owns the sockets alone."""
        if link.outcome is None:
            link.outcome = outcome
            self._detach(link)
            link.done.set()

    def _detach(self, link: _Link) -> None:
        for descriptor in (link.net_fd, link.app_fd):
            if self._links.get(descriptor) is link:
                del self._links[descriptor]
                try:
                    self._poller.remove(descriptor)
                except (OSError, KeyError, ValueError):  # never added, or the relay has stopped
                    continue

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._end_overdue(trio.current_time())

    def _end_overdue(self, now: float) -> None:
        """Ends what was idle too long, is too old, or cannot get rid of its last bytes."""
        for link in list(self._links.values()):
            idle = now - link.active_at
            if now >= link.expires_at:
                self._finish(link, Reason.MAX_AGE)
            elif link.idle_timeout is not None and idle >= link.idle_timeout:
                self._finish(link, Reason.IDLE_TIMEOUT)
            elif link.duplex.decided is not None and idle >= ENDING_SECONDS:
                self._finish(link, link.duplex.decided)
