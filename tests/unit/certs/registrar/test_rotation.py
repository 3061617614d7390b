"""A new root for the old one: every stage, who is waited for, and what is left when it is killed anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner

from certs.authority import authority
from certs.cli import ca, options
from certs.cli import rotate as command
from certs.cli.commands import main
from certs.cli.options import now
from certs.protocol import documents
from certs.protocol.documents import Bundle
from certs.registrar import bundles, followers, registrar, revocations, rotation
from certs.registrar.followers import Follower
from certs.registrar.rotation import Laggard, Rotation, Rotator
from certs.store import store
from certs.store.store import Store, StoreUnavailableError, audit_entries, file_url
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from tests.beds.certificates import DAY, HOUR
from tests.beds.clock import NOW, Clock
from tests.beds.patience import PATIENCE
from tests.beds.store import API, DOMAIN


@pytest.fixture(autouse=True)
def it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the commands too: these tests may take longer than certificates are dated back."""
    for module in (command, options, ca):
        monkeypatch.setattr(module, "now", lambda: NOW)


def start(directory: Path, **options: Any) -> None:
    """A new CA, as ``certs init`` makes it."""
    made = authority.init(directory, DOMAIN, NOW, **options)
    document = authority.bundle_document(directory)
    bundle = bundles.own_bundle(document.decode(), DOMAIN, made.roots, NOW)
    with store.opened(file_url(directory / "store.db"), clock=Clock().seconds) as kept:
        kept.write(lambda transaction: bundles.publish(transaction, bundle, document))


@dataclass
class Stage:
    """A rotation under way, in a directory of its own."""

    directory: Path
    store: Store
    rotator: Rotator

    def newest(self) -> Bundle:
        """As a CA that serves reads it: by its directory's roots."""
        return read_newest(self.directory, self.store)

    def distributed(self) -> Rotation:
        self.rotator.prepare(NOW)
        return self.rotator.distribute(NOW)

    def activated(self) -> Rotation:
        self.distributed()
        return self.rotator.activate(NOW)

    def retired(self) -> Rotation:
        self.rotator.settle(self.activated())
        return self.rotator.retire(NOW)

    def seen(self, **what: Any) -> Follower:
        """A sidecar asks."""
        one = replace(Follower("a" * 32, str(API), 0, "0" * 64, NOW + HOUR, NOW), **what)
        self.store.write(lambda transaction: followers.save(transaction, one))
        return one


def read_newest(directory: Path, kept: Store) -> Bundle:
    document = kept.read(bundles.newest_bundle)
    assert document is not None
    return bundles.own_bundle(document, DOMAIN, authority.load(directory, now()).roots, now())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    directory = tmp_path / "ca"
    start(directory)
    with store.opened(file_url(directory / "store.db"), clock=Clock().seconds) as kept:
        old = authority.load_root(directory, None, None)
        yield Stage(directory, kept, Rotator(directory, kept, old, DOMAIN))


def roots_of(directory: Path) -> tuple[bytes, ...]:
    return tuple(map(certificate_digest, authority.load(directory, now()).roots))


# -- the stages --------------------------------------------------------------------------------------------------------


def test_a_new_root_is_made_and_nobody_knows_it(stage: Stage) -> None:
    before = (roots_of(stage.directory), stage.newest())
    assert not stage.rotator.is_prepared()
    stage.rotator.prepare(NOW)
    assert stage.rotator.is_prepared()
    assert (roots_of(stage.directory), stage.newest()) == before
    assert rotation.current(stage.store) is None
    assert certificate_digest(stage.rotator.new_root().certificate) not in before[0]


def test_distribute_both_are_trusted_and_the_old_one_says_so(stage: Stage) -> None:
    old = authority.load(stage.directory, NOW)
    before = stage.newest()
    found = stage.distributed()
    new = certificate_digest(stage.rotator.new_root().certificate)
    bundle = stage.newest()
    assert (found.stage, found.old, found.new) == ("distribute", old.root_digest.hex(), new.hex())
    assert (bundle.version, bundle.active) == (found.bundle, old.root_digest)
    assert bundle.anchors == {old.root_digest, new}
    assert bundle.version > before.version
    document = str(stage.store.read(bundles.newest_bundle)).encode()
    assert documents.read_bundle(document, DOMAIN, before.anchors, NOW) == bundle, (
        "whoever knows the old root alone reads it"
    )
    assert authority.load(stage.directory, NOW).issuer.certificate == old.issuer.certificate
    assert authority.bundle_document(stage.directory) == document
    assert rotation.current(stage.store) == found


