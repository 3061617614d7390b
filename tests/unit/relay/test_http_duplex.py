"""Exchanges over a channel and two sockets in memory: whatever the kernels take at once, one request at a time, with ends,
faults and bounds."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.relay import duplex as core
from sidecar.relay import exchanges, http_duplex
from sidecar.relay.duplex import Ending, How, Op
from sidecar.relay.http_duplex import HttpDuplex
from tests.beds.duplex import Connection
from tests.beds.simulation import CLOSE, DATA, UPDATE, fake_buffers, record, records

ELEMENT = b"By=spiffe://shop.internal/api;Hash=00;URI=spiffe://shop.internal/web"
TOLD = b"X-Forwarded-Client-Cert: " + ELEMENT + b"\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ASKED = GET[:-2] + TOLD + b"\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BIG = 1_000_000


class Http(Connection):
    """Such a connection, and how it ended. ``share``: how much the relay moves in one turn."""

    def __init__(
        self,
        room: int = BIG,
        *,
        size: int = 4096,
        cipher: int | None = None,
        share: int = BIG,
        element: bytes | None = ELEMENT,
        tolerant: bool = False,
    ) -> None:
        super().__init__(
            fake_buffers(cipher or size, size, size, cipher or size),
            room,
            room,
            tolerant=tolerant,
            tells_broken=True,
            hiccups=[],
        )
        self.duplex = HttpDuplex(
            self.channel, self.buffers, tolerate_missing_close_notify=tolerant, element=element, host=b"api"
        )
        self.share = share

    def check(self) -> None:
        """Bounded, whatever is going on."""
        duplex = self.duplex
        assert len(duplex._app_left) <= self.buffers.plain_out.size
        assert len(duplex._net_left) <= self.buffers.cipher_out.size
        assert isinstance(duplex, HttpDuplex)
        held = len(duplex._http._exchanges._held)
        assert held <= exchanges.MAX_HELD + self.buffers.plain_out.size

    def check_wait(self) -> None:
        if len(self.app.outbox) < self.app.room:
            assert not self.duplex._app_left
        if len(self.net.outbox) < self.net.room:
            assert not self.duplex._net_left

    def check_end(self) -> None: ...

    def run(self) -> None:
        """Until nothing moves any more; both ends read."""
        before: tuple[int, ...] = ()
        still = 0
        for _ in range(100_000):
            self.flow()
            self.peer("read", BIG)
            self.do_app("read", BIG)
            self.flow()
            self.tell()
            self.pump(self.share)
            now = tuple(map(len, (self.net.read, self.app.read, self.net.sent, self.app.sent, self.channel._out)))  # type: ignore[attr-defined]
            still = still + 1 if now == before and not self.duplex._http.answers else 0  # type: ignore[attr-defined]
            if still > 8:
                return
            before = now
        raise AssertionError("it does not end")

    def caller(self, *pieces: bytes) -> bytes:
        """The caller says this; all that the app has heard."""
        for piece in pieces:
            self.peer_queue += records(piece)
            self.run()
        return bytes(self.app.got)

    def answer(self, *pieces: bytes) -> bytes:
        """The app says this; all that the caller has heard."""
        for piece in pieces:
            self.app_queue += piece
            self.run()
        return self.to_peer().data

    def caller_ends(self) -> None:
        self.peer_queue += record(CLOSE)
        self.run()

    @property
    def ending(self) -> Ending | None:
        return self.duplex.ending


def end_app(line: Http) -> None:
    line.app_ends = True
    line.run()


# -- exchanges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "size"), [(BIG, 4096), (7, 64), (64, 96)])
def test_requests_are_answered_one_at_a_time(room: int, size: int) -> None:
    line = Http(room, size=size)
    assert line.caller(GET * 3) == ASKED
    assert line.answer(OK) == OK
    assert bytes(line.app.got) == 2 * ASKED
    assert line.answer(OK) == 2 * OK
    assert bytes(line.app.got) == 3 * ASKED
    line.caller_ends()
    assert line.app.shut
    assert line.answer(OK) == 3 * OK
    end_app(line)
    assert line.ending == Ending(How.OK)
    assert line.to_peer().end == "close"
    assert (line.duplex.to_app, line.duplex.from_app) == (3 * len(ASKED), 3 * len(OK))


def test_the_caller_s_end_is_passed_on_behind_its_last_request() -> None:
    line = Http()
    line.caller(GET * 2)
    line.caller_ends()
    assert not line.app.shut
    line.answer(OK)
    assert bytes(line.app.got) == 2 * ASKED
    assert line.app.shut


def test_an_end_within_a_request_is_the_app_s_to_judge() -> None:
    for part in (GET[:-2], POST + b"Content-Length: 5\r\n\r\nabc", CHUNKED + b"5\r\nab", CHUNKED + b"5"):
        line = Http(element=None)
        line.caller(part)
        line.caller_ends()
        assert line.app.shut
        end_app(line)
        assert line.ending == Ending(How.OK)


def test_a_caller_that_is_cut_gives_the_app_no_clean_end() -> None:
    line = Http()
    line.caller(GET * 2)
    line.peer("fin", 0)
    line.answer(OK)
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_app) == (How.TRUNCATED, True)


def test_a_fin_that_counts_as_an_end_comes_behind_what_waits() -> None:
    line = Http(tolerant=True)
    line.peer_queue += records(GET * 2)
    line.peer("fin", 0)
    line.run()
    assert not line.app.shut
    line.answer(OK, OK)
    assert bytes(line.app.got) == 2 * ASKED
    assert line.app.shut
    end_app(line)
    assert line.ending == Ending(How.OK)


def test_a_caller_that_sends_and_closes_its_socket_is_not_cut() -> None:
    """close_notify and FIN at once, with a request that waits."""
    line = Http()
    line.peer_queue += records(GET * 2) + record(CLOSE)
    line.peer("fin", 0)
    line.run()
    line.answer(OK, OK)
    end_app(line)
    assert bytes(line.app.got) == 2 * ASKED
    assert line.ending == Ending(How.OK)


def test_the_peer_is_not_read_while_its_requests_wait() -> None:
    line = Http()
    line.caller(GET)
    line.caller(GET * 20_000)
    assert len(line.peer_queue) + len(line.net.inbox) > 0
    read = len(line.net.read)
    assert read < 4 * exchanges.MAX_HELD
    line.caller(GET)
    assert len(line.net.read) == read
    for _ in range(200):
        line.answer(OK)
    assert line.app.got.count(TOLD) == 201
    line = Http(cipher=200_000, share=100)  # more is here already than is taken
    line.caller(GET * 6000)
    assert line.duplex.next() is Op.WAIT


def test_bodies_pass_through_without_being_collected() -> None:
    line = Http(1000)
    body = bytes(range(256)) * 400
    line.caller(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert bytes(line.app.got).endswith(body)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert line.answer(answer) == answer


@pytest.mark.parametrize("size", [64, 100, 128])
def test_a_buffer_that_is_full_is_not_the_end(size: int) -> None:
    """The ciphertext that one call brings may hold more than the plaintext's buffer takes."""
    line = Http(size=size, cipher=8192, element=None)
    body = b"y" * 3000
    said = line.caller(POST + b"Transfer-Encoding: chunked\r\n\r\nbb8\r\n" + body + b"\r\n0\r\n\r\n")
    assert said.count(b"y") == 3000
    assert said.endswith(b"0\r\n\r\n")


