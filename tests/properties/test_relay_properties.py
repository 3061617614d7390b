"""On real sockets, with either poller: whatever several connections do at once, each one's bytes arrive complete, in order,
once and at their own other end; each ends as its ends did; and one that is cancelled is left alone.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.relay import relay as relay_module
from sidecar.relay.duplex import Ending, How
from tests.beds.patience import PATIENCE
from tests.beds.relay import POLLERS, Bed, Connection, Passthrough

CONNECTIONS = 4
steps = st.tuples(
    st.integers(0, CONNECTIONS - 1),
    st.sampled_from(("net sends", "app sends", "net reads", "app reads", "net ends", "app ends", "cancel")),
    st.integers(1, 60_000),
)
rests = st.sampled_from(("none", "none", "a tick", "settle"))


class Ends:
    """The two far ends of a connection, and what they said and heard."""

    def __init__(self, number: int, connection: Connection) -> None:
        self.connection = connection
        self._pattern = bytes((number * 37 + at) % 251 for at in range(251))
        self.said = {"net": 0, "app": 0}
        self.heard = {"net": bytearray(), "app": bytearray()}
        self.ended: set[str] = set()
        self.cancelled = False

    def socket(self, side: str) -> socket.socket:
        return self.connection.net if side == "net" else self.connection.app

    def text(self, side: str, size: int) -> bytes:
        """The first ``size`` bytes of what that side says: never what another side of another connection does."""
        text = (self._pattern if side == "net" else self._pattern[::-1]) * (size // 251 + 1)
        return text[:size]

    def do(self, side: str, what: str, size: int) -> None:
        if what == "sends":
            self.send(side, size)
        elif what == "reads":
            self.read(side, size)
        else:
            self.end(side)

    def send(self, side: str, size: int) -> None:
        if side not in self.ended:
            at = self.said[side]
            try:
                self.said[side] += self.socket(side).send(self.text(side, at + size)[at:])
            except BlockingIOError:
                return

    def read(self, side: str, size: int) -> bool:
        """Whether its stream goes on."""
        try:
            data = self.socket(side).recv(size)
        except BlockingIOError:
            return True
        self.heard[side] += data
        return bool(data)

    def end(self, side: str) -> None:
        if side not in self.ended:
            self.ended.add(side)
            self.socket(side).shutdown(socket.SHUT_WR)

    def check(self) -> None:
        for side, other in (("net", "app"), ("app", "net")):
            heard = self.heard[side]
            assert len(heard) <= self.said[other]
            assert heard == self.text(other, len(heard)), "bytes of somebody else's, or in another order"


async def live(poller: Any, schedule: list[tuple[tuple[int, str, int], str]]) -> None:
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            bed = Bed(nursery, poller(), stack)
            bed.start()
            made = [bed.connection(Passthrough(), tolerant=True, kernel_room=4096) for _ in range(CONNECTIONS)]
            all_ends = [Ends(number, connection) for number, connection in enumerate(made)]
            for (number, what, size), rest in schedule:
                ends = all_ends[number]
                if what == "cancel":
                    ends.cancelled = True  # if it has not ended by then
                    ends.connection.scope.cancel()
                else:
                    side, does = what.split()
                    ends.do(side, does, size)
                if rest == "a tick":
                    await trio.lowlevel.checkpoint()
                elif rest == "settle":
                    await bed.settle()
            with trio.fail_after(PATIENCE):
                for ends in all_ends:
                    await finish(ends)
            for ends in all_ends:
                ends.check()
                if not ends.cancelled:
                    assert ends.heard["app"] == ends.text("net", ends.said["net"])
                    assert await ends.connection.ending() == Ending(How.OK)
                    assert ends.connection.duplex.to_app == ends.said["net"]
                    assert ends.connection.duplex.from_app == ends.said["app"]
            await bed.settle()
            assert not bed.relay._links
            nursery.cancel_scope.cancel()


async def finish(ends: Ends) -> None:
    """Both sides end and read all, until it is over."""
    ends.end("net")
    ends.end("app")
    while ends.connection.outcome is None and not ends.cancelled:
        ends.read("net", 1 << 20)
        ends.read("app", 1 << 20)
        await trio.lowlevel.checkpoint()
    if not ends.cancelled:
        while ends.read("app", 1 << 20):
            await trio.lowlevel.checkpoint()
        while len(ends.heard["net"]) < ends.said["app"]:
            ends.read("net", 1 << 20)


@pytest.mark.parametrize("poller", POLLERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(steps, rests), max_size=60), st.sampled_from((1, 1000, 100_000)), st.sampled_from((61, 5000)))
def test_several_connections(
    poller: Any, schedule: list[tuple[tuple[int, str, int], str]], pump_bytes: int, read_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_module, "PUMP_BYTES", pump_bytes)
        patch.setattr(relay_module, "READ_BYTES", read_bytes)
        trio.run(live, poller, schedule)
