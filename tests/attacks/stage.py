"""The two stages on which attacks are played, each with its honest twin.

:class:`Port`: an attacker calls an inbound port of api's sidecar. :class:`Call`: web calls api, and an impostor answers in
api's place. Both assert the whole of what a refusal means: nothing reached the app, one line in the access log with the
named reason, and the same sidecar serves an honest connection right afterwards.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from OpenSSL import SSL

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason
from sidecar.transport import sockets, verdict
from tests.beds.certificates import Authority, Credential
from tests.beds.impostor import STOLEN as STOLEN
from tests.beds.impostor import Answer, Impostor
from tests.beds.mesh import MESH, App, Foreigner, MeshBed, RunningSidecar, connect, echo, inbound, mesh_bed, outbound
from tests.beds.patience import PATIENCE

HONEST = b"an honest request"
API, WEB = "spiffe://shop.internal/api", "spiffe://shop.internal/web"

OK = verdict.encode(Reason.OK)

OF_SIDECAR = ("timeouts", "clock", "limits")

Bend = Callable[[Authority, str], Credential | None]
"""Makes the bad certificate of a service: ``bend(authority, "api")``."""


class Port:
    """api's inbound port ``http``, which web may call, under attack."""

    def __init__(self, bed: MeshBed, sidecar: RunningSidecar, app: App) -> None:
        self.bed, self.sidecar, self.app = bed, sidecar, app
        self.address = sidecar.address("http")
        self.lines = 0
        self.served = 0

    async def foreigner(self, credential: Credential | None, **options: Any) -> Foreigner:
        """A TLS client of the attacker's, connected, its handshake not begun."""
        return Foreigner(await connect(self.address), credential, **options)

    async def attack(self, credential: Credential | None, **options: Any) -> str | None:
        """Calls with this credential, sends bytes at once, and returns the alert, or the verdict, that came back."""
        foreigner = await self.foreigner(credential, **options)
        with foreigner.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
            await foreigner.handshake()
            await foreigner.send(STOLEN)
            if heard := await foreigner.receive():
                assert heard != OK, "an attacker was let in"
                assert heard[0] == len(heard) - 1, "the app answered an attacker"
                return heard[1:].decode()
        return foreigner.alert

    async def refused(self, reason: str) -> dict[str, Any]:
        """Asserts that one more connection was refused for this reason; returns its line of the access log."""
        self.lines += 1
        line = await self.sidecar.log.connection(self.lines)
        assert (line["reason"], line["decision"], line["direction"]) == (reason, "deny", "inbound"), line
        assert (line["bytes_to_app"], line["bytes_from_app"]) == (0, 0)
        await self.honest()
        return line

    async def honest(self, **options: Any) -> dict[str, Any]:
        """The twin: web's honest certificate is let in, and the app gets what it sends and nothing else."""
        credential = options.pop("credential", None) or self.bed.authority.leaf("web")
        caller = await self.foreigner(credential, **options)
        with caller.sock:
            await caller.handshake()
            if caller.tls.get_alpn_proto_negotiated():
                assert await caller.verdict() == "ok"
            await caller.send(HONEST)
            assert await caller.receive() == HONEST
            await caller.close()
            assert await caller.receive() == b""
        self.lines += 1
        self.served += 1
        line = await self.sidecar.log.connection(self.lines)
        assert (line["reason"], line["decision"], line["peer_id"]) == ("ok", "allow", WEB), line
        assert self.app.connections == self.served
        assert bytes(self.app.received) == HONEST * self.served
        assert len(self.sidecar.log.connections) == self.lines
        assert not self.sidecar.log.events("internal_error")
        return line


@asynccontextmanager
async def attacked_port(mesh: str = MESH, *, authority: Authority | None = None, **options: Any) -> AsyncIterator[Port]:
    """A :class:`Port`; ``options`` are those of ``harness.inbound``, and some the sidecar's."""
    of_sidecar = {name: options.pop(name) for name in OF_SIDECAR if name in options}
    async with mesh_bed(mesh, authority) as bed:
        app = await bed.app(echo)
        sidecar = await bed.sidecar("api", inbound=[inbound("http", app.address, **options)], **of_sidecar)
        yield Port(bed, sidecar, app)


