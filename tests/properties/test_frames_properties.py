"""A stream on a kept channel is to its app what a connection is, whatever the chunking, the blocking and the order of ends;
nothing of one stream reaches another; and whatever arrives, the app gets the data of whole, authentic frames up to the first
thing that is not as it must be, and then a reset.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.relay import duplex as core
from sidecar.relay.duplex import Buffer, ChannelError, Duplex, How, Op
from sidecar.relay.frames import HEADER_BYTES, FramedChannel, Kind, Open
from tests.beds.frames import FakeRecords, FramedConnection, frame, joined, parse_frames
from tests.beds.simulation import DATA, RECORD, fake_buffers, record, records
from tests.properties.test_duplex_properties import (
    MAX_DATALESS,
    MAX_PENDING,
    MAX_SILENT,
    actions,
    options,
    schedules,
    sizes,
    turns,
)


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "MAX_SILENT_CIPHERTEXT", MAX_SILENT)
        patch.setattr(core, "MAX_PENDING_CIPHERTEXT", MAX_PENDING)
        patch.setattr(core, "MAX_DATALESS_RECORDS", MAX_DATALESS)
        yield


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.tuples(sizes, sizes, sizes, sizes), st.lists(options, min_size=2, max_size=2), schedules)
def test_two_streams_that_share_their_buffers(
    buffer_sizes: tuple[int, int, int, int],
    both: list[dict[str, Any]],
    schedule: list[tuple[int, tuple[str, str, int], tuple[bool, int]]],
) -> None:
    buffers = fake_buffers(*buffer_sizes, headroom=HEADER_BYTES)
    connections = [FramedConnection(buffers, **{**one, "tolerant": False}) for one in both]
    for number, (who, what, size), (tell, share) in schedule:
        connection = connections[number]
        (connection.peer if who == "peer" else connection.do_app)(what, size)
        connection.flow()
        if tell:
            connection.tell()
        if share:
            connection.pump(share)
            connection.flow()
    for connection in connections:
        connection.finish()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.tuples(sizes, sizes, sizes, sizes),
    options,
    st.lists(st.tuples(actions, turns), max_size=40),
    st.sampled_from(("peer", "app")),
)
def test_a_stream_of_which_a_side_is_reset_ends_or_is_known_to_be_lost(
    buffer_sizes: tuple[int, int, int, int],
    option: dict[str, Any],
    schedule: list[tuple[tuple[str, str, int], tuple[bool, int]]],
    side: str,
) -> None:
    connection = FramedConnection(
        fake_buffers(*buffer_sizes, headroom=HEADER_BYTES), **{**option, "tells_broken": True, "tolerant": False}
    )
    for (who, what, size), (tell, share) in schedule:
        (connection.peer if who == "peer" else connection.do_app)(what, size)
        connection.flow()
        if tell:
            connection.tell()
        if share:
            connection.pump(share)
    (connection.peer if side == "peer" else connection.do_app)("reset", 1)
    for _ in range(20):
        connection.tell()
        connection.pump(1000)
    ended_well = side == "app" and connection.app.shut and connection.app.fin
    assert connection.over or connection.duplex.decided is not None or connection.duplex.lost or ended_well


# -- any bytes ---------------------------------------------------------------------------------------------------------

KINDS = st.one_of(st.sampled_from([kind.value for kind in Kind]), st.integers(0, 255))
plaintexts = st.one_of(
    st.builds(frame, st.just(Kind.DATA.value), st.binary(min_size=1, max_size=100)),
    st.builds(frame, KINDS, st.binary(max_size=70), st.one_of(st.none(), st.integers(0, 200), st.just(2**24 - 1))),
    st.binary(max_size=2 * RECORD),
)
wires = st.lists(
    st.one_of(
        plaintexts.map(records),
        plaintexts.map(lambda plain: b"".join(record(DATA, plain[at : at + 7]) for at in range(0, len(plain), 7))),
        st.binary(max_size=10),
        st.just(record(ord("c"))),
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(wires, st.lists(st.integers(1, 200), min_size=1, max_size=20), st.one_of(st.integers(1, 8), st.just(200)))
def test_whatever_arrives_the_app_gets_authentic_frames_and_then_a_reset(
    wire: bytes, chunks: list[int], room: int
) -> None:
    app, over = stream_of(wire, chunks, room)
    said = parse_frames(wire)
    assert app == said.data
    assert over is {"close": How.OK, None: None}.get(said.end, How.TRUNCATED)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=3))
def test_cut_after_any_byte_a_stream_is_truncated_never_ended(parts: list[bytes]) -> None:
    wire = b"".join(records(frame(Kind.DATA, part)) for part in parts) + records(frame(Kind.END))
    for size in range(len(wire)):
        app, over = stream_of(wire[:size], [1000], 200, fin=True)
        assert over is How.TRUNCATED
        assert b"".join(parts).startswith(app)
    assert stream_of(wire, [1000], 200, fin=True) == (b"".join(parts), How.OK)


def stream_of(wire: bytes, chunks: list[int], room: int, *, fin: bool = False) -> tuple[bytes, How | None]:
    """What an app gets of these bytes, which come in such chunks, and how the stream ends; None: it has not. ``fin``: then
    the peer's connection ends. The app itself has nothing to say."""
    buffers = fake_buffers(300, room, 50, 300, headroom=HEADER_BYTES)
    channel = FramedChannel(FakeRecords(), accepts=True)
    channel._begin()
    duplex = Duplex(channel, buffers)
    got, at, turn = b"", 0, 0
    op = duplex.received_app(0)
    for _ in range(10_000):
        if op is Op.SEND_APP:
            got += bytes(duplex.out)
            op = duplex.sent_app(len(duplex.out))
        elif op is Op.SEND_NET:
            op = duplex.sent_net(len(duplex.out))
        elif op is Op.RECV_NET and (at < len(wire) or fin):
            part = wire[at : at + chunks[turn % len(chunks)]]
            buffers.cipher_in.view[: len(part)] = part
            at, turn = at + len(part), turn + 1
            op = duplex.received_net(len(part))
        elif op is Op.SHUT_APP:
            op = duplex.shut_app()
        elif op is Op.MORE:
            op = duplex.more()
        elif op is Op.END:
            assert duplex.ending is not None
            return got, duplex.ending.how
        else:
            return got, None
    raise AssertionError("it spins")