def test_activate_certificates_come_from_the_new_root(stage: Stage) -> None:
    found = stage.activated()
    loaded = authority.load(stage.directory, NOW)
    assert loaded.root_digest.hex() == found.new
    assert stage.newest().active.hex() == found.new
    assert len(stage.newest().roots) == 2
    issued = authority.issue(loaded, "api", NOW)
    issued.chain[1].verify_directly_issued_by(stage.rotator.new_root().certificate)
    assert set(map(certificate_digest, issued.roots)) == stage.newest().anchors
    assert rotation.current(stage.store) == found


def test_settle_notes_the_time_and_changes_nothing_else(stage: Stage) -> None:
    found = stage.activated()
    before = stage.newest()
    settled = stage.rotator.settle(found)
    assert settled == replace(found, stage="settle")
    assert stage.newest() == before
    assert rotation.current(stage.store) == settled


def test_retire_the_old_one_is_trusted_no_longer_and_says_so_itself(stage: Stage) -> None:
    old = certificate_digest(authority.load(stage.directory, NOW).root)
    found = stage.retired()
    assert {anchor.hex() for anchor in stage.newest().anchors} == {found.new}
    document = str(stage.store.read(bundles.newest_bundle)).encode()
    for anchors in ({old}, stage.newest().anchors):
        assert documents.read_bundle(document, DOMAIN, frozenset(anchors), NOW) == stage.newest()


def test_finish_leaves_the_new_root_alone(stage: Stage) -> None:
    old_key, old = (
        (stage.directory / "root.key").read_bytes(),
        certificate_digest(authority.load(stage.directory, NOW).root),
    )
    found = stage.retired()
    stage.rotator.finish(stage.directory, None)
    assert [one.hex() for one in roots_of(stage.directory)] == [found.new]
    assert certificate_digest(authority.load_root(stage.directory, None, None).certificate).hex() == found.new
    assert rotation.current(stage.store) is None
    assert (stage.directory / "retired" / f"root-{old.hex()[:16]}.key").read_bytes() == old_key
    assert sorted(path.name for path in stage.directory.iterdir() if not path.name.startswith("store.db")) == [
        "bundle.json", "issuing.key", "issuing.pem", "retired", "revocation.pem", "root.key", "root.pem",
    ]  # fmt: skip
    assert authority.bundle_document(stage.directory).decode() == stage.store.read(bundles.newest_bundle)
    stages = stage.store.read(
        lambda connection: [one.detail for one in audit_entries(connection) if one.event == "rotation"]
    )
    assert [next(it for it in ("distribute", "activate", "settle", "retire", "done") if it in one) for one in stages] == [
        "distribute", "activate", "settle", "retire", "done",
    ]  # fmt: skip


def test_what_was_distrusted_stays_so_through_all_of_it(stage: Stage) -> None:
    own, old = authority.load(stage.directory, NOW), authority.load_root(stage.directory, None, None)
    stage.store.write(lambda transaction: bundles.distrust(transaction, b"\x01" * 32, own, old, NOW))
    stage.retired()
    assert stage.newest().distrusted == {b"\x01" * 32}


def test_a_store_without_a_bundle_is_said(tmp_path: Path) -> None:
    authority.init(tmp_path, DOMAIN, NOW)
    with store.opened(file_url(tmp_path / "store.db"), clock=Clock().seconds) as kept:
        rotator = Rotator(tmp_path, kept, authority.load_root(tmp_path, None, None), DOMAIN)
        rotator.prepare(NOW)
        with pytest.raises(UsageError, match="no trust bundle yet: start certs serve once"):
            rotator.distribute(NOW)
        assert rotation.current(kept) is None
        assert authority.load(tmp_path, NOW)


