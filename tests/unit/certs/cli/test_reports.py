"""``certs reports``: what the sidecars said, for people and for programs; and whoever answers there is not believed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from certs.protocol.looking import SOCKET
from certs.service.reports import Kept
from tests.commands import ran, refused

NOW = datetime(2026, 11, 30, 6, tzinfo=UTC)
REPORT: dict[str, Any] = {
    "version": 1, "healthy": True, "policy": "abc", "bundle": 3, "certificate": {"not_after": "2026-11-30T07:00:00Z"},
    "refusals": [{"reason": "policy_denied", "count": 3, "last": "2026-11-30T05:59:00Z", "message": "db may not\x1b[2J"}],
}  # fmt: skip


def entry(late: int = 0, **changes: Any) -> dict[str, Any]:
    text = json.dumps({**REPORT, **changes}).encode()
    return Kept("spiffe://shop.internal/api", "ab" * 16, "10.0.0.1:1", "1f", NOW, text).to_dict(
        NOW.replace(minute=late)
    )


@contextmanager
def answering(directory: Path, body: bytes, status: int = 200) -> Iterator[None]:
    """Something at the CA's socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / SOCKET))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 %d X\r\n\r\n" % status + body)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def told(directory: Path, *entries: dict[str, Any]) -> str:
    with answering(directory, json.dumps({"reports": entries}).encode()):
        return ran("reports", str(directory))


def test_who_is_well_in_which_version_and_what_it_refused(tmp_path: Path) -> None:
    assert told(tmp_path, entry()).splitlines() == [
        "sidecars that report: 1",
        "spiffe://shop.internal/api  abababab  well  certificate until 2026-11-30T07:00:00Z, policy abc, trust bundle 3",
        "  refused 3 times, last at 2026-11-30T05:59:00Z: policy_denied: db may not\\x1b[2J",
    ]


def test_who_is_not_well_and_who_is_silent(tmp_path: Path) -> None:
    text = told(tmp_path, entry(healthy=False, unwell=["no list"], reload_refused=["mesh.yaml:3: no"]), entry(30))
    assert "  NOT WELL  " in text
    assert "  NOT WELL: no list\n" in text
    assert "  REFUSED at the last reload: mesh.yaml:3: no\n" in text
    assert "  SILENT since 2026-11-30T06:00:00Z (well then)  " in text


def test_for_programs(tmp_path: Path) -> None:
    with answering(tmp_path, json.dumps({"reports": [entry()]}).encode()):
        assert json.loads(ran("reports", str(tmp_path), "--json")) == {"reports": [entry()]}


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"[]", 200), (b"{}", 200), (b"nothing", 200), (b'{"reports": []}', 500), (b'{"reports": 1}', 200)],
)
def test_what_is_no_ca(tmp_path: Path, body: bytes, status: int) -> None:
    with answering(tmp_path, body, status):
        assert "no CA answers there" in refused("reports", str(tmp_path))


def test_no_ca_at_all(tmp_path: Path) -> None:
    assert f"is `certs serve {tmp_path}` running?" in refused("reports", str(tmp_path))
