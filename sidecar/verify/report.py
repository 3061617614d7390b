"""The report of `sidecar verify`: a table for people, JSON, and JUnit for CI systems. Pure.

What peers wrote is in it (a verdict, a name in a certificate), so all text is escaped where it is shown.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape, quoteattr

from sidecar.documents.printable import printable
from sidecar.verify.judgement import Report, Status

VERSION = 1


def to_dict(report: Report) -> dict[str, Any]:
    """The report as values that JSON can hold."""
    return {
        "version": VERSION,
        "mesh": report.mesh,
        "at": f"{report.at:%FT%TZ}",
        "seconds": round(report.seconds, 2),
        "proved": report.proved,
        "counts": {str(status): report.count(status) for status in Status},
        "checks": [
            {"kind": it.kind, "subject": it.subject, "tried": it.tried, "status": str(it.status), "seen": it.seen}
            for it in report.checks
        ],
        "certificates": [
            {
                "holder": it.holder,
                "identity": it.identity,
                "until": it.until,
                "issuer": it.issuer,
                "serial": it.serial,
            }
            for it in report.held
        ],
        "not_covered": list(report.not_covered),
    }


def summary(report: Report) -> str:
    """The result in one sentence."""
    counts = ", ".join(f"{report.count(status)} {status}" for status in Status)
    if not report.checks:
        return f"{report.mesh}: NOT PROVED: nothing was tried"
    word = "proved" if report.proved else "NOT PROVED"
    return f"{report.mesh}: {word}: {counts} of {len(report.checks)} checks, in {report.seconds:.1f} s"


def as_text(report: Report) -> str:
    """The report as lines for people, a group for each subject's kind of check."""
    lines = [f"{'result':<10} {'check':<24} {'subject':<34} what was seen"]
    for it in report.checks:
        lines.append(f"{it.status:<10} {it.kind:<24} {printable(it.subject):<34} {printable(it.seen)}")
    if report.held:
        lines += ["", "certificates (holder, until, issuer):"]
        width = max(len(it.holder) for it in report.held)
        lines += [f"  {printable(it.holder):<{width}}  {it.until}  {printable(it.issuer)}" for it in report.held]
    lines += ["", "NOT covered by this run:"]
    lines += [f"  {printable(one)}" for one in report.not_covered]
    return "\n".join([*lines, "", printable(summary(report))])


def as_junit(report: Report) -> str:
    """The report as a JUnit test suite: a test case a check."""
    failed, skipped = report.count(Status.FAILED), report.count(Status.NOT_TRIED)
    head = f'tests="{len(report.checks)}" failures="{failed}" errors="{skipped}" time="{report.seconds:.2f}"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuite name="sidecar verify" {head}>']
    for it in report.checks:
        named = f"<testcase classname={_attribute(it.kind)} name={_attribute(it.subject)}"
        if it.status is Status.OK:
            lines.append(f"{named}><system-out>{_text(it.seen)}</system-out></testcase>")
        else:  # what could not be tried is no pass, and many CI systems would take `skipped` for one
            tag = "failure" if it.status is Status.FAILED else "error"
            lines.append(f"{named}><{tag} message={_attribute(it.seen)}>{_text(it.tried)}</{tag}></testcase>")
    return "\n".join([*lines, "</testsuite>", ""])


def _text(text: str) -> str:
    return escape(printable(text))


def _attribute(text: str) -> str:
    return quoteattr(printable(text))
