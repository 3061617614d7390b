"""``certs rotate-root``."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import click
import trio

from certs.authority import authority, files
from certs.authority.authority import Authority
from certs.authority.pemfiles import pem
from certs.cli.access import replace_secret
from certs.cli.options import (
    DIRECTORY,
    NEW_PASSPHRASE,
    directory,
    duration,
    encrypt_option,
    new_passphrase,
    now,
    open_store,
    passphrase,
    root_key_option,
    store_option,
)
from certs.protocol.enrolment import make as make_credential
from certs.protocol.mesh_state import SECRET, MeshState
from certs.protocol.x509_profile import Issuer
from certs.registrar import registrar, rotation
from certs.registrar.rotation import Rotation, Rotator
from certs.store.store import Store, StoreUnavailableError
from sidecar.documents.printable import printable
from sidecar.host.atomic import PUBLIC, NewFile
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError

LOOK_SECONDS = 0.5
REPORT_SECONDS = 10.0


@click.command("rotate-root")
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@root_key_option
@click.option("--root-key-out", type=DIRECTORY, metavar="DIR", help="Where the new root.key goes. [default: DIRECTORY]")
@encrypt_option
@click.option(
    "--state",
    type=DIRECTORY,
    metavar="STATE",
    help="The state of `sidecar inject`, in place of DIRECTORY and the keys' places. STATE/trust and the secrets in "
    "STATE/enrolment are renewed too, and the old secrets end.",
)
@click.option(
    "--max-age",
    default="24h",
    callback=duration,
    show_default=True,
    help="How long connections may live (max_age of the sidecars): the old root is kept for that long.",
)
@click.option(
    "--force", is_flag=True, help="Do not wait. Sidecars that lag lose their connections until they catch up."
)
@store_option
def rotate_root(
    given: Path | None,
    root_key: Path | None,
    root_key_out: Path | None,
    encrypt: bool,
    state: Path | None,
    max_age: timedelta,
    force: bool,
    store_url: str | None,
) -> None:
    """Replace the root by a new one. No sidecar is restarted, and no connection fails.

    Each stage waits for every sidecar, and lists those it waits for. It may be interrupted at any time; run it again to
    resume. certs serve must be running meanwhile: sidecars get the new root from it.
    """
    kept = None if state is None else MeshState(state)
    if kept is not None:
        if given or root_key or root_key_out:
            raise UsageError(
                "--state: has a place for the CA and its keys; give neither DIRECTORY nor --root-key(-out)"
            )
        if old_secrets := [path.name for path in kept.enrolment.glob("*") if path.is_file()]:
            raise UsageError(f"{kept.enrolment / old_secrets[0]}: is of an earlier version; run `sidecar inject` first")
        given, root_key, root_key_out = kept.ca, kept.root / authority.ROOT_KEY, kept.root
    where = directory(given)
    loaded = authority.load(where, now())
    prepared = (root_key_out or where) / rotation.NEXT / authority.ROOT_KEY  # of a run that was interrupted
    secret = new_passphrase() if encrypt else passphrase(prepared, NEW_PASSPHRASE)
    old_secret = passphrase(root_key or where / authority.ROOT_KEY)
    old = rotation.root_in_force(where, root_key, old_secret, root_key_out, secret)
    with open_store(where, store_url) as store:
        rotator = Rotator(where, store, old, loaded.trust_domain, root_key_out, secret)
        found = rotation.current(store)
        if found is None and rotator.clean_up():
            click.echo("the last rotation is complete; its leftover files were removed")
            return
        trio.run(_rotate, rotator, found, max_age, force)
        rotator.finish(root_key_out or where, secret, partial(_renew_state, kept, loaded, store))
    click.echo(
        f"done: {where / authority.ROOT} is the new root, and every sidecar refuses the old one.\n"
        + (
            "Sidecars that pin root.pem or root_sha256 in their files need no change while they keep their state_dir; give "
            "new ones the new root."
            if kept is None
            else f"{kept.trust / authority.ROOT} and the secrets in {kept.enrolment} are new: nothing is left to be done."
        )
    )


def _renew_state(kept: MeshState | None, loaded: Authority, store: Store, new: Issuer) -> None:
    """Gives the sidecars of ``sidecar inject`` the new root to pin, and new secrets that are for it. A service without a
    good secret, as after `certs revoke`, gets none."""
    if kept is None:
        return
    root = NewFile(authority.ROOT, pem(new.certificate), PUBLIC)
    with files.locked(kept.trust, exclusive=True):
        files.write(kept.trust, [root], force=True)
    digest = certificate_digest(new.certificate)
    for service in sorted(path.parent.name for path in kept.enrolment.glob(f"*/{SECRET}")):
        identity = authority.identity_of(loaded, service)
        if store.read(partial(registrar.holds_secret, identity=identity)):
            replace_secret(make_credential("secret", digest), identity, kept.secret(service), store)


async def _rotate(rotator: Rotator, found: Rotation | None, max_age: timedelta, force: bool) -> None:
    """Runs the remaining stages. Each is done, printed, and waited for."""
    if found is None:
        rotator.prepare(now())
        click.echo("prepare: a new root is made; no sidecar has it yet")
        found = rotator.distribute(now())
    if found.stage == "distribute":
        click.echo(f"distribute: bundle {found.bundle} has both roots")
        await _wait_for_all(rotator, found, force)
        found = rotator.activate(now())
    if found.stage == "activate":
        click.echo(f"activate: certificates come from the new root (bundle {found.bundle})")
        await _wait_for_all(rotator, found, force)
        found = rotator.settle(found)
    if found.stage == "settle":
        await _wait_for_age(found, max_age, force)
        found = rotator.retire(now())
    click.echo(f"retire: the old root is trusted no longer (bundle {found.bundle})")
    await _wait_for_all(rotator, found, force)


async def _wait_for_all(rotator: Rotator, stage: Rotation, force: bool) -> None:
    reported = -REPORT_SECONDS
    while True:
        try:
            late = rotator.laggards(stage, now())
        except StoreUnavailableError as error:
            click.echo(f"  {printable(str(error))}; trying again", err=True)
            await trio.sleep(REPORT_SECONDS)
            continue
        if not late:
            click.echo("  all have it")
            return
        if force:
            click.echo(
                f"  WARNING: not waiting for {len(late)}, which lose trust now, until they have caught up:", err=True
            )
            _print_each(late, "    ", err=True)
            return
        if trio.current_time() - reported >= REPORT_SECONDS:
            reported = trio.current_time()
            click.echo(f"  waiting for {len(late)}, each until its certificate ends at the latest:")
            _print_each(late, "    ")
        await trio.sleep(LOOK_SECONDS)


def _print_each(late: list[rotation.Laggard], indent: str, *, err: bool = False) -> None:
    for one in late:
        click.echo(f"{indent}{printable(str(one))}", err=err)


async def _wait_for_age(stage: Rotation, max_age: timedelta, force: bool) -> None:
    until = rotation.may_retire(stage, max_age, now())
    if until is None:
        return
    if force:
        click.echo("  WARNING: connections that were verified by the old root are cut now", err=True)
        return
    click.echo(f"settle: connections that the old root verified may live until {until:%FT%TZ} (--max-age)")
    while rotation.may_retire(stage, max_age, now()) is not None:  # noqa: ASYNC110 (the wall clock has no event)
        await trio.sleep(LOOK_SECONDS)
