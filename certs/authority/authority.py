"""The mini-CA on disk: ``root.pem root.key issuing.pem issuing.key`` in one directory. Fails closed.

Beside them: ``revocation.pem``, certificate and key of the root's delegate for lists of revocations, ``bundle.json``, the
newest trust bundle, and ``store.db`` (:mod:`certs.store.store`).

Whoever can read ``issuing.key`` can make any identity of the mesh, so :func:`issue` asks nobody for leave: names under
``mesh/`` too, which no enrolment can have, may be issued by whoever holds the directory. What a name may be made of is the
SPIFFE grammar's (:mod:`sidecar.identity.spiffe`). ``root.key`` is needed by :func:`init`, :func:`renew_issuing` and a rotation of
the root only, and may be kept elsewhere between them.

An issuing certificate and its key are two files, which cannot be replaced at once. The key goes first, under the name
``issuing.key.next``; replacing ``issuing.pem`` is what counts; then the key gets its place. Whenever that is cut off,
:func:`load` finds the key that belongs to the certificate that is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import files, pemfiles
from certs.protocol import documents, x509_profile
from certs.protocol.inspection import ca_faults, is_signed_by
from certs.protocol.x509_profile import Issuer
from sidecar.host.atomic import PUBLIC, SECRET, NewFile
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, parse_spiffe_id, shown

ROOT, ROOT_KEY, ISSUING, ISSUING_KEY = "root.pem", "root.key", "issuing.pem", "issuing.key"
NEXT_KEY = "issuing.key.next"
DELEGATE, BUNDLE_DOCUMENT, STORE = "revocation.pem", "bundle.json", "store.db"
CERTIFICATE, KEY, BUNDLE = "certificate.pem", "key.pem", "bundle.pem"
RENEWAL_WARNING = timedelta(days=30)
"""How long before an issuing CA's end it is time to say so."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can issue: checked when it was loaded. ``roots`` is what its leaves' peers must trust, ``root`` the one that
    it is under. ``delegate`` signs lists of revocations; None in a directory that was made before there were any."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    root: x509.Certificate
    issuer: Issuer
    delegate: Issuer | None

    @property
    def root_digest(self) -> bytes:
        """SHA-256 of the root: what a sidecar pins."""
        return certificate_digest(self.root)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and its new key. ``chain``: the leaf, then the intermediate."""

    identity: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    roots: tuple[x509.Certificate, ...]

    @property
    def not_before(self) -> datetime:
        return self.chain[0].not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        return self.chain[0].not_valid_after_utc

    @property
    def chain_pem(self) -> bytes:
        return pemfiles.pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        return pemfiles.key_pem(self.key)

    @property
    def bundle_pem(self) -> bytes:
        return pemfiles.pem(*self.roots)


@dataclass(frozen=True, slots=True)
class Made:
    """A new root and what it signed at once: an issuing CA, and a delegate for revocations."""

    root: Issuer
    issuing: Issuer
    delegate: Issuer


def make(trust_domain: str, now: datetime) -> Made:
    """New keys for everything. Raises :class:`UsageError` for no trust domain."""
    key = new_key()
    try:
        root = Issuer(x509_profile.root(trust_domain, key, now), key)
        return Made(root, *_under(root, trust_domain, now))
    except x509_profile.ProfileError as error:
        raise UsageError(str(error)) from error


def _under(root: Issuer, trust_domain: str, now: datetime) -> tuple[Issuer, Issuer]:
    """A new issuing CA and a new delegate under a root."""
    issuing, delegate = new_key(), new_key()
    return (
        Issuer(x509_profile.intermediate(trust_domain, issuing.public_key(), root, now), issuing),
        Issuer(x509_profile.delegate(delegate.public_key(), root, now), delegate),
    )


def init(
    directory: Path,
    trust_domain: str,
    now: datetime,
    *,
    force: bool = False,
    root_key_out: Path | None = None,
    passphrase: bytes | None = None,
) -> Authority:
    """Makes a root and an issuing CA for ``trust_domain`` and writes all files, or none.

    ``root_key_out``: another directory for ``root.key``, which is encrypted if there is a ``passphrase``.
    Raises :class:`UsageError`: any of the files exists (and no ``force``), no trust domain, an unwritable directory.
    """
    made = make(trust_domain, now)
    bundle = documents.Bundle(
        trust_domain,
        documents.next_version(0, now),
        (made.root.certificate,),
        certificate_digest(made.root.certificate),
    )
    key = NewFile(ROOT_KEY, pemfiles.key_pem(made.root.key, passphrase), SECRET)
    rest = [
        NewFile(ISSUING_KEY, pemfiles.key_pem(made.issuing.key), SECRET),
        NewFile(DELEGATE, pemfiles.delegate_pem(made.delegate), SECRET),
        NewFile(ROOT, pemfiles.pem(made.root.certificate), PUBLIC),
        NewFile(ISSUING, pemfiles.pem(made.issuing.certificate), PUBLIC),
        NewFile(BUNDLE_DOCUMENT, documents.sign_bundle(bundle, [made.root]), PUBLIC),
    ]
    files.make_directory(directory)
    if root_key_out is None:
        with files.locked(directory, exclusive=True):
            files.write(directory, [key, *rest], force=force)
    else:
        files.make_directory(root_key_out)
        if (directory / ROOT_KEY).exists():
            raise UsageError(
                f"{directory / ROOT_KEY} is there, and the new root's key is to be kept elsewhere: remove it"
            )
        with files.locked(directory, exclusive=True), files.locked(root_key_out, exclusive=True):
            there = not files.missing(root_key_out, [ROOT_KEY])
            old = files.read(root_key_out / ROOT_KEY, secret=True) if force and there else None
            files.write(root_key_out, [key], force=force)
            try:
                files.write(directory, rest, force=force)
            except BaseException:  # the key of the CA that is still there must not be lost
                if old is None:
                    (root_key_out / ROOT_KEY).unlink()
                else:
                    files.write(root_key_out, [NewFile(ROOT_KEY, old, SECRET)], force=True)
                raise
    return Authority(trust_domain, (made.root.certificate,), made.root.certificate, made.issuing, made.delegate)


def load(directory: Path, now: datetime) -> Authority:
    """Reads the CA and checks that it can issue now: its files are there and belong together, the issuing CA keeps a
    CA's rules, is bound to one trust domain, was signed by one of the roots, and both are valid.

    Raises :class:`UsageError` naming the file and what to do.
    """
    if missing := [*files.missing(directory, (ROOT, ISSUING)), *_missing_key(directory)]:
        raise UsageError(
            f"{directory} holds no CA: {', '.join(missing)} missing; make one: certs init {directory} --trust-domain …"
        )
    with files.locked(directory, exclusive=False):
        return _load(directory, now)


def _load(directory: Path, now: datetime) -> Authority:
    files.check_secret(directory / ROOT_KEY)
    roots = pemfiles.certificates(directory / ROOT, files.read(directory / ROOT))
    issuing, *more = pemfiles.certificates(directory / ISSUING, files.read(directory / ISSUING))
    if more:
        raise UsageError(f"{directory / ISSUING} holds {1 + len(more)} certificates instead of one")
    for path, certificate in ((directory / ISSUING, issuing), *((directory / ROOT, root) for root in roots)):
        for fault in ca_faults(certificate):
            raise UsageError(f"{path} is no CA certificate to issue with: {fault}")
    key = _issuing_key(directory, issuing)
    root = next((root for root in roots if is_signed_by(issuing, root)), None)
    if root is None:
        raise UsageError(f"{directory / ISSUING} was not signed by {directory / ROOT}: they are from two different CAs")
    pemfiles.check_valid(directory / ISSUING, issuing, now, f"certs renew-issuing {directory}")
    pemfiles.check_valid(directory / ROOT, root, now, f"certs init {directory} --trust-domain … --force")
    return Authority(
        pemfiles.trust_domain_of(directory / ISSUING, issuing),
        tuple(roots),
        root,
        Issuer(issuing, key),
        _delegate(directory, roots, now),
    )


def renew_issuing(
    directory: Path, now: datetime, root_key: Path | None = None, passphrase: bytes | None = None
) -> tuple[Authority, Issuer]:
    """Makes a new issuing CA and a new delegate under the root whose key this is; returns what is there then, and the root.

    What was issued before goes on to be good. A ``bundle.json`` that is missing is made too. Raises :class:`UsageError`.
    """
    if missing := files.missing(directory, (ROOT, ISSUING)):
        raise UsageError(f"{directory} holds no CA: {', '.join(missing)} missing")
    root = load_root(directory, root_key, passphrase)
    pemfiles.check_valid(directory / ROOT, root.certificate, now, f"certs rotate-root {directory}")
    trust_domain = pemfiles.trust_domain_of(directory / ISSUING, issuing_certificate(directory))
    issuing, delegate = _under(root, trust_domain, now)
    with files.locked(directory, exclusive=True):
        install(directory, issuing, delegate)
        if files.missing(directory, (BUNDLE_DOCUMENT,)):
            bundle = documents.Bundle(
                trust_domain, documents.next_version(0, now), (root.certificate,), certificate_digest(root.certificate)
            )
            document = documents.sign_bundle(bundle, [root])
            files.write(directory, [NewFile(BUNDLE_DOCUMENT, document, PUBLIC)], force=True)
        return _load(directory, now), root


def issuing_certificate(directory: Path) -> x509.Certificate:
    """The issuing CA's certificate, as it is. Raises :class:`UsageError`."""
    if files.missing(directory, (ISSUING,)):
        raise UsageError(f"{directory} holds no CA: {ISSUING} missing")
    return pemfiles.certificates(directory / ISSUING, files.read(directory / ISSUING))[0]


