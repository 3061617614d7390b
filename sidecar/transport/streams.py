"""The frames between two streams of a kept channel, over its socket: plain generators, for :mod:`sidecar.relay.strand`."""

from __future__ import annotations

import math
import socket

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.relay.duplex import Buffers, ChannelError
from sidecar.relay.frames import ClosedChannelError, FramedChannel, Open
from sidecar.relay.poller import WRITABLE
from sidecar.relay.strand import Ready, Steps
from sidecar.transport.tls import TlsChannel
from sidecar.transport.verdict import admit


class LostChannelError(Exception):
    """The channel has ended, or is of no use any more, before the peer's answer came. No byte of an app was sent."""

    def refusal(self) -> Refused:
        """The same as a refusal, where no other channel is tried instead."""
        cause = self.__cause__
        if isinstance(cause, ChannelError) and cause.alert is not None:
            return Refused(Reason.PEER_REFUSED, f"was refused: {cause}", peer_reason=cause.alert)
        if isinstance(cause, ChannelError):  # no refusal: an altered record, or a broken peer
            detail = f"received a broken record in place of the peer's verdict: {cause}"
            return Refused(Reason.TRUNCATED, detail, altered=cause.altered)
        if isinstance(cause, OSError):
            detail = f"lost the connection before the peer's verdict: {cause.strerror or cause}"
            return Refused(Reason.PEER_REFUSED, detail)
        return Refused(Reason.PEER_REFUSED, f"saw {self} without a verdict")


def receive(
    sock: socket.socket, frames: FramedChannel, buffers: Buffers, until: float = math.inf
) -> Steps[Open | str | None]:
    """The next frame of the peer, see :meth:`FramedChannel.receive`; None if it has not come by ``until``. Raises
    :class:`LostChannelError`."""
    try:
        while (frame := frames.receive(buffers.plain_out)) is None:
            if frames.unread:
                yield trio.lowlevel.checkpoint  # others have their turn
                continue
            # Before the first call: mostly nothing is here yet, and a call that says so costs more.
            if not (yield Ready(sock, until=until)):
                return None
            try:
                size = sock.recv_into(buffers.cipher_in.view)
            except BlockingIOError:
                continue
            if not size:
                raise LostChannelError("the peer close the connection")
            frames.feed(buffers.cipher_in, size)
    except ClosedChannelError:
        raise LostChannelError("the peer end the connection") from None
    except (ChannelError, OSError) as error:
        raise LostChannelError(str(error)) from error
    return frame


def send(sock: socket.socket, channel: TlsChannel, until: float = math.inf) -> Steps[None]:
    """Sends all ciphertext that waits in the channel. Raises :class:`LostChannelError`, also if it is not sent by then."""
    data = memoryview(channel.take_all())
    try:
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                if not (yield Ready(sock, WRITABLE, until)):
                    raise LostChannelError("the peer does not read") from None
    except OSError as error:
        raise LostChannelError(str(error)) from error


def ask(
    sock: socket.socket,
    channel: TlsChannel,
    frames: FramedChannel,
    buffers: Buffers,
    confirmed_by: float,
    until: float,
) -> Steps[None]:
    """The caller's side of a stream that is open: sends what waits, *open* in it, and waits for the verdict. Returns if the
    callee lets us in. Raises :class:`~sidecar.identity.reasons.Refused` at a verdict that is none, and
    :class:`LostChannelError`: also if *opened* has not come by ``confirmed_by``. Raises TooSlowError if the verdict has not
    come by ``until``."""
    yield from send(sock, channel, confirmed_by)
    answer = yield from receive(sock, frames, buffers, confirmed_by)
    if answer == "":
        answer = yield from receive(sock, frames, buffers, until)
        if answer is None:
            raise trio.TooSlowError
    if answer is None:
        raise LostChannelError("the peer did not confirm in time")
    assert isinstance(answer, str)  # noqa: S101 (a caller's channel takes no *open*)
    admit(answer.encode("latin-1"))


def answer(
    sock: socket.socket, channel: TlsChannel, frames: FramedChannel, reason: Reason, until: float
) -> Steps[None]:
    """The callee's verdict on the present stream. Raises :class:`LostChannelError`."""
    try:
        frames.give_verdict(reason.value)
    except ChannelError as error:
        raise LostChannelError(str(error)) from error
    yield from send(sock, channel, until)


def retire(sock: socket.socket, channel: TlsChannel) -> None:
    """Ends an idle channel cleanly, without waiting."""
    try:
        channel.close()
        sock.send(channel.take_all())
    except OSError:
        pass  # it is gone already
    finally:
        channel.free()
        sock.close()
