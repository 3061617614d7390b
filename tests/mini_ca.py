"""A CA with its store and its clock, which the tests of ``certs`` start from; and requests to it, honest and bent."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from certs.protocol.denial import Denial, Denied
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol import enrolment
from certs.protocol.enrolment import EnrolmentCredential
from certs.registrar import registrar, revocations
from certs.registrar.registrar import IssuingPolicy
from certs.store.store import Store, audit_entries, file_url
from sidecar.identity.spiffe import SpiffeId
from tests.certificates import Bent, der, ec_key

NOW = datetime.now(UTC).replace(microsecond=0)
DOMAIN = "shop.internal"
API, WEB = SpiffeId(DOMAIN, ("api",)), SpiffeId(DOMAIN, ("web",))


@dataclass
class Clock:
    """A time of day that passes when it is told to."""

    now: datetime = NOW

    def __call__(self) -> int:
        return int(self.now.timestamp())

    def pass_by(self, **span: float) -> None:
        self.now += timedelta(**span)


def csr(
    key: CertificateIssuerPrivateKeyTypes | None = None,
    *,
    uris: Sequence[str] = ("spiffe://shop.internal/api",),
    names: Sequence[x509.GeneralName] = (),
    cn: str | None = None,
    extensions: Sequence[Bent] = (),
    attributes: Sequence[tuple[x509.ObjectIdentifier, bytes]] = (),
) -> str:
    """A CSR in PEM, honest but for what is asked."""
    subject = [] if cn is None else [x509.NameAttribute(NameOID.COMMON_NAME, cn)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    wanted = [*map(x509.UniformResourceIdentifier, uris), *names]
    if wanted:
        builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    request = builder.sign(key or ec_key(), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


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


def pem_of(request: bytes) -> str:
    """A CSR's DER, or whatever it is, in PEM."""
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{b64encode(request).decode()}\n-----END CERTIFICATE REQUEST-----\n"


def leaves(chain: str) -> list[x509.Certificate]:
    """What an answer holds."""
    return x509.load_pem_x509_certificates(chain.encode())


def ders(chain: str) -> list[bytes]:
    return [one.public_bytes(serialization.Encoding.DER) for one in leaves(chain)]


def new_authority(trust_domain: str = DOMAIN, now: datetime = NOW) -> Authority:
    """One in memory."""
    made = authority.make(trust_domain, now)
    root = made.root.certificate
    return Authority(trust_domain, (root,), root, made.issuing, made.delegate)


OWN = new_authority()


@dataclass
class MiniCa:
    """A CA: its files in memory, its store in a file, its clock in the hands of the test."""

    path: Path
    authority: Authority = field(default_factory=lambda: OWN)
    clock: Clock = field(default_factory=Clock)
    terms: IssuingPolicy = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.terms = IssuingPolicy(self.authority, frozenset({"api", "web"}))
        self.store = self.another_store()

    def another_store(self) -> Store:
        """As another replica opens it."""
        return Store(file_url(self.path), clock=self.clock)

    def but(self, **terms: Any) -> IssuingPolicy:
        """The terms, one of them changed."""
        return replace(self.terms, **terms)

    def make_pass(self, kind: enrolment.Kind = "token", identity: SpiffeId = API) -> EnrolmentCredential:
        made = enrolment.make(kind, self.authority.root_digest)
        self.store.write(lambda transaction: registrar.add_pass(transaction, made, identity))
        return made

    def enrol(
        self,
        shown: EnrolmentCredential,
        request: str,
        service: str = "api",
        terms: IssuingPolicy | None = None,
        store: Store | None = None,
    ) -> str:
        return (store or self.store).write(
            lambda transaction: registrar.enrol(transaction, terms or self.terms, shown, service, request)
        )

    def renew(self, path: Sequence[bytes], request: str, terms: IssuingPolicy | None = None) -> str:
        return self.store.write(lambda transaction: registrar.renew(transaction, terms or self.terms, path, request))

    def reenrol(
        self, certificate: bytes, nonce: bytes, signature: bytes, request: str, terms: IssuingPolicy | None = None
    ) -> str:
        return self.store.write(
            lambda transaction: registrar.reenrol(
                transaction, terms or self.terms, certificate, nonce, signature, request
            )
        )

    def revoke(self, identity: SpiffeId = API) -> int:
        return self.store.write(lambda transaction: revocations.revoke_identity(transaction, identity))

    def events(self) -> list[tuple[str, str]]:
        """The audit log: what happened, and to whom."""
        return self.store.read(lambda connection: [(one.event, one.identity) for one in audit_entries(connection)])


def denial(refused: pytest.ExceptionInfo[Denied]) -> Denial:
    return refused.value.denial
