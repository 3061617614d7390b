"""HTTP as a server: every bound on what can be sent, each beside the request that keeps it; over a stream in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from sidecar.transport import http1
from sidecar.transport.http1 import (
    EVENTS_A_TICK,
    IDLE_SECONDS,
    MAX_BODY_BYTES,
    MAX_CHUNK_LINES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    REQUEST_SECONDS,
    Closing,
    Feed,
    Peer,
    Request,
    Response,
    converse,
)
from sidecar.transport.stream import BrokenStreamError
from tests.beds.mesh import TIMEOUT
from tests.beds.patience import PATIENCE

GET = b"GET /thing HTTP/1.1\r\nHost: ca\r\n\r\n"
PEER = Peer("127.0.0.1:40000", None, ())


class Line:
    """The server's end of a stream in memory."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive_some(self) -> bytes:
        return bytes(await self._stream.receive_some())

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as gone:
            raise BrokenStreamError("the caller has gone") from gone


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)

    @property
    def is_last(self) -> bool:
        return self.headers.get("connection") == "close"


@dataclass
class Caller:
    """The caller's end: raw bytes out, answers in. ``over``: what the conversation ended with, once it has."""

    stream: trio.StapledStream[Any, Any]
    observed: list[tuple[str, int]] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    _heard: bytes = b""

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def hang_up(self) -> None:
        """No more is said; answers can still come."""
        await self.stream.send_stream.aclose()

    async def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._heard:
            more = await self.stream.receive_some()
            assert more, f"the line ended after {self._heard!r}"
            self._heard += bytes(more)
        head, _, self._heard = self._heard.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers

    async def hear(self, *, bodiless: bool = False) -> Answer:
        status, headers = await self.head()
        size = 0 if bodiless else int(headers.get("content-length", "0"))
        while len(self._heard) < size:
            more = await self.stream.receive_some()
            assert more, "the line ended within a body"
            self._heard += bytes(more)
        body, self._heard = self._heard[:size], self._heard[size:]
        return Answer(status, headers, body)

    async def hear_the_end(self) -> None:
        """Nothing more comes, and the conversation is over."""
        assert self._heard == b""
        assert await self.stream.receive_some() == b""
        assert self.over.is_set()


async def tell(request: Request) -> Response:
    """Answers with what it was asked."""
    return Response.of(200, {"query": dict(request.query), "body": request.body.decode()})


@asynccontextmanager
async def calling(
    handler: Callable[[Request], Awaitable[Response]] = tell,
    closing: Closing | None = None,
    peer: Peer = PEER,
    pace: http1.Pace | None = None,
) -> AsyncIterator[Caller]:
    ours, theirs = trio.testing.memory_stream_pair()
    caller = Caller(theirs)

    async def answer(request: Request) -> Response:
        caller.asked.append(request)
        return await handler(request)

    async def serve() -> None:
        routes = {"/thing": {"GET": answer, "POST": answer}, "/post": {"POST": answer}}
        try:
            await converse(Line(ours), peer, routes, lambda *seen: caller.observed.append(seen), closing, pace)
        finally:
            caller.over.set()
            await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield caller
        with trio.fail_after(2 * IDLE_SECONDS):
            await caller.hang_up()
            await caller.over.wait()


