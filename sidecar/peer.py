"""From an accepted or dialled socket to a verified peer: the handshake with its deadline, and what the record says of it.

Both directions come through :func:`establish`, so there is one place where a connection gets its peer. It fails closed: it
returns a peer that was judged, or raises.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio

from sidecar.handshake import shake_hands, tell
from sidecar.identity import SpiffeId, Svid, claims
from sidecar.node import Node
from sidecar.reasons import Reason, Refused
from sidecar.record import ConnectionRecord
from sidecar.tls import Endpoint


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """The other end of an established connection: ``svid``, verified along ``path`` (DER, leaf first) up to the root with
    the digest ``anchor``."""

    svid: Svid
    path: tuple[bytes, ...]
    anchor: bytes

    @property
    def id(self) -> SpiffeId:
        return self.svid.id


async def establish(
    node: Node, sock: socket.socket, endpoint: Endpoint, record: ConnectionRecord, began: float
) -> VerifiedPeer:
    """Runs the handshake and returns the judged peer. Raises :class:`Refused`; then the peer has been told why, by an alert
    or (a caller, once the handshake is over) by the verdict. ``sock`` stays open.

    ``record`` gets all that is known of the peer and its connection; ``handshake_ms`` counts from ``began``.
    """
    seconds = node.config.timeouts.handshake
    try:
        with trio.fail_after(seconds):
            await shake_hands(sock, endpoint, node.gate)
    except Refused as refusal:
        if endpoint.established and record.direction == "inbound":
            await tell(sock, endpoint, refusal.reason, seconds)
        raise
    except trio.TooSlowError as error:
        raise Refused(Reason.HANDSHAKE_TIMEOUT, f"heard no complete handshake within {seconds:g} s") from error
    finally:
        record.handshake_ms = (node.time() - began) * 1000
        record.connection_id = endpoint.connection_id
        if endpoint.svid is None and endpoint.leaf is not None:
            record.unverified = claims(endpoint.leaf)
    if endpoint.svid is None:
        raise Refused(Reason.NO_CERTIFICATE, "has no judged peer after the handshake")
    record.peer_id, record.tls_group, record.resumed = str(endpoint.svid.id), endpoint.group, endpoint.resumed
    return VerifiedPeer(endpoint.svid, endpoint.path, endpoint.anchor)
