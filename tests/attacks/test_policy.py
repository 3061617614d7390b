"""Policy at both ends, through sockets: each end decides, and what no rule allows reaches nobody."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import pytest

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.attacks.stage import HONEST, STOLEN, assert_refused, assert_reset
from tests.beds.mesh import MeshBed, RunningSidecar, connect, inbound, mesh_bed, outbound

HEAD = """
trust_domain: shop.internal
services:
  web: {}
  web-admin: {}
  a.b: {}
  aXb: {}
  api: {ports: {http: 8080, metrics: 9090}}
policy:
"""
ALLOW = '  - {from: web, to: "api:http"}\n'

DENIED = {
    "no rule at all": ("web", '  - {from: a.b, to: "api:http"}\n'),
    "another caller": ("web-admin", ALLOW),
    "another port of the callee": ("web", '  - {from: web, to: "api:metrics"}\n'),
    "a dot is no wildcard": ("aXb", '  - {from: a.b, to: "api:http"}\n'),
    "a dot is no wildcard in a pattern": ("aXb", '  - {from: "spiffe://shop.internal/a.b", to: "api:http"}\n'),
    "deny beats allow": ("web", ALLOW + "  - {from: web, to: api, action: deny}\n"),
    "deny beats allow, the other way round": ("web", "  - {from: web, to: api, action: deny}\n" + ALLOW),
    "a dry run allows nothing": ("web", '  - {from: web, to: "api:http", mode: dry-run}\n'),
    "past its last day": ("web", '  - {from: web, to: "api:http", until: 2020-01-31}\n'),
}


async def both_ends(bed: MeshBed, caller: str) -> tuple[RunningSidecar, RunningSidecar]:
    app = await bed.app()
    api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
    return await bed.sidecar(caller, outbound=[outbound("api", "http", api.address("http"))]), api


@pytest.mark.parametrize(("caller", "rules"), DENIED.values(), ids=DENIED)
async def test_the_callers_own_sidecar_refuses(caller: str, rules: str) -> None:
    async with mesh_bed(HEAD + rules) as bed:
        here, api = await both_ends(bed, caller)
        await assert_refused(here.address("api:http", "outbound"))
        line = await here.log.connection()
        assert (line["reason"], line["decision"], line["bytes_from_app"]) == ("policy_denied", "deny", 0)
        assert not api.log.connections
    async with mesh_bed(HEAD + f'  - {{from: {caller}, to: "api:http"}}\n') as bed:
        here, _ = await both_ends(bed, caller)
        await assert_served(here.address("api:http", "outbound"))


@pytest.mark.parametrize(("caller", "rules"), DENIED.values(), ids=DENIED)
async def test_the_callee_refuses_what_the_callers_sidecar_let_through(caller: str, rules: str) -> None:
    """The caller's sidecar goes by another policy: an old one, or one of its own making."""
    async with mesh_bed(HEAD + rules) as strict, mesh_bed(HEAD + f"  - {{from: {caller}, to: api}}\n") as lax:
        lax.authority = strict.authority
        app = await strict.app()
        api = await strict.sidecar("api", inbound=[inbound("http", app.address)])
        here = await lax.sidecar(caller, outbound=[outbound("api", "http", api.address("http"))])
        await assert_refused(here.address("api:http", "outbound"))
        line = await api.log.connection()
        assert (line["reason"], line["decision"]) == ("policy_denied", "deny")
        assert line["peer_id"] == f"spiffe://shop.internal/{caller}"
        line = await here.log.connection()
        assert (line["reason"], line["peer_reason"], line["decision"]) == ("peer_refused", "policy_denied", "deny")
        assert app.connections == 0
        assert not here.log.alarms


async def test_a_dry_run_denies_nothing_and_is_told_of() -> None:
    async with mesh_bed(HEAD + ALLOW + "  - {name: trial, from: web, to: api, action: deny, mode: dry-run}\n") as bed:
        here, api = await both_ends(bed, "web")
        await assert_served(here.address("api:http", "outbound"))
        for sidecar in (here, api):
            line = await sidecar.log.connection()
            assert (line["decision"], line["dry_run"]) == ("allow", ["trial would deny"])


# -- who may connect to a plaintext listener ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        (["127.0.0.1/32"], "127.0.0.2"),
        (["127.0.0.0/30", "10.0.0.0/8"], "127.0.0.4"),
        (["10.0.0.0/8"], "127.0.0.1"),
        (["::1/128"], "127.0.0.1"),
    ],
)
async def test_allow_from(allowed: Sequence[str], refused: str) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        networks = [ipaddress.ip_network(one) for one in allowed]
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"), allow_from=networks)])
        entry = web.address("api:http", "outbound")
        with connect_from(refused, entry) as client:
            await sockets.send_all(client, STOLEN)
            await assert_reset(client)
        line = await web.log.connection()
        assert (line["reason"], line["decision"], line["bytes_from_app"]) == ("policy_denied", "deny", 0)
        assert refused in line["message"]
        assert not api.log.connections
        if networks[0].version == 4 and networks[0].is_loopback:
            await assert_served(entry)


def connect_from(source: str, address: Address) -> socket.socket:
    sock = socket.create_connection((address.host, address.port), source_address=(source, 0))
    sock.setblocking(False)
    return sock


async def assert_served(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, HONEST)
        assert await sockets.receive(client, 100) == HONEST
        client.shutdown(socket.SHUT_WR)
        assert await sockets.receive(client, 100) == b""


# -- never in a circle -------------------------------------------------------------------------------------------------


async def test_a_peer_that_is_our_own_plaintext_listener() -> None:
    async with mesh_bed() as bed:
        place = free_place()
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place, listen=place)])
        await assert_refused(place)
        line = await web.log.connection()
        assert (line["reason"], line["bytes_from_app"]) == ("connect_failed", 0)
        assert str(place) in line["message"]
        assert len(web.log.connections) <= 2  # the one that met itself is at most accepted once, never passed on


async def test_an_app_that_is_our_own_plaintext_listener() -> None:
    """A caller from the mesh would come out of api's own door, and so speak as api."""
    async with mesh_bed() as bed:
        db_app = await bed.app()
        db = await bed.sidecar("db", inbound=[inbound("5432", db_app.address)])
        door = free_place()
        api = await bed.sidecar(
            "api",
            inbound=[inbound("http", door)],
            outbound=[outbound("db", "5432", db.address("5432"), listen=door)],
        )
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
        await assert_refused(web.address("api:http", "outbound"))
        line = await web.log.connection()
        assert line["peer_reason"] == "connect_failed"
        assert {(await api.log.connection(number))["reason"] for number in (1, 2)} == {"connect_failed", "client_reset"}
        assert db_app.connections == 0
        await assert_served(door)


def free_place() -> Address:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Address(*sock.getsockname())
