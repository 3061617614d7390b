"""``compose.merged.yaml``: the application and the override as one finished file. Pure.

For tools on one host that do not know the tags ``!override`` and ``!reset``, such as podman-compose. Compose itself makes
it, so values of variables are in it, and it is private to its owner. Once it is there, each run makes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.identity.reasons import UsageError

MERGED = "compose.merged.yaml"
_HEAD = """\
# Written by `sidecar inject --merged`, and again by each later run while it is here: the application with mutual TLS between
# its services, in one file. Values of variables and of .env are in it: keep it private, and out of version control.
"""


def merged_text(compose_yaml: str) -> str:
    return _HEAD + compose_yaml


def is_wanted(present: str | None, *, asked: bool) -> bool:
    """``present``: the file as it is. Raises :class:`UsageError` if it is somebody else's."""
    ours = present is not None and present.startswith(_HEAD.partition("\n")[0])
    if asked and present is not None and not ours:
        raise UsageError(f"{MERGED}: exists already and was not written by `sidecar inject`: move it out of the way")
    return asked or ours


def refuse_swarm(config: Mapping[str, Any], filename: str) -> None:
    """Raises :class:`UsageError` for an application that is written for Swarm."""
    why = next(_swarm_only(config), None)
    if why is not None:
        raise UsageError(
            f"{filename}: {why}, as for Swarm, and --merged makes a file for one host. A stack in Swarm cannot be a mesh: "
            "there no container has a fixed address, nothing is waited for (depends_on), and no image is built. Start it "
            "with Docker Compose or podman-compose"
        )


def _swarm_only(config: Mapping[str, Any]) -> Iterator[str]:
    for name, network in (config.get("networks") or {}).items():
        if (network or {}).get("driver") == "overlay":
            yield f"network '{name}' has the driver overlay"
    for name, service in config["services"].items():
        deploy = service.get("deploy") or {}
        if deploy.get("mode", "replicated") != "replicated":
            yield f"service '{name}' has deploy.mode {deploy['mode']}"
        for key in ("placement", "endpoint_mode"):
            if deploy.get(key):
                yield f"service '{name}' has deploy.{key}"
