"""``python -m sidecar``, and what the ``sidecar`` command starts."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from sidecar.observe import probe


def main() -> None:
    """The command line; but a health check that names no file is answered before anything else is loaded, for it runs every
    few seconds beside every service."""
    listen = os.environ.get(probe.LISTEN)
    if sys.argv[1:] == ["health"] and listen:
        raise SystemExit(probe.health(listen))
    import_module("sidecar.cli.commands").main(prog_name="sidecar")


if __name__ == "__main__":
    main()
