"""Several sidecars in one process, several ports each, on IPv4 and IPv6: every connection gets where its listener leads."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.mesh import App, connect, mesh_bed, receive_all
from tests.beds.patience import PATIENCE


def answering(text: bytes) -> object:
    async def answer(sock: socket.socket, _: App) -> None:
        await sockets.send_all(sock, text)
        sock.shutdown(socket.SHUT_WR)
        while await sockets.receive(sock, 65536):
            pass

    return answer


async def heard(entry: Address) -> bytes:
    with await connect(entry) as client:
        client.shutdown(socket.SHUT_WR)
        return await receive_all(client)


MESH = """
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
policy:
  - {from: web, to: "*"}
  - {from: api, to: db}
"""


async def test_every_listener_leads_where_it_should() -> None:
    async with mesh_bed(MESH) as bed:
        apps = {name: await bed.app(answering(name.encode())) for name in ("http", "metrics", "5432")}  # type: ignore[arg-type]
        api_ports = [harness.inbound(port, apps[port].address) for port in ("http", "metrics")]
        db = await bed.sidecar("db", inbound=[harness.inbound("5432", apps["5432"].address)])
        to_db = harness.outbound("db", "5432", db.address("5432"))
        api = await bed.sidecar("api", inbound=api_ports, outbound=[to_db])
        ways = [harness.outbound("api", port, api.address(port)) for port in ("http", "metrics")]
        web = await bed.sidecar("web", outbound=[*ways, to_db])

        for _ in range(3):
            assert await heard(web.address("api:http", "outbound")) == b"http"
            assert await heard(web.address("api:metrics", "outbound")) == b"metrics"
            assert await heard(web.address("db:5432", "outbound")) == b"5432"
            assert await heard(api.address("db:5432", "outbound")) == b"5432"

        lines = [await db.log.connection(number) for number in range(1, 7)]
        assert sorted(line["peer_id"].rpartition("/")[2] for line in lines) == ["api"] * 3 + ["web"] * 3
        assert {(line["port"], line["direction"]) for line in lines} == {("5432", "inbound")}
        assert {line["upstream"] for line in web.log.connections} == {"api:http", "api:metrics", "db:5432"}


async def test_a_port_cannot_be_bent_to_another_of_the_same_service() -> None:
    """Somebody in the middle sends what is meant for api:http to api's metrics port: both ends agree on the name first."""
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[harness.inbound("metrics", app.address)])
        web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", api.address("metrics"))])
        with pytest.raises(ConnectionResetError), await connect(web.address("api:http", "outbound")) as client:
            await receive_all(client)
        assert (await api.log.connection())["reason"] == "handshake_failed"
        assert "mesh/1/http" in api.log.connections[0]["message"]
        assert (await web.log.connection())["decision"] == "deny"
        assert app.connections == 0


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6_from_end_to_end() -> None:
    async with mesh_bed() as bed:
        here = Address("::1", 0)
        app = App(sockets.listen("test", "::1", 0), harness.echo)
        address = str(app.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bed.serve_app, app)
            api = await bed.sidecar("api", inbound=[replace(harness.inbound("http", app.address), listen=here)])
            way = harness.outbound("api", "http", api.address("http"), listen=here)
            web = await bed.sidecar("web", outbound=[way])
            entry = web.address("api:http", "outbound")
            assert str(entry).startswith("[::1]:")
            with trio.fail_after(PATIENCE):
                client = await sockets.connect(socket.AF_INET6, (entry.host, entry.port))
            with client:
                await sockets.send_all(client, b"ping")
                client.shutdown(socket.SHUT_WR)
                assert await receive_all(client) == b"ping"
            line, there = await web.log.connection(), await api.log.connection()
            nursery.cancel_scope.cancel()
        assert line["reason"] == there["reason"] == "ok"
        assert line["client_address"].startswith("[::1]:")
        assert line["peer_address"] == str(api.address("http"))
        assert there["peer_address"].startswith("[::1]:")
        assert there["upstream"] == address


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_a_wildcard_listener_takes_both_and_writes_ipv4_as_ipv4() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        port = replace(harness.inbound("http", app.address), listen=Address("::", 0))
        api = await bed.sidecar("api", inbound=[port])
        number = api.address("http").port
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, number)) as sock:
                sock.sendall(b"GET /")
                sock.setblocking(False)
                assert await receive_all(sock) == b""
        lines = [await api.log.connection(number) for number in (1, 2)]
        assert [line["peer_address"].rpartition(":")[0] for line in lines] == ["127.0.0.1", "[::1]"]