def post(body: bytes, target: str = "/post", *more: str, length: int | None = None) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: ca", f"Content-Length: {len(body) if length is None else length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_and_the_connection_kept() -> None:
    async with calling() as caller:
        await caller.say(GET)
        answer = await caller.hear()
        assert (answer.status, answer.said, answer.is_last) == (200, {"query": {}, "body": ""}, False)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        await caller.say(post(b"words", "/post?a=1&b=%20"))
        assert (await caller.hear()).said == {"query": {"a": "1", "b": " "}, "body": "words"}
    assert caller.observed == [("/thing", 200), ("/post", 200)]


async def test_the_handler_learns_who_asks() -> None:
    peer = Peer("10.0.0.7:1234", None, (b"leaf", b"issuer"))
    async with calling(peer=peer) as caller:
        await caller.say(b"GET /thing HTTP/1.1\r\nHost: ca\r\nX-Word: Yes\r\n\r\n")
        await caller.hear()
    (request,) = caller.asked
    assert request.peer is peer
    assert request.headers["x-word"] == "Yes"


async def test_requests_in_one_breath_are_answered_in_their_order() -> None:
    async with calling() as caller:
        await caller.say(GET + post(b"one") + post(b"two") + GET)
        bodies = [(await caller.hear()).said["body"] for _ in range(4)]
    assert bodies == ["", "one", "two", ""]


async def test_a_byte_at_a_time_is_as_good() -> None:
    async with calling() as caller:
        for byte in post(b"slow"):
            await caller.say(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await caller.hear()).said["body"] == "slow"


async def test_a_body_in_chunks() -> None:
    head = b"POST /post HTTP/1.1\r\nHost: ca\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with calling() as caller:
        await caller.say(head + b"3\r\none\r\n4\r\n two\r\n0\r\n\r\n")
        assert (await caller.hear()).said["body"] == "one two"
        await caller.say(head + b"zz\r\n")
        answer = await caller.hear()
        assert (answer.status, answer.said["error"], answer.is_last) == (400, "bad_request", True)
        await caller.hear_the_end()


@pytest.mark.parametrize("first", [b"HTTP/1.1\r\nHost: ca", b"HTTP/1.0"])
async def test_a_body_with_a_length_and_in_chunks_may_be_two_requests(first: bytes) -> None:
    async with calling() as caller:
        both = b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        await caller.say(b"POST /post " + first + both)
        answer = await caller.hear()
        assert (answer.status, answer.said["message"]) == (
            400,
            "a body has either a Content-Length or chunks, not both",
        )
        assert answer.is_last
    assert caller.asked == []


async def test_who_waits_for_leave_to_send_a_body_gets_it() -> None:
    async with calling() as caller:
        head, _, body = post(b"words", "/post", "Expect: 100-continue").partition(b"\r\n\r\n")
        await caller.say(head + b"\r\n\r\n")
        assert (await caller.head())[0] == 100
        assert caller.asked == [], "nobody was asked before the body was there"
        await caller.say(body)
        assert (await caller.hear()).said["body"] == "words"


@pytest.mark.parametrize("target", ["/nothing", "/post"])
async def test_who_waits_for_leave_where_there_is_nothing_hears_so_instead(target: str) -> None:
    async with calling() as caller:
        head = post(b"", target, "Expect: 100-continue", length=MAX_BODY_BYTES + (target == "/post"))
        await caller.say(head)
        answer = await caller.hear()
        assert answer.status == (413 if target == "/post" else 404)
        await caller.hear_the_end()


async def test_http_1_0_gets_its_answer_and_the_end() -> None:
    async with calling() as caller:
        await caller.say(b"GET /thing HTTP/1.0\r\n\r\n")
        answer = await caller.hear()
        assert (answer.status, answer.is_last) == (200, True)
        await caller.hear_the_end()


async def test_who_wants_to_close_is_closed() -> None:
    async with calling() as caller:
        await caller.say(b"GET /thing HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n")
        assert (await caller.hear()).is_last
        await caller.hear_the_end()


async def test_an_answer_without_news_has_no_body_and_claims_no_length() -> None:
    async def no_news(_request: Request) -> Response:
        return Response(304, headers={"ETag": '"x"'})

    async with calling(no_news) as caller:
        await caller.say(GET)
        answer = await caller.hear()
        assert (answer.status, answer.headers["etag"]) == (304, '"x"')
        assert "content-length" not in answer.headers, "RFC 9110 8.6: only the length that a 200 would have"
        await caller.say(GET)
        assert (await caller.hear()).status == 304, "the connection was kept"


# -- what there is not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /nothing", 404),
        ("POST /thing/", 404),
        ("POST //thing", 404),
        ("POST /THING", 404),
        ("POST /%74hing", 404),
        ("POST /post/../thing", 404),
        ("POST http://ca/thing", 404),
        ("POST *", 404),
        ("CONNECT ca:443", 404),
        ("PUT /thing", 405),
        ("DELETE /post", 405),
        ("OPTIONS /thing", 405),
        ("TRACE /thing", 405),
        ("get /thing", 405),
        ("XYZZY /thing", 405),
    ],
)
async def test_an_unknown_path_or_verb_is_refused_before_its_body_is_looked_at(line: str, status: int) -> None:
    async with calling() as caller:
        # The body never comes, and its length is past all bounds; the query is none.
        await caller.say(f"{line} HTTP/1.1\r\nHost: ca\r\nContent-Length: 9999999\r\n\r\n".encode())
        answer = await caller.hear()
        assert (answer.status, answer.is_last) == (status, True)
        assert answer.said["error"] == ("not_found" if status == 404 else "method_not_allowed")
        if status == 405:
            assert answer.headers["allow"] == ("POST" if "/post" in line else "GET, POST, HEAD")
        await caller.hear_the_end()
    assert caller.asked == []
    assert caller.observed == [("other", status)], "no label holds what a stranger sent"


