"""The places of ``sidecar inject``: what it makes is where the commands look for it."""

from __future__ import annotations

from pathlib import Path

from certs.authority.authority import ISSUING, ROOT, ROOT_KEY
from certs.protocol.mesh_state import MeshState
from sidecar.inject.state import ensure_state


def test_what_inject_makes_is_there(tmp_path: Path) -> None:
    kept = MeshState(tmp_path / "state")
    ensure_state(kept.path, "shop.internal", ["web"])
    assert (kept.ca / ISSUING).exists()
    assert (kept.root / ROOT_KEY).exists()
    assert (kept.trust / ROOT).exists()
    assert kept.secret("web").exists()
    assert (kept.sidecars / "web").is_dir()
