"""``certs rotate-root`` as people run it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from certs.authority import authority
from certs.cli import rotate as command
from certs.cli.access import replace_secret
from certs.cli.commands import main
from certs.cli.options import now
from certs.protocol import documents, enrolment
from certs.protocol.mesh_state import MeshState
from certs.registrar import bundles, followers
from certs.registrar.followers import Follower
from certs.registrar.rotation import Rotator
from certs.store.store import Store, enrolment_credentials, file_url, opened
from sidecar.identity.keys import certificate_digest
from sidecar.inject.state import ensure_state
from tests.beds.certificates import DAY
from tests.beds.clock import Clock
from tests.beds.store import API, DOMAIN

OLD, NEW = "old passphrase", "new passphrase"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE", "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    # Two seconds ahead of the store's, so that a max-age of one second is over when it begins.
    monkeypatch.setattr(command, "now", lambda: now() + timedelta(seconds=2))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="certs")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def root() -> bytes:
    (one,) = authority.load(Path("ca"), now()).roots
    return certificate_digest(one)


def newest(store: Store | None = None) -> documents.Bundle:
    with opened(file_url(Path("ca/store.db")), clock=Clock().seconds) as own:
        document = (store or own).read(bundles.newest_bundle)
    return documents.read_kept_bundle(str(document).encode(), DOMAIN, now())


def init(*options: str) -> bytes:
    assert run("init", "ca", "--trust-domain", DOMAIN, *options).exit_code == 0
    return root()


def test_without_any_sidecar_it_waits_for_nobody() -> None:
    old = init()
    result = run("rotate-root", "ca", "--max-age", "1s")
    assert (result.exit_code, result.stderr) == (0, "")
    words = [line.partition(":")[0] for line in result.stdout.splitlines() if ":" in line]
    assert words == ["prepare", "distribute", "activate", "retire", "done"]
    assert "ca/root.pem is the new root, and every sidecar refuses the old one" in result.stdout
    assert newest().anchors == {root()} != {old}
    assert run("issue", "ca", "web", "--out", "web").exit_code == 0
    assert run("inspect", "web/certificate.pem", "web/bundle.pem").exit_code == 0
    assert run("audit", "ca", "--verify").exit_code == 0


def test_and_again() -> None:
    roots = {init()}
    for _ in range(2):
        assert run("rotate-root", "ca", "--max-age", "1s").exit_code == 0
        roots.add(root())
    assert len(roots) == 3
    assert len(list(Path("ca/retired").iterdir())) == 2


def test_by_force_whoever_is_left_behind_is_named() -> None:
    init()
    with opened(file_url(Path("ca/store.db")), clock=Clock().seconds) as store:
        late = Follower("ab" * 16, str(API), 1, "0" * 64, now() + DAY, now())
        store.write(lambda transaction: followers.save(transaction, late))
    run("issue", "ca", "db", "--out", "db")
    result = run("rotate-root", "ca", "--force")
    assert result.exit_code == 0
    assert result.stderr.count("WARNING: not waiting for 2, which lose trust now, until they have caught up") == 3
    assert f"{API} (instance {'ab' * 6}" in result.stderr
    assert "issued by hand: issue it again" in result.stderr
    assert "WARNING: connections that were verified by the old root are cut now" in result.stderr


def test_one_that_was_interrupted_goes_on_from_where_it_stood() -> None:
    init()
    with opened(file_url(Path("ca/store.db")), clock=Clock().seconds) as store:
        rotator = Rotator(Path("ca"), store, authority.load_root(Path("ca"), None, None), DOMAIN)
        rotator.prepare(now())
        found = rotator.distribute(now())
    result = run("rotate-root", "ca", "--max-age", "1s")
    assert result.exit_code == 0
    assert "prepare" not in result.stdout
    assert f"distribute: bundle {found.bundle} has both roots" in result.stdout
    assert root().hex() == found.new


def test_the_keys_in_a_safe_each_with_its_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", OLD)
    old = init("--root-key-out", "safe", "--encrypt")
    words = ["rotate-root", "ca", "--max-age", "1s", "--root-key-out", "safe", "--encrypt"]
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", NEW)

    without = run(*words)
    assert without.exit_code == 2
    assert "give its place: --root-key FILE" in without.stderr
    monkeypatch.setenv("CERTS_ROOT_PASSPHRASE", "wrong passphrase")
    wrong = run(*words, "--root-key", "safe/root.key")
    assert (wrong.exit_code, wrong.stderr) == (2, "error: safe/root.key cannot be read with this passphrase\n")
    assert (root(), Path("ca/next").exists()) == (old, False), "and nothing was begun"

    monkeypatch.setenv("CERTS_ROOT_PASSPHRASE", OLD)
    right = run(*words, "--root-key", "safe/root.key")
    assert right.exit_code == 0
    assert OLD not in right.output
    assert NEW not in right.output
    assert root() != old
    assert not Path("ca/root.key").exists()
    assert (
        certificate_digest(authority.load_root(Path("ca"), Path("safe/root.key"), NEW.encode()).certificate) == root()
    )
    assert [path.name for path in Path("safe/retired").iterdir()] == [f"root-{old.hex()[:16]}.key"]


@pytest.mark.parametrize("stage", ["distribute", "activate", "finish"])
@pytest.mark.parametrize("again", [[], ["--encrypt"]])
def test_the_new_key_is_encrypted_from_its_first_moment_also_for_the_run_that_resumes(
    monkeypatch: pytest.MonkeyPatch, stage: str, again: list[str]
) -> None:
    old = init()
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", NEW)
    words = ("rotate-root", "ca", "--max-age", "1s")
    with monkeypatch.context() as patch:

        def killed(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(Rotator, stage, killed)
        assert CliRunner().invoke(main, [*words, "--encrypt"]).exit_code != 0
    assert b"ENCRYPTED" in Path("ca/next/root.key").read_bytes()
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", "not the passphrase")
    wrong = run(*words, *again)
    assert wrong.exit_code == 2
    assert "ca/next/root.key cannot be read with this passphrase" in wrong.stderr
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", NEW)
    assert run(*words, *again).exit_code == 0
    assert root() != old
    assert authority.load_root(Path("ca"), None, NEW.encode())


def test_a_key_that_was_prepared_without_a_passphrase_gets_it_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the version before."""
    init()
    with opened(file_url(Path("ca/store.db")), clock=Clock().seconds) as store:
        Rotator(Path("ca"), store, authority.load_root(Path("ca"), None, None), DOMAIN).prepare(now())
        Rotator(Path("ca"), store, authority.load_root(Path("ca"), None, None), DOMAIN).distribute(now())
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", NEW)
    assert run("rotate-root", "ca", "--max-age", "1s", "--encrypt").exit_code == 0
    assert authority.load_root(Path("ca"), None, NEW.encode())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none"], "none holds no CA"),
        (["ca", "--max-age", "soon"], "--max-age: 'soon' is not a duration"),
        (["ca", "--root-key", "none.key"], "none.key does not exist"),
        (["ca", "--root-key", "ca/issuing.key"], "is not the key of any root"),
    ],
)
def test_mistakes_change_nothing(words: list[str], told: str) -> None:
    old = init()
    before = newest()
    result = run("rotate-root", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert (root(), newest()) == (old, before)
    assert not Path("ca/next").exists()


# -- the state of `sidecar inject` -------------------------------------------------------------------------------------


def in_here(arguments: Sequence[str]) -> None:
    """``certs`` for ``inject``, in this process."""
    assert run(*arguments).exit_code == 0


def secrets_of(state: MeshState) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in state.enrolment.glob("*/secret")}


