"""What a contestant is: a pair of proxies of one make, each a process of its own, one at the caller's side, one at the
callee's.

Each writes its configuration for the same wiring and under the same conditions, which :mod:`tests.bench.proof` then checks
on the running pair. ::

    load ─► entrance [caller's proxy] ══ mTLS 1.3 ══► between [callee's proxy] ─► origin
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Side = Literal["caller", "callee"]
Mode = Literal["run", "cold"]
MODES: tuple[Mode, ...] = ("run", "cold")
"""``run``: a new connection costs what it does where nobody configures otherwise; sessions are resumed, channels are kept.
``cold``: each new connection is a full handshake."""

CIPHER = "TLS_AES_128_GCM_SHA256"
X25519, HYBRID = "X25519", "X25519MLKEM768"

PARTS = ("requests", "connections", "cold", "bulk", "latency", "memory", "apps")
"""What is measured, and can be chosen one by one."""

TRUST_DOMAIN = "mesh.local"
CALLER, CALLEE, STRANGER = "web", "api", "batch"
"""Three services with valid certificates of one CA; the third may not take the place of either other."""

CONDITIONS = (
    f"TLS 1.3 only, {CIPHER}, one key-exchange group configured at both ends",
    "sessions are resumed and channels kept as each does it unconfigured; `cold`: neither, so full handshakes for all",
    "P-256 certificates of one CA (leaf, intermediate; root trusted), client certificate required, and the peer's identity "
    "checked at both ends",
    "one process with one worker thread a proxy, one access-log line a connection into a file, loopback",
)


@dataclass(frozen=True, slots=True)
class Route:
    """One port's way. ``towards`` is where the caller's proxy connects: ``between``, but for a tap in the middle."""

    name: str
    entrance: int
    towards: int
    between: int
    origin: int


@dataclass(frozen=True, slots=True)
class Command:
    """How a proxy is started, in its own directory. ``variables`` are added to the environment."""

    arguments: Sequence[str | Path]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a contestant cannot take part: what there is not, and Debian's package, if it has one, that brings it."""

    what: str
    package: str | None = None


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of the services by name. ``both`` has chain and key in one file."""

    directory: Path
    fingerprints: Mapping[str, str]

    def chain(self, service: str) -> Path:
        return self.directory / service / "certificate.pem"

    def key(self, service: str) -> Path:
        return self.directory / service / "key.pem"

    def both(self, service: str) -> Path:
        return self.directory / service / "both.pem"

    @property
    def roots(self) -> Path:
        return self.directory / CALLER / "bundle.pem"


class Contestant(Protocol):
    """One make of proxy."""

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> Sequence[str]:
        """The key-exchange groups that it can be measured with."""

    @property
    def parts(self) -> Collection[str]:
        """The parts of the comparison that it takes part in."""

    def missing(self) -> Missing | None:
        """What keeps it from taking part, if anything does."""

    def version_command(self) -> Sequence[str | Path]:
        """Prints its version."""

    def version(self, printed: str) -> str:
        """The version out of what that printed."""

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str, mode: Mode
    ) -> Command:
        """Writes the configuration of one side into its directory; paths in it are absolute."""

    def faults(self, log: str, group: str, mode: Mode) -> list[str]:
        """What is wrong in the log that it wrote under load; nothing where a log does not tell."""


def spiffe(service: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{service}"


def find_program(name: str) -> str | None:
    """Debian keeps daemons where only root's PATH looks, and PostgreSQL's where none does."""
    postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    places = ["/usr/local/sbin", "/usr/sbin", "/sbin", *map(str, postgresql)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
