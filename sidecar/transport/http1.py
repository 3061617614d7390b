"""HTTP/1.1 server for the CA and for the admin port, on h11 (RFC 9110, RFC 9112): one connection, with bounds on all input.

How this works. :func:`converse` answers the requests of one connection in turn. The invariants:

* Method and path alone decide what a request is for, before anything else of it is considered, a body included. Otherwise
  a method that the router does not list could skip the path's authorisation. An unknown path is answered with 404, an
  unknown method with 405, and the connection is closed.
* Sizes are bounded: the head and its fields, the body and its chunks, the fields of a query, and the requests per
  connection. So is the work between two checkpoints: what one read brings may be hundreds of small requests or chunks
  (:class:`Incoming`).
* Times are bounded: idle time, the time from a request's first byte to its last, and the time to take the answer.
* An ambiguous body length (RFC 9112 6.1) is refused, since it may be an attempt at request smuggling.
* A malformed, oversized or late request is answered with its error, and the connection is closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

import h11
import trio

from sidecar.host.deadline import Deadline
from sidecar.identity.spiffe import Svid

MAX_HEAD_BYTES = 8 * 1024
MAX_FIELDS = 64
"""Fields of one head. h11 takes 10 to 20 µs for each, so the bytes alone would allow a stall of 40 ms."""

MAX_BODY_BYTES = 64 * 1024
MAX_CHUNK_LINES = 512
"""Lines of a body in chunks, its trailers included: two for each chunk. One byte a chunk would take a second of CPU time for
64 KiB. Whoever sends a body of many lines sends it with a Content-Length."""

EVENTS_A_TICK = 16
"""Events of h11 between two checkpoints: a millisecond of CPU time."""

IDLE_SECONDS = 60.0
"""How long a connection may be idle before its next request."""

REQUEST_SECONDS = 10.0
"""From a request's first byte to its last, and again for the client to take the answer."""

MAX_REQUESTS = 10_000
"""On one connection. Then it is closed, so that the peer's certificate is verified again."""

_SMALL_BYTES = 16 * 1024
_HEAD_END = re.compile(rb"\n\r?\n")  # as h11 finds it


