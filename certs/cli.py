"""``certs``: the command line of the mini-CA. It reads options, calls, and prints; it decides nothing."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import click

from certs import authority, encodings, inspection
from certs.fields import describe_span
from sidecar import __version__
from sidecar.durations import parse_duration
from sidecar.reasons import UsageError

_BROKEN_RULE, _UNUSABLE = 1, 2


class _Refusal(click.ClickException):
    exit_code = _UNUSABLE

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file or sys.stderr)


class _Group(click.Group):
    """Commands whose :class:`UsageError` is printed as it is, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _Refusal(str(error)) from error


def _duration(_context: click.Context, option: click.Parameter, text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--{option.name}: {error}") from error


_DIRECTORY = click.Path(path_type=Path)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="certs")
def main() -> None:
    """The mesh's mini-CA: short-lived certificates that say who a service is."""


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--trust-domain", required=True, metavar="NAME", help="The mesh's name, such as shop.internal.")
@click.option("--force", is_flag=True, help="Replace a CA that is there; nothing that it issued is trusted afterwards.")
def init(directory: Path, trust_domain: str, force: bool) -> None:
    """Make a CA in DIRECTORY: root.pem, root.key, issuing.pem, issuing.key."""
    made = authority.init(directory, trust_domain, _now(), force=force)
    root, issuing = made.roots[0], made.issuer.certificate
    click.echo(
        f"made a CA for {trust_domain} in {directory}:\n"
        f"  root.pem     what every sidecar trusts, until {root.not_valid_after_utc:%F}\n"
        f"  root.key     secret; issuing does not need it, so it may be kept elsewhere\n"
        f"  issuing.pem  what signs certificates, until {issuing.not_valid_after_utc:%F}\n"
        f"  issuing.key  secret: whoever can read it can be any service\n"
        f"next: certs issue {shlex.quote(str(directory))} web --out web"
    )


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("service")
@click.option("--out", required=True, type=_DIRECTORY, help="The directory to write to; made if need be.")
@click.option("--ttl", default="1h", callback=_duration, show_default=True, help="How long it is good: 5m to 24h.")
@click.option("--force", is_flag=True, help="Replace the files that are there.")
def issue(directory: Path, service: str, out: Path, ttl: timedelta, force: bool) -> None:
    """Issue SERVICE's certificate with the CA in DIRECTORY, with a fresh key.

    SERVICE is a service's name (web) or a longer SPIFFE path (mesh/ca, batch/nightly).
    """
    now = _now()
    issued = authority.issue(authority.load(directory, now), service, now, ttl)
    authority.save(issued, out, force=force)
    click.echo(
        f"issued {issued.identity}, good until {issued.not_after:%FT%TZ} "
        f"({describe_span(issued.not_after - now)}), in {out}:\n"
        f"  certificate.pem  the leaf, then the CA that issued it\n"
        f"  key.pem          its key; secret\n"
        f"  bundle.pem       the root that it and its peers trust\n"
        f"next: name the three in sidecar.yaml (identity: files:), or look: "
        f"certs inspect {shlex.quote(str(out / authority.CERTIFICATE))}"
    )


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(files: tuple[str, ...], as_json: bool) -> None:
    """Say what the certificates in FILEs (- for standard input; PEM or DER) are, and which rules they break.

    Exit code: 0 every rule kept, 1 a rule broken or a certificate expired, 2 a file that is no certificate.
    """
    reports, code, now = [], 0, _now()
    for name in files:
        try:
            report = inspection.examine(encodings.read(_read(name)), now, source=name)
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
    limit = encodings.MAX_BYTES + 1
    if name == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(name).open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)  # as certificates count
