"""Kept channels in memory: fake TLS records, the frames in them, and a connection whose channel is framed."""

from __future__ import annotations

from sidecar.relay.duplex import Buffer, Channel
from sidecar.relay.frames import HEADER_BYTES, MAX_DATA, FramedChannel, Kind
from tests.beds.duplex import Connection
from tests.beds.simulation import ALERT, CLOSE, DATA, UPDATE, UPDATE_PLEASE, FakeChannel, Parsed, record, records


class FakeRecords(FakeChannel):
    """``sidecar.relay.frames.Records``: the fake TLS, a record at a time."""

    def __init__(self) -> None:
        super().__init__(at_once=1)

    def read_record(self, buffer: Buffer, at: int, limit: int) -> int:
        self.unread, self._left = False, self._at_once
        before = len(self._cipher)
        if not self._plain and not self._next_record():
            if self._fault is not None:
                self.unread = True
                raise self._fault
            self.unread = self._clean or self.unread or (len(self._cipher) < before and bool(self._cipher))
            return -1 if self._clean else 0
        part, self._plain = self._plain[:limit], self._plain[limit:]
        start = buffer.headroom + at
        buffer.data[start : start + len(part)] = part
        return len(part)

    def rest_of_record(self) -> int:
        return len(self._plain)

    def more(self) -> bool:
        return bool(self._cipher)

    def write_record(self, buffer: Buffer, at: int, size: int) -> None:
        start = buffer.headroom + at
        self.write_bytes(bytes(buffer.data[start : start + size]))

    def write_bytes(self, data: bytes) -> None:
        self._out += records(data)


def frame(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """The plaintext of one frame; ``length`` is what its header says."""
    return bytes([kind]) + (len(payload) if length is None else length).to_bytes(3, "big") + payload


def parse_frames(stream: bytes) -> Parsed:
    """What the records of one direction of a stream say, by rules of this test's own: the bytes of the frames of data before
    the first thing that is not as it must be, and which end they come to."""
    data, left, quiet, silence, updates, at = b"", 0, 0, 0, 0, 0
    while len(stream) >= at + 2 and len(stream) >= at + 3 + stream[at + 1]:
        size = 3 + stream[at + 1]
        kind, payload = stream[at], stream[at + 2 : at + size - 1]
        if stream[at : at + size] != record(kind, payload) or kind not in (DATA, UPDATE, UPDATE_PLEASE, CLOSE, ALERT):
            return Parsed(data, "fault", silence, updates)
        at += size
        quiet = 0 if kind == DATA and payload else quiet + size
        silence = max(silence, quiet)
        if kind in (UPDATE, UPDATE_PLEASE) or (kind == DATA and not payload):
            updates += kind != DATA
            continue
        if kind == ALERT:
            return Parsed(data, "alert", silence, updates)
        if kind == CLOSE:
            return Parsed(data, "fault", silence, updates)
        if not left:
            if payload == frame(Kind.END):
                return Parsed(data, "close", silence, updates)
            left = int.from_bytes(payload[1:4], "big")
            if len(payload) <= HEADER_BYTES or payload[0] != Kind.DATA or not 0 < left <= MAX_DATA:
                return Parsed(data, "fault", silence, updates)
            payload = payload[HEADER_BYTES:]
            if len(payload) > left:
                return Parsed(data, "fault", silence, updates)
        data += payload[:left]
        if len(payload) > left:
            return Parsed(data, "fault", silence, updates)
        left -= len(payload)
    return Parsed(data, None, silence, updates)


def joined(caller: FramedChannel, callee: FramedChannel, buffer: Buffer) -> None:
    """What both have written reaches the other one."""
    for one, other in ((caller, callee), (callee, caller)):
        while size := one.take(buffer):
            other.feed(buffer, size)


class FramedConnection(Connection):
    """A connection of the oracle whose channel carries one stream of many: a callee's, or a caller's."""

    accepts = True

    def make_channel(self) -> Channel:
        self.fake = FakeRecords()
        channel = FramedChannel(self.fake, accepts=self.accepts)
        channel._begin()
        return channel

    def encode(self, what: str, size: int) -> bytes:
        if what == "data":
            return records(frame(Kind.DATA, self._bytes(size)))
        if what == "close_notify":
            return records(frame(Kind.END))
        if what == "altered":
            return records(frame(Kind.DATA, b"honest")).replace(b"o", b"0")
        return super().encode(what, size)

    def from_peer(self, stream: bytearray) -> Parsed:
        return parse_frames(bytes(stream))

    def to_peer(self) -> Parsed:
        return parse_frames(bytes(self.net.sent))
