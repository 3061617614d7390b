"""A listener opens when its target has answered; a refusal that waiting cannot end opens it too; trials are few."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.names import Target
from sidecar.proxy import waiting
from sidecar.transport import sockets
from tests.beds.certificates import Authority
from tests.beds.impostor import Impostor
from tests.beds.mesh import (
    MESH,
    TIMEOUT,
    App,
    MeshBed,
    RunningSidecar,
    connect,
    echo,
    inbound,
    mesh_bed,
    outbound,
    receive_all,
)
from tests.beds.patience import PATIENCE
from tests.unit.proxy.test_inbound import nobody

WAITS = Timeouts(handshake=TIMEOUT, connect=TIMEOUT, drain=TIMEOUT, wait=600.0)


async def is_closed(address: Address) -> bool:
    """Whether a program that waits for the service by connecting has to go on waiting."""
    try:
        (await connect(address)).close()
    except ConnectionRefusedError:
        return True
    return False


async def starts(bed: MeshBed, address: Address) -> App:
    app = App(sockets.listen("test", address.host, address.port), echo)
    bed.nursery.start_soon(bed.serve_app, app)
    return app


async def opened(sidecar: RunningSidecar) -> None:
    await sidecar.log.until(lambda: bool(sidecar.log.events("listening")))


async def until(condition: Callable[[], object]) -> None:
    """For what has no event of its own."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def serves(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, b"ping")
        client.shutdown(1)
        assert await receive_all(client) == b"ping"


async def test_no_end_listens_before_the_app_has_answered() -> None:
    async with mesh_bed() as bed:
        place = nobody()
        api = await bed.sidecar("api", inbound=[inbound("http", place)], timeouts=WAITS)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))], timeouts=WAITS)
        entry = web.address("api:http", "outbound")
        await api.log.until(lambda: bool(api.log.events("waiting")))
        await web.log.until(lambda: bool(web.log.events("waiting")))
        assert await is_closed(entry)
        assert await is_closed(api.address("http"))
        assert [len(one.server.waiting.reasons) for one in (api, web)] == [1, 1]
        app = await starts(bed, place)
        await opened(web)
        await serves(entry)
        assert [len(one.server.waiting.reasons) for one in (api, web)] == [0, 0]
        # Each end asked once when it was there: the callee's sidecar the app, the caller's sidecar through the mesh.
        assert app.connections == 3
        assert bytes(app.received) == b"ping"
        lines = [await api.log.connection(1), await api.log.connection(2), await web.log.connection(1)]
        assert [line["reason"] for line in lines] == ["ok", "ok", "ok"]
        assert sorted(line["bytes_to_app"] for line in api.log.connections) == [0, 4]
        assert not [line for sidecar in (api, web) for line in sidecar.log.lines if line["level"] != "info"]
        (line,) = web.log.events("waiting")
        assert re.search(
            r"outbound\[0\]\.listen: closed, .* not answered yet: cannot reach .*, or after 600 s", line["message"]
        )


async def test_the_twin_without_wait_it_is_open_from_the_start() -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", nobody())])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
        assert not await is_closed(web.address("api:http", "outbound"))
        assert not web.server.waiting.reasons


async def test_a_callee_that_does_not_wait_itself_says_when_its_app_answers() -> None:
    async with mesh_bed() as bed:
        place = nobody()
        api = await bed.sidecar("api", inbound=[inbound("http", place)])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))], timeouts=WAITS)
        await web.log.until(lambda: bool(web.log.events("waiting")))
        assert "was refused by the peer: connect_failed" in web.log.events("waiting")[0]["message"]
        assert await is_closed(web.address("api:http", "outbound"))
        await starts(bed, place)
        await opened(web)
        await serves(web.address("api:http", "outbound"))


