"""One entry: what a word means, its likely causes, what to do next. Pure.

In ``causes`` and ``steps`` a command is quoted in backticks. Names in capitals stand for what only a line of the log knows,
such as ``CALLER``; :func:`filled` puts it in. A value comes from a log, which may quote an attacker, and a person may paste
the command into a shell: so a value that is not plain stays out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class Kind(StrEnum):
    """Where a word is met."""

    REASON = "reason of a connection"
    ALERT = "TLS alert of a peer"
    DENIAL = "refusal of the CA"
    EVENT = "event of the log"


Side = Literal["", "inbound", "outbound"]
"""At which end: ``inbound`` is the sidecar that was called, ``outbound`` the one that calls."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What ``word`` means. ``side``: at that end only; empty where it means the same at both. ``causes``: the likeliest
    first. ``steps``: what to do next, in this order. Both are empty where nobody has to act."""

    kind: Kind
    word: str
    means: str
    causes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    side: Side = ""

    def as_json(self) -> dict[str, Any]:
        """As plain values; what is empty is left out, except the two lists."""
        side = {"side": self.side} if self.side else {}
        return {"kind": str(self.kind), **side, "means": self.means, "causes": [*self.causes], "next": [*self.steps]}


PLACEHOLDERS: Mapping[str, str] = {
    "ADDRESS": "the other end's address, host:port",
    "BUNDLE": "the CA's newest bundle.json",
    "CALLER": "the service that calls",
    "CERTIFICATE": "a certificate's file",
    "DIR": "the CA's directory (after `sidecar inject`: STATE/ca)",
    "FILE": "the sidecar.yaml",
    "HOST": "the other end's host",
    "ID": "the connection_id of the line",
    "LOG": "a log file, or - for stdin",
    "MESH": "the mesh.yaml (after `sidecar inject`: mesh/mesh.yaml)",
    "REASON": "the reason of the line",
    "SECRET": "the file of the enrolment secret, as `enrolment:` of the sidecar names it",
    "SERVICE": "the service whose sidecar wrote the line",
    "URL": "what `alarm: {url: …}` of the CA names",
    "TARGET": "the service that is called and its port, such as db:5432",
}
"""The names in capitals, and what each stands for."""

_NAMES = re.compile(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b")
_PLAIN = re.compile(r"[\w./:@\[][\w./:@%\[\]-]{0,255}", re.ASCII)


def filled(text: str, known: Mapping[str, str]) -> str:
    """``text`` with the names in capitals replaced by what is ``known``, where that is plain: no shell reads more than a
    word into it, and no command takes it for an option."""
    return _NAMES.sub(lambda name: _plain(known.get(name[0], "")) or name[0], text)


def names_in(text: str) -> set[str]:
    """The names in capitals that are left in a text."""
    return set(_NAMES.findall(text))


def _plain(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else ""
