"""What libraries would write to stderr is in the log; after the block everything is as it was."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import sys
import threading
import warnings
from typing import Any

import pytest

from sidecar.observe import stray
from sidecar.observe.logs import Log


class Said(io.StringIO):
    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def said() -> Said:
    return Said()


def test_a_warning_is_a_line_and_nothing_is_on_stderr(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    with stray.to_log(Log(said, "json")), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an odd certificate\n", UserWarning, stacklevel=1)
    [line] = said.lines
    assert (line["event"], line["level"]) == ("stray_output", "warning")
    assert line["message"] == "UserWarning: an odd certificate\n"
    assert capsys.readouterr().err == ""


def test_a_library_s_record_is_a_line(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    with stray.to_log(Log(said, "json")):
        logging.getLogger("some.library").warning("lost %d", 3)
        logging.getLogger("some.library").info("not this")
    [line] = said.lines
    assert (line["message"], line["where"]) == ("lost 3", "some.library")
    assert capsys.readouterr().err == ""


def test_a_record_whose_arguments_do_not_fit_its_text_ends_nothing(said: Said) -> None:
    record = logging.LogRecord("some.library", logging.ERROR, __file__, 1, "no %d", ("number",), None)
    stray._Records(Log(said, "json")).handle(record)
    assert "TypeError" in said.lines[0]["exception"]


def test_what_nothing_catches_in_a_thread_or_a_finalizer_is_a_line_with_its_traceback(
    said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ZeroDivisionError

    def fails() -> None:
        raise LookupError

    with stray.to_log(Log(said, "json")):
        thread = threading.Thread(target=fails, name="one")
        thread.start()
        thread.join()
        one = Fails()
        del one
        gc.collect()
    first, second = said.lines
    assert ("LookupError" in first["exception"], first["where"]) == (True, "in thread one")
    assert "ZeroDivisionError" in second["exception"]
    assert capsys.readouterr().err == ""


def test_afterwards_all_is_as_before(said: Said) -> None:
    def state() -> tuple[Any, ...]:
        return warnings.showwarning, sys.unraisablehook, threading.excepthook, list(logging.getLogger().handlers)

    before = state()
    with contextlib.suppress(ZeroDivisionError), stray.to_log(Log(said, "json")):
        assert state() != before
        raise ZeroDivisionError
    assert state() == before