class Call:
    """web's call to api:http, with an impostor in api's place."""

    def __init__(self, bed: MeshBed, sidecar: RunningSidecar, impostor: Impostor, place: Address) -> None:
        self.bed, self.sidecar, self.impostor, self.place = bed, sidecar, impostor, place
        self.entry = sidecar.address("api:http", "outbound")
        self.lines = 0
        self._alarms = 0

    async def attack(self, answer: Answer) -> None:
        """web's app calls and sends at once; it must get a reset, and the impostor nothing."""
        self.impostor.answer = answer
        await assert_refused(self.entry)

    async def refused(self, reason: str, *, alarm: bool) -> dict[str, Any]:
        """Asserts that the call was refused for this reason, with or without an alarm; returns its line."""
        self.lines += 1
        line = await self.sidecar.log.connection(self.lines)
        assert (line["reason"], line["decision"], line["direction"]) == (reason, "deny", "outbound"), line
        assert (line["bytes_to_app"], line["bytes_from_app"]) == (0, 0)
        assert line["peer_address"] == str(self.place)
        assert bytes(self.impostor.received) == b""
        self._alarms += alarm
        kept = self.sidecar.node.alarm_log.alarms.current()
        assert sum(one["count"] for one in kept) == self._alarms
        assert len(self.sidecar.log.alarms) == len(kept)  # repeats are folded
        if alarm:
            said = kept[-1]
            assert (said["reason"], said["peer_address"], said["expected"]) == (reason, str(self.place), API)
            assert said["connection_id"] == line["connection_id"]
            assert API in said["message"]
            assert str(self.place) in said["message"]
        await self.honest()
        return line

    async def honest(self, **options: Any) -> dict[str, Any]:
        """The twin: the same address, now with api's honest certificate, gets the call."""
        self.impostor.received.clear()
        credential = options.pop("credential", None) or self.bed.authority.leaf("api")
        self.impostor.answer = self.impostor.shows(credential, **options)
        with await connect(self.entry) as client:
            await sockets.send_all(client, HONEST)
            client.shutdown(socket.SHUT_WR)
            with trio.fail_after(PATIENCE):
                assert await sockets.receive(client, 65536) == HONEST
                assert await sockets.receive(client, 65536) == b""
        self.lines += 1
        line = await self.sidecar.log.connection(self.lines)
        assert (line["reason"], line["decision"], line["peer_id"]) == ("ok", "allow", API), line
        assert bytes(self.impostor.received) == HONEST
        assert len(self.sidecar.log.connections) == self.lines
        assert not self.sidecar.log.events("internal_error")
        self.impostor.received.clear()
        return line


@asynccontextmanager
async def attacked_call(mesh: str = MESH, *, authority: Authority | None = None, **options: Any) -> AsyncIterator[Call]:
    """A :class:`Call`; ``options`` are those of ``harness.outbound``, and some the sidecar's."""
    of_sidecar = {name: options.pop(name) for name in OF_SIDECAR if name in options}
    async with mesh_bed(mesh, authority) as bed:
        impostor = Impostor()
        place = (await bed.app(impostor.serve)).address
        sidecar = await bed.sidecar("web", outbound=[outbound("api", "http", place, **options)], **of_sidecar)
        yield Call(bed, sidecar, impostor, place)


async def assert_refused(entry: Address) -> None:
    """A plaintext call that says something at once and must be reset, be it before it knows that it is connected."""
    with contextlib.suppress(ConnectionResetError), await connect(entry) as client:
        with contextlib.suppress(OSError):
            await sockets.send_all(client, STOLEN)
        await assert_reset(client)


async def assert_reset(sock: socket.socket, *, after: Sequence[bytes] = ()) -> None:
    """The other side must end by a reset, never by a clean end of the stream, and with no byte but these before."""
    data = b""
    with trio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):  # noqa: PT012 (read until it breaks)
        while more := await sockets.receive(sock, 65536):
            data += more
    assert data == b"".join(after)
