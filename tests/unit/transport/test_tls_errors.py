"""What went wrong in a handshake, in our words: everything has a reason, and nothing that a talker said is quoted."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import Reason
from sidecar.transport.tls_errors import (
    LibraryError,
    alert_name,
    alert_refusal,
    chain_fault,
    handshake_refusal,
    record_fault,
    talker,
    unreadable_certificate,
)

ASN1, TLS = 13, 20
LEFT_OVER = LibraryError(TLS, 1048, "tlsv1 alert unknown ca")
"""Of another connection, which nobody took."""


@pytest.mark.parametrize(
    ("errors", "reason", "said"),
    [
        ([], Reason.HANDSHAKE_FAILED, "protocol error"),
        ([(TLS, 199, "none")], Reason.NO_CERTIFICATE, "without a certificate"),
        ([(ASN1, 199, "wrong tag")], Reason.HANDSHAKE_FAILED, "wrong tag"),
        ([(ASN1, 258, "cause"), (TLS, 13, "effect")], Reason.HANDSHAKE_FAILED, "cause"),
        ([(TLS, 258, "too old")], Reason.TLS_VERSION, "too old"),
        ([(6, 1048, "x")], Reason.HANDSHAKE_FAILED, "x"),
        ([(TLS, 1048, "x")], Reason.PEER_REFUSED, "unknown_ca"),
        ([(ASN1, 1, "cause"), (TLS, 0x8000D, "ASN1 lib")], Reason.HANDSHAKE_FAILED, "cause"),
        ([LEFT_OVER, (TLS, 199, "none")], Reason.NO_CERTIFICATE, "without a certificate"),
    ],
)
def test_a_code_means_something_in_its_own_library_only(
    errors: list[tuple[int, int, str]], reason: Reason, said: str
) -> None:
    refused = handshake_refusal([LibraryError(*error) for error in errors])
    assert (refused.reason, said in refused.detail) == (reason, True)


def test_a_certificate_that_cannot_be_read_is_told() -> None:
    assert (
        unreadable_certificate([LibraryError(ASN1, 1, "wrong tag"), LibraryError(TLS, 13, "ASN1 lib")]) == "wrong tag"
    )
    assert unreadable_certificate([LibraryError(TLS, 199, "none")]) == ""


def test_what_another_call_left_is_not_the_fault_of_a_record() -> None:
    bad = LibraryError(TLS, 281, "bad record mac")
    assert record_fault([LEFT_OVER, bad]) == ("a TLS record was refused: bad record mac", None)
    assert record_fault([LibraryError(ASN1, 1048, "x")]) == ("a TLS record was refused: protocol error", None)
    assert record_fault([LEFT_OVER])[1] == "unknown_ca"
    assert record_fault([LibraryError(TLS, 0x80103, "internal error")]) == (
        "a TLS record was refused: internal error",
        None,
    )


@pytest.mark.parametrize(
    ("number", "depth", "reason"),
    [
        (10, 0, Reason.EXPIRED),
        (9, 1, Reason.NOT_YET_VALID),
        (20, 0, Reason.UNKNOWN_CA),
        (23, 1, Reason.REVOKED),
        (47, 0, Reason.WRONG_TRUST_DOMAIN),
        (9999, 0, Reason.BAD_IDENTITY),
        (9999, 1, Reason.UNKNOWN_CA),
    ],
)
def test_every_error_of_a_chain_has_a_reason(number: int, depth: int, reason: Reason) -> None:
    fault = chain_fault(number, depth, "as OpenSSL says")
    assert fault.reason is reason
    assert "as OpenSSL says" in fault.detail
    assert (f"{depth} above it" in fault.detail) == (depth > 0)


@pytest.mark.parametrize(
    ("alert", "reason", "said"),
    [
        (70, Reason.TLS_VERSION, "tls_version"),
        (48, Reason.PEER_REFUSED, "unknown_ca"),
        (42, Reason.PEER_REFUSED, "bad_certificate"),
        (200, Reason.PEER_REFUSED, "alert 200"),
    ],
)
def test_every_alert_has_a_reason(alert: int, reason: Reason, said: str) -> None:
    refused = alert_refusal(alert)
    assert (refused.reason, refused.peer_reason, alert_name(alert)) == (reason, said, said)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"GET / HTTP/1.1", "plain HTTP"),
        (b"PRI * HTTP/2.0", "plain HTTP/2"),
        (b"SSH-2.0-x", "SSH"),
        (b"PROXY TCP4", "the PROXY protocol"),
        (b"*1\r\n$4", "plaintext (Redis, it seems)"),
        (b"\x00\x00\x00\x08", "plaintext (PostgreSQL, it seems)"),
        (b"220 mail", "plaintext (SMTP or FTP, it seems)"),
    ],
)
def test_talkers_are_told_apart(first: bytes, name: str) -> None:
    assert talker(first) == name


def test_what_an_unknown_talker_said_is_not_quoted() -> None:
    assert talker(b"hunter2 is my password") == "plaintext (first byte 0x68)"


@pytest.mark.parametrize(
    ("errors", "altered"),
    [
        ([LibraryError(20, 281, "bad record mac")], True),
        ([LibraryError(20, 149, "digest check failed")], True),
        ([LibraryError(20, 281, "bad record mac"), LibraryError(20, 100, "another")], True),
        ([LibraryError(6, 281, "of another library")], False),
        ([LibraryError(20, 100, "another")], False),
        ([], False),
    ],
)
def test_what_says_that_a_handshake_was_altered(errors: list[LibraryError], altered: bool) -> None:
    assert handshake_refusal(errors).altered is altered
