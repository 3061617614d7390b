"""Replaces the CA's root without a restart and without a failed connection. Resumable; fails closed.

How this works. A rotation goes through five stages:

============ ====================================================================== ==================================
stage        what it does                                                           what it waits for
============ ====================================================================== ==================================
prepare      makes a new root, issuing CA and delegate in ``next/``                 nothing
distribute   publishes a bundle of both roots; the old root is active               all have it: all trust the new root
activate     the CA issues under the new root; publishes a bundle in which it is    all have a certificate under it
             active
settle       nothing                                                                ``max_age``: connections that were
                                                                                    verified by the old root have ended
retire       publishes a bundle of the new root alone                               all have it
============ ====================================================================== ==================================

*All* means: the sidecars whose certificate has not expired, even if they have not polled lately, and the unexpired
certificates that were issued by hand; neither what was revoked, nor sidecars of services that are in the mesh no longer.

Invariants:

* No stage begins before every sidecar has what makes it safe. So at each moment each sidecar trusts the root of every
  certificate that its peers present. ``--force`` gives this up.
* Both roots sign each of the three bundles. So a sidecar that was off during the whole rotation accepts the newest bundle,
  because the old root, which it trusts, signed it.
* The stage is stored in the same transaction as the bundle that belongs to it. The files are brought into line before and
  after that, by steps that can be repeated. So the process may be killed at any point, and ``certs rotate-root`` resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import authority, files
from certs.authority.authority import ROOT, ROOT_KEY
from certs.authority.pemfiles import delegate_pem, key_pem, pem
from certs.protocol import documents
from certs.protocol.documents import Bundle, next_version
from certs.protocol.x509_profile import Issuer
from certs.registrar import bundles, followers, registrar
from certs.store.store import Store, Transaction, issued
from sidecar.host.atomic import PUBLIC, SECRET, NewFile
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError

NEXT = "next"
DONE = "next.done"
RETIRED = "retired"
_META = "rotation"


@dataclass(frozen=True, slots=True)
class Rotation:
    """The state of a rotation. ``old``, ``new``: SHA-256 of the roots, hexadecimal. ``bundle``: the version of the stage's
    bundle. ``since``: when the stage began, in Unix seconds."""

    stage: str
    old: str
    new: str
    bundle: int
    since: int


@dataclass(frozen=True, slots=True)
class Laggard:
    """A sidecar or a certificate that the stage waits for. ``until``: when its certificate ends, and the wait with it."""

    identity: str
    what: str
    until: datetime

    def __str__(self) -> str:
        return f"{self.identity} ({self.what}; its certificate ends at {self.until:%FT%TZ})"


def current(store: Store) -> Rotation | None:
    """The rotation that is in progress; None if there is none."""

    def read(transaction: Transaction) -> str | None:
        return transaction.get(_META)

    state = store.write(read)
    return Rotation(**json.loads(state)) if state else None


def root_in_force(
    directory: Path,
    key_file: Path | None,
    passphrase: bytes | None,
    keys: Path | None = None,
    new_passphrase: bytes | None = None,
) -> Issuer:
    """The root and its key, as :func:`certs.authority.authority.load_root` reads them.

    A run that was killed near its end may have installed the new root already, while ``key_file`` still names the old root's
    key. The new root's key is then taken from ``next/`` (``keys``, ``new_passphrase``: see :class:`Rotator`).
    """
    try:
        return authority.load_root(directory, key_file, passphrase)
    except UsageError:
        prepared = (keys or directory) / NEXT
        if not (prepared / ROOT_KEY).exists():
            raise
        new = _load_prepared(prepared, new_passphrase)
        if files.read(directory / ROOT) != pem(new.certificate):
            raise
        return new


class Rotator:
    """The rotation of one directory. ``old``: the root to replace, with its key; the new root itself, if an interrupted run
    has installed that already. ``keys``: where the new root's key will be, and ``next/`` with it until then, if not in the
    directory, which the machine that serves the CA may have. ``passphrase``: encrypts it in ``next/``."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        old: Issuer,
        trust_domain: str,
        keys: Path | None = None,
        passphrase: bytes | None = None,
    ) -> None:
        self._directory = directory
        self._next = (keys or directory) / NEXT
        self._store = store
        self._old = old
        self._trust_domain = trust_domain
        self._passphrase = passphrase

    # -- the stages; each may be repeated if it was interrupted --------------------------------------------------------

    def prepare(self, now: datetime) -> None:
        """Makes the new root in ``next/``. Replaces what an interrupted run or an earlier CA left there; no sidecar has
        it yet."""
        made = authority.make(self._trust_domain, now)
        _remove(self._next)
        files.make_directory(self._next)
        with files.locked(self._next, exclusive=True):
            files.write(
                self._next,
                [
                    NewFile(ROOT_KEY, key_pem(made.root.key, self._passphrase), SECRET),
                    NewFile(authority.ISSUING_KEY, key_pem(made.issuing.key), SECRET),
                    NewFile(authority.DELEGATE, delegate_pem(made.delegate), SECRET),
                    NewFile(authority.ISSUING, pem(made.issuing.certificate), PUBLIC),
                    NewFile(ROOT, pem(made.root.certificate), PUBLIC),
                ],
                force=True,
            )

    def distribute(self, now: datetime) -> Rotation:
        """Publishes a bundle with both roots."""
        new = self.new_root()
        self._store.read(
            lambda connection: self._newest(connection, [self._old], now)
        )  # check the store before any write
        self._write_roots(self._old.certificate, new.certificate)
        bundle = self._bundle(now, (self._old.certificate, new.certificate), self._old.certificate)
        return self._publish("distribute", bundle, [self._old, new], now)

    def activate(self, now: datetime) -> Rotation:
        """Installs the new issuing CA, then publishes a bundle in which the new root is active. In this order, so that a
        sidecar that has the bundle finds a CA that issues under the new root."""
        new = self.new_root()
        made = authority.load(self._next, now)
        if made.delegate is None:
            raise UsageError(f"{self._next} is not complete: remove it, and start the rotation again")
        with files.locked(self._directory, exclusive=True):
            authority.install(self._directory, made.issuer, made.delegate)
        bundle = self._bundle(now, (self._old.certificate, new.certificate), new.certificate)
        return self._publish("activate", bundle, [self._old, new], now)

    def retire(self, now: datetime) -> Rotation:
        """Publishes a bundle without the old root. The old root signs it too, for sidecars that trust no other."""
        new = self.new_root()
        bundle = self._bundle(now, (new.certificate,), new.certificate)
        return self._publish("retire", bundle, [self._old, new], now)

    def settle(self, rotation: Rotation) -> Rotation:
        """Records that every sidecar has a certificate under the new root; ``max_age`` counts from here."""

        def record(transaction: Transaction) -> Rotation:
            settled = replace(rotation, stage="settle", since=transaction.now)
            transaction.put(_META, json.dumps(asdict(settled)))
            transaction.record("rotation", "", stage="settle")
            return settled

        return self._store.write(record)

    def finish(
        self, key_out: Path, passphrase: bytes | None, renew: Callable[[Issuer], None] = lambda _new: None
    ) -> None:
        """Removes the old root from the directory and writes the new root's key to ``key_out``. An old key in that place is
        moved to ``retired/``, for the operator to destroy. ``renew``: replaces what else names the old root; it may be
        repeated."""
        new = self.new_root()
        files.make_directory(key_out)
        with files.locked(key_out, exclusive=True):
            if self._is_in_the_way(key_out / ROOT_KEY, new, passphrase):
                retired = key_out / RETIRED
                files.make_directory(retired)
                name = f"root-{certificate_digest(self._old.certificate).hex()[:16]}.key"
                files.write(retired, [NewFile(name, files.read(key_out / ROOT_KEY, secret=True), SECRET)], force=True)
            files.write(key_out, [NewFile(ROOT_KEY, key_pem(new.key, passphrase), SECRET)], force=True)
        self._write_roots(new.certificate)
        # Repeated, since an interrupted run may have published it and not written the file.
        document = self._store.read(bundles.newest_bundle)
        if document is not None:
            authority.keep_bundle(self._directory, document.encode())
        renew(new)
        self._store.write(_end)
        self._remove_next()

    def clean_up(self) -> bool:
        """Removes what a rotation left that was killed near its end; returns whether there was anything."""
        if self.is_prepared() and certificate_digest(self.new_root().certificate) == certificate_digest(
            self._old.certificate
        ):
            self._remove_next()
            return True
        return _remove(self._next.with_name(DONE))

    # -- what is waited for --------------------------------------------------------------------------------------------

    def laggards(self, rotation: Rotation, now: datetime) -> list[Laggard]:
        """The sidecars and certificates that the stage still waits for."""
        return self._store.read(lambda connection: list(_laggards(connection, rotation, now)))

    def new_root(self) -> Issuer:
        """The new root, with its key. Raises :class:`UsageError`."""
        if not self._next.is_dir():
            raise UsageError(
                f"{self._next} is missing, with the new root of the rotation that is in progress: give the options that it "
                "was started with (--root-key-out, --state)"
            )
        return _load_prepared(self._next, self._passphrase)

    def is_prepared(self) -> bool:
        names = (ROOT, ROOT_KEY, authority.ISSUING, authority.ISSUING_KEY, authority.DELEGATE)
        return self._next.is_dir() and not files.missing(self._next, names)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _is_in_the_way(self, path: Path, new: Issuer, passphrase: bytes | None) -> bool:
        """Whether ``path`` has a key other than the new root's (which an interrupted run may have written already)."""
        if not path.exists() or certificate_digest(self._old.certificate) == certificate_digest(new.certificate):
            return False
        try:
            authority.load_root(self._next, path, passphrase)
        except UsageError:
            return True
        return False

    def _remove_next(self) -> None:
        """Renames before it removes, so that a half-removed directory is not taken for a half-made one."""
        done = self._next.with_name(DONE)
        _remove(done)
        self._next.rename(done)
        _remove(done)

    def _bundle(self, now: datetime, roots: tuple[x509.Certificate, ...], active: x509.Certificate) -> Bundle:
        """A bundle for :meth:`_publish`, which sets its version."""
        return Bundle(self._trust_domain, int(now.timestamp()), roots, certificate_digest(active))

    def _publish(self, stage: str, wanted: Bundle, signers: list[Issuer], now: datetime) -> Rotation:
        def publish(transaction: Transaction) -> tuple[Rotation, bytes]:
            before = self._newest(transaction.connection, signers, now)
            bundle = replace(wanted, version=next_version(before.version, now), distrusted=before.distrusted)
            signed = documents.sign_bundle(bundle, signers)
            bundles.publish(transaction, bundle, signed)
            old, new = (certificate_digest(signer.certificate).hex() for signer in (signers[0], signers[-1]))
            rotation = Rotation(stage, old, new, bundle.version, transaction.now)
            transaction.put(_META, json.dumps(asdict(rotation)))
            transaction.record("rotation", "", stage=stage, old=rotation.old[:16], new=rotation.new[:16])
            return rotation, signed

        rotation, signed = self._store.write(publish)
        authority.keep_bundle(self._directory, signed)
        return rotation

    def _newest(self, connection: sa.Connection, signers: Sequence[Issuer], now: datetime) -> Bundle:
        """The newest bundle. It must be signed by one of ``signers``, which shows that the store is this CA's. Raises
        :class:`UsageError` and :class:`~certs.protocol.documents.UntrustedError`."""
        document = bundles.newest_bundle(connection)
        if document is None:
            raise UsageError("the store has no trust bundle yet: start certs serve once")
        return bundles.own_bundle(document, self._trust_domain, [one.certificate for one in signers], now)

    def _write_roots(self, *roots: x509.Certificate) -> None:
        with files.locked(self._directory, exclusive=True):
            files.write(self._directory, [NewFile(ROOT, pem(*roots), PUBLIC)], force=True)


