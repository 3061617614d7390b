"""Certificates and certificate requests for tests, good ones and bad ones: :class:`Authority` with its
:meth:`Authority.leaf`, and :func:`csr`.

``Authority().leaf()`` is the honest twin: accepted. Every parameter bends one field and leaves the rest honest, so that a
refusal is about that field. It shares no code with ``certs``, whose mistakes it would otherwise repeat.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from sidecar.transport.tls import KeyPair, PrivateKey

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Bent = tuple[x509.ExtensionType, bool]  # an extension, and whether it is critical

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
ANY_EKU = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def usage(*names: str) -> x509.KeyUsage:
    """A KeyUsage of exactly these: ``usage("digital_signature", "key_cert_sign")``."""
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


HONEST_USAGE = usage("digital_signature")
CA_USAGE = usage("key_cert_sign", "crl_sign")
UNKNOWN_CRITICAL: Bent = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"), True)


def raw(oid: x509.ObjectIdentifier, der: bytes, *, critical: bool = False) -> Bent:
    """An extension of any bytes: malformed ones, ones that ``cryptography`` would not write."""
    return x509.UnrecognizedExtension(oid, der), critical


def raw_names(*, uris: Sequence[bytes] = (), dns: Sequence[bytes] = (), emails: Sequence[bytes] = ()) -> bytes:
    """The DER of a SubjectAlternativeName of any bytes, non-ASCII ones too (RFC 5280 4.2.1.6)."""
    tagged = [(0x81, emails), (0x82, dns), (0x86, uris)]
    return der(0x30, b"".join(der(tag, value) for tag, values in tagged for value in values))


def der(tag: int, content: bytes) -> bytes:
    """One DER element (X.690 8.1)."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key, the same each time, since each takes a fifth of a second; one of 1024 bits is weak, and 1024 is the least
    that ``cryptography`` makes."""
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class Credential:
    """A certificate with its key. ``chain`` is what its holder sends, leaf first; ``roots`` what its holder trusts."""

    certificate: x509.Certificate
    key: Key
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...] = ()

    @property
    def chain_pem(self) -> bytes:
        return pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def bundle_pem(self) -> bytes:
        return pem(*self.roots)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        return tuple(one.public_bytes(serialization.Encoding.DER) for one in self.chain)

    def sending(self, *chain: x509.Certificate) -> Credential:
        """The same, but its holder sends this chain: another order, junk added, the issuer left out."""
        return replace(self, chain=chain)

    def trusting(self, *roots: x509.Certificate) -> Credential:
        """The same, but its holder trusts these roots."""
        return replace(self, roots=roots)

    def write(self, directory: Path) -> Path:
        """Writes ``certificate.pem``, ``key.pem`` (0600) and ``bundle.pem``; returns the directory, made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content, mode in (
            ("bundle.pem", self.bundle_pem, 0o644),
            ("key.pem", self.key_pem, 0o600),
            ("certificate.pem", self.chain_pem, 0o644),
        ):
            fresh = directory / f".{name}.tmp"
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
            fresh.replace(directory / name)
        return directory