def test_an_app_that_does_not_read_stops_the_caller() -> None:
    line = Http()
    line.do_app = lambda what, size: None  # type: ignore[method-assign]
    line.app.room = 1000
    body = b"x" * 50_000
    line.caller(POST + b"Content-Length: 50000\r\n\r\n" + body)
    assert len(line.net.read) < 20_000


def test_an_answer_of_many_chunks_takes_turns_and_nothing_else_is_read_meanwhile() -> None:
    line = Http(element=None, share=1)
    line.caller(GET * 2)
    chunks = b"1\r\na\r\n" * 600
    line.app_queue += b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    line.flow()
    line.tell()
    line.pump(1)
    line.pump(1)
    assert isinstance(line.duplex, HttpDuplex)
    assert line.duplex._http.answers
    assert line.duplex.next() is Op.MORE
    read = len(line.app.read)
    line.pump(1)
    assert len(line.app.read) == read
    line.run()
    assert line.to_peer().data.endswith(chunks + b"0\r\n\r\n")
    assert bytes(line.app.got) == 2 * GET


def test_a_request_of_many_chunks_takes_turns() -> None:
    line = Http(element=None, share=1)
    body = b"1\r\na\r\n" * 600 + b"0\r\n\r\n"
    line.channel._at_once = 10_000  # type: ignore[attr-defined]
    line.peer_queue += records(CHUNKED + body) + record(CLOSE)
    turns = 0
    while not bytes(line.app.sent).endswith(b"0\r\n\r\n"):
        turns += 1
        line.do_app("read", BIG)
        line.flow()
        line.tell()
        line.pump(1)
    assert turns > 6
    assert bytes(line.app.sent).endswith(body)


