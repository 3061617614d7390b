"""The demo's stand-in for Redis, and the file that it downloads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from sidecar.demo.apps import FILE_BYTES, PIECE, Redis, _Server
from tests.beds.patience import PATIENCE


@pytest.fixture
def redis() -> Iterator[socket.socket]:
    with _Server(("127.0.0.1", 0), Redis) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=PATIENCE) as client:
            yield client
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("command", "answer"),
    [(b"PING", b"+PONG\r\n"), (b"GET x", b"-ERR this stand-in supports PING and INCR only\r\n"), (b"INCR", b"-ERR")],
)
def test_the_stand_in_answers_as_redis_would(redis: socket.socket, command: bytes, answer: bytes) -> None:
    redis.sendall(command + b"\r\n")
    assert redis.recv(100).startswith(answer)


def test_the_stand_in_counts(redis: socket.socket) -> None:
    for number in (1, 2):
        redis.sendall(b"INCR a-counter-of-this-test\r\n")
        assert redis.recv(100) == b":%d\r\n" % number


def test_the_file_is_made_of_whole_pieces() -> None:
    assert FILE_BYTES % len(PIECE) == 0
    assert FILE_BYTES // 4 % len(PIECE) == 0
