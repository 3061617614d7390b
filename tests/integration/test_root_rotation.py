"""A new root in the place of the old one: under load, killed anywhere and run again, with sleepers, its key in a vault."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from OpenSSL import SSL

from certs.authority import authority
from certs.protocol.client import CaError
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.keys import certificate_digest
from tests.beds.ca_processes import CaSite, Load, echo_app, load, member_process
from tests.beds.certificates import Credential
from tests.beds.mesh import Foreigner, connect
from tests.beds.processes import Running, SidecarProcess, running
from tests.integration.members import LiveMember, hasty, live_ca

__all__ = ["hasty"]

SETTLED = ("--max-age", "3s")
"""Longer than a transfer of the load lasts, as ``max_age`` is longer than any connection."""


@dataclass
class Stage:
    """A CA that serves, web's and api's sidecars, and the calls between them."""

    site: CaSite
    api: LiveMember
    web: LiveMember
    calls: Load


@asynccontextmanager
async def stage(path: Path, *, busy: bool = True) -> AsyncIterator[Stage]:
    """All of it in the test's process, and quick; ``busy`` all the time, or at the end only."""
    site = CaSite.make(path)
    async with live_ca(site), echo_app() as app, trio.open_nursery() as nursery:
        api = LiveMember(
            site.wiring("api", inbound(app), enrolment=site.write_credential("api")),
        )
        await nursery.start(api.run)
        web = LiveMember(site.wiring("web", outbound(*api.address("http")), enrolment=site.write_credential("web")))
        await nursery.start(web.run)
        if busy:
            async with load(web.address("api:http")) as calls:
                yield Stage(site, api, web, calls)
        else:
            yield Stage(site, api, web, Load(web.address("api:http")))
            async with load(web.address("api:http")) as calls:  # whatever was done: afterwards it works
                await calls.grows(3)
        nursery.cancel_scope.cancel()


def inbound(app: str) -> str:
    return f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app}"}}]\n'


def outbound(host: str, port: int) -> str:
    return f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{host}:{port}"]}}]\n'


@asynccontextmanager
async def rotating(site: CaSite, *options: str) -> AsyncIterator[Running]:
    """``certs rotate-root``."""
    async with running(*site.command("rotate-root", *SETTLED, *options)) as program:
        yield program


async def rotated(site: CaSite, *options: str) -> str:
    """The whole of it, to its end."""
    async with rotating(site, *options) as program:
        assert await program.ended() == 0, program.text
        return program.text


async def is_refused_by_name(api: Address, old: Credential) -> None:
    """A certificate that was good, under the old root."""
    with await connect(api) as sock:
        stranger = Foreigner(sock, old)
        await stranger.handshake()  # (in TLS 1.3 it is through with it before it is judged)
        with pytest.raises(SSL.Error):
            await stranger.receive()
        assert stranger.alert is not None
        assert "unknown ca" in stranger.alert


# -- as processes ------------------------------------------------------------------------------------------------------


async def test_a_whole_rotation_under_load(tmp_path: Path) -> None:
    site = CaSite.make(tmp_path)
    (old_root,) = site.roots()
    async with site.serves(), echo_app() as app:
        former = site.caller("web")
        await former.enrol(site.make_credentials("web")["web"])
        old = Credential(former.chain[0], former.key, former.chain)
        async with member_process(site.wiring("api", inbound(app), enrolment=site.write_credential("api"))) as api:
            wiring = site.wiring("web", outbound(*api.address("http")), enrolment=site.write_credential("web"))
            async with member_process(wiring) as web, load(web.address("api:http")) as calls:
                await calls.grows(5)
                said = await rotated(site)
                await calls.grows(5)
                assert calls.transfers > 3, "at any time of it one went on"
                for stage_name in ("prepare", "distribute", "activate", "settle", "retire", "done"):
                    assert f"{stage_name}:" in said
                assert "WARNING" not in said
                await is_refused_by_name(Address(*api.address("http")), old)
                for sidecar in (api, web):
                    await keeps_the_new_root_alone(site, sidecar)
                await api.program.event("connection", decision="deny")
                refused = api.program.events("connection", decision="deny")
                assert [line["reason"] for line in refused] == ["unknown_ca"], "but for the stranger, nobody"
                assert web.program.events("connection", decision="deny") == []
                # The CA knows the old one no better.
                with pytest.raises(CaError):
                    await former.renew()
                await former.client.close()
    (new_root,) = site.roots()
    assert certificate_digest(new_root) != certificate_digest(old_root)
    assert not (site.directory / "next").exists()
    assert [path.name for path in (site.directory / "retired").iterdir()] == [
        f"root-{certificate_digest(old_root).hex()[:16]}.key"
    ], "the old key is for somebody to destroy"
    assert site.faults() == []


async def keeps_the_new_root_alone(site: CaSite, sidecar: SidecarProcess) -> None:
    (new,) = site.roots()
    wanted = [certificate_digest(new).hex()[:16]]
    await sidecar.program.until(
        lambda: sidecar.program.events("trust_bundle")[-1]["roots"] == wanted, "the new root alone"
    )
    assert len(sidecar.program.events("renewed")) == 1, "one new certificate, under the new root"
    assert sidecar.program.events("certificate_failed") == []


# -- killed, late, forced ----------------------------------------------------------------------------------------------

CHANCE = random.Random(4)  # noqa: S311 (moments, the same each time)


