"""The demo's story: its checks fail where they must, and its policy means what its acts say."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from sidecar.demo import story
from sidecar.demo.apps import FILE_BYTES, PIECE
from sidecar.demo.stage import StoryError
from sidecar.policy.decide import decide
from sidecar.policy.explain import run_tests
from sidecar.policy.mesh import parse_mesh

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the demo's file, or what a test makes of it."""

    pieces = [PIECE] * (FILE_BYTES // len(PIECE))

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(FILE_BYTES))
        self.end_headers()
        for piece in self.pieces:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_whole_download_is_clean_and_pauses_once(port: int) -> None:
    pauses: list[None] = []
    assert story._download(port, lambda: pauses.append(None)) == (FILE_BYTES, True)
    assert len(pauses) == 1


def test_a_download_that_is_cut_is_not_clean(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "pieces", [PIECE] * 3)
    assert story._download(port) == (3 * len(PIECE), False)


def test_an_altered_byte_fails_the_story(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = bytes([PIECE[0] ^ 1]) + PIECE[1:]
    monkeypatch.setattr(Handler, "pieces", [PIECE, altered, PIECE])
    with pytest.raises(StoryError, match="altered byte"):
        story._download(port)


def test_the_policy_lets_just_those_in_whom_the_story_tells_of() -> None:
    mesh = parse_mesh(story.MESH, "mesh.yaml")
    assert all(result.passed for result in run_tests(mesh, NOW))
    assert decide(mesh, mesh.identity("web"), "api", "http", NOW).allowed
    assert not decide(mesh, mesh.identity("reporting"), "api", "http", NOW).allowed
    lies = parse_mesh(story.LIES, "lies.yaml")
    assert decide(lies, lies.identity("web"), "reporting", "http", NOW).allowed
