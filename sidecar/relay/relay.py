"""The relay: one trio task moves the bytes of all connections, over one set of ready sockets.

How this works. Two trio tasks per connection would cost more than the bytes they move. So each connection is a
:class:`Link`, and plain functions move its bytes: :class:`~sidecar.relay.duplex.Duplex` decides the next operation, and
:meth:`Relay._pump` performs it. trio runs one task that waits on the poller's descriptor. What a connection does before and
after is a plain generator (:mod:`sidecar.relay.strand`), which the same passes resume: it owns the sockets. The invariants:

* A *pass* handles the ready sockets and never awaits. All events of a poll are noted before anything is done about them. So
  no socket is closed, and no descriptor number reused, while events that name it are being handled.
* An event only sets readiness and puts its link on the run queue. So no edge is lost when a pass ends early.
* trio's other tasks (handshakes, timers, the control plane) run between two passes. A pass may last as long as they took
  since the last one: at least :data:`PASS_SECONDS`, at most :data:`MAX_PASS_SECONDS`. So whatever else is asked of the loop,
  connections get half of the time while a turn of it is short, and never less than a fixed part of each turn.
* A link that has news moves about :data:`NEWS_BYTES`. If it has more to do, or moved as much the last time, it waits in a
  queue of its own, where a turn is about :data:`PUMP_BYTES` or :data:`PUMP_SECONDS`. One of that queue has a turn after at
  most :data:`ROUND` links that have news. So a link with little to do waits for one that has much, not for all of them,
  and neither kind starves the other.
* An exception while a link's bytes are moved ends that link only, and is its outcome.
* Whatever ends, its sockets are out of the set before its owner hears of it, and closes them.
"""

from __future__ import annotations

import errno
import math
import socket
import sys
from collections import deque
from collections.abc import Callable
from time import perf_counter

import trio

from sidecar.identity.reasons import Reason
from sidecar.relay.duplex import Buffer, Buffers, Duplex, Ending, Op
from sidecar.relay.frames import MAX_DATA
from sidecar.relay.liveness import INFO_BYTES, SILENCE_SECONDS, waiting_since
from sidecar.relay.poller import BROKEN, ENDED, READABLE, RESET, WRITABLE, Poller, make_poller

PASS_SECONDS = 0.002
MAX_PASS_SECONDS = 0.004
PUMP_BYTES = 512 * 1024
PUMP_SECONDS = 0.001
NEWS_BYTES = 64 * 1024
MORE_BYTES = 16 * 1024
"""A further step of decryption takes about as long as so many bytes."""
ROUND = 32
READ_BYTES = 128 * 1024
SWEEP_SECONDS = 1.0
REST_SECONDS = 1.0
REST_BYTES = 16 * 1024
"""A connection that is idle for this long, and has moved so many bytes since it last was, gives back memory."""

ENDING_SECONDS = 10.0
"""How long a connection that cannot go on (its end is decided, or a side was reset) waits for the other side, if that does
not read the last bytes."""

LOST_SECONDS = 600.0
"""The same, if the side that is gone had ended its stream before: to whom pauses reading, all of it is still delivered."""

LOOKS = 5
"""Each sweep looks at one socket in so many, whether its host still acknowledges; of connections that are idle for longer
than :data:`LONG_IDLE_SECONDS` and wait for no acknowledgement, at every fourth of these."""

LONG_IDLE_SECONDS = 60.0

_SWEEP_PORTION = 256

_TELLS_TCP_INFO = sys.platform == "linux"
"""Other systems have another ``struct tcp_info``, or none: there keepalive detects a dead host."""

_WAIT, _RECV_NET, _SEND_APP, _RECV_APP, _SEND_NET, _SHUT_APP, _END, _MORE = Op


class Wait:
    """One socket that somebody waits for, until it is ready for ``what`` or ``until`` has passed, on the loop's clock
    (looked at every :data:`SWEEP_SECONDS`). ``done`` is then called once, with whether it is ready."""

    __slots__ = ("done", "heavy", "net_fd", "queued", "until", "what")

    def __init__(self, sock: socket.socket, what: int, until: float, done: Callable[[bool], object]) -> None:
        self.net_fd = sock.fileno()
        self.what, self.until, self.done = what, until, done
        self.queued = self.heavy = False


Outcome = Ending | Reason | Exception
"""Of a connection in the relay: the duplex's ending, the reason for which the relay cut it, or a bug."""


