"""The verdict frame: what is written is what is read, and nothing else is a yes."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import Reason, Refused
from sidecar.transport import verdict


@pytest.mark.parametrize("reason", list(Reason))
def test_a_frame_is_one_length_byte_and_a_word(reason: Reason) -> None:
    frame = verdict.encode(reason)
    assert verdict.word_length(frame[:1]) == len(frame) - 1 <= verdict.MAX_WORD
    assert frame[1:].decode() == reason.value


def test_ok_lets_in() -> None:
    verdict.admit(verdict.encode(Reason.OK)[1:])


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK])
def test_every_other_reason_refuses_and_is_quoted(reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        verdict.admit(verdict.encode(reason)[1:])
    assert (refused.value.reason, refused.value.peer_reason) == (Reason.PEER_REFUSED, reason.value)


@pytest.mark.parametrize("word", [b"OK", b"ok ", b" ok", b"ok\0", b"okk", b"o", b"yes", b"\xff\xfe", b"\x1b[2J", b"\n"])
def test_a_word_that_is_no_reason_refuses_and_is_escaped(word: bytes) -> None:
    with pytest.raises(Refused) as refused:
        verdict.admit(word)
    assert refused.value.reason is Reason.PEER_REFUSED
    assert refused.value.peer_reason == ascii(word.decode("latin-1"))
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize("length", [1, 2, verdict.MAX_WORD])
def test_a_length_that_may_be(length: int) -> None:
    assert verdict.word_length(bytes([length])) == length


@pytest.mark.parametrize("length", [0, verdict.MAX_WORD + 1, 0x48, 0xFF])
def test_a_length_that_may_not_be(length: int) -> None:
    with pytest.raises(Refused) as refused:
        verdict.word_length(bytes([length]))
    assert refused.value.reason is Reason.PEER_REFUSED


def test_only_refusals_about_the_callee_are_worth_another_try() -> None:
    assert {"connect_failed", "overloaded", "drained"} == verdict.RETRY_ELSEWHERE
