"""Certificates for all contestants, from this project's own mini-CA."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from certs.authority import authority
from tests.bench.contestants import CALLEE, CALLER, STRANGER, TRUST_DOMAIN, Certificates


def make_certificates(directory: Path) -> Certificates:
    """A CA and one certificate, good for an hour, for each service."""
    now = datetime.now(UTC)
    ca = authority.init(directory / "ca", TRUST_DOMAIN, now)
    fingerprints = {}
    for service in (CALLER, CALLEE, STRANGER):
        issued = authority.issue(ca, service, now)
        authority.save(issued, directory / service)
        both = directory / service / "both.pem"
        both.touch(mode=0o600)
        both.write_bytes(issued.chain_pem + issued.key_pem)
        fingerprints[service] = issued.chain[0].fingerprint(hashes.SHA1()).hex()  # noqa: S303 (nginx knows no other)
    return Certificates(directory, fingerprints)
