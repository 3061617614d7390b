"""Channels that are kept: the next connection goes without a handshake, is judged as if it had one, and is a connection of
its own to both apps. Each thing that ends a channel costs nobody a connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio

from sidecar.config.sidecar_yaml import Limits, Timeouts
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.observe.traffic import Edge
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy import channels, outbound
from sidecar.proxy.loops import LoopGuard
from sidecar.proxy.node import Snapshot
from sidecar.relay.frames import Kind, Open, encode_open
from sidecar.transport import dial, sockets, tls
from tests.beds.certificates import Authority
from tests.beds.frames import frame
from tests.beds.mesh import (
    MESH,
    TIMEOUT,
    App,
    Foreigner,
    MeshBed,
    RunningSidecar,
    connect,
    echo,
    inbound,
    mesh_bed,
    receive_all,
)
from tests.beds.mesh import outbound as outbound_of
from tests.beds.patience import PATIENCE

NO_RULE = MESH.replace('- {from: web, to: "api:http"}', "")


async def call(entry: Address, said: bytes = b"hello") -> bytes:
    """One connection of an app: what it says comes back, and both ends close cleanly."""
    with await connect(entry) as client:
        await sockets.send_all(client, said)
        client.shutdown(socket.SHUT_WR)
        return await receive_all(client)


async def is_refused(entry: Address) -> bool:
    try:
        answer = await call(entry)
    except OSError:
        return True
    return answer == b""


async def is_idle(*both: RunningSidecar) -> None:
    """Until the channel between them carries no stream."""
    await until(lambda: all(sidecar.node.registry.idle for sidecar in both))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 (a registry has no event)
            await trio.sleep(0.01)


async def test_the_next_connection_is_the_channel_s_next_stream() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        web, api, entry = await bed.pair(app)
        for number in range(1, 6):
            assert await call(entry, b"x" * number) == b"x" * number
            there, here = await web.log.connection(number), await api.log.connection(number)
            assert there["reason"] == here["reason"] == "ok"
            assert there["connection_id"] == here["connection_id"] == f"{here['channel_id']}-{number}"
            assert (there["reused"], here["reused"]) == (number > 1, number > 1)
            assert there["handshake_ms"] is None or number == 1
            assert (there["peer_id"], here["peer_id"]) == (
                "spiffe://shop.internal/api",
                "spiffe://shop.internal/web",
            )
            assert there["bytes_from_app"] == here["bytes_to_app"] == number
            await is_idle(web, api)
        assert {line["channel_id"] for line in web.log.connections + api.log.connections} == {here["channel_id"]}
        assert app.connections == 5


async def test_each_stream_is_a_connection_of_its_edge_at_both_ends() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        assert await call(entry) == await call(entry) == b"hello"
        client = await connect(entry)
        await sockets.send_all(client, b"here")
        assert await sockets.receive(client, 10) == b"here"
        for sidecar, edge in (
            (web, Edge("outbound", "api", "api:http", "web->api:http")),
            (api, Edge("inbound", "web", "http", "web->api:http")),
        ):
            await sidecar.log.connection(2)
            traffic = sidecar.node.metrics.edges[edge]
            assert (traffic.opened, traffic.live, traffic.ended, traffic.refused) == (3, 1, {"ok": 2}, {})
            assert (traffic.streams, traffic.to_app, traffic.from_app) == (3, 14, 14), "what flows now is counted"
            assert list(sidecar.node.metrics.edges) == [edge]
        client.close()


async def test_as_many_as_are_needed_at_once_and_all_are_used_again() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        for _ in range(2):
            clients = [await connect(entry) for _ in range(20)]
            for client in clients:
                await sockets.send_all(client, b"here")
                assert await sockets.receive(client, 10) == b"here"
            for client in clients:
                client.shutdown(socket.SHUT_WR)
                assert await receive_all(client) == b""
                client.close()
            await until(lambda: web.node.registry.idle + api.node.registry.idle == 40)
        assert len({line["channel_id"] for line in web.log.connections}) == 20
        assert [line["reused"] for line in web.log.connections] == [False] * 20 + [True] * 20


@pytest.mark.parametrize("where", ["caller", "callee"])
async def test_keep_0_keeps_none_at_either_end(where: str) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)], keep=0 if where == "callee" else 5)
        web = await bed.sidecar(
            "web", outbound=[outbound_of("api", "http", api.address("http"))], keep=0 if where == "caller" else 5
        )
        for number in (1, 2):
            assert await call(web.address("api:http", "outbound")) == b"hello"
            assert not (await web.log.connection(number))["reused"]
        assert web.node.registry.idle == api.node.registry.idle == 0


async def test_keep_is_the_most() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        web = await bed.sidecar("web", outbound=[outbound_of("api", "http", api.address("http"))], keep=1)
        entry = web.address("api:http", "outbound")
        clients = [await connect(entry) for _ in range(3)]
        for client in clients:
            await sockets.send_all(client, b"here")
            await sockets.receive(client, 10)
        for client in clients:
            client.shutdown(socket.SHUT_WR)
            await receive_all(client)
            client.close()
        await web.log.connection(3)
        assert web.node.registry.idle == 1
        assert await call(entry) == b"hello"
        assert (await web.log.connection(4))["reused"]


# -- judged for each stream, by what is in force then ------------------------------------------------------------------


def with_mesh(text: str) -> Callable[[MeshBed, RunningSidecar], Snapshot]:
    return lambda _, sidecar: replace(sidecar.node.current, mesh=parse_mesh(text, "mesh.yaml"))


def with_revoked(service: str) -> Callable[[MeshBed, RunningSidecar], Snapshot]:
    def change(bed: MeshBed, sidecar: RunningSidecar) -> Snapshot:
        revoked = Revocations({bed.mesh.identity(service): utc_now() + timedelta(seconds=1)})
        return rebuilt(bed, sidecar, revocations=revoked)

    return change


def with_stale_list(bed: MeshBed, sidecar: RunningSidecar) -> Snapshot:
    return rebuilt(bed, sidecar, revocations=Revocations(fresh_until=utc_now() - timedelta(seconds=1)))


def with_other_roots(bed: MeshBed, sidecar: RunningSidecar) -> Snapshot:
    keys = KEYS[sidecar.node.config.service]
    context = tls.Context(replace(keys, roots=Authority().roots), sidecar.node.current.context.params)
    return replace(sidecar.node.current, context=context)


def rebuilt(bed: MeshBed, sidecar: RunningSidecar, **params: Any) -> Snapshot:
    here = sidecar.node.current
    context = tls.Context(KEYS[sidecar.node.config.service], replace(here.context.params, **params))
    return replace(here, context=context)


KEYS: dict[str, tls.KeyPair] = {}


async def kept_pair(bed: MeshBed, app: App) -> tuple[RunningSidecar, RunningSidecar, Address]:
    """A pair whose channel has carried a stream and is kept."""
    credentials = {service: bed.authority.leaf(service) for service in ("web", "api")}
    KEYS.update({service: bed.keys(credential) for service, credential in credentials.items()})
    api = await bed.sidecar("api", inbound=[inbound("http", app.address)], credential=credentials["api"])
    web = await bed.sidecar(
        "web", outbound=[outbound_of("api", "http", api.address("http"))], credential=credentials["web"]
    )
    entry = web.address("api:http", "outbound")
    assert await call(entry) == b"hello"
    await is_idle(web, api)
    return web, api, entry


CHANGES: dict[str, tuple[str, Callable[[MeshBed, RunningSidecar], Snapshot], str]] = {
    "the callee's policy": ("api", with_mesh(NO_RULE), "policy_denied"),
    "the caller is revoked": ("api", with_revoked("web"), "revoked"),
    "the callee's list is stale": ("api", with_stale_list, "revocations_stale"),
    "the callee's roots": ("api", with_other_roots, "unknown_ca"),
    "the caller's policy": ("web", with_mesh(NO_RULE), "policy_denied"),
    "the callee is revoked": ("web", with_revoked("api"), "revoked"),
    "the caller's list is stale": ("web", with_stale_list, "revocations_stale"),
    "the caller's roots": ("web", with_other_roots, "unknown_ca"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_kept_channel_is_judged_again_for_each_stream(what: str) -> None:
    """Nobody told the registry: the change itself counts, from the next stream on."""
    side, change, reason = CHANGES[what]
    async with mesh_bed() as bed:
        app = await bed.app()
        web, api, entry = await kept_pair(bed, app)
        changed = api if side == "api" else web
        changed.node.current = change(bed, changed)
        assert await is_refused(entry)
        assert (await changed.log.connection(2))["reason"] == reason
        assert app.connections == 1
        assert bytes(app.received) == b"hello"


@pytest.mark.parametrize("what", CHANGES)
async def test_what_a_change_refuses_is_closed_at_once_although_it_is_idle(what: str) -> None:
    side, change, _ = CHANGES[what]
    if "stale" in what:
        return  # a list that grows old cuts nothing: it lets nothing new in
    async with mesh_bed() as bed:
        web, api, _ = await kept_pair(bed, await bed.app())
        changed = api if side == "api" else web
        changed.node.current = change(bed, changed)
        assert await changed.node.registry.rejudge(changed.node.recheck) == 1
        assert changed.node.registry.idle == 0
        await until(lambda: not len(web.node.registry) + len(api.node.registry))
        assert len(web.log.connections) == len(api.log.connections) == 1


class Clock:
    """The wall clock of one sidecar."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


