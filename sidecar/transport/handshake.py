"""From a connected socket to an authenticated peer and its verdict: drives a TLS channel over a socket.

The relay takes over afterwards. The handshake is a plain generator (:mod:`sidecar.relay.strand`): it costs no task. All that
a peer can do wrong here is raised as :class:`~sidecar.identity.reasons.Refused`.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from functools import partial

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.relay import frames
from sidecar.relay.duplex import ChannelError
from sidecar.relay.poller import WRITABLE
from sidecar.relay.strand import Called, Ready, Steps
from sidecar.transport import sockets, verdict
from sidecar.transport.gate import Gate
from sidecar.transport.stream import CutStreamError, SilentStreamError, read_data
from sidecar.transport.tls import TlsChannel


def shake_hands(
    sock: socket.socket,
    channel: TlsChannel,
    gate: Gate | None = None,
    address: str | None = None,
    greeted: Callable[[], object] = lambda: None,
    last: Callable[[], object] = lambda: None,
    until: float = math.inf,
) -> Steps[None]:
    """Runs the handshake until the peer is verified. All that the handshake leaves for the peer is sent, alerts included.
    Raises :class:`Refused`: as ``probe`` if an accepted socket was closed or reset by its peer before its first byte.
    Raises :class:`trio.TooSlowError` if it is not done by ``until``.

    ``gate`` bounds the steps per tick where many handshakes may come at once. ``address``: an inbound connection's, for the
    turns at the gate. ``greeted`` is called when the peer's ClientHello is complete, perhaps more than once. ``last`` is
    called when the peer is verified: what it writes travels with our last flight.
    """
    lost = Reason.PROBE if channel.accepts else Reason.HANDSHAKE_FAILED
    try:
        # The caller speaks first, so a silent one takes no turn at the gate.
        received = b""
        if channel.accepts:
            received = yield from _receive(sock, channel, lost, until, first=True)
        lost = Reason.HANDSHAKE_FAILED
        while True:
            if gate is not None and not gate.passes(address) and not (yield Called(partial(gate.wait, address, until))):
                raise trio.TooSlowError
            began = time.thread_time()
            try:
                done = channel.step(received)
            finally:
                if gate is not None:
                    gate.count(address, time.thread_time() - began)
            if done:
                last()
                break
            if answer := channel.take_all():
                greeted()
                yield from _send(sock, answer, until)
            received = yield from _receive(sock, channel, lost, until, first=False)
        yield from _send(sock, channel.take_all(), until)
    except Refused:
        with contextlib.suppress(OSError):  # if the peer is gone, the refusal stands without it
            yield from _send(sock, channel.take_all(), until)
        raise
    except OSError as error:
        detail = f"lost the connection before the handshake was done: {error.strerror or error}"
        raise Refused(lost, detail) from error
    finally:
        channel.end_handshake()


def _receive(sock: socket.socket, channel: TlsChannel, lost: Reason, until: float, *, first: bool) -> Steps[bytes]:
    """What the peer sent for the handshake; what is beyond its limit stays in the socket. ``lost``: why a peer is refused
    that has closed. If bytes are here already, others have their turn before, but at the ``first``: a flood from one peer
    would postpone its own deadline and delay them."""
    waited = first
    while True:
        try:
            received = sock.recv(channel.handshake_room)
        except (BlockingIOError, InterruptedError):
            if not (yield Ready(sock, until=until)):
                raise trio.TooSlowError from None
            waited = True
            continue
        if not received:
            raise Refused(lost, "saw the peer close the connection before the handshake was done")
        if not waited:
            yield trio.lowlevel.checkpoint
            if trio.current_time() >= until:
                raise trio.TooSlowError
        return received


def _send(sock: socket.socket, data: bytes, until: float) -> Steps[None]:
    """Sends all of ``data``. Raises OSError, and :class:`trio.TooSlowError` if the peer does not take it by then."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except (BlockingIOError, InterruptedError):
            if not (yield Ready(sock, WRITABLE, until)):
                raise trio.TooSlowError from None


async def send_verdict(sock: socket.socket, channel: TlsChannel, reason: Reason, seconds: float) -> None:
    """Sends the verdict if the peer speaks ``mesh/1``, or ``mesh/2`` and is refused before its first stream. After a refusal
    a close_notify follows it. A peer that does not read it within ``seconds`` does not get it."""
    if channel.speaks_mesh:
        channel.write_bytes(frames.encode_verdict(reason) if channel.keeps else verdict.encode(reason))
        if reason is not Reason.OK:
            channel.close()
        with trio.move_on_after(seconds):
            await _try_send(sock, channel)


async def receive_verdict(sock: socket.socket, channel: TlsChannel) -> None:
    """Waits for the verdict if the peer speaks ``mesh/1``. Returns if it is ``ok``; otherwise raises :class:`Refused`."""
    if channel.speaks_mesh:
        size = verdict.word_length(await _exactly(sock, channel, 1))
        verdict.admit(await _exactly(sock, channel, size))


async def _exactly(sock: socket.socket, channel: TlsChannel, size: int) -> bytes:
    """Reads exactly ``size`` decrypted bytes: those that follow belong to the app."""
    data = b""
    try:
        while len(data) < size:
            more = await read_data(sock, channel, size - len(data))
            if more is None:
                raise Refused(Reason.PEER_REFUSED, "saw the peer end the connection without a verdict")
            data += more
    except CutStreamError as error:
        raise Refused(Reason.PEER_REFUSED, "saw the peer close the connection without a verdict") from error
    except SilentStreamError as error:
        raise Refused(Reason.PEER_REFUSED, f"received no verdict: {error}: cut") from error
    except ChannelError as error:
        if error.alert is None:  # no refusal: an altered record, or a broken peer
            detail = f"received a broken record in place of the peer's verdict: {error}"
            raise Refused(Reason.TRUNCATED, detail, altered=error.altered) from error
        raise Refused(Reason.PEER_REFUSED, f"was refused: {error}", peer_reason=error.alert) from error
    except OSError as error:
        detail = f"lost the connection before the peer's verdict: {error.strerror or error}"
        raise Refused(Reason.PEER_REFUSED, detail) from error
    return data


async def _try_send(sock: socket.socket, channel: TlsChannel) -> None:
    """Sends what the channel left. If the peer is gone, the refusal stands without it."""
    try:
        await sockets.send_all(sock, channel.take_all())
    except OSError:
        return
