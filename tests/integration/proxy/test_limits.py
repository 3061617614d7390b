"""Limits of a listener and of a rule: connections that are carried count, and nothing else does."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy.node import Snapshot
from sidecar.transport import sockets
from tests.beds.mesh import MESH, Foreigner, MeshBed, RunningSidecar, connect, inbound, mesh_bed, outbound
from tests.beds.patience import PATIENCE

LIMITED = MESH.replace('to: "api:http"}', 'to: "api:http", connections: 2}')


async def opened(entry: Address) -> socket.socket:
    """A connection that its app answers, and that stays open."""
    sock = await connect(entry)
    await sockets.send_all(sock, b"x")
    with trio.fail_after(PATIENCE):
        assert await sockets.receive(sock, 1) == b"x"
    return sock


async def is_refused(entry: Address) -> bool:
    with await connect(entry) as sock:
        try:
            await sockets.send_all(sock, b"x")
            with trio.fail_after(PATIENCE):
                return await sockets.receive(sock, 1) == b""
        except OSError:
            return True


async def pair(
    bed: MeshBed, *, here: int | None = None, there: int | None = None, keep: int = 256
) -> tuple[RunningSidecar, RunningSidecar, Address]:
    app = await bed.app()
    api = await bed.sidecar("api", inbound=[inbound("http", app.address, most=there)], keep=keep)
    web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"), most=here)], keep=keep)
    return web, api, web.address("api:http", "outbound")


async def ended(sidecar: RunningSidecar, reason: str, number: int = 1) -> list[dict[str, Any]]:
    await sidecar.log.until(lambda: sum(line["reason"] == reason for line in sidecar.log.connections) >= number)
    return [line for line in sidecar.log.connections if line["reason"] == reason]


SENTENCES = {
    "there": "has reached its limit of 2 connections of http (limits.connections of that entry of `inbound`)",
    "here": "has reached its limit of 2 connections of api:http (limits.connections of that entry of `outbound`)",
    "rule": "has reached the limit of 2 connections of rule 'web->api:http' (connections)",
}


@pytest.mark.parametrize("keep", [256, 0])
@pytest.mark.parametrize("where", SENTENCES)
async def test_one_more_is_refused_by_the_name_of_the_limit_until_one_has_ended(where: str, keep: int) -> None:
    limits: dict[str, int] = {} if where == "rule" else {where: 2}
    async with mesh_bed(LIMITED if where == "rule" else MESH) as bed:
        web, api, entry = await pair(bed, **limits, keep=keep)
        first, second = await opened(entry), await opened(entry)
        assert await is_refused(entry)
        refusing = web if where == "here" else api
        (line,) = await ended(refusing, "overloaded")
        assert SENTENCES[where] in line["message"]
        assert (line["decision"], line["bytes_to_app"]) == ("deny", 0)
        if where != "here":
            assert (await ended(web, "peer_refused"))[0]["peer_reason"] == "overloaded"
        first.shutdown(socket.SHUT_WR)
        assert await sockets.receive(first, 1) == b""
        first.close()
        for sidecar in (web, api):
            await ended(sidecar, "ok")
        (await opened(entry)).close()
        second.close()


@pytest.mark.parametrize("limits", [{"there": 1}, {}])
async def test_idle_channels_do_not_count(limits: dict[str, int]) -> None:
    """Two channels are kept idle; with a limit of as many, or of fewer, the next connection is let in."""
    async with mesh_bed(MESH if limits else LIMITED.replace("connections: 2", "connections: 1")) as bed:
        web, api, entry = await pair(bed, **limits)
        for number in range(1, 4):
            with await opened(entry) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert await sockets.receive(sock, 1) == b""
            await ended(api, "ok", number)
            with trio.fail_after(PATIENCE):
                while not api.node.registry.idle:
                    await trio.lowlevel.checkpoint()
        assert [line["reused"] for line in api.log.connections] == [False, True, True]
        assert {line["reason"] for line in (*api.log.connections, *web.log.connections)} == {"ok"}


async def test_a_stranger_counts_for_no_listener_and_a_denied_caller_for_none_either() -> None:
    async with mesh_bed() as bed:
        _, api, entry = await pair(bed, there=1)
        with await connect(api.address("http")), await connect(api.address("http")):
            caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("reporting"))
            with caller.sock:
                await caller.handshake()
                assert await caller.verdict() == "policy_denied"
                (await opened(entry)).close()


async def test_an_app_that_is_not_there_gives_its_place_back() -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", most=1)])  # nobody listens on port 9
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
        for _ in range(3):
            assert await is_refused(web.address("api:http", "outbound"))
        await ended(api, "connect_failed", 3)
        assert {line["reason"] for line in api.log.connections} == {"connect_failed"}


async def test_a_listener_s_limit_is_its_own() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        ports = [inbound("http", app.address, most=1), inbound("metrics", app.address, most=1)]
        api = await bed.sidecar("api", inbound=ports)
        routes = [outbound("api", port, api.address(port)) for port in ("http", "metrics")]
        web = await bed.sidecar("web", outbound=routes)
        with await opened(web.address("api:http", "outbound")), await opened(web.address("api:metrics", "outbound")):
            assert await is_refused(web.address("api:http", "outbound"))


async def test_a_call_that_two_rules_allow_takes_the_room_of_either() -> None:
    two = LIMITED.replace("connections: 2}", "connections: 1}\n  - {name: z, from: '*', to: api, connections: 1}")
    async with mesh_bed(two) as bed:
        _, api, entry = await pair(bed, keep=0)
        with await opened(entry), await opened(entry):
            assert await is_refused(entry)
            (line,) = await ended(api, "overloaded")
            assert "1 connections of rule 'web->api:http', 1 connections of rule 'z'" in line["message"]
        with trio.fail_after(PATIENCE):
            while len(api.log.connections) < 3:
                await trio.lowlevel.checkpoint()
        assert {line["rule"] for line in api.log.connections if line["reason"] != "overloaded"} == {
            "web->api:http",
            "z",
        }


async def test_a_limit_that_a_reload_brings_counts_what_is_open_and_cuts_nothing() -> None:
    async with mesh_bed() as bed:
        _, api, entry = await pair(bed)
        with await opened(entry) as first, await opened(entry):
            now = api.node.current
            api.node.current = Snapshot(now.id, parse_mesh(LIMITED, "mesh.yaml"), now.context)
            assert await api.node.registry.rejudge(api.node.recheck) == 0
            assert await is_refused(entry)
            await sockets.send_all(first, b"y")
            assert await sockets.receive(first, 1) == b"y"
            api.node.current = replace(now)
            (await opened(entry)).close()
