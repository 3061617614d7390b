"""The data half of a TLS channel: after the handshake, bytes in and bytes out of memory.

How this works. These are the calls of :class:`sidecar.relay.duplex.Channel`. They are the hot path, so they call the C
library directly, with buffers that were allocated once. OpenSSL's two memory BIOs hold the ciphertext on its way.

The invariants:

* A call does a bounded amount of work, whatever the peer has sent.
* A memory BIO grows and never shrinks, so :meth:`TlsData.rest` gives empty ones back.
"""

from __future__ import annotations

from typing import Any

from sidecar.relay.duplex import Buffer, ChannelError
from sidecar.relay.frames import HEADER_BYTES
from sidecar.transport.bindings import ffi as _ffi
from sidecar.transport.bindings import lib as _lib
from sidecar.transport.bindings import take_errors
from sidecar.transport.tls_errors import record_fault

# Local names are faster on the hot path.
_SSL_read, _SSL_write, _SSL_get_error = _lib.SSL_read, _lib.SSL_write, _lib.SSL_get_error
_SSL_pending = _lib.SSL_pending
_BIO_read, _BIO_write, _BIO_get_mem_data = _lib.BIO_read, _lib.BIO_write, _lib.BIO_get_mem_data
_from_buffer = _ffi.from_buffer
_WANT_READ, _ZERO_RETURN, _NULL = _lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_ZERO_RETURN, _ffi.NULL

MAX_READ_COST = 128
"""How much one :meth:`TlsData.read` does: records with data, each of which counts 1, and without, each of which counts 8 (a
KeyUpdate derives keys, and is answered if it asks for it). 0.1 to 0.2 ms."""

_DATALESS_COST = 8


