"""Plays the stranger at a sidecar's mTLS listener, and tells what it saw. I/O: sockets, and Python's own ``ssl``.

Not the sidecar's own TLS: what one engine does wrong the same engine would not notice. Nothing is verified here, as a
stranger does not care; what is shown is compared later.

It holds no certificate but its own: of a CA that exists for the time of one run (:func:`foreign`), and of ``mesh/probe``. A
stranger that is let in opens its stream as a probe, so that no app hears of it. After the handshake it waits to be told: a
TLS 1.3 client's handshake is over before the server has judged its certificate (RFC 8446 4.6).
"""

from __future__ import annotations

import socket
import ssl  # noqa: TID251  # on purpose another engine, see above
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.protocol import x509_profile
from sidecar.documents.address import Address, parse_address
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.spiffe import SpiffeId
from sidecar.relay.frames import MAX_WORD, Attribute, Kind, Open, encode_open
from sidecar.verify.judgement import Attempt, Listener, Outcome, Seen

SECONDS = 4.0
"""How long one attempt waits to be refused. A sidecar refuses within milliseconds; its own deadline is five seconds."""

AT_ONCE = 8
_MAX_ANSWER = 4096


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate (PEM, leaf first, then its issuers) and its key (PEM)."""

    certificate: str
    key: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the leaf (DER), as hex digits."""
        return certificate_digest(x509.load_pem_x509_certificate(self.certificate.encode())).hex()

    def check(self) -> None:
        """Raises :class:`ValueError` or :class:`OSError` if they cannot be read, or do not belong together."""
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self)


def foreign(trust_domain: str, now: datetime) -> Credential:
    """A certificate of ``mesh/probe`` from a CA that is nobody's. It says the right name: only its signature is wrong."""
    root_key, issuing_key, key = new_key(), new_key(), new_key()
    root = x509_profile.Issuer(x509_profile.root(trust_domain, root_key, now), root_key)
    issuing = x509_profile.intermediate(trust_domain, issuing_key.public_key(), root, now)
    identity = SpiffeId(trust_domain, ("mesh", "probe"))
    leaf = x509_profile.leaf(identity, key.public_key(), x509_profile.Issuer(issuing, issuing_key), now)
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, issuing))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Credential(pem.decode(), secret.decode())


def attempt_all(wanted: Sequence[tuple[Listener, Attempt]], credentials: Mapping[Attempt, Credential]) -> list[Seen]:
    """Makes each attempt, a few at a time; in their order."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(lambda one: attempt(one[0], one[1], credentials.get(one[1])), wanted))


def attempt(listener: Listener, what: Attempt, credential: Credential | None) -> Seen:
    """Makes one attempt."""
    try:
        address = parse_address(listener.address)
        sock = socket.create_connection((address.host, address.port), SECONDS)
    except (OSError, ValueError) as fault:
        return Seen(Outcome.UNREACHABLE, _reason(fault))
    with sock:
        source = str(Address(*sock.getsockname()[:2]))
        try:
            if what is Attempt.PLAINTEXT:
                return _plaintext(sock, source)
            return _tls(sock, source, listener.port, what, credential)
        except (TimeoutError, ssl.SSLWantReadError):
            return Seen(Outcome.SILENT, f"no answer within {SECONDS:g} s", source)
        except (ConnectionError, ssl.SSLEOFError) as fault:
            return Seen(Outcome.REFUSED, f"it closed: {_reason(fault)}", source)
        except OSError as fault:
            return Seen(Outcome.BROKEN, _reason(fault), source)


def reach_all(addresses: Sequence[str]) -> list[tuple[bool | None, str]]:
    """Whether each can be reached, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(reach, addresses))


def reach(text: str) -> tuple[bool | None, str]:
    """Whether something accepts a connection at an address, and what was seen; None if it is no address."""
    try:
        address = parse_address(text)
    except ValueError as fault:
        return None, str(fault)
    try:
        socket.create_connection((address.host, address.port), SECONDS / 2).close()
    except OSError as fault:
        return False, f"not reached: {_reason(fault)}"
    return True, "it accepts connections there, past its sidecar"


