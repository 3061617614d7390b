"""Which services a source file belongs to, where several are built from one directory. Pure.

How this works. A service *claims* the places that its Dockerfile copies, or else its whole context, and what it mounts. A
file belongs to the services that claim the innermost place around it: with ``build: .`` and ``build: ./api``, ``api/x.py``
is api's alone. Several services with one claim (a web server and its workers) all have the file. In a repository of many
programs the Dockerfile's own directory, a build argument and the command say which of them a service runs, and such a
place is a claim only where another service claims one beside it: ``cmd/api`` and ``cmd/worker``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

_NOT_IN_IMAGE = {
    "test", "tests", "__tests__", "spec", "e2e", "doc", "docs", "example", "examples", "fixtures", "k8s", "kubernetes",
    "helm", "charts", "terraform", "ansible", "benchmark", "benchmarks", "deploy", "deployment", "deployments", "infra",
    "infrastructure", "ops", "docker", "monitoring",
}  # fmt: skip
"""Directories whose files name services that the program in the image does not call."""

_FOR_TOOLS = re.compile(r"(?i)(?!package\.json$).*\.(?:ya?ml|json|toml|conf|cfg|sh|txt|http|tf|hcl)|\.env.*")
"""Files at the top of a project that are as likely about the whole of it as part of the program: Compose reads ``.env``."""

_ARTEFACTS = {"target", "dist", "build", "out", "bin", "publish"}


@dataclass(frozen=True, slots=True)
class Built:
    """How a service is built: its context, its Dockerfile's path and text, and the words of its command and arguments."""

    context: PurePath
    dockerfile: PurePath
    text: str | None
    words: tuple[str, ...]


def claims(
    built: Mapping[str, Built],
    mounted: Mapping[str, Iterable[PurePath]],
    project: PurePath,
    known: frozenset[PurePath],
) -> dict[PurePath, set[str]]:
    """The services that claim each place; ``known`` are the files and directories that exist in the contexts."""
    found: dict[PurePath, set[str]] = {}
    for name, places in mounted.items():
        for place in places:
            found.setdefault(place, set()).add(name)
    own: dict[PurePath, set[str]] = {}
    for name, it in built.items():
        alone = all(other.context != it.context for key, other in built.items() if key != name)
        apart = alone and it.context != project and it.context not in project.parents
        for place in [it.context] if apart else _copied(it):
            found.setdefault(place, set()).add(name)
        for place in _programs(it, known):
            own.setdefault(place, set()).add(name)
    for place, names in own.items():
        beside = [
            other
            for other, others in own.items()
            if other != place and other.parent == place.parent and other.suffix == place.suffix and not names & others
        ]
        if beside:
            found.setdefault(place, set()).update(names)
    return found


def owners(file: PurePath, found: Mapping[PurePath, set[str]], project: PurePath) -> set[str]:
    """The services that claim the innermost place around a file, if the file is a part of their program: not their tests and
    deployment, nor what lies at the top of the whole project."""
    place = next((it for it in (file, *file.parents) if it in found), None)
    if place is None or {part.lower() for part in file.relative_to(place).parts[:-1]} & _NOT_IN_IMAGE:
        return set()
    is_whole = place == project or place in project.parents
    return set() if is_whole and file.parent == place and _FOR_TOOLS.fullmatch(file.name) else found[place]


def commands_of(dockerfile: str, own: str) -> Iterator[str]:
    """The parts of the command line that a container starts: its Dockerfile's, but for what its own command replaces."""
    last = {"ENTRYPOINT": "", "CMD": ""}
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword.upper() == "FROM":
            last = {"ENTRYPOINT": "", "CMD": ""}
        elif keyword.upper() in last:
            last[keyword.upper()] = re.sub(r"[\[\]\",]+", " ", rest).strip()
    yield from filter(None, [last["ENTRYPOINT"], own or last["CMD"]])


def _copied(built: Built) -> Iterator[PurePath]:
    """The places in the context that a Dockerfile copies, or that it copies what was built from; the whole context if it
    does not say."""
    places = list(_copy_sources(built.text or ""))
    if not places or any("$" in place for place in places):
        yield built.context
    for place in places:
        parts = [part for part in place.split("/") if part not in {"", "."}]
        end = next((i for i, part in enumerate(parts) if part in _ARTEFACTS or re.search(r"[*?\[]", part)), len(parts))
        yield built.context.joinpath(*parts[:end])


def _copy_sources(dockerfile: str) -> Iterator[str]:
    for line in re.sub(r"\\\s*\n", " ", dockerfile).splitlines():
        words = line.split()
        if not words or words[0].upper() not in {"COPY", "ADD"} or any(it.startswith("--from") for it in words):
            continue
        plain = [word.strip("[]\",'") for word in words[1:] if not word.startswith("--")]
        yield from (word for word in plain[:-1] if word and "://" not in word and not word.startswith("<<"))


def _programs(built: Built, known: frozenset[PurePath]) -> Iterator[PurePath]:
    """The places in the context that say which program a service runs."""
    directory = built.dockerfile.parent
    if built.context in directory.parents:
        yield directory
    for word in built.words:
        for path in _paths(word):
            place = built.context / path
            if place in known and place != built.context:
                is_inside = place.suffix and place.parent != built.context
                yield place.parent if is_inside else place
                break


def _paths(word: str) -> Iterator[str]:
    """Paths in the context that a word may stand for: ``/app/api/main.py``, ``api.main:app``, ``--prefix=apps/api``."""
    plain = word.rpartition("=")[2].partition(":")[0].strip("\"'").removeprefix("./").rstrip("/")
    parts = [part for part in plain.split("/") if part]
    if not parts or ".." in parts:
        return
    for index in range(len(parts)):
        yield "/".join(parts[index:])
    if len(parts) == 1 and "." in plain:
        yield plain.replace(".", "/") + ".py"
        yield plain.rpartition(".")[0].replace(".", "/")
    if len(parts) == 1:
        yield from (f"{group}/{plain}" for group in ("apps", "packages", "services", "cmd"))
        yield f"{plain}.py"