def test_held_bytes_are_no_silence_and_silence_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_SILENT_CIPHERTEXT", 100)
    monkeypatch.setattr(http_duplex, "MAX_SILENT_CIPHERTEXT", 100)
    line = Http()
    line.caller(GET)
    for _ in range(10):
        line.caller(GET)
    assert not line.over
    line.peer_queue += record(DATA) * 100
    line.run()
    assert line.ending is not None
    assert line.ending.how is How.TRUNCATED
    assert "without any data" in str(line.ending.detail)


def test_silence_is_measured_to_its_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_duplex, "MAX_SILENT_CIPHERTEXT", 99)
    for silent, data, cut in ((33, b"", False), (34, b"", True), (60, GET, False)):
        line = Http()
        line.peer_queue += record(DATA) * silent + records(data)
        line.run()
        assert line.over is cut


def test_key_updates_without_end_are_cut_too() -> None:
    line = Http()
    line.peer_queue += record(UPDATE) * (core.MAX_DATALESS_RECORDS + 10)
    line.run()
    assert line.ending is not None
    assert line.ending.how is How.TRUNCATED


# -- faults ---------------------------------------------------------------------------------------------------------------


def test_a_refused_request_is_answered_and_the_app_reset() -> None:
    line = Http(room=30, size=64)
    line.caller(GET)
    line.answer(OK)
    assert line.caller(POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + GET) == ASKED
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_app, line.ending.reset_net) == (How.REFUSED, True, False)
    assert line.ending.detail == "a request was refused: it has a Content-Length and a Transfer-Encoding"
    heard = line.to_peer()
    assert heard.end == "close"
    assert heard.data.startswith(OK + b"HTTP/1.1 400 Bad Request\r\n")
    assert b"The sidecar refused the request: it has a Content-Length" in heard.data
    assert not line.app.shut


def test_a_fault_within_a_request_whose_answer_has_begun_cuts_both() -> None:
    line = Http()
    line.caller(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    line.answer(OK[:-1])
    line.caller(b"nonsense")
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_app, line.ending.reset_net) == (How.REFUSED, True, True)
    assert line.to_peer()[:2] == (OK[:-1], None)


def test_an_answer_that_is_none_is_a_502() -> None:
    line = Http(room=30, size=64)
    line.caller(GET)
    line.answer(b"SSH-2.0-OpenSSH\r\n")
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_app, line.ending.reset_net) == (How.APP_RESET, True, False)
    assert line.to_peer().data.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert line.to_peer().end == "close"


