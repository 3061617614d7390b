"""Reads certificates from PEM (RFC 7468) or DER of unknown origin. Pure.

Other input is a :class:`sidecar.identity.reasons.UsageError` that says what the input is; a private key is never printed.
"""

from __future__ import annotations

import re
import warnings
from itertools import zip_longest

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from sidecar.identity.reasons import UsageError

MAX_BYTES = 1024 * 1024
MAX_CERTIFICATES = 256
"""More than a system's trust store has. It bounds the work: each certificate may be tried as the issuer of each other."""

_MARKER = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,40})-----")  # RFC 7468 2
_LABELS = (b"CERTIFICATE", b"X509 CERTIFICATE")


def read(data: bytes) -> list[x509.Certificate]:
    """The certificates in PEM or DER. Raises :class:`UsageError` if there is none, or if one is damaged."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"larger than {MAX_BYTES // 1024} KiB, too large for a chain of certificates")
    if not data.strip():
        raise UsageError("empty: no certificate in it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unusual content is reported as a fault, not on stderr
        if _MARKER.search(data):
            return _read_pem(data)
        try:
            return [x509.load_der_x509_certificate(data)]
        except Exception as error:  # the parser raises many classes
            if _is_der_key(data):
                raise UsageError("a private key, not a certificate; it is not printed here: keep it secret") from error
            raise UsageError("neither PEM nor DER of a certificate") from error


def _read_pem(data: bytes) -> list[x509.Certificate]:
    blocks = _pem_blocks(data)
    labels = [label for label, _ in blocks]
    wanted = [block for label, block in blocks if label in _LABELS]
    if not wanted and any(label.endswith(b"PRIVATE KEY") for label in labels):
        raise UsageError("a private key, not a certificate; it is not printed here: keep it secret")
    if not wanted:
        kinds = ", ".join(sorted({label.decode() for label in labels}))
        raise UsageError(f"no certificate in it, only {kinds}")
    if len(wanted) > MAX_CERTIFICATES:
        raise UsageError(f"{len(wanted)} certificates in it; at most {MAX_CERTIFICATES} are read")
    certificates = []
    for number, block in enumerate(wanted, 1):
        try:
            certificates.append(x509.load_pem_x509_certificate(block))
        except Exception as error:  # as in read()
            raise UsageError(f"certificate {number} of {len(wanted)} in it is damaged, or not a certificate") from error
    return certificates


def _pem_blocks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The (label, block) of each PEM block. Goes from marker to marker, so that its time is linear in the size."""
    markers = list(_MARKER.finditer(data))
    blocks = []
    for begin, end in zip_longest(markers[0::2], markers[1::2]):
        if end is None or (begin[1], end[1], begin[2]) != (b"BEGIN", b"END", end[2]):
            raise UsageError("cut off or damaged: a PEM block does not begin, or does not end")
        blocks.append((begin[2], data[begin.start() : end.end()]))
    return blocks


def _is_der_key(data: bytes) -> bool:
    try:
        load_der_private_key(data, password=None)
    except TypeError:
        return True  # an encrypted one
    except Exception:  # as in read()
        return False
    return True
