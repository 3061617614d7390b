"""Tells our app who calls, before it gets a byte of the caller: the header of the PROXY protocol, to the app's socket.

It is written when the app is reached and the relay has not begun, so its bytes are in nobody's record. Each stream of a kept
channel has a connection to the app of its own, and so a header of its own. Fails closed: an app that cannot be told, or does
not take the header in time, gets no byte of the caller.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from sidecar.config.sidecar_yaml import Inbound, MeshPort
from sidecar.identity.reasons import Reason, Refused
from sidecar.proxy.peer import VerifiedPeer
from sidecar.relay.poller import WRITABLE
from sidecar.relay.strand import Ready, Steps
from sidecar.transport import sockets
from sidecar.transport.proxy_protocol import End, HeaderTooLongError, header


def introduce(
    port: MeshPort,
    peer: VerifiedPeer,
    net: socket.socket,
    app: socket.socket,
    until: float,
    waits: Callable[[], Steps[None]],
) -> Steps[None]:
    """Writes the header, if the port has one. ``net``: the socket of the caller's sidecar. ``waits`` is run before anything
    is waited for. Closes ``app`` and raises :class:`Refused` if the app does not take it by ``until``."""
    if not isinstance(port, Inbound) or port.proxy_protocol == "off":
        return  # this sidecar's own port has no app to tell
    try:
        try:
            source, destination = _end(net.getpeername()), _end(net.getsockname())
        except OSError as error:
            lost = f"lost the connection while it reached the app: {error.strerror or error}"
            raise Refused(Reason.CLIENT_RESET, lost) from error
        try:
            data = memoryview(header(port.proxy_protocol, source, destination, peer.id, peer.path[0]))
        except HeaderTooLongError as error:
            raise Refused(Reason.CONNECT_FAILED, f"cannot tell the app who calls: {error} (proxy_protocol)") from error
        yield from _send(app, data, until, waits)
    except BaseException:
        sockets.hard_close(app)
        raise


def _send(app: socket.socket, data: memoryview, until: float, waits: Callable[[], Steps[None]]) -> Steps[None]:
    try:
        while data:
            try:
                data = data[app.send(data) :]
            except BlockingIOError:
                yield from waits()
                if not (yield Ready(app, WRITABLE, until)):
                    late = "reached the app, which did not take the PROXY protocol header in time"
                    raise Refused(Reason.CONNECT_FAILED, late) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise Refused(Reason.CONNECT_FAILED, f"lost the app before it had the PROXY protocol header: {why}") from error


def _end(address: tuple[str, int]) -> End:
    return sockets.plain_ip(address[0]), address[1]
