"""HTTP at the CA's end, against whoever sends whatever: each test is what was sent and what came back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
import trio
from certs.http1 import IDLE_SECONDS, MAX_BODY_BYTES, MAX_HEAD_BYTES, REQUEST_SECONDS, Peer, Request, Response, converse
from trio.testing import MockClock

from certs import http1
from sidecar.stream import BrokenStreamError, SecureStream
from tests.cabed import secure_pair

HOST = b"Host: ca\r\n"
GET = b"GET /thing HTTP/1.1\r\n" + HOST
POST = b"POST /thing HTTP/1.1\r\n" + HOST


@dataclass
class Desk:
    """A CA of one path. ``asked``: the requests that reached its handler; ``observed``: each answer's name and status."""

    stream: SecureStream
    caller: SecureStream
    asked: list[Request] = field(default_factory=list)
    observed: list[tuple[str, int]] = field(default_factory=list)
    answer: Response = field(default_factory=lambda: Response.of(200, {"thing": 1}))
    ended: trio.Event = field(default_factory=trio.Event)

    async def handle(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answer

    async def serve(self) -> None:
        routes = {"/thing": {"GET": self.handle, "POST": self.handle}, "/read": {"GET": self.handle}}
        peer = Peer("127.0.0.1:1", None, ())
        try:
            await converse(self.stream, peer, routes, lambda name, status: self.observed.append((name, status)))
        except BrokenStreamError:
            pass
        finally:
            self.ended.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self.stream.close()

    async def says(self, data: bytes) -> None:
        await self.caller.send_all(data)

    async def hears(self, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """The answers to requests of these methods: status, headers, body."""
        http, answers = h11.Connection(h11.CLIENT), []
        pending: Iterable[str] = methods
        for method in pending:
            http.send(h11.Request(method=method, target="/", headers=[("Host", "ca")]))
            http.send(h11.EndOfMessage())
            status, headers, body = 0, {}, b""
            while True:
                event: Any = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await self.caller.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise AssertionError(f"no answer but {event!r}")
            answers.append((status, headers, body))
            if http.our_state is h11.DONE and http.their_state is h11.DONE:
                http.start_next_cycle()
        return answers

    async def answers(self, data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        await self.says(data)
        [answer] = await self.hears(method)
        return answer

    async def is_closed(self) -> bool:
        """Whether the other end has said close_notify, and nothing before it."""
        return await self.caller.receive_some() == b""


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    async with secure_pair() as (stream, caller), trio.open_nursery() as nursery:
        made = Desk(stream, caller)
        nursery.start_soon(made.serve)
        yield made
        nursery.cancel_scope.cancel()


# -- requests as they should be ----------------------------------------------------------------------------------------


async def test_a_request_and_its_answer(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        status, headers, body = await ca.answers(POST + b"Content-Length: 5\r\nX-Any: 7\r\n\r\nhello", "POST")
        assert (status, body) == (200, b'{"thing": 1}\n')
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        assert headers["content-length"] == "13"
        [asked] = ca.asked
        assert (asked.body, asked.headers["x-any"], dict(asked.query)) == (b"hello", "7", {})
        assert ca.observed == [("/thing", 200)]


async def test_many_on_one_connection(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        for number in range(5):
            status, headers, _ = await ca.answers(GET + b"\r\n")
            assert status == 200
            assert "connection" not in headers
            assert len(ca.asked) == number + 1


async def test_pipelined_requests_are_answered_in_their_order(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        await ca.says(b"GET /thing?n=1 HTTP/1.1\r\nHost: ca\r\n\r\n" + b"GET /thing?n=2 HTTP/1.1\r\nHost: ca\r\n\r\n")
        assert [status for status, *_ in await ca.hears("GET", "GET")] == [200, 200]
        assert [dict(asked.query) for asked in ca.asked] == [{"n": "1"}, {"n": "2"}]


async def test_a_body_in_chunks(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        chunks = b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
        assert (await ca.answers(POST + chunks, "POST"))[0] == 200
        assert ca.asked[0].body == b"hello"


async def test_a_body_in_single_bytes(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        for byte in POST + b"Content-Length: 5\r\n\r\nhello":
            await ca.says(bytes([byte]))
        assert (await ca.hears("POST"))[0][0] == 200
        assert ca.asked[0].body == b"hello"


async def test_whoever_waits_for_100_continue_is_told(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        await ca.says(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await ca.caller.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        assert (await ca.answers(b"hello", "POST"))[0] == 200


async def test_an_answer_without_a_body(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        ca.answer = Response(304, headers={"ETag": '"7"'})
        status, headers, body = await ca.answers(GET + b"\r\n")
        assert (status, headers["etag"], body) == (304, '"7"', b"")
        assert (await ca.answers(GET + b"\r\n"))[0] == 304  # and the connection is in step


async def test_http_1_0_is_answered_and_closed(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        assert (await ca.answers(b"GET /thing HTTP/1.0\r\n\r\n"))[0] == 200
        assert await ca.is_closed()


async def test_a_close_that_was_asked_for(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        status, headers, _ = await ca.answers(GET + b"Connection: close\r\n\r\n")
        assert (status, headers["connection"]) == (200, "close")
        assert await ca.is_closed()


async def test_a_query(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        assert (await ca.answers(b"GET /thing?after=7&x=%20 HTTP/1.1\r\n" + HOST + b"\r\n"))[0] == 200
        assert dict(ca.asked[0].query) == {"after": "7", "x": " "}


# -- unknown verbs and paths, before anything else of them is looked at ------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "allow"),
    [
        (b"HEAD /thing", 405, "GET, POST"),
        (b"OPTIONS /thing", 405, "GET, POST"),
        (b"PUT /thing", 405, "GET, POST"),
        (b"get /thing", 405, "GET, POST"),
        (b"BREW /thing", 405, "GET, POST"),
        (b"TRACE /thing", 405, "GET, POST"),
        (b"POST /read", 405, "GET"),
        (b"GET /", 404, None),
        (b"GET /thing/", 404, None),
        (b"GET //thing", 404, None),
        (b"GET /THING", 404, None),
        (b"GET /%74hing", 404, None),
        (b"GET /read/../thing", 404, None),
        (b"GET https://ca/thing", 404, None),
        (b"OPTIONS *", 404, None),
        (b"CONNECT ca:443", 404, None),
        (b"BREW /nothing", 404, None),
    ],
)
async def test_an_unknown_verb_or_path_is_refused_before_its_body_is_read(
    autojump_clock: MockClock, line: bytes, status: int, allow: str | None
) -> None:
    async with desk() as ca:
        # The body is never sent, and would be too large.
        sent = line + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n"
        await ca.says(sent)
        http = h11.Connection(h11.CLIENT)
        method = line.split()[0]
        http.send(h11.Request(method=method, target="/", headers=[("Host", "ca")]))
        http.receive_data(await ca.caller.receive_some())
        answer = http.next_event()
        assert isinstance(answer, h11.Response)
        headers = {name.decode(): value.decode() for name, value in answer.headers}
        assert (answer.status_code, headers.get("allow"), headers["connection"]) == (status, allow, "close")
        assert ca.asked == []
        assert ca.observed in ([("other", status)], [("/thing", status)], [("/read", status)])
        assert await ca.is_closed()


async def test_the_name_of_an_unknown_path_is_kept_nowhere(autojump_clock: MockClock) -> None:
    """It would be a label of the metrics, of which there would be no end."""
    async with desk() as ca:
        assert (await ca.answers(b"GET /no/such/path HTTP/1.1\r\n" + HOST + b"\r\n"))[0] == 404
        assert ca.observed == [("other", 404)]


# -- too much, too slow ------------------------------------------------------------------------------------------------


async def test_a_head_may_have_eight_kilobytes(autojump_clock: MockClock) -> None:
    filler = b"X: " + b"x" * (MAX_HEAD_BYTES - len(GET) - 100) + b"\r\n"
    async with desk() as ca:
        assert (await ca.answers(GET + filler + b"\r\n"))[0] == 200
    async with desk() as ca:
        status, _, body = await ca.answers(GET + b"X: " + b"x" * 2 * MAX_HEAD_BYTES)
        assert status == 431
        assert b"bad_request" in body
        assert ca.asked == []
        assert await ca.is_closed()


async def test_a_body_may_have_64_kilobytes(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        whole = POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES + b"x" * MAX_BODY_BYTES
        assert (await ca.answers(whole, "POST"))[0] == 200
        status, headers, _ = await ca.answers(POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), "POST")
        assert (status, headers["connection"]) == (413, "close")
        assert len(ca.asked) == 1
        assert await ca.is_closed()


async def test_a_body_in_chunks_may_have_no_more(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        await ca.says(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        await ca.says(chunk * 5)
        assert (await ca.hears("POST"))[0][0] == 413
        assert ca.asked == []
        assert await ca.is_closed()


@pytest.mark.parametrize("length", [b"1" * 30, b"99999999999999999999"])
async def test_a_length_without_bounds_is_refused(autojump_clock: MockClock, length: bytes) -> None:
    async with desk() as ca:
        status, *_ = await ca.answers(POST + b"Content-Length: " + length + b"\r\n\r\n", "POST")
        assert status in (400, 413)
        assert await ca.is_closed()


async def test_a_head_a_byte_a_second_is_cut(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        begin = trio.current_time()
        with trio.move_on_after(60):
            for byte in GET * 2:
                await ca.says(bytes([byte]))
                await trio.sleep(1)
                if ca.ended.is_set():
                    break
        assert trio.current_time() - begin == pytest.approx(REQUEST_SECONDS, abs=1.5)
        assert (await ca.hears("GET"))[0][0] == 408
        assert ca.asked == []


async def test_a_body_that_does_not_come_is_cut(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        begin = trio.current_time()
        status, headers, _ = await ca.answers(POST + b"Content-Length: 5\r\n\r\nhel", "POST")
        assert (status, headers["connection"]) == (408, "close")
        assert trio.current_time() - begin == pytest.approx(REQUEST_SECONDS, abs=0.1)
        assert ca.asked == []
        assert await ca.is_closed()


async def test_an_idle_connection_is_closed_without_a_word(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        assert (await ca.answers(GET + b"\r\n"))[0] == 200
        begin = trio.current_time()
        assert await ca.is_closed()
        assert trio.current_time() - begin == pytest.approx(IDLE_SECONDS, abs=0.1)
        assert ca.observed == [("/thing", 200)]


async def test_an_answer_that_nobody_takes_is_given_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk() as ca:
        ca.answer = Response(200, b"x" * 50_000_000)
        begin = trio.current_time()
        await ca.says(GET + b"\r\n")
        await ca.ended.wait()
        assert trio.current_time() - begin == pytest.approx(REQUEST_SECONDS, abs=0.5)


async def test_a_connection_has_had_enough_after_so_many(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "MAX_REQUESTS", 3)
    async with desk() as ca:
        said = [(await ca.answers(GET + b"\r\n"))[1].get("connection") for _ in range(3)]
        assert said == [None, None, "close"]
        assert await ca.is_closed()


# -- what is no HTTP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET /thing HTTP/1.1\r\n\r\n",  # no Host
        GET + b"Host: other\r\n\r\n",
        GET + b"Bad Header: x\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b": x\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET  /thing HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /th ing HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /thing\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_closed(autojump_clock: MockClock, sent: bytes) -> None:
    async with desk() as ca:
        status, headers, body = await ca.answers(sent, "POST")
        assert status in (400, 404, 501, 505)
        assert headers["connection"] == "close"
        assert b'"error": ' in body
        assert ca.asked == []
        assert await ca.is_closed()


async def test_length_and_chunks_at_once_are_no_smuggling(autojump_clock: MockClock) -> None:
    """Whatever is taken for the body, what is behind it is not run as a request of somebody else."""
    async with desk() as ca:
        inner = b"GET /thing?smuggled=1 HTTP/1.1\r\nHost: ca\r\n\r\n"
        await ca.says(
            POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(inner)) + inner
        )
        await ca.hears("POST")
        assert ca.asked == [] or ca.asked[0].body == b""


@pytest.mark.parametrize("query", [b"?x", b"?=&=", b"?" + b"&".join(b"a%d=1" % n for n in range(20))])
async def test_a_query_that_cannot_be_read_is_refused(autojump_clock: MockClock, query: bytes) -> None:
    async with desk() as ca:
        status, _, body = await ca.answers(b"GET /thing" + query + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert status in (200, 400)
        assert (status == 400) is (ca.asked == [])
        assert status == 200 or b"the query cannot be read" in body


async def test_whoever_leaves_in_the_middle_is_no_fault(autojump_clock: MockClock) -> None:
    for sent in (b"", b"GET /th", GET, POST + b"Content-Length: 5\r\n\r\nhe"):
        async with desk() as ca:
            if sent:
                await ca.says(sent)
            await ca.caller.close()
            await ca.ended.wait()
            assert ca.asked == []


async def test_whoever_dies_in_the_middle_is_no_fault(autojump_clock: MockClock) -> None:
    async with desk() as ca:
        await ca.says(POST + b"Content-Length: 5\r\n\r\nhe")
        ca.caller._sock.close()
        await ca.ended.wait()
        assert ca.asked == []
