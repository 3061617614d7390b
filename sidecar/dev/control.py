"""Where `sidecar verify` asks a running `sidecar dev`: a Unix socket of its user, at a place that both derive from the mesh
file's path. I/O.

It tells who calls whom and where, answers for each sidecar what :mod:`sidecar.proxy.probing` does, and gives out the
certificate of ``mesh/probe``: an identity that is nobody's but the probe's. No other key leaves the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.dev.plan import DevPlan
from sidecar.host import private
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh
from sidecar.transport.http1 import Handler, Request, Response
from sidecar.transport.tls import KeyPair

PROBE = ("mesh", "probe")
"""The path of the probe's identity. No service can have it, as it has two segments."""


def socket_path(mesh: Path, environ: Mapping[str, str]) -> Path:
    """Where the mesh of this file is asked. Its directory is made if need be, and is this user's alone. Raises
    :class:`UsageError`."""
    above = Path(environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    directory = above / f"sidecar-dev-{os.geteuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as fault:
        raise UsageError(f"{directory}: {fault.strerror or fault}") from fault
    if not directory.is_dir() or directory.is_symlink() or private.exposure(status, private.Alone.OURS) is not None:
        raise UsageError(f"{directory}: is not a directory of this user alone (0700)")
    return directory / f"{sha256(str(mesh.resolve()).encode()).hexdigest()[:16]}.sock"


def describe(mesh: Mesh, plan: DevPlan, probe: Mapping[str, KeyPair]) -> dict[str, Any]:
    """What `sidecar verify` needs to know. ``probe``: the probe's own certificates, by what they are for."""
    return {
        "trust_domain": mesh.trust_domain,
        "services": list(mesh.services),
        "calls": [
            {"from": call.caller, "to": str(call.target), "allowed": call.decision.allowed} for call in plan.calls
        ],
        "listeners": {str(target): f"127.0.0.1:{number}" for target, number in plan.inbound.items()},
        "apps": {str(target): f"127.0.0.1:{number}" for target, number in plan.apps.items()},
        "probe": {name: _pem(keys) for name, keys in probe.items()},
    }


def _pem(keys: KeyPair) -> dict[str, str]:
    return {
        "certificate": "".join(one.public_bytes(Encoding.PEM).decode() for one in keys.chain),
        "key": keys.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }


def routes(tell: Callable[[], dict[str, Any]]) -> dict[str, Mapping[str, Handler]]:
    """``GET /mesh``: what ``tell`` returns."""

    async def mesh(_request: Request) -> Response:
        return Response.of(200, tell())

    return {"/mesh": {"GET": mesh}}
