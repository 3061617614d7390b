"""What we build on in pyOpenSSL and OpenSSL, each fact by itself, so that an upgrade that changes one shows here."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.relay.duplex import Buffer, ChannelError
from sidecar.transport import tls, tls_data
from sidecar.transport.bindings import encode_stack, take_errors
from tests.beds.certificates import HOUR, Authority, Credential

MESH = Authority()
API, WEB = SpiffeId("shop.internal", ("api",)), SpiffeId("shop.internal", ("web",))
CA = SpiffeId("shop.internal", ("mesh", "ca"))
TERMS = VerifyParams("shop.internal")
ALPN = ("mesh/1/http",)
_lib: Any = vars(SSL)["_lib"]


def context(credential: Credential, roots: tuple[x509.Certificate, ...] | None = None) -> tls.Context:
    assert isinstance(credential.key, tls.PrivateKey)
    return tls.Context(tls.KeyPair(credential.chain, credential.key, roots or MESH.roots), TERMS)


def pair(
    server: Credential | None = None,
    client: Credential | None = None,
    *,
    expected: SpiffeId = API,
    alpn: tuple[Sequence[str], Sequence[str]] = (ALPN, ALPN),
    clock: Callable[[], datetime] = utc_now,
) -> tuple[tls.TlsChannel, tls.TlsChannel]:
    """The callee's and the caller's endpoint, nothing said yet."""
    callee = context(server or MESH.leaf("api")).server(alpn[0], clock)
    return callee, context(client or MESH.leaf("web")).client(alpn[1], expected, clock)


def shake(callee: tls.TlsChannel, caller: tls.TlsChannel) -> tuple[Exception | None, Exception | None]:
    """Carries the handshake over memory to its end; the exceptions with which each side ended it."""
    ends: dict[tls.TlsChannel, Exception | None] = {}
    inbox: dict[tls.TlsChannel, bytes] = {callee: b"", caller: b""}
    for turn in range(20):
        here, there = (caller, callee) if turn % 2 == 0 else (callee, caller)
        if here not in ends and (turn == 0 or inbox[here]):
            said, inbox[here] = inbox[here], b""
            try:
                if here.step(said):
                    ends[here] = None
            except Exception as error:
                ends[here] = error
        inbox[there] += here.take_all()
        if here in ends and ends[here] is None and inbox[here]:
            here.feed_bytes(inbox[here])
            inbox[here] = b""
    return ends.get(callee), ends.get(caller)


def connected(**options: Any) -> tuple[tls.TlsChannel, tls.TlsChannel]:
    callee, caller = pair(**options)
    assert shake(callee, caller) == (None, None)
    return callee, caller


def carry(source: tls.TlsChannel, sink: tls.TlsChannel) -> int:
    data = source.take_all()
    sink.feed_bytes(data)
    return len(data)


# -- the handshake -----------------------------------------------------------------------------------------------------


def test_a_handshake_of_two_of_ours() -> None:
    callee, caller = connected()
    assert callee.svid is not None
    assert caller.svid is not None
    assert (callee.svid.id, caller.svid.id) == (WEB, API)
    assert callee.speaks_mesh
    assert caller.speaks_mesh
    assert callee.group == caller.group == "X25519MLKEM768"
    assert callee.connection_id == caller.connection_id is not None
    assert (callee.resumed, caller.resumed) == (False, False)
    assert callee._connection.get_protocol_version_name() == "TLSv1.3"
    assert callee._connection.get_cipher_name() == "TLS_AES_128_GCM_SHA256"


def test_nothing_is_known_before_the_hello() -> None:
    callee, _ = pair()
    assert (callee.svid, callee.leaf, callee.connection_id) == (None, None, None)


def test_the_connection_id_is_equal_at_both_ends_of_a_refusal() -> None:
    callee, caller = pair(client=MESH.leaf("web", ca=True, cn="web"))
    refused, _ = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert callee.connection_id == caller.connection_id is not None


def test_a_callees_refusal_is_evidence_and_no_identity() -> None:
    credential = MESH.leaf("web", eku=None)
    callee, caller = pair(client=credential)
    refused, let_in = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.BAD_IDENTITY
    assert (callee.svid, callee.leaf) == (None, credential.der)
    # A TLS 1.3 client's handshake is over before the server has judged; the alert comes with the first read.
    assert let_in is None
    with pytest.raises(ChannelError) as error:
        caller.read_some(100)
    assert error.value.alert == "bad_certificate"


def test_a_callers_refusal_is_told_within_the_handshake() -> None:
    callee, caller = pair(server=MESH.leaf("db"))
    told, refused = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNEXPECTED_PEER
    assert isinstance(told, Refused)
    assert (told.reason, told.peer_reason) == (Reason.PEER_REFUSED, "bad_certificate")


@pytest.mark.parametrize(
    ("bent", "reason", "alert"),
    [
        (MESH.leaf("web", not_before=MESH.now - 2 * HOUR, not_after=MESH.now - HOUR), Reason.EXPIRED, "expired"),
        (Authority().leaf("web"), Reason.UNKNOWN_CA, "unknown_ca"),
    ],
)
def test_what_the_refusal_is_as_an_alert(bent: Credential, reason: Reason, alert: str) -> None:
    callee, caller = pair(client=bent)
    refused, _ = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    with pytest.raises(ChannelError) as error:
        caller.read_some(100)
    assert error.value.alert == alert


def test_a_bug_in_the_callback_refuses_and_is_seen() -> None:
    def broken() -> datetime:
        raise ZeroDivisionError("a bug of ours")

    callee, caller = pair()
    callee._clock = broken
    bug, _ = shake(callee, caller)
    assert isinstance(bug, ZeroDivisionError)
    assert callee.svid is None
    with pytest.raises(ChannelError):
        caller.read_some(100)


def test_what_a_bug_after_the_callback_does_refuses_too() -> None:
    times = iter([datetime.now(UTC)])
    callee, caller = pair()
    callee._clock = lambda: next(times)  # good for the callback's judgement, not for the one that counts
    bug, _ = shake(callee, caller)
    assert isinstance(bug, StopIteration)
    assert callee.svid is None


def test_a_judgement_that_changes_its_mind_after_the_handshake_refuses() -> None:
    times = iter([datetime.now(UTC), datetime.now(UTC) + 2 * HOUR])
    callee, caller = pair()
    callee._clock = lambda: next(times)
    refused, _ = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.EXPIRED
    assert callee.svid is None


def test_a_context_serves_many_and_forgets_each() -> None:
    server, client = context(MESH.leaf("api")), context(MESH.leaf("web"))
    ids = set()
    for _ in range(3):
        callee, caller = server.server(ALPN, utc_now), client.client(ALPN, API, utc_now)
        assert shake(callee, caller) == (None, None)
        assert not callee.resumed
        ids.add(callee.connection_id)
    assert len(ids) == 3
    # A refusal in between leaves nothing in OpenSSL's error queue that would speak for the next one.
    stranger = context(Authority().leaf("web")).client(ALPN, API, utc_now)
    refused, _ = shake(server.server(ALPN, utc_now), stranger)
    assert isinstance(refused, Refused)
    assert _lib.ERR_peek_error() == 0
    assert shake(server.server(ALPN, utc_now), client.client(ALPN, API, utc_now)) == (None, None)


# -- ALPN --------------------------------------------------------------------------------------------------------------


def test_protocols_that_do_not_meet() -> None:
    callee, caller = pair(alpn=(ALPN, ["mesh/1/metrics"]))
    refused, told = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.HANDSHAKE_FAILED
    assert isinstance(told, Refused)
    assert told.peer_reason == "no_application_protocol"


def test_a_caller_checks_what_the_callee_chose() -> None:
    """OpenSSL may do so as well, or not: a protocol that was not offered never passes."""
    callee, caller = pair()
    caller._protocols = (b"mesh/1/other",)  # as if the callee had chosen something else than we offered
    _, refused = shake(callee, caller)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.HANDSHAKE_FAILED
    assert caller.svid is None


# -- what is no handshake ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", Reason.PLAINTEXT_REFUSED),
        (b"\x00", Reason.PLAINTEXT_REFUSED),
        (b"\x17\x03\x03\x00\x01\x00", Reason.PLAINTEXT_REFUSED),
        (b"\x80\x2e\x01\x00\x02", Reason.TLS_VERSION),
        (b"\x80", Reason.TLS_VERSION),
        (b"\x80\x2e\x02\x00\x02", Reason.PLAINTEXT_REFUSED),
        (b"\x16\x03\x01\x00\x04garb", Reason.HANDSHAKE_FAILED),
    ],
)
def test_what_the_first_bytes_tell(said: bytes, reason: Reason) -> None:
    callee, _ = pair()
    with pytest.raises(Refused) as refused:
        callee.step(said)
    assert refused.value.reason is reason
    assert refused.value.detail.isprintable()


def test_first_bytes_one_by_one() -> None:
    callee, _ = pair()
    assert [callee.step(one) for one in (b"\x16", b"\x03", b"\x01", b"\x02")] == [False] * 4
    callee, _ = pair()
    with pytest.raises(Refused) as refused:
        callee.step(b"G")
    assert refused.value.reason is Reason.PLAINTEXT_REFUSED


def test_a_handshake_is_bounded_in_bytes() -> None:
    callee, _ = pair()
    # One message that claims 128 KiB, in records of 4 KiB.
    hello = b"\x01\x02\x00\x00" + bytes(3 * tls.MAX_HANDSHAKE_BYTES)
    sent = b"".join(b"\x16\x03\x01\x10\x00" + hello[at : at + 0x1000] for at in range(0, len(hello) - 0x1000, 0x1000))
    fed = 0
    with pytest.raises(Refused) as refused:  # noqa: PT012 (whichever is the one too many)
        while size := callee.handshake_room:
            callee.step(sent[fed : (fed := fed + size)])
    assert refused.value.reason is Reason.HANDSHAKE_FAILED
    assert str(tls.MAX_HANDSHAKE_BYTES) in refused.value.detail
    assert fed == tls.MAX_HANDSHAKE_BYTES


def test_the_twin_an_honest_handshake_fits_with_a_chain_of_ten_kilobytes_and_a_post_quantum_hello() -> None:
    """As large as four certificates with RSA-4096 keys and long names."""
    shows = MESH.leaf("api", dns=[f"{number}.{'name' * 12}.internal" for number in range(150)])
    callee, caller = pair(server=shows)
    assert shake(callee, caller) == (None, None)
    assert callee.group == "X25519MLKEM768"
    assert 10_000 < caller._received < tls.MAX_HANDSHAKE_BYTES / 2


def test_what_follows_the_handshake_does_not_count() -> None:
    """A peer sends data right after its Finished: with the largest handshake the rest waits in the socket."""
    callee, _ = pair()
    assert callee.handshake_room == 16 * 1024
    callee._received = tls.MAX_HANDSHAKE_BYTES - 5
    assert callee.handshake_room == 5
    callee._received = tls.MAX_HANDSHAKE_BYTES
    assert callee.handshake_room == 0


def test_what_was_freed_holds_nothing_and_can_be_freed_again() -> None:
    callee, caller = connected()
    ssl = weakref.ref(callee._connection)
    for _ in range(2):
        callee.free()
    assert ssl() is None
    with pytest.raises(TypeError):
        callee.pending()  # never a use of freed memory
    assert caller._connection is not None


# -- data --------------------------------------------------------------------------------------------------------------


def test_one_write_takes_all_and_makes_many_records() -> None:
    """pyOpenSSL enables partial writes; we disable them, as memory never blocks."""
    callee, caller = connected()
    block = tls_data.make_buffer(100_000)
    block.view[:] = bytes(range(250)) * 400
    caller.write(block, 100_000)
    assert caller.pending() > 100_000
    carry(caller, callee)
    out = tls_data.make_buffer(200_000)
    assert callee.read(out) == 100_000
    assert out.view[:100_000] == block.view
    assert not callee.ended
    assert callee.read(out) == 0


def test_half_close() -> None:
    callee, caller = connected()
    caller.write_bytes(b"question")
    caller.close()
    carry(caller, callee)
    out = tls_data.make_buffer(100)
    assert callee.read(out) == 8
    assert callee.read(out) == -1
    assert callee.ended
    callee.write_bytes(b"answer")
    callee.close()
    carry(callee, caller)
    assert caller.read_some(100) == b"answer"
    assert caller.read_some(100) is None


def test_data_and_end_in_one_read() -> None:
    callee, caller = connected()
    caller.write_bytes(b"last words")
    caller.close()
    carry(caller, callee)
    assert callee.read_some(10) == b"last words"
    assert callee.read_some(10) is None


def test_an_altered_record_is_an_error_for_ever() -> None:
    callee, caller = connected()
    caller.write_bytes(b"good")
    caller.write_bytes(b"evil")
    data = bytearray(caller.take_all())
    data[-1] ^= 1
    callee.feed_bytes(bytes(data))
    assert callee.read_some(100) == b"good"
    assert callee.ended
    said = []
    for _ in range(2):
        with pytest.raises(ChannelError) as error:
            callee.read_some(100)
        said.append(str(error.value))
    assert said[0] == said[1], "what was found, and not what OpenSSL says of being asked again"
    assert callee.pending()  # the alert that says so
    carry(callee, caller)
    with pytest.raises(ChannelError) as error:
        caller.read_some(100)
    assert error.value.alert == "bad_record_mac"


def test_reading_takes_what_is_asked_for_and_no_more() -> None:
    callee, caller = connected()
    caller.write_bytes(b"\x02okdata")
    carry(caller, callee)
    assert [callee.read_some(1), callee.read_some(2), callee.read_some(100)] == [b"\x02", b"ok", b"data"]


def test_take_moves_no_more_than_fits() -> None:
    callee, caller = connected()
    caller.write_bytes(bytes(1000))
    size = caller.pending()
    small = tls_data.make_buffer(300)
    taken = b""
    while count := caller.take(small):
        assert count <= 300
        taken += bytes(small.view[:count])
    assert len(taken) == size
    callee.feed_bytes(taken)
    assert callee.read_some(2000) == bytes(1000)


def test_a_buffer_is_worked_on_in_place() -> None:
    buffer = tls_data.make_buffer(64)
    assert isinstance(buffer, Buffer)
    callee, caller = connected()
    caller.write_bytes(b"here")
    carry(caller, callee)
    callee.read(buffer)
    assert bytes(buffer.view[:4]) == b"here"


# -- facts of the library ----------------------------------------------------------------------------------------------


def test_no_session_comes_of_our_handshakes_that_resumes() -> None:
    server = context(MESH.leaf("api"))
    client = context(MESH.leaf("web"))
    callee, caller = server.server(ALPN, utc_now), client.client(ALPN, API, utc_now)
    assert shake(callee, caller) == (None, None)
    assert caller.read_some(10) == b""  # what tickets there are have been read
    session = caller._connection.get_session()
    caller.close()
    again = client.client(ALPN, API, utc_now)
    again._connection.set_session(session)
    callee = server.server(ALPN, utc_now)
    assert shake(callee, again) == (None, None)
    assert (callee.resumed, again.resumed) == (False, False)


def test_the_verified_chain_ends_in_our_root_on_both_sides() -> None:
    callee, caller = connected()
    for channel in (callee, caller):
        chain = encode_stack(_lib.SSL_get0_verified_chain(channel._ssl))
        assert len(chain) == 3
        assert chain[-1] == MESH.root.certificate.public_bytes(Encoding.DER)


def test_names_outside_of_the_issuers_constraint_have_a_reason_of_their_own() -> None:
    for uri, reason in (
        ("spiffe://evil.org/web", Reason.WRONG_TRUST_DOMAIN),
        ("https://evil.org/web", Reason.BAD_IDENTITY),
        ("urn:x", Reason.BAD_IDENTITY),
    ):
        callee, caller = pair(client=MESH.leaf("web", uris=[uri]))
        refused, _ = shake(callee, caller)
        assert isinstance(refused, Refused)
        assert refused.reason is reason


def test_our_own_chain_is_verified_as_peers_will() -> None:
    good = MESH.leaf("api")
    assert isinstance(good.key, tls.PrivateKey)
    assert tls.verify_own_chain(tls.KeyPair(good.chain, good.key, MESH.roots)) is None
    fault = tls.verify_own_chain(tls.KeyPair(good.chain, good.key, Authority().roots))
    assert fault is not None
    assert fault.reason is Reason.UNKNOWN_CA


def test_a_refused_step_is_the_last() -> None:
    callee, _ = pair()
    with contextlib.suppress(Refused):
        callee.step(b"plain")
    assert callee.svid is None
    callee.end_handshake()
    assert callee._connection.get_app_data() is None


# -- a CA's end, and ends that have no certificate yet -----------------------------------------------------------------


def ca_context(credential: Credential, *, anonymous: bool = True) -> tls.Context:
    assert isinstance(credential.key, tls.PrivateKey)
    keys = tls.KeyPair(credential.chain, credential.key, MESH.roots)
    return tls.Context(keys, VerifyParams("shop.internal", anonymous=anonymous))


def to_ca(
    caller: tls.Context, *, callee: Credential | None = None, anonymous: bool = True, expected: SpiffeId = CA
) -> tuple[tls.TlsChannel, tls.TlsChannel, tuple[Exception | None, Exception | None]]:
    here = ca_context(callee or MESH.leaf("mesh/ca"), anonymous=anonymous).server(["http/1.1"], utc_now)
    there = caller.client(["http/1.1"], expected, utc_now)
    return here, there, shake(here, there)


def bare(*roots: x509.Certificate, unverified: bool = False) -> tls.Context:
    return tls.Context(roots, TERMS, unverified=unverified)


def test_an_anonymous_caller_gets_through_where_the_terms_say_so_and_is_nobody() -> None:
    here, there, ends = to_ca(bare(*MESH.roots))
    assert ends == (None, None)
    assert (here.svid, here.path, here.leaf, here.anchor) == (None, (), None, b"")
    assert there.svid is not None
    assert there.svid.id == CA
    _, _, (refused, _) = to_ca(bare(*MESH.roots), anonymous=False)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.NO_CERTIFICATE


def test_a_caller_who_shows_something_is_judged_as_ever() -> None:
    here, _, ends = to_ca(context(MESH.leaf("web")))
    assert ends == (None, None)
    assert here.svid is not None
    assert here.svid.id == WEB
    for credential, reason in (
        (Authority().leaf("web"), Reason.UNKNOWN_CA),
        (MESH.leaf("web", eku=None), Reason.BAD_IDENTITY),
        (MESH.leaf("web", not_before=MESH.now - 2 * HOUR, not_after=MESH.now - HOUR), Reason.EXPIRED),
    ):
        _, _, (refused, _) = to_ca(context(credential, MESH.roots))
        assert isinstance(refused, Refused)
        assert refused.reason is reason


def test_bare_roots_verify_as_ever() -> None:
    _, _, ends = to_ca(bare(*MESH.roots), expected=WEB)
    assert isinstance(ends[1], Refused)
    assert ends[1].reason is Reason.UNEXPECTED_PEER
    for roots in ((), Authority().roots):
        _, _, ends = to_ca(bare(*roots))
        assert isinstance(ends[1], Refused)
        assert ends[1].reason is Reason.UNKNOWN_CA


def test_no_roots_anchor_nothing() -> None:
    assert bare().anchors == frozenset()
    assert bare(*MESH.roots).anchors == {certificate_digest(MESH.root.certificate)}


@pytest.mark.parametrize("callee", [MESH.leaf("mesh/ca"), MESH.leaf("web"), Authority().leaf("mesh/ca")])
def test_whoever_answers_unverified_is_nobody(callee: Credential) -> None:
    here, there, ends = to_ca(bare(unverified=True), callee=callee)
    assert ends == (None, None)
    assert (there.svid, there.path) == (None, ())
    assert here.svid is None  # nor was anything of ours shown
    here.write_bytes(b"bundles")
    there.feed_bytes(here.take_all())
    assert there.read_some(100) == b"bundles"


def test_unverified_is_no_older_tls_and_no_other_protocol() -> None:
    here = ca_context(MESH.leaf("mesh/ca")).server(["other"], utc_now)
    there = bare(unverified=True).client(["http/1.1"], CA, utc_now)
    refused, told = shake(here, there)
    assert isinstance(refused, Refused)
    assert isinstance(told, Refused)


def test_a_peer_s_path_ends_at_its_root() -> None:
    credential = MESH.leaf("web")
    here, _, ends = to_ca(context(credential))
    assert ends == (None, None)
    root = MESH.root.certificate.public_bytes(Encoding.DER)
    assert here.path == (*credential.chain_der, root)
    assert here.anchor == certificate_digest(MESH.root.certificate)


@pytest.mark.parametrize(
    ("segments", "name"),
    [(("mesh", "ca"), b"ca"), (("api",), b"api"), (("a" * 300,), b"a" * tls.MAX_SERVER_NAME)],
)
def test_the_name_that_is_sent_is_the_last_segment(segments: tuple[str, ...], name: bytes) -> None:
    here = ca_context(MESH.leaf("mesh/ca")).server(["http/1.1"], utc_now)
    there = bare(*MESH.roots).client(["http/1.1"], SpiffeId("shop.internal", segments), utc_now)
    shake(here, there)
    assert here._connection.get_servername() == name


# -- OpenSSL's error queue ---------------------------------------------------------------------------------------------


def plant() -> None:
    """Leaves an entry in the queue, as another call may: an alert that no peer sent."""
    _lib.ERR_put_error(20, 0, 1048, vars(SSL)["_ffi"].NULL, 0)
    assert _lib.ERR_peek_error() != 0


def test_an_error_that_was_left_ends_no_other_connection() -> None:
    plant()
    callee, caller = connected()
    assert _lib.ERR_peek_error() == 0, "and the handshake leaves none"
    plant()
    caller.write_bytes(b"hello")
    carry(caller, callee)
    assert callee.read_some(100) == b"hello"
    assert callee.read_some(100) == b""
    take_errors()


def test_an_error_that_was_left_is_not_reported_as_the_next_one_s() -> None:
    for planted in (False, True):
        callee, caller = connected()
        callee.feed_bytes(b"\x17\x03\x03\x00\x20" + bytes(32))
        if planted:
            plant()
        with pytest.raises(ChannelError, match="a TLS record was refused: ") as broken:
            callee.read_some(100)
        assert broken.value.alert is None
        assert _lib.ERR_peek_error() == 0
        callee, caller = pair(client=Authority().leaf("web"))
        if planted:
            plant()
        refused, _ = shake(callee, caller)
        assert isinstance(refused, Refused)
        assert refused.reason is Reason.UNKNOWN_CA


def with_a_broken_key(credential: Credential) -> x509.Certificate:
    """The certificate with a public key that is no point of its curve."""
    der = bytearray(credential.der)
    der[der.index(bytes.fromhex("034200")) + 10] ^= 0xFF
    return x509.load_der_x509_certificate(bytes(der))


def test_the_verification_of_our_own_chain_leaves_no_error() -> None:
    mine = MESH.leaf("api")
    assert isinstance(mine.key, tls.PrivateKey)
    broken = tls.KeyPair((with_a_broken_key(mine), *mine.chain[1:]), mine.key, MESH.roots)
    assert tls.verify_own_chain(broken) is not None
    assert _lib.ERR_peek_error() == 0
