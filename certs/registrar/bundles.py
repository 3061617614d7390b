"""The trust bundles that sidecars get, as they are in the store: read, published, and one more that distrusts a CA's key.

Functions of a connection or a transaction (:mod:`certs.store.store`). The signed document is
:mod:`certs.protocol.documents`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa
from cryptography import x509

from certs.authority.authority import Authority
from certs.protocol.documents import Bundle, next_version, read_bundle, sign_bundle
from certs.protocol.x509_profile import Issuer
from certs.store.store import Transaction, bundles
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError

MOST_BUNDLES = 64
"""How many bundles one answer holds, the newest ones: a rotation makes three."""


def newest_bundle(connection: sa.Connection) -> str | None:
    """The newest document; None in a store that has none yet."""
    return connection.execute(sa.select(bundles.c.document).order_by(bundles.c.version.desc()).limit(1)).scalar()


def bundles_after(connection: sa.Connection, version: int) -> list[str]:
    """The documents newer than ``version``, the oldest first, at most :data:`MOST_BUNDLES`: each may be signed by a root
    that only the one before it introduces."""
    newer = sa.select(bundles.c.document).where(bundles.c.version > version).order_by(bundles.c.version.desc())
    return list(connection.execute(newer.limit(MOST_BUNDLES)).scalars())[::-1]


def publish(transaction: Transaction, bundle: Bundle, document: bytes) -> None:
    """Adds a bundle, which must be newer than all."""
    last = transaction.connection.execute(sa.select(sa.func.max(bundles.c.version))).scalar()
    if last is not None and bundle.version <= last:
        raise UsageError(f"a bundle of version {bundle.version} is no news after {last}")
    transaction.connection.execute(bundles.insert().values(version=bundle.version, document=document.decode()))
    roots = sorted(anchor.hex()[:16] for anchor in bundle.anchors)
    transaction.record("bundle", "", version=bundle.version, roots=roots, active=bundle.active.hex()[:16])


def distrust(transaction: Transaction, key: bytes, own: Authority, root: Issuer, now: datetime) -> int:
    """Publishes that a CA's key counts no longer, whoever signed for it; returns the bundle's version."""
    document = newest_bundle(transaction.connection)
    if document is None:
        raise UsageError("the store has no trust bundle yet: start certs serve once")
    before = own_bundle(document, own.trust_domain, own.roots, now)
    bundle = replace(before, version=next_version(before.version, now), distrusted=before.distrusted | {key})
    publish(transaction, bundle, sign_bundle(bundle, [root]))
    transaction.record("distrusted", "", key=key.hex())
    return bundle.version


def own_bundle(document: str, trust_domain: str, roots: Iterable[x509.Certificate], now: datetime) -> Bundle:
    """A bundle from our own store, if it is of this CA: signed by one of these roots. Raises :class:`UntrustedError`."""
    return read_bundle(document.encode(), trust_domain, frozenset(map(certificate_digest, roots)), now)
