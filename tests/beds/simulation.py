"""A stand-in for TLS and one for the kernel, both in plain memory, to drive :class:`sidecar.relay.duplex.Duplex`
without either.

:class:`FakeChannel` keeps the promises of ``sidecar.relay.duplex.Channel`` with records that a test can write by hand.
:class:`FakeSocket` is our end of a TCP connection whose kernel has little memory, and whose other end is the test; its
errors are Linux's, in Linux's order (seen by running it). :func:`parse` reads a stream of records without the channel's
code, for oracles.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from sidecar.relay.duplex import Buffer, Buffers, ChannelError
from sidecar.relay.poller import BROKEN, ENDED, READABLE, RESET, WRITABLE

RECORD = 32
"""The most data in a record of the fake's."""

DATA, UPDATE, UPDATE_PLEASE, CLOSE, ALERT = b"dupca"


def record(kind: int, payload: bytes = b"") -> bytes:
    """One record: kind, length, payload, check."""
    return bytes([kind, len(payload)]) + payload + bytes([(kind + sum(payload)) % 251])


def records(data: bytes) -> bytes:
    """The records that carry ``data``."""
    return b"".join(record(DATA, data[at : at + RECORD]) for at in range(0, len(data), RECORD))


class Parsed(NamedTuple):
    """What a stream of records says: its data, how it ends (None: not yet), the longest run without any data, and how many
    KeyUpdates there are."""

    data: bytes
    end: str | None
    silence: int
    updates: int = 0


def parse(stream: bytes) -> Parsed:
    data, at, quiet, silence, updates = b"", 0, 0, 0, 0
    while at + 3 <= len(stream):
        kind, size = stream[at], stream[at + 1]
        if at + 3 + size > len(stream):
            break
        payload, check = stream[at + 2 : at + 2 + size], stream[at + 2 + size]
        at += 3 + size
        quiet = 0 if kind == DATA and size else quiet + 3 + size
        silence = max(silence, quiet)
        updates += kind in (UPDATE, UPDATE_PLEASE)
        if check != (kind + sum(payload)) % 251 or kind not in (DATA, UPDATE, UPDATE_PLEASE, CLOSE, ALERT):
            return Parsed(data, "fault", silence, updates)
        if kind == DATA:
            data += payload
        elif kind in (CLOSE, ALERT):
            return Parsed(data, "close" if kind == CLOSE else "alert", silence, updates)
    return Parsed(data, None, silence, updates)


def fake_buffers(*sizes: int, headroom: int = 0) -> Buffers:
    """Buffers of these sizes (cipher_in, plain_out, plain_in, cipher_out), or of one."""
    every = sizes if len(sizes) > 1 else sizes * 4
    return Buffers(*(Buffer(bytearray(headroom + size), headroom=headroom) for size in every))


def scribble(buffers: Buffers) -> None:
    """What another connection's turn does to them."""
    for buffer in (buffers.cipher_in, buffers.plain_out, buffers.plain_in, buffers.cipher_out):
        buffer.view[:] = b"#" * buffer.size


class FakeChannel:
    """``sidecar.relay.duplex.Channel``: fails like OpenSSL, where a broken stream refuses writes as well as reads.
    ``at_once``: the most records that it works off in one read."""

    def __init__(self, at_once: int = 1_000_000) -> None:
        self.ended = self.unread = self.quiet = False
        self.dataless = self.most_held = 0
        self._at_once = self._left = at_once
        self._cipher = b""
        self._plain = b""
        self._out = bytearray()
        self._clean = False
        self._fault: ChannelError | None = None

    def feed(self, buffer: Buffer, size: int) -> None:
        self._cipher += bytes(buffer.view[:size])
        self.most_held = max(self.most_held, len(self._cipher) + len(self._plain))

    def read(self, buffer: Buffer) -> int:
        self.unread, self.quiet, self._left = False, True, self._at_once
        try:
            return self._read(buffer)
        finally:
            self.unread = self.unread or self.ended

    def _read(self, buffer: Buffer) -> int:
        filled = 0
        while filled < buffer.size:
            if self._plain or self._next_record():
                part = self._plain[: buffer.size - filled]
                buffer.view[filled : filled + len(part)] = part
                filled += len(part)
                self._plain = self._plain[len(part) :]
            elif self._fault is not None and not filled:
                raise self._fault
            elif self._clean or self._fault is not None:
                return filled or -1
            else:
                break
        return filled

    def _next_record(self) -> bool:
        """Goes on to the next data; False if there is none yet, or none any more."""
        while not self.ended and len(self._cipher) >= 2 and len(self._cipher) >= 3 + self._cipher[1]:
            if not self._left:
                self.unread = True
                break
            self._left -= 1
            size = 3 + self._cipher[1]
            one, self._cipher = self._cipher[:size], self._cipher[size:]
            kind, payload = one[0], one[2:-1]
            self.quiet = self.quiet and kind == DATA and bool(payload) and one == record(kind, payload)
            if one != record(kind, payload) or kind not in (DATA, UPDATE, UPDATE_PLEASE, CLOSE, ALERT):
                self._fault = ChannelError("a record was altered")
                self._out += record(ALERT, b"altered")
            elif kind == ALERT:
                self._fault = ChannelError("the peer ended it", alert=payload.decode())
            elif kind == DATA and payload:
                self._plain = payload
                return True
            elif kind in (UPDATE, UPDATE_PLEASE):
                if self._cipher:
                    self.dataless += 1
                    self.unread = True
                if kind == UPDATE_PLEASE:
                    self._out += record(UPDATE)
            self._clean = kind == CLOSE
            self.ended = self._clean or self._fault is not None
        return False

    def write(self, buffer: Buffer, size: int) -> None:
        if self._fault is not None:
            raise ChannelError("the stream is broken")
        self._out += records(bytes(buffer.view[:size]))

    def close(self) -> None:
        if self._fault is None:
            self._out += record(CLOSE)

    def pending(self) -> int:
        return len(self._out)

    def rest(self) -> None: ...

    def take(self, buffer: Buffer) -> int:
        size = min(buffer.size, len(self._out))
        buffer.view[:size] = self._out[:size]
        del self._out[:size]
        return size