def test_a_new_root_whose_delegate_is_gone(stage: Stage) -> None:
    stage.distributed()
    (stage.directory / "next" / "revocation.pem").unlink()
    with pytest.raises(UsageError, match="is not complete"):
        stage.rotator.activate(NOW)
    assert authority.load(stage.directory, NOW).root_digest == stage.newest().active


def test_a_root_key_that_is_kept_elsewhere_and_encrypted(tmp_path: Path) -> None:
    directory, safe = tmp_path / "ca", tmp_path / "safe"
    start(directory, root_key_out=safe, passphrase=b"old passphrase")
    with store.opened(file_url(directory / "store.db"), clock=Clock().seconds) as kept:
        old = authority.load_root(directory, safe / "root.key", b"old passphrase")
        stage = Stage(directory, kept, Rotator(directory, kept, old, DOMAIN))
        found = stage.retired()
        stage.rotator.finish(safe, b"new passphrase")
        assert (
            certificate_digest(authority.load_root(directory, safe / "root.key", b"new passphrase").certificate).hex()
            == found.new
        )
        assert not (directory / "root.key").exists()
        (retired,) = (safe / "retired").iterdir()
        assert b"ENCRYPTED" in retired.read_bytes()


# -- who is waited for -------------------------------------------------------------------------------------------------


def late(stage: Stage, found: Rotation, now: datetime = NOW) -> list[str]:
    return [str(one) for one in stage.rotator.laggards(found, now)]


def test_a_sidecar_that_has_not_heard_is_named(stage: Stage) -> None:
    found = stage.distributed()
    stage.seen(bundle=found.bundle - 1)
    (told,) = late(stage, found)
    assert told == (
        f"spiffe://shop.internal/api (instance {'a' * 12}, last seen {NOW:%FT%TZ}, has bundle {found.bundle - 1}; "
        f"its certificate ends at {NOW + HOUR:%FT%TZ})"
    )
    stage.seen(bundle=found.bundle)
    assert late(stage, found) == []


def test_nobody_waits_for_one_whose_certificate_has_ended(stage: Stage) -> None:
    found = stage.distributed()
    stage.seen(bundle=1)
    assert late(stage, found, NOW + HOUR)
    assert late(stage, found, NOW + HOUR + timedelta(seconds=1)) == []


def test_activate_waits_for_a_certificate_under_the_new_root(stage: Stage) -> None:
    found = stage.activated()
    stage.seen(bundle=found.bundle, root=found.old)
    (told,) = late(stage, found)
    assert "its certificate is under the old root" in told
    stage.seen(bundle=found.bundle, root=found.new)
    assert late(stage, found) == []
    stage.seen(bundle=found.bundle - 1, root=found.new)
    assert "has bundle" in late(stage, found)[0]


def test_retire_waits_for_the_last_bundle(stage: Stage) -> None:
    found = stage.retired()
    stage.seen(bundle=found.bundle - 1, root=found.new)
    assert late(stage, found)
    stage.seen(bundle=found.bundle, root=found.new)
    assert late(stage, found) == []


def test_two_instances_of_one_service_are_two(stage: Stage) -> None:
    found = stage.distributed()
    stage.seen(instance="a" * 32, bundle=found.bundle)
    stage.seen(instance="b" * 32)
    assert [one.split("instance ")[1][:12] for one in late(stage, found)] == ["b" * 12]


def test_certificates_that_were_issued_by_hand_are_waited_for(stage: Stage) -> None:
    made = authority.issue(authority.load(stage.directory, NOW), "api", NOW)
    stage.store.write(lambda transaction: registrar.remember(transaction, made.chain, "command"))
    by_machine = authority.issue(authority.load(stage.directory, NOW), "web", NOW)
    stage.store.write(lambda transaction: registrar.remember(transaction, by_machine.chain, "renewal"))
    found = stage.distributed()
    (told,) = late(stage, found)
    assert told.startswith(f"spiffe://shop.internal/api (serial {made.chain[0].serial_number:x}, issued by hand")
    assert late(stage, found, NOW + HOUR + timedelta(seconds=1)) == []


