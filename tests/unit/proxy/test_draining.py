"""Requests in flight have the whole drain time, streams two seconds, and idle connections half a second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sidecar.proxy.draining import IDLE_SECONDS, STREAM_SECONDS, Look, Phase

IN_FLIGHT, ANSWERING, STREAMING, IDLE = Phase


@dataclass
class Carried:
    to_app: int = 0
    from_app: int = 0
    app_was_last: bool = False
    is_stuck: bool = False


ASKED = {"inbound": Carried(to_app=9), "outbound": Carried(from_app=9, app_was_last=True)}
ANSWERED = {
    "inbound": Carried(to_app=9, from_app=9, app_was_last=True),
    "outbound": Carried(to_app=9, from_app=9, app_was_last=False),
}
BOTH = pytest.mark.parametrize("direction", ["inbound", "outbound"])


def look(direction: str) -> Look:
    return Look(callee_is_app=direction == "inbound")


@BOTH
def test_a_request_is_in_flight_for_as_long_as_nothing_comes_back(direction: str) -> None:
    one = look(direction)
    assert [one.again(ASKED[direction], now) for now in (0, 1, 100)] == [IN_FLIGHT] * 3


@BOTH
def test_it_is_idle_half_a_second_after_the_answer(direction: str) -> None:
    one = look(direction)
    assert one.again(ASKED[direction], 0) is IN_FLIGHT
    assert one.again(ANSWERED[direction], 5) is ANSWERING
    assert one.again(ANSWERED[direction], 5 + IDLE_SECONDS - 0.01) is ANSWERING
    assert one.again(ANSWERED[direction], 5 + IDLE_SECONDS) is IDLE


@BOTH
def test_it_is_idle_half_a_second_after_nothing_at_all(direction: str) -> None:
    one = look(direction)
    assert one.again(Carried(), 3) is ANSWERING
    assert one.again(Carried(), 3 + IDLE_SECONDS) is IDLE


def test_a_stream_has_two_seconds_and_an_answer_two_from_its_first_byte() -> None:
    one, carried = look("inbound"), ANSWERED["inbound"]
    phases = []
    for tenth in range(30):
        phases.append(one.again(carried, tenth / 10))
        carried = Carried(carried.to_app, carried.from_app + 1, carried.app_was_last)
    assert phases == [ANSWERING] * round(STREAM_SECONDS * 10) + [STREAMING] * 10
    assert one.again(Carried(99, 0, app_was_last=False), 3) is IN_FLIGHT
    assert one.again(Carried(99, 1, app_was_last=True), 7) is ANSWERING
    assert one.again(Carried(99, 2, app_was_last=True), 7 + STREAM_SECONDS) is STREAMING


def test_an_answer_that_its_caller_reads_slowly_is_not_idle() -> None:
    one, stuck = look("inbound"), Carried(9, 9, app_was_last=True, is_stuck=True)
    assert one.again(stuck, 0) is ANSWERING
    assert one.again(stuck, 1) is ANSWERING
    assert one.again(Carried(9, 9, app_was_last=True), 1) is IDLE


def test_a_handshake_and_a_close_have_two_seconds() -> None:
    one = look("inbound")
    assert one.again(None, 0) is ANSWERING
    assert one.again(None, STREAM_SECONDS) is STREAMING
    assert one.again(ASKED["inbound"], 3) is IN_FLIGHT
    assert one.again(None, 4) is ANSWERING
