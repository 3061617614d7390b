"""What an impostor presented, kept as files: at most :data:`MAX_FILES` in one directory, the oldest give way.

One JSON file an alarm: the alarm as it was when it was met, the time, and every certificate that was presented, as PEM and
in words, escaped. Nobody's key and no byte of an app is in it. The directory has mode 0700, each file 0600. It is for
people: nothing reads it again, and no decision rests on it. A full disk loses the evidence and nothing else: the alarm is in
the log.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sidecar.host.atomic import SECRET, NewFile, write_files
from sidecar.host.private import Alone, exposure
from sidecar.identity.spiffe import claims
from sidecar.observe.alarms import Alarm

MAX_FILES = 32
MAX_CERTIFICATES = 8

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}\.json")


def keep(directory: Path, alarm: Alarm, presented: Sequence[bytes], at: datetime) -> Path:
    """Writes the evidence of an alarm and returns the file. ``presented``: certificates in DER, leaf first. Blocks: to be
    called in a thread. Raises :class:`OSError`; then no file was added."""
    name = f"{at:%Y%m%dT%H%M%SZ}-{alarm.id}.json"
    content = {
        "kept_at": f"{at:%FT%TZ}",
        "alarm": alarm.to_dict(),
        "certificates": [{**claims(der), "pem": _pem(der)} for der in presented[:MAX_CERTIFICATES]],
    }
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if exposure(os.fstat(descriptor), Alone.OURS) is not None:
            raise PermissionError(f"{directory} can be read or replaced by others")
        write_files([NewFile(name, f"{json.dumps(content, indent=2)}\n".encode(), SECRET)], dir_fd=descriptor)
        names = os.listdir(descriptor)  # noqa: PTH208 (by descriptor)
        ours = sorted(found for found in names if _NAME.fullmatch(found))
        for old in ours[:-MAX_FILES]:
            os.unlink(old, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    return directory / name


def _pem(der: bytes) -> str:
    """RFC 7468; whatever the bytes are."""
    lines = base64.encodebytes(der).decode().replace("\n", "")
    body = "\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
