"""The report: for people, for programs, for CI systems. What peers wrote in it does nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from xml.etree import ElementTree as Xml

from sidecar.verify.judgement import Check, Held, Report, Status
from sidecar.verify.report import as_junit, as_text, summary, to_dict

EVIL = "\x1b[2J<script>alert('&\")</script>\n]]>"


def report(*statuses: Status, text: str = "seen it") -> Report:
    checks = [Check("edge", f"web -> {text}", "called it", status, text) for status in statuses]
    held = [Held("api", "spiffe://d/api", "2026-12-01T13:00:00Z", f"CN={text}", "ab")]
    return Report("shop", datetime(2026, 12, 1, 12, tzinfo=UTC), checks, held, [f"not {text}"], 1.25)


def test_a_table_for_people() -> None:
    text = as_text(report(Status.OK, Status.FAILED, Status.NOT_TRIED))
    for line in ("ok         edge", "FAILED     edge", "not tried  edge", "  api  2026-12-01T13:00:00Z  CN=seen it"):
        assert line in text
    assert "NOT covered by this run:\n  not seen it" in text
    assert text.endswith("shop: NOT PROVED: 1 ok, 1 FAILED, 1 not tried of 3 checks, in 1.2 s")


def test_the_result_in_a_sentence() -> None:
    assert summary(report(Status.OK)) == "shop: proved: 1 ok, 0 FAILED, 0 not tried of 1 checks, in 1.2 s"
    assert summary(report()) == "shop: NOT PROVED: nothing was tried"


def test_values_for_programs() -> None:
    told = json.loads(json.dumps(to_dict(report(Status.OK, Status.FAILED))))
    assert (told["version"], told["proved"], told["at"]) == (1, False, "2026-12-01T12:00:00Z")
    assert told["counts"] == {"ok": 1, "FAILED": 1, "not tried": 0}
    assert told["checks"][1]["status"] == "FAILED"
    assert told["certificates"][0]["holder"] == "api"


def test_a_ci_system_sees_each_check_and_no_pass_in_what_was_not_tried() -> None:
    suite = Xml.fromstring(as_junit(report(Status.OK, Status.FAILED, Status.NOT_TRIED)))  # noqa: S314  # our own
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[one.tag for one in case] for case in suite] == [["system-out"], ["failure"], ["error"]]


def test_what_peers_wrote_is_escaped() -> None:
    one = report(Status.OK, Status.FAILED, text=EVIL)
    assert "\x1b" not in as_text(one)
    assert all(line.isprintable() for line in as_text(one).splitlines())
    suite = Xml.fromstring(as_junit(one))  # noqa: S314  # our own
    assert len(suite) == 2
    assert "\x1b" not in as_junit(one)
