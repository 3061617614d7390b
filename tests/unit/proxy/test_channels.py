"""When an idle channel is taken, kept or ended, by what is in force; whole connections: ``integration/proxy``."""

from __future__ import annotations

import socket

from sidecar.proxy import channels
from tests.beds.relay import tcp_pair


def test_an_idle_channel_is_silent_and_whatever_has_come_says_that_it_is_over() -> None:
    with tcp_pair() as (here, there):
        assert channels._is_silent(here)
        there.send(b"x")
        assert not channels._is_silent(here)
    with tcp_pair() as (here, there):
        there.shutdown(socket.SHUT_WR)
        assert not channels._is_silent(here)
    with tcp_pair() as (here, there):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        there.close()
        assert not channels._is_silent(here)


def test_the_callee_keeps_one_longer_than_the_caller() -> None:
    assert channels.CALLEE_IDLE_SECONDS >= 2 * channels.CALLER_IDLE_SECONDS


def test_a_key_encrypts_no_more_than_aes_gcm_may() -> None:
    assert channels.MAX_RECORDS <= 2**24.5
