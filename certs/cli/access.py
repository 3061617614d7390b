"""``certs token``, ``certs enrolment``, ``certs revoke``: enrolment credentials and revocation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from certs.authority import authority, files
from certs.cli.options import DIRECTORY, now, open_store, store_option, where
from certs.protocol.enrolment import EnrolmentCredential, Kind
from certs.protocol.enrolment import make as make_credential
from certs.protocol.mesh_state import SECRET as SECRET_NAME
from certs.registrar import registrar, revocations
from certs.store.store import Store, Transaction
from sidecar.host.atomic import SECRET, NewFile
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId

_WORDS = click.argument("words", nargs=-1, required=True, metavar="[DIRECTORY] SERVICE")
_OUT = click.option("--out", type=DIRECTORY, metavar="FILE", help="Write it to FILE, readable by its owner only.")
_FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")


@click.command()
@_WORDS
@_OUT
@_FORCE
@store_option
def token(words: tuple[str, ...], out: Path | None, force: bool, store_url: str | None) -> None:
    """Make a one-time token with which SERVICE's sidecar can enrol within five minutes."""
    directory, service = where(words, "certs token [DIRECTORY] SERVICE")
    _make("token", directory, [(service, out)], force, store_url)
    click.echo(f"a token for {service}: valid once, within 5 minutes", err=True)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[DIRECTORY] SERVICE")
@_OUT
@click.option(
    "--out-dir", type=DIRECTORY, metavar="DIR", help="For DIRECTORY SERVICE…: write DIR/SERVICE/secret for each."
)
@_FORCE
@click.option("--end", is_flag=True, help="End SERVICE's secrets instead; its certificates stay good.")
@store_option
def enrolment(
    words: tuple[str, ...], out: Path | None, out_dir: Path | None, force: bool, end: bool, store_url: str | None
) -> None:
    """Make an enrolment secret, with which SERVICE's sidecar can enrol at each start, until the secret is ended.

    `certs revoke` ends it too. With --out-dir each secret has a directory of its own: a container can mount that, and sees
    a new secret in it.
    """
    if out_dir is not None:
        if end or out is not None or len(words) < 2:
            raise UsageError("usage: certs enrolment DIRECTORY SERVICE… --out-dir DIR")
        wanted = [(service, out_dir / service / SECRET_NAME) for service in words[1:]]
        _make("secret", Path(words[0]), wanted, force, store_url)
        click.echo(f"enrolment secrets in {out_dir}: anyone who has one can be that service", err=True)
        return
    directory, service = where(words, "certs enrolment [DIRECTORY] SERVICE")
    if not end:
        _make("secret", directory, [(service, out)], force, store_url)
        click.echo(f"an enrolment secret of {service}: anyone who has it can be {service}", err=True)
        return
    identity = authority.identity_of(authority.load(directory, now()), service)
    with open_store(directory, store_url) as store:
        ended = store.write(lambda transaction: _end_secrets(transaction, identity))
    click.echo(f"ended {ended} of {service}" if ended else f"{service} has no enrolment secret")


