"""Every contestant's configuration states the conditions; the proof tries them, this says which line is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import reference
from tests.bench import comparison
from tests.bench.comparison import IMAGE, OLDEST, Settings, contestants, missing_packages
from tests.bench.contestants import HYBRID, PARTS, X25519, Certificates, Contestant, Missing, Mode, Route, Side
from tests.bench.errors import MissingError
from tests.bench.haproxy import uri_name
from tests.bench.loads import LOADS, TOOLS
from tests.bench.ours import Sidecar
from tests.bench.roots import PROJECT

ROUTES = (Route("http", 10001, 10009, 10002, 9000), Route("bulk", 10003, 10004, 10004, 9001))
CERTIFICATES = Certificates(Path("/certificates"), {"web": "aa11", "api": "bb22", "batch": "cc33"})
CONTESTANTS = contestants()
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
OURS = Sidecar("sidecar", OLDEST)


def written(directory: Path, name: str, side: Side, mode: Mode = "cold") -> str:
    BY_NAME[name].prepare(directory, side, ROUTES, CERTIFICATES, X25519, mode)
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


RESUMPTION_IS_OFF = {
    "envoy": ["max_session_keys", "disable_stateless_session_resumption", "disable_stateful_session_resumption"],
    "haproxy": ["no-ssl-reuse", "no-tls-tickets", "tune.ssl.cachesize 0"],
    "nginx": ["proxy_ssl_session_reuse", "ssl_session_cache", "ssl_session_tickets"],
    "sidecar": ["keep:"],
}


@pytest.mark.parametrize("name", RESUMPTION_IS_OFF)
@pytest.mark.parametrize("side", ["caller", "callee"])
def test_as_each_is_run_nothing_is_said_of_resumption(tmp_path: Path, name: str, side: Side) -> None:
    text = written(tmp_path, name, side, "run")
    assert [word for word in RESUMPTION_IS_OFF[name] if word in text] == []


def test_envoy_with_a_larger_cache_is_measured_at_new_connections_alone(tmp_path: Path) -> None:
    assert '"max_session_keys": 64' in written(tmp_path, "envoy-64", "caller", "run")
    assert BY_NAME["envoy-64"].parts == ("connections",)


@pytest.mark.parametrize(("mode", "keys", "kept"), [("cold", ["keep"], 0), ("cold", [], None), ("run", ["keep"], None)])
def test_channels_are_not_kept_where_all_is_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, keys: list[str], kept: int | None
) -> None:
    monkeypatch.setattr(reference, "keys", lambda kind: [reference.Key(path, "", "", "") for path in keys])
    OURS.prepare(tmp_path, "caller", ROUTES, CERTIFICATES, X25519, mode)
    assert yaml.safe_load((tmp_path / "sidecar.yaml").read_text()).get("keep") == kept


def settings(group: str = HYBRID, parts: Sequence[str] = PARTS, peers: Sequence[Contestant] = CONTESTANTS) -> Settings:
    return Settings(3, 1, 1000, group, parts, peers)


def test_all_are_measured_with_the_hybrid_group_if_they_have_it() -> None:
    assert {settings().group_of(one) for one in CONTESTANTS} == {HYBRID}
    assert {settings(X25519).group_of(one) for one in CONTESTANTS} == {X25519}
    here = contestants(None)
    assert {one.name: settings().group_of(one) for one in here if one.name in ("nginx", "haproxy", "envoy")} == {
        "nginx": X25519, "haproxy": X25519, "envoy": HYBRID,
    }  # fmt: skip


def test_pairs_are_started_for_what_is_measured_alone() -> None:
    everything = settings()
    assert everything.modes_of(BY_NAME["sidecar"]) == ["run", "cold"]
    assert everything.modes_of(BY_NAME["envoy-64"]) == ["run"]
    assert settings(parts=["cold"]).modes_of(BY_NAME["sidecar"]) == ["cold"]
    assert settings(parts=["memory"]).modes_of(BY_NAME["sidecar"]) == ["run"]
    assert not settings(parts=["memory"]).has_part(BY_NAME["sidecar"], "run")


def test_every_load_is_of_a_part_and_every_part_has_its_tools() -> None:
    assert {load.part for load in LOADS} == set(PARTS) - {"memory"}
    assert set(TOOLS) == set(PARTS)
    assert len({load.name for load in LOADS}) == len(LOADS)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_a_load_goes_to_the_port_that_it_is_given(load: Any) -> None:
    assert any("12345" in word for word in load.command(12345, 2))


def test_a_name_that_begins_or_ends_the_same_is_another() -> None:
    whole = uri_name("spiffe://mesh.local/web")
    assert whole not in uri_name("spiffe://mesh.local/web2")
    assert whole not in uri_name("spiffe://mesh.local/web/spiffe://mesh.local/web")


def test_ours_is_measured_on_the_image_s_python_and_on_the_oldest() -> None:
    assert f"ARG BASE=python:{IMAGE.version}-slim\n" in (PROJECT / "compose/Dockerfile").read_text()
    assert f'requires-python = ">={OLDEST.version}"' in (PROJECT / "pyproject.toml").read_text()


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
    assert OURS.faults("\n".join(map(json.dumps, lines)), X25519, "cold") == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"reason": "truncated"}, "ended with truncated"),
        ({"reason": "unexpected_peer", "decision": "deny"}, "unexpected_peer (deny)"),
        ({"tls_group": "X25519MLKEM768"}, "X25519MLKEM768"),
        ({"tls_group": None}, "None"),
        ({"resumed": True}, "resumed: True"),
        ({"reused": True}, "kept channel"),
        ({"event": "internal_error", "level": "error", "message": "no"}, "internal_error"),
    ],
)
def test_a_bad_line_is_found_and_counted(change: dict[str, Any], fault: str) -> None:
    text = "\n".join(map(json.dumps, [LINE, {**LINE, **change}, {**LINE, **change}]))
    (found,) = OURS.faults(text, X25519, "cold")
    assert fault in found
    assert "(2 times)" in found


def test_as_it_is_run_a_kept_channel_is_none() -> None:
    assert OURS.faults(json.dumps({**LINE, "reused": True}), X25519, "run") == []


def test_a_traceback_is_a_fault() -> None:
    assert OURS.faults("Traceback (most recent call last):", X25519, "cold") != []


# -- who can take part -------------------------------------------------------------------------------------------------


class Absent(Sidecar):
    def missing(self) -> Missing | None:
        return Missing("something", "its-package")


def test_a_peer_that_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "find_program", lambda name: Path("/usr/bin") / name)
    present: Contestant = OURS
    monkeypatch.setattr(Sidecar, "missing", lambda self: None)
    taking_part, left_out = missing_packages([present, Absent("absent", OLDEST)], PARTS)
    assert taking_part == [present]
    assert left_out == [Missing("something", "its-package")]


def test_a_missing_tool_is_one_message_with_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "find_program", lambda name: None)
    with pytest.raises(MissingError) as caught:
        missing_packages([OURS], ["bulk", "latency"])
    assert str(caught.value) == (
        "not installed, and needed for bulk, latency: h2load, iperf3, nginx\n"
        "  on Debian: apt-get install iperf3 nghttp2-client nginx; or choose with --parts"
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_run_in_two_minutes(part: str) -> None:
    assert settings(parts=[part]).about_seconds <= 120


def test_a_run_of_the_default_length_is_bounded() -> None:
    assert Settings(5, 2, 1000, HYBRID, PARTS, CONTESTANTS).about_seconds <= 25 * 60
