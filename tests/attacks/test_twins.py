"""Another holder of an identity, with real processes: after each kind of theft the delay until it is told, as README has it;
and beside each the honest course of events that looks most like it, which raises no alarm."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

from certs.authority import authority
from sidecar.agent import accept
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from tests.attacks.test_stolen_parts import stolen_issuer
from tests.beds import forks
from tests.beds.ca_processes import CALLS_API, Caller, CaSite, denial, echo_app, member_process
from tests.beds.certificates import Credential
from tests.beds.mesh import Foreigner, connect
from tests.beds.patience import PATIENCE
from tests.beds.processes import DEADLINE, Running, SidecarProcess
from tests.beds.thief import forged, inbound

SOONER = {"sidecar.agent.twins.MARGIN": 2, "sidecar.agent.twins.SURE": 4}
"""A sidecar's, where the time itself is not what is tested."""

TWO = CALLS_API.replace("api: {ports: {http: 8080}}", "api: {ports: {http: 8080}, instances: 2}")


@dataclass
class Site:
    """A CA, and the files of api's sidecar, which is not running yet."""

    site: CaSite
    ca: Running
    app: str
    file: Path

    @property
    def state(self) -> Path:
        return self.site.path / "state-api"

    @asynccontextmanager
    async def api(self, file: Path | None = None, *, sooner: bool = True) -> AsyncIterator[SidecarProcess]:
        variables = {forks.CONSTANTS: json.dumps(SOONER)} if sooner else None
        async with member_process(file or self.file, variables=variables) as found:
            await self.reported()
            yield found

    async def reported(self) -> None:
        """Until the CA has a report that is made from now on: its answer is api's first news, or more."""
        before = await self.site.certs("reports", "--json")
        with trio.fail_after(DEADLINE):
            while _at(await self.site.certs("reports", "--json")) == _at(before):  # noqa: ASYNC110 (of another process)
                await trio.sleep(0.2)

    async def secret(self) -> Caller:
        """Whoever has api's secret, and uses it."""
        secret = self.site.make_credentials("api", kind="secret")["api"]
        thief = self.site.caller("api")
        await thief.enrol(secret)
        return thief

    async def alarms(self) -> list[dict[str, Any]]:
        return list(json.loads(await self.site.certs("alarms", "--json"))["alarms"])


def _at(reports: str) -> list[str]:
    return [one["report"]["at"] for one in json.loads(reports)["reports"]]


@asynccontextmanager
async def site(path: Path, mesh: str = CALLS_API) -> AsyncIterator[Site]:
    made = CaSite.make(path / "shop", mesh)
    async with made.serves() as ca, echo_app() as app:
        yield Site(made, ca, app, made.agent("api", inbound(app)))


async def elsewhere(api: SidecarProcess) -> dict[str, Any]:
    with trio.fail_after(PATIENCE):
        return await api.program.event("identity_elsewhere")


async def quiet(here: Site, *programs: SidecarProcess) -> None:
    """Nothing is told by anybody within the time after which all would have been."""
    for _ in range(2):
        await here.reported()
    for one in programs:
        assert one.program.events("identity_elsewhere") == []
    assert [one for one in await here.alarms() if one["severity"] == "alarm"] == []


# -- a stolen secret ---------------------------------------------------------------------------------------------------


async def test_a_stolen_secret_is_told_within_half_a_minute(tmp_path: Path) -> None:
    """By the times of real life: the thief enrols, and does nothing more."""
    async with site(tmp_path) as here, here.api(sooner=False) as api:
        await trio.sleep(16)  # it has lived for a while
        thief, began = await here.secret(), time.monotonic()
        met = await elsewhere(api)
        seconds = time.monotonic() - began
        print(f"a stolen secret: told after {seconds:.0f} s")
        assert seconds < 30
        assert met["presented"] == {"serial": f"{thief.chain[0].serial_number:x}"}
        assert (met["reason"], met["level"]) == ("secret", "error")
        await here.ca.event("identity_elsewhere")
        (known,) = await here.alarms()
        assert (known["event"], known["reported_by"]) == ("identity_elsewhere", "spiffe://shop.internal/api")
        await thief.client.close()


async def test_with_room_for_two_a_second_one_is_no_alarm_and_a_third_is(tmp_path: Path) -> None:
    async with site(tmp_path, TWO) as here:
        second = here.site.agent("api", inbound(here.app))
        second.write_text(second.read_text().replace("state-api", "state-second"))
        async with here.api() as api, here.api(second) as other:
            await quiet(here, api, other)
            await trio.sleep(3)
            thief = await here.secret()
            await elsewhere(api)
            await elsewhere(other)
            await thief.client.close()


