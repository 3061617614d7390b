"""``SIDECAR_…`` variables: values that override those of a ``sidecar.yaml``. Pure: the environment is an argument.

Every scalar of the file that is not inside a list has a variable, named after its keys: ``timeouts: {drain: 8s}`` is
``SIDECAR_TIMEOUTS_DRAIN=8s``. Fails closed: an unknown variable is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

from sidecar.config.sidecar_yaml import ConfigShape
from sidecar.documents.document import DataPath, Document, part
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.documents.schema import bare_type, is_shape, keys_at
from sidecar.identity.spiffe import shown

PREFIX = "SIDECAR_"


@dataclass(frozen=True, slots=True)
class Merged:
    """A file's data with the environment's values in it, and the problems found so far."""

    data: Any
    problems: Problems


def variables() -> dict[str, DataPath]:
    """All variables, derived from the file's shape: ``SIDECAR_TIMEOUTS_DRAIN`` → ``("timeouts", "drain")``."""
    return {PREFIX + "_".join(map(str, path)).upper(): path for path in _scalars((), ConfigShape)}


def _scalars(path: DataPath, kind: Any) -> Iterator[DataPath]:
    kind = bare_type(kind)
    if is_shape(kind):
        for key, inner in keys_at(kind, ()).items():
            yield from _scalars((*path, key), inner)
    elif get_origin(kind) in {None, Literal}:  # a list has no variable
        yield path


def with_environment(document: Document, environ: Mapping[str, str]) -> Merged:
    """The file's data with the environment's values in it. An unknown variable is a problem, as it would have no effect;
    but not one that a container platform sets for a neighbour (:func:`warnings`)."""
    known = variables()
    data = deepcopy(document.data)
    unknown, given = [], {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in known:
            if not _is_link(name, environ[name]):
                unknown.append(name)
            continue
        *outer, last = known[name]
        place = data
        for key in outer:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = part(place, key)
        if isinstance(place, dict):  # else the file has a value where a mapping belongs, and is refused for that
            place[last] = _value(environ[name], known[name])
            given[known[name]] = name
    problems = Problems(document, given)
    for path, name in given.items():
        if not environ[name].isprintable():
            problems.add(path, f"has a character that cannot be printed: {shown(environ[name])}")
    endings = [name.removeprefix(PREFIX) for name in known]
    for name in unknown:
        near = did_you_mean(name.removeprefix(PREFIX), endings).replace("'", f"'{PREFIX}", 1)
        problems.add_variable(name, f"unknown variable{near}")
    return Merged(data, problems)


_LINKS = (
    (r"PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?", r"(?:tcp|udp|sctp)://[0-9A-Za-z.:\[\]-]+:[0-9]+"),
    (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT", r"[0-9]+"),
    (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR", r"[0-9A-Fa-f.:]+"),
    (r"SERVICE_HOST", r"[0-9A-Fa-f.:]+|None"),
    (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", r"[0-9]+"),
    (r"NAME", r"(?:/[0-9A-Za-z_.-]+){2}"),
)
"""The variables that Kubernetes and Docker set in every container for a neighbour named ``sidecar`` or ``sidecar-…``: how
the name ends, and the value."""


def _is_link(name: str, value: str) -> bool:
    return any(
        re.fullmatch(f"{PREFIX}(?:[A-Z0-9_]+_)?(?:{ending})", name) and re.fullmatch(shape, value)
        for ending, shape in _LINKS
    )


def warnings(environ: Mapping[str, str]) -> list[str]:
    """One warning if variables are ignored because a container platform set them for a neighbour."""
    known = variables()
    links = sorted(
        name for name in environ if name.startswith(PREFIX) and name not in known and _is_link(name, environ[name])
    )
    if not links:
        return []
    return [
        f"ignored, since a container platform sets them for a service named `sidecar…`: {', '.join(links)} "
        "(Kubernetes: enableServiceLinks: false)"
    ]


def _value(text: str, path: DataPath) -> str | int | Path:
    """A variable's text as the value in a file: an int where the key is a number, and a path where it is a path, since a
    path in a variable is relative to the working directory."""
    wanted = bare_type(keys_at(ConfigShape, path[:-1])[str(path[-1])])
    if wanted is Path and text:
        return Path(text)
    return int(text) if wanted is int and re.fullmatch(r"[0-9]{1,20}", text) else text
