"""From a connected socket to a judged peer and its verdict: a TLS endpoint driven over a socket, until the relay takes over.

The caller sets the deadline. All that a peer can do wrong here comes out as :class:`~sidecar.identity.reasons.Refused`.
"""

from __future__ import annotations

import socket

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.relay.duplex import ChannelError
from sidecar.transport import sockets, verdict
from sidecar.transport.gate import Gate
from sidecar.transport.stream import CutStreamError, SilentStreamError, read_data
from sidecar.transport.tls import TlsChannel

_READ_BYTES = 16 * 1024


async def shake_hands(sock: socket.socket, channel: TlsChannel, gate: Gate | None = None) -> None:
    """Runs the handshake until the peer is judged; what must be told to the peer, an alert included, is sent.
    ``gate``: where many may come at once, what keeps them from holding up the rest."""
    received = b""
    try:
        while True:
            if gate is not None:
                await gate.turn()
            if channel.step(received):
                break
            await sockets.send_all(sock, channel.take_all())
            received = await sockets.receive(sock, _READ_BYTES)
            if not received:
                raise Refused(
                    Reason.HANDSHAKE_FAILED, "saw the peer close the connection before the handshake was done"
                )
        await sockets.send_all(sock, channel.take_all())
    except Refused:
        await _try_send(sock, channel)
        raise
    except OSError as error:
        detail = f"lost the connection before the handshake was done: {error.strerror or error}"
        raise Refused(Reason.HANDSHAKE_FAILED, detail) from error


async def tell(sock: socket.socket, channel: TlsChannel, reason: Reason, seconds: float) -> None:
    """Sends the verdict frame, to a peer that speaks ``mesh/1``; after a refusal nothing follows it. A peer that does not
    read is waited for ``seconds``, and not told."""
    if channel.speaks_mesh:
        channel.write_bytes(verdict.encode(reason))
        if reason is not Reason.OK:
            channel.close()
        with trio.move_on_after(seconds):
            await _try_send(sock, channel)


async def hear(sock: socket.socket, channel: TlsChannel) -> None:
    """Waits for the peer's verdict, if it speaks ``mesh/1``. Returns if it let us in, else raises :class:`Refused`."""
    if channel.speaks_mesh:
        size = verdict.word_length(await _exactly(sock, channel, 1))
        verdict.admit(await _exactly(sock, channel, size))


async def _exactly(sock: socket.socket, channel: TlsChannel, size: int) -> bytes:
    """Reads decrypted bytes, and not one of those behind them: they are the app's."""
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
        raise Refused(Reason.PEER_REFUSED, f"heard no verdict: {error}: cut") from error
    except ChannelError as error:
        if error.alert is None:  # nobody refused us: somebody altered what was said, or the peer talks nonsense
            raise Refused(Reason.TRUNCATED, f"met a broken record in place of the peer's verdict: {error}") from error
        raise Refused(Reason.PEER_REFUSED, f"was refused: {error}", peer_reason=error.alert) from error
    except OSError as error:
        detail = f"lost the connection before the peer's verdict: {error.strerror or error}"
        raise Refused(Reason.PEER_REFUSED, detail) from error
    return data


async def _try_send(sock: socket.socket, channel: TlsChannel) -> None:
    """Sends what the endpoint left. A peer that is gone cannot be told, and the refusal stands without."""
    try:
        await sockets.send_all(sock, channel.take_all())
    except OSError:
        return
