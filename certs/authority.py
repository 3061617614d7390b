"""The mini-CA on disk: ``root.pem root.key issuing.pem issuing.key`` in one directory. Fails closed.

Whoever can read ``issuing.key`` can make any identity of the mesh, so :func:`issue` asks nobody for leave: names under
``mesh/`` too, which no enrolment can have, may be issued by whoever holds the directory. What a name may be made of is the
SPIFFE grammar's (:mod:`sidecar.identity`). ``root.key`` is needed by :func:`init` only and may be kept elsewhere after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs import files, profile
from certs.files import PUBLIC, SECRET, NewFile
from certs.inspection import ca_faults, is_signed_by
from sidecar.identity import InvalidIdentityError, SpiffeId, is_trust_domain, parse_spiffe_id, shown
from sidecar.reasons import UsageError

ROOT, ROOT_KEY, ISSUING, ISSUING_KEY = "root.pem", "root.key", "issuing.pem", "issuing.key"
CERTIFICATE, KEY, BUNDLE = "certificate.pem", "key.pem", "bundle.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can issue: checked when it was loaded. ``roots`` is what its leaves' peers must trust."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    issuer: profile.Issuer


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and its new key. ``chain``: the leaf, then the intermediate."""

    identity: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    roots: tuple[x509.Certificate, ...]

    @property
    def not_after(self) -> datetime:
        return self.chain[0].not_valid_after_utc

    @property
    def chain_pem(self) -> bytes:
        return _pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self.key)

    @property
    def bundle_pem(self) -> bytes:
        return _pem(*self.roots)


def init(directory: Path, trust_domain: str, now: datetime, *, force: bool = False) -> Authority:
    """Makes a root and an issuing CA for ``trust_domain`` and writes all four files, or none.

    Raises :class:`UsageError`: any of them exists (and no ``force``), no trust domain, an unwritable directory.
    """
    root_key, issuing_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    try:
        root = profile.root(trust_domain, root_key, now)
        issuing = profile.intermediate(trust_domain, issuing_key.public_key(), profile.Issuer(root, root_key), now)
    except profile.ProfileError as error:
        raise UsageError(str(error)) from error
    files.make_directory(directory)
    with files.locked(directory, exclusive=True):
        files.write(
            directory,
            [
                NewFile(ROOT_KEY, _key_pem(root_key), SECRET),
                NewFile(ISSUING_KEY, _key_pem(issuing_key), SECRET),
                NewFile(ROOT, _pem(root), PUBLIC),
                NewFile(ISSUING, _pem(issuing), PUBLIC),
            ],
            force=force,
        )
    return Authority(trust_domain, (root,), profile.Issuer(issuing, issuing_key))


def load(directory: Path, now: datetime) -> Authority:
    """Reads the CA and checks that it can issue now: its files are there and belong together, the issuing CA keeps a
    CA's rules, is bound to one trust domain, was signed by one of the roots, and both are valid.

    Raises :class:`UsageError` naming the file and what to do.
    """
    if missing := files.missing(directory, (ROOT, ISSUING, ISSUING_KEY)):
        raise UsageError(
            f"{directory} holds no CA: {', '.join(missing)} missing; make one: certs init {directory} --trust-domain …"
        )
    with files.locked(directory, exclusive=False):
        files.check_secret(directory / ROOT_KEY)
        roots = _certificates(directory / ROOT, files.read(directory / ROOT))
        issuing, *more = _certificates(directory / ISSUING, files.read(directory / ISSUING))
        key = _private_key(directory / ISSUING_KEY, files.read(directory / ISSUING_KEY, secret=True))
    if more:
        raise UsageError(f"{directory / ISSUING} holds {1 + len(more)} certificates instead of one")
    for path, certificate in ((directory / ISSUING, issuing), *((directory / ROOT, root) for root in roots)):
        for fault in ca_faults(certificate):
            raise UsageError(f"{path} is no CA certificate to issue with: {fault}")
    if key.public_key() != issuing.public_key():
        raise UsageError(
            f"{directory / ISSUING_KEY} does not belong to {directory / ISSUING}: restore the matching pair"
        )
    root = next((root for root in roots if is_signed_by(issuing, root)), None)
    if root is None:
        raise UsageError(f"{directory / ISSUING} was not signed by {directory / ROOT}: they are from two different CAs")
    for path, certificate in ((directory / ISSUING, issuing), (directory / ROOT, root)):
        _check_valid(path, certificate, now)
    return Authority(_trust_domain(directory / ISSUING, issuing), tuple(roots), profile.Issuer(issuing, key))


def issue(authority: Authority, name: str, now: datetime, ttl: timedelta = profile.DEFAULT_TTL) -> Issued:
    """A certificate for the service ``name`` (or ``mesh/ca``, ``batch/nightly``: segments of a SPIFFE ID), with a key
    made for it. Raises :class:`UsageError`."""
    try:
        identity = parse_spiffe_id(f"spiffe://{authority.trust_domain}/{name}")
    except InvalidIdentityError as error:
        raise UsageError(f"{shown(name)} cannot be a service's name: {error}") from error
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        leaf = profile.leaf(identity, key.public_key(), authority.issuer, now, ttl)
    except profile.ProfileError as error:
        raise UsageError(str(error)) from error
    return Issued(identity, (leaf, authority.issuer.certificate), key, authority.roots)


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


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except (
        Exception
    ) as error:  # a parser of damaged certificates raises more than one class (ValueError, InvalidVersion)
        raise UsageError(f"{path} is no certificate in PEM, or a damaged one: restore it from a copy") from error


def _private_key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UsageError(f"{path} is encrypted, and an issuing key has to be readable without a password") from error
    except (
        Exception
    ) as error:  # what a parser of damaged keys raises is not one class (ValueError, UnsupportedAlgorithm)
        raise UsageError(f"{path} is no private key in PEM, or a damaged one: restore it from a copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} is no ECDSA key, so it is none that 'certs init' made")
    return key


def _check_valid(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise UsageError(
            f"{path} is not valid before {certificate.not_valid_before_utc:%FT%TZ}, and it is {now:%FT%TZ}: "
            "is this machine's clock right?"
        )
    if now >= certificate.not_valid_after_utc:
        raise UsageError(
            f"{path} expired: it was good until {certificate.not_valid_after_utc:%FT%TZ}, and it is {now:%FT%TZ}. "
            f"Make a new CA (certs init {path.parent} --trust-domain … --force), then issue every certificate again"
        )


def _trust_domain(path: Path, issuing: x509.Certificate) -> str:
    """The one trust domain that the issuing CA may sign for, out of its name constraint."""
    try:
        extension = issuing.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound as error:
        raise UsageError(f"{path} has no name constraint, so it is none that 'certs init' made") from error
    subtrees = extension.value.permitted_subtrees or []
    permitted = [name.value for name in subtrees if isinstance(name, x509.UniformResourceIdentifier)]
    if len(permitted) != 1 or not is_trust_domain(permitted[0]) or not extension.critical:
        raise UsageError(f"{path} is not bound to one trust domain, so it is none that 'certs init' made")
    return permitted[0]


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
