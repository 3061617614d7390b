"""HTTP/1.1 requests with the caller's name in them: one connection's exchanges, one at a time. Pure; fails closed.

How this works. An app can rely on a header only if no caller can write it, in no spelling and by no trick with the framing.
So nothing that a caller sent is copied to the app. It is understood, and written anew::

    caller ── cut (http_cuts) ──> h11 as a server ── events ──> h11 as a client ──> app
    caller <───────────────────── h11 as a server <── events ── h11 as a client <── app

The invariants:

* What is not understood is not passed on: a request with a fault is answered with 400 or its like, or ends its connection if
  it is under way. The app sees no byte behind the fault, and no clean end.
* A request is forwarded when the answer to the one before it has ended, and not before: its bytes wait. So an app that
  finds the end of a request elsewhere than we do still answers one request at a time, and to its caller.
* Bytes are passed on raw only after a 101 to a request that asked for it, or a 2xx to a CONNECT that has no body: with one
  it is of an app that takes CONNECT for a request as any other, and would take the next bytes for one too. HTTP/2 would be
  raw: the offer ``Upgrade: h2c`` is withdrawn, as any server may leave it, and its preface is refused.
* :data:`HEADER` is removed in every spelling that some app reads as it: in any case, and whatever stands for its hyphens
  (CGI's ``_``, and what lighttpd makes one of), from heads and trailers. A caller cannot have it removed either: no
  ``Connection`` nominates it (RFC 9110 7.6.1). It is added if there is an identity to tell.
* Memory is bounded: of a caller at most :data:`MAX_HELD` and one read wait; bodies pass through.
* The work of one step is bounded (:data:`EVENTS`): the rest is done when the others have had their turn.

An HTTP/1.0 request becomes one of HTTP/1.1 with ``Connection: close``, and its answer is one that an old client reads. An
answer that its app ends by closing gets chunks, where the caller knows these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import h11

from sidecar.relay.http_cuts import MAX_HEAD, BadRequestError, Chunks, Length, cut_head

HEADER = b"X-Forwarded-Client-Cert"

MAX_HELD = 64 * 1024
"""Bytes of a caller's that wait for their turn. While there are as many, the caller is not read."""

MAX_UNWANTED = 1024 * 1024
"""Bytes that a caller may send behind its last request: they are dropped."""

MAX_ANSWER_HEAD = 64 * 1024
MAX_ANSWER_FIELDS = 512
EVENTS = 16
"""Of h11, a step: each takes 5 to 10 µs, a head 100 to 300."""

