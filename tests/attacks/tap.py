"""Somebody on the wire between two sidecars: forwards every byte, but for what a test tells it to do to a TLS record.

Reads record headers (RFC 8446 5.1) and nothing else: it has no keys. Records are counted from 0 in each direction, from the
moment the tap is armed; before, all is forwarded as it is.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.beds.mesh import App, MeshBed, connect
from tests.beds.patience import PATIENCE

Side = Literal["caller", "callee"]
Meddle = Callable[[int, bytes], Sequence[bytes]]
"""What to forward instead of a record: ``meddle(number, record)``; raises :class:`Cut` to end both connections."""

HEADER = 5


class Cut(Exception):  # noqa: N818 (what the attacker does, not an error)
    """End both connections here, after these ``last`` bytes: with a FIN, or with a reset."""

    def __init__(self, *, by_reset: bool, last: bytes = b"") -> None:
        super().__init__("cut")
        self.by_reset = by_reset
        self.last = last


@dataclass
class Tap:
    """``heard`` has the records of each side as they came in; ``meddle`` those to be changed, by the sender's side."""

    place: Address
    meddle: dict[Side, Meddle] = field(default_factory=dict)
    heard: dict[Side, list[bytes]] = field(default_factory=lambda: {"caller": [], "callee": []})
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _from: dict[Side, int] = field(default_factory=lambda: {"caller": 0, "callee": 0})

    def arm(self, side: Side, meddle: Meddle) -> None:
        """From now on, for what this side sends."""
        self.meddle[side] = meddle
        self._from[side] = len(self.heard[side])

    async def until_heard(self, side: Side, count: int) -> None:
        """Until this side has sent so many records since the tap was armed."""
        with trio.fail_after(PATIENCE):
            while len(self.heard[side]) - self._from[side] < count:
                await self._news.park()

    def disarm(self) -> None:
        self.meddle.clear()

    async def serve(self, caller: socket.socket, _app: App) -> None:
        await self.answer(caller)

    async def answer(self, caller: socket.socket) -> None:
        """Forwards one connection."""
        callee = await connect(self.place)
        with callee:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, "caller", caller, callee, nursery.cancel_scope)
                nursery.start_soon(self._forward, "callee", callee, caller, nursery.cancel_scope)

    async def _forward(self, side: Side, source: socket.socket, sink: socket.socket, both: trio.CancelScope) -> None:
        data = b""
        try:
            while more := await sockets.receive(source, 65536):
                data += more
                while len(data) >= HEADER and len(data) >= (size := HEADER + int.from_bytes(data[3:5], "big")):
                    record, data = data[:size], data[size:]
                    self.heard[side].append(record)
                    self._news.unpark_all()
                    meddle, number = self.meddle.get(side), len(self.heard[side]) - 1 - self._from[side]
                    for one in [record] if meddle is None else meddle(number, record):
                        await sockets.send_all(sink, one)
            await sockets.send_all(sink, data)
            sink.shutdown(socket.SHUT_WR)
        except Cut as cut:
            await sockets.send_all(sink, cut.last)
            for sock in (source, sink):
                if cut.by_reset:
                    sockets.hard_close(sock)
                else:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
            if cut.by_reset:
                both.cancel()
        except OSError:
            for sock in (source, sink):
                sockets.hard_close(sock)
            both.cancel()


async def tapped(bed: MeshBed, place: Address) -> tuple[Tap, Address]:
    """A tap before ``place``, and where to call it."""
    tap = Tap(place)
    return tap, (await bed.app(tap.serve)).address
