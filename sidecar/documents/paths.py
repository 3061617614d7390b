"""File names that a file gives, relative to it. Pure, but for the disk.

``/etc/mesh/sidecars`` and ``../mesh.yaml`` are ``/etc/mesh/mesh.yaml``, and so messages should say. But where ``sidecars``
is a symbolic link, ``..`` leads out of where it points, and a swapped link may be the way in which new files arrive: so such
a name stays as it is, and no link is ever resolved here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def joined(directory: Path, name: str | Path, is_link: Callable[[Path], bool] = os.path.islink) -> Path:
    """The file ``name``, relative to ``directory``, without a ``..`` that only goes back from a real directory."""
    path = directory / name
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts == [path.anchor]:
            continue  # the root's parent is the root
        if part == ".." and parts and parts[-1] != ".." and not is_link(Path(*parts)):
            parts.pop()
        else:
            parts.append(part)
    return Path(*parts)