@pytest.mark.parametrize("side", ["web", "api"])
@pytest.mark.parametrize("whose", ["web", "api"])
async def test_no_stream_begins_after_either_certificate_has_ended(side: str, whose: str) -> None:
    clock = Clock()
    async with mesh_bed() as bed:
        app = await bed.app()
        short, long = timedelta(minutes=30), timedelta(hours=20)
        credentials = {
            name: bed.authority.leaf(name, lifetime=short if name == whose else long) for name in ("web", "api")
        }
        clocks: dict[str, Any] = {name: clock if name == side else utc_now for name in ("web", "api")}
        api = await bed.sidecar(
            "api", inbound=[inbound("http", app.address)], credential=credentials["api"], clock=clocks["api"]
        )
        web = await bed.sidecar(
            "web",
            outbound=[outbound_of("api", "http", api.address("http"))],
            credential=credentials["web"],
            clock=clocks["web"],
        )
        entry = web.address("api:http", "outbound")
        assert await call(entry) == b"hello"
        await is_idle(web, api)
        clock.ahead = timedelta(minutes=29)
        assert await call(entry) == b"hello"
        assert (await web.log.connection(2))["reused"]
        await is_idle(web, api)
        clock.ahead = timedelta(minutes=31)
        refused = await is_refused(entry)
        assert refused or not (await web.log.connection(3))["reused"]
        assert app.connections == 3 - refused


