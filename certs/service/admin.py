"""What the CA shows the users of its machine, by a Unix socket in its directory: the sidecars' last reports, and the alarms
of the mesh. Read-only.

:mod:`sidecar.observe.local` says who may ask: the CA's own user and root. ``certs reports`` and ``certs alarms`` ask, and
who looks at the mesh for long asks for all of it at once (``/mesh``), again and again on one connection. A CA whose
directory takes no socket serves all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from certs.protocol.looking import MESH_PATH, SOCKET
from certs.service.api import Snapshot
from certs.service.reports import Reports
from sidecar.identity.reasons import UsageError
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Request, Response, Routes

REPORTS_PATH = "/reports"
ALARMS_PATH = "/alarms"

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

    async def answer_mesh(_request: Request) -> Response:
        # It is asked every few seconds for as long as somebody looks: the reports are JSON already, and stay so.
        now = clock()
        head = json.dumps({"now": f"{now:%FT%TZ}", "ca": own(), "alarms": alarms()})
        kept = b",".join(one.to_json(now) for one in reports.current(now))
        return Response(200, b"".join((head[:-1].encode(), b', "reports": [', kept, b"]}\n")))

    return {
        REPORTS_PATH: {"GET": answer},
        ALARMS_PATH: {"GET": answer_alarms},
        MESH_PATH: {"GET": answer_mesh},
    }
