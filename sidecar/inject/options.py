"""The options of a run, and their record in the override, so that the next run and ``--check`` need none. Pure.

The record also holds the rules that the last run proposed for ``mesh.yaml``: a rule that a person removed since then is not
proposed again. It is one line of JSON under a key that Compose ignores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from ipaddress import IPv4Network
from typing import Any, Literal, get_args

from sidecar.identity.reasons import UsageError
from sidecar.inject.application import MARK
from sidecar.inject.layout import layout_data, layout_of_override, parse_layout
from sidecar.inject.published import Asked, read_asked
from sidecar.inject.subnets import DEFAULT_RANGE
from sidecar.inject.topology import Layout

Publish = Literal["keep", "loopback", "drop"]

_RECORD = re.compile(rf"^{MARK}: (\{{.*\}})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Options:
    """``state`` is a directory, ``user`` is ``uid:gid``. Empty ``only``: all services. ``ports`` are from ``--port``,
    ``publish_mesh`` from ``--publish-mesh``."""

    state: str
    user: str
    publish: Publish = "keep"
    only: tuple[str, ...] = ()
    observe: bool = False
    subnets: IPv4Network = DEFAULT_RANGE
    ports: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    publish_mesh: Mapping[str, Asked] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """``files`` are the Compose files that the override belongs to. ``mesh_sha256`` is of ``mesh.yaml`` as it was written;
    ``proposed`` are all rules proposed for it so far. ``plaintext``: the last day of it that each app was given.
    ``not_seen``: the ways past each app's sidecar."""

    options: Options
    files: tuple[str, ...]
    block: IPv4Network
    mesh_sha256: str
    proposed: frozenset[str]
    layout: Layout
    plaintext: Mapping[str, date] = field(default_factory=dict)
    not_seen: Mapping[str, list[str]] = field(default_factory=dict)


def record_line(record: Record) -> str:
    options = record.options
    data: dict[str, Any] = {
        "files": list(record.files),
        "publish": options.publish,
        "only": sorted(options.only),
        "observe": options.observe,
        "subnets": str(options.subnets),
        "ports": {name: list(numbers) for name, numbers in sorted(options.ports.items())},
        **(
            {"publish_mesh": {name: str(it) for name, it in sorted(options.publish_mesh.items())}}
            if options.publish_mesh
            else {}
        ),
        "state": options.state,
        "user": options.user,
        "block": str(record.block),
        "mesh_sha256": record.mesh_sha256,
        "proposed": sorted(record.proposed),
        **({"plaintext": {app: str(day) for app, day in record.plaintext.items()}} if record.plaintext else {}),
        **({"not_seen": dict(record.not_seen)} if record.not_seen else {}),
        "layout": layout_data(record.layout),
    }
    return f"{MARK}: {json.dumps(data)}".replace("$", "$$")


def read_record(override: str, filename: str) -> Record:
    """The record in an override that an earlier run wrote. Raises :class:`UsageError` for any other file, which must not be
    overwritten."""
    found = _RECORD.search(override)
    if found is None:
        raise UsageError(f"{filename}: exists already and was not written by `sidecar inject`: move it out of the way")
    try:
        data = json.loads(found[1].replace("$$", "$"))
        options = Options(
            state=str(data["state"]),
            user=str(data["user"]),
            publish=data["publish"],
            only=tuple(map(str, data["only"])),
            observe=bool(data["observe"]),
            subnets=IPv4Network(data["subnets"]),
            ports={str(name): tuple(map(int, numbers)) for name, numbers in data["ports"].items()},
            publish_mesh=read_asked(data.get("publish_mesh", {})),
        )
        if options.publish not in get_args(Publish):
            raise ValueError(options.publish)
        return Record(
            options,
            tuple(map(str, data["files"])),
            IPv4Network(data["block"]),
            str(data["mesh_sha256"]),
            frozenset(map(str, data["proposed"])),
            parse_layout(data["layout"]) if "layout" in data else layout_of_override(override),
            {str(app): date.fromisoformat(day) for app, day in data.get("plaintext", {}).items()},
            {str(app): [str(way) for way in ways] for app, ways in data.get("not_seen", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        line = override.count("\n", 0, found.start()) + 1
        raise UsageError(f"{filename}:{line}: {MARK}: cannot be read; remove the file and run inject again") from error


def parse_ports(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``db=3306``, ``mq=5672,15672``, ``worker=none``. Raises :class:`UsageError`."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        numbers = [] if value == "none" else value.split(",")
        if not name or not equals or not all(re.fullmatch(r"[0-9]{1,5}", it) and 0 < int(it) < 65536 for it in numbers):
            raise UsageError(f"--port: {text!r} is not SERVICE=PORT: write db=3306, or db=3306,33060, or worker=none")
        found[name] = tuple(dict.fromkeys(map(int, numbers)))
    return found
