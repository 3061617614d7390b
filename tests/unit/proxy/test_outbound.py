"""Outbound, what the attacks do not show: whom it asks, in which order, and what the record knows at each end."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.policy.names import Target
from sidecar.proxy import outbound as outbound_module
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import receive_verdict
from tests.attacks.stage import HONEST, STOLEN, assert_refused, attacked_call
from tests.beds.certificates import Authority
from tests.beds.clock import moment
from tests.beds.impostor import Impostor
from tests.beds.mesh import App, Foreigner, connect, inbound, mesh_bed, outbound
from tests.unit.proxy.test_inbound import generation_under, nobody


@pytest.fixture
def virtual_time() -> MockClock:
    """Goes on to the next deadline when nothing has happened for a moment."""
    return MockClock(autojump_threshold=moment(0.05))


async def test_nobody_there_is_no_denial_and_no_alarm() -> None:
    async with mesh_bed() as bed:
        endpoint = nobody()
        web = await bed.sidecar("web", outbound=[outbound("api", "http", endpoint)])
        await assert_refused(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert (line["reason"], line["decision"], line["rule"]) == ("connect_failed", "allow", "web->api:http")
        assert (line["peer_address"], line["peer_id"], line["upstream"]) == (str(endpoint), None, "api:http")
        assert not web.log.alarms


async def test_a_call_that_may_mean_several_is_refused_and_names_them() -> None:
    """Also if the policy allows one of them: another one may be meant."""
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        route = outbound(
            "api", "http", api.address("http"), ambiguous_with=[Target("db", "5432"), Target("api", "metrics")]
        )
        web = await bed.sidecar("web", outbound=[route])
        await assert_refused(Address(*web.server.listeners[0].address))
        line = await web.log.connection()
        assert (line["reason"], line["decision"], line["rule"]) == ("policy_denied", "deny", None)
        assert line["upstream"] == "api:http or db:5432 or api:metrics"
        assert "cannot tell whether api:http or db:5432 or api:metrics is meant" in line["message"]
        assert not app.connections


async def test_a_name_without_an_address() -> None:
    async with mesh_bed() as bed:
        web = await bed.sidecar("web", outbound=[outbound("api", "http", Address("no-such-host.invalid", 80))])
        await assert_refused(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert (line["reason"], line["peer_address"]) == ("connect_failed", None)
        assert "no-such-host.invalid" in line["message"]


async def test_a_peer_that_is_away_is_passed_over() -> None:
    async with mesh_bed() as bed:
        impostor = Impostor()
        here = await bed.app(impostor.serve)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", nobody(), here.address)])
        impostor.answer = impostor.shows(bed.authority.leaf("api"))
        with await connect(web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
            client.shutdown(socket.SHUT_WR)
            assert await sockets.receive(client, 100) == b""
        line = await web.log.connection()
        assert (line["reason"], line["peer_address"]) == ("ok", str(here.address))


async def test_a_reload_during_the_handshake_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_bed() as bed:
        impostor = Impostor()
        there = await bed.app(impostor.serve)
        impostor.answer = impostor.shows(bed.authority.leaf("api"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", there.address)])
        strange = generation_under(web.node, Authority())

        async def hear_meanwhile(*words: Any) -> None:
            await receive_verdict(*words)
            web.node.current = strange

        monkeypatch.setattr(outbound_module, "receive_verdict", hear_meanwhile)
        await assert_refused(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("trust_changed", 0)
        assert STOLEN not in bytes(impostor.received)


async def test_no_address_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> list[dial.Endpoint]:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(dial.Upstream, "endpoints", nothing)
    async with mesh_bed() as bed:
        soon = Timeouts(handshake=5, connect=0.05, drain=5)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", nobody())], timeouts=soon)
        await assert_refused(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert (line["reason"], line["peer_address"]) == ("connect_failed", None)
        assert "no answer within 0.05 s" in line["message"]


async def test_an_alert_behind_the_handshake_is_the_callees_refusal() -> None:
    """A callee that speaks no mesh/1 can only say no with an alert, after our handshake is over."""
    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True, alpn=[])
            peer.tls.set_verify(SSL.VERIFY_PEER, lambda *_: False)
            with contextlib.suppress(SSL.Error):
                await peer.handshake()
            sock.shutdown(socket.SHUT_WR)
            while await sockets.receive(sock, 1000):
                pass

        call.impostor.answer = answer
        await assert_refused(call.entry)
        line = await call.sidecar.log.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("peer_refused", 0)
        assert not call.sidecar.log.alarms
        assert STOLEN not in bytes(call.impostor.received)


@pytest.mark.parametrize("after", ["nothing", "the handshake"])
async def test_a_peer_that_falls_silent_costs_its_time_and_no_more(after: str, virtual_time: MockClock) -> None:
    """It is not waited for once more to read what nobody says."""
    timeouts = Timeouts(handshake=2.0, connect=3.0, drain=1.0)
    async with attacked_call(timeouts=timeouts) as call:

        async def answer(sock: socket.socket) -> None:
            if after == "the handshake":
                peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
                await peer.handshake()
            await trio.sleep_forever()

        call.impostor.answer = answer
        await assert_refused(call.entry)
        line = await call.sidecar.log.connection()
        seconds = timeouts.handshake if after == "nothing" else timeouts.connect + timeouts.handshake
        assert line["reason"] == "handshake_timeout"
        assert 1000 * seconds <= line["duration_ms"] < 1000 * (seconds + 0.9)
        assert line["peer_id"] == (None if after == "nothing" else "spiffe://shop.internal/api")
        assert not call.sidecar.log.alarms


async def reset_at_last(entry: Address) -> None:
    """Passes once a connection is reset, however late."""
    with await connect(entry) as client, pytest.raises(ConnectionResetError):
        await sockets.receive(client, 1)


async def test_peers_that_fall_silent_cost_one_deadline_together(virtual_time: MockClock) -> None:
    """A name that somebody poisoned has many addresses where TCP is accepted and nothing is ever said."""
    timeouts = Timeouts(handshake=2.0, connect=3.0, drain=1.0)
    longest = 2 * (timeouts.connect + timeouts.handshake) + sockets.LINGER_SECONDS

    async def silence(_sock: socket.socket, _app: App) -> None:
        await trio.sleep_forever()

    async with mesh_bed() as bed:
        silent = [await bed.app(silence) for _ in range(12)]
        peers = [app.address for app in silent]
        web = await bed.sidecar("web", outbound=[outbound("api", "http", *peers)], timeouts=timeouts)
        await reset_at_last(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert line["reason"] == "handshake_timeout"
        assert 1000 * longest <= line["duration_ms"] < 1000 * (longest + 0.9)
        # Five had the time of a handshake each; the line is about the last that used it up.
        reached = [app for app in silent if app.connections]
        assert len(reached) == 6
        assert line["peer_address"] in {str(app.address) for app in reached}
        assert "within 2 s" in line["message"]


async def test_a_process_that_was_stopped_for_long_finds_all_its_deadlines_over(mock_clock: MockClock) -> None:
    """As with SIGSTOP, or a laptop that sleeps: the outer deadline ends what the inner one would have named."""
    async with attacked_call() as call:
        reached = trio.Event()

        async def answer(_sock: socket.socket) -> None:
            reached.set()
            await trio.sleep_forever()

        call.impostor.answer = answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_at_last, call.entry)
            await reached.wait()
            await wait_all_tasks_blocked()
            mock_clock.jump(3600)
        line = await call.sidecar.log.connection()
        assert (line["reason"], line["peer_id"]) == ("handshake_timeout", None)
        assert "received no verdict from api:http's sidecar within" in line["message"]
        assert "bug" not in line["message"]


async def test_a_refusal_is_known_before_its_connection_is_closed(virtual_time: MockClock) -> None:
    """The deadline over all peers may end while the goodbye to the last one is said."""
    timeouts = Timeouts(handshake=2.0, connect=3.0, drain=1.0)
    async with attacked_call(timeouts=timeouts) as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
            await peer.handshake()
            await trio.sleep(timeouts.connect + timeouts.handshake - 0.1)
            await peer.send(b"\x0aoverloaded")
            while True:  # goes on, so that lingering takes as long as it may
                await trio.sleep(0.3)
                await sockets.send_all(sock, b"x")

        call.impostor.answer = answer
        await assert_refused(call.entry)
        line = await call.sidecar.log.connection()
        assert (line["reason"], line["peer_reason"]) == ("peer_refused", "overloaded")
        assert line["peer_id"] == "spiffe://shop.internal/api"
