"""Frames of ``mesh/2``: app connections (*streams*) that follow one another on one kept channel. Pure.

How this works. A mutual TLS handshake costs more than all else about a short connection. So the two sidecars keep the
authenticated channel, and carry the next connection on it: one at a time, never two at once, so there are no windows and
backpressure stays TCP's. :class:`FramedChannel` is a :class:`~sidecar.relay.duplex.Channel` over a TLS channel, for one
stream after another: ``close`` sends *end* instead of a close_notify, and ``read`` says -1 at the peer's *end*. So
:class:`~sidecar.relay.duplex.Duplex` carries a stream as it carries a connection.

A frame is a byte for its kind, three for the length of what follows (big endian), and that::

    caller                                    callee
    open     number, milliseconds, attributes
                                              opened   number: the frame was read. It permits nothing.
                                              verdict  ``ok``, or the word of a refusal
    data ... end                              data ... end

*Open* and *verdict* are sent once a stream, *data* and *end* in both directions, each on its own. After the verdict of a
refusal the stream is over. Then, and after both *ends*, the channel is idle, and the caller may send *open* again.

The invariants:

* Every frame begins a TLS record, and shares it with no other frame. So header and data are one read and one write, without
  a copy: the header has a place of its own in front of the buffer (``Buffer.headroom``).
* The end of a stream is *end* and nothing else: a close_notify, a FIN or a reset where it is due is a truncation.
* It fails closed: a frame that is not due here and now, an empty or a split one, breaks the channel for good, with
  :class:`~sidecar.relay.duplex.ChannelError`.
* ``is_idle`` is true only if both directions have ended by *end* and nothing is unread: no byte of one stream reaches
  another one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from sidecar.identity.spiffe import shown
from sidecar.relay.duplex import MAX_DATALESS_RECORDS, MAX_SILENT_CIPHERTEXT, Buffer, ChannelError

HEADER_BYTES = 4
MAX_DATA = 128 * 1024 - HEADER_BYTES
"""Bytes in one frame of data: with its header eight full TLS records."""

MAX_WORD = 32
MAX_ATTRIBUTES = 16
MAX_ATTRIBUTE_BYTES = 1024
MAX_READS = 128
"""How many records one :meth:`FramedChannel.read` decrypts: 0.1 to 0.2 ms."""

MAX_STREAMS = 2**32 - 1
_SILENT_READS = 16
_CRITICAL = 0x8000


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    OPENED = 2
    VERDICT = 3
    DATA = 4
    END = 5


@dataclass(frozen=True, slots=True)
class Open:
    """The first frame of a stream. ``number`` counts the channel's streams from 1. ``milliseconds``: how long the caller
    still waits for the verdict. ``attributes``: what it claims about the stream, by type. They are claims: identity, rule
    and port come from the judged certificate and the ALPN alone. ``strange``: the types that must be understood, and are
    not."""

    number: int
    milliseconds: int
    attributes: dict[int, bytes]
    strange: tuple[int, ...] = ()


class Attribute(IntEnum):
    """The types of attributes that are understood. One with the highest bit set is critical: whoever does not know its type
    refuses the stream. Others that are unknown are passed over."""

    CLIENT_ADDRESS = 1
    PROBE_THROUGH = 2
    """The stream is a probe, to the app and no byte further. A callee that was not told of it carries it as any other."""
    TRIAL = 4
    """The caller's listener waits for the app (:mod:`sidecar.proxy.waiting`): no app calls, and no byte is sent to it."""
    PROBE = 0x8003
    """The stream is a probe: it ends before the app is reached. A callee that was not told of it refuses it, as does one
    that does not know what this is."""


class ClosedChannelError(ChannelError):
    """The peer has closed the channel cleanly, between two streams."""


