"""``certs rotate-root``: its stages as people see them, who is waited for, and that it goes on wherever it was stopped."""

from __future__ import annotations

import json
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from certs import authority, rotation, standing
from certs.authority import load, load_root
from certs.cli import options, rotate
from certs.rotation import Rotation, Rotator
from certs.standing import Follower
from certs.store import Store, file_url
from certs.trust import Bundle, digest, read_bundle
from tests.certificates import ec_key
from tests.commands import everything, ran, refused, run
from tests.integration.processes import CERTS, running

CA = Path("ca")
WEB = "spiffe://shop.internal/web"
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _with_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE", "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    ran("init", "ca", "--trust-domain", "shop.internal")


def roots() -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((CA / "root.pem").read_bytes())


def events() -> list[str]:
    """The stages that the audit log tells of."""
    entries = [json.loads(line) for line in ran("audit", "ca", "--json").splitlines()]
    return [entry["detail"]["stage"] for entry in entries if entry["event"] == "rotation"]


def follow(
    bundle: int = 0, *, root: str = "ab" * 32, service: str = "web", until: timedelta = timedelta(hours=1)
) -> None:
    """A sidecar tells the CA what it has."""
    now = options.now()
    instance = service.encode().hex().ljust(32, "0")[:32]
    with options.open_store(CA, None) as store:
        follower = Follower(instance, f"spiffe://shop.internal/{service}", bundle, root, now + until, now)
        store.write(lambda transaction: standing.seen(transaction, follower))


def catch_up() -> None:
    """The sidecar does whatever is asked of it."""
    with options.open_store(CA, None) as store:
        found = rotation.current(store)
    assert found is not None
    follow(found.bundle, root=found.new)


def newest() -> Bundle:
    document = (CA / "bundle.json").read_bytes()
    return read_bundle(document, "shop.internal", frozenset(map(digest, roots())), options.now())


# -- nobody follows, or nobody is waited for ---------------------------------------------------------------------------


def test_with_nobody_following_each_stage_is_announced_and_done() -> None:
    (old,), old_key = roots(), (CA / "root.key").read_bytes()
    done = run("rotate-root", "ca", "--force")
    assert done.exit_code == 0
    (new,) = roots()
    assert new != old
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "prepare", "distribute", "  all have it", "activate", "  all have it", "retire", "  all have it", "done",
        "Sidecars that pin root.pem or root_sha256 in their files need no change while they keep their state_dir; give "
        "new ones the new root.",
    ]  # fmt: skip
    assert done.stderr == "  WARNING: connections that were verified by the old root are cut now\n"
    assert events() == ["distribute", "activate", "settle", "retire", "done"]

    # What is left issues under the new root, knows no other, and signs for itself.
    loaded = load(CA, options.now())
    assert (loaded.root, loaded.roots) == (new, (new,))
    assert newest().anchors == {digest(new)}
    assert load_root(CA, None, None).certificate == new
    assert not (CA / "next").exists()
    # The old root's key is out of the way, for somebody to destroy; and nobody else may read it.
    (retired,) = (CA / "retired").iterdir()
    assert retired.read_bytes() == old_key
    assert stat.S_IMODE(retired.stat().st_mode) == 0o600


def test_it_can_be_done_twice_and_each_time_the_next_root_is_another() -> None:
    seen = {digest(roots()[0])}
    for _ in range(2):
        ran("rotate-root", "ca", "--force")
        seen.add(digest(roots()[0]))
    assert len(seen) == 3
    assert len(list((CA / "retired").iterdir())) == 2
    assert ran("audit", "ca", "--verify")


def test_a_token_of_afterwards_pins_the_new_root_and_one_of_before_the_old() -> None:
    before = ran("token", "ca", "web").strip().rpartition(".")[2]
    ran("rotate-root", "ca", "--force")
    after = ran("token", "ca", "web").strip().rpartition(".")[2]
    assert after == digest(roots()[0]).hex() != before