# -- one stream after another ------------------------------------------------------------------------------------------

streams = st.lists(
    st.tuples(
        st.binary(max_size=100), st.binary(max_size=100), st.booleans(), st.sampled_from(("ok", "policy_denied"))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(streams)
def test_streams_follow_one_another_and_none_sees_a_byte_of_another(
    plan: list[tuple[bytes, bytes, bool, str]],
) -> None:
    buffer = Buffer(bytearray(HEADER_BYTES + 500), headroom=HEADER_BYTES)
    caller, callee = FramedChannel(FakeRecords(), accepts=False), FramedChannel(FakeRecords(), accepts=True)
    for number, (asked, said, caller_ends_first, word) in enumerate(plan, start=1):
        assert caller.is_idle
        assert callee.is_idle
        caller.open(1000 + number)
        joined(caller, callee, buffer)
        assert callee.receive(buffer) == Open(number, 1000 + number, {})
        callee.confirm()
        callee.give_verdict(word)
        joined(caller, callee, buffer)
        assert caller.receive(buffer) == ""
        assert caller.receive(buffer) == word
        if word != "ok":
            continue
        for one, other, data in ((caller, callee, asked), (callee, caller, said)):
            if data:
                buffer.view[: len(data)] = data
                one.write(buffer, len(data))
                joined(caller, callee, buffer)
                assert everything(other, buffer) == (data, False)
        first, second = (caller, callee) if caller_ends_first else (callee, caller)
        for one, other in ((first, second), (second, first)):
            assert not (caller.is_idle and callee.is_idle)
            one.close()
            joined(caller, callee, buffer)
            assert everything(other, buffer) == (b"", True)


def everything(channel: FramedChannel, buffer: Buffer) -> tuple[bytes, bool]:
    """What a channel has now, and whether its stream has ended."""
    data = b""
    while (size := channel.read(buffer)) > 0 or (channel.unread and not channel.ended):
        data += bytes(buffer.view[: max(size, 0)])
    return data, size < 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.booleans(), plaintexts, st.integers(1, 40))
def test_a_frame_that_is_not_due_between_streams_breaks_the_channel_for_good(
    accepts: bool, plain: bytes, chunk: int
) -> None:
    channel = FramedChannel(FakeRecords(), accepts=accepts)
    buffer = Buffer(bytearray(HEADER_BYTES + 500), headroom=HEADER_BYTES)
    wire = records(plain)
    for at in range(0, len(wire), chunk):
        part = wire[at : at + chunk]
        buffer.view[: len(part)] = part
        channel.feed(buffer, len(part))
    if not wire:
        assert channel.receive(buffer) is None
        return
    try:
        opened = channel.receive(buffer)
    except ChannelError:
        assert not channel.is_idle
        for once_more in (lambda: channel.receive(buffer), lambda: channel.read(buffer), lambda: channel.open(1)):
            with pytest.raises(ChannelError):
                once_more()
    else:
        assert accepts
        assert opened is not None
        assert plain[0] == Kind.OPEN
        assert plain[4:8] == b"\0\0\0\1"