class Records(Protocol):
    """The TLS channel below: :class:`sidecar.transport.tls_data.TlsData`, or a test's stand-in. The rest is ``Channel``'s.

    ``read_record`` decrypts at most one record, and at most ``limit`` bytes of it, to ``at`` of the buffer, which may be
    negative: the headroom. It returns their number; 0 if the record is incomplete or has no data, -1 at a close_notify.
    ``rest_of_record``: how many bytes of that record are left. ``more``: whether more ciphertext is here.
    """

    @property
    def unread(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    @property
    def dataless(self) -> int: ...

    def feed(self, buffer: Buffer, size: int, /) -> None: ...
    def read_record(self, buffer: Buffer, at: int, limit: int, /) -> int: ...
    def rest_of_record(self) -> int: ...
    def more(self) -> bool: ...
    def write_record(self, buffer: Buffer, at: int, size: int, /) -> None: ...
    def write_bytes(self, data: bytes, /) -> None: ...
    def pending(self) -> int: ...
    def take(self, buffer: Buffer, /) -> int: ...
    def rest(self) -> None: ...


class FramedChannel:
    """One kept channel, at either end. ``accepts``: the other end opens the streams.

    ``number``: of the current stream, or of the last one; 0 before the first. ``sent``, ``received``: TLS records in each
    direction so far.
    """

    __slots__ = (
        "_dataless", "_due", "_fault", "_in_ended", "_left", "_out_ended", "_records", "_silent", "accepts", "ended",
        "number", "pending", "quiet", "received", "rest", "sent", "take", "unread",
    )  # fmt: skip

    def __init__(self, records: Records, *, accepts: bool) -> None:
        self._records = records
        self.accepts = accepts
        self.number = self.sent = self.received = 0
        self._due = _IDLE  # what the peer may send now
        self._left = 0  # bytes of the present frame that are not read yet
        self._in_ended = self._out_ended = True
        self._silent = 0  # bytes of ciphertext since the last frame, while no stream is carried
        self._dataless = 0  # records without data as of the last stream's end
        self._fault: ChannelError | None = None
        self.ended = self.unread = self.quiet = False
        # See ``Channel``. They are the channel's below, and called for each piece of data: one call and not two.
        self.pending, self.take, self.rest = records.pending, records.take, records.rest

    # -- between streams -----------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether the next stream may be opened. At the callee the caller's next *open* may be here already."""
        return self._due is _IDLE and self._fault is None and (self.accepts or not self._records.more())

    @property
    def has_more(self) -> bool:
        """Whether something that was received waits to be decrypted."""
        return self._records.more()

    @property
    def received_rest(self) -> bool:
        """Whether a part of a record that was decrypted is unread."""
        return self._records.rest_of_record() > 0

    def open(self, milliseconds: int, attributes: dict[int, bytes] | None = None) -> None:
        """The caller opens the next stream. Raises :class:`ChannelError` if the channel is not idle."""
        self._raise_fault()
        self._must(
            not self.accepts and self.is_idle and self.number < MAX_STREAMS, "a stream is opened on a busy channel"
        )
        self.number += 1
        self._due, self._silent = _ANSWER, 0
        self._write(Kind.OPEN, encode_open(Open(self.number, milliseconds, attributes or {})))

    def confirm(self) -> None:
        """The callee tells that it has read *open*."""
        self._write(Kind.OPENED, self.number.to_bytes(4, "big"))

    def give_verdict(self, word: str) -> None:
        """The callee's verdict on the stream; ``ok`` begins it, every other word ends it."""
        self._write(Kind.VERDICT, word.encode("ascii"))
        self._begin() if word == "ok" else self._finish()

    def receive(self, buffer: Buffer) -> Open | str | None:
        """The next frame while no stream is carried. At the callee: *open*. At the caller: the verdict's word; "" if
        *opened* has come. None if nothing is here; then ``unread`` is whether the next call may have something without being
        fed. Raises :class:`ChannelError`."""
        self._raise_fault()
        for _ in range(_SILENT_READS):
            count = self._records.read_record(buffer, -HEADER_BYTES, HEADER_BYTES + buffer.size)
            if count > 0:
                return self._understood(*self._whole(buffer, count))
            if count < 0:
                self._fault = ClosedChannelError("mesh/2: the peer closed the channel")
                raise self._fault
            if not self._records.unread:
                break
        self.unread = self._records.unread
        if self._records.dataless - self._dataless > MAX_DATALESS_RECORDS or self._silent > MAX_SILENT_CIPHERTEXT:
            raise self._broken("too many TLS records without data (KeyUpdates) came between two streams")
        return None

    def _whole(self, buffer: Buffer, count: int) -> tuple[Kind, bytes]:
        """A frame that is one record, as every one but data is."""
        kind, length = self._header(buffer)
        if length != count - HEADER_BYTES:
            raise self._broken(f"a frame of {length} bytes came in a record of another size")
        self.received += 1
        self._silent = 0
        return kind, bytes(buffer.view[:length])

    def _understood(self, kind: Kind, payload: bytes) -> Open | str:
        if kind is Kind.OPEN and self._due is _IDLE and self.accepts:
            opened = decode_open(payload)
            if opened is None or opened.number != self.number + 1:
                raise self._broken("an *open* that is malformed, or out of turn")
            self.number, self._due = opened.number, _NOTHING
            return opened
        if kind is Kind.OPENED and self._due is _ANSWER:
            if payload != self.number.to_bytes(4, "big"):
                raise self._broken("another stream was confirmed than the one that was opened")
            self._due = _VERDICT
            return ""
        if kind is Kind.VERDICT and self._due in (_ANSWER, _VERDICT):
            word = payload.decode("latin-1")
            if not 0 < len(word) <= MAX_WORD:
                raise self._broken(f"a verdict of {len(word)} bytes")
            self._begin() if word == "ok" else self._finish()
            return word
        raise self._broken(f"the frame *{kind.name.lower()}* where it is not due")

    def _begin(self) -> None:
        self._due, self._left = _DATA, 0
        self._in_ended = self._out_ended = self.unread = self.ended = False
        self.unread = self._records.more()

    def _finish(self) -> None:
        self._due, self._in_ended, self._out_ended = _IDLE, True, True
        self._silent, self._dataless = 0, self._records.dataless

    # -- one stream, for Duplex ----------------------------------------------------------------------------------------

    @property
    def dataless(self) -> int:
        """See ``Channel``."""
        return self._records.dataless

    def feed(self, buffer: Buffer, size: int) -> None:
        """See ``Channel``."""
        self._silent += size
        self._records.feed(buffer, size)

    def read(self, buffer: Buffer) -> int:
        """As ``Channel.read``. A header within the buffer is read over the end of the data before it, which is then put
        back: so the data of several frames comes out as one piece."""
        if self._fault is not None:
            raise self._fault
        records, filled, self.unread, self.ended, self.quiet = self._records, 0, False, False, False
        if self._in_ended:
            self.unread = self.ended = True
            return -1
        first: int | None = None
        try:
            if not self._left:
                first = records.read_record(buffer, -HEADER_BYTES, HEADER_BYTES + buffer.size)
                if (
                    HEADER_BYTES < first <= buffer.size
                    and _unpack(buffer.data, buffer.headroom - HEADER_BYTES)[0] == _DATA_WORD | (first - HEADER_BYTES)
                    and not records.more()
                ):  # mostly: one record is here, and is one frame
                    self.received += 1
                    self.quiet = True
                    return first - HEADER_BYTES
            for _ in range(MAX_READS):
                if self._left:
                    limit = min(self._left, buffer.size - filled)
                    count = records.read_record(buffer, filled, limit)
                else:
                    limit = buffer.size - filled
                    count, first = self._begin_frame(buffer, filled, limit, first), None
                    if self._in_ended:
                        self.unread = self.ended = True
                        return filled or -1
                if count <= 0:
                    if count < 0:
                        raise self._broken("the peer's stream ended without its *end*: it was cut")
                    self.unread, self.ended = records.unread, records.ended
                    return filled
                self.received += 1
                filled += count
                self._left -= count
                if not self._left:
                    if count == limit and self.received_rest:
                        raise self._broken("a frame ended within a TLS record")
                    if not records.more():
                        return filled
                if filled == buffer.size:
                    return filled
            self.unread = True
        except ChannelError as error:
            self._fault, self.unread, self.ended = error, True, True
            if not filled:
                raise
        return filled

    def _begin_frame(self, buffer: Buffer, filled: int, limit: int, count: int | None) -> int:
        """Reads the record that begins a frame, behind ``filled`` bytes of the frames before, at most ``limit`` bytes of
        data of it; unless it was read already, to the buffer's start: ``count`` bytes. Returns how many bytes of data; or 0
        or -1 as ``read_record``. Sets ``_in_ended`` if it is the stream's end."""
        at = filled - HEADER_BYTES
        start = buffer.headroom + at
        before = buffer.data[start : start + HEADER_BYTES]
        if count is None:
            count = self._records.read_record(buffer, at, HEADER_BYTES + limit)
        (word,) = _unpack(buffer.data, start)
        buffer.data[start : start + HEADER_BYTES] = before
        if count <= 0:
            return count
        length = word & 0xFFFFFF
        if word >> 24 == _DATA_KIND and HEADER_BYTES < count <= HEADER_BYTES + length <= HEADER_BYTES + MAX_DATA:
            self._left = length
            return count - HEADER_BYTES
        if word != _END_WORD or count != HEADER_BYTES:
            raise self._broken(
                f"a frame 0x{word >> 24:02x} of {length} bytes that is malformed, or not due in a stream"
            )
        self.received += 1
        self._in_ended = True
        if self._out_ended:
            self._finish()
        return 0

    def write(self, buffer: Buffer, size: int) -> None:
        """See ``Channel``."""
        _pack(buffer.data, buffer.headroom - HEADER_BYTES, _DATA_WORD | size)
        self._records.write_record(buffer, -HEADER_BYTES, HEADER_BYTES + size)
        self.sent += 1 + size // 16384

    def close(self) -> None:
        """Our direction ends; the peer's continues."""
        self._out_ended = True
        self._write(Kind.END, b"")
        if self._in_ended and self._due is _DATA:
            self._finish()

    # -- faults --------------------------------------------------------------------------------------------------------

    def _write(self, kind: Kind, payload: bytes) -> None:
        self._raise_fault()
        self._records.write_bytes(_HEADER.pack(kind << 24 | len(payload)) + payload)
        self.sent += 1

    def _header(self, buffer: Buffer) -> tuple[Kind, int]:
        (word,) = _HEADER.unpack_from(buffer.data, buffer.headroom - HEADER_BYTES)
        kind = _KINDS.get(word >> 24)
        if kind is None:
            raise self._broken(f"0x{word >> 24:02x} where a frame begins")
        return kind, word & 0xFFFFFF

    def _must(self, condition: bool, detail: str) -> None:
        if not condition:
            raise self._broken(detail)

    def _broken(self, detail: str) -> ChannelError:
        """The channel is of no use any more: nothing further is read from it."""
        self._fault = ChannelError(f"mesh/2: {detail}")
        return self._fault

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault


class _Due(IntEnum):
    """What the peer may send now. ``NOTHING``: it waits for us. ``IDLE``: *open*, and only a caller."""

    IDLE = 0
    NOTHING = 1
    ANSWER = 2
    VERDICT = 3
    DATA = 4


_IDLE, _NOTHING, _ANSWER, _VERDICT, _DATA = _Due
_HEADER = struct.Struct(">I")
_pack, _unpack = _HEADER.pack_into, _HEADER.unpack_from
_DATA_KIND, _DATA_WORD, _END_WORD = Kind.DATA.value, Kind.DATA.value << 24, Kind.END.value << 24
_OPEN = struct.Struct(">II")
_ATTRIBUTE = struct.Struct(">HH")
_KINDS = {kind.value: kind for kind in Kind}
_KNOWN = frozenset(kind.value for kind in Attribute)


def claims_of(opening: Open) -> dict[str, str]:
    """What the caller claims about its stream, for people: nothing of it is verified."""
    return {
        Attribute(kind).name.lower(): shown(value.decode("utf-8", "replace"))
        for kind, value in opening.attributes.items()
    }


def encode_verdict(word: str) -> bytes:
    """The whole frame *verdict*."""
    return _HEADER.pack(Kind.VERDICT << 24 | len(word)) + word.encode("ascii")


def encode_open(opening: Open) -> bytes:
    """What follows the header of *open*."""
    attributes = b"".join(_ATTRIBUTE.pack(kind, len(value)) + value for kind, value in opening.attributes.items())
    return _OPEN.pack(opening.number, min(max(opening.milliseconds, 0), 2**32 - 1)) + attributes


def decode_open(payload: bytes) -> Open | None:
    """The frame that this is; None if it is malformed: a length that does not add up, an attribute that comes twice, more
    than :data:`MAX_ATTRIBUTES` of them or :data:`MAX_ATTRIBUTE_BYTES`."""
    if not _OPEN.size <= len(payload) <= _OPEN.size + MAX_ATTRIBUTE_BYTES:
        return None
    number, milliseconds = _OPEN.unpack_from(payload)
    at, attributes = _OPEN.size, dict[int, bytes]()
    while at < len(payload):
        if at + _ATTRIBUTE.size > len(payload):
            return None
        kind, length = _ATTRIBUTE.unpack_from(payload, at)
        at += _ATTRIBUTE.size + length
        if at > len(payload) or kind in attributes or len(attributes) == MAX_ATTRIBUTES:
            return None
        attributes[kind] = payload[at - length : at]
    known = {kind: value for kind, value in attributes.items() if kind in _KNOWN}
    return Open(
        number, milliseconds, known, tuple(kind for kind in attributes if kind & _CRITICAL and kind not in known)
    )
