"""The sidecar of this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.bench.contestants import (
    CALLEE,
    CALLER,
    HYBRID,
    STRANGER,
    TRUST_DOMAIN,
    X25519,
    Certificates,
    Command,
    Missing,
    Route,
    Side,
)

ROOT = Path(__file__).parents[2]

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

_ANY = {"ok", "client_reset", "app_reset", "truncated"}
_ENDINGS = {
    ("outbound", "http"): {"ok", "client_reset"},
    ("inbound", "http"): {"ok", "client_reset", "truncated"},
    ("outbound", "bulk"): _ANY,
    ("inbound", "bulk"): _ANY,
}
"""How a connection that was let in may end. wrk and iperf3 cut what is open when their time is over, iperf3 at both ends,
and the sidecar at the other end can only see it cut. An answer that is cut on its way to wrk is a fault."""


class Sidecar:
    """Measured as it is run: as a process of its own, with its access log."""

    name = "sidecar"
    groups = (X25519, HYBRID)

    def missing(self) -> Missing | None:
        return None

    def version_command(self) -> Sequence[str | Path]:
        return (sys.executable, "-m", "sidecar", "--version")

    def version(self, printed: str) -> str:
        return f"{printed.split()[-1]} ({_commit()})"

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str
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
        (directory / "sidecar.yaml").write_text("\n".join(lines) + "\n")
        return Command(
            (sys.executable, "-m", "sidecar", "run", directory / "sidecar.yaml"),
            {"OPENSSL_CONF": str(directory / "openssl.cnf"), "PYTHONPATH": str(ROOT)},
        )

    def faults(self, log: str, group: str) -> list[str]:
        """Every connection was let in, with the group that is measured and a full handshake, and ended well."""
        found = Counter(filter(None, (_fault(text, group) for text in log.splitlines())))
        return [f"{fault} ({count} times)" for fault, count in found.items()]


def _fault(text: str, group: str) -> str | None:
    """What is wrong with one line of the log."""
    if not text.startswith("{"):
        return f"it wrote {text!r}"
    line = json.loads(text)
    if line["event"] != "connection":
        return None if line["level"] == "info" else f"{line['event']}: {line.get('message')}"
    if line["decision"] != "allow" or line["reason"] not in _ENDINGS[line["direction"], line["port"]]:
        return f"a connection of {line['port']} ended with {line['reason']} ({line['decision']})"
    if (str(line["tls_group"]).lower(), line["resumed"]) != (group.lower(), False):
        return f"a connection had the group {line['tls_group']}, resumed: {line['resumed']}"
    return None


def _commit() -> str:
    """The checkout's commit, for the record."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=, modified"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "no checkout"
    return done.stdout.strip()
