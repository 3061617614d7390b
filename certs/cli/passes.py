"""``certs pass``: lets a person call one port of the mesh for a while."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import click

from certs.authority import authority, files
from certs.cli.options import DIRECTORY, directory, duration, now, open_store, store_option
from certs.protocol import access_pass
from certs.protocol.fields import describe_span
from certs.registrar import passes
from sidecar.documents.address import parse_address
from sidecar.host.atomic import SECRET, NewFile
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import load_mesh

_STDOUT = Path("-")
_MESHES = (Path("mesh.yaml"), Path("mesh/mesh.yaml"))


@click.command("pass")
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@click.option("--person", required=True, metavar="NAME", help="Who it is for, of `people:` in the mesh file.")
@click.option("--to", required=True, metavar="SERVICE:PORT", help="What the person calls.")
@click.option("--at", required=True, metavar="HOST:PORT", help="Where that service's sidecar is reached from outside.")
@click.option(
    "--ttl", default="1h", callback=duration, show_default=True, help="How long it is good: 1m to 24h. Never renewed."
)
@click.option("--out", required=True, type=DIRECTORY, metavar="FILE", help="Write it to FILE; - is stdout.")
@click.option(
    "--mesh", type=DIRECTORY, metavar="FILE", help="The mesh file, if it is not mesh.yaml or mesh/mesh.yaml here."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@store_option
def pass_(
    given: Path | None,
    person: str,
    to: str,
    at: str,
    ttl: timedelta,
    out: Path,
    mesh: Path | None,
    force: bool,
    store_url: str | None,
) -> None:
    """Make a pass, with which a person calls one port of the mesh by `sidecar connect FILE`.

    A rule must let the person call it: {from: user/alice, to: "db:postgres"}. The rules decide at each connection: taking
    that rule away cuts the person off, and so does `certs revoke user/alice`, within seconds. Send the file by a way that
    only that person reads.
    """
    where, time = directory(given), now()
    try:
        address = parse_address(at)
    except ValueError as error:
        raise UsageError(f"--at: {error}") from error
    declared = load_mesh(_mesh(mesh))
    identity, target = passes.permitted(declared, person, to, ttl, time)
    loaded = authority.load(where, time)
    if out != _STDOUT:
        files.make_directory(out.parent)
        with files.locked(out.parent, exclusive=True):
            files.refuse_occupied(out.parent, [out.name], force=force)
    with open_store(where, store_url) as store:
        # Recorded before it is written, so that no certificate exists that is not in the store.
        made = store.write(
            lambda transaction: passes.make(
                transaction, loaded, declared, identity, target, address, ttl, time, os.getuid()
            )
        )
    content = access_pass.encode(made)
    if out == _STDOUT:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        with files.locked(out.parent, exclusive=True):
            files.write(out.parent, [NewFile(out.name, content, SECRET)], force=force)
    end = made.chain[0].not_valid_after_utc
    name = "that file (chmod 600)" if out == _STDOUT else str(out)
    click.echo(
        f"a pass for {'/'.join(identity.segments)} to call {target} at {address}, good until {end:%FT%TZ} "
        f"({describe_span(end - time)}): who has the file can do so\n"
        f"next: give {name} to {identity.person}, for: sidecar connect FILE; to end it earlier: "
        f"certs revoke {'/'.join(identity.segments)}",
        err=True,
    )


def _mesh(given: Path | None) -> Path:
    found = given or next((path for path in _MESHES if path.exists()), None)
    if found is None:
        raise UsageError(f"there is no {' nor '.join(map(str, _MESHES))} here: name the mesh file: --mesh FILE")
    return found
