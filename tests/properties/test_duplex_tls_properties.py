"""With TLS itself, too, bytes arrive complete, in order and once, and ends as they were: ``test_duplex_properties.py``
again, with a peer that writes its records by hand, KeyUpdates, alerts, altered and empty ones at any place.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.relay.duplex import Buffers, Channel
from sidecar.transport import tls, tls_data
from tests.attacks.records import ALERT, DATA, KeyLog, Writer
from tests.beds.certificates import Authority
from tests.beds.duplex import Connection
from tests.beds.simulation import Parsed
from tests.properties.test_duplex_properties import schedules

SCALE = 700
"""Bytes for each byte of a schedule's: enough for several records of 16 KiB."""


@cache
def contexts() -> tuple[tls.Context, SSL.Context, KeyLog]:
    mesh, log = Authority(), KeyLog()
    ours, theirs = mesh.leaf("api"), mesh.leaf("web")
    assert isinstance(ours.key, tls.PrivateKey)
    context = tls.Context(tls.KeyPair(ours.chain, ours.key, mesh.roots), VerifyParams("shop.internal"))
    peer = SSL.Context(SSL.TLS_METHOD)
    peer.use_certificate(theirs.chain[0])
    peer.add_extra_chain_cert(theirs.chain[1])
    peer.use_privatekey(theirs.key)
    log.configure(peer)
    return context, peer, log


class TlsConnection(Connection):
    """The same over a :class:`sidecar.transport.tls.Endpoint`; the oracle decrypts with an OpenSSL of its own."""

    record_size = 16384
    overhead = 22

    def make_channel(self) -> Channel:
        context, peer_context, log = contexts()
        channel = context.server(["mesh/1/http"], utc_now)
        self._reader: Any = SSL.Connection(peer_context, None)
        self._reader.set_connect_state()
        received, done = b"", False
        while not done:
            with suppress(SSL.WantReadError):
                self._reader.do_handshake()
            done = channel.step(self._reader.bio_read(65536))
            received = channel.take_all()
            if received:
                self._reader.bio_write(received)
        self._writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
        self._written: list[tuple[int, str, bytes]] = []
        self._there, self._fed = Parsed(b"", None, 0), 0
        return channel

    def encode(self, what: str, size: int) -> bytes:
        if what == "data":
            data = self._bytes(size)
            pieces = [data[at : at + self.record_size] for at in range(0, len(data), self.record_size)]
            return b"".join(self._note("data", self._writer.record(DATA, piece), piece) for piece in pieces)
        if what in ("updates", "updates please"):
            please = what == "updates please"
            return b"".join(self._note("update", self._writer.key_update(wants_reply=please)) for _ in range(size))
        if what == "empty":
            return self._note("", self._writer.record(DATA, b""))
        if what == "altered":
            record = bytearray(self._writer.record(DATA, b"honest"))
            record[-1] ^= 1
            return self._note("fault", bytes(record))
        code = b"\x02\x2a" if what == "alert" else b"\x01\x00"
        return self._note("alert" if what == "alert" else "close", self._writer.record(ALERT, code))

    def _note(self, what: str, record: bytes, data: bytes = b"") -> bytes:
        self._written.append((len(record), what, data))
        return record

    def from_peer(self, stream: bytearray) -> Parsed:
        data, at, quiet, silence, updates = b"", 0, 0, 0, 0
        for size, what, piece in self._written:
            at += size
            if at > len(stream):
                break
            quiet = 0 if piece else quiet + size
            silence = max(silence, quiet)
            updates += what == "update"
            data += piece
            if what not in ("", "data", "update"):
                return Parsed(data, what, silence, updates)
        return Parsed(data, None, silence, updates)

    def to_peer(self) -> Parsed:
        fresh, self._fed = bytes(self.net.sent[self._fed :]), len(self.net.sent)
        data, end = self._there[:2]
        if fresh and end is None:
            self._reader.bio_write(fresh)
            try:
                while True:
                    data += self._reader.recv(65536)
            except SSL.WantReadError:
                pass
            except SSL.ZeroReturnError:
                end = "close"
            except SSL.Error:
                end = "alert"
            self._there = Parsed(data, end, 0)
        return self._there


large = st.one_of(st.integers(1, 2000), st.integers(1, 70_000))
options = st.fixed_dictionaries(
    {
        "room_net": large,
        "room_app": large,
        "tolerant": st.booleans(),
        "tells_broken": st.booleans(),
        "hiccups": st.lists(st.booleans(), max_size=6),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(500, 40_000), min_size=4, max_size=4), st.lists(options, min_size=2, max_size=2), schedules)
def test_two_tls_connections_that_share_their_buffers(
    buffer_sizes: list[int],
    both: list[dict[str, Any]],
    schedule: list[tuple[int, tuple[str, str, int], tuple[bool, int]]],
) -> None:
    buffers = Buffers(*map(tls_data.make_buffer, buffer_sizes))
    connections = [TlsConnection(buffers, **one) for one in both]
    for number, (who, what, size), (tell, share) in schedule:
        connection = connections[number]
        many = size * SCALE if what in ("data", "read") else size
        (connection.peer if who == "peer" else connection.do_app)(what, many)
        connection.flow()
        if tell:
            connection.tell()
        if share:
            connection.pump(share * SCALE)
            connection.flow()
    for connection in connections:
        connection.finish()