async def test_a_renewed_certificate_retires_the_channel_and_costs_no_connection() -> None:
    for side in ("web", "api"):
        async with mesh_bed() as bed:
            web, api, entry = await kept_pair(bed, await bed.app())
            renewed = api if side == "api" else web
            KEYS[side] = bed.keys(bed.authority.leaf(side))
            renewed.node.current = rebuilt(bed, renewed)
            assert await call(entry) == b"hello"
            assert not (await web.log.connection(2))["reused"]
            assert (await api.log.connection(2))["reason"] == "ok"


async def test_a_channel_that_has_used_up_its_key_or_its_age_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_bed() as bed:
        web, _, entry = await kept_pair(bed, await bed.app())
        monkeypatch.setattr(channels, "MAX_RECORDS", 4)
        assert await call(entry) == b"hello"
        assert not (await web.log.connection(2))["reused"]
    monkeypatch.undo()
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair(max_age=1000.0)
        assert await call(entry) == b"hello"
        await is_idle(web, api)
        for waiting in web.server.channels._idle.values():
            waiting[0][0].made_at -= 1000
        assert await call(entry) == b"hello"
        assert not (await web.log.connection(2))["reused"]


async def test_certificates_of_before_a_rotation_cost_no_connection() -> None:
    """Both ends have new ones under another root; the channel has the old ones, which are trusted no longer: the caller
    shakes hands again, and is let in."""
    second = Authority(name="Second")
    async with mesh_bed() as bed:
        web, api, entry = await kept_pair(bed, await bed.app())
        for sidecar in (api, web):
            keys = replace(bed.keys(second.leaf(sidecar.node.config.service)), roots=second.roots)
            context = tls.Context(keys, sidecar.node.current.context.params)
            context.own = sidecar.node.current.context.own  # so that the judgement alone notices
            sidecar.node.current = replace(sidecar.node.current, context=context)
        assert await call(entry) == b"hello"
        assert not (await web.log.connection(2))["reused"]
        assert [line["reason"] for line in api.log.connections] == ["ok", "ok"]


