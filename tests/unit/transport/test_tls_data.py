"""The data half of a channel: bounded work, and memory that is given back. Ends and faults: ``test_tls.py``."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.transport import tls, tls_data
from sidecar.transport.bindings import lib
from tests.attacks.records import DATA, KeyLog, Writer
from tests.unit.transport.test_tls import ALPN, MESH, carry, connected, context


def by_hand() -> tuple[tls.TlsChannel, Writer]:
    """A callee's channel, and its peer's pen."""
    log, web = KeyLog(), MESH.leaf("web")
    terms = SSL.Context(SSL.TLS_METHOD)
    terms.use_certificate(web.chain[0])
    terms.add_extra_chain_cert(web.chain[1])
    terms.use_privatekey(web.key)
    log.configure(terms)
    peer: Any = SSL.Connection(terms, None)
    peer.set_connect_state()
    callee = context(MESH.leaf("api")).server(ALPN, utc_now)
    done = False
    while not done:
        with contextlib.suppress(SSL.WantReadError):
            peer.do_handshake()
        done = callee.step(peer.bio_read(65536))
        if (answer := callee.take_all()) and not done:
            peer.bio_write(answer)
    return callee, Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])


def test_one_read_works_off_a_bounded_number_of_records() -> None:
    callee, writer = by_hand()
    callee.feed_bytes(b"".join(writer.record(DATA, b"x") for _ in range(300)))
    sizes = [len(callee.read_some(1000) or b"")]
    while callee.unread:
        sizes.append(len(callee.read_some(1000) or b""))
    assert sizes == [tls_data.MAX_READ_COST, tls_data.MAX_READ_COST, 300 - 2 * tls_data.MAX_READ_COST]
    assert (callee.dataless, callee.ended) == (0, False)


@pytest.mark.parametrize("wants_reply", [False, True])
def test_one_read_works_off_a_bounded_number_of_key_updates_and_counts_them(wants_reply: bool) -> None:
    callee, writer = by_hand()
    callee.feed_bytes(
        b"".join(writer.key_update(wants_reply=wants_reply) for _ in range(1000)) + writer.record(DATA, b"x")
    )
    reads, before = 1, callee.pending()
    while callee.read_some(1000) == b"":
        assert callee.unread, "it waits for bytes, though there are some"
        assert callee.dataless <= 16 * reads
        reads += 1
    assert callee.dataless == 1000
    assert (callee.pending() > before) == wants_reply
    assert callee.read_some(1000) == b""
    assert not callee.unread


def test_the_twin_half_a_record_is_no_reason_to_read_again() -> None:
    callee, writer = by_hand()
    whole = writer.record(DATA, b"both halves")
    callee.feed_bytes(whole[:9])
    assert callee.read_some(1000) == b""
    assert (callee.unread, callee.dataless) == (False, 0)
    callee.feed_bytes(whole[9:])
    assert callee.read_some(1000) == b"both halves"
    assert not callee.unread


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_channel_at_rest_gives_back_its_bios_and_works_on() -> None:
    callee, caller = connected()
    assert caller.read_some(1) == b"", "tickets"
    for _ in range(3):
        before = (callee._cipher_in, callee._cipher_out, caller._cipher_in, caller._cipher_out)
        callee.rest()
        caller.rest()
        after = (callee._cipher_in, callee._cipher_out, caller._cipher_in, caller._cipher_out)
        assert all(old != new for old, new in zip(before, after, strict=True))
        caller.write_bytes(b"question" * 10_000)
        carry(caller, callee)
        assert callee.read_some(100_000) == b"question" * 10_000
        callee.write_bytes(b"answer")
        carry(callee, caller)
        assert caller.read_some(100) == b"answer"


def test_the_twin_what_waits_in_it_is_kept() -> None:
    callee, caller = connected()
    caller.write_bytes(b"unsent")
    caller.rest()
    record = caller.take_all()
    callee.feed_bytes(record)
    callee.rest()
    assert callee.read_some(100) == b"unsent"


def test_half_a_record_is_no_hindrance_and_is_kept() -> None:
    callee, writer = by_hand()
    whole = writer.record(DATA, b"both halves")
    callee.feed_bytes(whole[:9])
    assert callee.read_some(100) == b""
    before = callee._cipher_in
    callee.rest()
    assert callee._cipher_in != before
    callee.feed_bytes(whole[9:])
    assert callee.read_some(100) == b"both halves"


def test_without_memory_for_new_ones_the_old_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    callee, caller = connected()
    real = lib.BIO_new
    made: list[Any] = []

    class Scarce:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def BIO_new(self, method: Any) -> Any:  # noqa: N802 (a name of OpenSSL's)
            made.append(real(method) if not made else tls_data._NULL)
            return made[-1]

    monkeypatch.setattr(tls_data, "_lib", Scarce())
    before = callee._cipher_in
    callee.rest()
    assert len(made) == 2
    assert callee._cipher_in == before
    caller.write_bytes(b"goes on")
    carry(caller, callee)
    assert callee.read_some(100) == b"goes on"