class Link:
    """One connection in the relay. ``done`` is called once, with its outcome."""

    __slots__ = (
        "active_at",
        "app",
        "app_ended",
        "app_fd",
        "app_waiting",
        "done",
        "duplex",
        "expires_at",
        "heavy",
        "idle_timeout",
        "net",
        "net_ended",
        "net_fd",
        "net_waiting",
        "over",
        "queued",
        "rested",
    )

    def __init__(
        self,
        duplex: Duplex,
        net: socket.socket,
        app: socket.socket,
        idle_timeout: float | None,
        expires_at: float,
        done: Callable[[Outcome], object],
    ) -> None:
        self.duplex = duplex
        self.net, self.app = net, app
        self.net_fd, self.app_fd = net.fileno(), app.fileno()
        self.net_ended = self.app_ended = False  # a short read does not mean drained, see `poller.ENDED`
        self.idle_timeout, self.expires_at = idle_timeout, expires_at
        self.active_at = trio.current_time()
        self.queued = self.heavy = self.over = False
        self.rested = -REST_BYTES
        self.net_waiting: float | None = None  # since when nothing is acknowledged, see `liveness`
        self.app_waiting: float | None = None
        self.done = done


class Relay:
    """See the module. Start :meth:`run` in a nursery, and call :meth:`carry` once per connection or stream."""

    def __init__(self, make_buffer: Callable[[int], Buffer], poller: Poller | None = None) -> None:
        """``make_buffer``: the buffers of the channels in use, which read and write them in place."""
        self._poller = poller or make_poller()
        self._links: dict[int, Link | Wait] = {}
        self._queue: deque[Link | Wait] = deque()  # links that have news
        self._rest: deque[Link | Wait] = deque()  # links that have used up their share, and have more to do
        self._served = 0  # how many of the queue had a turn since the last of the rest
        self._share, self._until = NEWS_BYTES, math.inf  # how much a pump may move, and until when
        self._now = 0.0
        self.buffers = Buffers(*(make_buffer(size) for size in (READ_BYTES, READ_BYTES, MAX_DATA, READ_BYTES + 16384)))

    def carry(
        self,
        duplex: Duplex,
        net: socket.socket,
        app: socket.socket,
        done: Callable[[Outcome], object],
        *,
        idle_timeout: float | None = None,
        max_age: float | None = None,
    ) -> Link:
        """Moves the bytes of one connection until it ends; calls ``done`` with how, perhaps before this returns. Times are
        in seconds.

        The sockets must be non-blocking and registered nowhere else. They stay open: their owner closes them as the outcome
        requires."""
        expires_at = trio.current_time() + max_age if max_age is not None else math.inf
        link = Link(duplex, net, app, idle_timeout, expires_at, done)
        self._links[link.net_fd] = self._links[link.app_fd] = link
        try:
            self._poller.add(link.net_fd)
            self._poller.add(link.app_fd)
        except (OSError, ValueError, KeyError) as error:  # it is closed, or is watched already
            self._finish(link, error)
            return link
        self._now = link.active_at  # `_now` is of the last pass, which may be long ago
        self._pump(link)  # once without an event: the channel may hold data already
        return link

    def wait(self, sock: socket.socket, what: int, until: float, done: Callable[[bool], object]) -> Wait:
        """Calls ``done`` once when a socket is ready; see :class:`Wait`. The socket must be registered nowhere else."""
        wait = Wait(sock, what, until, done)
        self._links[wait.net_fd] = wait
        self._poller.add(wait.net_fd)
        return wait

    def stop(self, link: Link | Wait) -> None:
        """Ends a connection or a wait, of which ``done`` hears nothing then. No effect if it has ended."""
        if isinstance(link, Link):
            link.over = True
        self._detach(link)

    async def run(self) -> None:
        """Serves all links until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            try:
                seconds = PASS_SECONDS
                while True:
                    self._run_pass(seconds)
                    if self._queue or self._rest:
                        passed = perf_counter()
                        await trio.lowlevel.checkpoint()
                        seconds = min(max(PASS_SECONDS, perf_counter() - passed), MAX_PASS_SECONDS)
                    else:
                        await trio.lowlevel.wait_readable(self._poller.fileno())
                        seconds = PASS_SECONDS
            finally:
                self._poller.close()

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _run_pass(self, seconds: float) -> None:
        """Handles the ready sockets and the run queues for about so long."""
        links, queue = self._links, self._queue
        self._now = trio.current_time()
        now = perf_counter()
        until = now + seconds
        while True:
            for descriptor, what in self._poller.poll():
                link = links.get(descriptor)
                if link is not None:
                    if isinstance(link, Link):
                        self._set_readiness(link, descriptor, what)
                    elif not what & (link.what | ENDED | BROKEN):
                        continue
                    if not link.queued:
                        link.queued = True
                        (self._rest if link.heavy else queue).append(link)
            if self._rest and (self._served >= ROUND or not queue):
                now = self._serve_rest(now)
                if not queue and now > until:
                    return
            elif not queue:
                return
            for served in range(len(queue)):
                link = queue.popleft()
                link.queued = False
                if links.get(link.net_fd) is link:  # else it ended, or was cancelled, while it queued
                    self._pump(link)
                now = perf_counter()
                if now > until:
                    self._served += served + 1
                    return
            self._served = ROUND

    def _serve_rest(self, now: float) -> float:
        """Gives a turn to one link that has used up its share. Takes and returns the time."""
        self._served = 0
        link = self._rest.popleft()
        link.queued = False
        if self._links.get(link.net_fd) is link:
            self._share, self._until = PUMP_BYTES, now + PUMP_SECONDS
            self._pump(link)
            self._share, self._until = NEWS_BYTES, math.inf
        return perf_counter()

    def _set_readiness(self, link: Link, descriptor: int, what: int) -> None:
        duplex = link.duplex
        if descriptor == link.net_fd:
            if what & READABLE:
                duplex.net_r = True
            if what & WRITABLE:
                duplex.net_w = True
            if what & (ENDED | BROKEN):
                if what & BROKEN:
                    duplex.peer_gone(aborted=bool(what & RESET) and not link.net_ended)
                link.net_ended = True
        else:
            if what & READABLE:
                duplex.app_r = True
            if what & WRITABLE:
                duplex.app_w = True
            if what & (ENDED | BROKEN):
                if what & BROKEN:
                    duplex.app_gone(aborted=bool(what & RESET) and not link.app_ended)
                link.app_ended = True

    def _pump(self, link: Link | Wait) -> None:
        """Moves a link's bytes until it must wait, ends, or has used its share. An exception ends the link."""
        if isinstance(link, Wait):
            self._detach(link)
            link.done(True)
            return
        try:
            ending = self._move(link)
        except Exception as error:
            self._finish(link, error)
        else:
            if ending is not None:
                self._finish(link, ending)

    def _move(self, link: Link) -> Ending | None:
        """Returns how the connection has ended, if it has."""
        duplex, net, app = link.duplex, link.net, link.app
        cipher_in, plain_in = self.buffers.cipher_in.view, self.buffers.plain_in.view
        whole = share = self._share
        op = duplex.next()
        if op is not _WAIT:
            link.active_at = self._now
        while op is not _WAIT:
            try:
                if op is _RECV_NET:
                    if share <= 0 or (share < whole and perf_counter() > self._until):
                        break
                    size = net.recv_into(cipher_in)
                    share -= size
                    if size < READ_BYTES and size and not link.net_ended:
                        # A short read means that the stream is drained (epoll(7)): no further call is needed.
                        duplex.net_r = False
                        self._poller.rearm(link.net_fd, READABLE)
                    op = duplex.received_net(size)
                elif op is _SEND_APP:
                    op = duplex.sent_app(app.send(duplex.out))
                elif op is _RECV_APP:
                    if share <= 0 or (share < whole and perf_counter() > self._until):
                        break
                    size = app.recv_into(plain_in)
                    share -= size
                    if size < MAX_DATA and size and not link.app_ended:
                        duplex.app_r = False
                        self._poller.rearm(link.app_fd, READABLE)
                    op = duplex.received_app(size)
                elif op is _SEND_NET:
                    op = duplex.sent_net(net.send(duplex.out))
                elif op is _SHUT_APP:
                    app.shutdown(socket.SHUT_WR)
                    op = duplex.shut_app()
                elif op is _MORE:
                    if share <= 0 or (share < whole and perf_counter() > self._until):
                        break  # a first step is always taken, however late it is
                    share -= MORE_BYTES
                    op = duplex.more()
                else:
                    return duplex.ending
            except (BlockingIOError, InterruptedError):
                descriptor = link.net_fd if op in (_RECV_NET, _SEND_NET) else link.app_fd
                self._poller.rearm(descriptor, READABLE if op in (_RECV_NET, _RECV_APP) else WRITABLE)
                op = duplex.blocked(op)
            except OSError as error:
                op = duplex.shut_app() if op is _SHUT_APP else duplex.failed(op, after_fin=error.errno == errno.EPIPE)
        else:
            if share < whole:
                link.heavy = whole - share >= NEWS_BYTES
            return None
        link.queued = True
        self._rest.append(link)
        return None

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _finish(self, link: Link, outcome: Outcome) -> None:
        """Ends a link once; the first outcome counts. From then on its owner alone uses the sockets."""
        if not link.over:
            link.over = True
            self._detach(link)
            link.done(outcome)

    def _detach(self, link: Link | Wait) -> None:
        for descriptor in (link.net_fd, link.app_fd) if isinstance(link, Link) else (link.net_fd,):
            if self._links.get(descriptor) is link:
                del self._links[descriptor]
                try:
                    self._poller.remove(descriptor)
                except (OSError, KeyError, ValueError):  # never added, or the relay has stopped
                    continue

    async def _sweep(self) -> None:
        turn = 0
        while True:
            await trio.sleep(SWEEP_SECONDS)
            turn += 1
            descriptors = list(self._links)  # not the links: what has ended is to leave the memory
            for begin in range(0, len(descriptors), _SWEEP_PORTION):
                await trio.lowlevel.checkpoint()
                for vanished in self._sweep_portion(descriptors[begin : begin + _SWEEP_PORTION], turn):
                    if self._links.get(vanished.net_fd) is vanished:
                        self._pump(vanished)
                    await trio.lowlevel.checkpoint()  # the end of a connection is more work than a look

    def _sweep_portion(self, portion: list[int], turn: int) -> list[Link]:
        """Ends what is overdue; returns the links one of whose hosts has vanished."""
        now, real_now, vanished = trio.current_time(), perf_counter(), []
        self._now = now
        look, idle_before = turn % LOOKS, now - LONG_IDLE_SECONDS if turn // LOOKS % 4 else float("-inf")
        for descriptor in portion:
            link = self._links.get(descriptor)
            if link is None:
                continue  # it ended, or was cancelled, in the meantime
            if isinstance(link, Wait):
                if now >= link.until:
                    self._detach(link)
                    link.done(False)
                continue
            try:
                if descriptor == link.net_fd:
                    self._end_overdue(link, now)
                if descriptor % LOOKS != look or link.over:
                    continue
                if link.active_at < idle_before and link.net_waiting is link.app_waiting is None:
                    continue
                if self._is_silent(link, descriptor, real_now):
                    link.duplex.vanish(peer=descriptor == link.net_fd, seconds=SILENCE_SECONDS)
                    vanished.append(link)
            except Exception as error:
                self._finish(link, error)
        return vanished

    def _end_overdue(self, link: Link, now: float) -> None:
        """Ends a link that is idle too long, too old, or cannot deliver its last bytes. If it is idle, frees memory."""
        duplex, idle = link.duplex, now - link.active_at
        if now >= link.expires_at:
            self._finish(link, Reason.MAX_AGE)
        elif link.idle_timeout is not None and idle >= link.idle_timeout:
            self._finish(link, Reason.IDLE_TIMEOUT)
        elif idle < REST_SECONDS:
            return
        elif (idle >= ENDING_SECONDS and (duplex.decided is not None or duplex.aborted)) or (
            idle >= LOST_SECONDS and duplex.lost
        ):
            self._finish(link, duplex.give_up())
        elif (moved := duplex.to_app + duplex.from_app) - link.rested >= REST_BYTES:
            link.rested = moved
            duplex.rest()

    def _is_silent(self, link: Link, descriptor: int, now: float) -> bool:
        """Whether a link's host acknowledges nothing. ``now`` is the real time, as the kernel's is."""
        if not _TELLS_TCP_INFO:
            return False
        is_net = descriptor == link.net_fd
        sock, before = (link.net, link.net_waiting) if is_net else (link.app, link.app_waiting)
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
        except OSError:
            return False  # no TCP socket: the other end is on this host
        waiting = waiting_since(info, before, now)
        if is_net:
            link.net_waiting = waiting
        else:
            link.app_waiting = waiting
        return waiting is not None and now - waiting >= SILENCE_SECONDS