class Refuser:
    """Stands for :func:`waiting.ask_callee`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reason: Reason) -> None:
        self.asked, self.reason = 0, reason
        monkeypatch.setattr("sidecar.proxy.server.ask_callee", self.ask)

    async def ask(self, *_: Any) -> Refused:
        self.asked += 1
        return Refused(self.reason, "is not there", peer_reason="connect_failed")


@pytest.mark.parametrize(
    ("reason", "at_most"),
    [
        (Reason.PEER_REFUSED, 5 + 600 / waiting.LONGEST_PAUSE_SECONDS),
        (Reason.CONNECT_FAILED, 1 + 600 / waiting.PAUSE_SECONDS),
    ],
)
async def test_trials_are_few_where_each_is_a_line_in_the_callee_s_log_and_end_with_the_time(
    reason: Reason, at_most: float, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.autojump_threshold = 0.0
    refuser = Refuser(monkeypatch, reason)
    async with mesh_bed() as bed:
        web = await bed.sidecar("web", outbound=[outbound("api", "http", nobody())], timeouts=WAITS)
        await trio.sleep(599)
        assert not web.log.events("listening")
        assert await is_closed(web.address("api:http", "outbound"))
        await trio.sleep(2)
        (line,) = web.log.events("listening")
        assert line["level"] == "warning"
        assert "although its target has not answered within 600 s" in line["message"]
        assert at_most / 2 < refuser.asked <= at_most
        assert not await is_closed(web.address("api:http", "outbound"))
        assert len(web.log.events("waiting")) == 1


async def test_a_call_that_our_policy_denies_is_not_waited_for() -> None:
    async with mesh_bed() as bed:
        app = nobody()
        web = await bed.sidecar("web", outbound=[outbound("db", "5432", app)], timeouts=WAITS)
        await trio.testing.wait_all_tasks_blocked()
        assert not web.log.events("waiting")
        with pytest.raises(ConnectionResetError):
            await serves(web.address("db:5432", "outbound"))
        assert (await web.log.connection())["reason"] == "policy_denied"


async def test_nor_is_a_call_that_may_mean_several() -> None:
    async with mesh_bed() as bed:
        route = outbound("api", "http", nobody(), ambiguous_with=[Target("api", "metrics")])
        web = await bed.sidecar("web", outbound=[route], timeouts=WAITS)
        await until(lambda: not web.server.listeners[0].closed)
        assert not web.log.events("waiting")


async def test_the_twin_a_policy_that_comes_to_deny_it_ends_the_waiting() -> None:
    async with mesh_bed() as bed:
        web = await bed.sidecar("web", outbound=[outbound("api", "http", nobody())], timeouts=WAITS)
        await web.log.until(lambda: bool(web.log.events("waiting")))
        web.node.current = replace(
            web.node.current, mesh=parse_mesh(MESH.replace("from: web", "from: db"), "mesh.yaml")
        )
        await opened(web)
        assert not await is_closed(web.address("api:http", "outbound"))


async def test_a_callee_that_may_not_let_us_in_is_not_waited_for() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        api.node.current = replace(
            api.node.current, mesh=parse_mesh(MESH.replace("from: web", "from: db"), "mesh.yaml")
        )
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))], timeouts=WAITS)
        await until(lambda: not web.server.listeners[0].closed)
        assert (await api.log.connection())["reason"] == "policy_denied"
        with pytest.raises(ConnectionResetError):
            await serves(web.address("api:http", "outbound"))
        assert (await web.log.connection())["peer_reason"] == "policy_denied"
        assert not web.log.events("waiting")
        assert not app.connections


async def test_somebody_in_its_place_is_one_alarm_and_a_refusal_by_name() -> None:
    async with mesh_bed() as bed:
        impostor = Impostor()
        there = await bed.app(impostor.serve)
        impostor.answer = impostor.shows(Authority().leaf("api"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", there.address)], timeouts=WAITS)
        await until(lambda: not web.server.listeners[0].closed)
        assert len(web.log.alarms) == 1
        with pytest.raises(ConnectionResetError):
            await serves(web.address("api:http", "outbound"))
        assert (await web.log.connection())["reason"] == "unknown_ca"


@pytest.mark.parametrize(
    ("reason", "peer_reason", "not_yet"),
    [
        (Reason.CONNECT_FAILED, None, True),
        (Reason.HANDSHAKE_TIMEOUT, None, True),
        (Reason.PEER_REFUSED, None, True),
        (Reason.PEER_REFUSED, "connect_failed", True),
        (Reason.PEER_REFUSED, "overloaded", True),
        (Reason.PEER_REFUSED, "drained", True),
        (Reason.PEER_REFUSED, "policy_denied", False),
        (Reason.PEER_REFUSED, "revoked", False),
        (Reason.PEER_REFUSED, "a word of tomorrow", False),
        (Reason.UNEXPECTED_PEER, None, False),
        (Reason.EXPIRED, None, False),
        (Reason.HANDSHAKE_FAILED, None, False),
        (Reason.REVOCATIONS_STALE, None, False),
    ],
)
def test_what_waiting_can_end(reason: Reason, peer_reason: str | None, not_yet: bool) -> None:
    assert waiting.is_not_yet(Refused(reason, "…", peer_reason=peer_reason)) is not_yet


async def test_an_address_that_another_process_has_taken_meanwhile_is_a_fault_until_it_is_free() -> None:
    async with mesh_bed() as bed:
        place = nobody()
        api = await bed.sidecar("api", inbound=[inbound("http", place)], timeouts=WAITS)
        await api.log.until(lambda: bool(api.log.events("waiting")))
        with sockets.listen("another", *api.server.listeners[0].address):
            await starts(bed, place)
            await until(lambda: api.server.faults)
            assert "another process listens there" in api.server.faults[0]
        await opened(api)
        assert not api.server.faults


async def test_a_stop_while_it_waits_ends_it() -> None:
    async with mesh_bed() as bed:
        web = await bed.sidecar("web", outbound=[outbound("api", "http", nobody())], timeouts=WAITS)
        await web.log.until(lambda: bool(web.log.events("waiting")))
        assert not await web.drained()


async def test_many_that_wait_share_the_trials(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_clock.autojump_threshold = 0.0
    refuser = Refuser(monkeypatch, Reason.CONNECT_FAILED)
    async with mesh_bed() as bed:
        routes = [outbound("api", "http", nobody()) for _ in range(40)]
        web = await bed.sidecar("web", outbound=routes, timeouts=replace(WAITS, wait=60.0))
        await trio.sleep(70)
        assert len(web.log.events("listening")) == len(routes)
        assert refuser.asked <= len(routes) + 60 * waiting.TRIALS_A_SECOND
