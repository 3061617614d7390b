"""What happens to the connections of a pass, in words for the person who uses it.

A person has no log to read: what went well says nothing, and what was refused says why, and whom to ask. Text of the other
end is escaped by :class:`~sidecar.observe.logs.Log`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from sidecar.documents.printable import printable
from sidecar.identity.reasons import MITM_SUSPECTS, Reason
from sidecar.observe.logs import Log

ASK = "ask whoever gave you the pass"

_VERDICTS = {
    Reason.POLICY_DENIED: f"{{callee}} does not let you in: no rule of its mesh allows {{person}} to call it now; {ASK}",
    Reason.REVOKED: f"{{callee}} does not let you in: this pass was revoked; {ASK}",
    Reason.EXPIRED: f"{{callee}} does not let you in: this pass has ended; {ASK} for another",
    Reason.NOT_YET_VALID: "{callee} does not let you in: by its clock this pass is not valid yet; try again in a minute",
    Reason.UNKNOWN_CA: f"{{callee}} does not know the CA of this pass: its root was replaced since; {ASK} for another",
    Reason.BAD_IDENTITY: f"{{callee}} refuses the certificate of this pass: it is longer-lived than the mesh allows; {ASK}",
    Reason.CONNECT_FAILED: "{callee}'s sidecar has let you in, but its app does not answer",
    Reason.OVERLOADED: "{callee} has reached its limit of connections: try again",
    Reason.DRAINED: "{callee}'s sidecar is stopping: try again",
    Reason.REVOCATIONS_STALE: "{callee}'s sidecar has heard nothing of its CA for too long, so it lets nobody in; try later",
}
"""What the callee answered, by its reason."""

_OWN = {
    Reason.POLICY_DENIED: "{message}",
    Reason.CONNECT_FAILED: "cannot reach {callee} at {at}: {message}",
    Reason.HANDSHAKE_TIMEOUT: "no answer of {callee} at {at}: {message}",
    Reason.TRUNCATED: "the connection to {callee} was cut: by its sidecar, if your pass was revoked or its rule taken away",
    Reason.APP_RESET: "",
    Reason.CLIENT_RESET: "",
    Reason.OK: "",
    Reason.DRAINED: "",
    Reason.MAX_AGE: "",
    Reason.IDLE_TIMEOUT: "",
}
"""What this end found, by its reason. What is empty, the program notices by itself."""


def told(line: Mapping[str, Any], person: str, at: str) -> str:
    """One connection's line of the log as a sentence; empty if there is nothing to say. ``at``: where the callee is."""
    reason, verdict = line.get("reason"), line.get("peer_reason")
    message = str(line.get("message") or "").removeprefix("refused: ").removeprefix(f"{person} ")
    known = {"callee": line.get("upstream"), "person": person, "at": at, "message": message}
    if reason == Reason.PEER_REFUSED and verdict in _VERDICTS:
        return _VERDICTS[Reason(verdict)].format(**known)
    if reason in MITM_SUSPECTS:
        return f"ALARM: what answers at {at} is not {line.get('upstream')}: {message}; nothing was sent to it; {ASK}"
    if reason in _OWN:
        return _OWN[Reason(reason)].format(**known)
    return f"{line.get('upstream')}: {verdict or reason}: {message}" if message else ""


class PersonLog(Log):
    """A log for a person: a line of text for what went wrong. The alarm of a connection is its own line."""

    def __init__(self, person: str, at: str, stream: TextIO | None = None) -> None:
        super().__init__(stream or sys.stderr, "console")
        self._person, self._at = person, at

    def say(self, text: str) -> None:
        self.text(f"sidecar connect: {printable(text)}")

    def connection(self, line: dict[str, Any]) -> None:
        if text := told(line, self._person, self._at):
            self.say(text)

    def summary(self, line: dict[str, Any]) -> None:
        """There are no strangers at a port of one's own."""

    def alarm(self, event: str, *, severe: bool = True, **fields: Any) -> None:
        """See :meth:`connection`."""

    def info(self, event: str, **fields: Any) -> None:
        """Nothing of these is for a person."""

    def warning(self, event: str, **fields: Any) -> None:
        self.say(f"{event}: {fields.get('message', '')}")