_SPELLING = bytes(ord(chr(b).lower()) if chr(b).isalnum() and b < 0x80 else ord("-") for b in range(256))
_NAME = HEADER.lower()
_FRAMING = (b"content-length", b"transfer-encoding")
_LISTS = (b"connection", b"trailer", b"proxy-connection")
_PREFACE = b"PRI * HTTP/2"
_BODILESS = (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
"""Methods whose body means nothing (RFC 9110 9.3), so that some apps do not read it."""

_OTHER_HTTP = re.compile(rb"(?i)h2|http|tls")
"""Upgrades behind which there are requests again: h2c and its drafts, HTTP/2.0, TLS/1.0 (RFC 2817)."""

_HEAD_END = re.compile(rb"\n\r?\n")
_NO_TURN = (h11.IDLE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)
"""A caller's states in which what it has sent is no request that waits: it is incomplete, or comes too late."""

_UNDERWAY = (h11.SEND_RESPONSE, h11.SEND_BODY)

Fields = list[tuple[bytes, bytes]]


class BadAnswerError(Exception):
    """The app's answer cannot be read, or ended too early. The message completes "the app …"."""


class Exchanges:
    """One connection's. Bytes go in by :meth:`receive` and :meth:`answer`, and come out at ``to_app`` and ``to_caller``,
    which their owner empties. ``raw``: both directions are passed on as they are, behind what these hold. ``over``: no
    further request is taken. ``closing``: our direction to the caller has ended."""

    def __init__(self, element: bytes | None, host: bytes) -> None:
        """``element``: the header's value; None: nobody is named. ``host``: for requests that name none (HTTP/1.0)."""
        self._caller = h11.Connection(h11.SERVER, MAX_HEAD)
        self._app = h11.Connection(h11.CLIENT, MAX_ANSWER_HEAD)
        self._element, self._host = element, host
        self._held = bytearray()
        self._body: Length | Chunks | None = None  # of the request that is being received
        self._method = b""
        self._old = False  # the request is of HTTP/1.0
        self._closes = False  # the app was told that the request is the last
        self._unwanted = 0
        self.to_app, self.to_caller = bytearray(), bytearray()
        self.raw = self.over = self.closing = False

    # -- from the caller to the app ------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the caller is not to be read: what it has sent waits for an answer to end."""
        return len(self._held) >= MAX_HELD

    @property
    def holds(self) -> bool:
        """Whether bytes of the caller's wait that may be forwarded later, though it sends no more."""
        waits = self._body is None and self._caller.their_state not in _NO_TURN
        return bool(self._held) and (self.raw or waits)

    def receive(self, data: bytes | memoryview) -> None:
        """The caller has sent this."""
        self._held += data

    def advance(self) -> bool:
        """Forwards what may be forwarded now. Returns whether more can be at once. Raises :class:`BadRequestError`."""
        try:
            for _ in range(EVENTS):
                if not self._go_on():
                    return False
        except h11.RemoteProtocolError as fault:
            raise BadRequestError(_said(fault), fault.error_status_hint) from fault
        except h11.LocalProtocolError as fault:
            raise BadRequestError(_said(fault)) from fault
        return True

    def _go_on(self) -> bool:
        """One step; returns whether another one may follow."""
        if self.raw:
            self.to_app += self._held
            self._held.clear()
            return False
        if self._body is not None:
            return self._forward_body(self._body)
        if self.over:
            self._unwanted += len(self._held)
            self._held.clear()
            if self._unwanted > MAX_UNWANTED:
                raise BadRequestError("more than its last request was sent")
            return False
        return self._caller.their_state is h11.IDLE and self._forward_head()

    def _forward_head(self) -> bool:
        if self._held.startswith(_PREFACE):
            raise BadRequestError("it is HTTP/2, and this port is HTTP/1.1 alone (identity_header)", 505)
        head = cut_head(self._held)
        if head is None:
            return False
        self._method = b""
        self._caller.receive_data(head)
        request = self._caller.next_event()
        if not isinstance(request, h11.Request):
            raise BadRequestError("its head is incomplete")
        self._method, self._old = request.method, request.http_version == b"1.0"
        if request.http_version not in (b"1.0", b"1.1"):
            raise BadRequestError("its version is not HTTP/1.1", 505)
        framing = {name: value for name, value in request.headers if name in _FRAMING}
        if len(framing) > 1:
            raise BadRequestError("it has a Content-Length and a Transfer-Encoding")
        if b"transfer-encoding" in framing:
            if self._old:
                raise BadRequestError("it is of HTTP/1.0 and has a Transfer-Encoding")
            self._body = Chunks()
        else:
            self._body = Length(int(framing.get(b"content-length", b"0")))
        self._closes = request.method in _BODILESS and not self._body.ended
        headers = self._told(request)
        self.to_app += self._app.send(h11.Request(method=request.method, target=request.target, headers=headers))
        return True

    def _told(self, request: h11.Request) -> Fields:
        """The headers that the app gets."""
        leave = {_NAME, b"http2-settings"}
        offers = [offer for offer in _options(request, b"upgrade") if not _OTHER_HTTP.match(offer)]
        if self._old:
            offers = []  # RFC 9110 7.8
            leave |= {b"expect", b"keep-alive", b"close"}
        if not offers:
            leave.add(b"upgrade")
        headers = _without(request.headers.raw_items(), leave)
        if offers:
            headers = [field for field in headers if field[0].lower() != b"upgrade"] + [
                (b"Upgrade", b", ".join(offers))
            ]
        if self._old or self._closes:
            headers.append((b"Connection", b"close"))
        if not any(name.lower() == b"host" for name, _ in headers):  # of HTTP/1.0: h11 refuses 1.1 without one
            headers.append((b"Host", self._host))
        if self._element is not None:
            headers.append((HEADER, self._element))
        return headers

    def _forward_body(self, body: Length | Chunks) -> bool:
        size = body.cut(self._held)
        if size:
            self._caller.receive_data(bytes(memoryview(self._held)[:size]))
            del self._held[:size]
        while isinstance(event := self._caller.next_event(), h11.Data):
            _pass_on(self._app, event, self.to_app)
        if isinstance(event, h11.EndOfMessage) != body.ended:
            raise BadRequestError("its end is ambiguous")
        if not isinstance(event, h11.EndOfMessage):
            return bool(size)
        self._body = None
        self.to_app += self._app.send(h11.EndOfMessage(headers=_trailers(event)))
        self._end_exchange()
        return True

    # -- from the app to the caller ------------------------------------------------------------------------------------

    def answer(self, data: bytes | memoryview) -> None:
        """The app has sent this."""
        if self._app.their_state in _UNDERWAY:
            self._app.receive_data(bytes(data))
        elif not self.closing:  # mostly a 408 before an end: nobody may take it for the answer to what comes next
            self.over = self.closing = True

    def advance_answer(self) -> bool:
        """Passes on what the app has sent. Returns whether more of it is here. Raises :class:`BadAnswerError`."""
        try:
            for _ in range(EVENTS):
                if not self._answer_on():
                    return False
        except h11.RemoteProtocolError as fault:
            raise BadAnswerError(f"sent no answer of HTTP/1.1: {_said(fault)}") from fault
        except h11.LocalProtocolError as fault:
            raise BadAnswerError(f"sent an answer that does not fit its request: {_said(fault)}") from fault
        return True

    def _answer_on(self) -> bool:
        app, caller = self._app, self._caller
        if app.their_state is h11.SEND_RESPONSE:
            _check_answer(app.trailing_data[0])
        elif app.their_state is not h11.SEND_BODY:
            if app.trailing_data[0] and not self.closing:
                self.over = self.closing = True  # as in `answer`
            return False
        event = app.next_event()
        if isinstance(event, h11.Data):
            _pass_on(caller, event, self.to_caller)
        elif isinstance(event, h11.InformationalResponse):
            self._inform(event)
            return not self.raw
        elif isinstance(event, h11.Response):
            self._check_switch(event)
            headers: Any = event.headers
            if event.http_version < b"1.1" or self._closes:
                headers = [*_without(event.headers.raw_items(), {b"keep-alive"}), (b"Connection", b"close")]
            response = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
            self.to_caller += caller.send(response)
            if app.states[h11.SERVER] is h11.SWITCHED_PROTOCOL:  # a 200 to a CONNECT
                self._go_raw()
                return False
        elif isinstance(event, h11.EndOfMessage):
            self.to_caller += caller.send(h11.EndOfMessage(headers=[] if self._old else event.headers))
            self._end_exchange()
        else:
            return False
        return True

    def _inform(self, event: h11.InformationalResponse) -> None:
        self._check_switch(event)
        if not self._old:  # RFC 9110 15.2
            self.to_caller += self._caller.send(
                h11.InformationalResponse(status_code=event.status_code, headers=event.headers, reason=event.reason)
            )
        if event.status_code == 101:
            self._go_raw()

    def _check_switch(self, answer: h11.Response | h11.InformationalResponse) -> None:
        ours, theirs = self._app.our_state, self._app.their_state
        if theirs is h11.SWITCHED_PROTOCOL and ours is not h11.SWITCHED_PROTOCOL:
            raise BadAnswerError("switched protocols before it had the whole request")
        framed = any(name in _FRAMING for name, _ in answer.headers)
        if theirs is h11.SWITCHED_PROTOCOL and answer.status_code != 101 and (framed or answer.status_code != 200):
            # RFC 9110 9.3.6. An app that takes CONNECT for any other method may answer 204, and reads on. If it answers 200
            # without a length, it ends its answer by closing.
            raise BadAnswerError("answered a CONNECT as any other request")

    def _go_raw(self) -> None:
        self.raw = True
        self.to_caller += self._app.trailing_data[0]

    def end_answer(self) -> None:
        """The app sends no more. Raises :class:`BadAnswerError` if its answer is incomplete."""
        state = self._app.their_state
        if state is h11.SEND_RESPONSE and self._app.trailing_data[0]:
            raise BadAnswerError("ended within the head of its answer")
        if state is h11.SEND_BODY:
            self._app.receive_data(b"")
            try:
                self._answer_on()
            except h11.ProtocolError:
                raise BadAnswerError("ended within its answer") from None
        self.over = self.closing = True

    def _end_exchange(self) -> None:
        """One side of an exchange is complete. If both are, the next one begins; if there is none, our direction ends."""
        app, caller = self._app, self._caller
        if {app.our_state, app.their_state, caller.our_state, caller.their_state} == {h11.DONE}:
            app.start_next_cycle()
            caller.start_next_cycle()
        elif h11.MUST_CLOSE in (caller.our_state, app.their_state):
            self.over = self.closing = True

    # -- faults --------------------------------------------------------------------------------------------------------

    def refuse(self, status: int, sentence: str) -> bool:
        """Answers with an error and ends our direction. Returns False if an answer has begun: then it can only be cut."""
        caller = self._caller
        if self.closing or caller.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        body = sentence.encode("ascii", "replace") + b"\n"
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        reason = HTTPStatus(status).phrase.encode()
        self.to_caller += caller.send(h11.Response(status_code=status, headers=headers, reason=reason))
        if self._method != b"HEAD":
            self.to_caller += caller.send(h11.Data(data=body))
        self.over = self.closing = True
        return True


def _pass_on(to: h11.Connection, event: h11.Data, out: bytearray) -> None:
    for part in to.send_with_data_passthrough(h11.Data(data=event.data)) or ():
        out += part


def _trailers(event: h11.EndOfMessage) -> Fields:
    if any(name in _FRAMING for name, _ in event.headers):
        raise BadRequestError("its trailers have a Content-Length or a Transfer-Encoding")
    return _without(event.headers.raw_items(), {_NAME})


def _without(fields: Iterable[tuple[bytes, bytes]], leave: set[bytes]) -> Fields:
    """The fields without those of ``leave``, and without these names where a field lists names. Raises
    :class:`BadRequestError` at a field that only some readers would take for the body's length."""
    kept = []
    for name, value in fields:
        spelled = name.translate(_SPELLING)
        if spelled in leave:
            continue
        if spelled in _FRAMING and name.lower() != spelled:
            raise BadRequestError("a header's name is one of the framing's, in another spelling")
        if spelled in _LISTS:
            names = [one for one in _split(value) if one.translate(_SPELLING) not in leave]
            if not names:
                continue
            value = b", ".join(names)
        kept.append((name, value))
    return kept


def _options(request: h11.Request, name: bytes) -> list[bytes]:
    return [option for found, value in request.headers if found == name for option in _split(value)]


def _split(value: bytes) -> list[bytes]:
    return [one for one in (part.strip() for part in value.split(b",")) if one]


def _check_answer(received: bytes) -> None:
    """Raises :class:`BadAnswerError` at what cannot become the head of an answer."""
    if received[:5] != b"HTTP/"[: len(received)]:
        raise BadAnswerError("sent no answer of HTTP/1.1")
    end = _HEAD_END.search(received)
    if received.count(b"\n", 0, end.end() if end else len(received)) > MAX_ANSWER_FIELDS + 2:
        raise BadAnswerError(f"sent an answer with more than {MAX_ANSWER_FIELDS} headers")


def _said(fault: h11.ProtocolError) -> str:
    """h11's words, without the bytes that it met."""
    return re.split(r": (?:bytearray|b['\"])|\(received", str(fault))[0].strip()