def _laggards(connection: sa.Connection, rotation: Rotation, now: datetime) -> Iterator[Laggard]:
    for one in followers.all_followers(connection, now):
        seen = f"instance {one.instance[:12]}, last seen {one.seen_at:%FT%TZ}"
        if one.bundle < rotation.bundle:
            yield Laggard(one.identity, f"{seen}, has bundle {one.bundle}", one.not_after)
        elif rotation.stage == "activate" and one.root != rotation.new:
            yield Laggard(one.identity, f"{seen}, its certificate is under the old root", one.not_after)
    by_hand = sa.select(issued).where(
        (issued.c.how == "command")
        & (issued.c.not_after >= int(now.timestamp()))
        & (issued.c.issued_at <= rotation.since)
    )
    for row in connection.execute(by_hand.order_by(issued.c.identity)).all():
        leaf = x509.load_pem_x509_certificates(row.certificate.encode())[0]
        if registrar.is_revoked(connection, leaf.public_bytes(Encoding.DER)):
            continue
        until = datetime.fromtimestamp(row.not_after, UTC)
        yield Laggard(row.identity, f"serial {row.serial}, issued by hand: issue it again", until)


def _load_prepared(directory: Path, passphrase: bytes | None) -> Issuer:
    """The new root in ``next/``. An interrupted run may have made it without a passphrase."""
    is_encrypted = (directory / ROOT_KEY).exists() and authority.is_encrypted(directory / ROOT_KEY)
    return authority.load_root(directory, None, passphrase if is_encrypted else None)


def _remove(directory: Path) -> bool:
    """Removes a directory; returns whether it was there."""
    if not directory.is_dir():
        return False
    shutil.rmtree(directory)
    return True


def _end(transaction: Transaction) -> None:
    if transaction.get(_META):
        transaction.put(_META, "")
        transaction.record("rotation", "", stage="done")


def may_retire(rotation: Rotation, max_age: timedelta, now: datetime) -> datetime | None:
    """When the old root may be retired; None if it may be now. Connections that the old root verified may live until
    ``max_age`` after the settle stage began; retiring it earlier cuts them."""
    then = datetime.fromtimestamp(rotation.since, UTC) + max_age
    return None if now >= then else then
