"""Looking at a mesh for long: lines on one connection, and whatever answers there is not believed."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certs.protocol import looking
from certs.protocol.looking import SOCKET, Looker, looks, while_read
from tests.beds.processes import clean_environment

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
NOTHING = b'{"reports": []}\n'
NEWS = b'{"reports": [1]}\n'


@contextmanager
def answering(directory: Path, *connections: bytes) -> Iterator[list[bytes]]:
    """Something at the CA's socket: what it answers on each connection in turn, which it then closes."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / SOCKET))
        listener.listen()
        listener.settimeout(20)

        def answer() -> None:
            for data in connections:
                sock, _ = listener.accept()
                with sock:
                    asked.append(sock.recv(1000))
                    sock.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield asked
        thread.join()
    (directory / SOCKET).unlink()


def test_one_question_for_many_looks(tmp_path: Path) -> None:
    with answering(tmp_path, HEAD + NOTHING + NEWS) as asked:
        looker = Looker(tmp_path)
        assert [looker.look(), looker.look()] == [{"reports": []}, {"reports": [1]}]
        with pytest.raises(ConnectionError, match="it closed the connection"):
            looker.look()
    assert asked == [b"GET /follow HTTP/1.0\r\nHost: localhost\r\n\r\n"]


def test_a_ca_that_was_restarted_is_asked_anew(tmp_path: Path) -> None:
    with answering(tmp_path, HEAD + NOTHING, HEAD + NEWS):
        found = looks(tmp_path, lambda _socks, _seconds: None)
        assert next(found) == {"reports": []}
        assert "it closed the connection" in next(found)["error"]
        assert next(found) == {"reports": [1]}
        found.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 X\r\n\r\n" + NOTHING,
        b"HTTP/1.1 403\r\n\r\n" + NOTHING,
        b"nonsense\r\n\r\n" + NOTHING,
        HEAD + b"[]\n",
        HEAD + b"{}\n",
        HEAD + b'{"reports": 1}\n',
        HEAD + b"none\n",
        HEAD + b"\xff\n",
        HEAD + b"[" * 100_000 + b"\n",
        b"x" * 10_000,
    ],
)
def test_what_is_no_ca(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, answer), pytest.raises(ValueError, match="what answers there"):
        Looker(tmp_path).look()


@pytest.mark.parametrize("answer", [b"", HEAD, HEAD[:-1], HEAD + NOTHING[:-1]])
def test_what_is_cut_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path, answer), pytest.raises(ConnectionError, match="it closed the connection"):
        Looker(tmp_path).look()


def test_a_line_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MAX_ANSWER_BYTES", 10)
    with answering(tmp_path, HEAD + b"{" * 20), pytest.raises(ValueError, match="does not end its line"):
        Looker(tmp_path).look()


def test_no_ca_is_told_and_asked_again(tmp_path: Path) -> None:
    waited: list[float] = []

    def wait(socks: list[socket.socket], seconds: float) -> None:
        if not socks:
            waited.append(seconds)

    found = looks(tmp_path, wait)
    assert (
        f"no CA answers there (No such file or directory): is `certs serve {tmp_path}` running?" in next(found)["error"]
    )
    with answering(tmp_path, HEAD + NOTHING):
        assert next(found) == {"reports": []}
        assert waited == [looking.SECONDS]
        assert "no CA answers" in next(found)["error"]
    found.close()  # type: ignore[attr-defined]


def test_a_look_ends_when_another_thread_closes_it(tmp_path: Path) -> None:
    begun = threading.Event()
    looker = Looker(tmp_path, lambda _socks, _seconds: begun.set())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()  # it never answers
        thread = threading.Thread(target=looker.look_or_say, args=(tmp_path,))
        thread.start()
        assert begun.wait(20)
        looker.close()
        thread.join(2)
        assert not thread.is_alive()


def test_a_process_with_a_thousand_connections_can_look() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 2000)) as high:
            looking._wait([high], 0)
            theirs.send(b"x")
            looking._wait([high], 20)
            assert high.recv(1) == b"x"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_it_waits_no_longer_than_whoever_reads_is_there() -> None:
    read, write = os.pipe()
    try:
        wait = while_read(read)
        wait([], 0)
        os.write(write, b"typed")
        wait([], 0)
        os.close(write)
        with pytest.raises(KeyboardInterrupt):
            wait([], 20)
    finally:
        os.close(read)


def test_a_terminal_or_no_stdin_ends_nothing() -> None:
    with Path(os.devnull).open() as nothing:
        while_read(nothing.fileno())([], 0)
    while_read(1_000_000)([], 0)


def test_as_a_program_it_prints_lines_until_its_stdin_ends(tmp_path: Path) -> None:
    with answering(tmp_path, HEAD + NEWS):
        command = [sys.executable, "-m", "certs.protocol.looking", str(tmp_path)]
        program = subprocess.Popen(command, stdin=-1, stdout=-1, env=clean_environment())
        assert program.stdin is not None
        assert program.stdout is not None
        assert json.loads(program.stdout.readline()) == {"reports": [1]}
        assert "no CA answers there" in json.loads(program.stdout.readline())["error"]
        program.stdin.close()
        assert program.wait(20) == 0
        program.stdout.close()


def test_as_a_program_it_loads_little() -> None:
    """Its memory is what the dashboard costs in the CA's container where the socket is out of reach."""
    text = "import sys, certs.protocol.looking; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert not {"trio", "click", "cryptography", "sqlalchemy", "http", "email"} & set(done.stdout.split())
