"""``python -m certs`` is ``certs``."""

from __future__ import annotations

from certs.cli import main

main(prog_name="certs")
