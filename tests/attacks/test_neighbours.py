"""A neighbour that got an old address is told from an attacker; whoever stays, or sits where the name leads, is none."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock

from sidecar.documents.address import Address
from sidecar.observe.recurrence import FEW
from sidecar.transport import dial, sockets
from tests.attacks.stage import HONEST, assert_refused
from tests.beds.certificates import Authority
from tests.beds.clock import moment
from tests.beds.impostor import Impostor
from tests.beds.mesh import MeshBed, RunningSidecar, connect, inbound, mesh_bed, outbound

NEW = "127.0.0.2"


class Names:
    """``answer``: the addresses of api.mesh, an error, or None: it never answers."""

    def __init__(self) -> None:
        self.answer: list[str] | Exception | None = ["127.0.0.1"]

    async def look_up(self, _host: str, _threads: object) -> list[tuple[int, str]]:
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await trio.sleep_forever()
        return [(socket.AF_INET, ip) for ip in self.answer or ()]


@dataclass
class Moved:
    """web knows api at an old address, where somebody else answers now; ``names`` says where the name leads."""

    bed: MeshBed
    web: RunningSidecar
    old: Impostor
    names: Names
    place: Address

    @property
    def entry(self) -> Address:
        return self.web.address("api:http", "outbound")

    async def refused(self) -> None:
        await assert_refused(self.entry)

    def events(self) -> list[str]:
        met = ("neighbour_met", "mitm_suspected")
        return [line["event"] for line in self.web.log.lines if line["event"] in met]

    async def api_at_its_new_address(self) -> None:
        app = await self.bed.app()
        await self.bed.sidecar(
            "api", inbound=[replace(inbound("http", app.address), listen=Address(NEW, self.place.port))]
        )
        self.names.answer = [NEW]


@asynccontextmanager
async def moved(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Moved]:
    names = Names()
    monkeypatch.setattr(dial, "look_up", names.look_up)
    async with mesh_bed() as bed:
        old = Impostor()
        place = (await bed.app(old.serve)).address
        web = await bed.sidecar("web", outbound=[outbound("api", "http", Address("api.mesh", place.port))])
        await trio.testing.wait_all_tasks_blocked()  # the name was resolved
        old.answer = old.shows(bed.authority.leaf("db"))
        yield Moved(bed, web, old, names, place)


async def test_a_neighbour_is_refused_and_no_alarm_and_the_same_call_finds_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with moved(monkeypatch) as on:
        await on.api_at_its_new_address()
        with await connect(on.entry) as client:  # at once, without waiting for the next look-up
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
        assert (await on.web.log.connection())["peer_address"] == f"{NEW}:{on.place.port}"
        assert bytes(on.old.received) == b""
        (notice,) = on.web.log.events("neighbour_met")
        assert (notice["level"], notice["severity"], notice["reason"]) == ("warning", "notice", "unexpected_peer")
        assert "a neighbour that got an old address of api" in notice["message"]
        assert on.events() == ["neighbour_met"]


async def test_a_neighbour_of_a_service_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with moved(monkeypatch) as on:
        on.names.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await on.refused()
        await on.refused()
        assert on.events() == ["neighbour_met"]
        line = await on.web.log.connection()
        assert (line["reason"], line["decision"], line["bytes_from_app"]) == ("unexpected_peer", "deny", 0)
        assert bytes(on.old.received) == b""
        assert (await on.web.log.connection(2))["reason"] == "connect_failed"


async def test_whoever_answers_where_the_name_leads_is_an_attacker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with moved(monkeypatch) as on:
        await on.refused()
        assert on.events() == ["mitm_suspected"]
        assert on.web.log.alarms[0]["reason"] == "unexpected_peer"


@pytest.mark.parametrize(
    "answer",
    [None, socket.gaierror(socket.EAI_AGAIN, "try again"), OSError(5, "broken")],
    ids=["silent", "unsure", "broken"],
)
async def test_without_an_answer_it_is_an_alarm_and_soon(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = moment(0.05)
    async with moved(monkeypatch) as on:
        on.names.answer = answer
        began = trio.current_time()
        await on.refused()
        assert on.events() == ["mitm_suspected"]
        assert trio.current_time() - began < 1


async def test_a_foreign_certificate_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    async with moved(monkeypatch) as on:
        on.old.answer = on.old.shows(Authority().leaf("db"))
        on.names.answer = [NEW]
        await on.refused()
        assert on.events() == ["mitm_suspected"]


async def test_who_is_no_service_of_the_mesh_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    async with moved(monkeypatch) as on:
        on.old.answer = on.old.shows(on.bed.authority.leaf("stranger"))
        on.names.answer = [NEW]
        await on.refused()
        assert on.events() == ["mitm_suspected"]


async def test_whoever_is_met_again_and_again_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name leads there each time that web asks, and elsewhere when it asks again: somebody plays with the names."""
    async with moved(monkeypatch) as on:
        for number in range(1, FEW + 1):
            name = on.web.server.node.resolver.name("api.mesh")
            name.addresses = [(socket.AF_INET, "127.0.0.1")]
            on.names.answer = [NEW]
            await on.refused()
            assert on.events() == ["neighbour_met"] + ["mitm_suspected"] * (number == FEW)
