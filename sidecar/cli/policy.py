"""``sidecar policy``: runs the policy file's own tests, and explains why a call is allowed or denied."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from sidecar.identity.reasons import UsageError
from sidecar.policy.explain import Explanation, TestResult, explain, run_tests
from sidecar.policy.mesh import Mesh, load_mesh

_mesh_argument = click.argument("mesh", default="mesh.yaml", type=click.Path(path_type=Path))


@click.group
def policy() -> None:
    """Test the policy, and explain its decisions."""


@policy.command
@_mesh_argument
def test(mesh: Path) -> None:
    """Run the `tests:` of MESH (mesh.yaml if not given).

    A test of a service without a port is a test of each of its ports. Exit code: 0 if all pass, or there are none; 1 if one
    fails; 2 if the file is wrong.
    """
    loaded = load_mesh(mesh)
    results = run_tests(loaded, datetime.now(UTC))
    for result in results:
        click.echo(_result_line(loaded, result))
    failed = sum(not result.passed for result in results)
    if not results:
        click.echo(f"{mesh}: has no tests: write what must hold under `tests:`, and this checks it")
    else:
        click.echo(f"{len(results) - failed} passed, {failed} failed")
    if failed:
        raise SystemExit(1)


@policy.command("explain")
@_mesh_argument
@click.option("--from", "from_", required=True, metavar="SERVICE|SPIFFE-ID", help="The caller.")
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


def _result_line(mesh: Mesh, result: TestResult) -> str:
    word = "pass" if result.passed else "FAIL"
    test = f"{mesh.filename}:{result.test.line}: {result.test.from_} -> {result.target}: expected {result.test.expect}"
    return f"{word}  {test}: {result.decision.why}"


def _explanation_lines(mesh: Mesh, explanation: Explanation) -> list[str]:
    decision = explanation.decision
    lines = [f"{'ALLOWED' if decision.allowed else 'DENIED'}: {decision.why}", "", "Both ends decide, each for itself:"]
    lines += [
        f"  {end.sidecar}: {'yes' if end.allowed else 'no'}. It checks, {end.checks}." for end in explanation.ends
    ]
    if decision.dry_run:
        lines += ["", "Dry runs:", *(f"  {text}" for text in decision.dry_run)]
    if explanation.near_misses:
        lines += ["", "Other rules that come near:"]
        lines += [f"  {miss.rule} ({mesh.filename}:{miss.line}) {miss.why}" for miss in explanation.near_misses]
    if explanation.would_allow is not None:
        lines += ["", "To allow it, add to `policy:`", "", explanation.would_allow.rstrip("\n")]
    return lines