class FakeSocket:
    """Our end of a TCP connection. What the test does as the other end starts with ``peer_``.

    ``events`` are bits of ``sidecar.relay.poller`` that an edge-triggered poller would report, until somebody takes them.
    ``arrived`` is all that came in, ``read`` what we took of it, ``sent`` what our kernel took, ``got`` what the other end
    read.
    """

    def __init__(self, room: int = 64) -> None:
        self.room = room
        self.arrived, self.read, self.sent, self.got = bytearray(), bytearray(), bytearray(), bytearray()
        self.inbox, self.outbox = bytearray(), bytearray()
        self.fin = self.dead = self.shut = self.refused = False
        self.ended = False  # we were told of its end, or saw it
        self.events = 0
        self._gone = False  # closed, after all was read: a later send of ours is answered with a reset
        self._error: int | None = None
        self._full = False

    # -- ours ------------------------------------------------------------------------------------------------------

    def recv(self, limit: int) -> bytes:
        if self.inbox:
            part = bytes(self.inbox[:limit])
            del self.inbox[:limit]
            self.read += part
            return part
        if self.fin:
            self.ended = True
            return b""
        self._raise_error()
        if self.dead:
            return b""  # the error was told once already: to recv, a reset now looks like an end
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        if self.dead:
            self.refused = True
            self._raise_error()
            raise BrokenPipeError(errno.EPIPE, "broken pipe")
        if self._gone:
            self.peer_reset()
            return len(data)
        size = min(len(data), self.room - len(self.outbox))
        if not size:
            self._full = True
            raise BlockingIOError
        self.outbox += data[:size]
        self.sent += data[:size]
        return size

    def shutdown(self) -> None:
        if self.dead:
            raise OSError(errno.ENOTCONN, "not connected")
        self.shut = True

    def _raise_error(self) -> None:
        if self._error is not None:
            number, self._error = self._error, None
            self.ended = True
            raise OSError(number, errno.errorcode[number])

    # -- the other end's -------------------------------------------------------------------------------------------

    def peer_send(self, data: bytes) -> int:
        """How many bytes went."""
        if self.fin or self.dead:
            return len(data)
        part = data[: self.room - len(self.inbox)]
        if part:
            self.inbox += part
            self.arrived += part
            self.events |= READABLE
        return len(part)

    def peer_read(self, limit: int) -> None:
        self.got += self.outbox[:limit]
        del self.outbox[:limit]
        if self._full and limit and not self.dead:
            self._full = False
            self.events |= WRITABLE

    def peer_shut(self) -> None:
        if not self.dead:
            self.fin = True
            self.events |= READABLE | ENDED

    def peer_close(self) -> None:
        """Closes as a program does: with bytes unread this is a reset."""
        if self.outbox:
            self.peer_reset()
        else:
            self.peer_shut()
            self._gone = True

    def peer_reset(self) -> None:
        if not self.dead:
            self.dead = True
            self._error = errno.EPIPE if self.fin else errno.ECONNRESET
            self.outbox.clear()
            self.events |= READABLE | WRITABLE | ENDED | BROKEN | RESET