# -- ends that cost nothing --------------------------------------------------------------------------------------------


async def test_a_callee_that_went_away_costs_no_connection() -> None:
    """Killed, restarted, or its host forgot the connection: the caller's next call goes through at the first try."""
    async with mesh_bed() as bed:
        web, api, entry = await kept_pair(bed, await bed.app())
        for number in (2, 3, 4):
            api.node.registry.end_idle()
            assert await call(entry) == b"hello"
            assert not (await web.log.connection(number))["reused"]
            await is_idle(web, api)


async def test_a_callee_that_is_silent_costs_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "CONFIRM_SECONDS", 0.2)
    async with mesh_bed() as bed:
        web, api, entry = await kept_pair(bed, await bed.app())
        (live,) = api.node.registry._idle
        live.end()  # its end of the channel is closed, and nobody has told the caller:
        monkeypatch.setattr(channels, "_is_silent", lambda _: True)
        assert await call(entry) == b"hello"
        assert not (await web.log.connection(2))["reused"]
        assert len(web.log.connections) == 2


async def test_an_idle_channel_ends_after_its_time_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "CALLER_IDLE_SECONDS", 0.2)
    async with mesh_bed() as bed:
        web, api, _ = await kept_pair(bed, await bed.app())
        await until(lambda: not len(web.node.registry) + len(api.node.registry))
        assert web.node.registry.places == api.node.registry.places == 0
        assert len(web.log.connections) == len(api.log.connections) == 1


async def test_a_reset_of_either_app_ends_the_channel_and_the_next_call_succeeds() -> None:
    async def rude(sock: socket.socket, app: App) -> None:
        await sockets.receive(sock, 100)
        if app.connections == 1:
            sockets.hard_close(sock)
        else:
            await sockets.send_all(sock, b"polite")

    async with mesh_bed() as bed:
        web, _, entry = await bed.pair(await bed.app(rude))
        with pytest.raises(ConnectionResetError):
            await call(entry)
        assert await call(entry) == b"polite"
        with await connect(entry) as client:
            await sockets.send_all(client, b"hello")
            sockets.hard_close(client)
        assert (await web.log.connection(3))["reason"] == "client_reset"
        assert await call(entry) == b"polite"
        assert (await web.log.connection(4))["reason"] == "ok"


async def test_our_app_needs_the_place_of_an_idle_channel() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        web = await bed.sidecar(
            "web", outbound=[outbound_of("api", "http", api.address("http"))], limits=Limits(connections=1)
        )
        entry = web.address("api:http", "outbound")
        for number in (1, 2, 3):
            assert await call(entry) == b"hello"
            assert (await web.log.connection(number))["reason"] == "ok"


