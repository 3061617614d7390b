"""A new root in the place of the old one, without a restart and without a failed connection; resumable. Fails closed.

============ ====================================================================== ==================================
stage        what was done                                                          what it waits for
============ ====================================================================== ==================================
prepare      a new root, and what it signs, in ``DIRECTORY/next``
distribute   a bundle of both roots, signed by the old one                          all have it: all trust the new root
activate     the CA issues under the new root; a bundle says so                     all have a certificate under it
settle                                                                              ``max_age``: connections that were
                                                                                    verified by the old root have ended
retire       a bundle of the new root alone, signed by both                         all have it
============ ====================================================================== ==================================

The stage is in the store, written in one transaction with the bundle that makes it true; the files are made to agree with
it before and after, by steps that can be done again. So it can be killed anywhere, and ``certs rotate-root`` goes on from
there.

*All* are the sidecars whose certificate has not ended, whether they were heard of lately or not, and certificates that were
issued by hand. A sidecar that slept through all of it comes back by the newest bundle, which the old root signed too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509

from certs.authority import authority, files
from certs.authority.authority import ROOT, ROOT_KEY
from certs.authority.pemfiles import delegate_pem, key_pem, pem
from certs.protocol import documents
from certs.protocol.documents import Bundle, next_version
from certs.protocol.x509_profile import Issuer
from certs.registrar import bundles, followers
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
    """Where a rotation stands. ``old``, ``new``: digests of the roots, hexadecimal. ``bundle``: the version that the stage's
    bundle has. ``since``: Unix seconds when the stage began."""

    stage: str
    old: str
    new: str
    bundle: int
    since: int


@dataclass(frozen=True, slots=True)
class Laggard:
    """Who is waited for: ``until`` it can talk to nobody any more, it would lose trust if nobody waited."""

    identity: str
    what: str
    until: datetime

    def __str__(self) -> str:
        return f"{self.identity} ({self.what}; its certificate ends at {self.until:%FT%TZ})"


def current(store: Store) -> Rotation | None:
    """The rotation that is under way."""

    def ask(transaction: Transaction) -> str | None:
        return transaction.get(_META)

    said = store.write(ask)
    return Rotation(**json.loads(said)) if said else None


def root_in_force(directory: Path, key_file: Path | None, passphrase: bytes | None) -> Issuer:
    """The root with its key, as :func:`certs.authority.authority.load_root`. After a run that was killed in its last moments
    the root is the new one already, and whoever runs it again still names the old one's key: the new one's is in
    ``next/``."""
    try:
        return authority.load_root(directory, key_file, passphrase)
    except UsageError:
        if not (directory / NEXT / ROOT_KEY).exists():
            raise
        new = authority.load_root(directory / NEXT, None, None)
        if files.read(directory / ROOT) != pem(new.certificate):
            raise
        return new


class Rotator:
    """One directory's rotation. ``old`` is the root in force with its key, for as long as the new one is not."""

    def __init__(self, directory: Path, store: Store, old: Issuer, trust_domain: str) -> None:
        self._directory = directory
        self._next = directory / NEXT
        self._store = store
        self._old = old
        self._trust_domain = trust_domain

    # -- the stages, each to be done again if it was cut off -----------------------------------------------------------

    def prepare(self, now: datetime) -> None:
        """Makes the new root. What a cut-off run left, or another CA that was here before, is made anew, since nobody has
        heard of it."""
        made = authority.make(self._trust_domain, now)
        _remove(self._next)
        files.make_directory(self._next)
        with files.locked(self._next, exclusive=True):
            files.write(
                self._next,
                [
                    NewFile(ROOT_KEY, key_pem(made.root.key), SECRET),
                    NewFile(authority.ISSUING_KEY, key_pem(made.issuing.key), SECRET),
                    NewFile(authority.DELEGATE, delegate_pem(made.delegate), SECRET),
                    NewFile(authority.ISSUING, pem(made.issuing.certificate), PUBLIC),
                    NewFile(ROOT, pem(made.root.certificate), PUBLIC),
                ],
                force=True,
            )

    def distribute(self, now: datetime) -> Rotation:
        """Both roots are trusted from here on; the old one says so."""
        new = self.new_root()
        self._store.read(lambda connection: self._newest(connection, [self._old], now))  # a wrong store changes no file
        self._write_roots(self._old.certificate, new.certificate)
        bundle = self._bundle(now, (self._old.certificate, new.certificate), self._old.certificate)
        return self._publish("distribute", bundle, [self._old, new], now)

    def activate(self, now: datetime) -> Rotation:
        """From here on the CA issues under the new root. Files first: whoever hears of it finds a CA that does."""
        new = self.new_root()
        made = authority.load(self._next, now)
        if made.delegate is None:
            raise UsageError(f"{self._next} is not complete: remove it, and start the rotation again")
        with files.locked(self._directory, exclusive=True):
            authority.install(self._directory, made.issuer, made.delegate)
        bundle = self._bundle(now, (self._old.certificate, new.certificate), new.certificate)
        return self._publish("activate", bundle, [self._old, new], now)

    def retire(self, now: datetime) -> Rotation:
        """The old root is trusted no longer. It signs that too, for whoever knows no other."""
        new = self.new_root()
        bundle = self._bundle(now, (new.certificate,), new.certificate)
        return self._publish("retire", bundle, [self._old, new], now)

    def settle(self, rotation: Rotation) -> Rotation:
        """All have changed: from here on ``max_age`` counts."""

        def note(transaction: Transaction) -> Rotation:
            settled = replace(rotation, stage="settle", since=transaction.now)
            transaction.put(_META, json.dumps(asdict(settled)))
            transaction.record("rotation", "", stage="settle")
            return settled

        return self._store.write(note)

    def finish(self, key_out: Path, passphrase: bytes | None) -> None:
        """Leaves the directory with the new root alone, its key in ``key_out``. An old key that is in the way there goes to
        ``retired/``, for somebody to destroy."""
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
        # Again, since a run that was cut off may have published it and not written it.
        document = self._store.read(bundles.newest_bundle)
        if document is not None:
            authority.keep_bundle(self._directory, document.encode())
        self._store.write(_end)
        self._remove_next()

    def clean_up(self) -> bool:
        """Removes what a rotation left that was killed in its last moment; returns whether there was something."""
        if self.is_prepared() and certificate_digest(self.new_root().certificate) == certificate_digest(
            self._old.certificate
        ):
            self._remove_next()
            return True
        return _remove(self._directory / DONE)

    # -- what is waited for --------------------------------------------------------------------------------------------

    def laggards(self, rotation: Rotation, now: datetime) -> list[Laggard]:
        """Who has not done what the stage waits for."""
        return self._store.read(lambda connection: list(_laggards(connection, rotation, now)))

    def new_root(self) -> Issuer:
        """The new root, with its key. Raises :class:`UsageError`."""
        return authority.load_root(self._next, None, None)

    def is_prepared(self) -> bool:
        names = (ROOT, ROOT_KEY, authority.ISSUING, authority.ISSUING_KEY, authority.DELEGATE)
        return self._next.is_dir() and not files.missing(self._next, names)

    # -- how it is done ------------------------------------------------------------------------------------------------

    def _is_in_the_way(self, path: Path, new: Issuer, passphrase: bytes | None) -> bool:
        """Whether there is a key that is not the new one already, written by a run that was cut off."""
        if not path.exists() or certificate_digest(self._old.certificate) == certificate_digest(new.certificate):
            return False
        try:
            authority.load_root(self._next, path, passphrase)
        except UsageError:
            return True
        return False

    def _remove_next(self) -> None:
        """By another name first: what is half removed is not taken for what is half made."""
        _remove(self._directory / DONE)
        self._next.rename(self._directory / DONE)
        _remove(self._directory / DONE)

    def _bundle(self, now: datetime, roots: tuple[x509.Certificate, ...], active: x509.Certificate) -> Bundle:
        """What :meth:`_publish` gives its version."""
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
        """The bundle in force, if the store is of this CA: signed by one of these. Raises :class:`UsageError` and
        :class:`~certs.protocol.documents.UntrustedError`."""
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
    for row in connection.execute(by_hand.order_by(issued.c.identity)):
        until = datetime.fromtimestamp(row.not_after, UTC)
        yield Laggard(row.identity, f"serial {row.serial}, issued by hand: issue it again", until)


def _remove(directory: Path) -> bool:
    """Whether it was there."""
    if not directory.is_dir():
        return False
    shutil.rmtree(directory)
    return True


def _end(transaction: Transaction) -> None:
    said = transaction.get(_META)
    if said:
        transaction.put(_META, "")
        transaction.record("rotation", "", stage="done")


def may_retire(rotation: Rotation, max_age: timedelta, now: datetime) -> datetime | None:
    """None if the old root may go; else when. Until ``max_age`` after all have changed, connections may live that were
    verified by the old root, and would be cut."""
    then = datetime.fromtimestamp(rotation.since, UTC) + max_age
    return None if now >= then else then
