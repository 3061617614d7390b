"""``certs token``, ``certs enrolment``, ``certs revoke``: who may become whom, and who may not stay it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from certs.authority import authority, files
from certs.cli.options import DIRECTORY, now, open_store, store_option, where
from certs.protocol.enrolment import EnrolmentCredential, Kind
from certs.protocol.enrolment import make as make_credential
from certs.registrar import registrar, revocations
from certs.store.store import Store, Transaction
from sidecar.host.atomic import SECRET, NewFile
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId

_WORDS = click.argument("words", nargs=-1, required=True, metavar="[DIRECTORY] SERVICE")
_OUT = click.option("--out", type=DIRECTORY, metavar="FILE", help="Write it there, for its owner alone.")
_FORCE = click.option("--force", is_flag=True, help="Replace the file that is there.")


@click.command()
@_WORDS
@_OUT
@_FORCE
@store_option
def token(words: tuple[str, ...], out: Path | None, force: bool, store_url: str | None) -> None:
    """Make a one-time token with which SERVICE's sidecar can enrol within five minutes."""
    directory, service = where(words, "certs token [DIRECTORY] SERVICE")
    _make("token", directory, [(service, out)], force, store_url)
    click.echo(f"a token for {service}: used once, within 5 minutes", err=True)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[DIRECTORY] SERVICE")
@_OUT
@click.option("--out-dir", type=DIRECTORY, metavar="DIR", help="For DIRECTORY SERVICE…: write DIR/SERVICE of each.")
@_FORCE
@click.option("--end", is_flag=True, help="End SERVICE's secrets instead; its certificates stay good.")
@store_option
def enrolment(
    words: tuple[str, ...], out: Path | None, out_dir: Path | None, force: bool, end: bool, store_url: str | None
) -> None:
    """Make an enrolment secret, with which SERVICE's sidecar can enrol as often as it starts, until it is ended.

    `certs revoke` ends it too.
    """
    if out_dir is not None:
        if end or out is not None or len(words) < 2:
            raise UsageError("usage: certs enrolment DIRECTORY SERVICE… --out-dir DIR")
        _make("secret", Path(words[0]), [(service, out_dir / service) for service in words[1:]], force, store_url)
        click.echo(f"an enrolment secret of each in {out_dir}: whoever has one can be that service", err=True)
        return
    directory, service = where(words, "certs enrolment [DIRECTORY] SERVICE")
    if not end:
        _make("secret", directory, [(service, out)], force, store_url)
        click.echo(f"an enrolment secret of {service}: whoever has it can be {service}", err=True)
        return
    identity = authority.identity_of(authority.load(directory, now()), service)
    with open_store(directory, store_url) as store:
        ended = store.write(lambda transaction: _end(transaction, identity))
    click.echo(f"ended {ended} of {service}" if ended else f"{service} has no enrolment secret")


@click.command()
@click.argument("words", nargs=-1, metavar="[DIRECTORY] [SERVICE]")
@click.option("--serial", metavar="HEX", help="Revoke this one certificate instead of a service's all.")
@store_option
def revoke(words: tuple[str, ...], serial: str | None, store_url: str | None) -> None:
    """Revoke all that was issued for SERVICE until now, and end its tokens and secrets; or, by --serial, one certificate.

    Sidecars learn of it in seconds, cut its connections and let it in no more. To let SERVICE come back: certs enrolment.
    """
    usage = "certs revoke [DIRECTORY] SERVICE, or certs revoke [DIRECTORY] --serial HEX"
    if serial is not None:
        if len(words) > 1:
            raise UsageError(f"usage: {usage}")
        directory, _ = where((*words, ""), usage)
        number = _number(serial)
        with open_store(directory, store_url) as store:
            whose = store.write(lambda transaction: revocations.revoke_certificate(transaction, number))
        click.echo(f"revoked the certificate {number:x} of {whose}")
        return
    directory, service = where(words, usage)
    identity = authority.identity_of(authority.load(directory, now()), service)
    with open_store(directory, store_url) as store:
        known = store.read(lambda connection: registrar.is_known(connection, identity))
        ended = store.write(lambda transaction: revocations.revoke_identity(transaction, identity))
    if not known:  # revoked all the same: a stolen issuing key may have made what this CA knows nothing of
        click.echo(f"this CA remembers nothing that it issued for {identity}: is the name right?", err=True)
    click.echo(f"revoked all certificates of {identity} issued until now, and {ended} tokens and secrets")


def _make(
    kind: Kind, directory: Path, wanted: Sequence[tuple[str, Path | None]], force: bool, store_url: str | None
) -> None:
    """One pass for each service, in its file, or printed where none is given."""
    loaded = authority.load(directory, now())
    identities = [authority.identity_of(loaded, service) for service, _ in wanted]
    for identity in identities:
        if identity.service is None:
            raise UsageError(f"{identity} is no service's identity, and only services enrol")
    with open_store(directory, store_url) as store:
        for identity, (_, out) in zip(identities, wanted, strict=True):
            _make_one(make_credential(kind, loaded.root_digest), identity, out, force, store)


def _make_one(made: EnrolmentCredential, identity: SpiffeId, out: Path | None, force: bool, store: Store) -> None:
    if out is None:
        _remember(made, identity, store)
        click.echo(str(made))
        return
    # The file first: a secret that nobody was told opens nothing, and one that is remembered for nobody is litter.
    with files.locked(out.parent, exclusive=True):
        files.write(out.parent, [NewFile(out.name, f"{made}\n".encode(), SECRET)], force=force)
    try:
        _remember(made, identity, store)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _remember(made: EnrolmentCredential, identity: SpiffeId, store: Store) -> None:
    store.write(lambda transaction: registrar.add_credential(transaction, made, identity))


def _end(transaction: Transaction, identity: SpiffeId) -> int:
    ended = registrar.end_credentials(transaction, identity, "secret")
    if ended:
        transaction.record("secrets_ended", str(identity), number=ended)
    return ended


def _number(serial: str) -> int:
    digits = serial.replace(":", "")
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,64}", digits) is None:
        raise UsageError(f"--serial: {serial[:50]!a} is no hexadecimal number; see: certs list")
    return int(digits, 16)
