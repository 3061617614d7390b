"""HTTP/1.1 as a server, by h11, for the CA and for the admin port: one connection, with bounds on all that can be sent.

What a request is for is decided by its method and path alone, before anything else of it is looked at, a body included: an
unknown one is answered with 404 or 405 and the connection closed. (A verb that a router did not know once skipped the
authorisation in somebody else's CA.)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

import h11
import trio

from sidecar.identity.spiffe import Svid
from sidecar.transport.stream import BrokenStreamError

MAX_HEAD_BYTES = 8 * 1024
MAX_BODY_BYTES = 64 * 1024
IDLE_SECONDS = 60.0
"""How long a connection may wait for its next request."""

REQUEST_SECONDS = 10.0
"""From a request's first byte to its last, and for its answer to be taken."""

MAX_REQUESTS = 10_000
"""On one connection; then it is closed, and its peer's certificate seen anew."""


class Stream(Protocol):
    """What a conversation goes over. Both raise :class:`~sidecar.transport.stream.BrokenStreamError`."""

    async def receive_some(self) -> bytes: ...

    async def send_all(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks. ``path``: its verified certificates (DER, leaf first); empty, and no ``svid``, where it showed none."""

    address: str
    svid: Svid | None
    path: tuple[bytes, ...]


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
    def of(cls, status: int, said: Any, headers: Mapping[str, str] | None = None) -> Response:
        """An answer in JSON."""
        return cls(status, json.dumps(said).encode() + b"\n", headers=headers or {})


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path, then method."""

Observe = Callable[[str, int], None]
"""Is told of each answer: the path's name in the routes (or ``other``) and the status."""


def error(status: int, denial: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says no, to programs and to people."""
    return Response.of(status, {"error": denial, "message": message}, headers)


class _Close(Exception):  # noqa: N818 (no error: the connection has had its last answer)
    """The connection is to be closed, after this answer if there is one."""

    def __init__(self, answer: Response | None = None) -> None:
        super().__init__()
        self.answer = answer


class Closing:
    """Lets a server end: connections that wait for their next request end at once, the others after their answer."""

    def __init__(self) -> None:
        self._idle: set[trio.CancelScope] = set()
        self.has_begun = False

    def begin(self) -> None:
        self.has_begun = True
        for scope in self._idle:
            scope.cancel()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """While a connection waits for its next request."""
        with trio.move_on_after(0 if self.has_begun else IDLE_SECONDS) as scope:
            self._idle.add(scope)
            try:
                yield
            finally:
                self._idle.discard(scope)


async def converse(
    stream: Stream, peer: Peer, routes: Routes, observe: Observe, closing: Closing | None = None
) -> None:
    """Answers requests until either end has had enough. Nothing that the peer does escapes but a broken stream's end."""
    closing = closing or Closing()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    for number in range(MAX_REQUESTS):
        name, bodiless = "other", False
        try:
            head, deadline = await _head(stream, connection, closing)
            bodiless = head.method == b"HEAD"  # (RFC 9110 9.3.2; h11 lets nobody send one)
            with trio.fail_at(deadline):
                name, handler = _route(head, routes)
                request = await _request(stream, connection, head, peer)
            answer = await handler(request)
            last = number + 1 == MAX_REQUESTS or closing.has_begun
        except _Close as close:
            if close.answer is None:
                return
            answer, last = close.answer, True
        except h11.RemoteProtocolError as fault:
            answer, last = error(fault.error_status_hint, "bad_request", f"no request: {fault}"), True
        except trio.TooSlowError:
            answer, last = error(408, "bad_request", f"no complete request within {REQUEST_SECONDS:g} s"), True
        observe(name, answer.status)
        with trio.move_on_after(REQUEST_SECONDS) as taken:
            await _send(stream, connection, answer, last=last, bodiless=bodiless or answer.status == 304)
        if taken.cancelled_caught or last or connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


async def _head(stream: Stream, connection: h11.Connection, closing: Closing) -> tuple[h11.Request, float]:
    """The next request's head, and by when the rest of it must be there: the time is counted from its first byte."""
    event: Any = connection.next_event()
    if event is h11.NEED_DATA:
        with closing.idle():
            connection.receive_data(await stream.receive_some())
            event = connection.next_event()
    with trio.fail_after(REQUEST_SECONDS) as scope:
        while event is h11.NEED_DATA:
            if not connection.trailing_data[0]:
                raise _Close  # idle: nobody waits for an answer
            connection.receive_data(await stream.receive_some())
            event = connection.next_event()
    if not isinstance(event, h11.Request):
        raise _Close
    return event, scope.deadline


def _route(head: h11.Request, routes: Routes) -> tuple[str, Handler]:
    path = head.target.partition(b"?")[0].decode("ascii", "replace")
    methods = routes.get(path)
    if methods is None:
        raise _Close(error(404, "not_found", "there is nothing here"))
    handler = methods.get(head.method.decode("ascii", "replace"))
    if handler is None:
        allowed = ", ".join(methods)
        raise _Close(error(405, "method_not_allowed", f"only {allowed} here", {"Allow": allowed}))
    return path, handler


async def _request(stream: Stream, connection: h11.Connection, head: h11.Request, peer: Peer) -> Request:
    headers = {name.decode("ascii"): value.decode("ascii", "replace") for name, value in head.headers}
    if headers.keys() >= {"content-length", "transfer-encoding"}:  # RFC 9112 6.1: may be an attempt at smuggling
        raise _Close(error(400, "bad_request", "a body has a length or chunks, not both"))
    length = headers.get("content-length", "0")
    if int(length) > MAX_BODY_BYTES:  # (h11 has seen to it that it is a number)
        raise _Close(error(413, "bad_request", f"a body has at most {MAX_BODY_BYTES} bytes"))
    if connection.they_are_waiting_for_100_continue:
        await stream.send_all(_bytes(connection, h11.InformationalResponse(status_code=100, headers=[])))
    body = b""
    while True:
        event: Any = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
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
        *(described if answer.status != 304 else []),  # (it would have to be the length of what a 200 brings)
        ("Cache-Control", "no-store"),
        *answer.headers.items(),
        *([("Connection", "close")] if last else []),
    ]
    if connection.our_state is h11.ERROR:
        raise BrokenStreamError("the connection is past answering")
    data = _bytes(connection, h11.Response(status_code=answer.status, headers=headers))
    if answer.body and not bodiless:
        data += _bytes(connection, h11.Data(data=answer.body))
    await stream.send_all(data + _bytes(connection, h11.EndOfMessage()))


def _bytes(connection: h11.Connection, event: Any) -> bytes:
    return connection.send(event) or b""
