"""The words of a refusal, and what a client may conclude from its status."""

from __future__ import annotations

import pytest

from certs.protocol.denial import INTERNAL_ERROR_STATUS, Denial, Denied, is_passing
from tests.beds.store import DOMAIN


def test_a_denial_says_its_word_and_its_reason() -> None:
    denied = Denied(Denial.RATE_LIMITED, "try again later")
    assert str(denied) == "rate_limited: try again later"
    assert (denied.denial, denied.message) == (Denial.RATE_LIMITED, "try again later")
    assert DOMAIN not in str(denied)


@pytest.mark.parametrize("denial", Denial)
def test_a_refusal_is_a_client_s_fault_unless_the_store_is_gone(denial: Denial) -> None:
    assert (500 <= denial.status < 600) == (denial is Denial.UNAVAILABLE)
    assert denial.status >= 400


def test_only_too_often_and_a_fault_of_the_ca_s_pass() -> None:
    passing = {denial for denial in Denial if is_passing(denial.status)}
    assert passing == {Denial.RATE_LIMITED, Denial.UNAVAILABLE}
    assert is_passing(INTERNAL_ERROR_STATUS)
    assert not any(is_passing(status) for status in (200, 304, 400, 401, 403, 404, 428, 430, 499))