def install(directory: Path, issuing: Issuer, delegate: Issuer) -> None:
    """Puts an issuing CA and a delegate in the place of those that are there; call it with the directory locked. May be cut
    off anywhere, and done again."""
    files.write(directory, [NewFile(NEXT_KEY, pemfiles.key_pem(issuing.key), SECRET)], force=True)
    files.write(directory, [NewFile(DELEGATE, pemfiles.delegate_pem(delegate), SECRET)], force=True)
    files.write(directory, [NewFile(ISSUING, pemfiles.pem(issuing.certificate), PUBLIC)], force=True)
    files.write(directory, [NewFile(ISSUING_KEY, pemfiles.key_pem(issuing.key), SECRET)], force=True)
    (directory / NEXT_KEY).unlink(missing_ok=True)


def load_root(directory: Path, key_file: Path | None, passphrase: bytes | None) -> Issuer:
    """A root with its key, for signing. ``key_file``: where the key is kept, if not in the directory. Raises
    :class:`UsageError`."""
    path = key_file or directory / ROOT_KEY
    if not path.exists():
        raise UsageError(f"{path} is not there: the root's key is needed for this; say where it is: --root-key FILE")
    key = pemfiles.private_key(path, files.read(path, secret=True), passphrase)
    for root in pemfiles.certificates(directory / ROOT, files.read(directory / ROOT)):
        if root.public_key() == key.public_key():
            return Issuer(root, key)
    raise UsageError(f"{path} is the key of no root in {directory / ROOT}")