@pytest.mark.usefixtures("hasty")
async def test_killed_at_every_stage_and_run_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        (old_root,) = it.site.roots()
        for line in ("prepare:", "distribute:", "all have it", "activate:", "settle:", "retire:"):
            async with rotating(it.site) as program:
                await program.line(line)
                program.signal(signal.SIGKILL)
                await program.ended()
            await it.calls.grows(2)
            authority.load(it.site.directory, utc_now())  # a CA at any time
        await rotated(it.site)
        await it.calls.grows(2)
        (new_root,) = it.site.roots()
        assert certificate_digest(new_root) != certificate_digest(old_root)
        assert it.site.faults() == []
        for agent in (it.api, it.web):
            assert [line for line in agent.log.connections if line["decision"] != "allow"] == []
            assert len(agent.adopted) == 1


@pytest.mark.usefixtures("hasty")
async def test_killed_at_any_moment_and_run_again(tmp_path: Path) -> None:
    """Not between its lines, but in the midst of what it does."""
    async with stage(tmp_path) as it:
        roots = {certificate_digest(root) for root in it.site.roots()}
        for _ in range(8):
            async with rotating(it.site) as program:
                await trio.sleep(CHANCE.uniform(0.4, 3.0))  # the moment is the test
                program.signal(signal.SIGKILL)
                await program.ended()
            authority.load(it.site.directory, utc_now())
        await rotated(it.site)
        await it.calls.grows(2)
        (root,) = it.site.roots()
        assert certificate_digest(root) not in roots
        assert it.site.faults() == []


@pytest.mark.usefixtures("hasty")
async def test_a_sleeper_is_named_waited_for_and_comes_back_by_what_the_old_root_signed(tmp_path: Path) -> None:
    async with stage(tmp_path, busy=False) as it:
        file = it.site.wiring("reporting", "", enrolment=it.site.write_credential("reporting", "token"))
        async with member_process(file) as sleeper:
            await sleeper.program.event("enrolled")
            old = (tmp_path / "state-reporting" / "identity.pem").read_bytes()

        async with rotating(it.site) as program:
            await program.line("spiffe://shop.internal/reporting (instance")
            program.signal(signal.SIGINT)
            await program.ended()
        said = await rotated(it.site, "--force")
        assert said.count("spiffe://shop.internal/reporting (instance") == 3
        assert "spiffe://shop.internal/web (instance" not in said.partition("activate:")[0]

        (tmp_path / "reporting.token").unlink()
        async with member_process(file) as sleeper:
            await keeps_alone(it.site, sleeper)
            assert sleeper.program.events("mitm_suspected") == [], "no alarm: it was the CA"
            await sleeper.program.until(
                lambda: (tmp_path / "state-reporting" / "identity.pem").read_bytes() != old, "a new certificate"
            )
            await both_have_the_new_root(it)


async def both_have_the_new_root(it: Stage) -> None:
    for agent in (it.api, it.web):
        await agent.until_adopted(1)


async def keeps_alone(site: CaSite, sidecar: SidecarProcess) -> None:
    wanted = [certificate_digest(root).hex()[:16] for root in site.roots()]
    await sidecar.program.until(
        lambda: bool(said := sidecar.program.events("trust_bundle")) and said[-1]["roots"] == wanted, "the new root"
    )


@pytest.mark.usefixtures("hasty")
async def test_what_was_issued_by_hand_is_named(tmp_path: Path) -> None:
    async with stage(tmp_path, busy=False) as it:
        await it.site.certs("issue", "db", "--out", str(tmp_path / "db"))
        async with rotating(it.site) as program:
            await program.line("spiffe://shop.internal/db (serial")
            program.signal(signal.SIGTERM)
            await program.ended()
        assert "spiffe://shop.internal/db (serial" in await rotated(it.site, "--force")
        await both_have_the_new_root(it)


# -- the key in a vault ------------------------------------------------------------------------------------------------

OLD = {"CERTS_ROOT_PASSPHRASE": "correct horse"}
NEW = {"CERTS_NEW_PASSPHRASE": "battery staple"}


@pytest.mark.usefixtures("hasty")
async def test_the_root_s_key_is_elsewhere_and_encrypted(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    key = vault / authority.ROOT_KEY
    kept = ("--root-key-out", str(vault), "--encrypt")
    site = CaSite.make(tmp_path / "site", init=kept, variables={"CERTS_NEW_PASSPHRASE": "correct horse"})
    assert b"ENCRYPTED" in key.read_bytes()
    (old_root,) = site.roots()
    rotate = ("rotate-root", *SETTLED, "--root-key", str(key), *kept)
    async with live_ca(site):
        caller = site.caller("web")
        await caller.enrol(site.make_credentials("web")["web"])  # nobody misses the key
        await caller.client.close()

        said = await site.certs("rotate-root", *SETTLED, check=False)
        assert "--root-key FILE" in said
        wrong = {"CERTS_ROOT_PASSPHRASE": "correct donkey", "CERTS_NEW_PASSPHRASE": "battery staple"}
        assert "root.key" in await site.certs(*rotate, check=False, variables=wrong)
        short = {"CERTS_ROOT_PASSPHRASE": "correct horse", "CERTS_NEW_PASSPHRASE": "short"}
        assert "at least 8 characters" in await site.certs(*rotate, check=False, variables=short)
        assert site.roots() == (old_root,)

        right = {"CERTS_ROOT_PASSPHRASE": "correct horse", "CERTS_NEW_PASSPHRASE": "battery staple"}
        assert "done:" in await site.certs(*rotate, variables=right)
    (new_root,) = site.roots()
    assert certificate_digest(new_root) != certificate_digest(old_root)
    assert not (site.directory / authority.ROOT_KEY).exists()
    assert b"ENCRYPTED" in key.read_bytes()
    assert authority.load_root(site.directory, key, b"battery staple").certificate == new_root
    assert [path.stat().st_mode & 0o777 for path in (key, *(vault / "retired").iterdir())] == [0o600, 0o600]
    plain = [path for path in site.directory.rglob("*") if path.is_file() and path.name.startswith("root.key")]
    assert plain == [], "no copy of it lies about"
