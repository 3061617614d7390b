"""What the shop consists of, and what was measured: printed at the end of a run."""

from __future__ import annotations

FIGURES: dict[str, str] = {}
"""What is printed at the end, by name."""

TAKEN: set[int] = set()
"""Ports that something else on this machine serves on every address; found before the shop is started."""

APPS = ("web", "api", "db", "cache", "reporting")
MESH = (*(f"{name}-mesh" for name in APPS), "mesh-ca")
