"""The store's trust bundles: read, publish, and distrust a CA's key.

Functions of a connection or a transaction (:mod:`certs.store.store`). :mod:`certs.protocol.documents` defines the signed
document.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa
from cryptography import x509

from certs.authority.authority import Authority
from certs.protocol import wire
from certs.protocol.documents import Bundle, next_version, read_bundle, sign_bundle
from certs.protocol.x509_profile import Issuer
from certs.store.store import Transaction, bundles
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.reasons import UsageError

_AROUND, _BETWEEN = 64, 2
"""Bytes of JSON around all documents, and between two."""


def newest_bundle(connection: sa.Connection) -> str | None:
    """The newest document; None if the store has none yet."""
    return connection.execute(sa.select(bundles.c.document).order_by(bundles.c.version.desc()).limit(1)).scalar()


def bundles_after(connection: sa.Connection, version: int) -> list[str]:
    """The documents newer than ``version``, oldest first: the newest that fit in one answer. A reader needs all of them:
    each may be signed by a root that only the bundle before it introduces."""
    newer = sa.select(bundles.c.document).where(bundles.c.version > version).order_by(bundles.c.version.desc())
    left = wire.MAX_UNVERIFIED_BUNDLES_BYTES - _AROUND
    fitting: list[str] = []
    for document in connection.execute(newer.limit(wire.MAX_BUNDLES)).scalars():
        left -= len(document) + _BETWEEN
        if left < 0 and fitting:
            break
        fitting.append(document)
    return fitting[::-1]


def publish(transaction: Transaction, bundle: Bundle, document: bytes) -> None:
    """Adds a bundle. Raises :class:`UsageError` unless it is newer than every other."""
    last = transaction.connection.execute(sa.select(sa.func.max(bundles.c.version))).scalar()
    if last is not None and bundle.version <= last:
        raise UsageError(f"bundle version {bundle.version} is not newer than {last}")
    transaction.connection.execute(bundles.insert().values(version=bundle.version, document=document.decode()))
    roots = sorted(anchor.hex()[:16] for anchor in bundle.anchors)
    transaction.record("bundle", "", version=bundle.version, roots=roots, active=bundle.active.hex()[:16])


def distrust(
    transaction: Transaction,
    key: bytes,
    own: Authority,
    root: Issuer,
    now: datetime,
    *,
    delegate: Issuer | None = None,
) -> int:
    """Publishes a bundle that distrusts a CA's key (its digest), whatever signed that CA, and a delegate's; returns the
    bundle's version."""
    document = newest_bundle(transaction.connection)
    if document is None:
        raise UsageError("the store has no trust bundle yet: start certs serve once")
    keys = {key} if delegate is None else {key, key_digest(delegate.certificate)}
    before = own_bundle(document, own.trust_domain, own.roots, now)
    bundle = replace(before, version=next_version(before.version, now), distrusted=before.distrusted | keys)
    publish(transaction, bundle, sign_bundle(bundle, [root]))
    for each in sorted(keys):
        transaction.record("distrusted", "", key=each.hex())
    return bundle.version


def own_bundle(document: str, trust_domain: str, roots: Iterable[x509.Certificate], now: datetime) -> Bundle:
    """Reads a bundle from the CA's own store. It must be signed by one of ``roots``. Raises :class:`UntrustedError`."""
    return read_bundle(document.encode(), trust_domain, frozenset(map(certificate_digest, roots)), now)
