"""Which apps cannot be put behind a sidecar, and why. Pure.

An excluded app, an *outsider*, keeps its networks and keeps working: between it and the apps that it shares a network with
goes plaintext. Each such pair is reported, so that plaintext is never taken for mutual TLS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sidecar.documents.problems import did_you_mean
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import shown
from sidecar.inject.edges import Mention
from sidecar.inject.visibility import App
from sidecar.inject.wellknown import is_router

ASKS_DOCKER = "finds its backends by asking Docker, and calls them by their addresses"


def exclude(
    apps: Mapping[str, App], mentions: tuple[Mention, ...], only: frozenset[str], images: Mapping[str, str]
) -> dict[str, str]:
    """The excluded apps, each with its reason. ``only``, if not empty, limits the mesh to the apps of these services.
    ``images`` are the base images of services that are built. Raises :class:`UsageError` for an unknown name in ``only``."""
    services = {member.name for app in apps.values() for member in app.members}
    for name in sorted(only - services):
        raise UsageError(f"--only: there is no service {shown(name)}{did_you_mean(name, services)}")
    found = {}
    callers = {mention.caller for mention in mentions}
    for name, app in apps.items():
        calls = {mention.port for mention in mentions if mention.callee == name}
        reason = _reason(app, calls, images, only_calls=name in callers and not calls)
        if reason is None and only and not only & {member.name for member in app.members}:
            reason = "is left out by --only"
        if reason is not None:
            found[name] = reason
    return found


def _reason(app: App, calls: Iterable[int | None], images: Mapping[str, str], *, only_calls: bool) -> str | None:
    """``only_calls``: it calls others, and nobody calls it: what it serves over UDP is for the world outside."""
    mode = app.owner.network_mode or ""
    if is_on_host(app):
        return "uses the host's network, where no sidecar can be put between it and others"
    if mode == "none":
        return "has no network"
    if mode and not app.owner.networks:
        return f"uses the network of {'Docker itself' if mode == 'bridge' else 'a container of another application'}"
    for member in app.members:
        if is_router(images.get(member.name) or member.image) and _asks_docker(app):
            return ASKS_DOCKER
    tcp = {port for member in app.members for port in member.declared("tcp")}
    udp = {port for member in app.members for port in member.declared("udp")} - tcp
    if udp and not tcp and not only_calls and not set(calls) - udp - {None}:
        return "serves UDP only, which mutual TLS does not carry"
    if udp & set(calls):
        return f"is called at UDP port {min(port for port in calls if port in udp)}, which mutual TLS does not carry"
    return None


def is_on_host(app: App) -> bool:
    return app.owner.network_mode == "host"


def udp_beside(app: App) -> tuple[int, ...]:
    """The UDP ports of an app that also serves TCP."""
    tcp = {port for member in app.members for port in member.declared("tcp")}
    return tuple(sorted({port for member in app.members for port in member.declared("udp")} - tcp))


def _asks_docker(app: App) -> bool:
    texts = " ".join(
        text
        for member in app.members
        for text in (member.command, *member.labels, *member.environment, *member.environment.values())
    ).lower()
    return any(member.has_docker_socket for member in app.members) or "docker" in texts
