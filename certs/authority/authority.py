"""The mini-CA on disk: ``root.pem root.key issuing.pem issuing.key`` in one directory. Fails closed.

The directory also holds ``revocation.pem``, the certificate and key of the root's delegate for revocation lists;
``bundle.json``, the newest trust bundle; and ``store.db`` (:mod:`certs.store.store`).

A person who can read ``issuing.key`` can make any identity of the mesh. So :func:`issue` checks no permission: it issues
every name of the SPIFFE grammar (:mod:`sidecar.identity.spiffe`), also names under ``mesh/``, which enrolment refuses. Only
:func:`init`, :func:`renew_issuing` and a root rotation need ``root.key``; between them it may be kept elsewhere.

The issuing certificate and its key are two files, which cannot be replaced in one step. The new key is written first, as
``issuing.key.next``. Replacing ``issuing.pem`` then makes the change. Last, the key is written to its place. If this is
interrupted at any point, :func:`load` finds the key that belongs to the certificate.
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
"""How long before an issuing CA's end the warning begins."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can issue; checked when it was loaded. ``roots``: what the peers of its leaves must trust. ``root``: the
    root that signed its issuing certificate. ``delegate`` signs revocation lists; None in a directory made by a version
    without delegates."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    root: x509.Certificate
    issuer: Issuer
    delegate: Issuer | None

    @property
    def root_digest(self) -> bytes:
        """SHA-256 of the root, which a sidecar pins."""
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
    """A new root, and the issuing CA and delegate under it."""

    root: Issuer
    issuing: Issuer
    delegate: Issuer


def make(trust_domain: str, now: datetime) -> Made:
    """Makes a new CA with new keys, in memory. Raises :class:`UsageError` for an invalid trust domain."""
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

    ``root_key_out``: another directory for ``root.key``. ``passphrase``: encrypts ``root.key``.
    Raises :class:`UsageError`: a file exists (without ``force``), an invalid trust domain, an unwritable directory.
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
    files.check_owner(directory)
    if root_key_out is None:
        with files.locked(directory, exclusive=True):
            files.write(directory, [key, *rest], force=force)
    else:
        files.make_directory(root_key_out)
        if (directory / ROOT_KEY).exists():
            raise UsageError(
                f"{directory / ROOT_KEY} exists, but the new root's key is to be kept elsewhere: remove that file"
            )
        with files.locked(directory, exclusive=True), files.locked(root_key_out, exclusive=True):
            there = not files.missing(root_key_out, [ROOT_KEY])
            old = files.read(root_key_out / ROOT_KEY, secret=True) if force and there else None
            files.write(root_key_out, [key], force=force)
            try:
                files.write(directory, rest, force=force)
            except BaseException:  # keep the old CA's key, since the old CA is still in the directory
                if old is None:
                    (root_key_out / ROOT_KEY).unlink()
                else:
                    files.write(root_key_out, [NewFile(ROOT_KEY, old, SECRET)], force=True)
                raise
    return Authority(trust_domain, (made.root.certificate,), made.root.certificate, made.issuing, made.delegate)


def load(directory: Path, now: datetime) -> Authority:
    """Reads the CA and checks that it can issue now: its files exist and belong together; the issuing certificate keeps the
    rules of a CA, is bound to one trust domain and was signed by one of the roots; both are valid.

    Raises :class:`UsageError`, which names the file and what to do.
    """
    if missing := [*files.missing(directory, (ROOT, ISSUING)), *_missing_key(directory)]:
        raise UsageError(
            f"{directory} holds no CA: {', '.join(missing)} missing; make one: certs init {directory} --trust-domain …"
        )
    with files.locked(directory, exclusive=False):
        return _load(directory, now)


def _load(directory: Path, now: datetime) -> Authority:
    files.check_owner(directory)
    files.check_secret(directory / ROOT_KEY)
    roots = pemfiles.certificates(directory / ROOT, files.read(directory / ROOT))
    issuing, *more = pemfiles.certificates(directory / ISSUING, files.read(directory / ISSUING))
    if more:
        raise UsageError(f"{directory / ISSUING} contains {1 + len(more)} certificates instead of one")
    for path, certificate in ((directory / ISSUING, issuing), *((directory / ROOT, root) for root in roots)):
        for fault in ca_faults(certificate):
            raise UsageError(f"{path} is not a CA certificate to issue with: {fault}")
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
    """Makes a new issuing CA and a new delegate under the root with this key; returns the new state of the CA, and the root.

    Certificates issued before stay valid. A missing ``bundle.json`` is made too. Raises :class:`UsageError`.
    """
    if missing := files.missing(directory, (ROOT, ISSUING)):
        raise UsageError(f"{directory} holds no CA: {', '.join(missing)} missing")
    files.check_owner(directory)
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
    """The issuing CA's certificate, unchecked. Raises :class:`UsageError`."""
    if files.missing(directory, (ISSUING,)):
        raise UsageError(f"{directory} holds no CA: {ISSUING} missing")
    return pemfiles.certificates(directory / ISSUING, files.read(directory / ISSUING))[0]


