"""A duplex whose caller speaks HTTP/1.1 and is named to the app (:mod:`sidecar.relay.exchanges`). Pure.

How this works. :class:`HttpChannel` is a channel over the peer's: what is read from it are requests for the app, and what
is written to it are answers. So :class:`~sidecar.relay.duplex.Duplex` carries it as any other, with its ends, resets and
backpressure. :class:`HttpDuplex` adds what follows from exchanges: an answer makes room for the next request, the peer is
not read while its requests wait, and a fault has an answer. Other connections have nothing of this, not even a branch::

    peer's socket ── TLS (mesh/2) ──> HttpChannel.read  ── requests ──> app's socket
    peer's socket <── TLS (mesh/2) ── HttpChannel.write <── answers ─── app's socket
"""

from __future__ import annotations

from sidecar.relay.duplex import MAX_SILENT_CIPHERTEXT, Buffer, Buffers, Channel, ChannelError, Duplex, Ending, How, Op
from sidecar.relay.exchanges import BadAnswerError, Exchanges
from sidecar.relay.http_cuts import BadRequestError

_NOTHING = memoryview(b"")
_WAIT, _RECV_NET, _RECV_APP, _MORE = Op.WAIT, Op.RECV_NET, Op.RECV_APP, Op.MORE


class HttpFaultError(ChannelError):
    """A request or an answer that is not passed on. ``ending``: of the connection."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.detail or "")
        self.ending = ending


class HttpChannel:
    """See the module. ``spare``: a buffer that nothing is left in between two calls."""

    __slots__ = (
        "_again",
        "_done",
        "_ended",
        "_exchanges",
        "_inner",
        "_out",
        "_silent",
        "_spare",
        "answers",
        "ended",
        "unread",
    )

    quiet = False
    """See ``Channel``: what it reads may be refused, which is an answer to send."""

    def __init__(self, inner: Channel, exchanges: Exchanges, spare: Buffer) -> None:
        self._inner, self._exchanges, self._spare = inner, exchanges, spare
        self._out = _NOTHING  # for the app
        self._again = False  # more of it can be had without being fed
        self._ended = False  # the peer's stream has
        self._done = False  # our direction has
        self._silent = 0  # bytes of ciphertext since the last data
        self.answers = False  # what the app has sent waits to be passed on
        self.ended = self.unread = False

    @property
    def may_receive(self) -> bool:
        """Whether the peer may be read."""
        return not (self._ended or self._exchanges.is_full)

    # -- from the peer to the app --------------------------------------------------------------------------------------

    def feed(self, buffer: Buffer, size: int) -> None:
        """See ``Channel``."""
        self._silent += size
        self._inner.feed(buffer, size)

    def read(self, buffer: Buffer) -> int:
        """As ``Channel.read``. Raises :class:`HttpFaultError` too, when all before the fault was read."""
        if not self._out:
            if self._exchanges.raw and not self._exchanges.holds:
                return self._read_inner(buffer)
            self._again = self._advance(buffer)
        size = min(len(self._out), buffer.size)
        buffer.view[:size] = self._out[:size]
        self._out = self._out[size:]
        ends = self._ended and not (self._again or self._exchanges.holds)
        self.ended, self.unread = ends, ends or self._again
        return -1 if ends and not size else size

    def end_peer(self) -> None:
        """The peer's stream has ended without an end of its own."""
        self._ended = True

    def _read_inner(self, buffer: Buffer) -> int:
        """Returns the number of bytes of the peer; -1 at its end."""
        if self._ended:
            return -1
        size = self._inner.read(buffer)
        self.unread, self.ended = self._inner.unread, self._inner.ended
        if size > 0:
            self._silent = 0
        elif size < 0:
            self._ended = True
        elif self._silent > MAX_SILENT_CIPHERTEXT and not self.unread:
            raise ChannelError(f"{self._silent} bytes of TLS records without any data: cut")
        return size

    def _advance(self, buffer: Buffer) -> bool:
        """Reads the peer and forwards of its requests what may be forwarded. Returns whether more is to do at once."""
        exchanges, more = self._exchanges, False
        if self.may_receive:
            size = self._read_inner(buffer)
            more = (
                self.unread or size == buffer.size
            )  # as in `Duplex`: a full buffer tells nothing of what is behind it
            if size > 0:
                exchanges.receive(buffer.view[:size])
        try:
            more = exchanges.advance() or (more and self.may_receive)
        except BadRequestError as fault:
            raise self._refused(fault) from fault
        finally:
            self._out, exchanges.to_app = memoryview(exchanges.to_app), bytearray()
        return more

    def _refused(self, fault: BadRequestError) -> HttpFaultError:
        detail = f"a request was refused: {fault}"
        answered = self._exchanges.refuse(fault.status, f"The sidecar refused the request: {fault}.")
        self._flush()
        return HttpFaultError(Ending(How.REFUSED, detail, reset_app=True, reset_net=not answered))

    # -- from the app to the peer --------------------------------------------------------------------------------------

    def write(self, buffer: Buffer, size: int) -> None:
        """As ``Channel.write``. ``answers``: whether not all was passed on yet. Raises :class:`HttpFaultError` too."""
        if self._exchanges.raw:
            self._inner.write(buffer, size)
            return
        self._exchanges.answer(buffer.view[:size])
        self.pass_on()

    def pass_on(self) -> None:
        """Goes on with what the app has sent."""
        try:
            self.answers = self._exchanges.advance_answer()
        except BadAnswerError as fault:
            raise self._failed(fault) from fault
        self._flush()

    def end(self) -> None:
        """The app's stream has ended. Raises :class:`HttpFaultError` if that is within its answer."""
        try:
            self._exchanges.end_answer()
        except BadAnswerError as fault:
            raise self._failed(fault) from fault
        self._flush()

    def close(self) -> None:
        """See ``Channel``."""
        if not self._done:
            self._done = True
            self._inner.close()

    def _failed(self, fault: BadAnswerError) -> HttpFaultError:
        answered = self._exchanges.refuse(502, f"The sidecar got no answer from the app: it {fault}.")
        self._flush()
        self.answers = False
        return HttpFaultError(Ending(How.APP_RESET, f"the app {fault}", reset_app=True, reset_net=not answered))

    def _flush(self) -> None:
        out, self._exchanges.to_caller = self._exchanges.to_caller, bytearray()
        if not self._done:
            spare = self._spare
            for at in range(0, len(out), spare.size):
                part = out[at : at + spare.size]
                spare.view[: len(part)] = part
                self._inner.write(spare, len(part))
        if self._exchanges.closing:
            self.close()

    # -- as the peer's channel -----------------------------------------------------------------------------------------

    @property
    def dataless(self) -> int:
        """See ``Channel``."""
        return self._inner.dataless

    def pending(self) -> int:
        """See ``Channel``."""
        return self._inner.pending()

    def take(self, buffer: Buffer) -> int:
        """See ``Channel``."""
        return self._inner.take(buffer)

    def rest(self) -> None:
        """See ``Channel``."""
        self._inner.rest()


