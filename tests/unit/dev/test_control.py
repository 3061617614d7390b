"""Where a running `sidecar dev` is asked: a place for this user alone, and what it tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.dev import control
from sidecar.dev.plan import plan
from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import parse_mesh
from tests.beds.certificates import Authority, key_pair

MESH = """\
trust_domain: shop.internal
services:
  web: {dev: {calls: {"db:sql": 18081}}}
  db: {ports: {sql: 5432}}
"""


def test_each_file_has_a_place_of_its_own_which_is_found_again(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    one, other = (control.socket_path(tmp_path / name, environ) for name in ("a.yaml", "b.yaml"))
    assert one != other
    assert one == control.socket_path(tmp_path / "x" / ".." / "a.yaml", environ)
    assert one.parent.stat().st_mode & 0o777 == 0o700


def test_a_place_that_others_can_use_is_refused(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    control.socket_path(tmp_path / "a.yaml", environ).parent.chmod(0o755)
    with pytest.raises(UsageError, match="this user alone"):
        control.socket_path(tmp_path / "a.yaml", environ)


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    directory = control.socket_path(tmp_path / "a.yaml", environ).parent
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="this user alone"):
        control.socket_path(tmp_path / "a.yaml", environ)


def test_a_place_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        control.socket_path(tmp_path / "a.yaml", {"XDG_RUNTIME_DIR": str(tmp_path / "none")})


def test_what_it_tells_holds_the_probe_s_key_and_no_other() -> None:
    mesh = parse_mesh(MESH, "mesh.yaml")
    keys = key_pair(Authority().leaf("mesh/probe"))
    told = control.describe(mesh, plan(mesh, utc_now()), {"now": keys})
    assert told["calls"] == [{"from": "web", "to": "db:sql", "allowed": False}]
    assert told["listeners"].keys() == told["apps"].keys() == {"db:sql"}
    assert str(told).count("PRIVATE KEY") == 2  # its beginning and its end
    assert told["probe"].keys() == {"now"}
