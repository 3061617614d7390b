"""A pass: the one file with which a person reaches one port of the mesh for a while. Pure.

How this works. ``certs pass`` makes it beside the CA; ``sidecar connect`` uses it. All that is needed is in it, so the
person's machine need not reach the CA. The file is JSON, one object in ASCII, at most :data:`MAX_BYTES`, with these fields
and no other:

================ =====================================================================================================
``mesh_pass``    1: the version of this format
``person``       who it is for: ``spiffe://shop.internal/user/alice``
``callee``       who must answer: ``spiffe://shop.internal/db``
``port``         the name of its port: ``postgres``
``at``           where the callee's sidecar is reached: ``host:port``
``max_leaf_ttl`` the longest life of a certificate that the mesh accepts, in seconds
``roots``        the roots of the mesh, in PEM
``certificate``  the person's certificate, then the issuing CA's, in PEM
``key``          the certificate's private key, PKCS #8 in PEM, unencrypted
================ =====================================================================================================

Whoever has the file can be that person until the certificate ends: it is a secret. It cannot be renewed. The file is
trusted as a whole, as a key is: nothing in it is signed but the certificate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs.protocol.documents import unique
from sidecar.documents.address import Address, parse_address
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id, shown

VERSION = 1
MAX_BYTES = 64 * 1024
MAX_CERTIFICATES = 16
"""In each of ``roots`` and ``certificate``: a mesh has one root, and two while one is replaced."""

_VERSION_FIELD = "mesh_pass"
_TEXTS = ("person", "callee", "port", "at", "roots", "certificate", "key")
_FIELDS = frozenset({_VERSION_FIELD, "max_leaf_ttl", *_TEXTS})
_LONGEST_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass says. ``chain``: the person's certificate, then its issuer's. Its parts are not verified here."""

    person: SpiffeId
    callee: SpiffeId
    port: str
    at: Address
    max_leaf_ttl: int
    roots: tuple[x509.Certificate, ...]
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey

    @property
    def target(self) -> str:
        return f"{self.callee.service}:{self.port}"


def encode(found: Pass) -> bytes:
    """The file's content."""
    fields = {
        _VERSION_FIELD: VERSION,
        "person": str(found.person),
        "callee": str(found.callee),
        "port": found.port,
        "at": str(found.at),
        "max_leaf_ttl": found.max_leaf_ttl,
        "roots": _pem(found.roots),
        "certificate": _pem(found.chain),
        "key": found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    return f"{json.dumps(fields, indent=1)}\n".encode()


def parse(content: bytes) -> Pass:
    """Reads a pass. Raises :class:`ValueError`, whose text follows the file's name; it quotes no secret."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES // 1024} KiB, so it is no pass")
    fields = _fields(content)
    version = fields.get(_VERSION_FIELD)
    if type(version) is not int:
        raise ValueError("is no pass of `certs pass`")
    if version != VERSION:
        raise ValueError(f"is a pass of version {version}, and this program reads version {VERSION}: update it")
    if fields.keys() != _FIELDS:
        differing = sorted(fields.keys() ^ _FIELDS)[0]
        what = "has the unknown field" if differing in fields else "lacks the field"
        raise ValueError(f"{what} {shown(differing)}: it was changed, or cut off")
    texts = {name: fields[name] for name in _TEXTS}
    if not all(isinstance(text, str) for text in texts.values()) or type(fields["max_leaf_ttl"]) is not int:
        raise ValueError("has a field of the wrong type: it was changed")
    if not 0 < fields["max_leaf_ttl"] <= _LONGEST_SECONDS:
        raise ValueError("has a max_leaf_ttl that cannot be: it was changed")
    try:
        person, callee = parse_spiffe_id(texts["person"]), parse_spiffe_id(texts["callee"])
        at = parse_address(texts["at"])
    except ValueError as error:
        raise ValueError(f"was changed: {error}") from error
    if person.person is None or callee.service is None or person.trust_domain != callee.trust_domain:
        raise ValueError(
            f"was changed: it lets {person}, which must be a person, call {callee}, a service of the same mesh"
        )
    return Pass(
        person,
        callee,
        texts["port"],
        at,
        fields["max_leaf_ttl"],
        _certificates("roots", texts["roots"]),
        _certificates("certificate", texts["certificate"]),
        _key(texts["key"]),
    )


def _fields(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no pass of `certs pass`, or it is damaged: it is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("is no pass of `certs pass`: it is not a JSON object")  # noqa: TRY004 (what is in a file)
    return found


def _certificates(field: str, text: str) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(text.encode()))
    except Exception as error:  # the parser raises many classes
        raise ValueError(f"is damaged: its {field} cannot be read as PEM") from error
    if len(found) > MAX_CERTIFICATES:
        raise ValueError(f"has {len(found)} certificates as its {field}: it was changed")
    return found


def _key(text: str) -> ec.EllipticCurvePrivateKey:
    try:
        found = load_pem_private_key(text.encode(), password=None)
    except Exception as error:  # the parser raises many classes, whose texts may quote the key
        raise ValueError("is damaged: its key cannot be read as PEM") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError("was changed: its key is not an ECDSA key")  # noqa: TRY004 (what is in a file)
    return found


def _pem(certificates: tuple[x509.Certificate, ...]) -> str:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).decode()