class Stream(Protocol):
    """The transport of a connection. Both methods raise :class:`~sidecar.transport.stream.BrokenStreamError`."""

    async def receive_some(self) -> bytes: ...

    async def send_all(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """The client. ``path``: its verified chain (DER, leaf first). Without a certificate it is empty and ``svid`` None.
    ``revoked``: which of its certificates is revoked, as part of a message; then it has no ``svid`` and no ``path``, and
    ``revoked_id`` is for the log alone."""

    address: str
    svid: Svid | None
    path: tuple[bytes, ...]
    revoked: str = ""
    revoked_id: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    peer: Peer
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
        """A response with ``content`` as JSON."""
        return cls(status, json.dumps(content).encode() + b"\n", headers=headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed(Response):
    """A response whose body comes bit by bit, in chunks; the connection is closed at its end. ``parts`` may wait as long as
    it likes for the next one, and notices that the client is gone when it gives one."""

    parts: Callable[[], AsyncGenerator[bytes, None]]


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path, then method. HEAD is answered as GET, without the body (RFC 9110 9.3.2)."""

Observe = Callable[[str, int], None]
"""Called for each answer with its path in the routes (or ``other``) and its status."""

Pace = Callable[[], Awaitable[object]]
"""Waited for before each request and every :data:`EVENTS_A_TICK` events: a checkpoint, or a turn at a gate."""


def error(status: int, denial: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal: ``denial`` for programs, ``message`` for people."""
    return Response.of(status, {"error": denial, "message": message}, headers)


class _Close(Exception):  # noqa: N818 (not an error: it ends the connection)
    """The connection must be closed, after ``answer`` if there is one."""

    def __init__(self, answer: Response | None = None) -> None:
        super().__init__()
        self.answer = answer


class Closing:
    """Ends a server's connections: idle ones at once, the others after their answer."""

    def __init__(self) -> None:
        self._idle: set[trio.CancelScope] = set()
        self.has_begun = False

    def begin(self) -> None:
        self.has_begun = True
        for scope in self._idle:
            scope.cancel()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wraps the wait of a connection for its next request."""
        with trio.move_on_after(0 if self.has_begun else IDLE_SECONDS) as scope:
            self._idle.add(scope)
            try:
                yield
            finally:
                self._idle.discard(scope)


class Incoming:
    """The messages that one end of a connection receives, as h11's events, with bounds on what h11 does not bound: the
    fields of a head (:data:`MAX_FIELDS`) and the lines of a body in chunks (:data:`MAX_CHUNK_LINES`)."""

    def __init__(self, stream: Stream, connection: h11.Connection, pace: Pace | None = None) -> None:
        self.connection = connection
        self.pace = pace
        self._stream = stream
        self._events = 0
        self._chunk_lines: int | None = None  # of the body that is being received, if it is in chunks

    @property
    def buffered(self) -> bool:
        """Whether bytes are there that belong to no event yet."""
        return bool(self.connection.trailing_data[0])

    async def give_way(self) -> None:
        """Others have their turn."""
        await (self.pace or trio.lowlevel.checkpoint)()

    async def receive(self) -> bool:
        """Receives more; returns whether there was more. Raises :class:`~sidecar.transport.stream.BrokenStreamError` and
        :class:`h11.RemoteProtocolError`."""
        data = await self._stream.receive_some()
        self._count_chunk_lines(data)
        self.connection.receive_data(data)
        return bool(data)

    async def event(self) -> Any:
        """The next event, or ``h11.NEED_DATA``. Raises :class:`h11.RemoteProtocolError`."""
        self._events += 1
        if self._events % EVENTS_A_TICK == 0:
            await self.give_way()
        if self.connection.their_state in (h11.IDLE, h11.SEND_RESPONSE):
            _check_head(self.connection.trailing_data[0])
        event: Any = self.connection.next_event()
        if isinstance(event, h11.EndOfMessage):
            self._chunk_lines = None
        elif isinstance(event, h11.Request | h11.Response) and any(n == b"transfer-encoding" for n, _ in event.headers):
            self._chunk_lines = 0
            self._count_chunk_lines(self.connection.trailing_data[0])
        return event

    def _count_chunk_lines(self, data: bytes) -> None:
        if self._chunk_lines is not None:
            self._chunk_lines += data.count(b"\n")
            if self._chunk_lines > MAX_CHUNK_LINES:
                raise h11.RemoteProtocolError(
                    f"a body in chunks has at most {MAX_CHUNK_LINES} lines", error_status_hint=413
                )


def _check_head(received: bytes) -> None:
    """Raises :class:`h11.RemoteProtocolError` if the head that the bytes begin with, complete or not, has too many
    fields."""
    end = _HEAD_END.search(received)
    if received.count(b"\n", 0, end.end() if end else len(received)) > MAX_FIELDS + 2:  # its first line and its last
        raise h11.RemoteProtocolError(f"a head has at most {MAX_FIELDS} fields", error_status_hint=431)


async def converse(
    stream: Stream,
    peer: Peer,
    routes: Routes,
    observe: Observe,
    closing: Closing | None = None,
    pace: Pace | None = None,
) -> None:
    """Answers requests until either end closes. ``pace``: what each waits for before it is read; without it others have
    their turn before a request that came with the one before. Of all faults of the peer only :class:`BrokenStreamError` is
    raised."""
    closing = closing or Closing()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    incoming = Incoming(stream, connection, pace)
    for number in range(MAX_REQUESTS):
        name, bodiless = "other", False
        try:
            head, deadline = await _head(incoming, closing)
            bodiless = head.method == b"HEAD"  # RFC 9110 9.3.2; h11 does not allow a body then
            with Deadline(deadline):
                name, handler = _route(head, routes)
                request = await _request(stream, incoming, head, peer)
            answer = await handler(request)
            last = number + 1 == MAX_REQUESTS or closing.has_begun
        except _Close as close:
            if close.answer is None:
                return
            answer, last = close.answer, True
        except h11.RemoteProtocolError as fault:
            answer, last = error(fault.error_status_hint, "bad_request", f"not a valid request: {fault}"), True
        except trio.TooSlowError:
            answer, last = error(408, "bad_request", f"no complete request within {REQUEST_SECONDS:g} s"), True
        observe(name, answer.status)
        if isinstance(answer, Feed):
            await _send_feed(stream, connection, answer, bodiless=bodiless)
            return
        with trio.move_on_after(REQUEST_SECONDS) as taken:
            await _send(stream, connection, answer, last=last, bodiless=bodiless or answer.status == 304)
        if taken.cancelled_caught or last or connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


async def _head(incoming: Incoming, closing: Closing) -> tuple[h11.Request, float]:
    """The next request's head, and the deadline for its last byte, which counts from its first byte."""
    if not (was_here := incoming.buffered):
        with closing.idle():
            await incoming.receive()
    if incoming.pace is not None or was_here:
        await incoming.give_way()
    with Deadline.after(REQUEST_SECONDS) as scope:
        while (event := await incoming.event()) is h11.NEED_DATA:
            if not incoming.buffered:
                raise _Close  # idle: no request waits for an answer
            await incoming.receive()
    if not isinstance(event, h11.Request):
        raise _Close
    return event, scope.deadline


def _route(head: h11.Request, routes: Routes) -> tuple[str, Handler]:
    path = head.target.partition(b"?")[0].decode("ascii", "replace")
    methods = routes.get(path)
    if methods is None:
        raise _Close(error(404, "not_found", "there is no such path"))
    if "GET" in methods:
        methods = {**methods, "HEAD": methods["GET"]}
    handler = methods.get(head.method.decode("ascii", "replace"))
    if handler is None:
        allowed = ", ".join(methods)
        raise _Close(error(405, "method_not_allowed", f"this path accepts only {allowed}", {"Allow": allowed}))
    return path, handler


async def _request(stream: Stream, incoming: Incoming, head: h11.Request, peer: Peer) -> Request:
    headers = {name.decode("ascii"): value.decode("ascii", "replace") for name, value in head.headers}
    if headers.keys() >= {"content-length", "transfer-encoding"}:  # RFC 9112 6.1: may be request smuggling
        raise _Close(error(400, "bad_request", "a body has either a Content-Length or chunks, not both"))
    length = headers.get("content-length", "0")
    if int(length) > MAX_BODY_BYTES:  # h11 has checked that it is a number
        raise _Close(error(413, "bad_request", f"a body has at most {MAX_BODY_BYTES} bytes"))
    if incoming.connection.they_are_waiting_for_100_continue:
        await stream.send_all(_bytes(incoming.connection, h11.InformationalResponse(status_code=100, headers=[])))
    body = b""
    while True:
        event = await incoming.event()
        if event is h11.NEED_DATA:
            await incoming.receive()
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise _Close(error(413, "bad_request", f"a body has at most {MAX_BODY_BYTES} bytes"))
        else:
            break
    query = head.target.partition(b"?")[2].decode("ascii", "replace")
    try:
        pairs = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)) if query else {}
    except ValueError as fault:
        raise _Close(error(400, "bad_request", "the query cannot be read")) from fault
    return Request(peer, pairs, headers, body)


