"""The lines of a connection are found among whatever a log holds, and nothing in them gets further than it should."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.explain import records
from sidecar.explain.records import MAX_LINE, MAX_TEXT, Entry, entry_of, is_of, lines_with
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.alarms import Alarm
from sidecar.observe.logs import console_line, json_line
from sidecar.observe.record import ConnectionRecord

ID = "9ff9410d905a0f96"
FIELDS = {
    "direction": "outbound",
    "service": "web",
    "port": "redis",
    "peer_address": "10.0.0.7:6379",
    "peer_id": None,
    "upstream": "cache:redis",
    "decision": "deny",
    "rule": "web->cache:redis",
    "reason": "unexpected_peer",
    "bytes_to_app": 0,
    "bytes_from_app": 0,
    "duration_ms": 12.5,
    "connection_id": ID,
    "unverified": {"subject": "CN=x", "sha256": "ab", "nested": {"a": 1}},
    "message": "refused: web …",
}
LINE = json_line("warning", "connection", FIELDS)


def found(line: str | bytes, wanted: str = ID) -> Entry | None:
    return entry_of(line if isinstance(line, bytes) else line.encode(), wanted, "a log")


class TestLines:
    @given(
        st.lists(st.sampled_from([b"id", b"i", b"d", b"\n", b"x", b"\xff", b"idid\n"]), max_size=40).map(b"".join),
        st.lists(st.integers(1, 7), min_size=1, max_size=60),
    )
    def test_blocks_change_nothing(self, data: bytes, sizes: list[int]) -> None:
        def blocks() -> Iterator[bytes]:
            at = 0
            for size in [*sizes, len(data)]:
                yield data[at : at + size]
                at += size

        assert list(lines_with(blocks(), b"id")) == [line for line in data.split(b"\n") if b"id" in line]

    def test_a_line_that_is_too_long_is_left_out_and_the_next_one_is_found(self) -> None:
        long = b"id" + b"x" * MAX_LINE
        assert list(lines_with([long, b"\nid 2\n"], b"id")) == [b"id 2"]
        assert list(lines_with([long + b"\nid 2\n"], b"id")) == [b"id 2"]
        assert list(lines_with([long, long, b"id\n", b"id 3\n"], b"id")) == [b"id 3"]
        assert list(lines_with([long], b"id")) == []

    def test_a_last_line_without_an_end(self) -> None:
        assert list(lines_with([b"a\nid"], b"id")) == [b"id"]

    def test_a_file_without_lines_takes_no_memory(self) -> None:
        block = bytes(1 << 20)
        tracemalloc.start()
        try:
            assert list(lines_with((block for _ in range(200)), b"id")) == []
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


class TestEntry:
    def test_a_line_of_ours(self) -> None:
        entry = found(LINE)
        assert entry is not None
        assert entry.source == "a log"
        assert entry.get("reason") == "unexpected_peer"
        assert entry.fields["duration_ms"] == 12.5
        assert entry.fields["unverified"] == "subject CN=x, sha256 ab"
        assert "peer_id" not in entry.fields

    @pytest.mark.parametrize(
        "line",
        [
            f"api-mesh-1  | {LINE}",
            f"Nov 30 06:00:00 host sidecar[12]: {LINE}",
            json.dumps({"log": f"{LINE}\n", "stream": "stdout", "time": "2026-11-30T06:00:00Z"}),
            json.dumps({"__CURSOR": "s=1", "MESSAGE": LINE}),
            f"{LINE}\r",
        ],
    )
    def test_behind_a_prefix_and_inside_of_others(self, line: str) -> None:
        entry = found(line)
        assert entry is not None
        assert entry.get("upstream") == "cache:redis"

    @pytest.mark.parametrize("event", ["mitm_suspected", "internal_error"])
    def test_what_else_is_about_a_connection(self, event: str) -> None:
        assert found(json_line("error", event, {"connection_id": ID})) is not None

    @pytest.mark.parametrize(
        "line",
        [
            LINE[:-20],
            LINE.replace("connection_id", "session_id"),
            json_line("info", "renewed", {"connection_id": ID}),
            json_line("info", "connection", {"connection_id": "0" * 16, "message": ID}),
            json_line("info", "connection", {"connection_id": [ID]}),
            json.dumps({"event": ["connection"], "connection_id": ID}),
            json.dumps([{"event": "connection", "connection_id": ID}, ID])
            .replace("{", "[")
            .replace("}", "]")
            .replace(":", ","),
            f"GET /{ID} HTTP/1.1",
            '{"' * 50_000 + ID,
            '{"a":' * 13_000 + ID,
            json_line("info", "connection", {"connection_id": f"{ID}-x"}),
            json_line("info", "connection", {"connection_id": f"{ID}-{'9' * 5000}"}),
            json_line("info", "connection", {"connection_id": f"{ID}-", "channel_id": ID}),
            "[" * 50_000 + ID,
            f'{{"event": "connection", "connection_id": "{ID}", "bytes_to_app": {"9" * 9999}}}',
            "",
        ],
    )
    def test_what_is_none(self, line: str) -> None:
        assert found(line) is None

    def test_bytes_that_are_no_text(self) -> None:
        assert found(b"\xff\xfe" + LINE.encode() + b"\xff") is not None
        assert found(b"\xff\xfe" + ID.encode()) is None

    def test_what_a_peer_wrote_is_escaped_and_shortened(self) -> None:
        evil = "\x1b]0;title\x07\u202e" + "x" * 5000
        entry = found(json_line("warning", "connection", {**FIELDS, "message": evil, "unverified": {"a\x1b": evil}}))
        assert entry is not None
        for name in ("message", "unverified"):
            text = entry.get(name)
            assert text.isprintable()
            assert "more characters)" in text
            assert len(text) < 2 * MAX_TEXT
        assert json.dumps(entry.fields)

    @pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, True, "12", 10**20])
    def test_a_number_that_is_none(self, value: object) -> None:
        entry = found(json.dumps({"event": "connection", "connection_id": ID, "bytes_to_app": value}))
        assert entry is not None
        assert "bytes_to_app" not in entry.fields

    @given(st.binary(max_size=200))
    def test_no_line_is_a_fault(self, line: bytes) -> None:
        found(line + ID.encode() + line)
        found(b'{"event": "connection", "connection_id": "' + ID.encode() + b'"' + line)


class TestOfPeople:
    def line(self, **more: object) -> str:
        return console_line(colours=False)("warning", "connection", {**FIELDS, **more})

    def test_a_line_for_people(self) -> None:
        entry = found(self.line())
        assert entry is not None
        assert entry.fields == {
            "event": "connection",
            "direction": "outbound",
            "reason": "unexpected_peer",
            "connection_id": ID,
        }
        assert "refused: web" in entry.text

    def test_inbound(self) -> None:
        entry = found(self.line(direction="inbound"))
        assert entry is not None
        assert entry.get("direction") == "inbound"

    @pytest.mark.parametrize(
        "line",
        [
            f"x | unexpected_peer | id {'0' * 16}",
            f"x | expired | id {ID}-x",
            f"x | other | id {ID}",
            f"x | id {ID}",
            f"| | {ID}",
        ],
    )
    def test_what_is_none(self, line: str) -> None:
        assert found(line) is None


def test_the_fields_are_those_that_a_sidecar_writes() -> None:
    """A field that gets another name would be missing from what is told."""
    record = ConnectionRecord("outbound", "web", "redis", 0.0, unverified={"subject": "CN=x"})
    record.peer_address, record.client_address, record.connection_id = "10.0.0.7:1", "127.0.0.1:1", ID
    record.refuse(Refused(Reason.PEER_REFUSED, "was refused", peer_reason="expired"))
    at = datetime(2026, 11, 30, tzinfo=UTC)
    alarm = Alarm("mitm_suspected", "web", "refused …", at, at, presented={"serial": "1"}, connection_id=ID)
    alarm = replace(alarm, upstream="db:1", reason="expired", peer_address="x", expected="y", next="z", evidence="e")
    written = json.loads(json_line("warning", "connection", record.finish(1.0))).keys() | alarm.to_dict().keys()
    assert {*records._TEXTS, *records._NUMBERS, *records._CLAIMS} - written == set()


@pytest.mark.parametrize(
    ("wanted", "connection", "channel", "is_it"),
    [
        (ID, ID, "", True),
        (ID, f"{ID}-3", "", True),
        (ID, "x", ID, True),
        (f"{ID}-1", f"{ID}-1", ID, True),
        (f"{ID}-1", f"{ID}-10", ID, False),
        (f"{ID}-1", ID, ID, False),
        (ID, "", "", False),
    ],
)
def test_which_lines_are_asked_for(wanted: str, connection: str, channel: str, is_it: bool) -> None:
    assert is_of(wanted, connection, channel) is is_it
