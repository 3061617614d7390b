"""Tells our app who calls: before a byte of the caller by the header of the PROXY protocol, or in each of its HTTP requests.

The PROXY protocol's header is written when the app is reached and the relay has not begun, so its bytes are in nobody's
record. Each stream of a kept channel has a connection to the app of its own, and so a header of its own. Fails closed: an
app that cannot be told, or does not take the header in time, gets no byte of the caller.

The HTTP header is Envoy's ``X-Forwarded-Client-Cert`` (XFCC) with one element: ``By``, our own SPIFFE ID; ``Hash``, the
SHA-256 of the caller's certificate (DER) in hexadecimal; ``URI``, its SPIFFE ID. Everything in it was judged. No value needs
XFCC's quotes, as none may hold a ``,``, ``;``, ``=`` or ``"`` (:mod:`sidecar.identity.spiffe`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from hashlib import sha256

from sidecar.config.sidecar_yaml import Inbound, MeshPort
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.proxy.peer import VerifiedPeer
from sidecar.relay.duplex import Duplex
from sidecar.relay.http_duplex import HttpDuplex
from sidecar.relay.poller import WRITABLE
from sidecar.relay.strand import Ready, Steps
from sidecar.transport import sockets
from sidecar.transport.proxy_protocol import End, HeaderTooLongError, bare_header, header


def introduce(
    port: MeshPort,
    peer: VerifiedPeer | None,
    net: socket.socket,
    app: socket.socket,
    until: float,
    waits: Callable[[], Steps[None]],
) -> Steps[None]:
    """Writes the header, if the port has one. ``peer``: None if the caller speaks no TLS; then the header has its address
    and no identity, whatever the port's is to have. ``net``: the socket of the caller's sidecar, or of that caller.
    ``waits`` is run before anything is waited for. Closes ``app`` and raises :class:`Refused` if the app does not take it
    by ``until``."""
    if not isinstance(port, Inbound) or port.proxy_protocol == "off":
        return  # this sidecar's own port has no app to tell
    try:
        try:
            source, destination = _end(net.getpeername()), _end(net.getsockname())
        except OSError as error:
            lost = f"lost the connection while it reached the app: {error.strerror or error}"
            raise Refused(Reason.CLIENT_RESET, lost) from error
        try:
            data = memoryview(
                bare_header(source, destination)
                if peer is None
                else header(port.proxy_protocol, source, destination, peer.id, peer.path[0])
            )
        except HeaderTooLongError as error:
            raise Refused(Reason.CONNECT_FAILED, f"cannot tell the app who calls: {error} (proxy_protocol)") from error
        yield from _send(app, data, until, waits)
    except BaseException:
        sockets.hard_close(app)
        raise


def duplex_for(port: MeshPort, own: SpiffeId, peer: VerifiedPeer | None) -> Callable[..., Duplex]:
    """What makes the duplex of a connection to ``port``: one that names ``peer`` in each request, if the port says so. None
    is a caller without an identity: nobody is named, and no header of its own gets through."""
    if not isinstance(port, Inbound) or port.identity_header == "off":
        return Duplex
    element = (
        None if peer is None else f"By={own};Hash={sha256(peer.path[0]).hexdigest()};URI={peer.id}".encode("ascii")
    )
    return partial(HttpDuplex, element=element, host=(own.service or own.trust_domain).encode("ascii"))


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
