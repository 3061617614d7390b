"""The results of the file's tests, as CI reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

from sidecar.policy.explain import run_tests
from sidecar.policy.junit import as_junit
from sidecar.policy.mesh import parse_mesh

MESH = """\
trust_domain: t
services: {web: {}, api: {ports: {http: 80, metrics: 90}}}
policy: [{name: "a <b> & \\"c\\"", from: web, to: "api:http"}]
tests:
  - {from: web, to: "api:http", expect: allow}
  - {from: web, to: api, expect: deny}
"""


def written(text: str) -> ElementTree.Element:
    mesh = parse_mesh(text, 'x&"y\x07.yaml')
    return ElementTree.fromstring(as_junit(mesh, run_tests(mesh, datetime(2026, 6, 1, tzinfo=UTC))))  # noqa: S314


def test_each_port_is_a_case_and_what_fails_says_why() -> None:
    root = written(MESH)
    [suite] = root
    assert (root.tag, suite.get("name"), suite.get("tests"), suite.get("failures")) == (
        "testsuites",
        'x&"y\\x07.yaml',
        "3",
        "1",
    )
    assert [(case.get("name"), case.get("line"), len(case)) for case in suite] == [
        ("web -> api:http: allow", "5", 0),
        ("web -> api:http: deny", "6", 1),
        ("web -> api:metrics: deny", "6", 0),
    ]
    [failure] = suite[1]
    assert failure.tag == "failure"
    assert failure.get("message") == 'web may call api:http: rule \'a <b> & "c"\' (x&"y\\x07.yaml:3) allows it'


def test_there_are_none() -> None:
    [suite] = written("trust_domain: t\nservices: {}\n")
    assert (suite.get("tests"), len(suite)) == ("0", 0)
