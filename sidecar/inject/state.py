"""Keys and secrets, outside of the project: the CA, and each service's enrolment secret. I/O: makes what is missing.

Existing files stay: another run replaces no secret. The ``certs`` command makes them; nothing secret passes through this
process.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from certs.protocol.mesh_state import SECRET, MeshState
from sidecar.host.private import Alone, exposure
from sidecar.identity.reasons import UsageError

DOMAIN = "trust-domain"
_MOVING = ".moving-"

Certs = Callable[[Sequence[str]], None]
"""Runs ``certs`` with these arguments. Raises :class:`UsageError` with its error lines."""


def default_state(environ: dict[str, str], project: str, directory: Path, digest: str) -> Path:
    """``~/.local/state/sidecar/shop-1f2e3d4c``: the project's name, and a digest of its path because names repeat."""
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(home).absolute() / "sidecar" / f"{project}-{digest[:8]}"


def run_certs(arguments: Sequence[str]) -> None:
    """``certs`` in a process of its own."""
    try:
        done = subprocess.run(  # noqa: S603  # our own program
            [sys.executable, "-m", "certs", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"certs {arguments[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("Usage:", "Try "))]
        messages = [line.removeprefix("error: ").removeprefix("Error: ") for line in lines]
        raise UsageError("\n".join(f"certs {arguments[0]}: {line}" for line in messages or ["ended without a message"]))


def ensure_state(
    state: Path, trust_domain: str, services: Iterable[str], certs: Certs = run_certs, older: Collection[str] = ()
) -> list[str]:
    """Makes what is missing; returns a line for each thing made. Raises :class:`UsageError` if others can read the
    directory, if it belongs to another mesh, or if ``certs`` fails; the project's files are not changed yet. The secrets of
    ``older`` services stay where they are: their sidecars are of an earlier version."""
    said, kept = [], MeshState(state)
    try:
        for directory in (state, kept.trust, kept.enrolment, kept.sidecars):
            _make(directory)
        _same_domain(state / DOMAIN, trust_domain)
        if not (kept.ca / "issuing.key").exists():
            # Its container gets the directory; the root's key is not needed there, and so it is not there.
            certs(["init", str(kept.ca), "--trust-domain", trust_domain, "--root-key-out", str(kept.root)])
            said.append(f"made a CA for {trust_domain} in {kept.ca}, and its root's key in {kept.root}")
        if not (kept.trust / "root.pem").exists():
            shutil.copyfile(kept.ca / "root.pem", kept.trust / "root.pem")
        wanted = list(services)
        for service in wanted:
            _make(kept.sidecars / service)
        if moved := _move_secrets(kept.enrolment, older):
            said.append(
                f"moved the enrolment secrets of {', '.join(moved)} into directories of their own, so that a new secret "
                "reaches a running sidecar: one that is restarted now does not find its secret, before the next `up`"
            )
        there = {service for service in older if (kept.enrolment / service).exists()}
        missing = [service for service in wanted if service not in there and not kept.secret(service).exists()]
        if missing:
            certs(["enrolment", str(kept.ca), *missing, "--out-dir", str(kept.enrolment)])
            said.append(f"made the enrolment secret{'s' if missing[1:] else ''} of {', '.join(missing)}")
    except OSError as error:
        raise UsageError(f"--state: {error.filename or state}: {error.strerror}") from error
    return said


def leftovers(state: Path, project: str, services: Collection[str]) -> list[str]:
    """A line for each service that had a sidecar and is not among ``services``: the commands that remove what it left."""
    kept, found = MeshState(state), []
    try:
        gone = {path.name for parent in (kept.enrolment, kept.sidecars) for path in parent.iterdir()}
    except OSError:
        return []  # not made yet, or another user's, to whom it is told
    for name in sorted(gone - set(services)):
        if name.startswith(_MOVING):
            continue
        there = [path for path in (kept.enrolment / name, kept.sidecars / name) if path.exists()]
        commands = (
            "docker compose up -d --remove-orphans",
            f"docker network rm $(docker network ls -q --filter name=^{project}_{name}-)",
            shlex.join(["certs", "revoke", str(kept.ca), name]),
            shlex.join(["rm", "-r", *map(str, there)]),
        )
        found.append(f"{name} is gone, and has left containers, networks and keys: `{' && '.join(commands)}`")
    return found


def _move_secrets(directory: Path, older: Collection[str]) -> list[str]:
    """Gives each secret a directory; returns whose. An earlier version kept the secret of ``web`` in the file ``web``. A run
    that was killed here is continued by the next."""
    moved = []
    for file in sorted(path for path in directory.iterdir() if path.is_file() and path.name not in older):
        service = file.name.removeprefix(_MOVING)
        aside = file.rename(directory / f"{_MOVING}{service}")
        _make(directory / service)
        aside.rename(directory / service / SECRET)
        moved.append(service)
    return moved


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if exposure(path.stat(), Alone.OURS) is not None:
        raise UsageError(f"--state: {path} can be read by others, or is another user's: chmod 700 it, or give another")


def _same_domain(file: Path, trust_domain: str) -> None:
    if not file.exists():
        file.write_text(trust_domain + "\n", encoding="utf-8")
    known = file.read_text(encoding="utf-8").strip()
    if known != trust_domain:
        raise UsageError(f"--state: {file.parent} is of the mesh {known}, and this one is {trust_domain}: give another")
