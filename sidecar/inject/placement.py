"""Refuses a state directory whose keys and secrets an application could read. Pure: ``real`` resolves the paths.

Fails closed: a state directory in the project, or in anything that a service mounts or an image is built from, is refused.
The exception are services that look after the whole machine (node-exporter, cAdvisor, backups) and mount ``/`` or a home
directory: no other place would be safe from them, and they could do worse. They are reported, and trusted with the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from sidecar.identity.reasons import UsageError
from sidecar.inject.application import Application


def refuse_readable_state(application: Application, state: str, project: str, real: Callable[[str], str]) -> None:
    """``real`` gives a path without symlinks. Raises :class:`UsageError`."""
    here = PurePosixPath(real(state))
    if any(character in state for character in "${}\n") or not state.isprintable():
        raise UsageError(f"--state: {state!r} has a character that Compose or YAML would interpret: choose another")
    advice = "give another with --state"
    root = PurePosixPath(real(project))
    if here == root or root in here.parents or here in root.parents:
        raise UsageError(f"--state: {state} is not outside of the project {project}: {advice}")
    for service in application.services.values():
        for what, paths in (("mounts", service.mounts), ("is built from", service.builds)):
            for path in paths:
                if not path.startswith("/"):
                    continue  # a URL, or an image
                other = PurePosixPath(real(path))
                if what == "mounts" and other in here.parents and _is_broad(other, root):
                    continue  # readers_of
                if other == here or other in here.parents or here in other.parents:
                    raise UsageError(
                        f"--state: service '{service.name}' {what} {path}, so it could read the keys in {state}: {advice}"
                    )


def _is_broad(mount: PurePosixPath, project: PurePosixPath) -> bool:
    """Whether a mount is a whole part of the machine: it holds the project too, or is a home directory or above one."""
    return mount in project.parents or len(mount.parts) <= len(PurePosixPath("/home/me").parts)


def readers_of(
    application: Application, state: str, project: str, real: Callable[[str], str]
) -> tuple[tuple[str, str], ...]:
    """The services that mount a whole part of the machine with the state directory in it, and the mount."""
    here, root = PurePosixPath(real(state)), PurePosixPath(real(project))
    return tuple(
        (service.name, path)
        for service in application.services.values()
        for path in dict.fromkeys(service.mounts)
        if (other := PurePosixPath(real(path))) in here.parents and _is_broad(other, root)
    )


def writers_of(application: Application, project: str, real: Callable[[str], str]) -> tuple[str, ...]:
    """The services that may write to a mount of the project's directory or a parent of it, and so could change its files."""
    root = PurePosixPath(real(project))
    return tuple(
        service.name
        for service in application.services.values()
        if any((other := PurePosixPath(real(path))) == root or other in root.parents for path in service.writable)
    )
