"""``sidecar trust import``: a trust bundle that the operator brings, when the CA may be somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import click

from certs.protocol.documents import MAX_BYTES
from sidecar.agent.agent import pinned
from sidecar.agent.saved_state import SavedState
from sidecar.agent.trust import Instant
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import load_config
from sidecar.documents.regular import IrregularError, read_regular
from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError

_PATH = click.Path(path_type=Path)


@click.group
def trust() -> None:
    """What a sidecar trusts."""


@trust.command("import")
@click.argument("bundle", type=_PATH)
@click.argument("file", type=_PATH, default="sidecar.yaml")
def import_(bundle: Path, file: Path) -> None:
    """Give the sidecar of FILE, which is stopped, a trust BUNDLE: the CA's `bundle.json`.

    For when both keys in the CA's directory were stolen and a thief may be what sidecars reach as their CA: he can hide a
    bundle that distrusts them. The bundle must be signed by a root that the sidecar trusts, and be newer than its own. For
    sidecars that run, write its version into mesh.yaml, as `bundle_at_least`.
    """
    config = load_config(file, os.environ)
    if not isinstance(config.identity, CaIdentity):
        raise UsageError(f"{file}: its identity is in files, so its trust bundle is the file that identity.files names")
    try:
        document = read_regular(bundle, MAX_BYTES).content
    except (OSError, ValueError, IrregularError) as error:
        raise UsageError(f"{bundle}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    own = config.mesh.identity(config.service)
    state = SavedState(config.identity.state_dir, own, lambda _, message: click.echo(f"warning: {message}", err=True))
    try:
        found = state.learn(document, pinned(config.identity), Instant(utc_now(), 0.0))
    except UsageError as error:
        raise UsageError(f"{bundle}: {error}") from error
    finally:
        state.close()
    click.echo(f"{config.identity.state_dir}: trust bundle {found.version}; keys distrusted: {len(found.distrusted)}")