async def test_head_is_answered_as_get_without_the_body() -> None:
    async with calling() as caller:
        await caller.say(b"GET /thing HTTP/1.1\r\nHost: ca\r\n\r\nHEAD /thing HTTP/1.1\r\nHost: ca\r\n\r\n")
        got = await caller.hear()
        head = await caller.hear(bodiless=True)
        assert (head.status, head.headers) == (got.status, got.headers)
        assert (head.status, head.is_last) == (200, False)
    assert caller.observed == [("/thing", 200)] * 2


@pytest.mark.parametrize(("target", "status"), [("/post", 405), ("/nothing", 404)])
async def test_head_is_refused_without_a_body(target: str, status: int) -> None:
    async with calling() as caller:
        await caller.say(f"HEAD {target} HTTP/1.1\r\nHost: ca\r\n\r\n".encode())
        answer = await caller.hear(bodiless=True)
        assert (answer.status, answer.is_last) == (status, True)
        await caller.hear_the_end()
    assert caller.observed == [("other", status)]


async def test_http_2_is_not_begun() -> None:
    async with calling() as caller:
        await caller.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = await caller.hear()
        assert (answer.status, answer.is_last) == (404, True)
        await caller.hear_the_end()


async def test_an_upgrade_is_not_taken_up() -> None:
    async with calling() as caller:
        await caller.say(b"GET /thing HTTP/1.1\r\nHost: ca\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert (await caller.hear()).status == 200
        await caller.say(GET)
        assert (await caller.hear()).status == 200


# -- what is no request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"GET /thing HTTP/1.1\r\n\r\n",  # no Host
        b"GET /thing HTTP/1.1\r\nHost: ca\r\nHost: other\r\n\r\n",
        b"GET /thing HTTP/1.1\r\nHost : ca\r\n\r\n",
        b"GET /thing HTTP/1.1\r\nHost: ca\r\n folded: x\r\n: x\r\n\r\n",
        b"GET /th\xc3\xadng HTTP/1.1\r\nHost: ca\r\n\r\n",
        b"GET /thing HTTP/1.1\r\nHost: ca\r\nX: a\x00b\r\n\r\n",
        b"POST /post HTTP/1.1\r\nHost: ca\r\nContent-Length: -1\r\n\r\n",
        b"POST /post HTTP/1.1\r\nHost: ca\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /post HTTP/1.1\r\nHost: ca\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST /post HTTP/1.1\r\nHost: ca\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_told_so_and_ends_the_connection(said: bytes) -> None:
    async with calling() as caller:
        await caller.say(said)
        answer = await caller.hear()
        assert answer.status in (400, 501, 505)
        assert (answer.said["error"], answer.is_last) == ("bad_request", True)
        await caller.hear_the_end()
    assert caller.asked == []
    assert [name for name, _ in caller.observed] == ["other"]


@pytest.mark.parametrize("query", ["a", "a=1&&b=2", "&".join(f"q{n}=1" for n in range(9))])
async def test_a_query_that_cannot_be_read(query: str) -> None:
    async with calling() as caller:
        await caller.say(f"GET /thing?{query} HTTP/1.1\r\nHost: ca\r\n\r\n".encode())
        answer = await caller.hear()
        assert (answer.status, answer.said["message"], answer.is_last) == (400, "the query cannot be read", True)
    assert caller.asked == []


# -- sizes -------------------------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """A request's head of so many bytes."""
    start, end = b"GET /thing HTTP/1.1\r\nHost: ca\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


async def test_a_head_as_large_as_may_be() -> None:
    async with calling() as caller:
        await caller.say(padded(MAX_HEAD_BYTES))
        assert (await caller.hear()).status == 200


async def test_a_larger_head_is_not_waited_for() -> None:
    async with calling() as caller:
        await caller.say(padded(2 * MAX_HEAD_BYTES)[: MAX_HEAD_BYTES + 1])  # its end never comes
        answer = await caller.hear()
        assert (answer.status, answer.said["error"], answer.is_last) == (431, "bad_request", True)
        await caller.hear_the_end()


async def test_a_thousand_headers_do_not_fit() -> None:
    async with calling() as caller:
        await caller.say(b"GET /thing HTTP/1.1\r\n" + b"".join(b"X-%d: yes\r\n" % n for n in range(1000)))
        assert (await caller.hear()).status == 431
    assert caller.asked == []


CHUNKED = b"POST /post HTTP/1.1\r\nHost: ca\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_as_large_as_may_be(chunked: bool) -> None:
    body = b"x" * MAX_BODY_BYTES
    async with calling() as caller:
        await caller.say(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else post(body))
        assert len((await caller.hear()).said["body"]) == MAX_BODY_BYTES


async def test_a_larger_body_is_refused_by_its_length_before_it_comes() -> None:
    async with calling() as caller:
        await caller.say(post(b"", length=MAX_BODY_BYTES + 1))
        answer = await caller.hear()
        assert (answer.status, answer.said["error"], answer.is_last) == (413, "bad_request", True)
        await caller.hear_the_end()
    assert caller.asked == []
    assert caller.observed == [("/post", 413)]


async def test_a_body_in_chunks_is_cut_off_when_it_gets_too_large() -> None:
    async with calling() as caller:
        await caller.say(CHUNKED)
        async with trio.open_nursery() as nursery:

            async def pour() -> None:
                while True:
                    await caller.say(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
                    await trio.testing.wait_all_tasks_blocked()

            nursery.start_soon(pour)
            answer = await caller.hear()
            nursery.cancel_scope.cancel()
        assert (answer.status, answer.is_last) == (413, True)
    assert caller.asked == []


def fields(number: int) -> bytes:
    """A request's head with so many fields."""
    return b"GET /thing HTTP/1.1\r\nHost: ca\r\n" + b"a:\r\n" * (number - 1) + b"\r\n"


async def test_a_head_has_so_many_fields_and_no_more() -> None:
    """2,000 fit in its bytes, and would take 40 ms of the loop."""
    async with calling() as caller:
        await caller.say(fields(MAX_FIELDS) * 2 + fields(MAX_FIELDS + 1))
        assert [(await caller.hear()).status for _ in range(3)] == [200, 200, 431]
        await caller.hear_the_end()
    assert len(caller.asked) == 2


CHUNK, LAST = b"1\r\nx\r\n", b"0\r\n\r\n"
MOST_CHUNKS = (MAX_CHUNK_LINES - LAST.count(b"\n")) // CHUNK.count(b"\n")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_body_has_so_many_chunks_and_no_more(at_once: bool) -> None:
    async with calling() as caller:
        await caller.say(CHUNKED)
        await caller.say(CHUNK * MOST_CHUNKS + LAST)
        assert (await caller.hear()).said["body"] == "x" * MOST_CHUNKS
        parts = [CHUNKED, CHUNK * MOST_CHUNKS, CHUNK, LAST]
        for part in [b"".join(parts)] if at_once else parts:
            await caller.say(part)
            await trio.testing.wait_all_tasks_blocked()
        answer = await caller.hear()
        assert (answer.status, answer.said["error"], answer.is_last) == (413, "bad_request", True)
    assert len(caller.asked) == 1


async def test_so_it_is_with_what_follows_the_last_chunk() -> None:
    async with calling() as caller:
        await caller.say(CHUNKED + b"0\r\n" + b"a: b\r\n" * 8 + b"\r\n")
        assert (await caller.hear()).status == 200
        await caller.say(CHUNKED + b"0\r\n" + b"a:\r\n" * MAX_CHUNK_LINES + b"\r\n")
        assert (await caller.hear()).status == 413
    assert len(caller.asked) == 1


async def test_a_body_of_many_lines_is_welcome_with_its_length() -> None:
    async with calling() as caller:
        await caller.say(post(b"\n" * (MAX_CHUNK_LINES + 1)))
        assert (await caller.hear()).status == 200


class Pace:
    """Lets one wait through at a time."""

    def __init__(self) -> None:
        self.number = 0

    async def __call__(self) -> None:
        await trio.lowlevel.checkpoint()
        self.number += 1


@pytest.mark.parametrize("paced", [True, False])
async def test_others_run_between_the_requests_of_one_breath(nursery: trio.Nursery, *, paced: bool) -> None:
    """One read may bring 450 of them: 70 ms, if they were answered in one tick of the loop."""
    pace = Pace()
    at: list[int] = []

    async def others() -> None:
        while True:
            await pace()

    if not paced:
        nursery.start_soon(others)

    async def note(_request: Request) -> Response:
        at.append(pace.number)
        return Response(200)

    async with calling(note, pace=pace if paced else None) as caller:
        await caller.say(GET * 20)
        for _ in range(20):
            await caller.hear()
    assert len(set(at)) == 20


async def test_others_run_between_the_chunks_of_a_body() -> None:
    pace = Pace()
    async with calling(pace=pace) as caller:
        await caller.say(CHUNKED + CHUNK * MOST_CHUNKS + LAST)
        await caller.hear()
        assert pace.number >= MOST_CHUNKS // EVENTS_A_TICK


@pytest.mark.parametrize("size", [0, 100, 1 << 20])
async def test_a_large_answer_is_sent_as_it_is(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand connections that do not read it share it; a small one leaves in one piece with its head."""
    body, sent = b"x" * size, []
    send = Line.send_all

    async def note(line: Line, data: bytes) -> None:
        sent.append(data)
        await send(line, data)

    monkeypatch.setattr(Line, "send_all", note)

    async def give(_request: Request) -> Response:
        return Response(200, body)

    async with calling(give) as caller:
        await caller.say(GET)
        assert (await caller.hear()).body == body
    assert any(data is body for data in sent) == (size > 1000)
    assert size > 1000 or len(sent) == 1


async def test_after_so_many_requests_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_REQUESTS", 3)
    async with calling() as caller:
        await caller.say(GET * 4)
        assert [(await caller.hear()).is_last for _ in range(3)] == [False, False, True]
        await caller.hear_the_end()
    assert len(caller.asked) == 3


# -- times -------------------------------------------------------------------------------------------------------------


async def test_a_connection_may_be_idle_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with calling() as caller:
        await trio.sleep(IDLE_SECONDS - 1)
        await caller.say(GET)
        assert (await caller.hear()).status == 200
        await trio.sleep(IDLE_SECONDS - 1)
        await caller.say(GET)
        assert (await caller.hear()).status == 200


@pytest.mark.parametrize("asked", [b"", GET])
async def test_and_then_it_ends_without_a_word(asked: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with calling() as caller:
        if asked:
            await caller.say(asked)
            await caller.hear()
        began = trio.current_time()
        await caller.hear_the_end()
        assert trio.current_time() - began == pytest.approx(IDLE_SECONDS)
    assert len(caller.observed) == bool(asked)


async def dribble(caller: Caller, data: bytes, seconds: float) -> None:
    """Says it evenly over so much time."""
    for byte in data:
        await caller.say(bytes([byte]))
        await trio.sleep(seconds / len(data))


@pytest.mark.parametrize("said", [GET, post(b"a body")], ids=["head", "body"])
async def test_a_slow_request_in_time_is_answered(said: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with calling() as caller:
        await dribble(caller, said, REQUEST_SECONDS * 0.9)
        assert (await caller.hear()).status == 200


@pytest.mark.parametrize(
    "said", [GET[:-2], post(b"a bod", length=6), CHUNKED + b"1\r\nx\r\n"], ids=["head", "body", "chunks"]
)
async def test_a_request_that_does_not_end_is_not_waited_for(
    said: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with calling() as caller:
        began = trio.current_time()
        await dribble(caller, said, REQUEST_SECONDS * 0.9)
        answer = await caller.hear()
        assert trio.current_time() - began == pytest.approx(REQUEST_SECONDS)
        assert (answer.status, answer.said["error"], answer.is_last) == (408, "bad_request", True)
        await caller.hear_the_end()
    assert caller.asked == []


async def test_a_slow_head_leaves_a_slow_body_what_time_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async with calling() as caller:
        began = trio.current_time()
        await dribble(caller, post(b"", length=6), REQUEST_SECONDS * 0.8)
        answer = await caller.hear()
        assert answer.status == 408
        assert trio.current_time() - began == pytest.approx(REQUEST_SECONDS)


async def test_the_time_of_a_request_begins_with_its_first_byte(autojump_clock: trio.testing.MockClock) -> None:
    async with calling() as caller:
        await trio.sleep(IDLE_SECONDS - 1)
        await dribble(caller, GET, REQUEST_SECONDS * 0.9)
        assert (await caller.hear()).status == 200


async def test_an_answer_that_nobody_takes_is_not_held_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # it holds nothing: a send waits until it was taken

    async def tell_all(_request: Request) -> Response:
        return Response(200, b"x" * 100)

    async def converse_alone() -> None:
        await converse(Line(ours), PEER, {"/thing": {"GET": tell_all}}, lambda *_: None)

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(converse_alone)
        await theirs.send_all(GET)
    assert trio.current_time() - began == pytest.approx(REQUEST_SECONDS)


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_who_says_nothing_and_goes_costs_nothing() -> None:
    async with calling() as caller:
        await caller.hang_up()
        await caller.hear_the_end()
    assert caller.observed == []


async def test_who_goes_within_a_request_is_told_that_it_was_none() -> None:
    async with calling() as caller:
        await caller.say(GET[:-2])
        await caller.hang_up()
        assert (await caller.hear()).status == 400
        await caller.hear_the_end()


async def test_who_goes_after_a_request_still_gets_its_answer() -> None:
    async with calling() as caller:
        await caller.say(GET)
        await caller.hang_up()
        assert (await caller.hear()).status == 200
        await caller.hear_the_end()


async def test_a_broken_stream_is_for_the_server_to_handle() -> None:
    class Broken:
        async def receive_some(self) -> bytes:
            return GET

        async def send_all(self, data: bytes) -> None:
            raise BrokenStreamError("the caller has gone")

    with pytest.raises(BrokenStreamError, match="has gone"):
        await converse(Broken(), PEER, {"/thing": {"GET": tell}}, lambda *_: None)


async def test_closing_ends_who_is_idle_at_once(autojump_clock: trio.testing.MockClock) -> None:
    closing = Closing()
    async with calling(closing=closing) as caller:
        await caller.say(GET)
        assert not (await caller.hear()).is_last
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        closing.begin()
        await caller.hear_the_end()
        assert trio.current_time() == began


async def test_closing_lets_a_request_that_is_under_way_have_its_answer(autojump_clock: trio.testing.MockClock) -> None:
    closing, goes_on = Closing(), trio.Event()

    async def takes_long(_request: Request) -> Response:
        await goes_on.wait()
        return Response.of(200, {})

    async with calling(takes_long, closing) as caller:
        await caller.say(GET + GET)  # and the second is not begun any more
        await trio.testing.wait_all_tasks_blocked()
        closing.begin()
        await trio.sleep(1)
        assert not caller.over.is_set()
        goes_on.set()
        answer = await caller.hear()
        assert (answer.status, answer.is_last) == (200, True)
        await caller.hear_the_end()
    assert len(caller.asked) == 1


async def test_closing_lets_a_request_arrive_whose_first_bytes_are_there() -> None:
    closing = Closing()
    async with calling(closing=closing) as caller:
        await caller.say(GET[:10])
        await trio.testing.wait_all_tasks_blocked()
        closing.begin()
        await caller.say(GET[10:])
        assert (await caller.hear()).is_last
        await caller.hear_the_end()


async def test_a_connection_that_begins_after_closing_did_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    closing = Closing()
    closing.begin()
    assert closing.has_begun
    began = trio.current_time()
    async with calling(closing=closing) as caller:
        await caller.hear_the_end()
    assert trio.current_time() - began < TIMEOUT
    assert caller.observed == []


# -- a body that comes bit by bit ------------------------------------------------------------------------------------------


def feeding(parts: Callable[[], AsyncGenerator[bytes, None]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return Feed(200, content_type="text/event-stream", headers={"X-Ours": "yes"}, parts=parts)

    return answer


async def test_a_feed_comes_in_chunks_and_ends_the_connection() -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"one"
        await trio.lowlevel.checkpoint()
        yield b"twelve bytes"

    async with calling(feeding(parts)) as caller:
        await caller.say(GET)
        status, headers = await caller.head()
        assert (status, headers["transfer-encoding"], headers["content-type"]) == (200, "chunked", "text/event-stream")
        assert (headers["cache-control"], headers["connection"], headers["x-ours"]) == ("no-store", "close", "yes")
        assert "content-length" not in headers
        with trio.fail_after(PATIENCE):
            body = b"".join([bytes(data) async for data in caller.stream])
        assert body == b"3\r\none\r\nc\r\ntwelve bytes\r\n0\r\n\r\n"
        await caller.over.wait()
        assert caller.observed == [("/thing", 200)]


async def test_a_feed_may_wait_as_long_as_it_likes(autojump_clock: trio.testing.MockClock) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        await trio.sleep(REQUEST_SECONDS * 100)
        yield b"late"

    async with calling(feeding(parts)) as caller:
        await caller.say(GET)
        assert b"".join([bytes(data) async for data in caller.stream]).endswith(b"4\r\nlate\r\n0\r\n\r\n")


async def test_of_a_feed_head_is_answered_without_a_part() -> None:
    begun = []

    async def parts() -> AsyncGenerator[bytes, None]:
        begun.append(1)
        yield b""

    async with calling(feeding(parts)) as caller:
        await caller.say(GET.replace(b"GET", b"HEAD"))
        data = b"".join([bytes(data) async for data in caller.stream])
        assert data.endswith(b"\r\n\r\n")
        assert b"\r\n0\r\n" not in data
        assert begun == []


async def test_who_takes_nothing_of_a_feed_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    ended = trio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.set()

    ours, theirs = trio.testing.lockstep_stream_pair()  # a part is sent once it is taken
    theirs_line = Line(ours)

    async def serve() -> None:
        await converse(theirs_line, PEER, {"/thing": {"GET": feeding(parts)}}, lambda *_seen: None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await theirs.send_all(GET)
        assert b"200" in await theirs.receive_some()
        began = trio.current_time()
        await ended.wait()
        assert trio.current_time() - began == REQUEST_SECONDS
