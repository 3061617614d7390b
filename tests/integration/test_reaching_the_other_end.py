"""Apps and peers that are down, several of them, by address or by name: fail-over, balance, and a reset where nobody is."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Limits
from sidecar.documents.address import Address
from sidecar.transport import dial, sockets
from sidecar.transport.dial import REFRESH_SECONDS
from tests.beds import mesh as harness
from tests.beds.mesh import App, MeshBed, RunningSidecar, connect, mesh_bed, receive_all


def dead_address() -> Address:
    """An address of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Address(*sock.getsockname())


async def say_hello(sock: socket.socket, _: App) -> None:
    await sockets.send_all(sock, b"hello")
    sock.shutdown(socket.SHUT_WR)
    while await sockets.receive(sock, 65536):
        pass


async def heard(entry: Address) -> bytes:
    """What a client hears that asks for nothing and closes."""
    with await connect(entry) as client:
        client.shutdown(socket.SHUT_WR)
        return await receive_all(client)


async def refused(entry: Address) -> None:
    """That a client hears of it by a reset: no clean end, which would look like an empty answer."""
    with pytest.raises(ConnectionResetError), await connect(entry) as client:
        await receive_all(client)


async def replica(bed: MeshBed, *apps: Address) -> tuple[RunningSidecar, Address]:
    api = await bed.sidecar("api", inbound=[harness.inbound("http", *apps)])
    return api, api.address("http")


async def caller(bed: MeshBed, *peers: Address) -> tuple[RunningSidecar, Address]:
    web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", *peers)])
    return web, web.address("api:http", "outbound")


# -- nobody there ------------------------------------------------------------------------------------------------------


async def test_the_app_is_down() -> None:
    async with mesh_bed() as bed:
        dead = dead_address()
        api, there = await replica(bed, dead)
        web, entry = await caller(bed, there)
        await refused(entry)
        here, line = await web.log.connection(), await api.log.connection()
    assert (line["reason"], line["decision"], line["rule"]) == ("connect_failed", "allow", "web->api:http")
    assert (here["reason"], here["peer_reason"]) == ("peer_refused", "connect_failed")
    assert str(dead) in line["message"]
    assert here["connection_id"] == line["connection_id"]
    assert not web.log.alarms


async def test_the_peer_is_down() -> None:
    async with mesh_bed() as bed:
        dead = dead_address()
        web, entry = await caller(bed, dead)
        await refused(entry)
        line = await web.log.connection()
    assert (line["reason"], line["decision"], line["upstream"]) == ("connect_failed", "allow", "api:http")
    assert line["peer_address"] == str(dead)
    assert line["peer_id"] is None
    assert not web.log.alarms


async def test_an_app_that_comes_up_is_found_at_once() -> None:
    """Standing aside is for choosing among several: the only one there is tried every time."""
    async with mesh_bed() as bed:
        listener = socket.create_server(("127.0.0.1", 0))
        address = Address(*listener.getsockname())
        listener.close()
        api, there = await replica(bed, address)
        web, entry = await caller(bed, there)
        for _ in range(5):
            await refused(entry)
        async with trio.open_nursery() as nursery:
            app = App(sockets.listen("test", address.host, address.port), say_hello)
            nursery.start_soon(bed.serve_app, app)
            assert await heard(entry) == b"hello"
            nursery.cancel_scope.cancel()
        assert (await api.log.connection(6))["reason"] == "ok"
        assert (await web.log.connection(6))["reason"] == "ok"


# -- several of them ---------------------------------------------------------------------------------------------------


async def test_another_peer_is_tried_when_one_is_down() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(say_hello)
        _, there = await replica(bed, app.address)
        web, entry = await caller(bed, dead_address(), there)
        for number in range(1, 5):
            assert await heard(entry) == b"hello"
            line = await web.log.connection(number)
            assert (line["reason"], line["peer_address"]) == ("ok", str(there))
            assert "unverified" not in line


async def test_another_peer_is_tried_when_one_s_app_is_down() -> None:
    """It said so before it took a byte, so nothing can be carried out twice."""
    async with mesh_bed() as bed:
        app = await bed.app(say_hello)
        down, without_app = await replica(bed, dead_address())
        _, with_app = await replica(bed, app.address)
        web, entry = await caller(bed, without_app, with_app)
        assert [await heard(entry) for _ in range(3)] == [b"hello"] * 3
        assert {(await web.log.connection(n))["reason"] for n in (1, 2, 3)} == {"ok"}
        assert [line["reason"] for line in down.log.connections] in ([], ["connect_failed"])


async def test_another_peer_is_tried_when_one_is_full() -> None:
    async with mesh_bed() as bed:
        app, busy = await bed.app(say_hello), await bed.app()
        full = await bed.sidecar("api", inbound=[harness.inbound("http", busy.address)], limits=Limits(connections=1))
        _, free = await replica(bed, app.address)
        web, entry = await caller(bed, full.address("http"), free)
        _, other_entry = await caller(bed, full.address("http"))
        with await connect(other_entry) as client:  # takes the only place there
            await sockets.send_all(client, b"ping")
            assert await sockets.receive(client, 4) == b"ping"
            assert [await heard(entry) for _ in range(3)] == [b"hello"] * 3
        assert {(await web.log.connection(n))["peer_address"] for n in (1, 2, 3)} == {str(free)}


