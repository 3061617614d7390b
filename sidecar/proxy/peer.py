"""From an accepted or dialled socket to a verified peer: the handshake, its deadline, and the record of the peer.

Both directions use :func:`establish`, so there is one place where a connection gets its peer. It fails closed: it returns a
peer that was judged, or raises.
"""

from __future__ import annotations

import hashlib
import math
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, Svid
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.node import Node
from sidecar.relay.strand import Called, Steps
from sidecar.transport.handshake import send_verdict, shake_hands
from sidecar.transport.strangers import Stranger
from sidecar.transport.tls import TlsChannel

SPREAD = 0.2
"""The part by which a stranger's deadline is longer, at most. Each has a different one, so that the deadlines of a flood do
not pass in one tick of the loop, which would hold up every connection."""


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


def establish(
    node: Node,
    sock: socket.socket,
    channel: TlsChannel,
    record: ConnectionRecord,
    began: float,
    stranger: Stranger | None = None,
    last: Callable[[], object] = lambda: None,
) -> Steps[VerifiedPeer]:
    """Runs the handshake and returns the judged peer. Raises :class:`Refused`, after the reason was sent to the peer: as a
    TLS alert or, to a caller whose handshake was over, as the verdict. ``sock`` stays open.

    Fills in the fields of ``record`` about the peer and its connection. ``handshake_ms`` counts from ``began``.
    ``last`` is called when the peer is verified: what it writes travels with the handshake's last flight.
    ``stranger``: the caller (inbound). The ends of strangers' handshakes take turns at the gate, as their steps do.
    """
    seconds = node.config.timeouts.handshake
    try:
        yield from _shake_hands(node, sock, channel, began, seconds, stranger, last)
    except Refused as refusal:
        if channel.established and record.direction == "inbound":
            yield partial(send_verdict, sock, channel, refusal.reason, seconds)
        raise
    finally:
        record.handshake_ms = (node.time() - began) * 1000
        record.connection_id = channel.connection_id
        if channel.svid is None:
            record.unverified = channel.presented
        if channel.leaf is not None and record.direction == "inbound" and node.announced.is_open(node.time()):
            record.probe = node.announced.is_stranger(hashlib.sha256(channel.leaf).hexdigest(), node.time())
    if channel.svid is None:
        raise Refused(Reason.NO_CERTIFICATE, "has no judged peer after the handshake")
    record.peer_id, record.tls_group, record.resumed = str(channel.svid.id), channel.group, channel.resumed
    node.metrics.handshakes[record.direction].add(node.time() - began)
    return VerifiedPeer(channel.svid, channel.path, channel.anchor)


def _shake_hands(
    node: Node,
    sock: socket.socket,
    channel: TlsChannel,
    began: float,
    seconds: float,
    stranger: Stranger | None,
    last: Callable[[], object],
) -> Steps[None]:
    """The handshake within its deadline, which counts from ``began``. Raises :class:`Refused`."""
    address = None if stranger is None else stranger.address
    longest = seconds if stranger is None else seconds * (1 + SPREAD * random.random())  # noqa: S311 (no secret)

    def greeted() -> None:
        if stranger is not None:
            node.room.known(stranger)

    try:
        yield from shake_hands(sock, channel, node.gate, address, greeted, last, began + longest)
    except (Refused, trio.TooSlowError) as error:
        if address is not None and not node.gate.passes(f"end {address}"):
            yield Called(partial(node.gate.wait, f"end {address}", math.inf))
        if isinstance(error, Refused):
            raise
        raise Refused(Reason.HANDSHAKE_TIMEOUT, f"received no complete handshake within {seconds:g} s") from error
