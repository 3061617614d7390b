"""The entry point of ``python -m sidecar`` and of the ``sidecar`` command."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

from sidecar.observe import probe


def main() -> None:
    """Runs the command line. A health check without a file is answered before anything else is loaded, since it runs every
    few seconds beside every service."""
    listen = os.environ.get(probe.LISTEN)
    if sys.argv[1:] == ["health"] and listen:
        raise SystemExit(probe.health(listen))
    import_module("sidecar.host.unused").postpone()
    gc.disable()  # until the command is loaded: see CommandGroup
    import_module("sidecar.cli.commands").main(prog_name="sidecar")


if __name__ == "__main__":
    main()