class Authority:
    """A root and an issuing intermediate, both honest unless told otherwise.

    ``age``: how long ago both were made; with ``age=91 * DAY`` the intermediate has expired and the root has not.
    ``name_constraints=False`` makes a CA that could sign for any trust domain. Two of the same ``name`` are the
    "same name, another key" attack.
    """

    def __init__(
        self,
        trust_domain: str = "shop.internal",
        *,
        name_constraints: bool = True,
        name: str = "Test mesh",
        now: datetime | None = None,
        age: timedelta = timedelta(minutes=5),
        root_lifetime: timedelta = 3650 * DAY,
        issuing_lifetime: timedelta = 90 * DAY,
    ) -> None:
        self.trust_domain = trust_domain
        self.name = name
        self.now = (now or datetime.now(UTC)).replace(microsecond=0)
        self._name_constraints = name_constraints
        made = self.now - age
        self.root = self.ca("root", signer=None, pathlen=1, not_before=made, not_after=made + root_lifetime)
        self.issuing = self.ca("issuing", not_before=made, not_after=made + issuing_lifetime)

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return (self.root.certificate,)

    @property
    def bundle_pem(self) -> bytes:
        """What everybody trusts: the root."""
        return pem(*self.roots)

    def spiffe_id(self, path: str) -> str:
        return f"spiffe://{self.trust_domain}/{path}"

    def ca(
        self,
        role: str,
        *,
        signer: Credential | str | None = "root",
        pathlen: int | None = 0,
        ca: bool = True,
        key_usage: x509.KeyUsage | None = CA_USAGE,
        key: Key | None = None,
        permitted: Sequence[str] | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        extensions: Sequence[Bent] = (),
    ) -> Credential:
        """One CA certificate, by default an intermediate under the root. ``signer=None`` signs itself.

        ``permitted`` are the URI hosts of its name constraint: by default the trust domain, for intermediates of an
        authority with ``name_constraints``; ``()`` for none.
        """
        signed_by = self.root if isinstance(signer, str) else signer
        if permitted is None:
            permitted = (self.trust_domain,) if signed_by is not None and self._name_constraints else ()
        wanted: list[Bent] = [(x509.BasicConstraints(ca=ca, path_length=pathlen if ca else None), True)]
        if key_usage is not None:
            wanted.append((key_usage, True))
        if permitted:
            hosts = [x509.UniformResourceIdentifier(host) for host in permitted]
            wanted.append((x509.NameConstraints(permitted_subtrees=hosts, excluded_subtrees=None), True))
        return self._certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name} {role}")]),
            key or ec_key(),
            signed_by,
            not_before or self.now - timedelta(minutes=5),
            not_after or self.now + 90 * DAY,
            [*wanted, *extensions],
        )

    def leaf(
        self,
        service: str = "api",
        *,
        uris: Sequence[str] | None = None,
        dns: Sequence[str] = (),
        emails: Sequence[str] = (),
        raw_san: bytes | None = None,
        cn: str | None = None,
        ca: bool | None = False,
        key_usage: x509.KeyUsage | None = HONEST_USAGE,
        key_usage_critical: bool = True,
        eku: Sequence[x509.ObjectIdentifier] | None = (SERVER_AUTH, CLIENT_AUTH),
        extensions: Sequence[Bent] = (),
        key_ids: bool = True,
        lifetime: timedelta = HOUR,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        serial: int | None = None,
        key: Key | None = None,
        signer: Credential | None = None,
        self_signed: bool = False,
        corrupt: tuple[bytes, bytes] | None = None,
    ) -> Credential:
        """The certificate of ``service``, honest but for what is asked.

        ``uris``: the URI names (default: the one SPIFFE ID of the service; ``()`` for none). ``raw_san``: DER of the
        whole SubjectAlternativeName instead, see :func:`raw_names`. ``cn``: a subject (default: empty). ``ca=None``
        leaves basicConstraints out, ``key_usage=None`` and ``eku=None`` theirs. ``extensions`` are added as they are:
        :data:`UNKNOWN_CRITICAL`, :func:`raw`. ``key_ids=False``: no SKI and AKI. ``not_before`` defaults to a minute
        ago, ``not_after`` to ``lifetime`` from now. ``signer``: another CA, or a leaf (one with a ``cn``, since issuers
        have names). ``corrupt``: (old, new) bytes of one length, replaced in the DER before it is signed, for what no
        library would write.
        """
        wanted: list[Bent] = []
        if ca is not None:
            wanted.append((x509.BasicConstraints(ca=ca, path_length=None), True))
        if key_usage is not None:
            wanted.append((key_usage, key_usage_critical))
        if eku is not None:
            wanted.append((x509.ExtendedKeyUsage(eku), False))
        names: list[x509.GeneralName] = [
            *(x509.UniformResourceIdentifier(uri) for uri in ([self.spiffe_id(service)] if uris is None else uris)),
            *(x509.DNSName(name) for name in dns),
            *(x509.RFC822Name(name) for name in emails),
        ]
        san_critical = cn is None  # RFC 5280 4.2.1.6: critical where the subject is empty
        if raw_san is not None:
            wanted.append(raw(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, raw_san, critical=san_critical))
        elif names:
            wanted.append((x509.SubjectAlternativeName(names), san_critical))
        return self._certificate(
            x509.Name([] if cn is None else [x509.NameAttribute(NameOID.COMMON_NAME, cn)]),
            key or ec_key(),
            None if self_signed else signer or self.issuing,
            not_before or min(self.now - timedelta(minutes=1), (not_after or self.now) - timedelta(minutes=1)),
            not_after or self.now + lifetime,
            [*wanted, *extensions],
            key_ids=key_ids,
            serial=serial,
            corrupt=corrupt,
        )

    def _certificate(
        self,
        subject: x509.Name,
        key: Key,
        signer: Credential | None,
        not_before: datetime,
        not_after: datetime,
        extensions: Sequence[Bent],
        *,
        key_ids: bool = True,
        serial: int | None = None,
        corrupt: tuple[bytes, bytes] | None = None,
    ) -> Credential:
        signing_key: Key = key if signer is None else signer.key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if signer is None else signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        if key_ids:
            above = x509.SubjectKeyIdentifier.from_public_key(signing_key.public_key())
            builder = builder.add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
        certificate = builder.sign(
            signing_key, None if isinstance(signing_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        )
        if corrupt is not None:
            certificate = _corrupted(certificate, corrupt, signing_key)
        # A signer that signed itself is a root, and roots are not sent along.
        above_chain = () if signer is None or signer.certificate.issuer == signer.certificate.subject else signer.chain
        roots = self.roots if hasattr(self, "root") else (certificate,)
        return Credential(certificate, key, (certificate, *above_chain), roots)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _corrupted(certificate: x509.Certificate, corrupt: tuple[bytes, bytes], key: Key) -> x509.Certificate:
    """Replaces bytes in what is signed, and signs it again, so that nothing but those bytes is wrong."""
    old, new = corrupt
    body = certificate.tbs_certificate_bytes
    assert len(old) == len(new), "bytes of another length would break the DER around them"
    assert body.count(old) == 1, f"{old!r} is there {body.count(old)} times"
    body = body.replace(old, new)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "an ECDSA signer is enough for tests"
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256 (RFC 5758)
    signature = der(0x03, b"\0" + key.sign(body, ec.ECDSA(hashes.SHA256())))
    return x509.load_der_x509_certificate(der(0x30, body + algorithm + signature))


# -- as the code under test holds them ---------------------------------------------------------------------------------


class Holder(Protocol):
    """Anything with a certificate and its key: a :class:`Credential`, what ``certs`` issued."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]: ...
    @property
    def key(self) -> Any: ...
    @property
    def roots(self) -> tuple[x509.Certificate, ...]: ...


def key_pair(held: Holder) -> KeyPair:
    """What a TLS context is made of."""
    assert isinstance(held.key, PrivateKey)
    return KeyPair(held.chain, held.key, held.roots)


def credential(held: Holder) -> Credential:
    """The way back."""
    return Credential(held.chain[0], held.key, held.chain, held.roots)


# -- certificate requests ----------------------------------------------------------------------------------------------


def csr(
    key: Any = None,
    *,
    uris: Sequence[str] = (),
    names: Sequence[x509.GeneralName] = (),
    cn: str | None = None,
    extensions: Sequence[Bent] = (),
    attributes: Sequence[tuple[x509.ObjectIdentifier, bytes]] = (),
) -> str:
    """A CSR in PEM; honest, and asking for nothing, unless told otherwise. ``key``: of any kind, by default a new EC key."""
    subject = [] if cn is None else [x509.NameAttribute(NameOID.COMMON_NAME, cn)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    wanted = [*map(x509.UniformResourceIdentifier, uris), *names]
    if wanted:
        builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    return pem_of(builder.sign(key or ec_key(), hashes.SHA256()))


EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")  # RFC 2985 5.4.2
ECDSA_SHA256, ECDSA_SHA1 = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")


def extension_request(*values: bytes) -> bytes:
    """The DER of the attribute that asks for extensions, of any bytes."""
    return der(0x30, EXTENSION_REQUEST + der(0x31, b"".join(values)))


def raw_extension(oid: bytes, value: bytes) -> bytes:
    """Extensions of one, in DER: ``oid`` is the content of its identifier."""
    return der(0x30, der(0x30, der(0x06, oid) + der(0x04, value)))


def raw_csr(
    key: ec.EllipticCurvePrivateKey,
    attributes: bytes = b"",
    *,
    signer: ec.EllipticCurvePrivateKey | None = None,
    algorithm: bytes = ECDSA_SHA256,
) -> str:
    """A CSR for ``key``, put together by hand (RFC 2986 4): any attributes, signed by anybody."""
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    body = der(0x30, b"\x02\x01\x00" + der(0x30, b"") + public + der(0xA0, attributes))
    algorithm_hash = hashes.SHA1() if algorithm == ECDSA_SHA1 else hashes.SHA256()  # noqa: S303 (to be refused)
    signature = (signer or key).sign(body, ec.ECDSA(algorithm_hash))
    return pem_of(der(0x30, body + algorithm + der(0x03, b"\0" + signature)))


def pem_of(request: bytes | x509.CertificateSigningRequest) -> str:
    """A CSR in PEM; as DER it may be any bytes."""
    if isinstance(request, bytes):
        text = b64encode(request).decode()
        return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
    return request.public_bytes(serialization.Encoding.PEM).decode()