class HttpDuplex(Duplex):
    """See the module. ``element`` and ``host``: as :class:`~sidecar.relay.exchanges.Exchanges` takes them."""

    __slots__ = ("_http",)

    def __init__(
        self,
        channel: Channel,
        buffers: Buffers,
        *,
        tolerate_missing_close_notify: bool = False,
        element: bytes | None,
        host: bytes,
    ) -> None:
        self._http = HttpChannel(channel, Exchanges(element, host), buffers.plain_in)
        super().__init__(self._http, buffers, tolerate_missing_close_notify=tolerate_missing_close_notify)

    def next(self) -> Op:
        """As ``Duplex.next``. What the app has sent is passed on before more is read, of whomever."""
        op = super().next()
        if op in (_WAIT, _RECV_NET, _RECV_APP) and self._http.answers and self._net_out and not self._net_left:
            return _MORE
        return op

    def more(self) -> Op:
        """See ``Duplex``."""
        if self._http.answers and self._net_out and not self._net_left:
            self._more = True
            try:
                self._http.pass_on()
            except ChannelError as error:
                self._end_broken(error)
            self._take = self._data_out = True
        return super().more()

    def received_net(self, size: int) -> Op:
        """See ``Duplex``. A FIN that counts as the peer's end comes behind the requests that wait."""
        if size or not self._tolerant:
            return super().received_net(size)
        self._http.end_peer()
        self._more = True
        return self.next()

    def received_app(self, size: int) -> Op:
        """See ``Duplex``. An answer may have ended, and so the next request's turn have come."""
        self._more = True
        if not size:
            try:
                self._http.end()
            except ChannelError as error:
                self._app_in, self._take = False, True
                self._end_broken(error)
                return self.next()
        return super().received_app(size)

    def _room(self) -> bool:
        return self._http.may_receive and super()._room()

    def _decrypt(self) -> int:
        self._silent = 0  # bytes that wait for their turn are data too: the channel counts
        return super()._decrypt()

    def _end_broken(self, error: ChannelError) -> None:
        if isinstance(error, HttpFaultError):
            self._end(error.ending)
        else:
            super()._end_broken(error)