async def test_enrolling_again_after_lost_state_is_an_event_and_no_alarm(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        async with here.api() as api:
            api.program.signal(signal.SIGTERM)
            assert await api.program.ended() == 0
        shutil.rmtree(here.state)
        async with here.api() as again:
            with trio.fail_after(PATIENCE):
                moved = await again.program.event("identity_moved")
            assert (moved["level"], moved["severity"]) == ("warning", "notice")
            await quiet(here, again)
            assert [one["event"] for one in await here.alarms()] == ["identity_moved"]


async def test_a_restart_and_a_kill_with_its_state_are_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for number in (signal.SIGTERM, signal.SIGKILL):
            async with here.api() as api:
                api.program.signal(number)
                await api.program.ended()
        async with here.api() as api:
            await trio.sleep(5)
            await quiet(here, api)
            assert await here.alarms() == []


# -- a stolen token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["thief", "service"])
async def test_a_stolen_token_is_told_when_the_second_uses_it(tmp_path: Path, first: str) -> None:
    async with site(tmp_path) as here:
        token = here.site.make_credentials("api")["api"]
        one, other = here.site.caller("api"), here.site.caller("api")
        await one.enrol(token)
        await one.client.revocations("", "1" * 32, 1)  # it lives
        began = time.monotonic()
        assert (await denial(other.enrol(token))).denial == "pass_used"
        told = await here.ca.event("token_used_twice")
        print(f"a stolen token, used first by the {first}: told after {(time.monotonic() - began) * 1000:.0f} ms")
        assert (told["severity"], told["expected"]) == ("alarm", "spiffe://shop.internal/api")
        for caller in (one, other):
            await caller.client.close()


async def test_a_token_that_is_tried_twice_by_one_is_no_alarm(tmp_path: Path) -> None:
    """Its holder does not live: the same person, it seems, with another state directory. And a lost answer is repeated."""
    async with site(tmp_path) as here:
        token = here.site.make_credentials("api")["api"]
        one, other = here.site.caller("api"), here.site.caller("api")
        await one.enrol(token)
        await one.enrol(token)
        assert here.ca.events("token_used_twice") == []
        assert (await denial(other.enrol(token))).denial == "pass_used"
        assert (await here.ca.event("token_used_twice"))["severity"] == "notice"
        for caller in (one, other):
            await caller.client.close()


async def connect_from(source: str, address: Address) -> socket.socket:
    sock = socket.socket()
    sock.bind((source, 0))
    sock.connect((address.host, address.port))
    sock.setblocking(False)
    return sock


# -- a stolen state directory ------------------------------------------------------------------------------------------


async def stolen_state(here: Site) -> Caller:
    """A thief with a copy of the state directory."""
    pem = (here.state / "identity.pem").read_bytes()
    thief = here.site.caller("api")
    thief.key, thief.chain = accept.read_key(pem), tuple(x509.load_pem_x509_certificates(pem))
    await thief.client.use(thief.keys, Revocations())
    return thief


async def test_a_copied_state_directory_is_told_after_its_first_renewal(tmp_path: Path) -> None:
    async with site(tmp_path) as here, here.api(sooner=False) as api:
        await trio.sleep(16)
        thief = await stolen_state(here)
        await quiet(here, api)  # until then it cannot be told from us: the limit
        await thief.renew()
        began = time.monotonic()
        met = await elsewhere(api)
        seconds = time.monotonic() - began
        print(f"a copied state directory: told {seconds:.0f} s after its first renewal")
        assert seconds < 30
        assert met["reason"] == "renewal"
        assert met["presented"] == {"serial": f"{thief.chain[0].serial_number:x}"}
        await thief.client.close()


async def test_one_certificate_from_two_addresses_in_turn_is_told_by_the_callee(tmp_path: Path) -> None:
    async with site(tmp_path) as here, here.api() as api:
        web = here.site.caller("web")
        await web.enrol(here.site.make_credentials("web")["web"])
        shown = Credential(web.chain[0], web.key, web.chain)

        async def call(source: str) -> None:
            number = len(api.program.connections) + 1
            with await connect_from(source, Address(*api.address("http"))) as sock:
                peer = Foreigner(sock, shown)
                await peer.handshake()
                assert (await peer.receive()).startswith(b"\x02ok")
                await peer.close()
            await api.program.connection(number)

        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"):  # it has moved
            await call(source)
        assert api.program.events("identity_elsewhere") == []
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            await call(source)
        met = await elsewhere(api)
        assert met["presented"]["serial"] == f"{web.chain[0].serial_number:x}"
        assert met["expected"] == "spiffe://shop.internal/web"
        assert "127.0.0.2" in met["message"]
        await web.client.close()


async def test_a_pass_that_is_used_in_two_places_at_once_is_told_and_two_passes_are_not(tmp_path: Path) -> None:
    """A person may have several; each is a certificate of its own. One that is in two places was copied."""
    async with site(tmp_path) as here:
        (here.site.path / "mesh.yaml").write_text(
            f"{CALLS_API}people: [alice]\n".replace("[web, job]", "[web, user/alice]")
        )
        async with here.api(sooner=False) as api:
            loaded = authority.load(here.site.directory, utc_now())
            first, second = (authority.issue(loaded, "user/alice", utc_now()) for _ in range(2))

            async def call(source: str, made: authority.Issued) -> None:
                number = len(api.program.connections) + 1
                with await connect_from(source, Address(*api.address("http"))) as sock:
                    peer = Foreigner(sock, Credential(made.chain[0], made.key, made.chain))
                    await peer.handshake()
                    assert (await peer.receive()).startswith(b"\x02ok")
                    await peer.close()
                await api.program.connection(number)

            for _ in range(4):
                await call("127.0.0.1", first)
                await call("127.0.0.2", second)
            assert api.program.events("identity_elsewhere") == []
            for source in ("127.0.0.2", "127.0.0.1", "127.0.0.2", "127.0.0.1"):
                await call(source, first)
            met = await elsewhere(api)
            assert met["expected"] == "spiffe://shop.internal/user/alice"
            assert met["next"] == (
                "if its pass was not used in both by its owner, it was stolen: certs revoke user/alice"
            )


# -- the issuing key ---------------------------------------------------------------------------------------------------


async def test_what_the_issuing_key_forged_is_not_told(tmp_path: Path) -> None:
    """The limit: no CA has it in its store. Who fears it, watches over the key."""
    async with site(tmp_path) as here, here.api() as api:
        with await connect(Address(*api.address("http"))) as sock, contextlib.suppress(OSError):
            peer = Foreigner(sock, forged("web", stolen_issuer(here.site)))
            await peer.handshake()
            assert (await peer.receive()).startswith(b"\x02ok")
            await peer.close()
        await quiet(here, api)
