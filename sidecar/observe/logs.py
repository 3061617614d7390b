"""The log: connections, events and alarms as JSON lines on stdout, or as text on a terminal."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import click

from sidecar.documents.printable import printable
from sidecar.identity.reasons import Reason
from sidecar.observe import log_queue
from sidecar.observe.log_queue import Rank

_EXPECTED = frozenset(
    reason.value for reason in (Reason.OK, Reason.DRAINED, Reason.IDLE_TIMEOUT, Reason.MAX_AGE, Reason.PROBE)
)
_COLOURS = {"info": None, "warning": "yellow", "error": "red"}

Write = Callable[[str, str, Mapping[str, Any]], str]
"""The line of an event: its level, its name, its fields."""

_encode = json.JSONEncoder(default=repr).encode


class Log:
    """The process's log. Text from peers is escaped before it gets here, and again here: it can neither forge a line nor
    control a terminal. To write a line never waits (:mod:`sidecar.observe.log_queue`)."""

    def __init__(
        self,
        stream: TextIO | None = None,
        style: Literal["auto", "json", "console"] = "auto",
        connections: Literal["all", "refusals", "off"] = "all",
    ) -> None:
        """``connections``: which of them have a line. Alarms and events always have."""
        self._connections = connections
        # There is no sys.stdout if its descriptor was closed when the process began.
        stream = stream or sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 (until the end)
        console = style == "console" or (style == "auto" and stream.isatty())
        self._write: Write = console_line(colours=stream.isatty()) if console else json_line
        self._output = log_queue.output(stream, lambda number: self._line("error", "log_lost", {"writes": number}))

    @property
    def lost(self) -> int:
        """How many lines were lost so far, because the stream failed or nobody read it."""
        return self._output.lost

    def flush(self) -> bool:
        """Waits until all lines are written, for half a second at most. The end of the process does so too."""
        return self._output.flush()

    def text(self, text: str) -> None:
        """Writes text as it is, in its place among the lines."""
        self._output.write(f"{text}\n")

    def connection(self, line: dict[str, Any]) -> None:
        """Writes the one line of a connection: a warning, unless it ended in one of the expected ways."""
        presented = line["decision"] == "deny" and (line.get("unverified") or line["peer_id"])
        level = "info" if line["reason"] in _EXPECTED else "warning"
        if self._connections == "all" or (self._connections == "refusals" and (level != "info" or "dry_run" in line)):
            self._output.write(self._line(level, "connection", line), Rank.PRESENTED if presented else Rank.ORDINARY)

    def summary(self, line: dict[str, Any]) -> None:
        """Writes the line that stands for ``count`` connections of strangers (:mod:`sidecar.observe.folding`). Its rank is
        above that of their own lines, since it must not be lost among them."""
        level = "info" if line["reason"] in _EXPECTED else "warning"
        if self._connections == "all" or (self._connections == "refusals" and level != "info"):
            self._output.write(self._line(level, "connection_summary", line), Rank.PRESENTED)

    def alarm(self, event: str, *, severe: bool = True, **fields: Any) -> None:
        """Writes a line about what may be an attack: an error, or a warning if it is probably none.
        :class:`~sidecar.observe.alarm_log.AlarmLog` alone calls this."""
        self._output.write(self._line("error" if severe else "warning", event, fields), Rank.ALARM)

    def info(self, event: str, **fields: Any) -> None:
        self._output.write(self._line("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self._output.write(self._line("warning", event, fields))

    def bug(self, event: str, error: BaseException, **fields: Any) -> None:
        """Reports a fault of this program, with its traceback."""
        exception = "".join(traceback.format_exception(error)).removesuffix("\n")
        self._output.write(self._line("error", event, {**fields, "exception": exception}))

    def _line(self, level: str, event: str, fields: Mapping[str, Any]) -> str:
        return f"{self._write(level, event, fields)}\n"


def json_line(level: str, event: str, fields: Mapping[str, Any]) -> str:
    """An event as one JSON object in ASCII."""
    time = f"{datetime.now(UTC).isoformat()[:-6]}Z"  # without +00:00
    return _encode({"time": time, "level": level, "event": event, **fields})


def console_line(*, colours: bool) -> Write:
    """Writes events as text for a person, by structlog. It is loaded here alone: it and the asyncio that it loads are 3 MB,
    which a sidecar in a container has no use for."""
    from structlog.processors import TimeStamper, add_log_level

    processors: list[Callable[..., Any]] = [
        TimeStamper(fmt="iso", utc=True, key="time"), add_log_level, _Console(colours=colours),
    ]  # fmt: skip

    def write(level: str, event: str, fields: Mapping[str, Any]) -> str:
        made: Any = {**fields, "event": event}
        for process in processors:
            made = process(None, level, made)
        return str(made)

    return write


class _Console:
    """One event as a line of text: the time, the two ends, the outcome, then details."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: object, _name: str, event: dict[str, Any]) -> str:
        time, level, name = (event.pop(key) for key in ("time", "level", "event"))
        exception = event.pop("exception", None)
        text = _connection(event) if name == "connection" else _other(name, event)
        # Escaped last and as a whole, so that no text from a peer controls the terminal or forges a line.
        line = f"{time[11:19]} {printable(text)}"
        if self._colours and _COLOURS[level]:
            line = click.style(line, fg=_COLOURS[level])
        # Indented: the text of an exception may quote a peer, and may have several lines.
        return "\n".join([line, *(f"  {printable(part)}" for part in (exception or "").splitlines())])


def _connection(event: Mapping[str, Any]) -> str:
    peer = event["peer_id"] or event["peer_address"] or "unknown peer"
    if event["direction"] == "inbound":
        ends = f"{event['service']}:{event['port']} <- {peer}"
    else:
        ends = f"{event['service']} -> {event['upstream']}"
    sizes = f"{event['bytes_to_app']} B to app, {event['bytes_from_app']} B from app, {event['duration_ms']:g} ms"
    parts = [ends, event["reason"], event.get("message"), sizes]
    if event["rule"]:
        parts.append(f"rule {event['rule']}")
    if event["connection_id"]:
        parts.append(f"id {event['connection_id']}")
    return " | ".join(filter(None, parts))


def _other(name: str, event: dict[str, Any]) -> str:
    message = event.pop("message", None)
    rest = " ".join(f"{key}={value}" for key, value in event.items())
    return " | ".join(filter(None, [name, message, rest]))
