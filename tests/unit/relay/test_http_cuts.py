"""Where a request ends is read strictly, and the same wherever the bytes are split."""

from __future__ import annotations

import pytest

from sidecar.relay import http_cuts
from sidecar.relay.http_cuts import MAX_FIELDS, MAX_HEAD, BadRequestError, Chunks, Length, cut_head

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def head(data: bytes) -> tuple[bytes | None, bytes]:
    held = bytearray(data)
    return cut_head(held), bytes(held)


def test_a_head_is_cut_where_it_ends() -> None:
    assert head(HEAD + b"more") == (HEAD, b"more")
    for size in range(len(HEAD)):
        assert head(HEAD[:size]) == (None, HEAD[:size])


def test_empty_lines_before_a_request_are_passed_over() -> None:
    assert head(b"\r\n\r\n" + HEAD) == (HEAD, b"")
    assert head(b"\r\n\r") == (None, b"\r")
    assert head(b"\r\n" * 1000) == (None, b"")


BAD_HEADS = {
    b"GET / HTTP/1.1\nHost: a\n\n": "bare CR or LF",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n": "bare CR or LF",
    b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n": "bare CR or LF",
    b"GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n": "next line",
    b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n": "next line",
    b"GET / HTTP/1.1\r\n Host: a\r\n\r\n": "next line",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n": "white space before a header's colon",
    b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n": "white space before a header's colon",
    b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n": "malformed",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n": "malformed",
    b"GET / HTTP/1.1\r\n: a\r\n\r\n": "malformed",
    b"GET / HTTP/1.1\r\nContent-Length: 1\r\nHost: a\r\ncontent-length: 1\r\n\r\n": "several Content-Lengths",
    b"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n": "several Content-Lengths",
    b"\x16\x03\x01": "not HTTP",
    b" GET": "not HTTP",
    b"\nGET": "not HTTP",
    b"\rG": "not HTTP",
}


@pytest.mark.parametrize("data", BAD_HEADS, ids=repr)
def test_a_head_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequestError, match=BAD_HEADS[data]) as refusal:
        head(data)
    assert refusal.value.status == 400


def test_a_head_is_bounded_in_bytes() -> None:
    fits = b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD - 23) + b"\r\n\r\n"
    assert len(fits) == MAX_HEAD
    assert head(fits) == (fits, b"")
    assert head(fits[:-1])[0] is None
    with pytest.raises(BadRequestError, match="bytes") as refusal:
        head(fits.replace(b"xx", b"xxx", 1))
    assert refusal.value.status == 431
    with pytest.raises(BadRequestError, match="bytes"):
        head(b"A" * MAX_HEAD)


def test_a_head_is_bounded_in_fields() -> None:
    def many(fields: int) -> bytes:
        return b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * fields + b"\r\n"

    assert head(many(MAX_FIELDS)) == (many(MAX_FIELDS), b"")
    with pytest.raises(BadRequestError, match="headers") as refusal:
        head(many(MAX_FIELDS + 1))
    assert refusal.value.status == 431


def test_a_body_of_a_length() -> None:
    body = Length(5)
    assert body.cut(bytearray(b"abc")) == 3
    assert not body.ended
    assert body.cut(bytearray(b"")) == 0
    assert body.cut(bytearray(b"defgh")) == 2
    assert body.ended
    assert body.cut(bytearray(b"next")) == 0


def chunks(data: bytes, step: int) -> tuple[int, bool]:
    """How many bytes belong to a body that arrives ``step`` bytes at a time, and whether it ended."""
    body, held, taken = Chunks(), bytearray(), 0
    for at in range(0, len(data), step):
        held += data[at : at + step]
        while (size := body.cut(held)) and not body.ended:
            del held[:size]
            taken += size
        taken += size
        if body.ended:
            break
        del held[:size]
    return taken, body.ended


CHUNKED = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n"
WITH_TRAILERS = b"1\r\na\r\n" * 9 + b"000\r\nOne: 1\r\nTwo: 2\r\n\r\n"


@pytest.mark.parametrize("data", [CHUNKED, WITH_TRAILERS, b"0\r\n\r\n"], ids=repr)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_body_in_chunks_ends_where_it_does(data: bytes, step: int) -> None:
    assert chunks(data + b"GET / HTTP/1.1\r\n", step) == (len(data), True)
    for size in range(len(data)):
        assert not chunks(data[:size], step)[1]


def test_trailers_are_bounded_in_bytes() -> None:
    fits = b"0\r\nX: " + b"y" * (MAX_HEAD - 7) + b"\r\n\r\n"
    assert chunks(fits, 1_000_000) == (len(fits), True)
    assert not chunks(fits[:-1], 1_000_000)[1]


BAD_CHUNKS = {
    b"5;a=b\r\nhello": "chunk's size",
    b"5 \r\nhello": "chunk's size",
    b"5\nhello": "chunk's size",
    b"5\rhello": "chunk's size",
    b"0x5\r\nhello": "chunk's size",
    b"+5\r\nhello": "chunk's size",
    b"-5\r\n": "chunk's size",
    b"\r\n": "chunk's size",
    b"1" * 17: "chunk's size",
    b"5\r\nhello5": "chunk's size",
    b"5\r\nhello\n": "chunk's size",
    b"5\r\nhello\r\r": "chunk's size",
    b"5\r\nhello\r\n;": "chunk's size",
    b"0\r\nX : y\r\n\r\n": "white space",
    b"0\r\nX: y\n\n": "bare CR or LF",
    b"0\r\nX: y\r\n z\r\n\r\n": "next line",
    b"0\r\n" + b"X: y\r\n" * (MAX_FIELDS + 2) + b"\r\n": "headers",
    b"0\r\nX: " + b"y" * MAX_HEAD: "trailers have more",
    b"0\r\nX: " + b"y" * (MAX_HEAD - 6) + b"\r\n\r\n": "trailers have more",
}


@pytest.mark.parametrize("data", BAD_CHUNKS, ids=lambda data: repr(data[:30]))
@pytest.mark.parametrize("step", [1, 1_000_000])
def test_chunks_of_another_form_are_refused(data: bytes, step: int) -> None:
    with pytest.raises(BadRequestError, match=BAD_CHUNKS[data]):
        chunks(data, step)


def test_one_cut_takes_few_chunks() -> None:
    held = bytearray(b"1\r\na\r\n" * 1000)
    assert 0 < Chunks().cut(held) <= 6 * http_cuts.CHUNKS_A_CUT
