"""The frames between two streams over a socket: what comes, what does not come in time, and what a lost channel means."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from sidecar.host.clock import utc_now
from sidecar.identity.reasons import Reason, Refused
from sidecar.relay.duplex import Buffers, ChannelError
from sidecar.relay.frames import HEADER_BYTES, FramedChannel, Kind, Open, encode_open
from sidecar.relay.strand import run
from sidecar.transport import streams
from sidecar.transport.streams import LostChannelError
from sidecar.transport.tls import TlsChannel
from sidecar.transport.tls_data import make_buffer
from tests.beds.frames import FakeRecords, frame
from tests.beds.patience import PATIENCE
from tests.beds.relay import fill, tcp_pair
from tests.beds.simulation import UPDATE, fake_buffers, record, records
from tests.unit.transport.test_tls import API, MESH, context, shake

BUFFERS = Buffers(*(make_buffer(20_000) for _ in range(4)))


class Ends:
    """A callee and a caller that have shaken hands, each with its socket."""

    def __init__(self, here: socket.socket, there: socket.socket) -> None:
        self.here, self.there = here, there
        self.callee: TlsChannel = context(MESH.leaf("api")).server(["mesh/2/http", "mesh/1/http"], utc_now)
        self.caller: TlsChannel = context(MESH.leaf("web")).client(["mesh/2/http", "mesh/1/http"], API, utc_now)
        assert shake(self.callee, self.caller) == (None, None)
        assert self.callee.keeps
        assert self.caller.keeps
        while self.caller.more():  # session tickets
            assert self.caller.read(BUFFERS.plain_out) == 0
        self.accepting = FramedChannel(self.callee, accepts=True)
        self.opening = FramedChannel(self.caller, accepts=False)

    async def ask(self, confirmed_by: float, until: float) -> None:
        self.opening.open(1000)
        await run(streams.ask(self.there, self.caller, self.opening, BUFFERS, confirmed_by, until))

    async def hear(self) -> Open:
        opened = await run(streams.receive(self.here, self.accepting, BUFFERS))
        assert isinstance(opened, Open)
        return opened

    async def answer(self, reason: Reason) -> None:
        await run(streams.answer(self.here, self.callee, self.accepting, reason, trio.current_time() + 5))


@contextmanager
def ends() -> Iterator[Ends]:
    with tcp_pair() as (here, there):
        yield Ends(here, there)


async def test_asked_confirmed_and_let_in() -> None:
    with ends() as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.ask, trio.current_time() + 5, trio.current_time() + 9)
            assert await both.hear() == Open(1, 1000, {})
            both.accepting.confirm()
            await both.answer(Reason.OK)
        assert not both.opening.is_idle


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_refusal_is_heard_with_its_word(confirmed: bool) -> None:
    with ends() as both:

        async def refuse() -> None:
            await both.hear()
            if confirmed:
                both.accepting.confirm()
            await both.answer(Reason.POLICY_DENIED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(Refused) as refused:
                await both.ask(trio.current_time() + 5, trio.current_time() + 9)
        assert (refused.value.reason, refused.value.peer_reason) == (Reason.PEER_REFUSED, "policy_denied")
        assert both.opening.is_idle


async def test_one_that_confirms_nothing_is_lost_and_one_that_confirms_is_waited_for(autojump_clock: MockClock) -> None:
    with ends() as both:
        with pytest.raises(LostChannelError, match="confirm"):
            await both.ask(trio.current_time() + 1, trio.current_time() + 9)
        assert trio.current_time() == pytest.approx(1)
    with ends() as both:

        async def confirm() -> None:
            await both.hear()
            both.accepting.confirm()
            await run(streams.send(both.here, both.callee))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(confirm)
            with pytest.raises(trio.TooSlowError):
                await both.ask(began + 1, began + 9)
        assert trio.current_time() - began == pytest.approx(9)


@pytest.mark.parametrize("how", ["close_notify", "fin", "reset", "garbage"])
async def test_a_callee_that_is_gone_is_lost_whatever_the_end(how: str) -> None:
    with ends() as both:
        if how == "close_notify":
            both.callee.close()
            both.here.send(both.callee.take_all())
        elif how == "fin":
            both.here.shutdown(socket.SHUT_WR)
        elif how == "reset":
            both.here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            both.here.close()
        else:
            both.here.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.lowlevel.wait_readable(both.there)
        with pytest.raises(LostChannelError) as lost:
            await both.ask(trio.current_time() + 5, trio.current_time() + 9)
        assert lost.value.refusal().reason is (Reason.TRUNCATED if how == "garbage" else Reason.PEER_REFUSED)
        assert "in time" not in str(lost.value), "it is seen, and not waited for"


def lost(cause: Exception | None) -> Refused:
    error = LostChannelError("the peer close the connection")
    error.__cause__ = cause
    return error.refusal()


def test_what_a_lost_channel_means_where_no_other_is_tried() -> None:
    alert = lost(ChannelError("the peer sent an alert", alert="bad_certificate"))
    assert (alert.reason, alert.peer_reason) == (Reason.PEER_REFUSED, "bad_certificate")
    assert lost(ChannelError("a bad record")).reason is Reason.TRUNCATED
    assert "Connection reset" in lost(ConnectionResetError(104, "Connection reset")).detail
    assert lost(None).detail == "saw the peer close the connection without a verdict"


async def test_a_peer_that_does_not_read_is_not_waited_for_longer(autojump_clock: MockClock) -> None:
    with ends() as both:
        fill(both.here)
        both.callee.write_bytes(b"x" * 100)
        with pytest.raises(LostChannelError, match="does not read"):
            await run(streams.send(both.here, both.callee, trio.current_time() + 2))


def test_a_channel_that_is_retired_ends_cleanly_and_one_that_is_gone_is_no_trouble() -> None:
    for gone in (False, True):
        with ends() as both:
            if gone:
                both.here.close()
            there = both.there.dup()
            streams.retire(both.there, both.caller)
            there.close()
            assert both.there.fileno() == -1
            if not gone:
                data = both.here.recv(1000)
                both.callee.feed_bytes(data)
                assert both.callee.read_some(10) is None


async def test_what_is_behind_many_records_without_data_is_read_without_more_from_the_socket() -> None:
    updates = record(UPDATE) * 40 + records(frame(Kind.OPEN, encode_open(Open(1, 5, {}))))
    with tcp_pair() as (here, there):
        there.send(updates)
        await trio.lowlevel.wait_readable(here)
        channel = FramedChannel(FakeRecords(), accepts=True)
        buffers = fake_buffers(4000, headroom=HEADER_BYTES)
        with trio.fail_after(PATIENCE):
            assert await run(streams.receive(here, channel, buffers)) == Open(1, 5, {})
