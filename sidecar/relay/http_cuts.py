"""Where a request ends and the next one begins, read strictly. Pure; fails closed.

How this works. Request smuggling lives on two readers that see different ends of one request. So a request is read twice
before a byte of it is forwarded: here, which cuts the stream into heads and bodies and takes the strictest form only, and by
h11 (:mod:`sidecar.relay.exchanges`), whose reading is what the app gets. Where the two differ, the request is refused.

Refused, although RFC 9112 lets a lenient server accept it: a line that ends with a bare LF, a bare CR, a header that goes on
in the next line (obs-fold, 5.2), white space before a colon (5.1), a second Content-Length (6.3), a Content-Length beside a
Transfer-Encoding (6.1), and anything behind a chunk's size (7.1.1).
"""

from __future__ import annotations

import re

MAX_HEAD = 32 * 1024
"""Bytes of a head, and of trailers. nginx takes 32 KiB, Node 16."""

MAX_FIELDS = 128
"""Of one head, or of trailers. h11 takes 5 to 10 µs for each."""

CHUNKS_A_CUT = 4
"""A body of one byte a chunk would else hold up every connection: each takes 10 µs."""


class BadRequestError(Exception):
    """What the caller sent is no request that may reach the app. ``status``: of the answer. The message completes "a request
    was refused: …", and holds nothing that the caller wrote."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_HEAD_END = re.compile(rb"\n\r?\n")  # as h11 finds it
_FIELDS = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\x00]*\r\n)*\r\n"
_HEAD = re.compile(rb"[^\r\n\x00]+\r\n" + _FIELDS)
_TRAILERS = re.compile(_FIELDS)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}\r?)?")
_NEXT_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n")
_NEXT_SIZE_BEGUN = re.compile(rb"(?:\r(?:\n(?:[0-9A-Fa-f]{1,16}\r?)?)?)?")
_LENGTHS = re.compile(rb"\ncontent-length:([^\r]*)", re.IGNORECASE)
_FAULTS = (
    (re.compile(rb"(?<!\r)\n|\r(?!\n)"), "a line ends with a bare CR or LF"),
    (re.compile(rb"\n[ \t]"), "a header goes on in the next line"),
    (re.compile(rb"(?:\A|\n)[^:\r\n]*[ \t]+:"), "there is white space before a header's colon"),
)


def cut_head(held: bytearray) -> bytes | None:
    """Takes the head of a request off the front of what has come; None if it is not complete. Raises
    :class:`BadRequestError`."""
    if (empty := _EMPTY_LINES.match(held)) is not None:  # some clients end a body with one (RFC 9112 2.2)
        size = empty.end()
        del empty, held[:size]  # the match holds the bytes, which could not change their size
    if held and held[0] <= 0x20 and held != b"\r":
        raise BadRequestError("it begins with no method: this is not HTTP")
    end = _HEAD_END.search(held, 0, MAX_HEAD)
    if end is None:
        if len(held) >= MAX_HEAD:
            raise BadRequestError(f"its head has more than {MAX_HEAD} bytes", 431)
        return None
    head = bytes(held[: end.end()])
    _check_lines(head, _HEAD)
    lengths = _LENGTHS.findall(head)
    if len(lengths) > 1 or any(b"," in one for one in lengths):
        raise BadRequestError("it has several Content-Lengths")
    del held[: len(head)]
    return head


def _check_lines(lines: bytes, form: re.Pattern[bytes]) -> None:
    if lines.count(b"\n") > MAX_FIELDS + 2:  # the first line and the last
        raise BadRequestError(f"it has more than {MAX_FIELDS} headers", 431)
    if not form.fullmatch(lines):
        raise BadRequestError(next((what for fault, what in _FAULTS if fault.search(lines)), "a header is malformed"))


class Length:
    """A body of ``left`` bytes. ``ended``: all of it was cut."""

    def __init__(self, left: int) -> None:
        self._left = left

    @property
    def ended(self) -> bool:
        return not self._left

    def cut(self, held: bytearray) -> int:
        """How many of the bytes in front belong to the body."""
        size = min(self._left, len(held))
        self._left -= size
        return size


class Chunks:
    """A body in chunks, with its trailers. ``ended``: all of it was cut."""

    def __init__(self) -> None:
        self._left = 0  # of the present chunk
        self._size, self._size_begun = _SIZE, _SIZE_BEGUN  # the line that is due
        self._in_trailers = self.ended = False

    def cut(self, held: bytearray) -> int:
        """How many of the bytes in front belong to the body, as far as it is understood: chunks may be cut, lines are whole.
        Raises :class:`BadRequestError`."""
        at = 0
        for _ in range(CHUNKS_A_CUT):
            if self._left:
                size = min(self._left, len(held) - at)
                at, self._left = at + size, self._left - size
                if self._left:
                    break
            if self._in_trailers:
                at = self._cut_trailers(held, at)
                break
            line = self._size.match(held, at)
            if line is None:
                if not self._size_begun.fullmatch(held, at):
                    raise BadRequestError("a chunk's size or end is malformed, or something is behind it")
                break
            self._size, self._size_begun = _NEXT_SIZE, _NEXT_SIZE_BEGUN
            at, self._left = line.end(), int(line[1], 16)
            self._in_trailers = not self._left
        return at

    def _cut_trailers(self, held: bytearray, at: int) -> int:
        found = _HEAD_END.search(held, at)
        end = at + 2 if held.startswith(b"\r\n", at) else None if found is None else found.end()
        if (len(held) if end is None else end) - at > MAX_HEAD:
            raise BadRequestError(f"its trailers have more than {MAX_HEAD} bytes", 431)
        if end is None:
            return at
        _check_lines(bytes(held[at:end]), _TRAILERS)
        self.ended = True
        return end
