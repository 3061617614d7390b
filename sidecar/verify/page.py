"""The report of `sidecar verify` as one page of HTML. Pure.

It holds everything itself: no script, no font, no picture, no request to anywhere, which its own Content-Security-Policy
forbids besides. All text is escaped: some of it was written by peers.
"""

from __future__ import annotations

from html import escape

from sidecar.documents.printable import printable
from sidecar.verify.judgement import Report, Status
from sidecar.verify.report import summary

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c2128;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .6rem; vertical-align: top;
  border-bottom: 1px solid #d0d7de; overflow-wrap: anywhere }
.ok { color: #116329 } .failed { color: #a40e26; font-weight: 700 } .untried { color: #7d4e00; font-weight: 700 }
.result { padding: .6rem 1rem; border: 2px solid; border-radius: .4rem }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } th, td { border-color: #30363d }
  .ok { color: #3fb950 } .failed { color: #ff7b72 } .untried { color: #e3b341 } }
"""
_CLASS = {Status.OK: "ok", Status.FAILED: "failed", Status.NOT_TRIED: "untried"}


def as_html(report: Report) -> str:
    """The whole page."""
    proved = "ok" if report.proved else "failed"
    checks = "".join(
        f'<tr><td class="{_CLASS[it.status]}">{_text(str(it.status))}</td><td>{_text(it.kind)}</td>'
        f"<td>{_text(it.subject)}</td><td>{_text(it.tried)}</td><td>{_text(it.seen)}</td></tr>\n"
        for it in report.checks
    )
    held = "".join(
        f"<tr><td>{_text(it.holder)}</td><td>{_text(it.identity)}</td><td>{_text(it.until)}</td>"
        f"<td>{_text(it.issuer)}</td><td>{_text(it.serial)}</td></tr>\n"
        for it in report.held
    )
    missing = "".join(f"<li>{_text(one)}</li>\n" for one in report.not_covered)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sidecar verify: {_text(report.mesh)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>Is mutual TLS on?</h1>
<p class="result {proved}">{_text(summary(report))}</p>
<p>At {report.at:%FT%TZ}. Each check is one try. It is ok only if what the caller saw and what the callee recorded agree.</p>
<h2>What was tried, and what was seen</h2>
<table><thead><tr><th>Result</th><th>Check</th><th>Subject</th><th>Tried</th><th>Seen</th></tr></thead>
<tbody>
{checks}</tbody></table>
<h2>Certificates</h2>
<table><thead><tr><th>Holder</th><th>Identity</th><th>Until</th><th>Issuer</th><th>Serial</th></tr></thead>
<tbody>
{held}</tbody></table>
<h2>What this run does not cover</h2>
<ul>
{missing}</ul>
</body></html>
"""


def _text(text: str) -> str:
    return escape(printable(text))
