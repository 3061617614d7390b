"""What a sidecar keeps: killed at any write, on a full disk, damaged, foreign, gone; against a real CA's service."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from trio.testing import MockClock

from sidecar.agent import accept
from sidecar.agent.membership import Renew
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from tests.beds.ca import CaBed, Sidecar, asked, ca_bed, files_of, verdict
from tests.beds.ca_files import CaFiles

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
API = SpiffeId("shop.internal", ("api",))


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


class Killed(BaseException):
    """The process is gone: whatever it would have done from then on does not happen."""


class Killer:
    """Kills at the ``number``-th call that changes the disk: before it, or, which is no different to whoever starts next,
    after the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.left, self.calls = number, 0
        for name in ("fsync", "rename", "unlink"):
            monkeypatch.setattr(os, name, self._deadly(getattr(os, name)))

    def _deadly(self, call: Callable[..., None]) -> Callable[..., None]:
        def deadly(*args: object, **options: object) -> None:
            self.calls += 1
            if self.calls > self.left:
                raise Killed
            call(*args, **options)

        return deadly


async def _until_killed(step: Callable[[], Awaitable[None]]) -> bool:
    try:
        await step()
    except Killed:
        return True
    return False


async def test_killed_at_any_write_of_an_enrolment_it_starts_again(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, killed = 0, True
    while killed:
        token = bed.token()
        api = bed.sidecar("api", token, name=f"state-{number}")
        with monkeypatch.context() as patched:
            killer = Killer(patched, number)
            killed = await bed.time.finishes(partial(_until_killed, api.agent.enrol))
        await api.ends()
        again = bed.sidecar("api", token, name=f"state-{number}")
        await again.joins()  # by the same token, used or not
        assert again.own.svid.id == API
        assert (killer.calls > number) is killed
        number += 1
    assert number > 10


async def test_killed_at_any_write_of_a_renewal_it_has_the_old_certificate_or_the_new(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await bed.joined("api", bed.token())
    await api.ends()
    number, killed, kept = 0, True, 0
    while killed:
        api = bed.sidecar("api")
        await api.joins()
        before = api.serial
        with monkeypatch.context() as patched:
            Killer(patched, number)
            killed = await bed.time.finishes(partial(_until_killed, partial(api.agent._do, Renew())))
        await api.ends()
        again = bed.sidecar("api")
        await again.joins()
        assert again.events == []
        assert again.own.keys.chain[0].public_key() == again.own.keys.key.public_key()
        kept += again.serial == before
        await again.ends()
        number += 1
    assert kept >= 2  # before the rename
    assert number > kept  # and after it


async def test_a_full_disk_keeps_nothing_from_being_in_force(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await bed.joined()
    serial, kept = api.serial, files_of(api.state)["identity.pem"]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        await bed.time.until(lambda: api.serial != serial, within=150)
        await bed.time.passes(10)
        [said] = api.said("state_dir_failed")[-1:]
        assert said.endswith("No space left on device; the new value is in force, but a restart would lose it")
        assert files_of(api.state).keys() == {
            "identity.pem",
            "bundle.json",
            "revocations.json",
            "member.json",
            "own.json",
        }
        assert files_of(api.state)["identity.pem"] == kept
        assert api.adopted[-1][0].svid.serial == api.serial
    serial = api.serial
    await bed.time.until(lambda: api.serial != serial, within=150)
    assert api.said("state_dir_mended") == ["good again"]
    assert files_of(api.state)["identity.pem"] == accept.identity_pem(api.own)


async def test_a_full_disk_spends_no_token(bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key has to be kept first: an answer that gets lost could not be asked for again."""
    api = bed.sidecar("api", bed.token())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        await bed.time.gives_up(api.agent.enrol, after=5)
    assert asked(bed, "/v1/enrol") == 0
    assert "No space left on device" in api.said("joining_failed")[0]
    await api.joins()
    assert asked(bed, "/v1/enrol") == 1


@pytest.mark.parametrize("size", [0, 1, 100, 300, 700])
async def test_a_damaged_certificate_is_enrolled_anew(bed: CaBed, mock_clock: MockClock, size: int) -> None:
    secret = bed.secret()
    api = await bed.joined("api", secret)
    await api.ends()
    file = api.state / "identity.pem"
    file.write_bytes(file.read_bytes()[:size])
    again = bed.sidecar("api", secret)
    [said] = again.said("state_ignored")
    assert str(file) in said
    assert said.endswith("; enrolling again")
    await again.joins()
    assert again.serial != api.serial


async def test_a_certificate_of_somebody_else_is_not_taken(bed: CaBed, mock_clock: MockClock) -> None:
    web, secret = await bed.joined("web", name="web"), bed.secret()
    api = await bed.joined("api", secret)
    await web.ends()
    await api.ends()
    (api.state / "identity.pem").write_bytes((web.state / "identity.pem").read_bytes())
    again = bed.sidecar("api", secret)
    assert "its certificate is not one of spiffe://shop.internal/api" in again.said("state_ignored")[0]
    await again.joins()
    assert again.own.svid.id == API


@pytest.mark.parametrize("content", [b"", b"garbage", b'{"type": "mesh-bundle/2"}'])
async def test_with_a_damaged_bundle_it_does_not_start(bed: CaBed, mock_clock: MockClock, content: bytes) -> None:
    """Or whoever can damage a file decides whom to trust."""
    api = await bed.joined()
    await api.ends()
    (api.state / "bundle.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"so no CA can be verified\. To start again from the pinned root, remove"):
        bed.sidecar("api", bed.secret())


@pytest.mark.parametrize("name", ["bundle.json", "identity.pem", "revocations.json", "member.json"])
async def test_a_file_that_is_gone_is_had_again(bed: CaBed, mock_clock: MockClock, name: str) -> None:
    secret = bed.secret()
    api = await bed.joined("api", secret)
    await api.ends()
    (api.state / name).unlink()
    again = await bed.joined("api", secret)
    await bed.time.passes(10)
    assert verdict(again, again) == "ok"
    assert files_of(api.state).keys() == {"identity.pem", "bundle.json", "revocations.json", "member.json", "own.json"}


@pytest.mark.parametrize("size", [0, 100])
async def test_a_damaged_list_of_revocations_lets_nobody_in_until_there_is_another(
    bed: CaBed, mock_clock: MockClock, size: int
) -> None:
    api = await bed.joined()
    await api.ends()
    file = api.state / "revocations.json"
    file.write_bytes(file.read_bytes()[:size])
    again = bed.sidecar("api")
    assert str(file) in again.said("state_ignored")[0]
    await again.joins()
    assert verdict(again, again) == "revocations_stale"
    again.follows()
    await bed.time.settles()
    assert verdict(again, again) == "ok"


async def test_another_root_pinned_is_another_mesh(
    bed: CaBed, mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await bed.joined()
    await api.ends()
    (tmp_path / "other").mkdir()
    other = CaBed(bed.nursery, CaFiles(tmp_path / "other", bed.time, ttl=5 * MINUTE), bed.time)
    other.starts()
    moved = Sidecar(other, "api", replace(other.identity(other.secret()), state_dir=api.state))
    assert moved.said("state_forgotten")[0].endswith(
        "was of a mesh under another root than the one that is pinned now; its files were removed"
    )
    await moved.joins()
    assert moved.own.keys.roots == other.ca.roots
    await moved.ends()


async def test_a_pinned_root_file_says_the_same_as_its_digest(bed: CaBed, mock_clock: MockClock) -> None:
    by_file = replace(bed.identity(bed.secret()), root=bed.directory / "root.pem", root_sha256=None)
    api = Sidecar(bed, "api", by_file)
    await api.joins()
    assert api.own.keys.roots == bed.ca.roots


@pytest.mark.parametrize("content", [None, "", "garbage"])
async def test_without_a_pinned_root_nothing_starts(
    bed: CaBed, mock_clock: MockClock, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "pinned.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="pinned root"):
        Sidecar(bed, "api", replace(bed.identity(None), root=file, root_sha256=None))
    with pytest.raises(UsageError, match="needs root or root_sha256"):
        Sidecar(bed, "api", replace(bed.identity(None), root_sha256=None))
    assert not (tmp_path / "state").exists()


async def test_one_state_dir_is_for_one_sidecar(bed: CaBed, mock_clock: MockClock) -> None:
    await bed.joined()
    with pytest.raises(UsageError, match="another sidecar is using this state_dir"):
        bed.sidecar("api", bed.secret())
