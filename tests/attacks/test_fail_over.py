"""Several peers of one service, and an impostor among them: he raises the alarm, and the honest one gets the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from sidecar.transport import sockets
from tests.attacks.stage import HONEST, assert_refused
from tests.beds.certificates import Authority
from tests.beds.impostor import Impostor
from tests.beds.mesh import App, MeshBed, RunningSidecar, connect, mesh_bed, outbound


@dataclass
class Two:
    """web's two peers for api, asked in this order."""

    bed: MeshBed
    web: RunningSidecar
    first: Impostor
    second: Impostor
    places: tuple[App, App]


@asynccontextmanager
async def two() -> AsyncIterator[Two]:
    async with mesh_bed() as bed:
        first, second = Impostor(), Impostor()
        places = (await bed.app(first.serve), await bed.app(second.serve))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", *(one.address for one in places))])
        yield Two(bed, web, first, second, places)


@pytest.mark.parametrize(
    ("who", "reason"),
    [("db", "unexpected_peer"), ("forger", "unknown_ca"), ("plain", "plaintext_refused"), ("two", "bad_identity")],
)
async def test_a_wrong_answer_fails_over_and_still_alarms(who: str, reason: str) -> None:
    async with two() as on:
        on.first.answer = {
            "db": on.first.shows(on.bed.authority.leaf("db")),
            "forger": on.first.shows(Authority().leaf("api")),
            "plain": on.first.says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "two": on.first.shows(on.bed.authority.leaf("api", uris=())),
        }[who]
        on.second.answer = on.second.shows(on.bed.authority.leaf("api"))
        with await connect(on.web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
        line = await on.web.log.connection()
        assert (line["decision"], line["peer_address"]) == ("allow", str(on.places[1].address))
        assert line["peer_id"] == "spiffe://shop.internal/api"
        assert "unverified" not in line
        [alarm] = on.web.log.alarms
        assert (alarm["reason"], alarm["peer_address"]) == (reason, str(on.places[0].address))
        assert bytes(on.first.received) == b""


async def test_the_gravest_that_was_met_is_what_is_logged() -> None:
    async with two() as on:
        on.first.answer = on.first.shows(on.bed.authority.leaf("db"))
        on.second.answer = on.second.hang_up
        await assert_refused(on.web.address("api:http", "outbound"))
        line = await on.web.log.connection()
        assert (line["reason"], line["decision"]) == ("unexpected_peer", "deny")
        # All of the line is about him, and not about the one who was asked after him.
        assert line["peer_address"] == str(on.places[0].address)
        assert line["unverified"]["uris"] == repr("spiffe://shop.internal/db")
        assert line["connection_id"] == on.web.log.alarms[0]["connection_id"]
        assert len(on.web.log.alarms) == len(on.web.log.connections) == 1


@pytest.mark.parametrize("word", ["connect_failed", "overloaded"])
async def test_a_callee_that_cannot_fails_over_without_alarm(word: str) -> None:
    async with two() as on:
        api = on.bed.authority.leaf("api")
        on.first.answer = on.first.shows(api, frame=bytes([len(word)]) + word.encode())
        on.second.answer = on.second.shows(api)
        with await connect(on.web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
        assert (await on.web.log.connection())["decision"] == "allow"
        assert not on.web.log.alarms
        assert bytes(on.first.received) == b""


async def test_a_callee_that_says_no_is_the_last_to_be_asked() -> None:
    async with two() as on:
        api = on.bed.authority.leaf("api")
        on.first.answer = on.first.shows(api, frame=b"\x0dpolicy_denied")
        on.second.answer = on.second.shows(api)
        await assert_refused(on.web.address("api:http", "outbound"))
        line = await on.web.log.connection()
        assert (line["reason"], line["peer_reason"]) == ("peer_refused", "policy_denied")
        assert on.places[1].connections == 0


async def test_a_line_never_mixes_two_peers() -> None:
    """api itself is overloaded; then an impostor answers: what was verified of the one must not stand by the other."""
    async with two() as on:
        on.first.answer = on.first.shows(on.bed.authority.leaf("api"), frame=b"\x0aoverloaded")
        on.second.answer = on.second.shows(on.bed.authority.leaf("db"))
        await assert_refused(on.web.address("api:http", "outbound"))
        line = await on.web.log.connection()
        assert (line["reason"], line["peer_address"]) == ("unexpected_peer", str(on.places[1].address))
        assert line["peer_id"] is None
