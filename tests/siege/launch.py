"""Starts one of the product's programs on one core: ``python -m tests.siege.launch CORE DESCRIPTORS DEFENCE PROGRAM …``.

``DESCRIPTORS`` is the most that it can have. ``DEFENCE`` is ``-``, and then the program is started as everybody starts it;
or the name of a defence to run it without, for the siege's own test: see :mod:`tests.siege.defences`.
"""

from __future__ import annotations

import os
import resource
import sys
from importlib import import_module

from tests.siege.defences import DEFENCES

AS_IT_IS = "-"


def main(core: str, descriptors: str, defence: str, program: str, *arguments: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))
    if defence == AS_IT_IS:
        os.execv(sys.executable, [sys.executable, "-m", program, *arguments])  # noqa: S606 (no shell is wanted)
    DEFENCES[defence].remove()
    sys.argv = [program, *arguments]
    import_module(f"{program}.__main__").main()


if __name__ == "__main__":
    main(*sys.argv[1:])
