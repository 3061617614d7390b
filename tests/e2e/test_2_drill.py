"""The man-in-the-middle drill, as a person runs it."""

from __future__ import annotations

import sys

from tests.e2e.engine import ROOT, run
from tests.e2e.figures import FIGURES


def test_an_attacker_wins_against_the_plain_shop_and_loses_against_the_mesh() -> None:
    said = run(sys.executable, str(ROOT / "compose/mitm-drill/drill.py"), seconds=240)
    rows = said.splitlines()
    assert "web:correct-horse" in rows[1]
    assert "ciphertext" in rows[1]
    assert "costs 00.01" in rows[2]
    assert "the connection breaks (truncated)" in rows[2]
    assert "unexpected_peer, mitm_suspected" in rows[3]
    FIGURES["the drill"] = "\n" + said
