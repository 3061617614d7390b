"""Somebody answers in a service's place, or stands between two: with nothing, with a forgery, with a stolen certificate."""

from __future__ import annotations

import contextlib
import socket

import pytest
from OpenSSL import SSL

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.attacks.stage import API, HONEST, STOLEN, Bend, assert_refused, attacked_call, attacked_port
from tests.attacks.tap import Tap, tapped
from tests.beds.certificates import Authority
from tests.beds.mesh import App, Foreigner, connect, echo, inbound, mesh_bed, outbound


@pytest.mark.parametrize("thief", ["db", "web", "reporting", "stranger", "mesh/ca", "api/x", "API"])
async def test_a_valid_certificate_of_another_answers_in_the_place_of_api(thief: str) -> None:
    """Among them web's own: a call reflected to its caller."""
    async with attacked_call() as call:
        stolen = call.bed.authority.leaf(thief)
        await call.attack(call.impostor.shows(stolen))
        line = await call.refused("unexpected_peer", alarm=True)
        met = f"spiffe://shop.internal/{thief}"
        for message in (line["message"], call.sidecar.log.alarms[0]["message"]):
            for fact in (API, met, str(call.place)):
                assert fact in message
        assert call.sidecar.log.alarms[0]["presented"]["uris"] == repr(met)
        assert "bad certificate" in (call.impostor.alerts[0] or "")


async def test_the_address_never_counts() -> None:
    """api's own address, taken over by db's genuine sidecar (redirected at IP level, or a lying name)."""
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        db = await bed.sidecar("db", inbound=[inbound("5432", app.address)])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", db.address("5432"))])
        await assert_refused(web.address("api:http", "outbound"))
        there, here = await web.log.connection(), await db.log.connection()
        assert there["decision"] == here["decision"] == "deny"
        assert here["reason"] == "handshake_failed"  # asked for mesh/1/http, which db does not speak
        assert app.connections == 0


async def test_another_service_of_the_same_port_name_takes_the_address() -> None:
    mesh = """
trust_domain: shop.internal
services: {web: {}, api: {ports: {http: 80}}, other: {ports: {http: 80}}}
policy: [{from: web, to: "*"}]
"""
    async with mesh_bed(mesh) as bed:
        app = await bed.app(echo)
        other = await bed.sidecar("other", inbound=[inbound("http", app.address)])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", other.address("http"))])
        await assert_refused(web.address("api:http", "outbound"))
        there, here = await web.log.connection(), await other.log.connection()
        assert (there["reason"], there["decision"]) == ("unexpected_peer", "deny")
        assert len(web.log.alarms) == 1
        # The other end, which would have let web in, hears of it too.
        assert (here["reason"], here["peer_reason"], here["decision"]) == ("peer_refused", "bad_certificate", "deny")
        assert app.connections == 0


async def test_a_stolen_certificate_that_the_policy_does_not_name_at_a_port() -> None:
    async with attacked_port() as port:
        for thief in ("db", "api", "reporting", "stranger", "mesh/ca", "web/x", "WEB", "web-admin", "we", "web."):
            caller = await port.foreigner(port.bed.authority.leaf(thief))
            with caller.sock:
                await caller.handshake()
                assert await caller.verdict() == "policy_denied"
                assert await caller.receive() == b""
            line = await port.refused("policy_denied")
            assert line["peer_id"] == f"spiffe://shop.internal/{thief}"
            assert line["rule"] is None
            assert f"spiffe://shop.internal/{thief}" in line["message"]


class TerminatingRelay:
    """Ends the caller's TLS with one certificate, and calls the callee with another, passing on what it can read."""

    def __init__(self, place: Address, shown: Bend, used: Bend, authority: Authority) -> None:
        self.place, self.authority, self.shown, self.used = place, authority, shown, used
        self.read = bytearray()

    async def serve(self, sock: socket.socket, _app: App) -> None:
        front = Foreigner(sock, self.shown(self.authority, "api"), server=True)
        with contextlib.suppress(SSL.Error, EOFError, OSError):
            await front.handshake()
            await front.send(b"\x02ok")
            self.read += await front.receive()
        with await connect(self.place) as onward:
            back = Foreigner(onward, self.used(self.authority, "web"))
            with contextlib.suppress(SSL.Error, EOFError, OSError):
                await back.handshake()
                await back.send(STOLEN)
                await back.receive()


FORGER = Authority()

RELAYS: dict[str, tuple[Bend, str, Bend, str]] = {
    "with a forged CA": (lambda _, who: FORGER.leaf(who), "unknown_ca", lambda _, who: FORGER.leaf(who), "unknown_ca"),
    "without a client certificate": (
        lambda _, who: FORGER.leaf(who),
        "unknown_ca",
        lambda _, who: None,
        "no_certificate",
    ),
    "with a third service's certificate": (
        lambda ca, _: ca.leaf("db"),
        "unexpected_peer",
        lambda ca, _: ca.leaf("db"),
        "policy_denied",
    ),
}


@pytest.mark.parametrize(("shown", "at_caller", "used", "at_callee"), RELAYS.values(), ids=RELAYS)
async def test_a_relay_that_terminates_tls(shown: Bend, at_caller: str, used: Bend, at_callee: str) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        relay = TerminatingRelay(api.address("http"), shown, used, bed.authority)
        between = await bed.app(relay.serve)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", between.address)])
        await assert_refused(web.address("api:http", "outbound"))
        there, here = await web.log.connection(), await api.log.connection()
        assert (there["reason"], there["decision"]) == (at_caller, "deny")
        assert (here["reason"], here["decision"]) == (at_callee, "deny")
        assert len(web.log.alarms) == 1
        assert bytes(relay.read) == b""
        assert app.connections == 0

        # The twin: the same relay when it only forwards.
        between.handler = (await tapped(bed, api.address("http")))[0].serve
        with await connect(web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST


async def test_a_captured_flight_replayed_to_a_port() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        tap, place = await tapped(bed, api.address("http"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place)])
        with await connect(web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
            client.shutdown(socket.SHUT_WR)
            assert await sockets.receive(client, 100) == b""
        assert (await api.log.connection())["reason"] == "ok"
        for flight in (b"".join(tap.heard["caller"]), b"".join(tap.heard["caller"][1:])):
            with await connect(api.address("http")) as attacker:
                await sockets.send_all(attacker, flight)
                attacker.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while await sockets.receive(attacker, 65536):
                        pass
        lines = [await api.log.connection(2), await api.log.connection(3)]
        assert {line["decision"] for line in lines} == {"deny"}
        assert lines[0]["reason"] == "handshake_failed"
        assert (app.connections, bytes(app.received)) == (1, HONEST)


async def test_a_captured_flight_replayed_to_a_caller() -> None:
    async with attacked_call() as call:
        app = await call.bed.app(echo)
        api = await call.bed.sidecar("api", inbound=[inbound("http", app.address)])
        tap = Tap(api.address("http"))
        call.impostor.answer = tap.answer
        with await connect(call.entry) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST
        await call.sidecar.log.connection()
        call.lines += 1
        call.sidecar.node.registry.end_idle()  # or the next call would go on with the channel that is proved
        await call.attack(call.impostor.says(b"".join(tap.heard["callee"])))
        await call.refused("handshake_failed", alarm=False)
