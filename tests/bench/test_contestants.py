"""Every contestant's configuration states the conditions; the proof tries them, this says which line is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench import comparison
from tests.bench.comparison import CONTESTANTS, GROUPS, TOOLS, Settings, missing_packages
from tests.bench.contestants import X25519, Certificates, Contestant, Missing, Route, Side
from tests.bench.errors import MissingError
from tests.bench.haproxy import uri_name
from tests.bench.ours import Sidecar

ROUTES = (Route("http", 10001, 10009, 10002, 9000), Route("bulk", 10003, 10004, 10004, 9001))
CERTIFICATES = Certificates(Path("/certificates"), {"web": "aa11", "api": "bb22", "batch": "cc33"})
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


def written(directory: Path, name: str, side: Side, group: str = X25519) -> str:
    BY_NAME[name].prepare(directory, side, ROUTES, CERTIFICATES, group)
    return "\n".join(path.read_text() for path in sorted(directory.iterdir()))


@pytest.mark.parametrize(
    ("name", "side", "lines"),
    [
        ("sidecar", "caller", ["Groups = X25519", '"127.0.0.1:10009"', "log_format: json"]),
        ("sidecar", "callee", ["Groups = X25519", 'listen: "127.0.0.1:10002"', "from: web, to: api"]),
        ("envoy", "caller", ['"max_session_keys": 0', "TLSv1_3", '"X25519"', "spiffe://mesh.local/api", "access_log"]),
        (
            "envoy",
            "callee",
            [
                '"require_client_certificate": true',
                '"disable_stateless_session_resumption": true',
                '"disable_stateful_session_resumption": true',
                "spiffe://mesh.local/web",
            ],
        ),
        (
            "haproxy",
            "caller",
            ["nbthread 1", "verify required verifyhost api", "no-ssl-reuse", "ciphersuites TLS_AES_128_GCM_SHA256"],
        ),
        (
            "haproxy",
            "callee",
            [
                "tune.ssl.cachesize 0",
                "verify required",
                "no-tls-tickets",
                "curves X25519",
                f"reject unless {{ ssl_c_der,hex -m sub {uri_name('spiffe://mesh.local/web').hex().upper()} }}",
            ],
        ),
        (
            "nginx",
            "caller",
            [
                "worker_processes 1;",
                "proxy_ssl_verify on;",
                "proxy_ssl_name api;",
                "proxy_ssl_session_reuse off;",
                "Groups X25519;",
            ],
        ),
        (
            "nginx",
            "callee",
            [
                "ssl_verify_client on;",
                "ssl_session_cache off;",
                "ssl_session_tickets off;",
                "ssl_ecdh_curve X25519;",
                "default 127.0.0.1:1;",
                "aa11 127.0.0.1:9000;",
            ],
        ),
    ],
)
def test_the_conditions_are_written(tmp_path: Path, name: str, side: Side, lines: Sequence[str]) -> None:
    text = written(tmp_path, name, side)
    assert [line for line in lines if line not in text] == []


def test_everybody_can_be_measured_with_the_common_group() -> None:
    assert all(X25519 in contestant.groups for contestant in CONTESTANTS)
    assert next(iter(GROUPS)) == X25519


def test_a_name_that_begins_or_ends_the_same_is_another() -> None:
    whole = uri_name("spiffe://mesh.local/web")
    assert whole not in uri_name("spiffe://mesh.local/web2")
    assert whole not in uri_name("spiffe://mesh.local/web/spiffe://mesh.local/web")


# -- our own access log ------------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {
    "event": "connection",
    "level": "info",
    "direction": "outbound",
    "port": "http",
    "decision": "allow",
    "reason": "ok",
    "tls_group": "x25519",
    "resumed": False,
}


def test_a_good_log_has_no_faults() -> None:
    lines = [{"event": "started", "level": "info"}, LINE, {**LINE, "reason": "client_reset", "level": "warning"}]
    assert Sidecar().faults("\n".join(map(json.dumps, lines)), X25519) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"reason": "truncated"}, "ended with truncated"),
        ({"reason": "unexpected_peer", "decision": "deny"}, "unexpected_peer (deny)"),
        ({"tls_group": "X25519MLKEM768"}, "X25519MLKEM768"),
        ({"tls_group": None}, "None"),
        ({"resumed": True}, "resumed: True"),
        ({"event": "internal_error", "level": "error", "message": "no"}, "internal_error"),
    ],
)
def test_a_bad_line_is_found_and_counted(change: dict[str, Any], fault: str) -> None:
    text = "\n".join(map(json.dumps, [LINE, {**LINE, **change}, {**LINE, **change}]))
    (found,) = Sidecar().faults(text, X25519)
    assert fault in found
    assert "(2 times)" in found


def test_a_traceback_is_a_fault() -> None:
    assert Sidecar().faults("Traceback (most recent call last):", X25519) != []


# -- who can take part -------------------------------------------------------------------------------------------------


class Absent(Sidecar):
    name = "absent"

    def missing(self) -> Missing | None:
        return Missing("something", "its-package")


def test_a_peer_that_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "find_program", lambda name: Path("/usr/bin") / name)
    present: Contestant = Sidecar()
    taking_part, left_out = missing_packages([present, Absent()])
    assert taking_part == [present]
    assert left_out == [Missing("something", "its-package")]


def test_a_missing_tool_is_one_message_with_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "find_program", lambda name: None)
    with pytest.raises(MissingError) as caught:
        missing_packages([Sidecar(), Absent()])
    assert all(tool in str(caught.value) for tool in TOOLS)
    assert "apt-get install iperf3 its-package nginx wrk" in str(caught.value)


def test_a_run_of_the_default_length_is_bounded() -> None:
    assert Settings(5, 2, 1000, CONTESTANTS).about_seconds <= 250
