"""``compose.merged.yaml``: the application and the override as one finished file. Pure.

For tools on one host that do not know the tags ``!override`` and ``!reset``, such as podman-compose. Compose itself makes
it, so values of variables are in it, and it is private to its owner. Once it is there, each run makes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sidecar.identity.reasons import UsageError
from sidecar.inject.topology import CA

MERGED = "compose.merged.yaml"
_HEAD = """\
# Written by `sidecar inject --merged`, and again by each later run while it is here: the application with mutual TLS between
# its services, in one file. Values of variables and of .env are in it: keep it private, and out of version control.
"""


def merged_text(compose_yaml: str) -> str:
    return _HEAD + compose_yaml


def checks_text(sidecars: Iterable[str]) -> str:
    """An override for these services of Compose, in place of the health check of their image, which other builders leave out
    (OCI's format has none): nobody who waits for a sidecar would ever start. podman-compose 1.3 quotes nothing in a
    check, so it is of plain words, and the CA, for whose health nobody waits, has none."""
    check = {
        "test": ["CMD", "sidecar", "health"],
        "interval": "5s",
        "timeout": "60s",
        "start_period": "60s",
        "retries": 3,
    }
    checks = {name: {"healthcheck": check} for name in sidecars}
    return json.dumps({"services": {CA: {"healthcheck": {"test": ["NONE"]}}, **checks}})


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
