"""Exchanges as transcripts: what the app gets, what the caller gets, and when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.relay import exchanges, http_cuts
from sidecar.relay.exchanges import EVENTS, HEADER, MAX_HELD, BadAnswerError, Exchanges
from sidecar.relay.http_cuts import BadRequestError

ELEMENT = b"By=spiffe://shop.internal/api;Hash=00;URI=spiffe://shop.internal/web"
TOLD = b"X-Forwarded-Client-Cert: " + ELEMENT + b"\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Line:
    """One connection: what either end says, and what the other one hears of it."""

    def __init__(self, element: bytes | None = ELEMENT) -> None:
        self.exchanges = Exchanges(element, b"api")

    def caller(self, *pieces: bytes) -> bytes:
        """The caller says this; what the app hears."""
        for piece in pieces:
            self.exchanges.receive(piece)
            while self.exchanges.advance():
                pass
        return self._taken("to_app")

    def app(self, *pieces: bytes) -> bytes:
        """The app says this; what the caller hears."""
        for piece in pieces:
            self.exchanges.answer(piece)
            while self.exchanges.advance_answer():
                pass
        return self._taken("to_caller")

    def app_ends(self) -> bytes:
        self.exchanges.end_answer()
        return self._taken("to_caller")

    def _taken(self, name: str) -> bytes:
        taken = bytes(getattr(self.exchanges, name))
        getattr(self.exchanges, name).clear()
        return taken


def request(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: a", *lines, b"", b""))


# -- the header -----------------------------------------------------------------------------------------------------------


def test_every_request_names_the_caller() -> None:
    line = Line()
    for _ in range(2):
        assert line.caller(GET) == GET[:-2] + TOLD + b"\r\n"
        assert line.app(OK) == OK


def test_who_has_no_identity_is_not_named() -> None:
    assert Line(None).caller(request(b"X-Forwarded-Client-Cert: forged")) == GET


SPELLINGS = [
    b"X-Forwarded-Client-Cert",
    b"x-forwarded-client-cert",
    b"X_FORWARDED_CLIENT_CERT",
    b"x_Forwarded-client_Cert",
    b"X.Forwarded.Client.Cert",
    b"X-Forwarded~Client!Cert",
]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_caller_s_own_header_is_removed_in_every_spelling(name: bytes) -> None:
    for element in (ELEMENT, None):
        said = Line(element).caller(request(name + b": URI=spiffe://shop.internal/admin", b"Other: x", name + b":"))
        assert said == request(b"Other: x", *([TOLD[:-2]] if element else []))


@pytest.mark.parametrize("name", SPELLINGS)
def test_it_is_removed_from_trailers(name: bytes) -> None:
    body = b"2\r\nok\r\n0\r\nOne: 1\r\n%s: forged\r\n\r\n" % name
    post = b"POST / HTTP/1.1"
    said = Line().caller(request(b"Transfer-Encoding: chunked", b"Trailer: One, %s" % name, start=post) + body)
    head = request(b"Transfer-Encoding: chunked", b"Trailer: One", TOLD[:-2], start=post)
    assert said == head + b"2\r\nok\r\n0\r\nOne: 1\r\n\r\n"


@pytest.mark.parametrize("name", SPELLINGS)
def test_nobody_has_it_removed_behind_us(name: bytes) -> None:
    """RFC 9110 7.6.1: the next proxy removes what ``Connection`` names."""
    said = Line().caller(request(b"Connection: keep-alive, %s" % name, b"Connection: " + name))
    assert said == request(b"Connection: keep-alive", TOLD[:-2])


@pytest.mark.parametrize(
    "name", [b"X-Forwarded-Client-Certs", b"In_CGI_s_spelling", b"Forwarded-Client-Cert", b"X-Forwarded-For"]
)
def test_other_headers_stay(name: bytes) -> None:
    assert Line().caller(request(name + b": x")) == request(name + b": x", TOLD[:-2])


# -- one request at a time ------------------------------------------------------------------------------------------------


def test_the_next_request_waits_until_the_answer_has_ended() -> None:
    line = Line(None)
    assert line.caller(GET + GET.replace(b"/ ", b"/2 ") + b"GET") == GET
    assert line.exchanges.holds
    assert line.app(OK[:-1]) == OK[:-1]
    assert line.caller(b" /3") == b""
    assert line.app(OK[-1:]) == OK[-1:]
    assert line.caller() == b""
    assert line.caller(b"") == GET.replace(b"/ ", b"/2 ")
    line.app(OK)
    assert line.caller(b" HTTP/1.1\r\nHost: a\r\n\r\n") == GET.replace(b"/ ", b"/3 ")


def test_an_answer_before_the_request_s_end_does_not_let_the_next_one_through() -> None:
    line = Line(None)
    post = request(b"Content-Length: 4", start=b"POST / HTTP/1.1")
    assert line.caller(post + b"ab") == post + b"ab"
    assert line.app(OK) == OK
    assert line.caller(b"cd" + GET) == b"cd" + GET


def test_what_waits_is_bounded() -> None:
    line = Line(None)
    line.caller(GET + GET)
    line.caller(b"x" * (MAX_HELD - len(GET) - 1))
    assert not line.exchanges.is_full
    line.caller(b"x")
    assert line.exchanges.is_full


def test_what_an_app_says_unasked_is_nobody_s_answer() -> None:
    """A 408 as its time is over; or the second answer of an app that saw two requests where we saw one."""
    for before in (b"", GET):
        line = Line(None)
        if before:
            line.caller(before)
            line.app(OK)
        assert line.app(b"HTTP/1.1 408 Request Timeout\r\n\r\n") == b""
        assert line.exchanges.closing
        assert line.caller(GET) == b""
        assert not line.exchanges.refuse(400, "no")
    line = Line(None)
    line.caller(GET)
    assert line.app(OK + OK) == OK
    assert line.exchanges.closing


def test_work_is_bounded() -> None:
    line = Line(None)
    line.exchanges.receive(request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.1") + b"1\r\na\r\n" * 1000)
    assert line.exchanges.advance()
    assert line.exchanges.to_app.count(b"\r\na\r\n") < 4 * EVENTS
    line.exchanges.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000)
    assert line.exchanges.advance_answer()
    assert line.exchanges.to_caller.count(b"\r\na\r\n") < EVENTS


# -- what is refused ------------------------------------------------------------------------------------------------------

POST = b"POST / HTTP/1.1"
CHUNKED = request(b"Transfer-Encoding: chunked", start=POST)
REFUSED = {
    request(b"Content-Length: 5", b"Transfer-Encoding: chunked", start=POST) + b"0\r\n\r\n": (
        400,
        "a Transfer-Encoding",
    ),
    request(b"Content-Length: 5", b"Content-Length: 5", start=POST) + b"hello": (400, "several"),
    request(b"Content-Length: 5", b"Content-Length: 6", start=POST) + b"hello": (400, "several"),
    request(b"Content-Length: +5", start=POST): (400, "Content-Length"),
    request(b"Content-Length: 0x5", start=POST): (400, "Content-Length"),
    request(b"Content-Length: " + b"9" * 4999, start=POST): (400, "Content-Length"),
    request(b"Content_Length: 5", start=POST): (400, "another spelling"),
    request(b"Transfer_Encoding: chunked", start=POST): (400, "another spelling"),
    request(b"Transfer-Encoding: gzip, chunked", start=POST): (501, "Transfer-Encoding"),
    request(b"Transfer-Encoding: identity", start=POST): (501, "Transfer-Encoding"),
    request(b"Transfer-Encoding: xchunked", start=POST): (501, "Transfer-Encoding"),
    request(b"Transfer-Encoding: \x0bchunked", start=POST): (400, "illegal header"),
    request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", start=POST): (501, "Transfer-Encoding"),
    request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"): (400, "of HTTP/1.0"),
    CHUNKED + b"5;ext=1\r\nhello\r\n0\r\n\r\n": (400, "chunk's size"),
    CHUNKED + b"5\r\nhelloGET": (400, "chunk's size or end"),
    CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n": (400, "trailers"),
    CHUNKED + b"0\r\nTransfer_Encoding: x\r\n\r\n": (400, "another spelling"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": (505, "HTTP/2"),
    request(start=b"GET / HTTP/1.2"): (505, "version"),
    request(start=b"GET / HTTP/3.0"): (505, "version"),
    b"GET / HTTP/1.1\r\n\r\n": (400, "Host"),
    request(b"Host: b"): (400, "Host"),
    request(start=b"GET /a b HTTP/1.1"): (400, "illegal request line"),
    request(start=b"GET /"): (400, "illegal request line"),
    request(start=b"G(T / HTTP/1.1"): (400, "illegal request line"),
}


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: repr(data[:80]))
def test_what_may_be_smuggling_is_refused(data: bytes) -> None:
    status, what = REFUSED[data]
    line = Line()
    with pytest.raises(BadRequestError, match=what) as refusal:
        line.caller(data + GET)
    assert refusal.value.status == status
    assert len(str(refusal.value)) < 120
    assert line._taken("to_app").count(b"HTTP/1.1") <= 1
    assert line.exchanges.refuse(status, "no")
    answer = line._taken("to_caller")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\nno\n")
    assert b"Connection: close\r\n" in answer
    assert line.exchanges.closing


def test_a_refusal_comes_in_its_turn() -> None:
    line = Line(None)
    assert line.caller(GET + b"GET /\r\n\r\n") == GET
    line.app(OK)
    with pytest.raises(BadRequestError):
        line.caller(b"")


def test_an_answer_that_has_begun_is_not_followed_by_another() -> None:
    line = Line(None)
    line.caller(CHUNKED)
    line.app(OK[:-1])
    with pytest.raises(BadRequestError):
        line.caller(b"x")
    assert not line.exchanges.refuse(400, "no")
    assert line._taken("to_caller") == b""


def test_a_refused_head_has_no_body_in_its_answer() -> None:
    line = Line(None)
    with pytest.raises(BadRequestError):
        line.caller(request(b"Transfer_Encoding: x", start=b"HEAD / HTTP/1.1"))
    assert line.exchanges.refuse(400, "no")
    assert line._taken("to_caller").endswith(b"\r\n\r\n")


def test_bytes_behind_the_last_request_are_dropped_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_UNWANTED", 100)
    line = Line(None)
    assert line.caller(request(b"Connection: close") + GET) == request(b"Connection: close")
    assert not line.exchanges.holds
    line.app(OK)
    assert line.exchanges.closing
    assert line.caller(b"x" * (100 - len(GET))) == b""
    with pytest.raises(BadRequestError, match="more than its last"):
        line.caller(b"x")


def test_both_readers_must_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a request ends for us and where for h11."""
    monkeypatch.setattr(http_cuts.Length, "ended", False)
    with pytest.raises(BadRequestError, match="ambiguous"):
        Line(None).caller(GET)
    monkeypatch.undo()
    monkeypatch.setattr(exchanges, "cut_head", lambda held: bytes(held[:20]))
    with pytest.raises(BadRequestError, match="incomplete"):
        Line(None).caller(GET)


