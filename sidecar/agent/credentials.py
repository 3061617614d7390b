"""Our own certificate, key and trust bundle: read from files and checked before the sidecar serves with them.

Fails closed, at the start: a sidecar that every peer would refuse, or that could verify no peer, does not start.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from sidecar.documents.regular import Read, read_regular
from sidecar.host.private import Alone, Unfit, UnfitError, read_checked
from sidecar.identity.judge import Presented, VerifyParams, judge
from sidecar.identity.reasons import Reason, Refused, UsageError
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, Svid, parse_svid, shown
from sidecar.transport import tls

MAX_FILE_BYTES = 1 << 20

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Credentials:
    """A checked key pair, and the SVID of its certificate: identity, serial number, validity."""

    keys: tls.KeyPair
    svid: Svid


def load(
    certificate: Path, key: Path, bundle: Path, params: VerifyParams, now: datetime, read: Read = read_regular
) -> Credentials:
    """Reads and checks the three files; ``params.expected`` is our own identity. Raises :class:`UsageError`."""
    if params.expected is None:
        raise ValueError("params.expected must be our own identity")
    chain = read_certificates(certificate, "certificate", read)
    roots = read_certificates(bundle, "trust bundle", read)
    private = _key(key, read)
    for one, path in (*((one, certificate) for one in chain), *((one, bundle) for one in roots)):
        _check_strength(one, path)
    if private.public_key() != chain[0].public_key():
        raise UsageError(
            f"{key}: the key does not belong to the certificate in {certificate}; they must be issued together"
        )
    for root in roots:
        _check_root(root, bundle)
    keys = tls.KeyPair(chain, private, roots)
    return Credentials(keys, _check(keys, certificate, bundle, params, now))


def judge_own(keys: tls.KeyPair, params: VerifyParams, now: datetime) -> Svid:
    """Judges our own certificate as every peer will; ``params.expected`` is our own identity. Raises :class:`Refused`."""
    ders = tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in keys.chain)
    return judge(Presented(ders, ders, tls.verify_own_chain(keys)), params, now)


def _check(keys: tls.KeyPair, path: Path, bundle: Path, params: VerifyParams, now: datetime) -> Svid:
    """The SVID of our own certificate, if peers will accept it. Raises :class:`UsageError`."""
    expected: SpiffeId = params.expected or SpiffeId("", ())
    renew = f"get a new one: certs issue CA_DIR {expected.service} --out {path.parent} --force"
    try:
        svid = parse_svid(keys.chain[0].public_bytes(serialization.Encoding.DER))
    except InvalidIdentityError as error:
        raise UsageError(f"{path}: not usable as this service's identity: {error}; {renew}") from error
    # Checked before the chain is judged: the message is more helpful than the judgement's.
    if now > svid.not_after:
        raise UsageError(
            f"{path}: the certificate of {svid.id} was good until {svid.not_after:%F %T} UTC and is expired; {renew}"
        )
    if now < svid.not_before:
        raise UsageError(
            f"{path}: the certificate of {svid.id} is good only from {svid.not_before:%F %T} UTC, and it is "
            f"{now:%F %T} UTC; is the clock right?"
        )
    try:
        judge_own(keys, params, now)
    except Refused as refusal:
        if refusal.reason is Reason.UNEXPECTED_PEER:
            raise UsageError(
                f"{path}: the certificate is for {svid.id}, but this sidecar is {expected}; {renew}"
            ) from refusal
        raise UsageError(
            f"{path}: every peer that trusts {bundle} would refuse this certificate, because it {refusal.detail}; "
            f"{renew}"
        ) from refusal
    return svid


def _check_root(root: x509.Certificate, path: Path) -> None:
    try:
        is_ca = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        name = shown(root.subject.rfc4514_string())
        raise UsageError(
            f"{path}: {name} is not a CA certificate, so it cannot anchor trust; the bundle holds roots only"
        )


def _check_strength(certificate: x509.Certificate, path: Path) -> None:
    """Refuses a key that TLS 1.3 (RFC 8446 4.2.3) or OpenSSL (security level 2) does not accept: no handshake would succeed.
    Raises :class:`UsageError`."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    strong = (
        isinstance(key, ed25519.Ed25519PublicKey)
        or (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES))
        or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS)
    )
    if not strong:
        subject = certificate.subject.rfc4514_string()
        whose = f"of {shown(subject)}" if subject else "in it"
        raise UsageError(f"{path}: the key {whose} is of a kind or size that TLS 1.3 peers refuse; use P-256")


def read_certificates(path: Path, what: str, read: Read = read_regular) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file. ``what`` names it in messages. Raises :class:`UsageError`."""
    data = read_file(path, what, read=read)
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise UsageError(f"{path}: no PEM {what} can be read from it ({shown(str(error))})") from error
    return tuple(certificates)


def _key(path: Path, read: Read) -> tls.PrivateKey:
    data = read_file(path, "key", secret=True, read=read)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise UsageError(
            f"{path}: the key is encrypted; a sidecar starts by itself and needs it without passphrase"
        ) from error
    except Exception as error:  # any error of the parser; its text may quote the file, so the message has none of it
        raise UsageError(f"{path}: no PEM private key can be read from it") from error
    if not isinstance(key, tls.PrivateKey):
        raise UsageError(f"{path}: a key of this kind cannot be used; make one with P-256")
    return key


def read_file(path: Path, what: str, *, secret: bool = False, read: Read = read_regular) -> bytes:
    """A file's content. A ``secret`` file must not be readable by others. Raises :class:`UsageError`."""
    try:
        data = read_checked(
            lambda: read(path, MAX_FILE_BYTES), MAX_FILE_BYTES, Alone.OURS_OR_GROUPS if secret else None
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(f"{path}: cannot read the {what}: {reason}") from error
    except UnfitError as error:
        mode = error.status.st_mode
        found = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        exposed = f"the {what} can be read by others (mode {stat.S_IMODE(mode):04o}); do: chmod 600 {path}"
        if error.unfit is Unfit.SHARED:
            exposed += ", or mount it read-only into a container that no other user runs in"
        why = {
            Unfit.IRREGULAR: f"{found}, where the {what} file is expected",
            Unfit.TOO_LARGE: f"more than {MAX_FILE_BYTES} bytes, so it is no {what}",
        }.get(error.unfit, exposed)
        raise UsageError(f"{path}: {why}") from error
    if not data.strip():
        raise UsageError(f"{path}: the {what} file is empty")
    return data