async def _send(stream: Stream, connection: h11.Connection, answer: Response, *, last: bool, bodiless: bool) -> None:
    described = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
    headers = [
        *(described if answer.status != 304 else []),  # in a 304 it would have to be the length of the 200's body
        ("Cache-Control", "no-store"),
        *answer.headers.items(),
        *([("Connection", "close")] if last else []),
    ]
    data = _bytes(connection, h11.Response(status_code=answer.status, headers=headers))
    if answer.body and not bodiless:
        parts = connection.send_with_data_passthrough(h11.Data(data=answer.body)) or []
        if len(answer.body) > _SMALL_BYTES:
            # Not joined: many connections may wait with one large body, which they share.
            for part in (data, *parts):
                await stream.send_all(part)
            data = b""
        else:
            data += b"".join(parts)
    await stream.send_all(data + _bytes(connection, h11.EndOfMessage()))


async def _send_feed(stream: Stream, connection: h11.Connection, answer: Feed, *, bodiless: bool) -> None:
    """Until its end, or until the client does not take a part in time."""
    headers = [
        ("Content-Type", answer.content_type),
        ("Transfer-Encoding", "chunked"),
        ("Cache-Control", "no-store"),
        *answer.headers.items(),
        ("Connection", "close"),
    ]
    head, end = h11.Response(status_code=answer.status, headers=headers), h11.EndOfMessage()
    if bodiless:
        await stream.send_all(_bytes(connection, head) + _bytes(connection, end))
        return
    await stream.send_all(_bytes(connection, head))
    async with aclosing(answer.parts()) as parts:
        async for part in parts:
            with trio.move_on_after(REQUEST_SECONDS) as taken:
                await stream.send_all(_bytes(connection, h11.Data(data=part)))
            if taken.cancelled_caught:
                return
    await stream.send_all(_bytes(connection, end))


def _bytes(connection: h11.Connection, event: Any) -> bytes:
    return connection.send(event) or b""