def install(directory: Path, issuing: Issuer, delegate: Issuer) -> None:
    """Replaces the issuing CA and the delegate; call it with the directory locked. It may be interrupted anywhere and
    repeated."""
    files.write(directory, [NewFile(NEXT_KEY, pemfiles.key_pem(issuing.key), SECRET)], force=True)
    files.write(directory, [NewFile(DELEGATE, pemfiles.delegate_pem(delegate), SECRET)], force=True)
    files.write(directory, [NewFile(ISSUING, pemfiles.pem(issuing.certificate), PUBLIC)], force=True)
    files.write(directory, [NewFile(ISSUING_KEY, pemfiles.key_pem(issuing.key), SECRET)], force=True)
    (directory / NEXT_KEY).unlink(missing_ok=True)


def load_root(directory: Path, key_file: Path | None, passphrase: bytes | None) -> Issuer:
    """Reads a root and its key, for signing. ``key_file``: where the key is kept, if not in the directory. Raises
    :class:`UsageError`."""
    path = key_file or directory / ROOT_KEY
    if not path.exists():
        raise UsageError(f"{path} does not exist: this needs the root's key; give its place: --root-key FILE")
    key = pemfiles.private_key(path, files.read(path, secret=True), passphrase)
    for root in pemfiles.certificates(directory / ROOT, files.read(directory / ROOT)):
        if root.public_key() == key.public_key():
            return Issuer(root, key)
    raise UsageError(f"{path} is not the key of any root in {directory / ROOT}")


def is_encrypted(path: Path) -> bool:
    """Whether a key file needs a passphrase."""
    return b"ENCRYPTED" in files.read(path, secret=True)


def bundle_document(directory: Path) -> bytes:
    """The newest bundle in the directory. Raises :class:`UsageError`."""
    if files.missing(directory, (BUNDLE_DOCUMENT,)):
        raise UsageError(
            f"{directory / BUNDLE_DOCUMENT} is missing: this CA was made by an older version; with the root's key, run: "
            f"certs renew-issuing {directory}"
        )
    return files.read(directory / BUNDLE_DOCUMENT)


def keep_bundle(directory: Path, document: bytes) -> None:
    """Writes the newest bundle to the directory; an empty store starts with it. Raises :class:`UsageError`."""
    with files.locked(directory, exclusive=True):
        files.write(directory, [NewFile(BUNDLE_DOCUMENT, document, PUBLIC)], force=True)


def soon_over(authority: Authority, now: datetime, renew: str = "certs renew-issuing") -> str | None:
    """A warning if the issuing CA ends within :data:`RENEWAL_WARNING`; else None. ``renew``: the command to run."""
    end = authority.issuer.certificate.not_valid_after_utc
    if end - now > RENEWAL_WARNING:
        return None
    return f"the issuing CA is valid only until {end:%FT%TZ}; with the root's key, run: {renew}"


def issue(
    authority: Authority,
    name: str,
    now: datetime,
    ttl: timedelta = x509_profile.DEFAULT_TTL,
    *,
    not_before: datetime | None = None,
    dns: Sequence[str] = (),
    shortest: timedelta = x509_profile.MIN_TTL,
) -> Issued:
    """Issues a certificate with a new key for the service ``name`` (or ``mesh/ca``, ``batch/nightly``: segments of a SPIFFE
    ID). ``not_before``, ``dns``, ``shortest``: as in :func:`certs.protocol.x509_profile.leaf`. Raises
    :class:`UsageError`."""
    identity = identity_of(authority, name)
    key = new_key()
    try:
        leaf = x509_profile.leaf(
            identity, key.public_key(), authority.issuer, now, ttl, not_before=not_before, dns=dns, shortest=shortest
        )
    except x509_profile.ProfileError as error:
        raise UsageError(str(error)) from error
    return Issued(identity, (leaf, authority.issuer.certificate), key, authority.roots)


def identity_of(authority: Authority, name: str) -> SpiffeId:
    """The SPIFFE ID of a service's name. Raises :class:`UsageError`."""
    try:
        return parse_spiffe_id(f"spiffe://{authority.trust_domain}/{name}")
    except InvalidIdentityError as error:
        raise UsageError(f"{shown(name)} cannot be a service's name: {error}") from error


def check_place(out: Path, *, force: bool) -> None:
    """Raises :class:`UsageError` where :func:`save` would, as far as that can be checked before."""
    files.make_directory(out)
    with files.locked(out, exclusive=True):
        files.refuse_occupied(out, [BUNDLE, KEY, CERTIFICATE], force=force)


def save(issued: Issued, out: Path, *, force: bool = False) -> None:
    """Writes ``bundle.pem``, ``key.pem`` and ``certificate.pem``, in this order, each atomically.

    So a reader that follows ``certificate.pem`` finds the key and the roots of a new one already in place. A reader between
    the last two writes finds a pair that does not match, and must keep its old one. Raises :class:`UsageError`.
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
    """The issuing certificate's key: ``issuing.key``, or ``issuing.key.next`` after an interrupted :func:`install`."""
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
