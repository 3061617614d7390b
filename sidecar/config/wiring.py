"""One sidecar's configuration, from its ``sidecar.yaml`` and ``SIDECAR_…`` variables, as frozen values. Pure, but for
:func:`load_config`.

Fails closed: a file with any mistake in it yields no configuration, but one :class:`UsageError` with a line for each
mistake. The keys of the file are in ``sidecar_yaml``, the variables in ``environment``. Paths in a file are relative to that
file, paths in variables to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from sidecar.config.environment import with_environment
from sidecar.config.permissive import SOON_DAYS
from sidecar.config.sidecar_yaml import Config, Inbound, parse_shape
from sidecar.documents.days import is_over
from sidecar.documents.document import part
from sidecar.documents.paths import joined
from sidecar.documents.schema import values
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.policy import decide
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import PLAINTEXT


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Reads a sidecar's file and its mesh file. Raises :class:`UsageError` with the mistakes of both."""
    merged = with_environment(parse_yaml(load_text(path), str(path)), environ)
    named = part(merged.data, "mesh")
    mesh, mistakes = None, []
    if isinstance(named, str | Path) and named:
        mesh_path = joined(path.parent, named) if isinstance(named, str) else named
        try:
            text = load_text(mesh_path)
        except UsageError as error:
            merged.problems.add(("mesh",), str(error))
        else:
            try:
                mesh = parse_mesh(text, str(mesh_path))
            except UsageError as error:
                mistakes.append(str(error))
    try:
        keys = parse_shape(merged.data, merged.problems, mesh)
    except UsageError as error:
        mistakes.append(str(error))
    if mesh is None or mistakes:
        raise UsageError("\n".join(mistakes))
    return Config(path=path, mesh=mesh, **values(keys))


def parse_config(text: str, filename: str, environ: Mapping[str, str], mesh: Mesh) -> Config:
    """Parses a sidecar file's text, given its mesh. Raises :class:`UsageError` with every mistake in it, a line each."""
    merged = with_environment(parse_yaml(text, filename), environ)
    return Config(path=Path(filename), mesh=mesh, **values(parse_shape(merged.data, merged.problems, mesh)))


def warnings(config: Config, now: datetime) -> list[str]:
    """Warnings about a valid configuration: connections that are configured and that the policy will refuse."""
    mesh, service = config.mesh, config.service
    found, unruled = [], []
    for i, outbound in enumerate(config.outbound):
        decision = decide.decide(mesh, mesh.identity(service), outbound.service, outbound.port, now)
        if decision.kind is decide.Kind.NO_RULE or outbound.ambiguous_with:
            unruled.append((f"outbound[{i}]", outbound.shown))
        elif not decision.allowed:
            found.append(f"{config.path}: outbound[{i}]: every connection will be refused: {decision.why}")
    if unruled:  # in one line: `sidecar inject` wires every neighbour, so that each refusal names the service
        where, targets = (", ".join(column) for column in zip(*unruled, strict=True))
        why = f"{service} may not call {targets}: {decide.NO_RULE}"
        found.append(f"{config.path}: {where}: every connection will be refused: {why}")
    permissive = {inbound.port for inbound in config.inbound if inbound.until is not None}
    for i, inbound in enumerate(config.inbound):
        if inbound.until is not None or inbound.port not in permissive:  # a port may have several listeners
            found += [f"{config.path}: inbound[{i}]: {fault}" for fault in _mode_warnings(config, inbound, now)]
    found += [
        f"{config.path}: inbound[{i}]: every call to {service}:{inbound.port} will be refused: no rule allows it"
        for i, inbound in enumerate(config.inbound)
        if not decide.callers(mesh, service, inbound.port, now)
    ]
    return found + decide.warnings(mesh, now)


def _mode_warnings(config: Config, port: Inbound, now: datetime) -> Iterator[str]:
    """What is to be known of a port's ``mode``, and of the rules for plaintext."""
    target = f"{config.service}:{port.port}"
    is_allowed = decide.decide(config.mesh, PLAINTEXT, config.service, port.port, now).allowed
    if port.until is None:
        if is_allowed:
            yield f"a rule lets plaintext call {target}, and the port is strict: it takes none"
    elif is_over(port.until, now):
        yield f"{target} took plaintext until {port.until}, and refuses it since: write `mode: strict`"
    else:
        if is_over(port.until - timedelta(days=SOON_DAYS), now):
            yield f"{target} takes plaintext until {port.until}; then it is refused"
        if not is_allowed:
            yield f"{target} is permissive, and no rule says `from: plaintext`: every call in plaintext will be refused"
