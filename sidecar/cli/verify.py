"""``sidecar verify``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.verify import page, places, report, trial
from sidecar.verify.judgement import Attempt

_PATH = click.Path(path_type=Path)
_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("what", nargs=-1, metavar="[MESH | FILE... | SERVICE:PORT=HOST:PORT...]")
@click.option("--through-app", is_flag=True, help="Calls go on until the called app accepts, and not a byte further.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--junit", type=_PATH, metavar="FILE", help="Write the report for a CI system.")
@click.option("--html", type=_PATH, metavar="FILE", help="Write the report as one page.")
@click.option(
    "--identity", type=_DIRECTORY, metavar="DIR", help="A certificate of mesh/probe: `certs issue CA mesh/probe`."
)
@click.option("--expired", type=_DIRECTORY, metavar="DIR", help="An earlier one that has ended.")
@click.option("--revoked", type=_DIRECTORY, metavar="DIR", help="An earlier one that was revoked.")
@click.option("--app", "apps", multiple=True, metavar="SERVICE=HOST:PORT", help="Where its app must not be reached.")
def verify(
    what: tuple[str, ...],
    through_app: bool,
    as_json: bool,
    junit: Path | None,
    html: Path | None,
    identity: Path | None,
    expired: Path | None,
    revoked: Path | None,
    apps: tuple[str, ...],
) -> None:
    """Prove that mutual TLS is on: try every promise of a running mesh, and say what was seen.

    Without arguments: of the Compose project of `sidecar inject` in this directory. With a MESH file: of the `sidecar dev`
    that runs it. With files of sidecars that run on this machine, or with addresses of mTLS listeners: of these.

    Every declared call is made by the sidecar that owns it. Every mTLS listener is tried by strangers: with plaintext, with
    no certificate, with one of a foreign CA, with TLS 1.2, and with a valid identity that no rule names. The callee's record
    must give the reason that is expected. What is not covered is listed. Calls end before the called app is reached, unless
    --through-app is given.

    Exit code: 0 if all is proved, 1 if something failed or could not be tried, 2 for a mistake in what was asked.
    """
    given = {Attempt.NO_RULE: identity, Attempt.EXPIRED: expired, Attempt.REVOKED: revoked}
    own = {kind: path for kind, path in given.items() if path is not None}
    is_listed = bool(what) and not (len(what) == 1 and "=" not in what[0] and places.is_mesh_file(Path(what[0])))
    if (own or apps) and not is_listed:
        raise UsageError("--identity, --expired, --revoked and --app go with files or addresses of sidecars")
    if not what:
        from sidecar.verify import project  # only this way in needs Compose

        place = project.compose(Path().absolute(), os.environ)
    elif not is_listed:
        place = places.dev(Path(what[0]), os.environ)
    else:
        place = places.listed(what, own, apps)
    found = trial.run(place, utc_now, through_app=through_app)
    for path, text in ((junit, report.as_junit), (html, page.as_html)):
        if path is not None:
            try:
                path.write_text(text(found))
            except OSError as fault:
                raise UsageError(f"{path}: {fault.strerror or fault}") from fault
    click.echo(json.dumps(report.to_dict(found), indent=2) if as_json else report.as_text(found))
    raise SystemExit(0 if found.proved else 1)
