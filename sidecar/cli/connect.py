"""``sidecar connect``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import trio

from sidecar.connect.person import load
from sidecar.connect.session import HOST_VARIABLE, PORT_VARIABLE, Session
from sidecar.connect.words import PersonLog
from sidecar.documents.address import Address, parse_address
from sidecar.host.clock import utc_now
from sidecar.host.process import keep_memory_private
from sidecar.identity.reasons import UsageError


@click.command(
    epilog=f"The program finds the port in ${HOST_VARIABLE} and ${PORT_VARIABLE}. Exit codes: the program's; without one 0 "
    "after Ctrl-C; 1 when the pass has ended; 2 if it could not start."
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="[-- PROGRAM [ARGUMENT…]]")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    metavar="HOST:PORT",
    help="The local port, on loopback. Default: 127.0.0.1 and a free port.",
)
@click.option(
    "--any-user",
    is_flag=True,
    help="Let every user of this machine use the port. Default: your own programs only (Linux).",
)
def connect(file: Path, program: tuple[str, ...], listen: str, any_user: bool) -> None:
    """Opens a local port to what the pass in FILE is for, until the pass ends.

    FILE is of `certs pass`. With a PROGRAM, it is started with the port, and its end closes the port: sidecar connect
    alice.pass --listen 127.0.0.1:5432 -- psql -h 127.0.0.1 shop
    """
    keep_memory_private()
    person = load(file, _local(listen), utc_now())
    log = PersonLog(person.name, str(person.at))
    session = Session(person, log, utc_now, any_user=any_user)

    def ready() -> None:
        if not program:  # its stdout is the program's otherwise
            host, port = session.address
            at = Address(host, port)
            click.echo(
                f"{person.target} is at {at} for {person.name}, until {person.until:%F %T} UTC; Ctrl-C closes it"
            )

    sys.exit(trio.run(session.run, program, os.environ, ready))


def _local(listen: str) -> Address:
    try:
        address = parse_address(listen, listening=True)
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    if not address.is_loopback:
        raise UsageError(
            f"--listen: {listen} is not on loopback: everybody who reaches it could use the pass; take 127.0.0.1"
        )
    return address
