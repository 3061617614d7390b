"""How long a test waits for what is to come."""

import os

PATIENCE = float(os.environ.get("TEST_PATIENCE", 60.0))
"""Seconds after which a test that waits for something has failed: generous, since only a failing test reaches it, however
loaded the machine is. Tests of mutants fail often, and wait for less."""
