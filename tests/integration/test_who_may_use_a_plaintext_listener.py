"""A plaintext listener speaks in its service's name: for those in ``allow_from`` only, by the device that it is bound to."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.mesh import RunningSidecar, connect, mesh_bed, receive_all


async def echoed(entry: Address) -> bool:
    try:
        with await connect(entry) as client:
            await sockets.send_all(client, b"ping")
            client.shutdown(socket.SHUT_WR)
            return await receive_all(client) == b"ping"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("networks", "allowed"),
    [
        (["127.0.0.1/32"], True),
        (["10.0.0.0/8", "127.0.0.0/8"], True),
        (["127.0.0.2/32"], False),
        (["10.0.0.0/8", "fd00::/8"], False),
        (["::1/128"], False),
    ],
)
async def test_allow_from(networks: list[str], allowed: bool) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)])
        listed = [ipaddress.ip_network(network) for network in networks]
        way = harness.outbound("api", "http", api.address("http"), allow_from=listed)
        web = await bed.sidecar("web", outbound=[way])
        assert await echoed(web.address("api:http", "outbound")) is allowed
        line = await web.log.connection()
        assert line["client_address"].startswith("127.0.0.1:")
        if allowed:
            assert (line["decision"], line["reason"]) == ("allow", "ok")
        else:
            assert (line["decision"], line["reason"], line["rule"]) == ("deny", "policy_denied", None)
            assert "127.0.0.1" in line["message"]
            assert line["peer_address"] is None  # nobody was called
            assert api.log.connections == []


def can_bind_to_a_device() -> bool:
    try:
        with socket.socket() as sock:
            sockets.bind_to_device(sock, "lo")
    except OSError:
        return False
    return True


async def bound_to(bed: harness.MeshBed, device: str, listen: Address) -> RunningSidecar:
    app = await bed.app()
    api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)])
    way = harness.outbound("api", "http", api.address("http"), listen=listen, device=device)
    return await bed.sidecar("web", outbound=[way])


@pytest.mark.skipif(not can_bind_to_a_device(), reason="this kernel does not let us bind a socket to a device")
async def test_the_device_it_is_bound_to_is_the_way_in() -> None:
    async with mesh_bed() as bed:
        web = await bound_to(bed, "lo", harness.ANYWHERE)
        (listener,) = web.server.listeners
        assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        assert await echoed(web.address("api:http", "outbound"))


def other_device() -> str | None:
    """A network interface that is not loopback."""
    return next((name for _, name in socket.if_nameindex() if name != "lo"), None)


@pytest.mark.skipif(
    not can_bind_to_a_device() or other_device() is None,
    reason="needs a second network interface, and a kernel that lets us bind a socket to it",
)
async def test_another_device_is_not() -> None:
    """The same address by another way: there, nobody listens. It is what keeps a neighbour out who forges the address."""
    async with mesh_bed() as bed:
        web = await bound_to(bed, str(other_device()), harness.ANYWHERE)
        with pytest.raises(ConnectionRefusedError):
            await connect(web.address("api:http", "outbound"))
