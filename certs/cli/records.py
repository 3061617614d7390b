"""``certs list`` and ``certs audit``: the CA's records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from certs.cli.options import DIRECTORY, directory, now, open_store, store_option
from certs.registrar import followers
from certs.store import audit as chain
from certs.store.audit import Entry
from certs.store.store import audit_entries, audit_head, enrolment_credentials, issued, revoked_identities
from sidecar.documents.printable import printable
from sidecar.identity.reasons import UsageError

_OPTIONAL = click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")


@click.command("list")
@_OPTIONAL
@click.option("--all", "everything", is_flag=True, help="Certificates that have ended, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@store_option
def list_(given: Path | None, everything: bool, as_json: bool, store_url: str | None) -> None:
    """List certificates, enrolment secrets, what is revoked, and the sidecars that poll the CA."""
    time = now()
    with open_store(directory(given), store_url, there=True) as store:
        found = store.read(lambda connection: _found(connection, time, everything))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        click.echo(f"{title}: {len(rows)}")
        for line in _aligned(rows):
            click.echo(f"  {printable(line)}")


@click.command()
@_OPTIONAL
@click.option("--verify", is_flag=True, help="Check the chain instead; exit code 1 if it was tampered with.")
@click.option("--expect", metavar="N:HASH", help="With --verify: entry N is there, and has this hash.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@store_option
def audit(given: Path | None, verify: bool, expect: str | None, as_json: bool, store_url: str | None) -> None:
    """Print the audit log: one line for each action of the CA.

    Each entry's hash covers the one before. Who can write the store can write a whole new chain: only against a number and
    hash that were kept elsewhere (the last line here, or `audit_head` in the log of certs serve) do --verify --expect show
    that nothing up to there was changed or cut off.
    """
    if expect is not None and not verify:
        raise UsageError("--expect goes with --verify")
    wanted = None if expect is None else _expected(expect)
    with open_store(directory(given), store_url, there=True) as store:
        entries, head = store.read(lambda connection: (list(audit_entries(connection)), audit_head(connection)))
    if verify:
        _verify(entries, head, wanted)
        return
    for entry in entries:
        if as_json:
            fields = {"number": entry.number, "at": _time(entry.at), "event": entry.event, "identity": entry.identity}
            click.echo(json.dumps({**fields, "detail": _detail(entry.detail), "hash": entry.hash}, default=repr))
        else:
            click.echo(printable(f"{entry.number} {_time(entry.at)} {entry.event} {entry.identity} {entry.detail}"))
    if entries and not as_json:
        click.echo(f"newest: {entries[-1].number}:{entries[-1].hash}", err=True)


def _verify(entries: Sequence[Entry], head: str, wanted: tuple[int, str] | None) -> None:
    faults = list(chain.faults(entries))
    if head != (f"{entries[-1].number} {entries[-1].hash}" if entries else f"0 {chain.START}"):
        faults.append(f"the log does not end at the entry that the store names as the newest: {head.partition(' ')[0]}")
    if wanted is not None:
        number, hash_ = wanted
        there = next((entry.hash for entry in entries if entry.number == number), None)
        if there is None:
            faults.append(f"entry {number} is not there: the log's end was cut off")
        elif there != hash_:
            faults.append(f"entry {number} has another hash: the log is not the one that was expected")
    for fault in faults:
        click.echo(f"TAMPERED: {printable(fault)}")
    if faults:
        raise SystemExit(1)
    newest = f", the newest {entries[-1].number}:{entries[-1].hash}" if entries else ""
    click.echo(f"{len(entries)} entries, as they were written{newest}")


def _detail(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # tampered with; --verify reports it
        return text


def _expected(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise UsageError("--expect: write it as number:hash, as in the audit log's last line")
    return int(match[1]), match[2]


def _found(connection: sa.Connection, time: datetime, everything: bool) -> dict[str, list[dict[str, Any]]]:
    since = 0 if everything else int(time.timestamp())
    certificates = connection.execute(
        sa.select(issued).where(issued.c.not_after >= since).order_by(issued.c.identity, issued.c.issued_at)
    )
    secrets = connection.execute(
        sa.select(enrolment_credentials)
        .where((enrolment_credentials.c.kind == "secret") & enrolment_credentials.c.ended_at.is_(None))
        .order_by(enrolment_credentials.c.identity, enrolment_credentials.c.made_at)
    )
    revoked = connection.execute(sa.select(revoked_identities).order_by(revoked_identities.c.identity))
    return {
        "certificates": [
            {"identity": row.identity, "until": _time(row.not_after), "how": row.how, "serial": row.serial}
            for row in certificates
        ],
        "enrolment secrets": [{"identity": row.identity, "made": _time(row.made_at)} for row in secrets],
        "revoked": [{"identity": row.identity, "issued before": _time(row.before)} for row in revoked],
        "sidecars that ask": [
            {
                "identity": one.identity,
                "instance": one.instance[:12],
                "bundle": one.bundle,
                "root": one.root[:16],
                "certificate until": f"{one.not_after:%FT%TZ}",
                "seen": f"{one.seen_at:%FT%TZ}",
            }
            for one in followers.all_followers(connection, time)
        ],
    }


def _aligned(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    if not rows:
        return
    lines = [tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def _time(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%FT%TZ}"
    except (TypeError, ValueError, OverflowError, OSError):  # tampered with: SQLite keeps anything in any column
        return str(seconds)
