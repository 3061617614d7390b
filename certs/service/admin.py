"""What the CA shows the users of its machine, by a Unix socket in its directory: the sidecars' last reports. Read-only.

:mod:`sidecar.observe.local` says who may ask: the CA's own user and root. ``certs reports`` asks. A CA whose directory takes
no socket serves all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from certs.service.reports import Reports
from sidecar.identity.reasons import UsageError
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Request, Response, Routes

SOCKET = "admin.sock"
REPORTS_PATH = "/reports"


def open_admin(directory: Path, reports: Reports, clock: Callable[[], datetime], log: Log) -> LocalServer | None:
    """The server, listening; None if it cannot, which is logged."""
    try:
        return LocalServer("the CA's admin socket", (directory / SOCKET).absolute(), routes(reports, clock), log)
    except UsageError as error:
        log.warning("admin_unavailable", message=f"{error}; `certs reports` has nobody to ask")
        return None


def routes(reports: Reports, clock: Callable[[], datetime]) -> Routes:
    async def answer(_request: Request) -> Response:
        now = clock()
        return Response.of(200, {"reports": [one.to_dict(now) for one in reports.current(now)]})

    return {REPORTS_PATH: {"GET": answer}}
