"""The frames of a kept channel: what is on the wire, and each thing that breaks the channel. Any bytes: ``properties``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sidecar.relay import frames
from sidecar.relay.duplex import MAX_DATALESS_RECORDS, MAX_SILENT_CIPHERTEXT, Buffer, ChannelError
from sidecar.relay.frames import (
    HEADER_BYTES,
    MAX_DATA,
    ClosedChannelError,
    FramedChannel,
    Kind,
    Open,
    claims_of,
    decode_open,
    encode_open,
    encode_verdict,
)
from tests.beds.frames import FakeRecords, frame, joined
from tests.beds.simulation import CLOSE, DATA, UPDATE, UPDATE_PLEASE, record, records

CRITICAL = 0x8000


class End:
    """One end of a channel, to which a test writes what it likes."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.buffer = Buffer(bytearray(HEADER_BYTES + 3000), headroom=HEADER_BYTES)
        self.fake = FakeRecords()
        self.channel = FramedChannel(self.fake, accepts=accepts)

    def hears(self, wire: bytes) -> None:
        self.buffer.view[: len(wire)] = wire
        self.channel.feed(self.buffer, len(wire))

    def said(self) -> bytes:
        size = self.channel.take(self.buffer)
        return bytes(self.buffer.view[:size])

    def in_a_stream(self) -> End:
        """After the verdict."""
        if self.channel.accepts:
            self.hears(records(frame(Kind.OPEN, encode_open(Open(1, 500, {})))))
            assert self.channel.receive(self.buffer) == Open(1, 500, {})
            self.channel.confirm()
            self.channel.give_verdict("ok")
        else:
            self.channel.open(500)
            self.hears(records(frame(Kind.OPENED, b"\0\0\0\1")) + records(frame(Kind.VERDICT, b"ok")))
            assert self.channel.receive(self.buffer) == ""
            assert self.channel.receive(self.buffer) == "ok"
        self.said()
        return self

    def breaks(self) -> str:
        """How the channel breaks at what was heard; it stays broken."""
        heard: list[str] = []
        for act in (self._next, self._next, lambda: self.channel.open(1), lambda: self.channel.confirm()):
            with pytest.raises(ChannelError) as error:
                act()
            heard.append(str(error.value))
        assert len(set(heard)) == 1
        assert not self.channel.is_idle
        return heard[0]

    def _next(self) -> None:
        if self.channel._due in (frames._DATA,):
            self.channel.read(self.buffer)
        else:
            self.channel.receive(self.buffer)


def test_what_is_on_the_wire() -> None:
    caller = End(accepts=False)
    caller.channel.open(1500, {1: b"here"})
    assert caller.said() == records(
        b"\x01\x00\x00\x10" + b"\x00\x00\x00\x01" + b"\x00\x00\x05\xdc" + b"\x00\x01\x00\x04here"
    )
    callee = End().in_a_stream()
    callee.buffer.view[:3] = b"abc"
    callee.channel.write(callee.buffer, 3)
    callee.channel.close()
    assert callee.said() == records(b"\x04\x00\x00\x03abc") + records(b"\x05\x00\x00\x00")
    assert encode_verdict("policy_denied") == b"\x03\x00\x00\x0dpolicy_denied"


def test_the_header_of_the_largest_fits_into_full_records() -> None:
    assert (HEADER_BYTES + MAX_DATA) % 16384 == 0
    assert MAX_DATA < 2**24


@pytest.mark.parametrize(
    ("accepts", "wire"),
    [
        (True, frame(Kind.DATA, b"x")),
        (True, frame(Kind.END)),
        (True, frame(Kind.VERDICT, b"ok")),
        (True, frame(Kind.OPENED, b"\0\0\0\1")),
        (True, frame(Kind.OPEN, encode_open(Open(2, 500, {})))),
        (True, frame(Kind.OPEN, encode_open(Open(0, 500, {})))),
        (True, frame(Kind.OPEN, b"short")),
        (True, frame(Kind.OPEN, encode_open(Open(1, 500, {})), 300)),
        (True, frame(Kind.OPEN, encode_open(Open(1, 500, {}))) + b"x"),
        (True, frame(6)),
        (True, b"\x01\x00"),
        (False, frame(Kind.OPEN, encode_open(Open(1, 500, {})))),
        (False, frame(Kind.VERDICT, b"ok")),
        (False, frame(Kind.DATA, b"x")),
    ],
)
def test_what_is_not_due_while_idle(accepts: bool, wire: bytes) -> None:
    end = End(accepts=accepts)
    end.hears(record(DATA, wire))
    assert end.breaks().startswith("mesh/2: ")


