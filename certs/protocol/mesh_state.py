"""Where ``sidecar inject`` keeps the keys and secrets of an application. Pure: paths only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECRET = "secret"  # noqa: S105  # the name of its file


@dataclass(frozen=True, slots=True)
class MeshState:
    """One such directory. ``ca`` is in the CA's container; ``root`` has the root's key and is in none. A sidecar's container
    has ``trust``, with the pinned root, and its own of ``enrolment`` and ``sidecars``."""

    path: Path

    @property
    def ca(self) -> Path:
        return self.path / "ca"

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def trust(self) -> Path:
        return self.path / "trust"

    @property
    def enrolment(self) -> Path:
        return self.path / "enrolment"

    @property
    def sidecars(self) -> Path:
        return self.path / "sidecars"

    def secret(self, service: str) -> Path:
        """The file with a service's enrolment secret, alone in its directory."""
        return self.enrolment / service / SECRET