def test_by_force_a_laggard_is_named_with_a_clear_warning_and_not_waited_for() -> None:
    follow()
    follow(service="api", until=timedelta(minutes=9))
    done = run("rotate-root", "ca", "--force")
    assert done.exit_code == 0
    assert done.stderr.count("WARNING: not waiting for 2, which lose trust now, until they have caught up:") == 3
    assert done.stderr.count(f"{WEB} (instance 776562000000, last seen ") == 3
    assert "has bundle 0; its certificate ends at " in done.stderr
    assert done.stderr.count("spiffe://shop.internal/api (") == 3
    assert "all have it" not in done.stdout


def test_a_sidecar_whose_certificate_has_ended_is_not_waited_for_at_all() -> None:
    follow(until=timedelta(minutes=-1))
    done = run("rotate-root", "ca", "--force")
    assert "not waiting" not in done.stderr
    assert done.stdout.count("all have it") == 3


# -- where its keys are ------------------------------------------------------------------------------------------------


def test_the_new_root_s_key_goes_where_it_is_told_and_is_encrypted_if_asked() -> None:
    (CA / "root.key").rename("old.key")
    ran(
        "rotate-root", "ca", "--force", "--root-key", "old.key", "--root-key-out", "safe", "--encrypt",
        variables={"CERTS_NEW_PASSPHRASE": "correct horse"},
    )  # fmt: skip
    assert not (CA / "root.key").exists()
    key = Path("safe/root.key")
    assert b"ENCRYPTED" in key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert load_root(CA, key, b"correct horse").certificate == roots()[0]
    # And by that key it can be done again.
    ran(
        "rotate-root", "ca", "--force", "--root-key", str(key), "--root-key-out", "safe",
        variables={"CERTS_ROOT_PASSPHRASE": "correct horse"},
    )  # fmt: skip
    assert load_root(CA, key, None).certificate == roots()[0]


def _absent() -> None:
    (CA / "root.key").unlink()


def _of_another() -> None:
    ran("init", "other", "--trust-domain", "shop.internal")
    Path("other/root.key").replace(CA / "root.key")


def _garbage() -> None:
    (CA / "root.key").write_bytes(b"garbage")


def _another_key() -> None:
    (CA / "root.key").write_bytes(authority.key_pem(ec_key()))


def _for_everybody() -> None:
    (CA / "root.key").chmod(0o644)


def _encrypted() -> None:
    key = load_root(CA, None, None).key
    (CA / "root.key").write_bytes(authority.key_pem(key, b"correct horse"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_absent, "ca/root.key is not there: the root's key is needed for this; say where it is: --root-key FILE"),
        (_of_another, "ca/root.key is the key of no root in ca/root.pem"),
        (_another_key, "ca/root.key is the key of no root in ca/root.pem"),
        (_garbage, "ca/root.key is no private key in PEM"),
        (_for_everybody, "ca/root.key can be read or written by others: chmod 600"),
        (_encrypted, "ca/root.key cannot be read with this passphrase"),
    ],
)
@pytest.mark.parametrize("command", ["rotate-root", "renew-issuing"])
def test_without_the_root_s_own_key_nothing_is_begun(command: str, spoil: Callable[[], None], why: str) -> None:
    spoil()
    before = everything(CA)
    force = ["--force"] if command == "rotate-root" else ["--distrust"]
    assert why in refused(command, "ca", *force, variables={"CERTS_ROOT_PASSPHRASE": "wrong horse"})
    assert everything(CA) == before
    assert events() == []


def test_the_store_of_another_ca_is_told_so_before_anybody_trusts_a_new_root() -> None:
    ran("init", "other", "--trust-domain", "shop.internal")
    (root,) = roots()
    document = (CA / "bundle.json").read_bytes()
    told = refused_after("prepare", "rotate-root", "ca", "--force", "--store", "sqlite:///other/store.db")
    assert "is it the store of another CA?" in told
    assert roots() == [root]
    assert (CA / "bundle.json").read_bytes() == document


def test_an_empty_store_is_told_to_be_so() -> None:
    (root,) = roots()
    told = refused_after("prepare", "rotate-root", "ca", "--force", "--store", "sqlite:///new.db")
    assert "the store has no trust bundle yet: start certs serve once" in told
    assert roots() == [root]


