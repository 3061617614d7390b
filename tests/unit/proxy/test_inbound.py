"""Inbound, what the attacks do not show: the app behind the port, and what the record knows at each end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy import inbound as inbound_module
from sidecar.proxy import peer as peer_module
from sidecar.proxy.node import Node, Snapshot
from sidecar.relay.strand import Steps, run
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.tls import Context, KeyPair
from tests.attacks.stage import assert_refused
from tests.beds.certificates import Authority
from tests.beds.clock import moment
from tests.beds.mesh import MESH, App, Foreigner, connect, echo, inbound, mesh_bed, outbound


def nobody() -> Address:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Address(*sock.getsockname())


async def test_an_app_that_is_not_there_is_no_denial() -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", nobody())])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "connect_failed"
            assert await caller.receive() == b""
        line = await api.log.connection()
        assert (line["reason"], line["decision"], line["rule"]) == ("connect_failed", "allow", "web->api:http")
        assert line["peer_id"] == "spiffe://shop.internal/web"


async def test_the_first_place_of_the_app_that_answers_gets_it() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", nobody(), app.address)])
        for number in (1, 2):
            caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
            with caller.sock:
                await caller.handshake()
                assert await caller.verdict() == "ok"
                await caller.close()
                assert await caller.receive() == b""
            line = await api.log.connection(number)
            assert (line["reason"], line["upstream"]) == ("ok", str(app.address))


async def test_an_app_whose_name_has_no_address() -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", Address("no-such-host.invalid", 80))])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "connect_failed"
        assert (await api.log.connection())["reason"] == "connect_failed"


async def test_data_that_came_with_the_handshake_reaches_the_app() -> None:
    """A TLS 1.3 client may speak before it is judged; once it is, nothing of that is lost."""
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
        with caller.sock:
            await caller.handshake()
            await caller.send(b"early")
            assert await caller.verdict() == "ok"
            assert await caller.receive() == b"early"
            await caller.close()


async def test_a_reload_during_the_handshake_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake was judged by what was in force when it began; what is in force at its end counts."""
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", (await bed.app()).address)])
        strange = generation_under(api.node, Authority())
        for reload, told in ((lambda: None, "ok"), (lambda: setattr(api.node, "current", strange), "trust_changed")):

            def shake_hands_meanwhile(*words: Any, reload: Callable[[], None] = reload) -> Steps[None]:
                yield from shake_hands(*words)
                reload()

            monkeypatch.setattr(peer_module, "shake_hands", shake_hands_meanwhile)
            caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
            with caller.sock:
                await caller.handshake()
                assert await caller.verdict() == told


def generation_under(node: Node, authority: Authority) -> Snapshot:
    """What is in force, but for the roots: those of another authority."""
    own = authority.leaf(node.config.service)
    context = Context(KeyPair(own.chain, own.key, authority.roots), node.current.context.params)
    return replace(node.current, context=context)


@pytest.mark.parametrize("how", ["app_reset", "client_reset"])
async def test_resets_have_names_of_their_own(how: str) -> None:
    async def refuse(sock: socket.socket, _app: App) -> None:
        await sockets.receive(sock, 100)
        sockets.hard_close(sock)

    async def echo_until_gone(sock: socket.socket, _app: App) -> None:
        while data := await sockets.receive(sock, 100):
            await sockets.send_all(sock, data)

    async with mesh_bed() as bed:
        app = await bed.app(refuse if how == "app_reset" else echo_until_gone)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"))
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"
            await caller.send(b"hello")
            if how == "app_reset":
                with pytest.raises((OSError, EOFError)):
                    await caller.receive()
            else:
                assert await caller.receive() == b"hello"
                sockets.hard_close(caller.sock)
        line = await api.log.connection()
        # A peer's reset before its close_notify is a truncation: nobody can tell it from an attack.
        assert line["reason"] == ("app_reset" if how == "app_reset" else "truncated")
        assert line["decision"] == "allow"


@pytest.fixture
def virtual_time() -> MockClock:
    """Goes on to the next deadline when nothing has happened for a moment."""
    return MockClock(autojump_threshold=moment(0.05))


async def never(*_: object) -> list[tuple[int, str]]:
    await trio.sleep_forever()
    raise AssertionError


