"""What the CA shows the users of its machine, by a Unix socket in its directory: the sidecars' last reports, and the alarms
of the mesh. Read-only.

:mod:`sidecar.observe.local` says who may ask: the CA's own user and root. ``certs reports`` and ``certs alarms`` ask, and
who looks at the mesh for long follows all of it at once (``/follow``, :class:`Following`). A CA whose directory takes no
socket serves all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import trio

from certs.protocol.looking import ALARMS_PATH, FOLLOW_PATH, REPORTS_PATH, SOCKET
from certs.service.api import Snapshot
from certs.service.reports import Reports
from sidecar.identity.reasons import UsageError
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Feed, Request, Response, Routes

REST_SECONDS = 4.0
"""So long after a look there is no other. A sidecar reports each five seconds."""

LATE_SECONDS = 6.0
"""After so long there is one though no report came: what is silent gets older."""

Alarms = Callable[[], list[dict[str, Any]]]
Own = Callable[[], dict[str, Any]]


def open_admin(
    directory: Path,
    reports: Reports,
    clock: Callable[[], datetime],
    log: Log,
    alarms: Alarms = list,
    in_force: Callable[[], Snapshot] | None = None,
) -> LocalServer | None:
    """The server, listening; None if it cannot, which is logged. ``alarms``: those in force, the newest last.
    ``in_force``: the CA's own state."""
    try:
        served = routes(reports, clock, alarms, dict if in_force is None else lambda: own(in_force()))
        return LocalServer("the CA's admin socket", (directory / SOCKET).absolute(), served, log)
    except UsageError as error:
        log.info("admin_unavailable", message=f"{error}; `certs reports` has nobody to ask")
        return None


def own(state: Snapshot) -> dict[str, Any]:
    """What the CA says of itself: whose it is, the services of its mesh file, and when what it signs with ends."""
    return {
        "trust_domain": state.bundle.trust_domain,
        "services": list(state.policy.services),
        "issuing_until": f"{state.policy.authority.issuer.certificate.not_valid_after_utc:%FT%TZ}",
        "root_until": f"{max(root.not_valid_after_utc for root in state.bundle.roots):%FT%TZ}",
        "policy": state.mesh_version,
        "bundle": state.bundle.version,
    }


def routes(reports: Reports, clock: Callable[[], datetime], alarms: Alarms = list, own: Own = dict) -> Routes:
    async def answer(_request: Request) -> Response:
        now = clock()
        return Response.of(200, {"reports": [one.to_dict(now) for one in reports.current(now)]})

    async def answer_alarms(_request: Request) -> Response:
        return Response.of(200, {"alarms": alarms()})

    following = Following(lambda: _line(reports, clock(), own(), alarms()))
    reports.heard = following.heard

    async def answer_follow(_request: Request) -> Response:
        return Feed(200, parts=following.lines)

    return {
        REPORTS_PATH: {"GET": answer},
        ALARMS_PATH: {"GET": answer_alarms},
        FOLLOW_PATH: {"GET": answer_follow},
    }


class Following:
    """A line at once to each caller that begins to follow, then one to all of them each few seconds, as ``line`` makes it:
    when a report has come. The process is awake then, with all that a line needs in the processor's caches, so it costs a
    fraction of what a timer's line does."""

    def __init__(self, line: Callable[[], bytes]) -> None:
        self._line = line
        self._told = -math.inf
        self._news = trio.Event()

    def heard(self) -> None:
        """A report has come."""
        now = trio.current_time()
        if now - self._told >= REST_SECONDS:
            self._told = now
            self._news.set()
            self._news = trio.Event()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        while True:
            news = self._news
            yield self._line()
            with trio.move_on_after(LATE_SECONDS):
                await news.wait()


def _line(reports: Reports, now: datetime, own: Mapping[str, Any], alarms: list[dict[str, Any]]) -> bytes:
    """All of the mesh. The reports are JSON already, and stay so."""
    head = json.dumps({"now": f"{now:%FT%TZ}", "ca": own, "alarms": alarms})
    kept = b",".join(one.to_json(now) for one in reports.current(now))
    return b"".join((head[:-1].encode(), b', "reports": [', kept, b"]}\n"))