def test_nor_is_one_waited_for_that_was_revoked(stage: Stage) -> None:
    loaded = authority.load(stage.directory, NOW)
    for name in ("api", "web"):
        made = authority.issue(loaded, name, NOW)
        stage.store.write(partial(registrar.remember, chain=made.chain, how="command"))
    found = stage.distributed()
    assert len(late(stage, found)) == 2
    stage.store.write(lambda transaction: revocations.revoke_identity(transaction, API))
    (told,) = late(stage, found)
    assert told.startswith("spiffe://shop.internal/web")


def test_the_new_root_s_key_is_never_in_the_directory_if_its_place_is_elsewhere(stage: Stage, tmp_path: Path) -> None:
    """The directory may be in the container of the CA, which needs no root's key."""
    stage.rotator = Rotator(stage.directory, stage.store, stage.rotator._old, DOMAIN, tmp_path / "vault")
    stage.rotator.settle(stage.activated())
    assert sorted(path.name for path in tmp_path.rglob("next/root.key")) == ["root.key"]
    assert not (stage.directory / "next").exists()
    forgotten = Rotator(stage.directory, stage.store, stage.rotator._old, DOMAIN)
    with pytest.raises(UsageError, match=r"next is missing, .* give the options that it was started with"):
        forgotten.retire(NOW)
    found = stage.rotator.retire(NOW)
    stage.rotator.finish(tmp_path / "vault", None)
    assert not list(tmp_path.rglob("next*"))
    assert authority.load_root(stage.directory, tmp_path / "vault" / "root.key", None)
    assert [digest.hex() for digest in roots_of(stage.directory)] == [found.new]


def test_one_issued_by_hand_after_the_stage_began_is_of_the_new_order(stage: Stage) -> None:
    found = stage.distributed()
    clock = Clock(NOW + timedelta(seconds=1))
    with store.opened(file_url(stage.directory / "store.db"), clock=clock.seconds) as later:
        made = authority.issue(authority.load(stage.directory, NOW), "api", clock.now)
        later.write(lambda transaction: registrar.remember(transaction, made.chain, "command"))
    assert late(stage, found) == []
    assert len(made.roots) == 2


def test_the_old_root_stays_until_connections_have_ended() -> None:
    settled = Rotation("settle", "", "", 1, int(NOW.timestamp()))
    assert rotation.may_retire(settled, DAY, NOW) == NOW + DAY
    assert rotation.may_retire(settled, DAY, NOW + DAY - timedelta(seconds=1)) == NOW + DAY
    assert rotation.may_retire(settled, DAY, NOW + DAY) is None
    assert rotation.may_retire(settled, timedelta(0), NOW) is None


def test_a_laggard_is_a_sentence() -> None:
    assert str(Laggard("spiffe://a/b", "why", NOW)) == f"spiffe://a/b (why; its certificate ends at {NOW:%FT%TZ})"


