"""One Duplex between two sockets in memory: the shell that the relay is to it, and an oracle for what must be true.

What the oracle knows of the connection it reads off the sockets, by rules of its own; of the duplex it looks at what it
says, and at the bounds of what it keeps.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle

from sidecar.relay import duplex as core
from sidecar.relay.duplex import Buffers, Channel, Duplex, How, Op
from sidecar.relay.poller import BROKEN, ENDED, READABLE, RESET, WRITABLE
from tests.beds.simulation import (
    ALERT,
    CLOSE,
    DATA,
    RECORD,
    UPDATE,
    UPDATE_PLEASE,
    FakeChannel,
    FakeSocket,
    Parsed,
    parse,
    record,
    records,
    scribble,
)

CLEAN_STEPS = 12
"""Steps of a pump that move no byte: each of four readinesses lost once, two ends, two errors, a FIN, the end, and slack."""


class Connection:
    """One Duplex between two sockets in memory, the shell that the relay is to it, and what must be true of it always."""

    def __init__(
        self,
        buffers: Buffers,
        room_net: int,
        room_app: int,
        *,
        tolerant: bool,
        tells_broken: bool,
        hiccups: Sequence[bool],
    ) -> None:
        self.buffers = buffers
        self.channel = self.make_channel()
        self.duplex = Duplex(self.channel, buffers, tolerate_missing_close_notify=tolerant)
        self.net, self.app = FakeSocket(room_net), FakeSocket(room_app)
        self.tolerant, self.tells_broken = tolerant, tells_broken
        self.peer_queue = self.app_queue = b""
        self.peer_ends = self.app_ends = False
        self.told_peer_gone = self.told_app_gone = self.told_peer_end = self.told_app_end = False
        self.over = False
        self._sent = 0
        self.hiccups = cycle(hiccups or [False])

    # -- which TLS it is: here the fake ---------------------------------------------------------------------------------

    record_size = RECORD
    overhead = 3

    def make_channel(self) -> Channel:
        return FakeChannel(at_once=5)

    def encode(self, what: str, size: int) -> bytes:
        """What the peer puts on the wire."""
        if what == "data":
            return records(self._bytes(size))
        if what == "altered":
            return record(DATA, b"honest").replace(b"o", b"0")
        if what == "alert":
            return record(ALERT, b"bad_certificate")
        if what == "close_notify":
            return record(CLOSE)
        return record({"updates": UPDATE, "updates please": UPDATE_PLEASE, "empty": DATA}[what]) * size

    def from_peer(self, stream: bytearray) -> Parsed:
        """What these bytes of the peer's say."""
        return parse(bytes(stream))

    def to_peer(self) -> Parsed:
        """What our kernel took for the peer says."""
        return parse(bytes(self.net.sent))

    # -- what the two ends do ----------------------------------------------------------------------------------------

    def peer(self, what: str, size: int) -> None:
        """The peer sends a record, ends, or reads."""
        if what == "read":
            self.net.peer_read(size)
        elif what == "fin":
            self.peer_ends = True
        elif what == "close":
            self.net.peer_close()
        elif what == "reset":
            self.net.peer_reset()
        else:
            self.peer_queue += self.encode(what, size)

    def do_app(self, what: str, size: int) -> None:
        """The app sends, ends, or reads."""
        if what == "data":
            self.app_queue += self._bytes(size)
        elif what == "read":
            self.app.peer_read(size)
        elif what == "fin":
            self.app_ends = True
        elif what == "close":
            self.app.peer_close()
        else:
            self.app.peer_reset()

    def _bytes(self, size: int) -> bytes:
        """Bytes that tell where they belong: no two places hold the same for long."""
        self._sent += size
        return bytes(at * 7 % 251 for at in range(self._sent - size, self._sent))

    def flow(self) -> None:
        """What the ends have to send goes as far as the kernel lets it."""
        self.peer_queue = self.peer_queue[self.net.peer_send(self.peer_queue) :]
        self.app_queue = self.app_queue[self.app.peer_send(self.app_queue) :]
        if self.peer_ends and not self.peer_queue and not self.net.fin:
            self.net.peer_shut()
        if self.app_ends and not self.app_queue and not self.app.fin:
            self.app.peer_shut()

    def finish(self) -> None:
        """Both ends read on and say all they have, then they end: so must the connection."""
        self.hiccups = cycle([False])
        self._run_dry()
        self.peer("close_notify", 1)
        self.app_ends = True
        self._run_dry()
        self.peer_ends = True
        self._run_dry()
        assert self.over, "it is stuck"

    def _run_dry(self) -> None:
        """Goes on for as long as bytes move."""
        moved, still = -1, 0
        while still < 3 and not self.over:
            self.peer("read", self.net.room)
            self.do_app("read", self.app.room)
            self.flow()
            self.tell()
            self.pump(self.net.room + self.app.room)
            before, moved = moved, sum(map(len, (self.net.read, self.app.read, self.net.sent, self.app.sent)))
            still = still + 1 if moved == before else 0

    # -- the shell ---------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """The poller's events reach the duplex."""
        duplex, (net, self.net.events), (app, self.app.events) = self.duplex, (self.net.events, 0), (self.app.events, 0)
        duplex.net_r |= bool(net & READABLE)
        duplex.net_w |= bool(net & WRITABLE)
        duplex.app_r |= bool(app & READABLE)
        duplex.app_w |= bool(app & WRITABLE)
        if net & BROKEN and self.tells_broken:
            self.told_peer_gone = True
            duplex.peer_gone(aborted=bool(net & RESET) and not self.told_peer_end)
        if app & BROKEN and self.tells_broken:
            self.told_app_gone = True
            duplex.app_gone(aborted=bool(app & RESET) and not self.told_app_end)
        self.told_peer_end |= bool(net & ENDED)
        self.told_app_end |= bool(app & ENDED)

    def pump(self, share: int) -> None:
        """As the relay does it; then somebody else uses the buffers."""
        if self.over:
            return
        duplex = self.duplex
        moved = steps = 0
        op = duplex.next()
        while op is not Op.WAIT:
            steps += 1
            assert steps <= moved + CLEAN_STEPS, "it spins"
            if op is Op.END:
                self.over = True
                self.check_end()
                break
            if op in (Op.RECV_NET, Op.RECV_APP, Op.MORE) and moved >= share:
                break
            op, size = self._step(op)
            moved += size
        if op is Op.WAIT and not (self.net.events or self.app.events):
            self.check_wait()
        self.check()
        scribble(self.buffers)

    def _step(self, op: Op) -> tuple[Op, int]:
        duplex, net, app = self.duplex, self.net, self.app
        try:
            if op is Op.MORE:
                return duplex.more(), 1
            if op is Op.SHUT_APP:
                with suppress(OSError):
                    app.shutdown()
                return duplex.shut_app(), 0
            if next(self.hiccups):  # the kernel says no, and later that it may be tried again
                if op in (Op.RECV_NET, Op.SEND_NET):
                    net.events |= READABLE if op is Op.RECV_NET else WRITABLE
                else:
                    app.events |= READABLE if op is Op.RECV_APP else WRITABLE
                return duplex.blocked(op), 0
            if op is Op.RECV_NET:
                data = net.recv(self.buffers.cipher_in.size)
                self.buffers.cipher_in.view[: len(data)] = data
                return duplex.received_net(len(data)), len(data)
            if op is Op.RECV_APP:
                data = app.recv(self.buffers.plain_in.size)
                self.buffers.plain_in.view[: len(data)] = data
                return duplex.received_app(len(data)), len(data)
            assert duplex.out, "a send of nothing says nothing"
            if op is Op.SEND_NET:
                size = net.send(bytes(duplex.out))
                return duplex.sent_net(size), size
            size = app.send(bytes(duplex.out))
            return duplex.sent_app(size), size
        except BlockingIOError:
            return duplex.blocked(op), 0
        except OSError as error:
            return duplex.failed(op, after_fin=error.errno == errno.EPIPE), 0

    # -- what must be true -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Always: prefixes, counts, bounds."""
        duplex, net, app = self.duplex, self.net, self.app
        source = self.from_peer(net.read)
        there = self.to_peer()
        assert source.data.startswith(app.sent)
        assert app.read.startswith(there.data)
        assert duplex.to_app >= len(app.sent)  # what it sent into the void of a closed app counts too
        assert duplex.from_app == len(app.read)
        assert len(duplex._app_left) <= self.buffers.plain_out.size
        assert len(duplex._net_left) <= self.buffers.cipher_out.size
        largest = max(self.buffers.cipher_in.size, self.buffers.plain_in.size)
        written = 2 * largest + self.overhead * (largest // self.record_size + 2)
        replies = largest + self.record_size  # to one feed: a reply is no longer than what asked for it
        if not net.dead:
            assert self.channel.pending() <= max(core.MAX_PENDING_CIPHERTEXT, written) + replies
        if isinstance(self.channel, FakeChannel):
            assert self.channel.most_held <= self.buffers.cipher_in.size + self.buffers.plain_out.size + RECORD + 3
        if app.shut:
            assert source.end == "close" or (self.tolerant and net.fin), "a clean end was told that nobody said"
            assert app.sent == source.data or app.dead
        if there.end == "close":
            assert app.fin, "a close_notify for an app that did not end"
            assert there.data == app.arrived == app.read

    def check_wait(self) -> None:
        """Nothing can move: by what the sockets hold, not by what the duplex believes."""
        net, app, source = self.net, self.app, self.from_peer(self.net.read)
        net_room = len(net.outbox) < net.room and not net.dead
        app_room = len(app.outbox) < app.room and not app.dead
        peer_deaf, app_deaf = net.refused or self.told_peer_gone, app.refused or self.told_app_gone
        ending = self.duplex.decided is not None
        if net_room:
            assert not self.duplex._net_left
            assert not self.channel.pending() or peer_deaf
            if not peer_deaf and not ending:
                assert not app.inbox
                assert app.ended or not (app.fin or app.dead)
        if app_room and not app_deaf:
            assert not self.duplex._app_left
            if not ending and source.end is None and (net_room or peer_deaf or not self.duplex._net_left):
                assert not net.inbox
                assert net.ended or not (net.fin or net.dead)
            assert len(app.sent) == len(source.data) or ending
            assert not (source.end == "close" and not app.shut)
        assert source.end in (None, "close") or not app_room or app_deaf, "a fault of the peer's was forgotten"
        assert not (app.shut and (app.fin and app.ended) and net_room), "all was done, and it did not end"

    def check_end(self) -> None:
        """How it ended is how its sources ended, and everything that was authentic has arrived."""
        duplex, net, app = self.duplex, self.net, self.app
        ending = duplex.ending
        assert ending is not None
        source, there = self.from_peer(net.read), self.to_peer()
        app_alive, peer_alive = not app.dead, not net.dead
        if ending.how is How.OK:
            assert app.shut or not app_alive
            assert not ending.reset_app
            assert not ending.reset_net
            assert source.data == app.sent or not app_alive
            if peer_alive:
                assert (there.data, there.end) == (bytes(app.arrived), "close")
        elif ending.how is How.PEER_RESET:
            assert ending.reset_app
            assert not peer_alive
            assert source.end == "close" or (self.tolerant and net.fin)
        elif ending.how is How.APP_RESET:
            assert app.dead, "nobody reset it"
            if peer_alive:
                assert ending.reset_net == (not app.fin)
                assert there.end != "close" or app.fin
                if source.end in (None, "close"):  # else nothing can be said any more but an alert
                    assert there.data == app.arrived, "what the app had said before"
                    assert there.end == ("close" if app.fin else None)
        else:
            assert ending.reset_app
            assert not app.shut
            cut = source.silence + self.record_size + self.overhead > core.MAX_SILENT_CIPHERTEXT
            cut = cut or source.updates > core.MAX_DATALESS_RECORDS
            unsaid = (net.fin or net.dead) and not (self.tolerant and net.fin) and source.end is None
            assert source.end in ("fault", "alert") or unsaid or cut
            if app_alive:
                whole = source if cut else self.from_peer(net.arrived)
                assert app.sent == whole.data, "what was authentic before"
            if ending.how is How.PEER_ALERT:
                assert source.end == "alert"
                assert not app.sent
            elif source.end == "alert" and "alert" in (ending.detail or ""):
                assert duplex.to_app
