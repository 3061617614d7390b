"""Envoy, from the locked wheel (dependency group ``bench``)."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.contestants import (
    CALLEE,
    CALLER,
    HYBRID,
    PARTS,
    X25519,
    Certificates,
    Command,
    Missing,
    Mode,
    Route,
    Side,
    spiffe,
)

_TYPES = "type.googleapis.com/envoy.extensions"
_MANY = 1_000_000


class Envoy:
    """``tcp_proxy`` with TLS transport sockets. AES-128-GCM is what BoringSSL prefers where the processor has AES.

    It keeps one session to resume if nobody says otherwise, so that of many at a time most shake hands in full. With
    ``sessions`` it keeps so many, and is measured at new connections alone: all else is the same."""

    groups = (HYBRID, X25519)

    def __init__(self, sessions: int | None = None) -> None:
        self._sessions = sessions
        self.name = "envoy" if sessions is None else f"envoy-{sessions}"
        self.parts = PARTS if sessions is None else ("connections",)

    def missing(self) -> Missing | None:
        return None if _binary() else Missing("envoy (the dependency group 'bench' is not installed)")

    def version_command(self) -> Sequence[str | Path]:
        return (_binary() or "envoy", "--version")

    def version(self, printed: str) -> str:
        found = re.search(r"/(\d[\d.]+)/.*/(\w+)\s*$", printed)
        sessions = f", {self._sessions} sessions" if self._sessions else ""
        return f"{found[1]} ({found[2]}{sessions})" if found else printed.strip()

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str, mode: Mode
    ) -> Command:
        resources: dict[str, list[Any]] = {"listeners": [], "clusters": []}
        for route in routes:
            listener, cluster = _listener(route, side), _cluster(route, side)
            if side == "callee":
                listener["filter_chains"][0]["transport_socket"] = _downstream(certificates, group, mode)
            else:
                cluster["transport_socket"] = _upstream(certificates, group, 0 if mode == "cold" else self._sessions)
            resources["listeners"].append(listener)
            resources["clusters"].append(cluster)
        (directory / "envoy.json").write_text(json.dumps({"static_resources": resources}, indent=1))
        arguments = ("-c", directory / "envoy.json", "--concurrency", "1", "--disable-hot-restart", "-l", "warning")
        return Command((_binary() or "envoy", *arguments))

    def faults(self, log: str, group: str, mode: Mode) -> list[str]:
        return []


def _binary() -> Path | None:
    """The program itself, not the script that starts it."""
    found = importlib.util.find_spec("envoy")
    places = found.submodule_search_locations if found else None
    binary = Path(places[0]) / "_bin" / "envoy" if places else None
    return binary if binary and binary.is_file() else None


def _listener(route: Route, side: Side) -> dict[str, Any]:
    proxy = {
        "@type": f"{_TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": route.name,
        "cluster": route.name,
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog",
                    "path": f"access.{side}.log",
                },
            }
        ],
    }
    return {
        "name": route.name,
        "address": _address(route.between if side == "callee" else route.entrance),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }


def _cluster(route: Route, side: Side) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(route.origin if side == "callee" else route.towards)}}
    return {
        "name": route.name,
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{"max_connections": _MANY, "max_pending_requests": _MANY}]},
        "load_assignment": {"cluster_name": route.name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _downstream(certificates: Certificates, group: str, mode: Mode) -> dict[str, Any]:
    cold = {"disable_stateless_session_resumption": True, "disable_stateful_session_resumption": True}
    return _transport(
        "DownstreamTlsContext",
        common_tls_context=_common(certificates, CALLEE, CALLER, group),
        require_client_certificate=True,
        **(cold if mode == "cold" else {}),
    )


def _upstream(certificates: Certificates, group: str, sessions: int | None) -> dict[str, Any]:
    return _transport(
        "UpstreamTlsContext",
        common_tls_context=_common(certificates, CALLER, CALLEE, group),
        sni=CALLEE,
        **({} if sessions is None else {"max_session_keys": sessions}),
    )


def _transport(kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": "tls", "typed_config": {"@type": f"{_TYPES}.transport_sockets.tls.v3.{kind}", **fields}}


def _common(certificates: Certificates, own: str, peer: str, group: str) -> dict[str, Any]:
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": [group],
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(certificates.chain(own))},
                "private_key": {"filename": str(certificates.key(own))},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(certificates.roots)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": spiffe(peer)}}],
        },
    }
