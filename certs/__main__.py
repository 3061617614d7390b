"""``python -m certs`` runs the ``certs`` command."""

from __future__ import annotations

from certs.cli.commands import main

if __name__ == "__main__":
    main(prog_name="certs")
