"""The log: JSON objects, one a line; on a terminal lines for eyes; nothing that a peer wrote forges or drives either."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.logs import Log, json_line
from sidecar.observe.record import ConnectionRecord

EVIL = 'x\n{"event": "connection", "reason": "ok"}\r\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2028\x00"'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(reason: Reason = Reason.OK, **fields: Any) -> dict[str, Any]:
    one = ConnectionRecord("inbound", "api", "http", started=0.0)
    for name, value in fields.items():
        setattr(one, name, value)
    if reason is Reason.OK:
        one.decision = "allow"
        one.end(reason)
    else:
        one.refuse(Refused(reason, "met somebody"))
    return one.finish(0.0123)


def lines(stream: io.StringIO) -> list[str]:
    return lines_of(stream.getvalue())


def lines_of(text: str) -> list[str]:
    assert text.endswith("\n")
    return text[:-1].split("\n")


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_a_connection_is_one_json_object() -> None:
    stream = io.StringIO()
    Log(stream, "json").connection(record(peer_id="spiffe://shop.internal/web", rule="web->api"))
    (line,) = lines(stream)
    said = json.loads(line)
    assert (said["event"], said["level"], said["peer_id"]) == ("connection", "info", "spiffe://shop.internal/web")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", said["time"])
    assert (said["tls_group"], said["connection_id"]) == (None, None)  # there, though nothing is known of them
    assert list(said)[:3] == ["time", "level", "event"]


@pytest.mark.parametrize("style", ["json", "auto"])
def test_what_is_no_terminal_gets_json(style: Any) -> None:
    stream = io.StringIO()
    Log(stream, style).info("started", service="api")
    assert json.loads(stream.getvalue())["service"] == "api"


@pytest.mark.parametrize("reason", list(Reason))
def test_the_level_tells_whether_to_look(reason: Reason) -> None:
    stream = io.StringIO()
    Log(stream, "json").connection({**record(), "reason": str(reason)})
    everyday = {Reason.OK, Reason.DRAINED, Reason.IDLE_TIMEOUT, Reason.MAX_AGE, Reason.PROBE}
    assert json.loads(stream.getvalue())["level"] == ("info" if reason in everyday else "warning")
    Log(stream, "json").summary({"reason": str(reason), "count": 3})
    line, summary = map(json.loads, lines(stream))
    assert (summary["event"], summary["count"], summary["level"]) == ("connection_summary", 3, line["level"])


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("all", ["ok", "drained", "policy_denied", "truncated", "ok"]),
        ("refusals", ["policy_denied", "truncated", "ok"]),
        ("off", []),
    ],
)
def test_fewer_connections_can_be_logged_but_alarms_always_are(kept: Any, expected: list[str]) -> None:
    """The last is allowed, and would be denied by a rule that is tried."""
    stream = io.StringIO()
    log = Log(stream, "json", kept)
    for reason in (Reason.OK, Reason.DRAINED, Reason.POLICY_DENIED, Reason.TRUNCATED):
        log.connection({**record(), "reason": str(reason)})
        log.summary({"reason": str(reason), "count": 3})
    log.connection({**record(), "reason": "ok", "dry_run": ["tried"]})
    log.alarm("mitm_suspected", message="something answers in db's place")
    said = list(map(json.loads, lines(stream)))
    assert [line["reason"] for line in said if line["event"] == "connection"] == expected
    assert [line["reason"] for line in said if line["event"] == "connection_summary"] == expected[:4][
        : len(expected) - 1
    ]
    assert said[-1]["event"] == "mitm_suspected"


def test_an_alarm_is_an_error() -> None:
    stream = io.StringIO()
    Log(stream, "json").alarm(
        "mitm_suspected", message="something answers in db's place", presented={"subject": "CN=x"}
    )
    said = json.loads(stream.getvalue())
    assert (said["event"], said["level"]) == ("mitm_suspected", "error")
    assert said["presented"] == {"subject": "CN=x"}


def test_a_notice_is_a_warning() -> None:
    stream = io.StringIO()
    Log(stream, "json").alarm("neighbour_met", severe=False, message="web has db's old address")
    said = json.loads(stream.getvalue())
    assert (said["event"], said["level"]) == ("neighbour_met", "warning")


def test_a_bug_has_its_traceback_in_its_one_line() -> None:
    stream = io.StringIO()
    try:
        raise ZeroDivisionError(EVIL)
    except ZeroDivisionError as error:
        Log(stream, "json").bug("internal_error", error, connection_id="abc")
    (line,) = lines(stream)
    said = json.loads(line)
    assert said["exception"].startswith("Traceback")
    assert (said["level"], said["connection_id"]) == ("error", "abc")


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_text_forges_a_line_or_leaves_ascii(one: str, other: str) -> None:
    """Invariant: whatever is logged, the stream is one JSON object a line, in plain ASCII, that holds the text."""
    stream = io.StringIO()
    Log(stream, "json").connection(record(Reason.POLICY_DENIED, unverified={"subject": one}, rule=other))
    (line,) = lines(stream)
    assert line.isascii()
    assert line.isprintable()
    said = json.loads(line)
    assert (said["rule"], said.get("unverified", {"subject": ""})["subject"]) == (other, one)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(Reason) | st.just(Path("x")),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), _VALUES, max_size=6).filter(lambda one: not one.keys() & {"time", "level", "event"}))
def test_a_line_is_what_the_library_writes(fields: dict[str, Any]) -> None:
    """Invariant: byte for byte the text of ``json.dumps``, whatever is logged."""
    every = {"time": "2026-11-30T00:00:00Z", "level": "info", "event": "x", **fields}
    written = json_line("info", "x", fields)
    every["time"] = json.loads(written)["time"]
    assert written == json.dumps(every, default=repr)


# -- for eyes ----------------------------------------------------------------------------------------------------------


def shown(**fields: Any) -> str:
    stream = Terminal()
    Log(stream, "console").connection(record(**fields))
    (line,) = lines(stream)
    return line


def test_a_terminal_gets_lines_for_eyes() -> None:
    for stream in (Terminal(), io.StringIO()):
        style: Any = "auto" if stream.isatty() else "console"
        Log(stream, style).connection(record(peer_id="spiffe://shop.internal/web", rule="web->api:http"))
        (line,) = lines(stream)
        assert re.match(r"\d\d:\d\d:\d\d api:http <- spiffe://shop\.internal/web \| ok \| ", line)
        assert "web->api:http" in line
        assert not line.startswith("{")


def test_a_peer_without_identity_and_address_is_unknown() -> None:
    assert " api:http <- unknown peer | ok | " in shown()
    assert " api:http <- 10.0.0.7:4711 | ok | " in shown(peer_address="10.0.0.7:4711")


def test_json_can_be_had_on_a_terminal_too() -> None:
    stream = Terminal()
    Log(stream, "json").info("started")
    assert json.loads(stream.getvalue())["event"] == "started"


def test_colours_are_for_terminals_and_for_what_is_wrong() -> None:
    fine, refused = shown(), shown(reason=Reason.POLICY_DENIED)
    assert "\x1b" not in fine
    assert refused.startswith("\x1b[33m")
    assert refused.endswith("\x1b[0m")
    file = io.StringIO()
    Log(file, "console").connection(record(Reason.POLICY_DENIED))
    assert "\x1b" not in file.getvalue()


def test_both_directions_name_both_ends() -> None:
    stream = io.StringIO()
    log = Log(stream, "console")
    one = ConnectionRecord("outbound", "web", "http", started=0.0, upstream="api:http")
    one.end(Reason.CONNECT_FAILED, "nobody there")
    log.connection(one.finish(0.1))
    log.connection(record(Reason.NO_CERTIFICATE, peer_address="10.0.0.9:4"))
    first, second = lines(stream)
    assert "web -> api:http | connect_failed | nobody there" in first
    assert "api:http <- 10.0.0.9:4 | no_certificate | refused: api met somebody" in second


@pytest.mark.parametrize("field", ["peer_address", "rule", "peer_id", "connection_id"])
def test_no_field_drives_the_terminal(field: str) -> None:
    line = re.sub(r"^\x1b\[\d+m|\x1b\[0m$", "", shown(reason=Reason.POLICY_DENIED, **{field: EVIL}))
    assert line.isprintable()
    assert "\\x1b[2J" in line


def test_no_message_drives_the_terminal_and_no_event_does() -> None:
    stream = io.StringIO()
    log = Log(stream, "console")
    log.alarm(EVIL, message=EVIL, presented={"subject": EVIL}, next=EVIL)
    log.info(EVIL, service=EVIL)
    assert all(line.isprintable() for line in lines(stream))
    assert len(lines(stream)) == 2


def test_no_traceback_drives_the_terminal_or_looks_like_another_line() -> None:
    stream = Terminal()
    try:
        raise ZeroDivisionError(EVIL)
    except ZeroDivisionError as error:
        Log(stream, "console").bug("internal_error", error)
    text = re.sub(r"\x1b\[\d+m", "", stream.getvalue(), count=2)
    assert all(line.isprintable() for line in text.split("\n"))
    _, *traceback = lines_of(text)
    assert all(line.startswith("  ") for line in traceback)
    assert "Traceback" in text
    assert "\\x1b[2J" in text


# -- a stream that fails -----------------------------------------------------------------------------------------------


class Fickle(io.StringIO):
    broken = True

    def write(self, text: str) -> int:
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_log_that_nobody_reads_ends_nothing_and_what_was_lost_is_told() -> None:
    stream = Fickle()
    log = Log(stream, "json")
    for _ in range(3):
        log.connection(record())
    stream.broken = False
    log.connection(record())
    lost, line = map(json.loads, lines(stream))
    assert (lost["event"], lost["writes"]) == ("log_lost", 3)
    assert line["event"] == "connection"
    log.connection(record())
    assert len(lines(stream)) == 3  # told once


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    log = Log(stream, "json")
    stream.close()
    log.connection(record())


def test_every_line_is_flushed() -> None:
    """A line that waits in a buffer is lost where the process is killed."""
    flushed = []

    class Counting(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    log = Log(Counting(), "json")
    log.info("one")
    log.info("two")
    assert [text.count("\n") for text in flushed] == [1, 2]