# -- answers --------------------------------------------------------------------------------------------------------------


def asked(start: bytes = b"GET / HTTP/1.1", *lines: bytes) -> Line:
    line = Line(None)
    assert line.caller(request(*lines, start=start))
    return line


def test_an_answer_in_chunks_with_trailers() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nDigest: x\r\n\r\n"
    line = asked()
    assert line.app(answer) == answer
    assert line.caller(GET) == GET


def test_an_answer_s_head_is_bounded_in_fields() -> None:
    answer = OK[:-4] + b"a: b\r\n" * (exchanges.MAX_ANSWER_FIELDS - 1) + OK[-4:]
    assert asked().app(answer) == answer
    with pytest.raises(BadAnswerError, match="more than 512 headers"):
        asked().app(answer.replace(b"a: b\r\n", b"a: b\r\na: b\r\n", 1))


def test_answers_without_a_body() -> None:
    for start, answer in (
        (b"HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        (b"GET / HTTP/1.1", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET / HTTP/1.1", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
    ):
        line = asked(start)
        assert line.app(answer) == answer
        assert line.caller(GET) == GET


def test_an_answer_that_its_app_ends_by_closing() -> None:
    line = asked()
    assert (
        line.app(b"HTTP/1.1 200 OK\r\n\r\nhel") == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n"
    )
    assert line.app(b"lo") == b"2\r\nlo\r\n"
    assert line.caller(GET) == b""
    assert line.app_ends() == b"0\r\n\r\n"
    assert line.exchanges.closing
    assert line.caller(b"") == b""


def test_an_app_of_http_1_0() -> None:
    line = asked()
    assert line.app(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok") == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    )
    assert line.exchanges.closing


@pytest.mark.parametrize(
    "answer", [OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok", b"HTTP/1.1 2"]
)
def test_an_answer_that_ends_early_is_no_clean_end(answer: bytes) -> None:
    line = asked()
    line.app(answer)
    with pytest.raises(BadAnswerError, match="ended within"):
        line.app_ends()


def test_an_app_that_ends_without_an_answer_ends_cleanly() -> None:
    line = asked()
    assert line.app_ends() == b""
    assert line.exchanges.closing
    line = Line(None)
    assert line.app_ends() == b""


def test_informational_answers() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </style>\r\n\r\n"
    line = asked(POST, b"Expect: 100-continue", b"Content-Length: 2")
    assert line.app(b"HTTP/1.1 100 Continue\r\n\r\n" + early) == b"HTTP/1.1 100 Continue\r\n\r\n" + early
    assert line.caller(b"ok") == b"ok"
    assert line.app(OK) == OK


def test_a_refused_expectation() -> None:
    line = asked(POST, b"Expect: 100-continue", b"Content-Length: 2")
    answer = b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert line.app(answer) == answer
    assert line.exchanges.closing
    assert line.caller(b"o", b"k" + GET) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 600 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000,
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_an_answer_that_is_none_is_a_bad_gateway(answer: bytes) -> None:
    line = asked()
    with pytest.raises(BadAnswerError, match=r"sent (no|an) answer"):
        line.app(answer)
    assert line.exchanges.refuse(502, "broken")
    assert line._taken("to_caller").startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


# -- HTTP/1.0 -------------------------------------------------------------------------------------------------------------


def test_an_old_caller() -> None:
    line = Line(None)
    old = b"POST / HTTP/1.0\r\nConnection: keep-alive, X-Y\r\nKeep-Alive: 5\r\nExpect: 100-continue\r\n"
    old += b"Content-Length: 1\r\n\r\nx"
    assert line.caller(old + GET) == (
        b"POST / HTTP/1.1\r\nHost: api\r\nConnection: X-Y\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    )
    assert line.app(b"HTTP/1.1 100 Continue\r\n\r\n") == b""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n"
    assert line.app(answer) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"
    assert line.exchanges.closing
    assert line.caller(b"") == b""


def test_an_old_caller_names_its_host_or_not() -> None:
    assert Line(None).caller(b"GET / HTTP/1.0\r\nHost: b\r\nUpgrade: websocket\r\n\r\n") == (
        b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
    )


# -- raw ------------------------------------------------------------------------------------------------------------------

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def test_raw_after_101_and_not_before() -> None:
    line = Line()
    upgrade = request(b"Connection: Upgrade", b"Upgrade: websocket")
    assert line.caller(upgrade + b"\x00frames") == upgrade[:-2].replace(b"Upgrade: websocket\r\n", b"") + (
        b"Upgrade: websocket\r\n" + TOLD + b"\r\n"
    )
    assert line.exchanges.holds
    assert not line.exchanges.raw
    assert line.app(SWITCH + b"\x01frames") == SWITCH + b"\x01frames"
    assert line.exchanges.raw
    assert line.caller(b"") == b"\x00frames"
    assert line.app_ends() == b""


def test_a_101_with_a_length_is_one() -> None:
    """RFC 9110 8.6 forbids it; some servers do it all the same."""
    line = asked(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket")
    assert line.app(SWITCH[:-2] + b"Content-Length: 0\r\n\r\n")
    assert line.exchanges.raw


def test_an_upgrade_that_is_refused_is_a_request_as_any_other() -> None:
    line = asked(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket")
    assert line.caller(request(b"X_Forwarded_Client_Cert: forged")) == b""
    assert line.app(OK) == OK
    assert line.caller(b"") == GET
    assert not line.exchanges.raw


def test_raw_after_a_connect_that_succeeds() -> None:
    line = asked(b"CONNECT a:1 HTTP/1.1")
    assert line.caller(b"tunnelled") == b""
    assert line.app(b"HTTP/1.1 200 OK\r\n\r\nhello") == b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert line.exchanges.raw
    assert line.caller(b"") == b"tunnelled"
    refused = asked(b"CONNECT a:1 HTTP/1.1")
    assert refused.app(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
    assert not refused.exchanges.raw
    assert refused.caller(GET) == GET


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_an_app_that_does_not_know_connect_is_not_reached_raw(answer: bytes) -> None:
    line = asked(b"CONNECT a:1 HTTP/1.1")
    with pytest.raises(BadAnswerError, match="as any other request"):
        line.app(answer)
    assert not line.exchanges.raw
    assert line.exchanges.refuse(502, "no")


@pytest.mark.parametrize("status", [b"204 No Content", b"205 Reset Content", b"299 Odd"])
def test_a_success_that_opens_no_tunnel(status: bytes) -> None:
    line = asked(b"CONNECT /health HTTP/1.1")
    line.caller(GET)
    with pytest.raises(BadAnswerError, match="as any other request"):
        line.app(b"HTTP/1.1 %s\r\n\r\n" % status)
    assert not line.exchanges.raw
    assert line.caller(b"") == b""
    assert line.exchanges.refuse(502, "no")


@pytest.mark.parametrize("answer", [SWITCH, b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_switch_within_a_request_is_none(answer: bytes) -> None:
    line = asked(b"CONNECT a:1 HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 1")
    with pytest.raises(BadAnswerError, match="before it had the whole request"):
        line.app(answer)
    assert not line.exchanges.raw


@pytest.mark.parametrize("offer", [b"h2", b"H2C", b"h2-14", b"HTTP/2.0", b"TLS/1.0", b"tls/1.2"])
def test_no_upgrade_to_more_requests_is_offered(offer: bytes) -> None:
    assert Line(None).caller(request(b"Connection: Upgrade", b"Upgrade: " + offer)) == GET


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"])
def test_a_body_that_means_nothing_is_the_last_of_its_connection(method: bytes, framing: bytes) -> None:
    line = Line(None)
    told = line.caller(method + b" / HTTP/1.1\r\nHost: a\r\n" + framing + GET)
    assert b"\r\nConnection: close\r\n" in told
    assert GET not in told
    heard = line.app(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in heard
    assert line.exchanges.over
    assert line.exchanges.closing
    assert line.caller(b"") == b""


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        GET,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_other_requests_leave_their_connection_open(head: bytes) -> None:
    line = Line(None)
    assert b"close" not in line.caller(head)
    assert b"close" not in line.app(OK)
    assert line.caller(GET) == GET


def test_http_2_is_not_offered_to_the_app() -> None:
    line = Line(None)
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ")
    assert line.caller(request(*offer)) == GET
    with pytest.raises(BadAnswerError, match=r"does not fit|no answer"):
        line.app(SWITCH.replace(b"websocket", b"h2c"))
    both = Line(None).caller(request(b"Connection: Upgrade", b"Upgrade: h2c, websocket"))
    assert both == request(b"Connection: Upgrade", b"Upgrade: websocket")


# -- any split is the same ------------------------------------------------------------------------------------------------

STREAM = b"".join(
    (
        b"\r\n",
        request(b"X-FORWARDED_client-cert: forged"),
        request(b"Content-Length: 12", start=POST) + b"GET / HTTP/1",
        CHUNKED + b"C\r\nX-Forwarded-\r\n0C\r\nClient-Cert:\r\n0\r\nx_forwarded_client_cert: y\r\nA: b\r\n\r\n",
        request(start=b"HEAD /head HTTP/1.1"),
        b"GET /old HTTP/1.0\r\n\r\n",
        GET,
    )
)
ANSWERS = (
    OK,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nto the end",
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in pairwise(marks) if a < b]


def understood(role: Any, data: bytes, methods: list[bytes]) -> list[tuple[Any, ...]]:
    """The messages of a stream, without how their bodies were cut."""
    found: list[tuple[Any, ...]] = []
    reader = h11.Connection(role)
    reader.receive_data(data)
    reader.receive_data(b"")
    body = b""
    while True:
        if reader.our_state is h11.IDLE and role is h11.CLIENT:
            if not methods:
                return found
            reader.send(h11.Request(method=methods[0], target="/", headers=[("Host", "a")]))
            reader.send(h11.EndOfMessage())
            methods = methods[1:]
        event = reader.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            found.append((body, event.headers.raw_items()))
            body = b""
            if role is h11.SERVER:
                reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                return found
            reader.start_next_cycle()
        elif isinstance(event, h11.Request):
            found.append((event.method, event.target, event.headers.raw_items()))
        elif isinstance(event, h11.Response | h11.InformationalResponse):
            found.append((event.status_code, event.headers.raw_items()))
        else:
            return found


def conversation(stream: list[bytes], answers: list[list[bytes]]) -> tuple[bytes, bytes, list[int]]:
    """What app and caller hear of it, and how much the app had heard at each answer's begin."""
    line, heard, said, at = Line(), b"", b"", []
    for piece in stream:
        heard += line.caller(piece)
    for answer in answers:
        heard += line.caller(b"")
        at.append(len(heard))
        said += line.app(*answer)
    return heard + line.caller(b""), said + line.app_ends(), at


@given(st.lists(st.integers(0, 2000), max_size=12), st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=300)
def test_any_split_is_understood_as_the_same(places: list[int], cuts: list[int]) -> None:
    whole = conversation([STREAM], [[answer] for answer in ANSWERS])
    split = conversation(cut(STREAM, places), [cut(answer, cuts) for answer in ANSWERS])
    requests = understood(h11.SERVER, whole[0], [])
    assert len(requests) == 2 * len(ANSWERS)
    assert understood(h11.SERVER, split[0], []) == requests
    methods = [one[0] for one in requests[::2]]
    assert methods == [b"GET", b"POST", b"POST", b"HEAD", b"GET"]
    assert understood(h11.CLIENT, split[1], methods) == understood(h11.CLIENT, whole[1], methods)
    for name, value in (field for one in requests[::2] for field in one[2]):
        if name.lower().replace(b"_", b"-") == HEADER.lower():
            assert value == ELEMENT
    assert whole[0].count(ELEMENT) == len(ANSWERS)


@given(st.sampled_from(list(REFUSED)), st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=300)
def test_any_split_of_what_is_refused_is_refused_alike(data: bytes, places: list[int]) -> None:
    def refusal(*pieces: bytes) -> str:
        line = Line()
        with pytest.raises(BadRequestError) as refused:
            line.caller(*pieces)
        assert line._taken("to_app").count(b"Host:") <= 1
        return f"{refused.value.status} {refused.value}"

    assert refusal(*cut(data, places)) == refusal(data)
