"""``certs init``, ``issue``, ``renew-issuing``, ``inspect``: the commands for the CA's own files."""

from __future__ import annotations

import os
import shlex
import sys
from datetime import datetime, timedelta
from pathlib import Path

import click

from certs.authority import authority, files, pem_or_der
from certs.cli.options import (
    DIRECTORY,
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
from certs.protocol import inspection
from certs.protocol.fields import describe_span
from certs.protocol.mesh_state import MeshState
from certs.registrar import bundles, registrar, rotation
from certs.registrar.rotation import Rotation
from certs.store.store import Transaction
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId

_BROKEN_RULE, _UNUSABLE = 1, 2


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--trust-domain", required=True, metavar="NAME", help="The mesh's name, such as shop.internal.")
@click.option("--root-key-out", type=DIRECTORY, metavar="DIR", help="Write root.key to DIR: issuing does not need it.")
@encrypt_option
@click.option("--force", is_flag=True, help="Replace an existing CA; nothing that it issued is trusted afterwards.")
def init(directory: Path, trust_domain: str, root_key_out: Path | None, encrypt: bool, force: bool) -> None:
    """Make a CA in DIRECTORY: root.pem, root.key, issuing.pem, issuing.key, and its store."""
    secret = new_passphrase() if encrypt else None
    time = now()
    made = authority.init(directory, trust_domain, time, force=force, root_key_out=root_key_out, passphrase=secret)
    _begin_store(directory, made, time)
    root, issuing = made.root, made.issuer.certificate
    where = "" if root_key_out is None else f", in {root_key_out}"
    click.echo(
        f"made a CA for {trust_domain} in {directory}:\n"
        f"  root.pem     what every sidecar trusts, until {root.not_valid_after_utc:%F}\n"
        f"  root.key     secret{where}; issuing does not need it, so it may be kept elsewhere\n"
        f"  issuing.pem  what signs certificates, until {issuing.not_valid_after_utc:%F}\n"
        f"  issuing.key  secret: anyone who can read it can be any service\n"
        f"  store.db     what was issued and revoked; with it bundle.json and revocation.pem, for certs serve\n"
        f"root_sha256: {made.root_digest.hex()}\n"
        f"next: certs serve {shlex.quote(str(directory))} --mesh mesh.yaml, "
        f"or by hand: certs issue {shlex.quote(str(directory))} web --out web"
    )


def _begin_store(directory: Path, made: authority.Authority, time: datetime) -> None:
    """Makes an empty store with the first bundle. The store of an earlier CA is renamed and kept."""
    beside = files.unused_name(directory / f"{authority.STORE}.before-{int(time.timestamp())}")
    for suffix in ("", "-wal", "-shm"):  # SQLite finds its other files by the name of the first
        if (directory / f"{authority.STORE}{suffix}").exists():
            (directory / f"{authority.STORE}{suffix}").rename(directory / f"{beside.name}{suffix}")
    document = authority.bundle_document(directory).decode()
    bundle = bundles.own_bundle(document, made.trust_domain, made.roots, time)

    def begin(transaction: Transaction) -> None:
        transaction.record("init", "", trust_domain=made.trust_domain, root=made.root_digest.hex())
        bundles.publish(transaction, bundle, document.encode())

    with open_store(directory, None) as store:
        store.write(begin)


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.argument("service")
@click.option("--out", required=True, type=DIRECTORY, help="The directory to write to; made if it does not exist.")
@click.option("--ttl", default="1h", callback=duration, show_default=True, help="How long it is valid: 5m to 24h.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@store_option
def issue(directory: Path, service: str, out: Path, ttl: timedelta, force: bool, store_url: str | None) -> None:
    """Issue SERVICE's certificate with the CA in DIRECTORY, with a new key.

    SERVICE is a service's name (web) or a longer SPIFFE path (mesh/ca, batch/nightly).
    """
    time = now()
    loaded = authority.load(directory, time)
    identity = authority.identity_of(loaded, service)
    with open_store(directory, store_url) as store:
        earliest = store.read(lambda connection: registrar.revoked_until(connection, identity))
        issued = authority.issue(loaded, service, time, ttl, not_before=earliest)
        authority.check_place(out, force=force)  # a rotation waits for every recorded certificate, written or not
        # Recorded before it is written, so that no certificate exists that is not in the store.
        store.write(lambda transaction: registrar.remember(transaction, issued.chain, "command"))
    authority.save(issued, out, force=force)
    click.echo(
        f"issued {issued.identity}, good until {issued.not_after:%FT%TZ} "
        f"({describe_span(issued.not_after - time)}), in {out}:\n"
        f"  certificate.pem  the leaf, then the CA that issued it\n"
        f"  key.pem          its key; secret\n"
        f"  bundle.pem       the root that it and its peers trust\n"
        f"next: name the three in sidecar.yaml (identity: files:), or look: "
        f"certs inspect {shlex.quote(str(out / authority.CERTIFICATE))}"
    )


@click.command("renew-issuing")
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@root_key_option
@click.option(
    "--distrust",
    is_flag=True,
    help="The old issuing key may be stolen: distrust everything that it signed; every sidecar renews at once. "
    "revocation.pem, which is beside it, is distrusted too. All "
    "enrolment secrets end, since sidecars may have sent theirs to a thief.",
)
@click.option("--keep-secrets", is_flag=True, help="With --distrust: end no enrolment secret.")
@store_option
def renew_issuing(
    given: Path | None, root_key: Path | None, distrust: bool, keep_secrets: bool, store_url: str | None
) -> None:
    """Make a new issuing CA under the root, whose key this needs. A running certs serve uses it without a restart.

    Certificates that the old one issued stay valid until they end, unless --distrust.
    """
    if keep_secrets and not distrust:
        raise UsageError("--keep-secrets goes with --distrust: without it no secret ends")
    where, time = directory(given), now()
    secret = passphrase(root_key or where / authority.ROOT_KEY)
    old = authority.issuing_certificate(where)
    with open_store(where, store_url) as store:
        _refuse_during_rotation(rotation.current(store))
        if distrust:
            # Before the new issuing CA: if this is interrupted after it, sidecars refuse everything until it is run again,
            # and that run still finds the stolen key to distrust.
            own, root = authority.load(where, time), authority.load_root(where, root_key, secret)
            stolen = key_digest(old)

            def end_trust(transaction: Transaction) -> tuple[int, list[SpiffeId]]:
                version = bundles.distrust(transaction, stolen, own, root, time, delegate=own.delegate)
                return version, [] if keep_secrets else registrar.end_every_secret(transaction)

            version, ended = store.write(end_trust)
            click.echo(_new_secrets(ended, where, store_url), nl=False)  # at once: another run finds none that is good
        made, _ = authority.renew_issuing(where, time, root_key, secret)
        until = made.issuer.certificate.not_valid_after_utc
        store.write(lambda transaction: transaction.record("renew_issuing", "", until=f"{until:%FT%TZ}"))
        if (document := store.read(bundles.newest_bundle)) is not None:
            authority.keep_bundle(where, document.encode())
    click.echo(f"made a new issuing CA, good until {until:%FT%TZ}, and a new delegate for revocations")
    if distrust:
        click.echo(f"what the old one signed is distrusted (trust bundle {version}); sidecars renew within seconds")


def _new_secrets(ended: list[SpiffeId], where: Path, store_url: str | None) -> str:
    """What was ended, and the commands that make it anew."""
    if not ended:
        return ""
    state = MeshState(where.parent)  # if it is one of `sidecar inject`
    more = (
        "" if store_url is None or os.environ.get("CERTS_STORE") == store_url else f" --store {shlex.quote(store_url)}"
    )
    services = [str(identity.service) for identity in ended]
    of_state = [service for service in services if state.secret(service).exists()]
    wanted = [f"{service} --out {service}.enrol --force" for service in services if service not in of_state]
    if of_state:
        wanted = [f"{' '.join(of_state)} --out-dir {shlex.quote(str(state.enrolment))} --force", *wanted]
    commands = "".join(f"  certs enrolment {shlex.quote(str(where))} {words}{more}\n" for words in wanted)
    return (
        f"the enrolment secrets of {', '.join(services)} have ended: sidecars may have sent them to a thief with the key. "
        f"Sidecars that run go on; for those that start without their state make new ones:\n{commands}"
    )


def _refuse_during_rotation(found: Rotation | None) -> None:
    """Raises :class:`UsageError` from the ``activate`` stage on: the old root's key would then make an issuing CA that is
    not under the new root."""
    if found is not None and found.stage != "distribute":
        raise UsageError(
            f"a root rotation is in progress ({found.stage}), and the new root has an issuing CA already: first finish it: "
            "certs rotate-root (--force, if a key was stolen)"
        )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(names: tuple[str, ...], as_json: bool) -> None:
    """Show the certificates in FILEs (- for standard input; PEM or DER), and which rules they break.

    Exit code: 0 every rule kept, 1 a rule broken or a certificate expired, 2 a file that is not a certificate.
    """
    reports, code, time = [], 0, now()
    for name in names:
        try:
            report = inspection.examine(pem_or_der.read(_read(name)), time, source=name)
        except UsageError as error:
            click.echo(f"error: {name}: {error}", err=True)
            code = _UNUSABLE
            continue
        reports.append(report)
        code = max(code, 0 if report.is_clean else _BROKEN_RULE)
    if as_json:
        click.echo(inspection.as_json(reports))
    else:
        click.echo("\n".join(map(inspection.as_text, reports)), nl=False)
    sys.exit(code)


def _read(name: str) -> bytes:
    limit = pem_or_der.MAX_BYTES + 1
    if name == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(name).open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}") from error