async def test_a_drain_ends_idle_channels_first_and_loses_nothing() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await kept_pair(bed, await bed.app())
        api.stop.set()
        with trio.fail_after(PATIENCE):
            await api.stopped.wait()
        assert [line["reason"] for line in api.log.connections] == ["ok"]
        web.stop.set()
        with trio.fail_after(PATIENCE):
            await web.stopped.wait()
        assert len(web.node.registry) == 0
        del entry


async def test_an_app_that_is_away_leaves_the_channel_as_it_is() -> None:
    async with mesh_bed() as bed:
        app = App(sockets.listen("test", "127.0.0.1", 0), echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bed.serve_app, app)
            web, api, entry = await kept_pair(bed, app)
            nursery.cancel_scope.cancel()
        assert await is_refused(entry)
        here = await api.log.connection(2)
        assert (here["reason"], here["reused"]) == ("connect_failed", True)
        assert (await web.log.connection(2))["peer_reason"] == "connect_failed"
        assert len(api.log.connections) == 2, "there is no other to ask"


async def test_a_callee_that_cannot_is_passed_over_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_bed() as bed:
        app = App(sockets.listen("test", "127.0.0.1", 0), echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bed.serve_app, app)
            first = await bed.sidecar("api", inbound=[inbound("http", app.address)])
            other = await bed.sidecar("api", inbound=[inbound("http", (await bed.app()).address)])
            peers = [first.address("http"), other.address("http")]
            web = await bed.sidecar("web", outbound=[outbound_of("api", "http", *peers)])
            entry = web.address("api:http", "outbound")
            for _ in range(4):
                assert await call(entry) == b"hello"
            await until(lambda: web.node.registry.idle == 2)
            nursery.cancel_scope.cancel()
        for number in range(5, 9):
            assert await call(entry) == b"hello"
            assert (await web.log.connection(number))["reason"] == "ok"


async def test_a_callee_s_no_is_the_last_word_although_there_is_another() -> None:
    async with mesh_bed() as bed:
        callees = [await bed.sidecar("api", inbound=[inbound("http", (await bed.app()).address)]) for _ in range(2)]
        web = await bed.sidecar("web", outbound=[outbound_of("api", "http", *(one.address("http") for one in callees))])
        entry = web.address("api:http", "outbound")
        for _ in range(4):
            assert await call(entry) == b"hello"
        await until(lambda: web.node.registry.idle == 2)
        for callee in callees:
            callee.node.current = with_mesh(NO_RULE)(bed, callee)
        assert await is_refused(entry)
        line = await web.log.connection(5)
        assert (line["peer_reason"], line["reused"]) == ("policy_denied", True)
        await until(lambda: sum(len(callee.log.connections) for callee in callees) == 5)


async def test_a_channel_that_its_callee_has_ended_is_not_even_asked() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await kept_pair(bed, await bed.app())
        ((kept, _),) = next(iter(web.server.channels._idle.values()))
        api.node.registry.end_idle()
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(kept.sock)
        frames = kept.frames
        assert frames is not None
        assert await call(entry) == b"hello"
        assert frames.number == 1


async def test_a_channel_to_an_address_that_the_target_has_no_longer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LOOK_SECONDS", 0.05)
    async with mesh_bed() as bed:
        web, _, _ = await kept_pair(bed, await bed.app())
        (endpoint,) = web.server.channels._idle
        await trio.sleep(0.2)
        assert web.node.registry.idle == 1
        endpoint.gone = True
        await until(lambda: web.node.registry.idle == 0)


