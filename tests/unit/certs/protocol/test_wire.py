"""The bytes that both ends agree on: pinned against a table, and each of them written once in the whole code.

A failure of the first part means that sidecars and CAs of two versions do not understand each other any more.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.protocol import csr, denial, documents, enrolment, wire
from certs.protocol.denial import Denial
from sidecar.identity.reasons import Reason
from sidecar.transport import http1, tls

ROOT = Path(__file__).parents[4]

WIRE = {
    "ALPN": "http/1.1",
    "CA_SEGMENTS": ("mesh", "ca"),
    "CA_SERVICE": "mesh/ca",
    "ENROL_PATH": "/v1/enrol",
    "RENEW_PATH": "/v1/renew",
    "NONCE_PATH": "/v1/nonce",
    "REENROL_PATH": "/v1/reenrol",
    "BUNDLE_PATH": "/v1/bundle",
    "REPORT_PATH": "/v1/report",
    "UNKNOWN_PATH": frozenset({"not_found", "method_not_allowed"}),
    "MAX_REPORT_ANSWER_BYTES": 256 << 10,
    "REVOCATIONS_PATH": "/v1/revocations",
    "AFTER": "after",
    "INSTANCE_HEADER": "Mesh-Instance",
    "BUNDLE_HEADER": "Mesh-Bundle",
    "ETAG_HEADER": "ETag",
    "IF_NONE_MATCH_HEADER": "If-None-Match",
    "CONTENT_TYPE_HEADER": "Content-Type",
    "JSON": "application/json",
    "SERVICE": "service",
    "PASS": "pass",
    "CSR": "csr",
    "CERTIFICATE": "certificate",
    "NONCE": "nonce",
    "SIGNATURE": "signature",
    "BUNDLES": "bundles",
    "ERROR": "error",
    "MESSAGE": "message",
    "ENROL_FIELDS": ("service", "pass", "csr"),
    "RENEW_FIELDS": ("csr",),
    "REENROL_FIELDS": ("certificate", "nonce", "signature", "csr"),
    "OK": 200,
    "NOT_MODIFIED": 304,
    "MAX_BUNDLES": 64,
    "MAX_BUNDLES_BYTES": 1048576,
    "MAX_UNVERIFIED_BUNDLES_BYTES": 262144,
    "MAX_REVOCATIONS_BYTES": 2097152,
    "MAX_CERTIFICATE_BYTES": 65536,
    "MAX_NONCE_BYTES": 4096,
    "NONCE_SECONDS": 60,
    "INSTANCE": "[0-9a-f]{32}",
    "VERSION": "[0-9]{1,15}",
}

DENIALS = {
    "bad_request": 400,
    "bad_csr": 400,
    "bad_pass": 403,
    "pass_used": 403,
    "pass_expired": 403,
    "unknown_service": 403,
    "not_entitled": 403,
    "key_reused": 400,
    "revoked": 403,
    "expired": 403,
    "no_certificate": 401,
    "rate_limited": 429,
    "unavailable": 503,
}


def test_the_names_and_numbers_are_what_they_were() -> None:
    found = {
        name: value.pattern if isinstance(value, re.Pattern) else value
        for name, value in vars(wire).items()
        if name.isupper()
    }
    assert found == WIRE


def test_the_words_of_a_refusal_and_their_statuses_are_what_they_were() -> None:
    assert {str(word): word.status for word in Denial} == DENIALS
    assert (denial.INTERNAL_ERROR, denial.INTERNAL_ERROR_STATUS) == ("internal_error", 500)


def test_the_tags_of_what_is_signed_or_secret_are_what_they_were() -> None:
    assert (documents.BUNDLE, documents.REVOCATIONS) == ("mesh-bundle/2", "mesh-revocations/2")
    assert csr.PROOF == b"mesh-reenrol/1\0"
    assert str(enrolment.EnrolmentCredential("token", "0" * 32, b"\1" * 32)) == f"mesh-token.{'0' * 32}.{'01' * 32}"
    assert str(enrolment.EnrolmentCredential("secret", "f" * 64, b"\1" * 32)) == f"mesh-secret.{'f' * 64}.{'01' * 32}"


def test_the_http_server_refuses_in_the_same_envelope() -> None:
    """The server is below this protocol and serves the admin port too, so it spells these names itself."""
    answer = http1.error(400, Denial.BAD_REQUEST, "no")
    assert answer.body == b'{"error": "bad_request", "message": "no"}\n'
    assert answer.content_type == wire.JSON


def test_a_sidecar_s_ports_and_the_ca_are_told_apart_by_alpn() -> None:
    assert not wire.ALPN.startswith(tls.ALPN_PREFIXES)


# -- each stands once --------------------------------------------------------------------------------------------------

OWNERS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"/v1/"), "certs/protocol/wire.py"),
    (re.compile(r"Mesh-[A-Z]|^mesh-(instance|bundle)$"), "certs/protocol/wire.py"),
    (re.compile(r"^http/1\.1$"), "certs/protocol/wire.py"),
    (re.compile(r"\bmesh/ca\b"), "certs/protocol/wire.py"),
    (re.compile(r"\bmesh-(bundle|revocations)/\d"), "certs/protocol/documents.py"),
    (re.compile(r"\bmesh-reenrol\b"), "certs/protocol/csr.py"),
    (re.compile(r"\bmesh-(token|secret|\(token)\b"), "certs/protocol/enrolment.py"),
    (re.compile(rf"^({'|'.join([*DENIALS, 'internal_error'])})$"), "certs/protocol/denial.py"),
]
"""What a literal looks like, and the one file that may hold it."""

REFUSALS = {str(reason) for reason in Reason}
"""A sidecar's reasons to refuse a peer. Some are spelt like the CA's words, and are no part of this protocol."""


def literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each text or bytes in a program, docstrings left out; of an f-string its fixed parts; and each tuple of texts as a
    path, with slashes."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List):
            parts = [one.value for one in node.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            yield node.lineno, "/".join(parts)
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, bytes):
                yield node.lineno, node.value.decode("latin-1")
            elif isinstance(node.value, str):
                yield node.lineno, node.value


def copies(file: str, tree: ast.Module) -> list[str]:
    """The literals of the protocol that a file holds and does not own."""
    found = []
    for line, text in literals(tree):
        for pattern, owner in OWNERS:
            match = pattern.search(text)
            if match is None or file == owner or text in REFUSALS:
                continue
            if file == "sidecar/meanings/of_denials.py":
                continue  # it explains them all, and `tests/unit/meanings` compares
            if text == str(Denial.BAD_REQUEST) and file.endswith(("/http1.py", "/probing.py")):
                continue  # the HTTP server's own word; the admin port answers with it too
            found.append(f"{file}:{line}: {text[:60]!r} is {owner}'s")
    return found


FILES = [
    path.relative_to(ROOT).as_posix()
    for package in ("sidecar", "certs")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def test_no_literal_of_the_protocol_is_written_twice() -> None:
    assert len(FILES) > 100
    trees = {file: ast.parse((ROOT / file).read_text()) for file in FILES}
    assert [copy for file, tree in trees.items() for copy in copies(file, tree)] == []
    for pattern, owner in OWNERS:
        held = [text for _, text in literals(trees[owner]) if pattern.search(text)]
        assert held, f"{pattern.pattern}: a pattern that its owner does not hold finds nothing elsewhere either"
        assert len(held) == len(set(held)), f"{owner} itself writes one of {held} twice"


@pytest.mark.parametrize(
    "code",
    [
        'path = "/v1/enrol"',
        'path = f"/v1/bundle?after={n}"',
        'path = b"/v1/renew"',
        'def f():\n    """Prose."""\n    return "Mesh-Instance"',
        'headers["mesh-bundle"]',
        'headers["mesh-instance"]',
        'NEW = "Mesh-Token"',
        'context.client("http/1.1")',
        'name = "mesh/ca"',
        'name = "spiffe://shop.internal/mesh/ca"',
        'SpiffeId(domain, ("mesh", "ca"))',
        'KEY_REUSED = "key_reused"',
        'error(503, "unavailable")',
        'kind = "mesh-bundle/2"',
        'proof = b"mesh-reenrol/1\\0"',
        'secret = f"mesh-secret.{x}"',
    ],
)
def test_a_copy_is_found(code: str) -> None:
    assert len(copies("sidecar/agent/agent.py", ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        '"""Asks ``/v1/enrol`` of mesh/ca."""',
        'def f():\n    "mesh/ca"',
        'X = 1\n"""Of Mesh-Instance."""',
        'CA = "mesh-ca"',
        'path = "/var/lib/mesh-ca"',
        'event = "revoked"',
        'text = "HTTP/1.1 200 OK"',
        'ALPN_PREFIXES = ("mesh/2/", "mesh/1/")',
    ],
)
def test_the_twin_what_is_no_copy(code: str) -> None:
    assert copies("sidecar/agent/agent.py", ast.parse(code)) == []
