"""The vocabulary is a fixed point: what dashboards and DESIGN rely on, none renamed, none forgotten."""

from __future__ import annotations

import re

import pytest

from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused, UsageError
from sidecar.proxy.inbound import _ENDINGS as INBOUND
from sidecar.proxy.outbound import _ENDINGS as OUTBOUND
from sidecar.relay.duplex import How
from sidecar.transport.verdict import MAX_WORD

VOCABULARY = """
plaintext_refused no_certificate unknown_ca expired not_yet_valid bad_identity wrong_trust_domain unexpected_peer revoked
policy_denied tls_version handshake_failed handshake_timeout probe connect_failed peer_refused overloaded internal_error
revocations_stale
ok client_reset app_reset truncated idle_timeout max_age drained policy_changed trust_changed
"""


def test_every_word_is_there_and_no_other() -> None:
    assert [str(reason) for reason in Reason] == VOCABULARY.split()


@pytest.mark.parametrize("reason", list(Reason))
def test_a_word_is_fit_for_labels_and_for_the_verdict_frame(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z_]+", reason)
    assert len(reason) <= MAX_WORD
    assert reason == reason.value == f"{reason}"


def test_what_may_mean_somebody_in_the_middle() -> None:
    suspicious = """
    plaintext_refused no_certificate unknown_ca bad_identity wrong_trust_domain unexpected_peer revoked tls_version
    """
    assert {str(reason) for reason in MITM_SUSPECTS} == set(suspicious.split())
    # A slow peer, a dead one, a full one, and one whose clock or certificate ran out are everyday.
    everyday = "expired not_yet_valid handshake_timeout probe connect_failed peer_refused overloaded"
    for reason in everyday.split():
        assert Reason(reason) not in MITM_SUSPECTS


def test_every_way_to_end_has_a_word_in_both_directions() -> None:
    assert INBOUND.keys() == set(How)
    assert OUTBOUND.keys() == set(How) - {How.REFUSED}  # what an app is not to get is judged before it alone
    # The same end of the wire has another name on either side of it.
    assert INBOUND[How.APP_RESET] == OUTBOUND[How.PEER_RESET] == Reason.APP_RESET
    assert INBOUND[How.PEER_RESET] == OUTBOUND[How.APP_RESET] == Reason.CLIENT_RESET


def test_a_refusal_says_its_reason_and_is_no_error_of_the_program() -> None:
    refusal = Refused(Reason.EXPIRED, "met an old one", peer_reason="x")
    assert str(refusal) == "expired: met an old one"
    assert (refusal.reason, refusal.detail, refusal.peer_reason) == (Reason.EXPIRED, "met an old one", "x")
    assert Refused(Reason.OK, "").peer_reason is None
    assert not issubclass(Refused, UsageError)
    assert not issubclass(UsageError, Refused)
