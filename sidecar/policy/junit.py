"""The results of the file's own tests as JUnit's XML, which CI shows. Pure.

One test case a port. A character that XML may not have is escaped first (:func:`sidecar.documents.printable.printable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import quoteattr

from sidecar.documents.printable import printable
from sidecar.policy.explain import TestResult
from sidecar.policy.mesh import Mesh


def as_junit(mesh: Mesh, results: Sequence[TestResult]) -> str:
    """The whole document."""
    failed = sum(not result.passed for result in results)
    name = _attribute("name", mesh.filename)
    numbers = f'tests="{len(results)}" failures="{failed}" errors="0" skipped="0"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {numbers}>",
        f"  <testsuite {name} {numbers}>",
        *(line for result in results for line in _case(mesh, result)),
        "  </testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines) + "\n"


def _case(mesh: Mesh, result: TestResult) -> Iterator[str]:
    test = result.test
    name = _attribute("name", f"{test.from_} -> {result.target}: {test.expect}")
    place = f'{_attribute("classname", mesh.filename)} {_attribute("file", mesh.filename)} line="{test.line}"'
    if result.passed:
        yield f"    <testcase {name} {place}/>"
        return
    yield f"    <testcase {name} {place}>"
    yield f"      <failure {_attribute('message', result.decision.why)}/>"
    yield "    </testcase>"


def _attribute(name: str, value: str) -> str:
    return f"{name}={quoteattr(printable(value))}"