@click.command()
@click.argument("words", nargs=-1, metavar="[DIRECTORY] [SERVICE]")
@click.option("--serial", metavar="HEX", help="Revoke this one certificate instead of all of a service.")
@store_option
def revoke(words: tuple[str, ...], serial: str | None, store_url: str | None) -> None:
    """Revoke SERVICE's certificates issued until now, and end its tokens and secrets; or, by --serial, one certificate.

    Within seconds, sidecars close its connections and refuse it. To let SERVICE come back: certs enrolment.
    """
    usage = "certs revoke [DIRECTORY] SERVICE, or certs revoke [DIRECTORY] --serial HEX"
    if serial is not None:
        if len(words) > 1:
            raise UsageError(f"usage: {usage}")
        directory, _ = where((*words, ""), usage)
        number = _number(serial)
        with open_store(directory, store_url) as store:
            owner = store.write(lambda transaction: revocations.revoke_certificate(transaction, number))
        click.echo(f"revoked the certificate {number:x} of {owner}")
        return
    directory, service = where(words, usage)
    identity = authority.identity_of(authority.load(directory, now()), service)
    with open_store(directory, store_url) as store:
        known = store.read(lambda connection: registrar.is_known(connection, identity))
        ended, later, until = store.write(lambda transaction: _revoke(transaction, identity))
    if not known:  # revoked nevertheless: a stolen issuing key may have made certificates that are not in the store
        click.echo(f"this CA has no record of anything issued for {identity}: is the name right?", err=True)
    click.echo(f"revoked all certificates of {identity} issued until now, and {ended} tokens and secrets")
    if later:
        click.echo(
            f"{later} of them are dated later than now, by a clock that is ahead of this one; they are revoked one by one. "
            "Look at the clocks of this machine and of each CA",
            err=True,
        )
    if until is not None:
        click.echo(f"{identity} gets no certificate that is valid before {until:%FT%TZ}", err=True)


def _revoke(transaction: Transaction, identity: SpiffeId) -> tuple[int, int, datetime | None]:
    """Revokes an identity; returns how many credentials ended, how many of its certificates are dated later than its
    revocation, and the time of that, if it is later than now."""
    ended = revocations.revoke_identity(transaction, identity)
    until = registrar.revoked_until(transaction.connection, identity)
    is_ahead = until is not None and until.timestamp() > transaction.now + 1
    return ended, len(revocations.dated_later(transaction, identity)), until if is_ahead else None


def _make(
    kind: Kind, directory: Path, wanted: Sequence[tuple[str, Path | None]], force: bool, store_url: str | None
) -> None:
    """Makes one enrolment credential for each service: in its file, or printed if it has none."""
    loaded = authority.load(directory, now())
    identities = [authority.identity_of(loaded, service) for service, _ in wanted]
    for identity in identities:
        if identity.service is None:
            raise UsageError(f"{identity} is not the identity of a service, and only services enrol")
    with open_store(directory, store_url) as store:
        for identity, (_, out) in zip(identities, wanted, strict=True):
            _make_one(make_credential(kind, loaded.root_digest), identity, out, force, store)


def _make_one(credential: EnrolmentCredential, identity: SpiffeId, out: Path | None, force: bool, store: Store) -> None:
    if out is None:
        _store(credential, identity, store)
        click.echo(str(credential))
        return
    # The file first: a file whose credential is not stored is useless and is removed again, while a stored credential
    # without a file would stay valid.
    files.make_directory(out.parent)
    with files.locked(out.parent, exclusive=True):
        files.write(out.parent, [NewFile(out.name, f"{credential}\n".encode(), SECRET)], force=force)
    try:
        _store(credential, identity, store)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def replace_secret(credential: EnrolmentCredential, identity: SpiffeId, out: Path, store: Store) -> None:
    """Writes a new secret in the place of the old one. Every other secret of the identity ends."""
    with files.locked(out.parent, exclusive=True):
        files.write(out.parent, [NewFile(out.name, f"{credential}\n".encode(), SECRET)], force=True)

    def replace(transaction: Transaction) -> None:
        _end_secrets(transaction, identity)
        registrar.add_credential(transaction, credential, identity)

    store.write(replace)


def _store(credential: EnrolmentCredential, identity: SpiffeId, store: Store) -> None:
    store.write(lambda transaction: registrar.add_credential(transaction, credential, identity))


def _end_secrets(transaction: Transaction, identity: SpiffeId) -> int:
    ended = registrar.end_credentials(transaction, identity, "secret")
    if ended:
        transaction.record("secrets_ended", str(identity), number=ended)
    return ended


def _number(serial: str) -> int:
    digits = serial.replace(":", "")
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,64}", digits) is None:
        raise UsageError(f"--serial: {serial[:50]!a} is not a hexadecimal number; see: certs list")
    return int(digits, 16)
