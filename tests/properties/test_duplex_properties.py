"""Whatever the chunking, the blocking and the order of closes: bytes arrive complete, in order and once; both ends learn how
it ended, and a clean end is told only where the source ended cleanly; memory is bounded; nothing spins, nothing gets stuck.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.relay import duplex as core
from tests.beds.duplex import Connection
from tests.beds.simulation import RECORD, fake_buffers

MAX_SILENT = 6 * RECORD
MAX_PENDING = 4 * RECORD
MAX_DATALESS = 25

ENDS = ("fin", "close", "reset")
actions = st.one_of(
    st.tuples(st.just("peer"), st.sampled_from(("data", "data", "read")), st.integers(1, 3 * RECORD)),
    st.tuples(st.just("app"), st.sampled_from(("data", "data", "read")), st.integers(1, 3 * RECORD)),
    st.tuples(st.just("peer"), st.sampled_from(("updates", "updates please", "empty")), st.integers(1, 20)),
    st.tuples(
        st.just("peer"), st.sampled_from(("close_notify", "close_notify", "alert", "altered", *ENDS)), st.just(1)
    ),
    st.tuples(st.just("app"), st.sampled_from(ENDS), st.just(1)),
)
"""Who does what, and how much of it."""
turns = st.tuples(st.booleans(), st.one_of(st.just(0), st.integers(1, 200)))
"""Whether the poller's events are told then, and how large a share the pump gets (0: no turn)."""
schedules = st.lists(st.tuples(st.integers(0, 1), actions, turns), min_size=8, max_size=50)
sizes = st.one_of(st.integers(1, 8), st.integers(1, 4 * RECORD))
options = st.fixed_dictionaries(
    {
        "room_net": sizes,
        "room_app": sizes,
        "tolerant": st.booleans(),
        "tells_broken": st.booleans(),
        "hiccups": st.lists(st.booleans(), max_size=6),
    }
)


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "MAX_SILENT_CIPHERTEXT", MAX_SILENT)
        patch.setattr(core, "MAX_PENDING_CIPHERTEXT", MAX_PENDING)
        patch.setattr(core, "MAX_DATALESS_RECORDS", MAX_DATALESS)
        yield


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.tuples(sizes, sizes, sizes, sizes), st.lists(options, min_size=2, max_size=2), schedules)
def test_two_connections_that_share_their_buffers(
    buffer_sizes: tuple[int, int, int, int],
    both: list[dict[str, Any]],
    schedule: list[tuple[int, tuple[str, str, int], tuple[bool, int]]],
) -> None:
    buffers = fake_buffers(*buffer_sizes)
    connections = [Connection(buffers, **one) for one in both]
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


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.tuples(sizes, sizes, sizes, sizes),
    options,
    st.lists(st.tuples(actions, turns), max_size=40),
    st.sampled_from(("peer", "app")),
)
def test_a_connection_of_which_a_side_is_reset_ends_or_is_known_to_be_lost(
    buffer_sizes: tuple[int, int, int, int],
    option: dict[str, Any],
    schedule: list[tuple[tuple[str, str, int], tuple[bool, int]]],
    side: str,
) -> None:
    """From any state, and though the other side neither reads nor sends: so the relay ends it in bounded time."""
    connection = Connection(fake_buffers(*buffer_sizes), **{**option, "tells_broken": True})
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
    ended_well = (
        side == "app" and connection.app.shut and connection.app.fin
    )  # both of its directions, before the reset
    assert connection.over or connection.duplex.decided is not None or connection.duplex.lost or ended_well
    if not connection.over and connection.duplex.lost:
        assert connection.duplex.give_up() is connection.duplex.decided


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.tuples(sizes, sizes, sizes, sizes), options, st.lists(st.tuples(actions, turns), max_size=40))
def test_the_twin_while_neither_side_is_gone_nothing_is_given_up(
    buffer_sizes: tuple[int, int, int, int],
    option: dict[str, Any],
    schedule: list[tuple[tuple[str, str, int], tuple[bool, int]]],
) -> None:
    connection = Connection(fake_buffers(*buffer_sizes), **option)
    for (who, what, size), (tell, share) in schedule:
        if what in ("reset", "close"):
            continue
        (connection.peer if who == "peer" else connection.do_app)(what, size)
        connection.flow()
        if tell:
            connection.tell()
        if share:
            connection.pump(share)
        assert not connection.duplex.lost