def good_secrets(state: MeshState) -> set[str]:
    """The services whose file has a secret with which they can enrol."""
    with opened(file_url(state.ca / "store.db"), clock=Clock().seconds) as store:
        credentials = sa.select(enrolment_credentials).where(enrolment_credentials.c.ended_at.is_(None))
        good = {row.hash for row in store.read(lambda connection: connection.execute(credentials).all())}
    return {name for name, text in secrets_of(state).items() if enrolment.stored(enrolment.parse(text.strip())) in good}


def test_the_state_of_inject_is_renewed_as_a_whole() -> None:
    """The root that new sidecars pin, and the secrets, which are for one root; no key is ever in the CA's container."""
    state = MeshState(Path("state"))
    ensure_state(state.path, DOMAIN, ["web", "db", "bad"], in_here)
    run("revoke", str(state.ca), "bad")
    before, pinned = secrets_of(state), (state.trust / "root.pem").read_bytes()
    done = run("rotate-root", "--state", str(state.path), "--max-age", "1s")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "nothing is left to be done" in done.stdout
    assert (state.trust / "root.pem").read_bytes() == (state.ca / "root.pem").read_bytes() != pinned
    assert authority.load_root(state.ca, state.root / "root.key", None)
    assert not list(state.ca.rglob("root.key"))
    after = secrets_of(state)
    assert {name for name in after if after[name] != before[name]} == {"web", "db"}
    assert good_secrets(state) == {"web", "db"}, "who was revoked does not come back by this"
    new = certificate_digest(authority.load_root(state.ca, state.root / "root.key", None).certificate)
    assert {enrolment.parse(after[name].strip()).root for name in ("web", "db")} == {new}
    with opened(file_url(state.ca / "store.db"), clock=Clock().seconds) as store:
        count = sa.select(sa.func.count()).where(enrolment_credentials.c.ended_at.is_(None))
        assert store.read(lambda connection: connection.execute(count).scalar_one()) == 2, "old secrets ended"


@pytest.mark.parametrize("interrupted", ["before the secrets", "among them"])
def test_one_that_was_interrupted_at_the_end_renews_the_rest(interrupted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = MeshState(Path("state"))
    ensure_state(state.path, DOMAIN, ["web", "db"], in_here)
    pinned, real = (state.trust / "root.pem").read_bytes(), replace_secret

    def stop(*arguments: Any) -> None:
        if interrupted == "among them" and arguments[1].service == "db":
            real(*arguments)
            return
        raise KeyboardInterrupt

    words = ("rotate-root", "--state", "state", "--max-age", "1s")
    with monkeypatch.context() as patch:
        patch.setattr(command, "replace_secret", stop)
        CliRunner().invoke(main, words, prog_name="certs")
    done = run(*words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert (state.trust / "root.pem").read_bytes() != pinned
    assert good_secrets(state) == {"web", "db"}
    assert not list(Path("state").rglob("next*"))


@pytest.mark.parametrize("words", [("ca",), ("--root-key", "x"), ("--root-key-out", "x")])
def test_a_state_has_its_own_places(words: tuple[str, ...]) -> None:
    ensure_state(Path("state"), DOMAIN, ["web"], in_here)
    done = run("rotate-root", *words, "--state", "state")
    assert (done.exit_code, "has a place for the CA and its keys" in done.stderr) == (2, True)


def test_a_state_of_an_earlier_version_is_for_inject_first() -> None:
    ensure_state(Path("state"), DOMAIN, ["web"], in_here)
    Path("state/enrolment/old").write_text("")
    done = run("rotate-root", "--state", "state")
    assert (done.exit_code, "run `sidecar inject` first" in done.stderr) == (2, True)