# -- killed anywhere ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Ends the process at its ``at``-th step that lasts: a file that gets or loses its name, a transaction; before it is
    done, or after."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.steps = 0
        patch.setattr(os, "rename", self._guard(os.rename))
        patch.setattr(Path, "unlink", self._guard(Path.unlink))
        patch.setattr(Store, "write_many", self._guard(Store.write_many))
        patch.setattr(shutil, "rmtree", self._guard(_remove_piece_by_piece))

    def _guard(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.steps += 1
            number = self.steps
            if number == self.at and not self.after:
                raise Killed
            result = step(*arguments, **options)
            if number == self.at:
                raise Killed
            return result

        return guarded


_rmtree = shutil.rmtree


def _remove_piece_by_piece(directory: Path) -> None:
    """As :func:`shutil.rmtree` does, which can be cut off between any two of its files."""
    for path in sorted(directory.iterdir(), reverse=True):
        path.unlink()
    directory.rmdir()


def rotate(*options: str) -> None:
    result = CliRunner().invoke(main, ["rotate-root", "ca", "--force", *options], prog_name="certs")
    assert result.exit_code == 0, result.output


def check_all_is_well(directory: Path, first: Bundle) -> Bundle:
    """The CA can issue; what the store says can be read by the directory's roots, and by a sidecar that slept until now; and
    nothing that the CA issues is refused by whoever has the newest bundle."""
    loaded = authority.load(directory, now())
    with store.opened(file_url(directory / "store.db"), clock=Clock().seconds) as kept:
        newest = read_newest(directory, kept)
        known = first
        for document in kept.read(lambda connection: bundles.bundles_after(connection, first.version)):
            known = documents.read_bundle(document.encode(), DOMAIN, known.anchors, now())
    assert known == newest
    assert loaded.root_digest in newest.anchors
    assert loaded.delegate is not None
    empty = documents.RevocationList(DOMAIN, 1, now())
    assert documents.read_revocations(documents.sign_revocations(empty, loaded.delegate), newest, now()) == empty
    issued = authority.issue(loaded, "api", now())
    assert newest.active in set(map(certificate_digest, issued.roots))
    return newest


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["root key in the directory", "root key elsewhere"])
def test_killed_at_any_step_all_is_well_and_it_goes_on_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, elsewhere: bool
) -> None:
    """With the old root's key in the directory, or each of the two in a place of its own."""
    monkeypatch.chdir(tmp_path)
    start(Path("pattern"), root_key_out=Path("pattern-safe") if elsewhere else None)
    with store.opened(file_url(Path("pattern/store.db")), clock=Clock().seconds) as kept:
        first = read_newest(Path("pattern"), kept)
    old_key = Path("pattern-safe/root.key") if elsewhere else Path("pattern/root.key")
    old_secret = old_key.read_bytes()
    at, fired = 0, True
    while fired:
        at += 1
        for each in ("ca", "new"):
            if Path(each).exists():
                _rmtree(each)
        shutil.copytree("pattern", "ca")
        options = ["--root-key", str(old_key), "--root-key-out", "new"] if elsewhere else []
        with monkeypatch.context() as patch:
            fuse = Fuse(patch, at, after=after)
            try:
                rotate(*options)
            except Killed:
                pass
            else:
                fired = False
        newest = check_all_is_well(Path("ca"), first)
        complete = first.anchors.isdisjoint(roots_of(Path("ca"))) and not list(Path("ca").glob("next*"))
        if not complete:
            said = CliRunner().invoke(main, ["rotate-root", "ca", "--force", *options], prog_name="certs")
            if said.exit_code == 2 and elsewhere:
                assert "is not the key of any root" in said.stderr, "it has the new root already, and asks for its key"
                rotate("--root-key", "new/root.key", "--root-key-out", "new")
            else:
                assert said.exit_code == 0, (at, said.output)
        last = check_all_is_well(Path("ca"), first)
        assert last.version >= newest.version
        assert first.anchors.isdisjoint(last.anchors), f"step {at}: the old root is trusted"
        assert frozenset(roots_of(Path("ca"))) == last.anchors
        assert documents.read_kept_bundle(authority.bundle_document(Path("ca")), DOMAIN, now()) == last
        key = Path("new/root.key") if elsewhere else Path("ca/root.key")
        assert authority.load_root(Path("ca"), key, None).certificate in last.roots
        assert not Path("ca/next").exists()
        retired = sorted(Path("ca/retired").iterdir()) if Path("ca/retired").exists() else []
        if elsewhere:
            assert not Path("new/retired").exists(), f"step {at}: the new key was taken for the old one"
            assert not Path("ca/root.key").exists()
        else:
            assert [path.read_bytes() for path in retired] == [old_secret], f"step {at}"
    assert fuse.steps < at
    assert at > 20


def test_a_rotation_that_was_killed_in_its_last_moment_is_only_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start(Path("ca"))
    for at in range(1, 7):
        with monkeypatch.context() as patch:
            done = 0

            def die(path: Path, at: int = at) -> None:
                nonlocal done
                for each in sorted(path.iterdir(), reverse=True):
                    done += 1
                    if done == at:
                        raise Killed
                    each.unlink()
                raise Killed

            patch.setattr(shutil, "rmtree", die)
            with pytest.raises(Killed):
                rotate()
        root = roots_of(Path("ca"))
        result = CliRunner().invoke(main, ["rotate-root", "ca", "--force"], prog_name="certs")
        assert (result.exit_code, result.stdout) == (
            0, "the last rotation is complete; its leftover files were removed\n",
        )  # fmt: skip
        assert roots_of(Path("ca")) == root
        assert not list(Path("ca").glob("next*"))


