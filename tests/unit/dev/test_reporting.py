"""What `sidecar dev --dashboard` shows: the document of a CA, so that everything that reads the one reads the other."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import trio

from certs.protocol import report
from sidecar.dashboard.view import Watching
from sidecar.dev.dev_mesh import DevMesh
from sidecar.host.clock import utc_now
from sidecar.observe.logs import Log
from tests.beds.dev_mesh import MeshFile
from tests.beds.mesh import LogSink


async def test_each_sidecar_s_report_is_one_that_a_ca_would_take(tmp_path: Path) -> None:
    with MeshFile(tmp_path) as file:
        mesh = DevMesh(file.path, Log(LogSink(), "json"))
        try:
            found = mesh.shown()
            async with aclosing(mesh.looks()) as looks:
                with trio.fail_after(10):
                    assert (await anext(looks))["ca"] == found["ca"]
        finally:
            for listener in mesh._listeners():
                listener.server.close()
        assert len(found["reports"]) == 4
        for one in found["reports"]:
            taken = report.parse(report.encode(one["report"]))
            assert (taken["healthy"], taken["policy"]) == (True, found["ca"]["policy"])
            assert (
                timedelta(0)
                < mesh._sidecars[one["identity"].rpartition("/")[2]].renews_at - utc_now()
                < timedelta(hours=1)
            )
        view = Watching("dev").take(json.loads(json.dumps(found)), utc_now())
        assert view["verdict"]["state"] == "good"
        assert set(view["services"]) == {file.name(name) for name in ("web", "job", "api", "db")}
        assert {one["state"] for one in view["pairs"].values()} == {"idle"}
        web = view["services"][file.name("web")]
        assert web["certificate"] == "good"
        assert web["renews_at"] < web["not_after"]