def refused_after(stage: str, *arguments: str) -> str:
    """The sentence of a command that refuses once it has announced a stage."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [stage]
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# -- waiting, in virtual time ------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> datetime:
    """From here on the commands' time of day is trio's virtual clock's."""
    began, zero = options.now(), autojump_clock.current_time()

    def now() -> datetime:
        return (began + timedelta(seconds=autojump_clock.current_time() - zero)).replace(microsecond=0)

    monkeypatch.setattr(rotate, "now", now)
    monkeypatch.setattr(options, "now", now)
    return began


@pytest.fixture
def store(start: datetime) -> Iterator[Store]:
    opened = Store(file_url(CA / "store.db"), clock=lambda: int(options.now().timestamp()))
    yield opened
    opened.close()


def rotator(store: Store) -> Rotator:
    return Rotator(CA, store, load_root(CA, None, None), "shop.internal")


async def go(store: Store, found: Rotation | None = None, *, max_age: timedelta = DAY) -> None:
    await rotate._rotate(rotator(store), found, max_age, force=False)


async def test_each_stage_waits_for_the_laggard_and_names_it_every_ten_seconds(
    store: Store, start: datetime, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    follow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(go, store)
        await trio.sleep(25)
        said = capsys.readouterr().out
        assert said.startswith("prepare: a new root is made; nobody knows it yet\ndistribute: bundle ")
        assert said.count("  waiting for 1; whoever has not come by its certificate's end is not waited for:\n") == 3
        assert said.count(f"    {WEB} (instance 776562000000, last seen {start:%FT%TZ}, has bundle 0; its") == 3
        assert "activate" not in said

        catch_up()
        await trio.sleep(1)
        assert capsys.readouterr().out.startswith("  all have it\nactivate: certificates come from the new root")

        with options.open_store(CA, None) as other:
            found = rotation.current(other)
        assert found is not None
        follow(found.bundle, root=found.old)  # it has the bundle, and no new certificate yet
        await trio.sleep(15)
        assert "its certificate is under the old root" in capsys.readouterr().out

        catch_up()
        await trio.sleep(1)
        assert "settle: until " in capsys.readouterr().out
        nursery.cancel_scope.cancel()


async def test_the_old_root_is_kept_until_the_oldest_connection_has_ended(
    store: Store, start: datetime, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    began = trio.current_time()
    await go(store, max_age=timedelta(hours=3))
    assert 3 * 3600 - 1 <= trio.current_time() - began <= 3 * 3600 + 1
    said = capsys.readouterr().out
    assert f"settle: until {start + timedelta(hours=3):%FT%TZ} connections may live that the old root verified" in said
    assert said.endswith("  all have it\n")
    assert newest_in(store).anchors == {digest(rotator(store).new_root().certificate)}


def newest_in(store: Store) -> Bundle:
    document = store.read(standing.newest_bundle)
    assert document is not None
    return read_bundle(document.encode(), "shop.internal", frozenset(map(digest, roots())), options.now())


async def test_a_laggard_is_waited_for_until_its_certificate_ends_and_no_longer(
    store: Store, start: datetime, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    follow(until=timedelta(minutes=10))
    began = trio.current_time()
    await go(store, max_age=timedelta(seconds=1))
    assert 600 <= trio.current_time() - began <= 610
    assert "retire: the old root is trusted no longer" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["distribute", "activate", "settle", "retire"])
async def test_it_goes_on_from_the_stage_in_which_it_was_stopped(
    store: Store,
    start: datetime,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    stopped = rotator(store)
    stopped.prepare(options.now())
    new = stopped.new_root().certificate
    found = stopped.distribute(options.now())
    if stage != "distribute":
        found = stopped.activate(options.now())
    if stage in ("settle", "retire"):
        found = stopped.settle(found)
    if stage == "retire":
        found = stopped.retire(options.now())
    assert found.stage == stage

    await go(store, rotation.current(store), max_age=timedelta(seconds=1))
    said = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    stages = ["distribute", "activate", "settle", "retire"]
    assert [word for word in said if word in stages] == stages[stages.index(stage) :]
    assert "prepare" not in said
    assert newest_in(store).anchors == {digest(new)}


async def test_what_was_prepared_and_told_to_nobody_is_gone_on_with(
    store: Store, start: datetime, autojump_clock: trio.testing.MockClock
) -> None:
    stopped = rotator(store)
    stopped.prepare(options.now())
    new = stopped.new_root().certificate
    await go(store, max_age=timedelta(seconds=1))
    assert newest_in(store).anchors == {digest(new)}


async def test_a_store_that_is_gone_for_a_while_is_waited_for(
    store: Store, start: datetime, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    follow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(go, store)
        await trio.sleep(1)
        store.write(lambda transaction: transaction.connection.exec_driver_sql("ALTER TABLE followers RENAME TO gone"))
        await trio.sleep(15)
        assert "cannot be read: no such table: followers; trying again" in capsys.readouterr().err
        store.write(lambda transaction: transaction.connection.exec_driver_sql("ALTER TABLE gone RENAME TO followers"))
        catch_up()
        await trio.sleep(15)
        assert "activate: " in capsys.readouterr().out
        nursery.cancel_scope.cancel()


def test_what_a_rotation_left_that_was_killed_in_its_last_moment_is_cleaned_up() -> None:
    with options.open_store(CA, None) as store:
        one = rotator(store)
        one.prepare(options.now())
        one.distribute(options.now())
        one.settle(one.activate(options.now()))
        one.retire(options.now())
        shutil.copytree(CA / "next", "kept")
        one.finish(CA, None)
    Path("kept").rename(CA / "next")
    (root,) = roots()
    assert ran("rotate-root", "ca") == "the last rotation is complete; what it left is cleaned up\n"
    assert not (CA / "next").exists()
    assert roots() == [root]


def test_killed_once_the_new_root_is_alone_it_ends_when_the_same_command_is_run_again() -> None:
    (CA / "root.key").rename("offline.key")
    with options.open_store(CA, None) as store:
        one = Rotator(CA, store, load_root(CA, Path("offline.key"), None), "shop.internal")
        one.prepare(options.now())
        new = one.new_root().certificate
        one.distribute(options.now())
        one.settle(one.activate(options.now()))
        one.retire(options.now())
    before = everything(CA)
    ran("init", "other", "--trust-domain", "shop.internal")
    again = ["rotate-root", "ca", "--force", "--root-key-out", "safe", "--root-key"]
    assert "is the key of no root in ca/root.pem" in refused(*again, "other/root.key")
    assert everything(CA) == before

    (CA / "root.pem").write_bytes(authority.pem(new))  # the last file that it changes
    assert ran(*again, "offline.key").splitlines()[0].startswith("retire: ")
    assert load_root(CA, Path("safe/root.key"), None).certificate == new
    assert not (CA / "next").exists()
    assert "is the key of no root in ca/root.pem" in refused(*again, "offline.key")


# -- interrupted, as a process -----------------------------------------------------------------------------------------


async def test_interrupted_while_a_sidecar_never_acknowledges_and_run_again_when_it_does() -> None:
    follow()
    (old,) = roots()
    async with running(*CERTS, "rotate-root", "ca") as program:
        await program.line("waiting for 1")
        laggard = await program.line(WEB)
        assert "has bundle 0; its certificate ends at " in laggard
        program.signal(signal.SIGINT)
        assert await program.ended() == 1
        assert program.errors.strip() == "Aborted!"
    both = roots()
    assert both[0] == old
    assert len(both) == 2
    assert load(CA, options.now()).root == old  # it issues under the old root still

    async with running(*CERTS, "rotate-root", "ca", "--max-age", "1s") as program:
        assert (await program.line("waiting for 1")) != ""
        assert not any("prepare" in line for line in program.lines)
        catch_up()
        await program.line("activate: ")
        catch_up()
        await program.line("retire: ")
        catch_up()
        assert await program.ended() == 0, program.text
        assert program.errors == ""
    assert roots() == [both[1]]
    assert events() == ["distribute", "activate", "settle", "retire", "done"]


async def test_killed_while_it_waits_it_goes_on_as_well() -> None:
    follow()
    async with running(*CERTS, "rotate-root", "ca") as program:
        await program.line("waiting for 1")
        program.signal(signal.SIGKILL)
        assert await program.ended() == -signal.SIGKILL
    (_, new) = roots()
    async with running(*CERTS, "rotate-root", "ca", "--force") as program:
        assert await program.ended() == 0, program.text
        assert not any("prepare" in line for line in program.lines)
    assert roots() == [new]
    assert datetime.now(UTC) < load(CA, options.now()).issuer.certificate.not_valid_after_utc
