"""A disk that is full, a real one: the CA says so and issues nothing; sidecars keep what they have; room mends it all."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from certs.protocol.client import CaDeniedError
from sidecar.agent import membership
from tests.beds.ca_processes import CaSite, denial, echo_app, load
from tests.beds.processes import DEADLINE
from tests.integration.members import LiveMember, hasty, live_ca
from tests.integration.test_root_rotation import inbound, outbound
from tests.integration.test_rotations_under_load import at_once

__all__ = ["hasty"]


class Disk:
    """A small file system of its own, which a ballast can fill to the last byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        os.write(file, b"x" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.close(file)

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, timeout=DEADLINE)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) here")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=DEADLINE)


async def test_the_ca_s_disk_is_full(tmp_path: Path, disk: Disk) -> None:
    """Its process, its store on that disk; sidecars' requests answered or denied, never half."""
    site = CaSite.make(tmp_path / "site", store=f"sqlite:///{disk.path}/store.db")
    tokens = site.make_credentials("web", "api")
    async with site.serves() as ca:
        web, api = site.caller("web"), site.caller("api")
        had = [await web.enrol(tokens["web"]), await web.renew()]
        assert await web.health() == 200

        disk.fill()
        # There may be room left in the files that are there; not for long.
        with trio.fail_after(DEADLINE):
            while await web.health() == 200:
                with contextlib.suppress(CaDeniedError):
                    had.append(await web.renew())
        in_force = web.chain
        for _ in range(5):
            said = await denial(web.renew())
            assert (said.denial, said.passing) == ("unavailable", True)
        assert (await denial(api.enrol(tokens["api"]))).denial == "unavailable"
        assert await web.health() == 503
        assert web.chain == in_force
        told = await ca.event("store_unavailable")
        assert "is full" in told["message"]
        # Trust and revocations are still told.
        assert (await web.client.revocations("", "", 0)).document is not None

        disk.make_room()
        had += [await web.renew(), await api.enrol(tokens["api"])]  # the token was not spent
        assert await web.health() == 200
        for one in (web, api):
            await one.client.close()
        assert sorted(site.issued()) == sorted(had), "all that was answered, and nothing else"
        assert site.faults() == []
        assert ca.process.returncode is None


@pytest.mark.usefixtures("hasty")
async def test_the_sidecar_s_disk_is_full(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be kept is in force all the same, and that is said; nothing that was kept gets lost."""
    site = CaSite.make(tmp_path / "site")
    async with live_ca(site), echo_app() as app, trio.open_nursery() as nursery:
        api = LiveMember(site.wiring("api", inbound(app), enrolment=site.write_credential("api")))
        await nursery.start(api.run)
        state = disk.path / "state"
        wiring = site.wiring(
            "web", outbound(*api.address("http")), enrolment=site.write_credential("web"), state=str(state)
        )
        web = LiveMember(wiring)
        await nursery.start(web.run)
        kept = (state / "identity.pem").read_bytes()
        async with load(web.address("api:http")) as calls:
            disk.fill()
            monkeypatch.setattr(membership, "refresh_at", at_once)
            assert web.agent.credentials is not None
            web.agent._put_in_force(web.agent.credentials)  # half of its life is over
            await web.until_adopted(3)
            await calls.grows(5)
            assert (state / "identity.pem").read_bytes() == kept
            (said,) = web.said("state_dir_failed")
            assert os.strerror(errno.ENOSPC) in said

            disk.make_room()
            await web.log.until(lambda: bool(web.log.events("state_dir_mended")))
            await calls.grows(5)
        assert (state / "identity.pem").read_bytes() != kept
        nursery.cancel_scope.cancel()
