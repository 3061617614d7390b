"""One connection between a TLS channel and a plaintext app, as a state machine. Pure: no sockets, no time.

How this works. :meth:`Duplex.next` returns the one thing to do now, an :class:`Op`. The caller (``relay.py``) does it and
reports the outcome with the method of the same name, which returns the next :class:`Op`. This goes on until the answer is
``WAIT`` (nothing can move before a socket becomes ready) or ``END``.

``net`` is the peer's side (ciphertext), ``app`` the plaintext side. The invariants:

* The four buffers belong to all connections of a relay. No step leaves anything in them: what a socket does not take is
  copied to ``_app_left`` or ``_net_left``.
* While something is left for one side, the other side is not read. So memory per connection is bounded, and backpressure
  needs no further mechanism.
* Each direction closes on its own. TLS 1.3 allows this half-close (RFC 8446 6.1).
* An end is passed on only after the last byte before it.
* It fails closed: at input that is not understood the app gets a reset, and the peer an alert.

How each end is passed on:

* The app ends cleanly (FIN): a close_notify follows the last byte, and the other direction continues.
* The peer ends cleanly (close_notify): the app gets a FIN after the last byte, and the other direction continues.
* The peer's stream ends in any other way: TRUNCATED. The app gets the authentic bytes, then a reset, never a clean end.
* The app resets: what it sent before goes out, then the peer's connection is reset.
* The app closes without reading everything (an early HTTP 413): its answer goes out whole, then
  a clean end or a reset, as the app closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Protocol

MAX_SILENT_CIPHERTEXT = 64 * 1024
"""Bytes of ciphertext without any data (empty records, KeyUpdates) that a peer may send before it is cut."""

MAX_DATALESS_RECORDS = 1000
DATA_PER_DATALESS_RECORD = 16
"""How many records without data (KeyUpdates, session tickets) a peer may send in advance, and the bytes of data that earn it
one more. A peer needs one KeyUpdate in 2**24 full records (RFC 8446 5.5); each costs us as much as 20 KiB of data."""

MAX_PENDING_CIPHERTEXT = 256 * 1024
"""Bytes. While more ciphertext than this waits for a peer that does not read, nothing is read from that peer either:
reading may produce replies."""


class Buffer:
    """A reusable block of memory. ``pointer``: the same for a channel that works in C; opaque to all others. ``data``: with
    ``headroom`` bytes in front, for a header that is sent or received with it (:mod:`sidecar.relay.frames`)."""

    __slots__ = ("data", "headroom", "pointer", "size", "view")

    def __init__(self, data: bytearray, pointer: Any = None, headroom: int = 0) -> None:
        self.data, self.headroom = data, headroom
        self.view = memoryview(data)[headroom:]
        self.size = len(self.view)
        self.pointer = pointer


@dataclass(frozen=True, slots=True)
class Buffers:
    """One buffer for each kind of step: ciphertext received and to send, plaintext received and to send."""

    cipher_in: Buffer
    plain_out: Buffer
    plain_in: Buffer
    cipher_out: Buffer


class ChannelError(Exception):
    """The peer's stream is broken: ``altered``, or ended by the peer's ``alert``. Nothing more can be read from it."""

    def __init__(self, detail: str, *, alert: str | None = None, altered: bool = False) -> None:
        super().__init__(detail)
        self.alert, self.altered = alert, altered


class Channel(Protocol):
    """An authenticated stream over memory: :class:`sidecar.transport.tls.TlsChannel`, or a test's stand-in.

    ``read`` returns the number of bytes, 0 when the next record is incomplete, -1 at the peer's close_notify. It raises
    :class:`ChannelError`. ``unread``: whether the next ``read`` may return more without being fed, since the last one met an
    end, records without data, or too many records to decrypt at once. ``ended``: whether it was an end, or a fault.
    ``quiet``: whether it met data alone, so that it has left nothing to send. ``dataless``: how many records without data
    have come with other records behind them. ``rest`` gives back memory that is not needed until more bytes come.
    """

    @property
    def unread(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    @property
    def quiet(self) -> bool: ...
    @property
    def dataless(self) -> int: ...
    @property
    def pending(self) -> Callable[[], int]: ...
    @property
    def take(self) -> Callable[[Buffer], int]: ...
    @property
    def rest(self) -> Callable[[], None]: ...

    def feed(self, buffer: Buffer, size: int, /) -> None: ...
    def read(self, buffer: Buffer, /) -> int: ...
    def write(self, buffer: Buffer, size: int, /) -> None: ...
    def close(self) -> None: ...


class Op(IntEnum):
    """What to do now."""

    WAIT = 0
    RECV_NET = 1
    SEND_APP = 2
    RECV_APP = 3
    SEND_NET = 4
    SHUT_APP = 5
    END = 6
    MORE = 7
    """Go on decrypting what was received: :meth:`Duplex.more`. Other connections may have their turn before."""


class How(Enum):
    """How a connection ended, in terms of app and peer. The direction decides which ``Reason`` that is."""

    OK = "ok"
    APP_RESET = "app_reset"  # the plaintext side broke
    PEER_RESET = "peer_reset"  # the peer's side broke after its stream had ended cleanly
    PEER_ALERT = "peer_alert"  # the peer sent an alert before its first byte of data
    TRUNCATED = "truncated"  # the peer's stream ended without close_notify
    REFUSED = "refused"  # the peer sent what its app is not to get (`http_duplex`)


@dataclass(frozen=True, slots=True)
class Ending:
    """``reset_app``, ``reset_net``: whether that side is closed with a reset instead of a clean end. ``alert``: the peer's
    alert, if one ended the connection. ``altered``: a record was, on the way or by a broken peer."""

    how: How
    detail: str | None = None
    reset_app: bool = False
    reset_net: bool = False
    alert: str | None = None
    altered: bool = False


_WAIT, _RECV_NET, _SEND_APP, _RECV_APP, _SEND_NET, _SHUT_APP, _END, _MORE = Op
_SAID = (How.APP_RESET, How.REFUSED)
_NOTHING = memoryview(b"")


class Duplex:
    """The state of one connection. ``out``: what to send at ``SEND_*``. ``ending``: set with ``END``. ``to_app`` and
    ``from_app`` count the bytes that the app's socket took and gave.

    ``net_r``, ``net_w``, ``app_r``, ``app_w`` are readiness: true until a call would block, set again by the caller. All
    are true at first: data may already wait in the sockets, and in the channel (sent with the handshake's last flight).
    """

    __slots__ = (
        "_app_clean", "_app_in", "_app_left", "_app_out", "_app_shut", "_buffers", "_channel", "_data_out", "_dataless",
        "_dataless_debt", "_dataless_paid", "_lost", "_more", "_net_left", "_net_out", "_paused", "_peer_done", "_silent",
        "_take", "_tolerant", "_turn_app", "aborted", "app_r", "app_w", "app_was_last", "decided", "ending", "from_app",
        "net_r", "net_w", "out", "to_app",
    )  # fmt: skip

    def __init__(self, channel: Channel, buffers: Buffers, *, tolerate_missing_close_notify: bool = False) -> None:
        self._channel = channel
        self._buffers = buffers
        self._tolerant = tolerate_missing_close_notify
        self.net_r = self.net_w = self.app_r = self.app_w = True
        # From the app to the peer:
        self._app_in = True  # the app's stream has not ended
        self._app_clean = True  # its end is a FIN, not a reset
        self._take = True  # the channel may hold ciphertext to send
        self._data_out = False  # the unsent ciphertext holds data, not only a close_notify
        self._net_left = _NOTHING  # what the peer's socket did not take
        self._net_out = True  # the peer still takes bytes
        self._lost = False  # the peer stopped taking bytes while data was unsent
        # From the peer to the app:
        self._more = True  # the channel may hold data, or an end
        self._paused = False  # it holds more than is decrypted at once
        self._peer_done = False  # its close_notify has arrived
        self._silent = 0  # bytes of ciphertext since the last data
        self._dataless = 0  # the channel's records without data, as of the last look
        self._dataless_debt = 0  # those of them that no data has paid for
        self._dataless_paid = 0  # `to_app` as of the last look
        self._app_left = _NOTHING  # what the app's socket did not take
        self._app_out = True  # the app still takes bytes
        self._app_shut = False  # the FIN to the app was sent
        self._turn_app = True  # the app is read next when both sides can be read
        self.aborted = False  # a side was reset before its stream had ended
        self.decided: Ending | None = None  # the decided ending; what is left goes out first, then END
        self.out = _NOTHING
        self.to_app = self.from_app = 0
        self.app_was_last = False  # the last bytes that were read came from the app
        self.ending: Ending | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether bytes wait for a side that does not read."""
        return bool(self._net_left or self._app_left)

    # -- the next operation --------------------------------------------------------------------------------------------

    def next(self) -> Op:
        """The one thing to do now. Data that is here goes first, then ends, then more is read."""
        if self._net_left:
            if self.net_w:
                self.out = self._net_left
                return _SEND_NET
        elif self._take and self._net_out:
            size = self._channel.take(self._buffers.cipher_out)
            self._take = size == self._buffers.cipher_out.size
            if size:
                self.out = self._buffers.cipher_out.view[:size]
                return _SEND_NET
        if self._app_left:
            if self.app_w:
                self.out = self._app_left
                return _SEND_APP
        elif self._more and self._app_out and self.decided is None:
            if self._paused:
                return _MORE
            size = self._decrypt()
            if size:
                self.out = self._buffers.plain_out.view[:size]
                return _SEND_APP
            return self.next()  # decrypting may have produced replies or an alert: these go first
        if self._peer_done or self.decided is not None:
            op = self._next_end()
            if op is not None:
                return op
        from_app = self.app_r and self._app_in and self._net_out and not self._net_left
        from_net = self.net_r and not self._peer_done and self._app_out and not self._app_left and self._room()
        if from_app and (self._turn_app or not from_net):
            self._turn_app = False
            return _RECV_APP
        if from_net:
            self._turn_app = True
            return _RECV_NET
        return _WAIT

    def _room(self) -> bool:
        return not self._net_left or self._channel.pending() <= MAX_PENDING_CIPHERTEXT

    def _decrypt(self) -> int:
        """Decrypts into ``plain_out`` and returns the number of bytes; 0 also at an end or a fault, which it records."""
        buffer = self._buffers.plain_out
        self._more = False
        channel = self._channel
        try:
            size = channel.read(buffer)
        except ChannelError as error:
            self._take = True  # an alert
            self._end_broken(error)
            return 0
        if not channel.quiet:
            self._take = True
        if channel.unread and size >= 0:
            self._more = True
            self._paused = not channel.ended
            self._count_dataless()
        if size > 0:
            self._silent, self.app_was_last = 0, False
            self._more = self._more or size == buffer.size
            return size
        if size < 0:
            self._peer_done = True
        elif self._more:
            pass  # data may follow
        elif self._silent > MAX_SILENT_CIPHERTEXT:
            self._end(
                Ending(How.TRUNCATED, f"{self._silent} bytes of TLS records without any data: cut", reset_app=True)
            )
        return 0

    def _count_dataless(self) -> None:
        """Cuts a peer whose records without data are out of proportion to its data."""
        if self._channel.dataless == self._dataless:
            return
        paid = (self.to_app - self._dataless_paid) // DATA_PER_DATALESS_RECORD
        came = self._channel.dataless - self._dataless
        self._dataless_debt = max(self._dataless_debt - paid, 0) + came
        self._dataless, self._dataless_paid = self._channel.dataless, self.to_app
        if self._dataless_debt > MAX_DATALESS_RECORDS:
            detail = f"{self._dataless_debt} TLS records without data (KeyUpdates) with too little data among them: cut"
            self._end(Ending(How.TRUNCATED, detail, reset_app=True))

    def _next_end(self) -> Op | None:
        """The operation that passes an end on; None while something must go out first, or the connection continues."""
        if self.decided is not None:
            # What an app sent before its reset must still go out, or why it was refused; what is for a broken peer need not.
            if self._app_left or (self._net_left and self.decided.how in _SAID):
                return _WAIT
            self.ending = self.decided
            return _END
        # The peer's end is read only after its last byte was passed on: the app has everything.
        if not self._app_shut:
            return _SHUT_APP
        if not self._net_out:
            self.decided = Ending(How.PEER_RESET, "the peer closed before it had read all", reset_app=True)
            self.ending = self.decided if self._lost else Ending(How.OK)
            return _END
        if self._app_in or self._net_left:
            return None
        self.ending = Ending(How.OK)
        return _END

    def _end_broken(self, error: ChannelError) -> None:
        refused = error.alert is not None and not self.to_app
        how = How.PEER_ALERT if refused else How.TRUNCATED
        self._end(Ending(how, str(error), reset_app=True, alert=error.alert, altered=error.altered))

    def _end(self, ending: Ending) -> None:
        """Decides the ending once: the first cause counts."""
        if self.decided is None:
            self.decided = ending

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def more(self) -> Op:
        """It has its turn to decrypt more."""
        self._paused = False
        return self.next()

    def received_net(self, size: int) -> Op:
        """``size`` bytes of ciphertext are in ``cipher_in``; 0 is a FIN."""
        if size:
            self._channel.feed(self._buffers.cipher_in, size)
            self._silent += size
            self._more = True
        elif self._tolerant:
            self._peer_done = True
        else:
            detail = "the peer's stream ended without close_notify: an attacker may have cut it, or the peer is broken"
            self._end(Ending(How.TRUNCATED, detail, reset_app=True))
        return self.next()

    def received_app(self, size: int) -> Op:
        """``size`` bytes of plaintext are in ``plain_in``; 0 is a FIN."""
        if size:
            self.from_app += size
            self.app_was_last = True
            try:
                self._channel.write(self._buffers.plain_in, size)
            except ChannelError as error:  # a fault in the peer's stream, behind data that the app has not taken yet
                self._end_broken(error)
            self._take = self._data_out = True
            return self.next()
        self._app_in = False
        if self._app_clean:
            self._channel.close()
            self._take = True
        if not self._app_out:
            detail = "the app closed before it had read all"
            self._end(Ending(How.APP_RESET, detail, reset_net=not self._app_clean))
        return self.next()

    def sent_net(self, size: int) -> Op:
        """The peer's socket took ``size`` bytes of ``out``."""
        if size == len(self.out):
            self._net_left = _NOTHING
            self._data_out = self._data_out and self._take
        else:
            self._net_left = _kept(self.out, size)
        return self.next()

    def sent_app(self, size: int) -> Op:
        """The app's socket took ``size`` bytes of ``out``."""
        self.to_app += size
        self._app_left = _NOTHING if size == len(self.out) else _kept(self.out, size)
        return self.next()

    def shut_app(self) -> Op:
        """The FIN to the app was sent, or failed because the app is gone; reading from it then shows how it ended."""
        self._app_shut = True
        return self.next()

    def blocked(self, op: Op) -> Op:
        """The call would have blocked: nothing was received or sent."""
        if op is _SEND_NET:
            self.net_w = False
            self._net_left = _kept(self.out, 0)
        elif op is _SEND_APP:
            self.app_w = False
            self._app_left = _kept(self.out, 0)
        elif op is _RECV_NET:
            self.net_r = False
        else:
            self.app_r = False
        return self.next()

    def failed(self, op: Op, *, after_fin: bool = False) -> Op:
        """The socket broke (a reset, a dead host). ``after_fin``: that side had sent a FIN before (EPIPE means this)."""
        if op is _RECV_NET:
            self._end(Ending(How.TRUNCATED, "the peer's connection was reset before its stream ended", reset_app=True))
        elif op is _SEND_NET:
            self.aborted = self.aborted or not after_fin
            # The kernel reports a reset once, and did so here: a later read would return 0, as at a FIN.
            self._tolerant = self._tolerant and after_fin
            self._lose_peer(unsent=self._app_in or self._data_out)
        elif op is _RECV_APP:
            self._app_in = self._app_out = False
            self._app_left = _NOTHING
            self._end(Ending(How.APP_RESET, "the app reset the connection", reset_net=True))
        else:
            self._app_clean = after_fin
            self.aborted = self.aborted or not after_fin
            self._lose_app()
        return self.next()

    def rest(self) -> None:
        """Gives back memory: the connection is idle."""
        self.out = _NOTHING
        self._channel.rest()

    def peer_gone(self, *, aborted: bool = False) -> None:
        """The peer's connection is dead in both directions. A stream that ended is not read, so only this reports it.
        ``aborted``: it was reset, and no FIN was seen before."""
        self.aborted = self.aborted or aborted
        if self._net_out:
            self._lose_peer(unsent=self._data_out)

    def app_gone(self, *, aborted: bool = False) -> None:
        """The app's connection is dead in both directions. A stream that ended is not read, so only this reports it.
        ``aborted``: it was reset, and no FIN was seen before."""
        self.aborted = self.aborted or aborted
        if self._app_out and not self._app_shut:
            self._lose_app()

    @property
    def lost(self) -> bool:
        """Whether a side is gone: nothing but what it had sent can still move."""
        return self.aborted or not (self._net_out and self._app_out)

    def give_up(self) -> Ending:
        """The ending of a connection whose one side is gone, and whose other side takes nothing more."""
        if self.decided is None and self._net_out:
            self._end(
                Ending(How.APP_RESET, "the app is gone, and the peer reads no more", reset_app=True, reset_net=True)
            )
        elif self.decided is None:
            how = How.PEER_RESET if self._peer_done else How.TRUNCATED
            self._end(Ending(how, "the peer is gone, and the app reads no more", reset_app=True, reset_net=True))
        assert self.decided is not None  # noqa: S101 (`_end` sets it)
        return self.decided

    def vanish(self, *, peer: bool, seconds: float) -> None:
        """The peer's or the app's host has acknowledged nothing for so long. What was read of it still goes out."""
        detail = (
            f"the {'peer' if peer else 'app'} acknowledged nothing for {seconds:g} s: its host or the network is gone"
        )
        if peer:
            self._net_out = self._take = False
            self._net_left = _NOTHING
            how = How.PEER_RESET if self._peer_done else How.TRUNCATED
        else:
            self._app_in = self._app_out = False
            self._app_left = _NOTHING
            how = How.APP_RESET
        self._end(Ending(how, detail, reset_app=True, reset_net=True))

    def _lose_app(self) -> None:
        """The app takes nothing more. Its answer may still be in its socket: that is read, and its end ends everything."""
        self._app_out = False
        self._app_left = _NOTHING
        if not self._net_out:
            self._end(Ending(How.APP_RESET, "both sides closed before they had read all"))
        elif not self._app_in:
            self._end(Ending(How.APP_RESET, "the app closed before it had read all"))

    def _lose_peer(self, *, unsent: bool) -> None:
        """The peer takes nothing more. What it has sent is still read, to its end."""
        self._lost = unsent
        self._net_out = self._take = False
        self._net_left = _NOTHING
        if not self._app_out:
            self._end(Ending(How.APP_RESET, "both sides closed before they had read all"))


def _kept(out: memoryview, taken: int) -> memoryview:
    """The rest of ``out``, copied: other connections use the shared buffer."""
    return memoryview(bytes(out[taken:]))
