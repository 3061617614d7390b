"""Keys and secrets: made where they are missing, kept where they are not, by the real ``certs``."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.state import default_state, ensure_state, leftovers, run_certs


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_made_once_and_then_kept(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    assert ensure_state(state, "shop.internal", ["web"]) == [
        f"made a CA for shop.internal in {state / 'ca'}, and its root's key in {state / 'root'}",
        "made the enrolment secret of web",
    ]
    before = contents(state)
    assert {"trust/root.pem", "enrolment/web/secret", "ca/issuing.key", "ca/store.db", "root/root.key"} <= before.keys()
    assert "ca/root.key" not in before, "what the CA's container gets"
    assert before["trust/root.pem"] == before["ca/root.pem"]
    assert ensure_state(state, "shop.internal", ["web"]) == []
    assert contents(state) == before
    assert ensure_state(state, "shop.internal", ["web", "db"]) == ["made the enrolment secret of db"]
    assert contents(state)["enrolment/web/secret"] == before["enrolment/web/secret"]
    for path in (state, state / "enrolment", state / "enrolment/web", state / "sidecars", state / "sidecars/web"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "enrolment/web/secret").stat().st_mode) == 0o600


def test_all_that_are_missing_in_one_go(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    def certs(arguments: Sequence[str]) -> None:
        asked.append(arguments)
        run_certs(arguments)

    ensure_state(tmp_path / "s", "shop.internal", ["db"], certs)
    said = ensure_state(tmp_path / "s", "shop.internal", ["web", "db", "api"], certs)
    assert said == ["made the enrolment secrets of web, api"]
    assert [it[0] for it in asked] == ["init", "enrolment", "enrolment"], "each program's start takes half a second"
    assert len({path.read_bytes() for path in (tmp_path / "s/enrolment").glob("*/secret")}) == 3


def test_secrets_of_an_earlier_version_get_directories_and_stay_what_they_are(tmp_path: Path) -> None:
    """Also if a run was killed in the middle, and of services that are not meshed any more."""
    state = tmp_path / "s"
    ensure_state(state, "shop.internal", ["web", "db"])
    kept = {}
    for name, old in (("web", "web"), ("db", ".moving-db")):
        kept[name] = (state / "enrolment" / name / "secret").read_bytes()
        (state / "enrolment" / name / "secret").rename(state / "aside")
        (state / "enrolment" / name).rmdir()
        (state / "aside").rename(state / "enrolment" / old)
    (said,) = ensure_state(state, "shop.internal", ["web"], nothing)
    assert said.startswith("moved the enrolment secrets of db, web into directories of their own")
    assert {name: (state / "enrolment" / name / "secret").read_bytes() for name in kept} == kept
    assert stat.S_IMODE((state / "enrolment/web").stat().st_mode) == 0o700
    assert sorted(path.name for path in (state / "enrolment").iterdir()) == ["db", "web"]
    assert ensure_state(state, "shop.internal", ["web"], nothing) == []


def nothing(_: Sequence[str]) -> None:
    """A ``certs`` that is never needed."""


def test_a_directory_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    with pytest.raises(UsageError, match="can be read by others"):
        ensure_state(tmp_path / "state", "shop.internal", [], nothing)
    assert contents(tmp_path) == {}


def test_another_mesh_s(tmp_path: Path) -> None:
    ensure_state(tmp_path / "state", "shop.internal", [])
    with pytest.raises(UsageError, match=r"is of the mesh shop\.internal, and this one is other\.internal"):
        ensure_state(tmp_path / "state", "other.internal", [], nothing)


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^--state: "):
        ensure_state(tmp_path / "file" / "state", "shop.internal", [], nothing)


def test_what_certs_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^certs enrolment: .*no CA"):
        run_certs(["enrolment", str(tmp_path / "none"), "web", "--out", str(tmp_path / "x")])
    with pytest.raises(UsageError, match=r"^certs enrolment: .*no CA"):
        run_certs(["enrolment", str(tmp_path / "none"), "web", "--out-dir", str(tmp_path)])
    with pytest.raises(UsageError, match=r"^certs nonsense: No such command 'nonsense'"):
        run_certs(["nonsense"])


def test_the_default_is_by_project_and_place() -> None:
    environ = {"HOME": "/home/me"}
    assert (
        str(default_state(environ, "shop", Path("/x"), "0123456789")) == "/home/me/.local/state/sidecar/shop-01234567"
    )
    assert str(default_state({"XDG_STATE_HOME": "/s"}, "a", Path("/x"), "01234567")) == "/s/sidecar/a-01234567"


def test_the_secret_of_a_sidecar_of_an_earlier_version_stays_where_it_mounts_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ensure_state(state, "shop.internal", ["web", "db"])
    for service in ("web", "db"):
        secret = (state / "enrolment" / service / "secret").rename(state / "enrolment" / "aside")
        secret.with_name(service).rmdir()
        secret.rename(secret.with_name(service))
    (said,) = ensure_state(state, "shop.internal", ["web", "db"], nothing, ["db"])
    assert said.startswith("moved the enrolment secrets of web into")
    assert (state / "enrolment" / "db").is_file()
    ensure_state(state, "shop.internal", ["web", "db"], nothing)
    assert (state / "enrolment" / "db" / "secret").is_file()


def test_what_a_service_that_is_gone_has_left(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert leftovers(state, "shop", ["web"]) == []
    ensure_state(state, "shop.internal", ["web", "db"])
    assert leftovers(state, "shop", {"web": 1, "db": 2, "new": 3}) == []
    (said,) = leftovers(state, "shop", ["web"])
    assert said.startswith(
        "db is gone, and has left containers, networks and keys: `docker compose up -d --remove-orphans && "
    )
    assert "--filter name=^shop_db-)" in said
    assert said.endswith(f"certs revoke {state}/ca db && rm -r {state}/enrolment/db {state}/sidecars/db`")
    shutil.rmtree(state / "enrolment" / "db")
    assert f"rm -r {state}/sidecars/db`" in leftovers(state, "shop", ["web"])[0]
    shutil.rmtree(state / "sidecars" / "db")
    assert leftovers(state, "shop", ["web"]) == []
