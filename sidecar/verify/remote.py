"""The stranger's part where another process plays it: the question and the answer as text. I/O in :func:`play`.

In a Compose project the listeners are on a network that the host may not reach, and a stranger is more honest there: it is
in a container of that network. It gets the probe's own certificates on its stdin, and nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidecar.verify import stranger
from sidecar.verify.judgement import Attempt, Listener, Outcome, Seen
from sidecar.verify.stranger import Credential


def question(wanted: Sequence[tuple[Listener, Attempt]], credentials: Mapping[Attempt, Credential]) -> str:
    """What to try."""
    return json.dumps(
        {
            "attempts": [[one.service, one.port, one.address, str(what)] for one, what in wanted],
            "credentials": {str(what): [one.certificate, one.key] for what, one in credentials.items()},
        }
    )


def reach_question(addresses: Sequence[str]) -> str:
    """Which addresses to connect to."""
    return json.dumps({"reach": list(addresses)})


def play(text: str) -> str:
    """Does what a question says, from here. Returns the answer. Raises :class:`ValueError`."""
    asked: dict[str, Any] = json.loads(text)
    if "reach" in asked:
        return json.dumps({"reached": stranger.reach_all(asked["reach"])})
    wanted = [(Listener(*one[:3]), Attempt(one[3])) for one in asked["attempts"]]
    credentials = {Attempt(name): Credential(*pem) for name, pem in asked["credentials"].items()}
    seen = stranger.attempt_all(wanted, credentials)
    return json.dumps({"seen": [[str(it.outcome), it.detail, it.source, it.presented, it.word] for it in seen]})


def attempt_all(
    send: Callable[[str], str], wanted: Sequence[tuple[Listener, Attempt]], credentials: Mapping[Attempt, Credential]
) -> list[Seen]:
    """Has each attempt made by whoever ``send`` reaches. If that fails, none of them was tried."""
    try:
        told = json.loads(send(question(wanted, credentials)))["seen"]
        found = [Seen(Outcome(one[0]), *map(str, one[1:])) for one in told]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as fault:
        return [Seen(Outcome.UNREACHABLE, f"nobody could try: {fault}")] * len(wanted)
    if len(found) != len(wanted):
        return [Seen(Outcome.UNREACHABLE, "nobody tells what was tried")] * len(wanted)
    return found


def reach_all(send: Callable[[str], str], addresses: Sequence[str]) -> list[tuple[bool | None, str]]:
    """As :func:`sidecar.verify.stranger.reach_all`, by whoever ``send`` reaches."""
    try:
        told = json.loads(send(reach_question(addresses)))["reached"]
        found = [(was if isinstance(was, bool) else None, str(detail)) for was, detail in told]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as fault:
        return [(None, f"nobody could try: {fault}")] * len(addresses)
    return found if len(found) == len(addresses) else [(None, "nobody tells what was tried")] * len(addresses)
