"""What is in a pass, checked, as one sidecar that has no file: its configuration, its mesh, its identity. Fails closed.

A mesh of its own is made of the pass: one service, one person, one rule. So the connections are those of any sidecar
(:mod:`sidecar.proxy.outbound`), and the one identity that must answer is checked where it always is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from certs.protocol import access_pass
from certs.protocol.access_pass import Pass
from sidecar.config.sidecar_yaml import Config, FileIdentity, Outbound, Timeouts
from sidecar.documents.address import Address
from sidecar.host.private import Alone, Unfit, UnfitError, read_file
from sidecar.identity.judge import Presented, VerifyParams, judge
from sidecar.identity.reasons import Refused, UsageError
from sidecar.identity.spiffe import PEOPLE
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import ADMIN_PORT, Target
from sidecar.proxy.node import Snapshot
from sidecar.transport.tls import Context, KeyPair, verify_own_chain

DRAIN_SECONDS = 2.0
"""For what the program sent last, after its end."""

_ANOTHER = "ask whoever gave it to you for another one"


@dataclass(frozen=True, slots=True)
class Person:
    """A usable pass. ``name``: the person, as rules name one. ``until``: when it ends."""

    name: str
    target: str
    at: Address
    until: datetime
    config: Config
    snapshot: Snapshot


def load(path: Path, listen: Address, now: datetime) -> Person:
    """Reads a pass, for a port at ``listen``. Raises :class:`UsageError`."""
    try:
        found = access_pass.parse(_read(path))
        return _person(found, path, listen, now)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return read_file(path, access_pass.MAX_BYTES, Alone.OURS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(f"{path}: cannot read the pass: {reason}") from error
    except UnfitError as error:
        why = {
            Unfit.IRREGULAR: "is no regular file, so it is no pass",
            Unfit.TOO_LARGE: f"has more than {access_pass.MAX_BYTES // 1024} KiB, so it is no pass",
            Unfit.FOREIGN: "belongs to another user, who could replace it: copy it to a file of your own",
            Unfit.SHARED: f"can be read by others, and who reads it can use it: chmod 600 {path}",
        }[error.unfit]
        raise UsageError(f"{path}: {why}") from error


def _person(found: Pass, path: Path, listen: Address, now: datetime) -> Person:
    """Raises :class:`UsageError` and :class:`ValueError`."""
    mesh = _mesh(found, path)
    keys = KeyPair(found.chain, found.key, found.roots)
    params = VerifyParams(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl)
    _check(found, keys, path, params, now)
    nowhere = Path("/nonexistent")
    name = f"{PEOPLE}/{found.person.person}"
    route = Outbound(target=Target(str(found.callee.service), found.port), listen=listen, peers=(found.at,))
    config = Config(
        path=path,
        service=name,
        mesh=mesh,
        mesh_path=path,
        identity=FileIdentity(nowhere, nowhere, nowhere),
        outbound=(route,),
        timeouts=Timeouts(drain=DRAIN_SECONDS),
    )
    snapshot = Snapshot(found.person, mesh, Context(keys, params))
    return Person(name, found.target, found.at, found.chain[0].not_valid_after_utc, config, snapshot)


def _mesh(found: Pass, path: Path) -> Mesh:
    """The mesh of this pass. Raises :class:`UsageError` if its names cannot be those of one."""
    service, name = str(found.callee.service), str(found.person.person)
    text = {
        "trust_domain": found.person.trust_domain,
        "services": {service: {"ports": {} if found.port == ADMIN_PORT else {found.port: found.at.port}}},
        "people": [name],
        "policy": [{"name": "this pass", "from": f"{PEOPLE}/{name}", "to": f"{service}:{found.port}"}],
        "max_leaf_ttl": f"{found.max_leaf_ttl}s"
        if found.max_leaf_ttl < 1_000_000
        else f"{found.max_leaf_ttl // 86400}d",
    }
    try:
        return parse_mesh(json.dumps(text), str(path))
    except UsageError as error:
        raise UsageError(f"{path}: was changed: {error}") from error


def _check(found: Pass, keys: KeyPair, path: Path, params: VerifyParams, now: datetime) -> None:
    """Raises :class:`UsageError` unless the certificate is the person's, is good now, and belongs to key and roots."""
    leaf = found.chain[0]
    if leaf.public_key() != found.key.public_key():
        raise UsageError(f"{path}: was changed: its key does not belong to its certificate")
    if now > leaf.not_valid_after_utc:
        ago = leaf.not_valid_after_utc
        raise UsageError(f"{path}: this pass was good until {ago:%F %T} UTC and has ended; {_ANOTHER}")
    if now < leaf.not_valid_before_utc:
        since = leaf.not_valid_before_utc
        raise UsageError(
            f"{path}: this pass is good from {since:%F %T} UTC, and it is {now:%F %T} UTC: is the clock right?"
        )
    ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in keys.chain)
    try:
        judged = judge(Presented(ders, ders, verify_own_chain(keys)), params, now)
    except Refused as refusal:
        raise UsageError(
            f"{path}: is damaged, or was changed: its certificate {refusal.detail}; {_ANOTHER}"
        ) from refusal
    if judged.id != found.person:
        raise UsageError(f"{path}: was changed: it is for {found.person}, and its certificate for {judged.id}")