@pytest.mark.parametrize(
    "wire",
    [
        frame(Kind.DATA, b"too early"),
        frame(Kind.END),
        frame(Kind.OPEN, encode_open(Open(1, 500, {}))),
        frame(Kind.OPENED, b"\0\0\0\2"),
        frame(Kind.OPENED, b""),
        frame(Kind.VERDICT, b""),
        frame(Kind.VERDICT, b"x" * 33),
    ],
)
def test_what_is_no_answer_to_an_open(wire: bytes) -> None:
    caller = End(accepts=False)
    caller.channel.open(500)
    caller.hears(records(wire) if len(wire) > 32 else record(DATA, wire))
    caller.breaks()


@pytest.mark.parametrize(
    "wire",
    [
        record(DATA, frame(Kind.DATA, b"")),
        record(DATA, frame(Kind.DATA, b"", 5)),
        record(DATA, b"\x04\x00"),
        record(DATA, frame(Kind.OPEN, encode_open(Open(2, 500, {})))),
        record(DATA, frame(Kind.VERDICT, b"ok")),
        record(DATA, frame(Kind.END, b"x")),
        record(DATA, frame(Kind.END) + frame(Kind.END)),
        record(DATA, frame(Kind.DATA, b"x", MAX_DATA + 1)),
        record(DATA, frame(Kind.DATA, b"xy", 1)),
        record(CLOSE),
    ],
)
@pytest.mark.parametrize("accepts", [True, False])
def test_what_breaks_a_stream(accepts: bool, wire: bytes) -> None:
    end = End(accepts=accepts).in_a_stream()
    end.hears(wire)
    end.breaks()


def test_a_stream_is_confirmed_once() -> None:
    caller = End(accepts=False)
    caller.channel.open(500)
    caller.hears(records(frame(Kind.OPENED, b"\0\0\0\1")) * 2)
    assert caller.channel.receive(caller.buffer) == ""
    caller.breaks()


def test_the_longest_word_of_a_verdict() -> None:
    caller = End(accepts=False)
    caller.channel.open(500)
    word = "x" * frames.MAX_WORD
    caller.fake._cipher = b""
    caller.hears(record(DATA, frame(Kind.VERDICT, word.encode())))
    assert caller.channel.receive(caller.buffer) == word


def test_a_second_frame_in_a_record_breaks_it_after_the_first_was_delivered() -> None:
    end = End().in_a_stream()
    end.hears(record(DATA, frame(Kind.DATA, b"a whole one")[:20]))  # 15 bytes: the frame, and nothing else
    assert end.channel.read(end.buffer) == 11
    long = frame(Kind.DATA, b"y" * 30) + b"z"  # 35 bytes: its second record has one byte more than the frame
    end.hears(record(DATA, long[:32]) + record(DATA, long[32:]))
    assert end.channel.read(end.buffer) == 30
    assert end.channel.ended
    end.breaks()


def test_a_clean_close_between_streams_is_told_apart() -> None:
    end = End()
    end.hears(record(CLOSE))
    with pytest.raises(ClosedChannelError):
        end.channel.receive(end.buffer)


def test_open_and_end_in_one_read_are_legal_at_the_callee() -> None:
    end = End().in_a_stream()
    end.channel.close()
    end.hears(records(frame(Kind.END)) + records(frame(Kind.OPEN, encode_open(Open(2, 1, {})))))
    assert end.channel.read(end.buffer) == -1
    assert end.channel.is_idle
    assert end.channel.receive(end.buffer) == Open(2, 1, {})


def test_the_twin_any_residue_at_the_caller_ends_the_channel() -> None:
    end = End(accepts=False).in_a_stream()
    end.channel.close()
    end.hears(records(frame(Kind.END)) + b"\x64")
    assert end.channel.read(end.buffer) == -1
    assert not end.channel.is_idle
    with pytest.raises(ChannelError, match="busy"):
        end.channel.open(1)


def test_no_stream_is_opened_while_one_is_carried_nor_by_a_callee() -> None:
    for end in (End(accepts=False).in_a_stream(), End()):
        with pytest.raises(ChannelError, match="busy"):
            end.channel.open(1)


def test_a_refused_stream_leaves_the_channel_clean() -> None:
    caller, callee = End(accepts=False), End()
    for number, word in enumerate(["policy_denied", "connect_failed", "ok"], start=1):
        caller.channel.open(1)
        joined(caller.channel, callee.channel, caller.buffer)
        opened = callee.channel.receive(callee.buffer)
        assert isinstance(opened, Open)
        assert opened.number == number
        callee.channel.give_verdict(word)
        joined(caller.channel, callee.channel, caller.buffer)
        assert caller.channel.receive(caller.buffer) == word
        assert caller.channel.is_idle == callee.channel.is_idle == (word != "ok")


