"""``sidecar probe``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from sidecar.documents.printable import printable
from sidecar.identity.reasons import UsageError
from sidecar.verify import doors

SOCKET, LISTEN = "SIDECAR_ADMIN_SOCKET", "SIDECAR_ADMIN_LISTEN"


@click.command()
@click.argument("targets", nargs=-1, metavar="[FILE] [SERVICE:PORT]...")
@click.option("--through-app", is_flag=True, help="Go on until the called app accepts, and not a byte further.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--raw", metavar="PATH", hidden=True, help="For `sidecar verify`: ask this, with what is on stdin.")
@click.option("--stranger", is_flag=True, hidden=True, help="For `sidecar verify`: try what is on stdin from here.")
def probe(targets: tuple[str, ...], through_app: bool, as_json: bool, raw: str | None, stranger: bool) -> None:
    """Have the running sidecar call SERVICE:PORT as its app would, and say what it met. Exit code: 1 if it was refused.

    The sidecar of FILE is asked, over the Unix socket that its `admin:` names; without FILE that of $SIDECAR_ADMIN_SOCKET,
    which containers of our image have (`docker compose exec web-mesh sidecar probe api:8080`). It calls only what its own
    configuration declares and its policy allows.

    A probe ends before the called app is reached, so that no database counts a failed connection, if the callee was told to
    expect it, as `sidecar verify` does. One that was not told refuses it with handshake_failed; --through-app works with it.
    """
    if stranger:
        from sidecar.verify import remote  # the rest of this command starts without TLS

        click.echo(remote.play(sys.stdin.read()))
        return
    named = [one for one in targets if ":" not in one]
    if len(named) > 1:
        raise UsageError(f"give one FILE, and targets as SERVICE:PORT, not {printable(named[1])}")
    listen = _listen(Path(named[0]) if named else None)
    if raw is not None:
        click.echo(doors.ask_lines(listen, raw, sys.stdin.read()))
        return
    if not (asked := [one for one in targets if ":" in one]):
        raise UsageError("name what to call, as SERVICE:PORT")
    door = doors.SocketDoor(listen)
    answers = door.probe_all(asked, through_app)
    click.echo(json.dumps(answers, indent=2) if as_json else "\n".join(line for one in answers for line in _lines(one)))
    raise SystemExit(0 if all(_is_ok(one) for one in answers) else 1)


def _is_ok(answer: dict[str, Any]) -> bool:
    results = answer.get("results") or []
    return bool(results) and all(one.get("result") == "ok" for one in results)


def _lines(answer: dict[str, Any]) -> list[str]:
    to = printable(str(answer.get("to", "")))
    if word := answer.get("error") or answer.get("reason"):
        return [f"{to}  NOT CALLED: {printable(str(word))}  {printable(str(answer.get('message', '')))}".rstrip()]
    lines = []
    for one in answer["results"]:
        ok = one.get("result") == "ok"
        told = f"{one.get('peer_id')}, {one.get('tls_group')}" if ok else f"{one.get('reason')}: {one.get('message')}"
        lines.append(f"{to}  {one.get('address')}  {'ok' if ok else 'REFUSED'}  {printable(told)}")
    return lines


def _listen(file: Path | None) -> str:
    """The Unix socket of the sidecar. Raises :class:`UsageError`."""
    if file is None:
        if socket := os.environ.get(SOCKET):
            return f"unix:{socket}"
        if (listen := os.environ.get(LISTEN, "")).startswith("unix:"):
            return listen
        file = Path("sidecar.yaml")
    from sidecar.config.wiring import load_config  # in containers no file is read

    config = load_config(file, os.environ)
    admin = config.admin
    path = None if admin is None else admin.socket or admin.listen
    if not isinstance(path, Path):
        raise UsageError(
            f'{file}: has no Unix socket: add `socket: /run/sidecar.sock` to its `admin:`, or `listen: "unix:/…"`'
        )
    return f"unix:{path}"