class TlsData:
    """One connection's TLS state over memory, for its data."""

    __slots__ = (
        "_cipher_in", "_cipher_out", "_connection", "_fault", "_left_before", "_ssl", "_start", "dataless", "ended",
        "quiet", "unread",
    )  # fmt: skip

    def __init__(self, connection: Any) -> None:
        """``connection``: an ``OpenSSL.SSL.Connection`` over memory."""
        self._connection = connection
        self._ssl = connection._ssl
        # pyOpenSSL sets it. With it one SSL_read works off thousands of KeyUpdates: the loop of `read` bounds that.
        _lib.SSL_clear_mode(self._ssl, _lib.SSL_MODE_AUTO_RETRY)
        self._cipher_in = connection._into_ssl
        self._cipher_out = connection._from_ssl
        self._fault: ChannelError | None = None
        self._start = _ffi.new("char **")
        self.ended = self.unread = self.quiet = False
        self.dataless = self._left_before = 0

    def feed(self, buffer: Buffer, size: int) -> None:
        """Takes ``size`` bytes of received ciphertext from the buffer's start."""
        _BIO_write(self._cipher_in, buffer.pointer, size)

    def read(self, buffer: Buffer) -> int:
        """Decrypts into the buffer as many records as are complete and fit, up to :data:`MAX_READ_COST`. Returns the number
        of bytes; 0 when the next record is incomplete, -1 at the peer's close_notify. Raises :class:`ChannelError`. After
        fewer bytes than fit, ``unread`` is whether the next call has something to return, and ``ended`` whether that is an
        end or a fault; ``quiet``, whether it met data alone. ``dataless`` counts records without data, except those with
        nothing behind them yet."""
        ssl, pointer, filled, size, cost, left = self._ssl, buffer.pointer, 0, buffer.size, 0, 0
        self.quiet = True
        if self.unread:
            if self._fault is not None:
                raise self._fault
            self.unread = self.ended
            left = _BIO_get_mem_data(self._cipher_in, self._start)
        while filled < size:
            count = _SSL_read(ssl, pointer + filled, size - filled)
            if count > 0:
                filled += count
                left = _BIO_get_mem_data(self._cipher_in, self._start)
                if not left:
                    break  # drained: this look-up is cheaper than one more SSL_read
                cost += 1
            else:
                self.quiet = False
                error = _SSL_get_error(ssl, count)
                if error != _WANT_READ:
                    self.unread = self.ended = True
                    if error == _ZERO_RETURN:
                        return filled or -1
                    self._fault = _channel_error()
                    if not filled:
                        raise self._fault
                    break
                before, left = left, _BIO_get_mem_data(self._cipher_in, self._start)
                if not left:
                    break
                # Bytes behind it mean that the record was whole (AUTO_RETRY is off), and had no data. A reply to a KeyUpdate
                # is a call of its own, which takes no bytes.
                self.dataless += left != before
                self.unread = True
                cost += _DATALESS_COST
            if cost >= MAX_READ_COST:
                self.unread = True
                break
        return filled

    def write(self, buffer: Buffer, size: int) -> None:
        """Encrypts ``size`` bytes from the buffer's start, always all of them: memory does not block. Raises
        :class:`ChannelError`."""
        if _SSL_write(self._ssl, buffer.pointer, size) != size:
            raise _channel_error()

    # The same, a record at a time, for frames (`sidecar.relay.frames.Records`).

    def read_record(self, buffer: Buffer, at: int, limit: int) -> int:
        """Decrypts at most one record, and at most ``limit`` bytes of it, to ``at`` of the buffer. Returns their number; 0
        if the record is incomplete, or has no data and ``unread`` is set; -1 at a close_notify. Raises
        :class:`ChannelError`."""
        self.unread = self.ended
        count: int = _SSL_read(self._ssl, buffer.pointer + at, limit)
        if count > 0:
            return count
        error = _SSL_get_error(self._ssl, count)
        if error == _WANT_READ:
            left = _BIO_get_mem_data(self._cipher_in, self._start)
            if left:
                self.dataless += left != self._left_before  # as in `read`: a reply takes no bytes
                self.unread = True
            self._left_before = left
            return 0
        self.unread = self.ended = True
        if error == _ZERO_RETURN:
            return -1
        self._fault = _channel_error()
        raise self._fault

    def rest_of_record(self) -> int:
        """How many decrypted bytes of the last record are unread."""
        size: int = _SSL_pending(self._ssl)
        return size

    def more(self) -> bool:
        """Whether received ciphertext waits to be decrypted: a part of a record, or more."""
        return bool(_BIO_get_mem_data(self._cipher_in, self._start))

    def write_record(self, buffer: Buffer, at: int, size: int) -> None:
        """Encrypts ``size`` bytes from ``at`` of the buffer. They begin a record. Raises :class:`ChannelError`."""
        if _SSL_write(self._ssl, buffer.pointer + at, size) != size:
            raise _channel_error()

    def close(self) -> None:
        """Produces a close_notify: our direction ends, the peer's continues (RFC 8446 6.1)."""
        if _lib.SSL_shutdown(self._ssl) < 0:
            _lib.ERR_clear_error()  # the stream is broken already; `read` reports that

    def pending(self) -> int:
        """How many bytes of ciphertext wait to be sent."""
        size: int = _BIO_get_mem_data(self._cipher_out, self._start)
        return size

    def take(self, buffer: Buffer) -> int:
        """Moves waiting ciphertext into the buffer; returns the number of bytes."""
        count: int = _BIO_read(self._cipher_out, buffer.pointer, buffer.size)
        return max(count, 0)

    def rest(self) -> None:
        """Gives back the memory that the channel does not need until more bytes come, if no ciphertext waits in it."""
        if _BIO_get_mem_data(self._cipher_in, self._start) or _BIO_get_mem_data(self._cipher_out, self._start):
            return
        cipher_in, cipher_out = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
        if _NULL in (cipher_in, cipher_out):
            _lib.BIO_free(cipher_in)  # does nothing with NULL
            _lib.BIO_free(cipher_out)
            return
        _lib.SSL_set_bio(self._ssl, cipher_in, cipher_out)  # frees those before
        self._cipher_in = self._connection._into_ssl = cipher_in
        self._cipher_out = self._connection._from_ssl = cipher_out

    # The same with `bytes`, for the few bytes of handshake and verdict.

    def take_all(self) -> bytes:
        """All ciphertext that waits to be sent."""
        if not (size := self.pending()):
            return b""
        data = bytearray(size)
        _BIO_read(self._cipher_out, _from_buffer(data), size)
        return bytes(data)

    def read_some(self, limit: int) -> bytes | None:
        """At most ``limit`` decrypted bytes; b"" when the next record is incomplete, None at close_notify. Raises
        :class:`ChannelError`."""
        buffer = make_buffer(limit)
        count = self.read(buffer)
        return None if count < 0 else bytes(buffer.view[:count])

    def feed_bytes(self, data: bytes) -> None:
        self._connection.bio_write(data)

    def write_bytes(self, data: bytes) -> None:
        """As :meth:`write`, in one record if it fits."""
        if _SSL_write(self._ssl, _from_buffer(data), len(data)) != len(data):
            raise _channel_error()


def make_buffer(size: int) -> Buffer:
    """A buffer that the C library reads and writes in place."""
    data = bytearray(HEADER_BYTES + size)
    start = _ffi.from_buffer("char[]", data, require_writable=True)
    return Buffer(data, pointer=start + HEADER_BYTES, headroom=HEADER_BYTES)


def _channel_error() -> ChannelError:
    message, alert = record_fault(take_errors())
    return ChannelError(message, alert=alert, altered=alert is None)