@pytest.mark.parametrize("end", [b"", b"zz\r\n"])
def test_an_answer_that_breaks_off_is_no_clean_end(end: bytes) -> None:
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    line = Http(element=None)
    line.caller(GET)
    line.answer(begun)
    if end:
        line.answer(end)
    else:
        end_app(line)
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_net) == (How.APP_RESET, True)
    assert line.to_peer()[:2] == (begun, None)


def test_an_answer_without_a_length_ends_with_its_app() -> None:
    line = Http()
    line.caller(GET * 2)
    line.answer(b"HTTP/1.1 200 OK\r\n\r\nall")
    end_app(line)
    assert line.to_peer().data.endswith(b"\r\n\r\n3\r\nall\r\n0\r\n\r\n")
    assert line.to_peer().end == "close"
    assert bytes(line.app.got) == ASKED
    line.caller_ends()
    assert line.ending == Ending(How.OK)


def test_an_app_that_resets_ends_nothing_cleanly() -> None:
    line = Http()
    line.caller(GET)
    line.answer(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    line.do_app("reset", 0)
    line.run()
    assert line.ending is not None
    assert (line.ending.how, line.ending.reset_net) == (How.APP_RESET, True)
    assert not line.to_peer().data.endswith(b"0\r\n\r\n")


def test_an_app_that_answers_early_and_closes_is_heard() -> None:
    line = Http(room=200)
    line.caller(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100)
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    line.app_queue += answer
    line.flow()
    line.do_app("close", 0)
    line.caller(b"x" * 1000)
    line.run()
    assert line.to_peer()[:2] == (answer, "close")
    assert line.ending is not None
    assert line.ending.how is How.APP_RESET


def test_a_last_answer_ends_our_direction_while_the_app_stays() -> None:
    line = Http()
    line.caller(b"GET / HTTP/1.0\r\n\r\n" + GET)
    line.answer(OK)
    assert line.to_peer().end == "close"
    assert not line.over
    assert line.app.got.count(b"HTTP/1.1") == 1
    line.answer(OK)
    line.caller_ends()
    assert line.app.shut
    end_app(line)
    assert line.ending == Ending(How.OK)


def test_raw_in_both_directions_after_101() -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    line = Http(element=None, room=50)
    line.caller(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nfirst")
    assert not bytes(line.app.got).endswith(b"first")
    assert line.answer(switch + b"pushed") == switch + b"pushed"
    assert bytes(line.app.got).endswith(b"first")
    assert line.caller(b"second", b"\r\nX_Forwarded_Client_Cert: frames\r\n").endswith(
        b"firstsecond\r\nX_Forwarded_Client_Cert: frames\r\n"
    )
    assert line.answer(b"\x00" * 500).endswith(b"pushed" + b"\x00" * 500)
    line.caller_ends()
    assert line.app.shut
    end_app(line)
    assert line.ending == Ending(How.OK)


def test_it_rests() -> None:
    line = Http()
    rested: list[int] = []
    line.channel.rest = lambda: rested.append(1)  # type: ignore[misc]
    line.duplex.rest()
    assert rested


# -- whatever the kernels do ----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 2000),
    st.integers(48, 300),
    st.integers(1, 9),
    st.integers(1, 400),
    st.lists(st.booleans(), max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_any_pace_gives_the_same(room: int, size: int, times: int, share: int, hiccups: list[bool]) -> None:
    line = Http(room, size=size, cipher=size * times, share=share, element=None)
    line.hiccups = cycle([*hiccups, False])
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\nok\r\n" * 9 + b"0\r\nA: b\r\n\r\n"
    requests = [GET, POST + b"Content-Length: 300\r\n\r\n" + b"y" * 300, chunked, GET]
    answers = [OK, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"z" * 500, OK, OK]
    line.peer_queue += records(b"".join(requests))
    line.caller_ends()
    said = b""
    for answer in answers:
        line.run()
        line.run()
        said += answer
        assert line.answer(answer) == said
    end_app(line)
    line.run()
    assert bytes(line.app.got).count(b"HTTP/1.1\r\n") == len(requests)
    assert line.ending == Ending(How.OK)
