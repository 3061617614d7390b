"""A member to be killed again and again: for each line of stdin, the path of a sidecar.yaml, one life of it in a process of
its own, which joins and then renews without a pause. Forked, so that a life begins in milliseconds.

It says ``{"event": "born", "pid": …}`` and ``{"event": "dead"}``; in between the member logs.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path

import trio

from sidecar.agent import agent, membership
from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import load_config
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.observe.logs import Log


def main() -> None:
    vars(agent).update(POLL_SECONDS=0.001)
    vars(membership).update(refresh_at=_at_once)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            trio.run(_live, Path(line.strip()))
            os._exit(0)
        print(json.dumps({"event": "born", "pid": pid}), flush=True)
        os.waitpid(pid, 0)
        print(json.dumps({"event": "dead"}), flush=True)


async def _live(file: Path) -> None:
    config = load_config(file, {})
    assert isinstance(config.identity, CaIdentity)
    one = Agent(config.service, config.identity, lambda: config.mesh, Log(style="json"), utc_now)
    await one.enrol()
    await one.run(_adopt)


async def _adopt(_loaded: Credentials, _revocations: Revocations) -> None:
    """Nobody calls it here."""


def _at_once(_not_before: datetime, _not_after: datetime, _chance: float) -> datetime:
    return utc_now()


if __name__ == "__main__":
    main()