def test_nothing_to_clean_up(stage: Stage) -> None:
    assert not stage.rotator.clean_up()
    stage.rotator.prepare(NOW)
    assert not stage.rotator.clean_up(), "a root that nobody has yet is no leftover"
    assert stage.rotator.is_prepared()


def test_what_a_ca_left_that_was_here_before_is_not_taken_for_the_new_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``certs init --force`` over a rotation that was under way; the one in its place is of another trust domain."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(main, ["init", "ca", "--trust-domain", "other.internal"]).exit_code == 0
    with store.opened(file_url(Path("ca/store.db")), clock=Clock().seconds) as kept:
        Rotator(Path("ca"), kept, authority.load_root(Path("ca"), None, None), "other.internal").prepare(NOW)
    stale = Path("ca/next/root.pem").read_bytes()
    assert run(main, ["init", "ca", "--trust-domain", DOMAIN, "--force"]).exit_code == 0
    rotate()
    assert Path("ca/root.pem").read_bytes() != stale
    assert authority.load(Path("ca"), now()).trust_domain == DOMAIN


# -- the waiting -------------------------------------------------------------------------------------------------------


async def test_it_waits_until_all_have_it_and_names_who_has_not(
    stage: Stage, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    found = stage.distributed()
    stage.seen(bundle=1, not_after=NOW + DAY)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command._wait_for_all, stage.rotator, found, False)
            await trio.sleep(25)
            assert len(nursery.child_tasks) == 1
            stage.seen(bundle=found.bundle, not_after=NOW + DAY)
    told = capsys.readouterr().out
    assert told.count("waiting for 1, each until its certificate ends at the latest:") == 3
    assert told.count("spiffe://shop.internal/api (instance aaaaaaaaaaaa") == 3, "every ten seconds, not every look"
    assert told.endswith("  all have it\n")


async def test_by_force_it_waits_for_nobody_and_warns(
    stage: Stage, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    found = stage.distributed()
    stage.seen(bundle=1, not_after=NOW + DAY)
    before = trio.current_time()
    await command._wait_for_all(stage.rotator, found, True)
    assert trio.current_time() == before
    warned = capsys.readouterr().err
    assert "WARNING: not waiting for 1, which lose trust now" in warned
    assert "spiffe://shop.internal/api" in warned


async def test_a_store_that_is_gone_for_a_while_is_waited_for(
    stage: Stage,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = stage.distributed()
    read, failures = Store.read, iter([True, True, False])

    def sometimes(self: Store, question: Any) -> Any:
        if next(failures):
            raise StoreUnavailableError("the store is gone")
        return read(self, question)

    monkeypatch.setattr(Store, "read", sometimes)
    with trio.fail_after(PATIENCE * 10):
        await command._wait_for_all(stage.rotator, found, False)
    said = capsys.readouterr()
    assert said.err.count("the store is gone; trying again") == 2
    assert said.out == "  all have it\n"


async def test_it_waits_until_the_old_connections_have_ended(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = Rotation("settle", "", "", 1, int(NOW.timestamp()))
    began = trio.current_time()
    monkeypatch.setattr(command, "now", lambda: NOW + timedelta(seconds=int(trio.current_time() - began)))
    await command._wait_for_age(settled, timedelta(0), False)
    assert trio.current_time() == began
    assert capsys.readouterr().out == ""
    await command._wait_for_age(settled, HOUR, True)
    assert trio.current_time() == began
    assert "WARNING: connections that were verified by the old root are cut now" in capsys.readouterr().err
    await command._wait_for_age(settled, HOUR, False)
    assert 3600 <= trio.current_time() - began < 3602
    assert f"may live until {NOW + HOUR:%FT%TZ} (--max-age)" in capsys.readouterr().out