def is_encrypted(path: Path) -> bool:
    """Whether a key asks for a passphrase."""
    return b"ENCRYPTED" in files.read(path, secret=True)


def bundle_document(directory: Path) -> bytes:
    """The newest bundle that this directory knows. Raises :class:`UsageError`."""
    if files.missing(directory, (BUNDLE_DOCUMENT,)):
        raise UsageError(
            f"{directory / BUNDLE_DOCUMENT} is missing: this CA was made by an older version; with the root's key at hand: "
            f"certs renew-issuing {directory}"
        )
    return files.read(directory / BUNDLE_DOCUMENT)


def keep_bundle(directory: Path, document: bytes) -> None:
    """Makes this the newest bundle that the directory knows: an empty store begins with it. Raises :class:`UsageError`."""
    with files.locked(directory, exclusive=True):
        files.write(directory, [NewFile(BUNDLE_DOCUMENT, document, PUBLIC)], force=True)


def soon_over(authority: Authority, now: datetime) -> str | None:
    """What to say when the issuing CA will not be good for much longer; None if it will."""
    end = authority.issuer.certificate.not_valid_after_utc
    if end - now > RENEWAL_WARNING:
        return None
    return f"the issuing CA is good until {end:%FT%TZ} only; with the root's key at hand: certs renew-issuing"


