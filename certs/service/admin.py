"""What the CA shows the users of its machine, by a Unix socket in its directory: the sidecars' last reports, and the alarms
of the mesh. Read-only.

:mod:`sidecar.observe.local` says who may ask: the CA's own user and root. ``certs reports`` and ``certs alarms`` ask. A CA
whose directory takes no socket serves all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from certs.service.reports import Reports
from sidecar.identity.reasons import UsageError
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Request, Response, Routes

SOCKET = "admin.sock"
REPORTS_PATH = "/reports"
ALARMS_PATH = "/alarms"

Alarms = Callable[[], list[dict[str, Any]]]


def open_admin(
    directory: Path, reports: Reports, clock: Callable[[], datetime], log: Log, alarms: Alarms = list
) -> LocalServer | None:
    """The server, listening; None if it cannot, which is logged. ``alarms``: those in force, the newest last."""
    try:
        served = routes(reports, clock, alarms)
        return LocalServer("the CA's admin socket", (directory / SOCKET).absolute(), served, log)
    except UsageError as error:
        log.info("admin_unavailable", message=f"{error}; `certs reports` has nobody to ask")
        return None


def routes(reports: Reports, clock: Callable[[], datetime], alarms: Alarms = list) -> Routes:
    async def answer(_request: Request) -> Response:
        now = clock()
        return Response.of(200, {"reports": [one.to_dict(now) for one in reports.current(now)]})

    async def answer_alarms(_request: Request) -> Response:
        return Response.of(200, {"alarms": alarms()})

    return {REPORTS_PATH: {"GET": answer}, ALARMS_PATH: {"GET": answer_alarms}}
