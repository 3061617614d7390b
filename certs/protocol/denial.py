"""The reasons for which the CA refuses a request: the words on the wire, and the HTTP status of each. Pure.

The service raises :class:`Denied` and answers with the word and its status. The client reads the word; the status decides
whether the same request may succeed later (:func:`is_passing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Denial(StrEnum):
    """The reason of a refusal: the ``error`` field of the answer, and a label of the metrics."""

    BAD_REQUEST = "bad_request"
    BAD_CSR = "bad_csr"
    BAD_PASS = "bad_pass"  # noqa: S105 (a word, not a password)
    PASS_USED = "pass_used"  # noqa: S105
    PASS_EXPIRED = "pass_expired"  # noqa: S105
    UNKNOWN_SERVICE = "unknown_service"
    NOT_ENTITLED = "not_entitled"
    KEY_REUSED = "key_reused"
    REVOKED = "revoked"
    EXPIRED = "expired"
    NO_CERTIFICATE = "no_certificate"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"

    @property
    def status(self) -> int:
        """The HTTP status of an answer with this word."""
        return _STATUS.get(self, FORBIDDEN)


class Denied(Exception):  # noqa: N818 (an answer, not an error of the program)
    """The CA refuses the request. ``message`` is for people and contains nothing secret."""

    def __init__(self, denial: Denial, message: str) -> None:
        super().__init__(f"{denial}: {message}")
        self.denial = denial
        self.message = message


INTERNAL_ERROR = "internal_error"
"""The word of an answer after a bug in the CA; never raised as a :class:`Denied`."""

FORBIDDEN = 403
INTERNAL_ERROR_STATUS = 500
_TOO_MANY = 429

_STATUS: Mapping[Denial, int] = MappingProxyType(
    {
        Denial.BAD_REQUEST: 400,
        Denial.BAD_CSR: 400,
        Denial.KEY_REUSED: 400,
        Denial.NO_CERTIFICATE: 401,
        Denial.RATE_LIMITED: _TOO_MANY,
        Denial.UNAVAILABLE: 503,
    }
)


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later: a rate limit was reached, or the CA has a fault."""
    return status == _TOO_MANY or status >= 500
