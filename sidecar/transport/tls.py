"""TLS 1.3 only, over memory: bytes in, bytes out. With ``bindings`` the only module that imports OpenSSL.

How this works. A :class:`Context` is one immutable set of TLS settings: our certificate, our trust bundle, and the
conditions on a peer. A reload builds a new one and swaps it, because an OpenSSL context may not change once a connection was
made from it. A :class:`TlsChannel` is one connection's TLS state. It owns no socket: the socket's owner feeds it what was
received and sends what it produces. During the handshake that is :meth:`TlsChannel.step`, afterwards ``tls_data``.

The invariants:

* Nothing older than TLS 1.3 is negotiated (RFC 8446). No session is resumed, since resumption skips the verification.
* The peer is judged twice (``judge.py``). The verify callback decides which alert the peer gets. It is a cffi callback on
  the low-level binding, since pyOpenSSL's own sends ``internal_error`` only. After the handshake the judgement runs again
  over what the connection itself reports, and only that result accepts a peer.
* An exception in a callback refuses the peer.
* The private bindings in use are those that ``bindings`` looks up at import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import SSL, crypto

from sidecar.identity.judge import ChainFault, Presented, VerifyParams, judge
from sidecar.identity.keys import certificate_digest, der_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, Svid, claims, shown
from sidecar.transport import tls_errors
from sidecar.transport.bindings import encode, encode_stack, take_errors
from sidecar.transport.bindings import ffi as _ffi
from sidecar.transport.bindings import lib as _lib
from sidecar.transport.tls_data import TlsData
from sidecar.transport.tls_errors import LibraryError

# Local names are faster on the hot path.
_SSL_do_handshake = _lib.SSL_do_handshake
_SSL_get_error = _lib.SSL_get_error
_WANT_READ, _NULL = _lib.SSL_ERROR_WANT_READ, _ffi.NULL

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
"""The kinds of key that an SVID may have. Our own keys are P-256."""

CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""RFC 8446 B.4. AES-128-GCM is first: 4.6 GB/s were measured, and 3.3 GB/s with AES-256-GCM."""

ALPN_PREFIXES = ("mesh/2/", "mesh/1/")
"""The protocols between sidecars, the better one first: connections that follow one another on a kept channel
(:mod:`sidecar.relay.frames`), and one connection a channel. The port's name follows: nobody in between can bend it."""

MAX_SERVER_NAME = 255
"""Bytes of SNI (RFC 6066; OpenSSL's limit). SNI is sent for diagnostic tools, and selects nothing."""

MAX_HANDSHAKE_BYTES = 32 * 1024
"""From one peer in one handshake. A handshake of ours sends about 3 KB, one with an RSA-4096 chain of four about 10 KB.
OpenSSL takes up to 100 KB of certificates; to parse 90 KB costs it 11 ms, and all connections wait for it."""

_READ_BYTES = 16 * 1024
_TLS_RECORDS = range(0x14, 0x17)
"""change_cipher_spec, alert, handshake: the record types (RFC 8446 5.1) that a TLS stream may begin with."""

_VERIFY_DEPTH = 3


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Our chain (leaf first, without the root), the leaf's key, and the roots that we trust."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey
    roots: tuple[x509.Certificate, ...]


Roots = tuple[x509.Certificate, ...]