async def test_a_list_that_grows_old_while_a_channel_is_kept_lets_nothing_in() -> None:
    """Nothing is replaced: time alone makes it stale."""
    clock = Clock()
    async with mesh_bed() as bed:
        app = await bed.app()
        credential = bed.authority.leaf("api", lifetime=timedelta(hours=9))
        KEYS["api"] = bed.keys(credential)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)], credential=credential, clock=clock)
        api.node.current = rebuilt(bed, api, revocations=Revocations(fresh_until=utc_now() + timedelta(minutes=30)))
        caller = bed.authority.leaf("web", lifetime=timedelta(hours=9))
        web = await bed.sidecar("web", outbound=[outbound_of("api", "http", api.address("http"))], credential=caller)
        entry = web.address("api:http", "outbound")
        assert await call(entry) == b"hello"
        await is_idle(web, api)
        clock.ahead = timedelta(minutes=31)
        assert await is_refused(entry)
        line = await api.log.connection(2)
        assert (line["reason"], line["reused"]) == ("revocations_stale", False)
        assert app.connections == 1


async def test_an_idle_channel_is_no_connection_that_is_shown() -> None:
    async with mesh_bed() as bed:
        web, api, _ = await kept_pair(bed, await bed.app())
        assert web.node.registry.admissions() == api.node.registry.admissions() == []
        assert len(web.node.registry) == len(api.node.registry) == 1


async def test_a_caller_that_opens_no_stream_is_refused_in_time() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        timeouts = Timeouts(handshake=1.0, connect=TIMEOUT, drain=TIMEOUT)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)], timeouts=timeouts)
        with await connect(api.address("http")) as sock:
            caller = Foreigner(sock, bed.authority.leaf("web"), alpn=[b"mesh/2/http"])
            await caller.handshake()
            line = await api.log.connection()
        assert (line["reason"], line["decision"], line["bytes_to_app"]) == ("handshake_timeout", "deny", 0)
        assert app.connections == 0


async def test_bulk_both_ways_on_one_channel() -> None:
    async with mesh_bed() as bed:
        _, _, entry = await bed.pair()
        for _ in range(3):
            with await connect(entry) as client:
                data = bytes(range(251)) * 20_000

                async def send(client: socket.socket = client, data: bytes = data) -> None:
                    await sockets.send_all(client, data)
                    client.shutdown(socket.SHUT_WR)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    assert await receive_all(client) == data


def test_the_callee_waits_longer_than_the_caller() -> None:
    assert channels.CALLEE_IDLE_SECONDS >= 2 * channels.CALLER_IDLE_SECONDS


async def test_a_callee_confirms_before_it_waits_for_its_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a caller would take a callee with a slow app for one that is gone, after a second, and ask twice."""

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", Address("127.0.0.1", 9))])
        monkeypatch.setattr(dial, "connect", never)
        monkeypatch.setattr(dial.Upstream, "best", lambda _: None)
        with await connect(api.address("http")) as sock:
            caller = Foreigner(sock, bed.authority.leaf("web"), alpn=[b"mesh/2/http"])
            await caller.handshake()
            await caller.send(frame(Kind.OPEN, encode_open(Open(1, 5000, {}))))
            assert await caller.receive() == frame(Kind.OPENED, b"\0\0\0\1")
            assert api.log.connections == []


async def test_a_policy_that_changes_between_its_answer_and_the_channel_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a listener waits for the first bytes of a suspected loop. The channel's trust is judged after that; the policy
    must be too, and nobody else asks: the connection has no admission yet."""
    async with mesh_bed() as bed:
        app = await bed.app()
        web, _, entry = await kept_pair(bed, app)
        fresh = with_mesh(NO_RULE)(bed, web)

        async def meanwhile(_guard: LoopGuard, _sock: socket.socket) -> None:
            web.node.current = fresh
            await web.node.registry.rejudge(lambda _: None)

        monkeypatch.setattr(LoopGuard, "suspects", True)
        monkeypatch.setattr(LoopGuard, "before_dialling", meanwhile)
        assert await is_refused(entry)
        assert (await web.log.connection(2))["reason"] == "policy_changed"
        assert bytes(app.received) == b"hello"