async def test_a_peer_that_refuses_us_is_believed() -> None:
    """Policy is the same everywhere: the next one is not asked, and its app not bothered."""
    mesh = harness.MESH.replace('  - {from: web, to: "api:http"}\n', "")
    async with mesh_bed() as bed, mesh_bed(mesh, bed.authority) as strict:
        app = await bed.app(say_hello)
        first = await strict.sidecar("api", inbound=[harness.inbound("http", app.address)])
        second = await strict.sidecar("api", inbound=[harness.inbound("http", app.address)])
        web, entry = await caller(bed, first.address("http"), second.address("http"))
        await refused(entry)
        line = await web.log.connection()
        assert (line["reason"], line["peer_reason"]) == ("peer_refused", "policy_denied")
        assert len(first.log.connections) + len(second.log.connections) == 1
        assert app.connections == 0


async def test_an_impostor_among_the_peers_is_told_of_even_where_another_answers() -> None:
    async with mesh_bed() as bed:
        app, lure = await bed.app(say_hello), await bed.app()
        _, honest = await replica(bed, app.address)
        stolen = bed.authority.leaf("db")
        impostor = await bed.sidecar("api", inbound=[harness.inbound("http", lure.address)], credential=stolen)
        web, entry = await caller(bed, impostor.address("http"), honest)
        for _ in range(4):
            assert await heard(entry) == b"hello"
        met = {(alarm["reason"], alarm["peer_address"]) for alarm in web.log.alarms}
        assert met == {("unexpected_peer", str(impostor.address("http")))}
        assert lure.connections == 0
        assert {(await web.log.connection(n))["peer_address"] for n in (1, 2, 3, 4)} == {str(honest)}


async def test_connections_are_spread_evenly() -> None:
    async with mesh_bed() as bed:
        stack = ExitStack()
        apps = [await bed.app() for _ in range(3)]
        replicas = [await replica(bed, app.address) for app in apps]
        web, entry = await caller(bed, *(address for _, address in replicas))
        for _ in range(30):
            client = stack.enter_context(await connect(entry))
            await sockets.send_all(client, b"ping")
            assert await sockets.receive(client, 4) == b"ping"
        assert [app.connections for app in apps] == [10, 10, 10]
        stack.close()
        await web.log.connection(30)


async def test_a_burst_is_spread_too() -> None:
    """Thirty connections that come before the first of them is through."""
    async with mesh_bed() as bed:
        stack = ExitStack()
        apps = [await bed.app() for _ in range(2)]
        replicas = [await replica(bed, app.address) for app in apps]
        web, entry = await caller(bed, *(address for _, address in replicas))
        clients = [stack.enter_context(socket.create_connection((entry.host, entry.port))) for _ in range(30)]
        for client in clients:
            client.setblocking(False)
            await sockets.send_all(client, b"ping")
        for client in clients:
            assert await sockets.receive(client, 4) == b"ping"
        assert [app.connections for app in apps] == [15, 15]
        stack.close()
        await web.log.connection(30)


async def test_several_apps_behind_one_port() -> None:
    async with mesh_bed() as bed:
        apps = [await bed.app(say_hello) for _ in range(2)]
        api, there = await replica(bed, dead_address(), *(app.address for app in apps))
        _, entry = await caller(bed, there)
        for number in range(1, 9):
            assert await heard(entry) == b"hello"
            await api.log.connection(number)
        assert [app.connections for app in apps] == [4, 4]
        reached = Counter(line["upstream"] for line in api.log.connections)
        assert reached == {str(app.address): 4 for app in apps}


# -- by name -----------------------------------------------------------------------------------------------------------


class Names:
    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def look_up(self, _host: str, _threads: object) -> list[tuple[int, str]]:
        await trio.lowlevel.checkpoint()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, ip) for ip in self.addresses]


async def test_compose_scales_by_addresses(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name, first nothing, then one address, then two, then the other one: as replicas come and go."""
    mock_clock.rate = 1
    names = Names([])
    monkeypatch.setattr(dial, "look_up", names.look_up)

    async def asked_again(addresses: list[str]) -> None:
        names.addresses = addresses
        await wait_all_tasks_blocked()
        mock_clock.jump(REFRESH_SECONDS)
        await wait_all_tasks_blocked()

    async with mesh_bed() as bed:
        app = await bed.app(say_hello)
        api, there = await replica(bed, app.address)
        port = there.port
        # The second replica has the same port on another address of loopback.
        two = sockets.listen("test", "127.0.0.2", port)
        web, entry = await caller(bed, Address("api.mesh", port))

        await refused(entry)
        line = await web.log.connection()
        assert line["reason"] == "connect_failed"
        assert "api.mesh" in line["message"]

        await asked_again(["127.0.0.1"])
        assert await heard(entry) == b"hello"
        assert (await web.log.connection(2))["peer_address"] == f"127.0.0.1:{port}"

        await asked_again(["127.0.0.1", "127.0.0.2"])
        with two:
            pass  # and that one has gone already, before the name service knows
        for number in (3, 4, 5):
            assert await heard(entry) == b"hello"
            assert (await web.log.connection(number))["reason"] == "ok"

        await asked_again(["127.0.0.2"])
        await refused(entry)
        assert (await web.log.connection(6))["peer_address"] == f"127.0.0.2:{port}"
        await api.log.connection(4)
        assert len(api.log.connections) == 4


async def test_no_descriptor_for_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted, but nothing left to reach the app with: refused by name, and the next one gets through."""
    async with mesh_bed() as bed:
        app = await bed.app(say_hello)
        api, there = await replica(bed, app.address)
        web, entry = await caller(bed, there)
        real = sockets.begin_to_connect

        def exhausted(family: int, address: tuple[Any, ...]) -> tuple[socket.socket, bool]:
            if address == (app.address.host, app.address.port):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(family, address)

        with monkeypatch.context() as patch:
            patch.setattr(sockets, "begin_to_connect", exhausted)
            await refused(entry)
            assert os.strerror(errno.EMFILE) in (await api.log.connection())["message"]
        assert await heard(entry) == b"hello"
        assert (await web.log.connection(2))["reason"] == "ok"