class Context:
    """One immutable set of TLS settings. ``keys``: our certificate and trust, or roots for a client that has no certificate.
    ``own``: the digest of our certificate, and its end; None without one.

    ``unverified``: the server is not authenticated. Only to fetch a document that a root itself has signed, from a CA whose
    certificate our roots cannot verify. Nothing confidential may be sent through it.
    """

    __slots__ = ("_ssl", "_unverified", "anchors", "own", "params")

    def __init__(self, keys: KeyPair | Roots, params: VerifyParams, *, unverified: bool = False) -> None:
        own, roots = (keys, keys.roots) if isinstance(keys, KeyPair) else (None, keys)
        self.params = params
        self.anchors = frozenset(certificate_digest(root) for root in roots)
        self.own = None if own is None else (certificate_digest(own.chain[0]), own.chain[0].not_valid_after_utc)
        self._unverified = unverified
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_tls13_ciphersuites(CIPHERS)
        context.set_options(
            SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION | _lib.SSL_OP_NO_RENEGOTIATION
        )
        # In addition to OP_NO_TICKET, in case another release resumes with only one of the two: a resumed session skips
        # the verify callback, even for an expired certificate.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(_lib.SSL_MODE_RELEASE_BUFFERS)
        # pyOpenSSL enables it. Without it one write encrypts a whole buffer, as memory never blocks.
        context.clear_mode(_lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
        if own is not None:
            context.use_certificate(own.chain[0])
            for issuer in own.chain[1:]:
                context.add_extra_chain_cert(issuer)
            context.use_privatekey(own.key)
        _fill(context.get_cert_store(), roots)
        context.set_verify_depth(_VERIFY_DEPTH)
        _lib.SSL_CTX_set_alpn_select_cb(context._context, _select_alpn, _NULL)
        if unverified:
            _lib.SSL_CTX_set_verify(context._context, _lib.SSL_VERIFY_NONE, _NULL)
        else:
            required = 0 if params.anonymous else _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
            _lib.SSL_CTX_set_verify(context._context, _lib.SSL_VERIFY_PEER | required, _verify)
        self._ssl = context

    def server(self, protocols: Sequence[str], clock: Callable[[], datetime]) -> TlsChannel:
        """A channel that accepts one connection. The policy decides about its peer later. ``protocols``: those that we
        accept, the preferred one first (RFC 7301)."""
        channel = TlsChannel(self._ssl, self.params, protocols, clock, accepts=True)
        channel._connection.set_accept_state()
        return channel

    def client(self, protocols: Sequence[str], expected: SpiffeId, clock: Callable[[], datetime]) -> TlsChannel:
        """A channel that opens one connection and accepts ``expected`` only. ``protocols``: those that we offer."""
        params = VerifyParams(self.params.trust_domain, expected, self.params.max_leaf_ttl, self.params.revocations)
        channel = TlsChannel(self._ssl, params, protocols, clock, unverified=self._unverified)
        channel._connection.set_connect_state()
        channel._connection.set_alpn_protos(list(channel._protocols))
        channel._connection.set_tlsext_host_name(expected.segments[-1][:MAX_SERVER_NAME].encode())
        return channel


class TlsChannel(TlsData):
    """One connection's TLS state over memory. Use :meth:`step` until it returns True, then the data calls, and :meth:`free`
    in a ``finally`` at the end.

    ``svid``: the verified peer, set when the handshake is done; None before, after a refusal, and for an unverified or
    anonymous peer. ``path``: the verified chain (DER, leaf first), up to the root with the digest ``anchor``, which is one
    of ``Context.anchors``. ``established``: the handshake is over, so a refusal is reported by a verdict, no longer by an
    alert. ``leaf``: the certificate that the peer sent, verified or not: evidence, never identity; and so ``evidence``: of a
    server that is refused the chain too, as far as its certificates lead. ``accepts``: the other end speaks first.
    """

    __slots__ = (
        "_clock", "_first", "_params", "_problem", "_protocols", "_received", "_unreadable", "_unverified", "accepts",
        "anchor", "established", "evidence", "leaf", "path", "svid",
    )  # fmt: skip

    def __init__(
        self,
        context: SSL.Context,
        params: VerifyParams,
        protocols: Sequence[str],
        clock: Callable[[], datetime],
        *,
        accepts: bool = False,
        unverified: bool = False,
    ) -> None:
        connection: Any = SSL.Connection(context, None)
        super().__init__(connection)
        self._params = params
        self._protocols = tuple(protocol.encode() for protocol in protocols)
        self._clock = clock
        self._problem: Exception | None = None
        self._received = 0
        self._first = b""
        self._unreadable = ""
        self.established = False
        self.leaf: bytes | None = None
        self.evidence: tuple[bytes, ...] = ()
        self.svid: Svid | None = None
        self.path: tuple[bytes, ...] = ()
        self.anchor = b""
        self.accepts = accepts
        self._unverified = unverified
        connection.set_app_data(self)  # until the handshake ends: the callbacks find their channel by it

    # -- handshake -----------------------------------------------------------------------------------------------------

    def step(self, received: bytes) -> bool:
        """Continues the handshake with what the peer sent (b"" in the first step). Returns True when it is done.

        After each step, also a failed one, the caller sends what :meth:`take` returns, alerts included. Raises
        :class:`Refused`, once.
        """
        if received:
            self._admit(received)
            self._connection.bio_write(received)
        result = _SSL_do_handshake(self._ssl)
        wants_more = result != 1 and _SSL_get_error(self._ssl, result) == _WANT_READ
        errors = take_errors()  # also after success: the verification leaves some
        if result != 1:
            if not wants_more:
                self._refuse(errors)
            if not self.handshake_room:
                raise Refused(
                    Reason.HANDSHAKE_FAILED,
                    f"met a peer that sent {MAX_HANDSHAKE_BYTES} bytes without ending its handshake",
                )
            return False
        self.established = True
        self.svid = self._judged()
        return True

    @property
    def handshake_room(self) -> int:
        """How many bytes the next step may take. What the peer sends beyond :data:`MAX_HANDSHAKE_BYTES` is either no part of
        the handshake, or too much."""
        return max(min(_READ_BYTES, MAX_HANDSHAKE_BYTES - self._received), 0)

    def _admit(self, received: bytes) -> None:
        """Refuses what is not TLS by its first bytes, as OpenSSL's error would not name it."""
        self._received += len(received)
        if len(self._first) >= 3:
            return
        self._first = (self._first + received[:16])[:16]
        if self._first[0] in _TLS_RECORDS:
            return
        if self._first[0] & 0x80 and self._first[2:3] in (b"", b"\x01"):
            raise Refused(Reason.TLS_VERSION, "met an SSLv2 hello; only TLS 1.3 is accepted here")
        raise Refused(Reason.PLAINTEXT_REFUSED, f"met {tls_errors.talker(self._first)} where mutual TLS is required")

    def end_handshake(self) -> None:
        """Ends the cycle of this object and OpenSSL's, whose callbacks find their channel by it during the handshake. It
        would keep the memory of an abandoned handshake (about 150 KB) until Python's collector runs."""
        if self._connection is not None:
            self._connection.set_app_data(None)

    def free(self) -> None:
        """Gives all TLS memory back, now: whatever still holds this object, such as a traceback, holds little. Afterwards
        nothing but the plain fields can be used. Further calls do nothing."""
        self.end_handshake()
        self._connection = self._ssl = self._cipher_in = self._cipher_out = self._problem = self._fault = None

    def _judged(self) -> Svid | None:
        """The judgement that counts, over what the finished connection itself reports. It fails closed. None is a peer
        without identity: possible only on an ``unverified`` connection and with ``anonymous`` params."""
        connection = self._connection
        protocol = connection.get_alpn_proto_negotiated()
        if protocol and protocol not in self._protocols:
            raise Refused(
                Reason.HANDSHAKE_FAILED,
                f"met a peer that chose the protocol {shown(repr(protocol))}, which was not offered",
            )
        if self._unverified:
            return None
        result = _lib.SSL_get_verify_result(self._ssl)
        leaf = connection.get_peer_certificate()
        if leaf is None:
            return None if self._params.anonymous else judge(Presented(()), self._params, self._clock())
        sent = [encode(leaf._x509), *encode_stack(_lib.SSL_get_peer_cert_chain(self._ssl))]
        if len(sent) > 1 and sent[1] == sent[0]:
            del sent[0]  # OpenSSL includes the leaf in the peer's chain at a client only
        presented = Presented(
            tuple(sent),
            tuple(encode_stack(_lib.SSL_get0_verified_chain(self._ssl))),
            None if result == 0 else _chain_fault(result, 0),
        )
        svid = judge(presented, self._params, self._clock())
        self.path = tuple(map(_shared, presented.path))
        self.anchor = der_digest(presented.path[-1])
        self.evidence = ()  # of whom?
        return svid

    def _refuse(self, errors: Sequence[LibraryError]) -> NoReturn:
        """Raises the error that ended the handshake as a refusal with one of our reasons."""
        if self.leaf is None:
            self._unreadable = tls_errors.unreadable_certificate(errors)
        # The judgement's refusal comes first, or a bug in a callback, which must show.
        raise self._problem or tls_errors.handshake_refusal(errors)

    # -- results of the handshake --------------------------------------------------------------------------------------

    @property
    def presented(self) -> dict[str, str]:
        """What an unverified peer's certificate claims, for people; empty if the peer presented none."""
        if self.leaf is not None:
            return claims(self.leaf)
        return {"unreadable": self._unreadable} if self._unreadable else {}

    @property
    def protocols(self) -> list[str]:
        """Those that we accept or offer, the preferred one first."""
        return [protocol.decode() for protocol in self._protocols]

    @property
    def speaks_mesh(self) -> bool:
        """Whether both ends negotiated a protocol of ours, and so the callee gives a verdict."""
        return self._connection.get_alpn_proto_negotiated() in self._protocols

    @property
    def keeps(self) -> bool:
        """Whether that is ``mesh/2``: the channel is kept, for one app connection after another."""
        return bool(self._connection.get_alpn_proto_negotiated().startswith(ALPN_PREFIXES[0].encode()))

    @property
    def group(self) -> str | None:
        """The key-exchange group, such as ``X25519MLKEM768``."""
        name: str | None = self._connection.get_group_name()
        return name

    @property
    def resumed(self) -> bool:
        return bool(_lib.SSL_session_reused(self._ssl))

    @property
    def connection_id(self) -> str | None:
        """A hash of the client random: the same at both ends, also for a refused handshake. None before the hello."""
        out = _ffi.new("unsigned char[32]")
        _lib.SSL_get_client_random(self._ssl, out, 32)
        random = bytes(_ffi.buffer(out))
        return hashlib.sha256(random).hexdigest()[:16] if any(random) else None


def verify_own_chain(keys: KeyPair) -> ChainFault | None:
    """Verifies our own chain as peers that trust our roots will: the first fault, or None."""
    store = crypto.X509Store()
    _fill(store, keys.roots)
    leaf, *issuers = (crypto.X509.from_cryptography(certificate) for certificate in keys.chain)
    try:
        crypto.X509StoreContext(store, leaf, issuers).verify_certificate()
    except crypto.X509StoreContextError as error:
        return _chain_fault(error.errors[0], error.errors[1])
    finally:
        take_errors()
    return None


# -- callbacks and translations ----------------------------------------------------------------------------------------


def _callback(signature: str, on_error: int) -> Callable[[Callable[..., int]], Any]:
    """Makes a C callback of a function. If it raises, the callback returns ``on_error``, which must mean a refusal."""
    return lambda function: _ffi.callback(signature, function, on_error)


@_callback("int (*)(int, X509_STORE_CTX *)", 0)
def _verify(ok: int, store: Any) -> int:
    """OpenSSL calls this for each fault of the chain (ok=0) and for each certificate that passed (ok=1), the leaf last."""
    depth = _lib.X509_STORE_CTX_get_error_depth(store)
    if ok and depth > 0:
        return 1
    ssl = _lib.X509_STORE_CTX_get_ex_data(store, _lib.SSL_get_ex_data_X509_STORE_CTX_idx())
    channel = SSL.Connection._reverse_mapping[ssl].get_app_data()
    try:
        leaf = encode(_lib.X509_STORE_CTX_get0_cert(store))
        channel.leaf = leaf
        if not ok:
            if not channel.accepts:  # whoever we called; what strangers bring is not worth the time
                channel.evidence = _chain(store)
            fault = _chain_fault(_lib.X509_STORE_CTX_get_error(store), depth)
            judge(Presented((leaf,), fault=fault), channel._params, channel._clock())
            return 0
        path = channel.evidence = _chain(store)
        judge(Presented((leaf,), path), channel._params, channel._clock())
    except Refused as refusal:
        channel._problem = refusal
        if ok:
            error = tls_errors.verify_error(refusal.reason)
            _lib.X509_STORE_CTX_set_error(store, error)
        return 0
    except BaseException as error:
        channel._problem = error
        return 0
    return 1


def _chain(store: Any) -> tuple[bytes, ...]:
    """The chain that a verification has built so far (DER, leaf first)."""
    chain = _lib.X509_STORE_CTX_get1_chain(store)
    if chain == _NULL:
        return ()
    try:
        return tuple(encode_stack(chain))
    finally:
        for index in range(_lib.sk_X509_num(chain)):
            _lib.X509_free(_lib.sk_X509_value(chain, index))
        _lib.sk_X509_free(chain)


@_callback(
    "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)",
    _lib.SSL_TLSEXT_ERR_ALERT_FATAL,
)
def _select_alpn(ssl: Any, out: Any, out_size: Any, offered: Any, size: int, _argument: Any) -> int:
    """Selects the best of our protocols among those offered. Called only when the peer offers any (RFC 7301)."""
    channel = SSL.Connection._reverse_mapping[ssl].get_app_data()
    at, places = 0, dict[bytes, int]()
    while at < size:
        length = offered[at]
        places[bytes(_ffi.buffer(offered + at + 1, length))] = at + 1
        at += 1 + length
    for protocol in channel._protocols:
        if protocol in places:
            out[0] = _ffi.cast("unsigned char *", offered + places[protocol])  # stays valid as long as the hello does
            out_size[0] = len(protocol)
            return int(_lib.SSL_TLSEXT_ERR_OK)
    names = [shown(name.decode("latin-1"), 40) for name in places]
    channel._problem = Refused(
        Reason.HANDSHAKE_FAILED,
        f"met a peer that offers {', '.join(names[:4])}, but only {' or '.join(channel.protocols)} is accepted here",
    )
    return int(_lib.SSL_TLSEXT_ERR_ALERT_FATAL)  # (no_application_protocol; NOACK would go on)


def _fill(store: Any, roots: Sequence[x509.Certificate]) -> None:
    for root in roots:
        store.add_cert(crypto.X509.from_cryptography(root))
    # Never PARTIAL_CHAIN in addition: with it a leaf could be a trust anchor.
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)


def _chain_fault(error: int, depth: int) -> ChainFault:
    return tls_errors.chain_fault(error, depth, _ffi.string(_lib.X509_verify_cert_error_string(error)).decode())


@lru_cache(maxsize=1024)
def _shared(der: bytes) -> bytes:
    """An equal object that all share: ten thousand connections of one peer keep one copy of its path."""
    return der
