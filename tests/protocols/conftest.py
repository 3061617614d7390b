"""What the protocol matrix shares with the tests of real processes: the newcomer's shop."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.protocols.foreign")

from tests.integration.conftest import made_shop as made_shop  # noqa: E402 (after the line above, which is about imports)
from tests.integration.conftest import shop as shop  # noqa: E402
