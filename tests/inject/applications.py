"""Small applications as Compose would tell of them, for tests that need no Compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from sidecar.inject.application import Application, read_application
from sidecar.inject.edges import Text, find_edges, find_mentions
from sidecar.inject.injection import Inputs
from sidecar.inject.options import Options
from sidecar.inject.ports import infer_ports
from sidecar.inject.topology import Layout, Topology, lay_out
from sidecar.inject.visibility import App, find_apps

TODAY = date(2026, 11, 24)
OPTIONS = Options(state="/state", user="1000:1000")


def config(services: Mapping[str, Any], networks: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """``depends_on`` may be a list here; a service without networks and ``network_mode`` is on ``default``."""
    found = {}
    for name, given in services.items():
        raw = dict(given or {})
        if "network_mode" not in raw:
            raw.setdefault("networks", {"default": None})
        if isinstance(raw.get("depends_on"), list):
            raw["depends_on"] = {it: {"condition": "service_started", "required": True} for it in raw["depends_on"]}
        found[name] = raw
    return {
        "name": "shop",
        "services": found,
        "networks": {"default": {"name": "shop_default"}, **(networks or {})},
        **more,
    }


def application(services: Mapping[str, Any], networks: Mapping[str, Any] | None = None, **more: Any) -> Application:
    return read_application(config(services, networks, **more), "compose.yaml")


def apps(services: Mapping[str, Any], networks: Mapping[str, Any] | None = None) -> Mapping[str, App]:
    return find_apps(application(services, networks))


def inputs(
    services: Mapping[str, Any],
    networks: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    **more: Any,
) -> Inputs:
    """``texts`` are mounted, one a service; ``more`` are other inputs."""
    mounted = {name: (Text("file.conf", text, "mounted"),) for name, text in (texts or {}).items()}
    made = Inputs(
        config(services, networks), ("compose.yaml",), mounted, {}, "/project", str, OPTIONS, (), TODAY, "0123456789ab"
    )
    return replace(made, **more)


def topology(
    services: Mapping[str, Any],
    networks: Mapping[str, Any] | None = None,
    excluded: Mapping[str, str] | None = None,
    is_foreseen: Callable[[str, str, int | None], bool] = lambda *_: True,
) -> Topology:
    whole = application(services, networks)
    found = find_apps(whole)
    mentions = find_mentions(whole, found, {}, {})
    assert find_edges(mentions) is not None
    return lay_out(whole, found, excluded or {}, (), infer_ports(found, mentions, {}, {}), Layout(), is_foreseen)