@pytest.mark.parametrize("flood", [lambda: record(UPDATE) * 50, lambda: record(DATA) * 50])
def test_an_idle_callee_counts_what_brings_no_frame(flood: Callable[[], bytes]) -> None:
    end = End()

    def listen() -> None:
        for _ in range(MAX_SILENT_CIPHERTEXT // len(flood()) + MAX_DATALESS_RECORDS):
            end.hears(flood())
            for _ in range(10):
                assert end.channel.receive(end.buffer) is None
                if not end.channel.unread:
                    break

    with pytest.raises(ChannelError, match="KeyUpdates"):
        listen()
    if flood() == record(UPDATE) * 50:
        assert end.channel._silent < 8 * MAX_DATALESS_RECORDS, "by their number, long before their bytes"


def test_the_twin_a_long_stream_before_does_not_count() -> None:
    end = End().in_a_stream()
    for _ in range(100):
        end.hears(records(frame(Kind.DATA, b"x" * 1000)))
        while end.channel.read(end.buffer) > 0:
            pass
    assert end.channel._silent > MAX_SILENT_CIPHERTEXT
    end.channel.close()
    end.hears(records(frame(Kind.END)))
    assert end.channel.read(end.buffer) == -1
    assert end.channel.receive(end.buffer) is None


def test_a_frame_in_a_thousand_records_is_read_in_portions() -> None:
    end = End().in_a_stream()
    data = b"x" * 400
    plain = frame(Kind.DATA, data)
    wire = record(DATA, plain[:5]) + b"".join(record(DATA, plain[at : at + 1]) for at in range(5, len(plain)))
    end.hears(wire)
    sizes: list[int] = []
    while (size := end.channel.read(end.buffer)) > 0:
        sizes.append(size)
        if not end.channel.unread:
            break
    assert sum(sizes) == len(data)
    assert max(sizes) <= frames.MAX_READS


# -- attributes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "quiet"),
    [
        (records(frame(Kind.DATA, b"x" * 20)), True),
        (records(frame(Kind.DATA, b"x" * 60)), False),
        (records(frame(Kind.DATA, b"x")) + record(UPDATE_PLEASE), False),
        (record(UPDATE_PLEASE) + records(frame(Kind.DATA, b"x")), False),
        (records(frame(Kind.DATA, b"x")) + records(frame(Kind.END)), False),
        (b"", False),
    ],
    ids=["a frame", "of two records", "KeyUpdate behind", "KeyUpdate before", "its end behind", "nothing"],
)
def test_only_what_cannot_have_left_an_answer_is_quiet(wire: bytes, quiet: bool) -> None:
    """So that nobody asks the channel for one after each frame."""
    end = End().in_a_stream()
    end.hears(wire)
    end.channel.read(end.buffer)
    assert end.channel.quiet is quiet


def test_attributes_travel_and_unknown_ones_are_passed_over_unless_they_are_critical() -> None:
    opened = decode_open(encode_open(Open(3, 1, {1: b"10.0.0.7:1234", 9: b"x", CRITICAL | 7: b""})))
    assert opened == Open(3, 1, {1: b"10.0.0.7:1234"}, (CRITICAL | 7,))


def test_a_probe_must_be_understood_and_is_here() -> None:
    assert decode_open(encode_open(Open(1, 1, {0x8003: b"", 2: b""}))) == Open(1, 1, {0x8003: b"", 2: b""})


def test_claims_are_escaped() -> None:
    assert claims_of(Open(1, 1, {1: b"10.0.0.7\n\x1b[2J"})) == {"client_address": "'10.0.0.7\\n\\x1b[2J'"}


def raw(*attributes: tuple[int, bytes]) -> bytes:
    return bytes(8) + b"".join(
        kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for kind, value in attributes
    )


@pytest.mark.parametrize(
    ("payload", "is_well_formed"),
    [
        (raw(), True),
        (raw()[:7], False),
        (raw() + b"\0", False),
        (raw((5, b"abc"))[:-1], False),
        (raw((5, b"a"), (5, b"a")), False),
        (raw(*((kind, b"") for kind in range(16))), True),
        (raw(*((kind, b"") for kind in range(17))), False),
        (raw((5, b"x" * 1020)), True),
        (raw((5, b"x" * 1021)), False),
    ],
)
def test_malformed_attributes_break_the_channel(payload: bytes, is_well_formed: bool) -> None:
    assert (decode_open(payload) is not None) is is_well_formed


def test_numbers_that_do_not_fit_are_the_largest() -> None:
    sent: Any = decode_open(encode_open(Open(1, 2**40, {})))
    assert sent.milliseconds == 2**32 - 1
