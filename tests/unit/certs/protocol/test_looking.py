"""Looking at a mesh for long: one connection is kept, and whatever answers there is not believed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from certs.protocol.looking import SOCKET, Looker, looks

WELL = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"reports": []}'


@contextmanager
def answering(directory: Path, *connections: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Something at the CA's socket: what it answers on each connection in turn, which it then closes."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / SOCKET))
        listener.listen()
        listener.settimeout(20)

        def answer() -> None:
            for answers in connections:
                sock, _ = listener.accept()
                with sock:
                    for data in answers:
                        asked.append(sock.recv(1000))
                        sock.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield asked
        thread.join()


def test_one_connection_for_many_looks(tmp_path: Path) -> None:
    with answering(tmp_path, [WELL, WELL]) as asked:
        looker = Looker(tmp_path)
        assert [looker.look(), looker.look()] == [{"reports": []}, {"reports": []}]
        looker.close()
    assert all(one.startswith(b"GET /mesh HTTP/1.1\r\n") and b"\r\nHost: localhost\r\n" in one for one in asked)


def test_a_connection_that_was_closed_meanwhile_is_made_anew(tmp_path: Path) -> None:
    with answering(tmp_path, [WELL], [WELL]):
        looker = Looker(tmp_path)
        assert [looker.look(), looker.look()] == [{"reports": []}, {"reports": []}]
        looker.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"reports\": 1}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_ca(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, [answer]):
        looker = Looker(tmp_path)
        with pytest.raises(ValueError, match=r"."):
            looker.look()
        looker.close()


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"])
def test_what_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, [answer]):
        looker = Looker(tmp_path)
        with pytest.raises((OSError, ValueError), match=r"."):
            looker.look()
        looker.close()


def test_an_answer_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.protocol.looking.MAX_ANSWER_BYTES", 10)
    with answering(tmp_path, [WELL]), pytest.raises(ValueError, match="no CA of this version"):
        Looker(tmp_path).look()


def test_no_ca_is_told_and_asked_again(tmp_path: Path) -> None:
    waited: list[float] = []
    found = looks(tmp_path, 7, waited.append)
    assert (
        f"no CA answers there (No such file or directory): is `certs serve {tmp_path}` running?" in next(found)["error"]
    )
    with answering(tmp_path, [WELL]):
        assert next(found) == {"reports": []}
    assert "no CA answers" in next(found)["error"]
    assert waited == [7, 7]
    found.close()  # type: ignore[attr-defined]
