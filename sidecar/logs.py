"""What is said, to whom: the access log and the alarms, as JSON lines on stdout, or in colours on a terminal."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from sidecar.reasons import Reason

_EXPECTED = frozenset({Reason.OK.value, Reason.DRAINED.value, Reason.IDLE_TIMEOUT.value, Reason.MAX_AGE.value})


class Log:
    """Where this process tells what happens. Everything that a peer may have written is escaped before it gets here, and
    again here, so that no line can be forged and no terminal driven."""

    def __init__(self, stream: TextIO | None = None, style: Literal["auto", "json", "console"] = "auto") -> None:
        stream = stream or sys.stdout
        console = style == "console" or (style == "auto" and stream.isatty())
        renderer: Any = (
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0, sort_keys=False)
            if console
            else structlog.processors.JSONRenderer()
        )
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                structlog.processors.add_log_level,
                *([_briefly] if console else []),
                _in_reading_order,
                _escape_controls,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )

    def connection(self, line: dict[str, Any]) -> None:
        """The one line of a connection."""
        say = self._logger.info if line["reason"] in _EXPECTED else self._logger.warning
        say("connection", **line)

    def alarm(self, message: str, **fields: Any) -> None:
        """Somebody may be in the middle."""
        self._logger.error("mitm_suspected", message=message, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, **fields)

    def bug(self, event: str, error: BaseException, **fields: Any) -> None:
        """A fault of our own, with its traceback."""
        self._logger.error(event, exc_info=error, **fields)


def _escape_controls(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


def _in_reading_order(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = {key: event.pop(key) for key in ("time", "level", "event")}
    return {**first, **event}


def _briefly(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """On a terminal the fields that say nothing are left out."""
    return {key: value for key, value in event.items() if value not in (None, False, 0, "", {})}
