"""A CA without a server: its keys in memory, its store in a file, its clock in the test's hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol import enrolment
from certs.protocol.denial import Denial, Denied
from certs.protocol.enrolment import EnrolmentCredential
from certs.registrar import registrar, revocations
from certs.registrar.registrar import IssuingPolicy
from certs.store.store import Store, audit_entries, file_url
from sidecar.identity.spiffe import SpiffeId
from tests.beds import certificates
from tests.beds.clock import NOW, Clock

DOMAIN = "shop.internal"
API, WEB = SpiffeId(DOMAIN, ("api",)), SpiffeId(DOMAIN, ("web",))


API_URI = f"spiffe://{DOMAIN}/api"


def csr(key: Any = None, *, uris: Sequence[str] = (API_URI,), **asked: Any) -> str:
    """A CSR of api's, which asks for api's own name unless told otherwise."""
    return certificates.csr(key, uris=uris, **asked)


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
        return Store(file_url(self.path), clock=self.clock.seconds)

    def but(self, **terms: Any) -> IssuingPolicy:
        """The terms, one of them changed."""
        return replace(self.terms, **terms)

    def make_credential(self, kind: enrolment.Kind = "token", identity: SpiffeId = API) -> EnrolmentCredential:
        made = enrolment.make(kind, self.authority.root_digest)
        self.store.write(lambda transaction: registrar.add_credential(transaction, made, identity))
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