def issue(
    authority: Authority,
    name: str,
    now: datetime,
    ttl: timedelta = x509_profile.DEFAULT_TTL,
    *,
    not_before: datetime | None = None,
    dns: Sequence[str] = (),
) -> Issued:
    """A certificate for the service ``name`` (or ``mesh/ca``, ``batch/nightly``: segments of a SPIFFE ID), with a key
    made for it. ``not_before`` and ``dns`` as in :func:`certs.protocol.x509_profile.leaf`. Raises :class:`UsageError`."""
    identity = identity_of(authority, name)
    key = new_key()
    try:
        leaf = x509_profile.leaf(identity, key.public_key(), authority.issuer, now, ttl, not_before=not_before, dns=dns)
    except x509_profile.ProfileError as error:
        raise UsageError(str(error)) from error
    return Issued(identity, (leaf, authority.issuer.certificate), key, authority.roots)


def identity_of(authority: Authority, name: str) -> SpiffeId:
    """The identity that a service's name stands for. Raises :class:`UsageError`."""
    try:
        return parse_spiffe_id(f"spiffe://{authority.trust_domain}/{name}")
    except InvalidIdentityError as error:
        raise UsageError(f"{shown(name)} cannot be a service's name: {error}") from error


def check_place(out: Path, *, force: bool) -> None:
    """Raises :class:`UsageError` where :func:`save` would, for what can be known before."""
    files.make_directory(out)
    with files.locked(out, exclusive=True):
        files.refuse_occupied(out, [BUNDLE, KEY, CERTIFICATE], force=force)


def save(issued: Issued, out: Path, *, force: bool = False) -> None:
    """Writes ``bundle.pem``, ``key.pem`` and ``certificate.pem``, in this order, each atomically.

    So a reader that follows ``certificate.pem`` finds the key and the roots of a new one already in place; one that reads
    between the last two sees a pair that does not match, and must keep its old one. Raises :class:`UsageError`.
    """
    files.make_directory(out)
    with files.locked(out, exclusive=True):
        files.write(
            out,
            [
                NewFile(BUNDLE, issued.bundle_pem, PUBLIC),
                NewFile(KEY, issued.key_pem, SECRET),
                NewFile(CERTIFICATE, issued.chain_pem, PUBLIC),
            ],
            force=force,
        )


def _missing_key(directory: Path) -> list[str]:
    return [] if len(files.missing(directory, (ISSUING_KEY, NEXT_KEY))) < 2 else [ISSUING_KEY]


def _issuing_key(directory: Path, issuing: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    """The key that belongs to the issuing certificate: in its place, or on its way there."""
    for name in (ISSUING_KEY, NEXT_KEY):
        path = directory / name
        if not files.missing(directory, (name,)):
            key = pemfiles.private_key(path, files.read(path, secret=True))
            if key.public_key() == issuing.public_key():
                return key
    raise UsageError(f"{directory / ISSUING_KEY} does not belong to {directory / ISSUING}: restore the matching pair")


def _delegate(directory: Path, roots: list[x509.Certificate], now: datetime) -> Issuer | None:
    path = directory / DELEGATE
    if files.missing(directory, (DELEGATE,)):
        return None
    content = files.read(path, secret=True)
    (certificate,) = pemfiles.certificates(path, content)[:1]
    key = pemfiles.private_key(path, content)
    if key.public_key() != certificate.public_key():
        raise UsageError(f"{path}: its key does not belong to its certificate: restore it from a copy")
    if not any(is_signed_by(certificate, root) for root in roots):
        raise UsageError(f"{path} was not signed by a root in {directory / ROOT}: they are from two different CAs")
    pemfiles.check_valid(path, certificate, now, f"certs renew-issuing {directory}")
    return Issuer(certificate, key)
