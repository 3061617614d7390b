"""The relay's core as transcripts: what it says is the next thing to do, what came of that, and how it ends.

``hear`` is what the peer's socket gave, ``read`` what the app's did; a FIN is b"".
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar.relay.duplex import (
    DATA_PER_DATALESS_RECORD,
    MAX_DATALESS_RECORDS,
    MAX_PENDING_CIPHERTEXT,
    MAX_SILENT_CIPHERTEXT,
    Duplex,
    Ending,
    How,
    Op,
)
from tests.beds.simulation import (
    ALERT,
    CLOSE,
    DATA,
    UPDATE,
    UPDATE_PLEASE,
    FakeChannel,
    fake_buffers,
    parse,
    record,
    records,
    scribble,
)

WAIT, RECV_NET, SEND_APP, RECV_APP, SEND_NET, SHUT_APP, END, MORE = Op
CLOSE_NOTIFY = record(CLOSE)
ALTERED = record(DATA, b"honest").replace(b"o", b"0")
REFUSAL = record(ALERT, b"bad_certificate")


class Line:
    """A Duplex over the fake channel, with what a shell would do in one call each."""

    def __init__(self, *sizes: int, tolerant: bool = False, at_once: int = 1_000_000) -> None:
        self.channel = FakeChannel(at_once)
        self.buffers = fake_buffers(*(sizes or (4096,)))
        self.duplex = Duplex(self.channel, self.buffers, tolerate_missing_close_notify=tolerant)

    def hear(self, data: bytes) -> Op:
        self.buffers.cipher_in.view[: len(data)] = data
        return self.duplex.received_net(len(data))

    def read(self, data: bytes) -> Op:
        self.buffers.plain_in.view[: len(data)] = data
        return self.duplex.received_app(len(data))

    @property
    def out(self) -> bytes:
        return bytes(self.duplex.out)

    def to_app(self, size: int | None = None) -> Op:
        return self.duplex.sent_app(len(self.out) if size is None else size)

    def to_peer(self, size: int | None = None) -> Op:
        return self.duplex.sent_net(len(self.out) if size is None else size)

    def quiet(self) -> Op:
        """Neither socket has anything to read for now."""
        self.duplex.app_r = self.duplex.net_r = False
        return self.duplex.next()

    @property
    def ending_or_none(self) -> Ending | None:
        return self.duplex.ending

    @property
    def ending(self) -> Ending:
        assert self.duplex.ending is not None
        return self.duplex.ending


@pytest.fixture
def line() -> Line:
    return Line()


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_at_first_both_sockets_are_tried_and_then_it_waits(line: Line) -> None:
    duplex = line.duplex
    assert duplex.next() is RECV_APP
    assert duplex.blocked(RECV_APP) is RECV_NET
    assert duplex.blocked(RECV_NET) is WAIT
    duplex.net_r = True
    assert duplex.next() is RECV_NET


def test_bytes_go_through_both_ways_and_are_counted(line: Line) -> None:
    assert line.read(b"question") is SEND_NET
    assert parse(line.out).data == b"question"
    assert line.to_peer() is RECV_APP
    assert line.hear(records(b"an answer")) is SEND_APP
    assert line.out == b"an answer"
    assert line.to_app() is RECV_NET
    assert (line.duplex.from_app, line.duplex.to_app) == (8, 9)


def test_data_that_came_in_the_handshakes_last_flight_needs_no_event(line: Line) -> None:
    early = records(b"early")
    line.buffers.cipher_in.view[: len(early)] = early
    line.channel.feed(line.buffers.cipher_in, len(early))
    assert line.quiet() is SEND_APP
    assert line.out == b"early"


def test_an_end_that_came_in_the_handshakes_last_flight_needs_no_event_either(line: Line) -> None:
    line.buffers.cipher_in.view[: len(CLOSE_NOTIFY)] = CLOSE_NOTIFY
    line.channel.feed(line.buffers.cipher_in, len(CLOSE_NOTIFY))
    assert line.quiet() is SHUT_APP


def test_half_a_record_is_waited_for(line: Line) -> None:
    whole = records(b"both halves")
    assert line.hear(whole[:5]) is RECV_APP
    assert line.hear(whole[5:]) is SEND_APP
    assert line.out == b"both halves"


def test_what_is_more_than_a_buffer_goes_in_several_steps() -> None:
    line = Line(400, 100, 400, 100)
    assert line.hear(records(b"x" * 250)) is SEND_APP
    sizes = [len(line.out)]
    while line.to_app() is SEND_APP:
        sizes.append(len(line.out))
    assert sizes == [100, 100, 50]
    assert line.read(b"y" * 250) is SEND_NET
    sent = line.out
    while line.to_peer() is SEND_NET:
        sent += line.out
    assert parse(sent).data == b"y" * 250


def test_what_a_socket_would_not_take_is_kept_out_of_the_shared_buffers(line: Line) -> None:
    assert line.read(b"to the peer") is SEND_NET
    assert line.duplex.blocked(SEND_NET) is RECV_NET
    assert line.hear(records(b"to the app")) is SEND_APP
    assert line.to_app(3) is SEND_APP
    assert line.duplex.blocked(SEND_APP) is WAIT
    scribble(line.buffers)
    line.duplex.app_w = True
    assert line.duplex.next() is SEND_APP
    assert line.out == b"the app"
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert parse(line.out).data == b"to the peer"


# -- backpressure ------------------------------------------------------------------------------------------------------


def test_an_app_that_does_not_read_stops_the_peer_and_not_itself(line: Line) -> None:
    line.hear(records(b"more than it takes"))
    assert line.duplex.blocked(SEND_APP) is RECV_APP
    assert line.read(b"from the app") is SEND_NET
    assert line.to_peer() is RECV_APP
    line.duplex.app_r = False
    assert line.duplex.next() is WAIT
    line.duplex.app_w = True
    assert line.duplex.next() is SEND_APP
    assert line.to_app() is RECV_NET


def test_a_peer_that_does_not_read_stops_the_app_and_not_itself(line: Line) -> None:
    line.read(b"more than it takes")
    assert line.duplex.blocked(SEND_NET) is RECV_NET
    assert line.hear(records(b"from the peer")) is SEND_APP
    assert line.to_app() is RECV_NET
    line.duplex.net_r = False
    assert line.duplex.next() is WAIT
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert line.to_peer() is RECV_APP


def test_when_both_may_be_read_they_take_turns(line: Line) -> None:
    order = []
    op = line.duplex.next()
    for _ in range(10):
        order.append(op)
        if op is RECV_APP:
            assert line.read(b"a") is SEND_NET
            op = line.to_peer()
        else:
            assert line.hear(records(b"n")) is SEND_APP
            op = line.to_app()
    assert set(order) == {RECV_APP, RECV_NET}
    assert all(one is not other for one, other in pairwise(order))


def test_a_peer_that_asks_for_replies_and_does_not_read_them_is_not_read_any_more() -> None:
    line = Line(2 * MAX_PENDING_CIPHERTEXT)
    line.read(b"stuck")
    assert line.duplex.blocked(SEND_NET) is RECV_NET
    asks = record(UPDATE_PLEASE) * (MAX_DATALESS_RECORDS // 2)
    earned = records(b"!" * DATA_PER_DATALESS_RECORD * MAX_DATALESS_RECORDS)
    while line.channel.pending() <= MAX_PENDING_CIPHERTEXT:
        assert line.duplex.next() is RECV_NET, "under the cap it is read"
        line.hear(asks + earned)
        line.duplex.app_r = False
        if line.to_app() is MORE:
            line.duplex.more()
    assert line.channel.pending() <= MAX_PENDING_CIPHERTEXT + len(asks)
    assert line.duplex.next() is WAIT, "over the cap it is not"
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert line.to_peer() is SEND_NET, "the replies"
    assert line.to_peer() is RECV_NET


# -- silence -----------------------------------------------------------------------------------------------------------


def test_a_flood_of_records_without_data_is_cut() -> None:
    line = Line(MAX_SILENT_CIPHERTEXT + 3)
    flood = record(DATA) * (MAX_SILENT_CIPHERTEXT // 3)
    assert line.hear(flood) is RECV_APP
    assert line.hear(record(DATA)) is END
    assert line.ending.how is How.TRUNCATED
    assert line.ending.reset_app
    assert "65538 bytes of TLS records without any data" in (line.ending.detail or "")


def test_a_byte_of_data_now_and_then_and_it_is_no_flood() -> None:
    line = Line(MAX_SILENT_CIPHERTEXT + 3)
    flood = record(DATA) * (MAX_SILENT_CIPHERTEXT // 3)
    for _ in range(5):
        assert line.hear(flood) in (RECV_APP, RECV_NET)
        assert line.hear(record(DATA, b"!")) is SEND_APP
        assert line.to_app() in (RECV_APP, RECV_NET)


def test_key_updates_with_a_byte_of_data_now_and_then_are_cut_after_the_data() -> None:
    line = Line()
    updates = 100
    heard = 0
    while line.ending_or_none is None:
        op = line.hear(record(UPDATE) * updates + record(DATA, b"!"))
        heard += updates
        assert op is SEND_APP
        while (op := line.to_app()) is MORE:
            assert line.duplex.more() in (RECV_NET, RECV_APP)
            break
        assert heard <= MAX_DATALESS_RECORDS + 2 * updates, "a flood that is not cut"
    assert heard > MAX_DATALESS_RECORDS
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)
    assert "TLS records without data (KeyUpdates)" in (line.ending.detail or "")
    assert line.duplex.to_app == heard // updates, "what was authentic"


def test_the_twin_a_key_update_before_each_small_message_is_nobodys_fault() -> None:
    line = Line()
    message = b"x" * DATA_PER_DATALESS_RECORD
    for _ in range(3 * MAX_DATALESS_RECORDS):
        assert line.hear(record(UPDATE) + record(DATA, message)) is SEND_APP
        assert line.to_app() is MORE
        assert line.duplex.more() in (RECV_NET, RECV_APP)


def test_much_data_pays_for_no_flood_that_comes_later() -> None:
    line = Line(2 * MAX_DATALESS_RECORDS * DATA_PER_DATALESS_RECORD)
    for _ in range(5):
        assert line.hear(records(b"x" * MAX_DATALESS_RECORDS * DATA_PER_DATALESS_RECORD)) is SEND_APP
        line.to_app()
    assert line.hear(record(UPDATE) * (MAX_DATALESS_RECORDS + 2)) is END


def test_more_records_than_are_worked_off_at_once_let_others_have_their_turn() -> None:
    line = Line(at_once=3)
    assert line.hear(record(DATA, b"1") * 7 + record(UPDATE_PLEASE) * 3 + record(DATA, b"2") + CLOSE_NOTIFY) is SEND_APP
    assert line.out == b"111"
    assert line.to_app() is MORE
    assert line.duplex.next() is MORE, "asked again, it says the same"
    assert line.duplex.more() is SEND_APP
    assert line.to_app() is MORE
    assert line.duplex.more() is SEND_APP
    assert line.out == b"1"
    assert line.to_app() is SEND_NET, "replies"
    assert line.to_peer() is MORE
    assert line.duplex.more() is SEND_APP
    assert line.out == b"2"
    assert line.to_app() is SEND_NET
    assert line.to_peer() is SHUT_APP, "an end needs no turn"


# -- clean ends --------------------------------------------------------------------------------------------------------


def test_the_apps_fin_becomes_a_close_notify_after_its_last_byte_and_the_other_direction_lives_on(line: Line) -> None:
    line.read(b"last words")
    line.duplex.blocked(SEND_NET)
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.out == CLOSE_NOTIFY
    assert line.to_peer() is RECV_NET, "and the app is not read again"
    assert line.hear(records(b"a late answer")) is SEND_APP
    assert line.to_app() is RECV_NET
    assert line.hear(CLOSE_NOTIFY) is SHUT_APP
    assert line.duplex.shut_app() is END
    assert line.ending == Ending(How.OK)


def test_a_close_notify_becomes_a_fin_after_the_last_byte_and_the_other_direction_lives_on(line: Line) -> None:
    assert line.hear(records(b"last words") + CLOSE_NOTIFY) is SEND_APP
    assert line.duplex.blocked(SEND_APP) is RECV_APP, "no FIN before the last byte is out"
    line.duplex.app_w = True
    assert line.duplex.next() is SEND_APP
    assert line.to_app() is SHUT_APP
    assert line.duplex.shut_app() is RECV_APP, "and the peer is not read again"
    assert line.read(b"a late answer") is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.duplex.blocked(SEND_NET) is WAIT, "it does not end before its close_notify is out"
    line.duplex.net_w = True
    line.duplex.next()
    assert line.to_peer() is END
    assert line.ending == Ending(How.OK)


# -- truncation --------------------------------------------------------------------------------------------------------


def test_a_fin_without_close_notify_is_a_truncation_after_what_was_authentic(line: Line) -> None:
    assert line.hear(records(b"authentic") + records(b"cut off")[:-1]) is SEND_APP
    assert line.to_app() is RECV_APP
    assert line.hear(b"") is END
    assert (line.ending.how, line.ending.reset_app, line.ending.reset_net) == (How.TRUNCATED, True, False)
    assert line.duplex.to_app == len(b"authentic")


def test_the_twin_where_it_is_tolerated_it_is_a_clean_end() -> None:
    line = Line(tolerant=True)
    assert line.hear(records(b"authentic")) is SEND_APP
    assert line.to_app() is RECV_APP
    assert line.hear(b"") is SHUT_APP
    assert line.duplex.shut_app() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.to_peer() is END
    assert line.ending == Ending(How.OK)


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_reset_is_a_truncation_tolerated_or_not(tolerant: bool) -> None:
    line = Line(tolerant=tolerant)
    assert line.duplex.failed(RECV_NET) is END
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)


def test_a_reset_that_a_send_met_first_is_never_taken_for_a_tolerated_end() -> None:
    """Linux tells of a reset once: after that, a read returns 0 as if a FIN had come."""
    line = Line(tolerant=True)
    line.read(b"question")
    line.duplex.app_r = False
    assert line.duplex.failed(SEND_NET) is RECV_NET
    assert line.hear(b"") is END
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)


def test_the_twin_a_peer_that_had_sent_its_fin_before_is_believed() -> None:
    line = Line(tolerant=True)
    line.read(b"question")
    line.duplex.app_r = False
    assert line.duplex.failed(SEND_NET, after_fin=True) is RECV_NET
    assert line.hear(b"") is SHUT_APP
    assert line.duplex.shut_app() is END
    assert line.ending.how is How.PEER_RESET, "the question was not read, and the app is told"
    assert line.ending.reset_app


def test_an_altered_record_ends_it_after_what_was_authentic_and_the_peer_gets_an_alert(line: Line) -> None:
    assert line.hear(records(b"authentic") + ALTERED + records(b"behind it")) is SEND_APP
    assert line.out == b"authentic"
    assert line.duplex.blocked(SEND_APP) is SEND_NET
    assert parse(line.out).end == "alert"
    assert line.to_peer() is RECV_APP
    line.duplex.app_r, line.duplex.app_w = False, True
    assert line.duplex.next() is SEND_APP
    assert line.to_app() is END
    assert (line.ending.how, line.ending.detail, line.ending.reset_app) == (
        How.TRUNCATED,
        "a record was altered",
        True,
    )


def test_the_apps_bytes_cannot_go_out_on_a_broken_channel_and_the_authentic_ones_still_reach_it(line: Line) -> None:
    line.hear(records(b"authentic") + ALTERED)
    assert line.duplex.blocked(SEND_APP) is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"too late") is WAIT, "the channel refuses them; what is authentic goes out first"
    line.duplex.app_w = True
    assert line.duplex.next() is SEND_APP
    assert line.out == b"authentic"
    assert line.to_app() is END
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)


def test_an_alert_before_the_first_byte_is_a_refusal(line: Line) -> None:
    assert line.hear(REFUSAL) is END
    assert (line.ending.how, line.ending.reset_app) == (How.PEER_ALERT, True)


def test_the_twin_an_alert_after_it_is_a_truncation(line: Line) -> None:
    assert line.hear(records(b"x") + REFUSAL) is SEND_APP
    assert line.to_app() is END
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)


def test_after_a_truncation_nothing_is_read_from_the_app_and_nothing_waits_for_the_peer(line: Line) -> None:
    line.read(b"unsent")
    assert line.duplex.blocked(SEND_NET) is RECV_NET
    line.hear(records(b"authentic"))
    assert line.duplex.blocked(SEND_APP) is WAIT
    line.duplex.app_w = True
    assert line.duplex.next() is SEND_APP
    assert line.to_app(4) is SEND_APP
    assert line.to_app() is RECV_NET
    assert line.hear(b"") is END
    assert line.ending.how is How.TRUNCATED


# -- the app breaks ----------------------------------------------------------------------------------------------------


def test_what_an_app_sent_before_it_reset_goes_out_and_then_the_peer_is_reset(line: Line) -> None:
    line.hear(records(b"for the app"))
    line.duplex.blocked(SEND_APP)
    line.read(b"said before")
    assert line.duplex.blocked(SEND_NET) is WAIT
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert line.to_peer(4) is SEND_NET
    assert line.duplex.blocked(SEND_NET) is WAIT
    # Its socket broke while that waited: it is noticed at the next read.
    line.duplex.net_w = True
    line.duplex.next()
    assert line.to_peer() is RECV_APP
    assert line.duplex.failed(RECV_APP) is END
    assert line.ending == Ending(How.APP_RESET, "the app reset the connection", reset_net=True)


def test_what_was_for_an_app_that_reset_waits_for_nobody(line: Line) -> None:
    line.hear(records(b"for the app"))
    assert line.duplex.blocked(SEND_APP) is RECV_APP
    assert line.duplex.failed(RECV_APP) is END


def test_an_app_that_answers_and_closes_before_it_has_read_all_loses_nothing_of_its_answer(line: Line) -> None:
    """HTTP 413: a FIN was there before the socket broke (EPIPE says so), so its stream is whole."""
    line.hear(records(b"a large upload"))
    assert line.duplex.failed(SEND_APP, after_fin=True) is RECV_APP, "and the peer is not read any more"
    assert line.read(b"413 Content Too Large") is SEND_NET
    assert parse(line.out).data == b"413 Content Too Large"
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.out == CLOSE_NOTIFY
    assert line.duplex.blocked(SEND_NET) is WAIT
    line.duplex.net_w = True
    line.duplex.next()
    assert line.to_peer() is END
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all")


def test_nothing_waits_for_a_peer_that_breaks_before_it_has_that_answer(line: Line) -> None:
    line.hear(records(b"a large upload"))
    line.duplex.failed(SEND_APP, after_fin=True)
    assert line.read(b"") is SEND_NET
    assert line.duplex.blocked(SEND_NET) is WAIT
    line.duplex.net_w = True
    assert line.duplex.next() is SEND_NET
    assert line.duplex.failed(SEND_NET) is END
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all")


def test_the_twin_where_it_reset_its_stream_is_not_given_out_as_whole(line: Line) -> None:
    line.hear(records(b"a large upload"))
    assert line.duplex.failed(SEND_APP) is RECV_APP
    assert line.read(b"413 Content Too") is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is END, "no close_notify"
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all", reset_net=True)


def test_an_app_that_had_ended_and_then_breaks(line: Line) -> None:
    line.read(b"")
    line.to_peer()
    line.hear(records(b"it does not read this"))
    assert line.duplex.failed(SEND_APP) is END
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all")


def test_the_first_cause_is_the_one_that_counts(line: Line) -> None:
    line.hear(records(b"authentic") + ALTERED)
    line.duplex.blocked(SEND_APP)
    line.to_peer()
    line.read(b"refused by the channel")
    assert line.duplex.failed(SEND_APP) is END
    assert line.ending.how is How.TRUNCATED


# -- the peer breaks ---------------------------------------------------------------------------------------------------


def test_a_peer_that_breaks_at_a_send_is_still_read_to_its_end(line: Line) -> None:
    line.read(b"unread")
    assert line.duplex.failed(SEND_NET) is RECV_NET, "and the app is not read any more"
    assert line.hear(records(b"its last words") + CLOSE_NOTIFY) is SEND_APP
    assert line.to_app() is SHUT_APP
    assert line.duplex.shut_app() is END
    assert line.ending == Ending(How.PEER_RESET, "the peer closed before it had read all", reset_app=True)


def test_a_peer_that_broke_is_found_to_have_refused_us(line: Line) -> None:
    line.read(b"unread")
    line.duplex.failed(SEND_NET)
    assert line.hear(REFUSAL) is END
    assert line.ending.how is How.PEER_ALERT


def test_only_the_close_notify_was_not_read_and_that_is_a_clean_end(line: Line) -> None:
    line.hear(CLOSE_NOTIFY)
    line.duplex.shut_app()
    assert line.read(b"") is SEND_NET
    assert line.duplex.failed(SEND_NET) is END
    assert line.ending == Ending(How.OK)


def test_the_twin_where_there_was_data_beside_it(line: Line) -> None:
    line.hear(CLOSE_NOTIFY)
    line.duplex.shut_app()
    assert line.read(b"data") is SEND_NET
    line.duplex.blocked(SEND_NET)
    line.duplex.net_w = True
    line.duplex.next()
    assert line.duplex.failed(SEND_NET) is END
    assert line.ending.how is How.PEER_RESET


def test_a_peer_that_ended_cleanly_and_then_breaks_is_noticed_though_nothing_is_read_from_it(line: Line) -> None:
    line.hear(CLOSE_NOTIFY)
    line.duplex.shut_app()
    line.duplex.blocked(RECV_APP)
    line.duplex.peer_gone()
    assert line.duplex.next() is END
    assert line.ending == Ending(How.OK)


def test_the_twin_with_bytes_still_to_send(line: Line) -> None:
    line.hear(CLOSE_NOTIFY)
    line.duplex.shut_app()
    line.read(b"unread")
    assert line.duplex.blocked(SEND_NET) is WAIT
    line.duplex.peer_gone()
    assert line.duplex.next() is END
    assert (line.ending.how, line.ending.reset_app) == (How.PEER_RESET, True)


def test_a_peer_that_was_gone_before_its_close_notify_was_read(line: Line) -> None:
    line.quiet()
    line.duplex.peer_gone()
    line.duplex.peer_gone()
    line.duplex.net_r = True
    assert line.duplex.next() is RECV_NET
    assert line.hear(records(b"last words") + CLOSE_NOTIFY) is SEND_APP
    assert line.to_app() is SHUT_APP
    assert line.duplex.shut_app() is END, "nobody waits for an app to speak to a peer that is gone"
    assert line.ending == Ending(How.OK)


@pytest.mark.parametrize("first", [SEND_NET, SEND_APP])
def test_both_sides_closed(line: Line, first: Op) -> None:
    line.hear(records(b"to the app"))
    line.duplex.blocked(SEND_APP)
    line.read(b"to the peer")
    line.duplex.blocked(SEND_NET)
    second = SEND_APP if first is SEND_NET else SEND_NET
    line.duplex.net_w = line.duplex.app_w = True
    line.duplex.failed(first)
    assert line.duplex.failed(second) is END
    assert (line.ending.how, line.ending.detail) == (How.APP_RESET, "both sides closed before they had read all")


def test_an_app_that_is_gone_and_then_a_peer_that_is(line: Line) -> None:
    line.hear(records(b"to the app"))
    line.duplex.app_r = False
    assert line.duplex.failed(SEND_APP) is WAIT
    line.duplex.peer_gone()
    assert line.duplex.next() is END
    assert line.ending.how is How.APP_RESET


def test_an_app_that_ended_and_then_breaks_is_noticed_though_nothing_is_read_from_it(line: Line) -> None:
    line.read(b"")
    line.to_peer()
    line.duplex.blocked(RECV_NET)
    line.duplex.app_gone()
    assert line.duplex.next() is END
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all")


def test_an_app_that_was_gone_before_its_end_was_read(line: Line) -> None:
    line.hear(records(b"for the app"))
    assert line.duplex.blocked(SEND_APP) is RECV_APP
    line.duplex.app_gone()
    line.duplex.app_gone()
    assert line.duplex.next() is RECV_APP
    assert line.read(b"its answer") is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.out == CLOSE_NOTIFY
    assert line.to_peer() is END
    assert line.ending == Ending(How.APP_RESET, "the app closed before it had read all")


def test_the_twin_one_that_got_its_fin_and_whose_answer_is_still_there(line: Line) -> None:
    """Closed in both directions is how a connection ends that has ended well, too."""
    line.hear(CLOSE_NOTIFY)
    line.duplex.shut_app()
    line.duplex.app_gone()
    assert line.read(b"its answer") is SEND_NET
    assert line.to_peer() is RECV_APP
    assert line.read(b"") is SEND_NET
    assert line.to_peer() is END
    assert line.ending == Ending(How.OK)


def test_no_fin_for_an_app_that_is_gone(line: Line) -> None:
    """The peer's end was read together with the bytes that the app did not take: what counts is how the app ends."""
    line.hear(records(b"unread") + CLOSE_NOTIFY)
    line.duplex.blocked(SEND_APP)
    line.duplex.app_w = True
    line.duplex.next()
    assert line.duplex.failed(SEND_APP) is RECV_APP
    line.duplex.app_r = False
    assert line.duplex.next() is WAIT
    line.duplex.app_r = True
    assert line.read(b"") is END
    assert line.ending.reset_net


@pytest.mark.parametrize("op", [SEND_NET, SEND_APP])
def test_only_a_side_that_had_not_ended_its_stream_was_reset(op: Op) -> None:
    ended, reset = Line().duplex, Line().duplex
    ended.failed(op, after_fin=True)
    reset.failed(op)
    assert (ended.aborted, reset.aborted) == (False, True)
    reset.failed(op, after_fin=True)
    assert reset.aborted, "once is enough"


def test_a_connection_of_which_a_side_was_reset_is_lost_whatever_it_may_still_take(line: Line) -> None:
    assert not line.duplex.lost
    line.duplex.aborted = True
    assert line.duplex.lost


def test_a_connection_whose_peer_takes_nothing_more_is_lost_although_the_app_still_reads(line: Line) -> None:
    line.hear(records(b"to the app"))
    line.duplex.failed(SEND_NET, after_fin=True)
    assert line.duplex.lost
    assert not line.duplex.aborted


def test_a_connection_whose_app_takes_nothing_more_is_lost_although_the_peer_still_reads(line: Line) -> None:
    line.hear(records(b"to the app"))
    line.duplex.failed(SEND_APP, after_fin=True)
    assert line.duplex.lost
    assert not line.duplex.aborted
