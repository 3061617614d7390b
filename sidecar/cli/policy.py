"""``sidecar policy``: tests and explains the policy, learns it from what was seen, tells what a change would refuse."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click

from sidecar.documents.yaml12 import load_text
from sidecar.explain.sources import STDIN, is_project
from sidecar.host.atomic import NewFile, write_files
from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE
from sidecar.inject.meshtext import OBSERVE
from sidecar.learn import gather, replay
from sidecar.learn.merge import commented_out, merged
from sidecar.learn.rules import Evidence, Learned, learn
from sidecar.learn.seen import Seen
from sidecar.policy.explain import Explanation, TestResult, explain, run_tests
from sidecar.policy.junit import as_junit
from sidecar.policy.mesh import Mesh, load_mesh, parse_mesh

_mesh_argument = click.argument("mesh", default="mesh.yaml", type=click.Path(path_type=Path))


@click.group
def policy() -> None:
    """Test the policy, explain its decisions, learn it, compare it."""


@policy.command
@_mesh_argument
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write the results as JUnit XML too.")
def test(mesh: Path, junit: Path | None) -> None:
    """Run the `tests:` of MESH (mesh.yaml if not given).

    A test of a service without a port is a test of each of its ports. Exit code: 0 if all pass, or there are none; 1 if one
    fails; 2 if the file is wrong, or the results cannot be written.
    """
    loaded = load_mesh(mesh)
    results = run_tests(loaded, datetime.now(UTC))
    for result in results:
        click.echo(_result_line(loaded, result))
    if junit is not None:
        try:
            junit.write_text(as_junit(loaded, results), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--junit {junit}: cannot be written: {error.strerror or error}") from error
    failed = sum(not result.passed for result in results)
    if not results:
        click.echo(f"{mesh}: has no tests: write what must hold under `tests:`, and this checks it")
    else:
        click.echo(f"{len(results) - failed} passed, {failed} failed")
    if failed:
        raise SystemExit(1)


@policy.command("explain")
@_mesh_argument
@click.option("--from", "from_", required=True, metavar="SERVICE|SPIFFE-ID|plaintext", help="The caller.")
@click.option("--to", required=True, metavar="SERVICE[:PORT]", help="The service that is called.")
def explain_(mesh: Path, from_: str, to: str) -> None:
    """Explain why MESH (mesh.yaml if not given) allows or denies a call, and what would change that.

    It reads the mesh file alone. What happened to a connection, or what a word of the logs means, is explained by `sidecar
    explain`.

    Exit code: 0 for either answer, 2 if the question or the file is wrong.
    """
    loaded = load_mesh(mesh)
    try:
        source, target = loaded.source(from_), loaded.target(to)
    except ValueError as error:
        raise UsageError(str(error)) from error
    explanation = explain(loaded, source, target.service, target.port, datetime.now(UTC))
    for line in _explanation_lines(loaded, explanation):
        click.echo(line)


_logs_option = click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="An access log; - is stdin. Give both ends' logs. Default: the sidecars' logs of this directory's Compose project.",
)
_reports_option = click.option(
    "--reports",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="What `certs reports --json` or `sidecar status --all --json` printed; - is stdin.",
)


@policy.command("learn")
@click.argument("mesh", required=False, type=click.Path(path_type=Path))
@_logs_option
@_reports_option
@click.option(
    "--instead-of",
    multiple=True,
    default=(OBSERVE,),
    show_default=True,
    metavar="RULE",
    help="A rule that the learned ones are to replace: what it allows is learned. It stays until you remove it.",
)
@click.option("--write", is_flag=True, help="Write MESH in place; without it the text is printed.")
def learn_(
    mesh: Path | None, logs: tuple[Path, ...], reports: tuple[Path, ...], instead_of: tuple[str, ...], *, write: bool
) -> None:
    """Add to MESH the least rules that allow what was seen.

    MESH is mesh/mesh.yaml where `sidecar inject` was run, else mesh.yaml. Every byte of it stays; each new rule has the
    number of connections, the first and the last, as a comment. No rule is learned of what was refused as an attack, of a
    probe, or of a peer without a verified identity of this mesh.

    Written commented out, for you to enable, with the reason: what no file of the Compose application mentions, what the
    policy refused, what there was an alarm about, what an earlier rule allowed and none does now, and, without Compose files
    to look at, what the caller's own sidecar alone tells of. To refuse a call for good, leave its rule commented out, or
    write a deny rule.

    Exit code: 2 if the file or a log is wrong, or no line is of this mesh.
    """
    here = Path()
    in_project = is_project(here)
    path = mesh or Path(MESH_FILE if in_project else "mesh.yaml")
    text = load_text(path)
    loaded = parse_mesh(text, str(path))
    for name in instead_of:
        if name != OBSERVE and all(rule.name != name for rule in loaded.rules):
            raise UsageError(f"--instead-of: {path} has no rule '{name}'")
    seen, now = _seen(loaded, logs, reports), datetime.now(UTC)
    commented = commented_out(text, loaded)
    evidence = (
        gather.evidence_of_project(loaded, os.environ, now.date(), commented)
        if in_project
        else Evidence(commented=commented)
    )
    learned = learn(loaded, seen, evidence, now, {*instead_of})
    after = merged(text, loaded, learned)
    for line in _learned_lines(learned, seen):
        click.echo(line, err=True)
    if not write:
        click.echo(after, nl=False)
    elif after != text:
        try:
            write_files([NewFile(str(path.resolve()), after.encode(), stat.S_IMODE(path.stat().st_mode))])
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


@policy.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@_logs_option
@_reports_option
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Ask NEW as of this day (UTC): what runs out until then? Default: now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def diff_(
    old: Path, new: Path, logs: tuple[Path, ...], reports: tuple[Path, ...], at: datetime | None, *, as_json: bool
) -> None:
    """Tell which past connections NEW would refuse, or allow, that OLD does not.

    Each caller and port of the logs is asked for in both files. OLD and NEW may be the same file: with --at this tells who
    is cut when a rule runs out.

    Exit code: 1 if NEW refuses what OLD allows; 0 if it does not, also where it allows more; 2 if a file or a log is wrong,
    or no line is of this mesh.
    """
    before, after, now = load_mesh(old), load_mesh(new), datetime.now(UTC)
    seen = _seen(before, logs, reports)
    changes = replay.replay(before, after, seen, now, now if at is None else at.replace(tzinfo=UTC))
    if as_json:
        click.echo(json.dumps(replay.as_json(changes, seen), indent=2))
    else:
        for change in changes:
            click.echo(change.line())
        refused = sum(change.is_refusal for change in changes)
        click.echo(
            f"{len(seen.calls)} calls seen: {refused} would be refused, {len(changes) - refused} would be allowed, the rest "
            "does not change"
        )
        for line in _left_out(seen):
            click.echo(line, err=True)
    if any(change.is_refusal for change in changes):
        raise SystemExit(1)


def _seen(mesh: Mesh, logs: tuple[Path, ...], reports: tuple[Path, ...]) -> Seen:
    """What the logs and reports tell. Raises :class:`UsageError` also if it is nothing of this mesh."""
    if [*logs, *reports].count(STDIN) > 1:
        raise UsageError("stdin can be read once only")
    seen = Seen(mesh.trust_domain)
    here = Path()
    if not logs and not reports:
        if not is_project(here):
            raise UsageError(
                "where are the logs? Give --log FILE (- is stdin) or --reports FILE, or run this where "
                "`sidecar inject` was run"
            )
        gather.read_compose(here.absolute(), os.environ, seen)
    gather.read_logs(logs, seen)
    for path in reports:
        gather.read_reports(path, seen)
    if seen.calls:
        return seen
    if seen.foreign:
        domains = ", ".join(sorted(seen.foreign))
        raise UsageError(
            f"all that is told is of another mesh: {domains}, and not {mesh.trust_domain} ({mesh.filename})"
        )
    raise UsageError(
        "; ".join(
            [
                "no connection between services of this mesh is told of; an access log is JSON (`log_format: json`)",
                *_left_out(seen),
            ]
        )
    )


def _learned_lines(learned: Learned, seen: Seen) -> Iterable[str]:
    yield (
        f"{len(learned.rules)} rules learned, {len(learned.offers)} written commented out for you to enable; "
        f"{learned.covered} calls are allowed already"
    )
    yield from (f"note: {note}" for note in learned.notes)
    yield from _left_out(seen)


def _left_out(seen: Seen) -> Iterable[str]:
    if seen.left_out:
        listed = ", ".join(f"{number} {what}" for what, number in sorted(seen.left_out.items()))
        yield f"left out: {listed}"


def _result_line(mesh: Mesh, result: TestResult) -> str:
    word = "pass" if result.passed else "FAIL"
    test = f"{mesh.filename}:{result.test.line}: {result.test.from_} -> {result.target}: expected {result.test.expect}"
    return f"{word}  {test}: {result.decision.why}"


def _explanation_lines(mesh: Mesh, explanation: Explanation) -> list[str]:
    decision = explanation.decision
    who = (
        "Both ends decide, each for itself:"
        if len(explanation.ends) > 1
        else "One end decides, as the caller has no sidecar:"
    )
    lines = [f"{'ALLOWED' if decision.allowed else 'DENIED'}: {decision.why}", "", who]
    lines += [
        f"  {end.sidecar}: {'yes' if end.allowed else 'no'}. It checks, {end.checks}." for end in explanation.ends
    ]
    if decision.limits:
        room = ", then ".join(f"{many or 'any number'} by {rule}" for rule, many in decision.limits)
        lines += ["", f"At once into one sidecar, of all callers that a rule covers: {room}."]
    if decision.dry_run:
        lines += ["", "Dry runs:", *(f"  {text}" for text in decision.dry_run)]
    if explanation.near_misses:
        lines += ["", "Other rules that come near:"]
        lines += [f"  {miss.rule} ({mesh.filename}:{miss.line}) {miss.why}" for miss in explanation.near_misses]
    if explanation.would_allow is not None:
        lines += ["", "To allow it, add to `policy:`", "", explanation.would_allow.rstrip("\n")]
    return lines
