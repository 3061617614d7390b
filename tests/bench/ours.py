"""The sidecar of this checkout, on a Python of our choice."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sidecar.config import reference
from tests.bench.contestants import (
    CALLEE,
    CALLER,
    HYBRID,
    PARTS,
    STRANGER,
    TRUST_DOMAIN,
    X25519,
    Certificates,
    Command,
    Missing,
    Mode,
    Route,
    Side,
)
from tests.bench.roots import PROJECT, Python

MESH = f"""\
trust_domain: {TRUST_DOMAIN}
services:
  {CALLER}: {{}}
  {STRANGER}: {{}}
  {CALLEE}: {{ports: {{%(ports)s}}}}
policy:
  - {{from: {CALLER}, to: {CALLEE}}}
"""

OPENSSL = """\
openssl_conf = settings
[settings]
ssl_conf = modules
[modules]
system_default = groups
[groups]
Groups = %s
"""
"""What makes OpenSSL offer and take one group: the sidecar leaves its groups to the library's defaults, and the library asks
the file that OPENSSL_CONF names."""

_OUTBOUND = {"ok", "client_reset"}
_ENDINGS = {"outbound": _OUTBOUND, "inbound": _OUTBOUND | {"truncated"}}
_BULK_ENDINGS = _ENDINGS["inbound"] | {"app_reset"}
"""How a connection that was let in may end. Loads cut what is open when their time is over, iperf3 at both ends, and the
sidecar at the other end can only see it cut. An answer that is cut on its way to a load is a fault."""


class Sidecar:
    """Measured as it is run: as a process of its own, with its access log."""

    groups = (HYBRID, X25519)
    parts = PARTS

    def __init__(self, name: str, python: Python) -> None:
        self.name = name
        self._python = python

    def missing(self) -> Missing | None:
        return self._python.missing()

    def version_command(self) -> Sequence[str | Path]:
        return (self._python.path, "-m", "sidecar", "--version")

    def version(self, printed: str) -> str:
        return f"{printed.split()[-1]} ({_commit()}) on Python {self._python.version}"

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str, mode: Mode
    ) -> Command:
        ports = ", ".join(f"{route.name}: {route.origin}" for route in routes)
        (directory / "mesh.yaml").write_text(MESH % {"ports": ports})
        (directory / "openssl.cnf").write_text(OPENSSL % group)
        service = CALLER if side == "caller" else CALLEE
        lines = [
            f"service: {service}",
            "mesh: mesh.yaml",
            f"identity: {{files: {{certificate: {certificates.chain(service)}, key: {certificates.key(service)}, "
            f"bundle: {certificates.roots}}}}}",
            "log_format: json",
            "inbound:" if side == "callee" else "outbound:",
        ]
        for route in routes:
            if side == "callee":
                lines.append(
                    f'  - {{port: {route.name}, listen: "127.0.0.1:{route.between}", app: "127.0.0.1:{route.origin}"}}'
                )
            else:
                lines.append(
                    f'  - {{to: "{CALLEE}:{route.name}", listen: "127.0.0.1:{route.entrance}", '
                    f'peers: ["127.0.0.1:{route.towards}"]}}'
                )
        can_keep = any(key.path == "keep" for key in reference.keys("sidecar"))
        lines += ["keep: 0"] if mode == "cold" and can_keep else []
        (directory / "sidecar.yaml").write_text("\n".join(lines) + "\n")
        return Command(
            (self._python.path, "-m", "sidecar", "run", directory / "sidecar.yaml"),
            {"OPENSSL_CONF": str(directory / "openssl.cnf"), "PYTHONPATH": str(PROJECT)},
        )

    def faults(self, log: str, group: str, mode: Mode) -> list[str]:
        """Every connection was let in, with the group that is measured, and ended well; if ``cold``, on a channel that was
        made for it."""
        found = Counter(filter(None, (_fault(text, group, mode) for text in log.splitlines())))
        return [f"{fault} ({count} times)" for fault, count in found.items()]


def _fault(text: str, group: str, mode: Mode) -> str | None:
    """What is wrong with one line of the log."""
    if not text.startswith("{"):
        return f"it wrote {text!r}"
    line = json.loads(text)
    if line["event"] != "connection":
        return None if line["level"] == "info" else f"{line['event']}: {line.get('message')}"
    endings = _BULK_ENDINGS if line["port"] == "bulk" else _ENDINGS[line["direction"]]
    if line["decision"] != "allow" or line["reason"] not in endings:
        return f"a connection of {line['port']} ended with {line['reason']} ({line['decision']})"
    if (str(line["tls_group"]).lower(), line["resumed"]) != (group.lower(), False):
        return f"a connection had the group {line['tls_group']}, resumed: {line['resumed']}"
    if mode == "cold" and line.get("reused"):
        return "a connection was carried by a kept channel"
    return None


def _commit() -> str:
    """The checkout's commit, for the record."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=, modified"],
            cwd=PROJECT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "no checkout"
    return done.stdout.strip()