async def test_silent_places_of_the_app_cost_one_deadline_and_the_caller_hears_why(
    virtual_time: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that do not answer took twice as long as the caller waits; it never heard the reason, nor tried elsewhere."""
    real = sockets.connect

    async def connect_or_not(family: int, address: tuple[Any, ...]) -> socket.socket:
        if address[0].startswith("10."):
            await trio.sleep_forever()
        return await real(family, address)

    monkeypatch.setattr(sockets, "connect", connect_or_not)
    silent = [Address(f"10.0.0.{number}", 80) for number in range(6)]
    timeouts = Timeouts(handshake=2.0, connect=3.0, drain=1.0)
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", *silent)], timeouts=timeouts)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))], timeouts=timeouts)
        began = trio.current_time()
        await assert_refused(web.address("api:http", "outbound"))
        here, there = await web.log.connection(), await api.log.connection()
        assert (here["reason"], here["peer_reason"]) == ("peer_refused", "connect_failed")
        assert (there["reason"], there["upstream"]) == ("connect_failed", None)
        assert "no answer within 3 s" in there["message"]
        assert timeouts.connect <= trio.current_time() - began < timeouts.connect + timeouts.handshake
        # A callee whose resolver is silent answers in time too.
        monkeypatch.setattr(dial, "look_up", never)
        slow = await bed.sidecar("api", inbound=[inbound("http", Address("slow.mesh", 80))], timeouts=timeouts)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", slow.address("http"))], timeouts=timeouts)
        await assert_refused(web.address("api:http", "outbound"))
        assert (await web.log.connection())["peer_reason"] == "connect_failed"


def nothing_to_send() -> Steps[None]:
    return
    yield


async def test_an_app_that_answers_is_held_back_no_longer() -> None:
    async with mesh_bed() as bed:
        app = dial.Upstream("api's app", [(await bed.app()).address], dial.Resolver(), ())
        (endpoint,) = await app.endpoints()
        endpoint.failed()
        sock, reached = await run(inbound_module.connect(app, 5, nothing_to_send))
        sock.close()
        assert reached is endpoint
        assert (endpoint.failures, endpoint.aside_until) == (0, 0)


async def test_the_twin_one_place_of_several_that_answers_is_soon_found(
    virtual_time: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sockets.connect

    async def connect_or_not(family: int, address: tuple[Any, ...]) -> socket.socket:
        if address[0].startswith("10."):
            await trio.sleep_forever()
        return await real(family, address)

    monkeypatch.setattr(sockets, "connect", connect_or_not)
    async with mesh_bed() as bed:
        app = await bed.app()
        places = [*(Address(f"10.0.0.{number}", 80) for number in range(6)), app.address]
        api = await bed.sidecar("api", inbound=[inbound("http", *places)])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
        began = trio.current_time()
        with await connect(web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, b"ping")
            assert await sockets.receive(client, 4) == b"ping"
        assert trio.current_time() - began < 2


@pytest.mark.parametrize("has_replicas", [True, False])
async def test_while_it_drains_callers_are_sent_to_a_replica_if_there_is_one(*, has_replicas: bool) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        both = [await bed.sidecar("api", inbound=[inbound("http", app.address)]) for _ in range(2)]
        for one in both:
            one.node.config = replace(one.node.config, has_replicas=has_replicas)
        both[0].node.draining = True
        web = await bed.sidecar("web", outbound=[outbound("api", "http", *(one.address("http") for one in both))])
        for _ in range(2):
            with await connect(web.address("api:http", "outbound")) as client:
                await sockets.send_all(client, b"ping")
                assert await sockets.receive(client, 4) == b"ping"
        await web.log.connection(2)
        refused = [line for one in both for line in one.log.connections if line["decision"] == "deny"]
        assert [line["reason"] for line in refused] == ["drained"] * has_replicas
        assert all(
            "is stopping: spiffe://shop.internal/web is to call another one" in one["message"] for one in refused
        )


async def test_a_denied_call_ends_with_the_rule_that_would_allow_it_at_both_ends() -> None:
    """Also where the two have other policies: it is the callee's that lacks it."""
    rule = '- {from: ["reporting"], to: ["api:http"]}'
    end = f"no rule allows it; to allow it, add to `policy:` in mesh.yaml: {rule}"
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", nobody())])
        reporting = await bed.sidecar("reporting", outbound=[outbound("api", "http", api.address("http"))])
        await assert_refused(reporting.address("api:http", "outbound"))
        assert (await reporting.log.connection())["message"].endswith(end)
        allowing = parse_mesh(MESH.replace("policy:", f"policy:\n  {rule}"), "mesh.yaml")
        reporting.node.current = replace(reporting.node.current, mesh=allowing)
        await assert_refused(reporting.address("api:http", "outbound"))
        assert (await api.log.connection())["message"].endswith(end)
        refused = await reporting.log.connection(2)
        assert (refused["reason"], refused["peer_reason"]) == ("peer_refused", "policy_denied")
        assert refused["message"].endswith(f"in which rule 'reporting->api:http' allows it. It needs: {rule}")