def _plaintext(sock: socket.socket, source: str) -> Seen:
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    data = sock.recv(_MAX_ANSWER)
    if not data:
        return Seen(Outcome.REFUSED, "it closed", source)
    if data[0] == 0x15:  # a TLS alert (RFC 8446 5.1)
        return Seen(Outcome.REFUSED, "by a TLS alert", source)
    return Seen(Outcome.LET_IN, f"it answered in plaintext: {data[:40]!r}", source)


def _tls(sock: socket.socket, source: str, port: str, what: Attempt, credential: Credential | None) -> Seen:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it plays a stranger
    older = what is Attempt.OLDER_TLS
    context.maximum_version = ssl.TLSVersion.TLSv1_2 if older else ssl.TLSVersion.TLSv1_3
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if older else ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([f"mesh/2/{port}", f"mesh/1/{port}"])
    if credential is not None:
        _load(context, credential)
    try:
        with context.wrap_socket(sock) as tls:
            der = tls.getpeercert(binary_form=True)
            shown = sha256(der).hexdigest() if der else ""
            if older:
                return Seen(Outcome.LET_IN, f"it speaks {tls.version()}", source, shown)
            return _after_handshake(tls, source, shown)
    except ssl.SSLError as fault:
        return _tls_fault(fault, source)


def _after_handshake(tls: ssl.SSLSocket, source: str, shown: str) -> Seen:
    protocol = tls.selected_alpn_protocol() or ""
    try:
        if protocol.startswith("mesh/2/"):
            payload = encode_open(Open(1, round(SECONDS * 1000), {Attribute.PROBE: b""}))
            tls.sendall((Kind.OPEN << 24 | len(payload)).to_bytes(4, "big") + payload)
        data = b""
        while True:
            more = tls.recv(_MAX_ANSWER)
            if not more:
                return Seen(Outcome.REFUSED, "it closed without a word", source, shown)
            data += more
            word = _verdict(data, framed=protocol.startswith("mesh/2/")) if protocol else "?"
            if word == "?" or len(data) > _MAX_ANSWER:
                return Seen(Outcome.LET_IN, f"it answered {data[:40]!r}", source, shown)
            if word in ("ok", "probe"):
                return Seen(Outcome.LET_IN, f"its verdict is {word}", source, shown, word)
            if word:
                return Seen(Outcome.REFUSED, f"by the verdict {word}", source, shown, word)
    except ssl.SSLError as fault:
        return _tls_fault(fault, source, shown)
    except TimeoutError:
        return Seen(Outcome.SILENT, f"the handshake is done, and nothing refused it for {SECONDS:g} s", source, shown)
    except ConnectionError as fault:
        return Seen(Outcome.REFUSED, f"it closed: {_reason(fault)}", source, shown)


def _verdict(data: bytes, *, framed: bool) -> str:
    """The verdict that ``data`` holds; "" if it is not complete, "?" if this is none."""
    while framed and len(data) >= 4:
        kind, length = data[0], int.from_bytes(data[1:4], "big")
        if kind == Kind.OPENED and length == 4:
            data = data[8:]
            continue
        if kind != Kind.VERDICT or length >> 8:
            return "?"
        data = data[3:]  # as in mesh/1: a byte for the length, and the word
        break
    else:
        if framed:
            return ""
    if data and not 0 < data[0] <= MAX_WORD:
        return "?"
    if not data or len(data) < 1 + data[0]:
        return ""
    word = data[1 : 1 + data[0]].decode("ascii", "replace")
    return word if word.replace("_", "").isalpha() else "?"


def _tls_fault(fault: ssl.SSLError, source: str, shown: str = "") -> Seen:
    reason = fault.reason or ""
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].lower() or reason.lower()
        return Seen(Outcome.REFUSED, f"by the TLS alert {alert}", source, shown)
    if isinstance(fault, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Seen(Outcome.REFUSED, "it closed", source, shown)
    return Seen(Outcome.BROKEN, _reason(fault), source, shown)


def _load(context: ssl.SSLContext, credential: Credential) -> None:
    """Python's ``ssl`` reads files only; they are this user's alone, and are gone at once."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "both.pem"
        path.touch(mode=0o600)
        path.write_text(credential.key + credential.certificate)
        context.load_cert_chain(path)


def _reason(fault: Exception) -> str:
    if isinstance(fault, ssl.SSLError) and fault.reason:
        return fault.reason.lower().replace("_", " ")
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
