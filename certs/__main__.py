"""The entry point of ``python -m certs`` and of the ``certs`` command."""

from __future__ import annotations

import gc
from importlib import import_module

from sidecar.host import unused


def main() -> None:
    unused.postpone()
    gc.disable()  # until the command is loaded: see CommandGroup
    import_module("certs.cli.commands").main(prog_name="certs")


if __name__ == "__main__":
    main()
