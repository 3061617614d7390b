"""What `sidecar dev --dashboard` shows: the document of a CA, so that everything that reads the one reads the other."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from certs.protocol import report
from sidecar.dashboard.view import Watching
from sidecar.dev import reporting
from sidecar.dev.dev_mesh import DevMesh
from sidecar.dev.reporting import Callers
from sidecar.host.clock import utc_now
from sidecar.observe.logs import Log
from sidecar.policy.mesh import load_mesh
from tests.beds.dev_mesh import MeshFile
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE


async def test_each_sidecar_s_report_is_one_that_a_ca_would_take(tmp_path: Path) -> None:
    with MeshFile(tmp_path) as file:
        mesh = DevMesh(file.path, Log(LogSink(), "json"))
        try:
            found = mesh.shown()
            async with aclosing(mesh.looks(lambda: True)) as looks:
                with trio.fail_after(PATIENCE):
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


async def test_nobody_looks_while_nobody_wants_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    with MeshFile(tmp_path) as file:
        mesh = DevMesh(file.path, Log(LogSink(), "json"))
        try:
            wanted: list[bool] = []
            async with aclosing(mesh.looks(lambda: bool(wanted))) as looks:
                with trio.move_on_after(60) as waited:
                    await anext(looks)
                assert waited.cancelled_caught
            wanted.append(True)
            async with aclosing(mesh.looks(lambda: bool(wanted))) as looks:
                assert (await anext(looks))["reports"]
        finally:
            for listener in mesh._listeners():
                listener.server.close()


async def test_what_is_refused_and_what_is_not_open_is_told(tmp_path: Path) -> None:
    with MeshFile(tmp_path) as file:
        mesh = DevMesh(file.path, Log(LogSink(), "json"))
        try:
            web = file.name("web")
            entry = mesh._planned(mesh._sidecars[web])[0]
            mesh._faults.report("mesh", "mesh.yaml:3: no")
            mesh._closed[web, entry] = "port 80 is taken"
            told = {one["identity"].rpartition("/")[2]: one["report"] for one in mesh.shown()["reports"]}
            assert {name: one["reload_refused"] for name, one in told.items()} == {
                name: ["mesh.yaml:3: no"] for name in told
            }
            assert {name for name, one in told.items() if one["waiting"]} == {web}
            view = Watching("dev").take(json.loads(json.dumps(mesh.shown())), utc_now())
            assert view["verdict"]["state"] == "look"
            mesh._faults.report("mesh", None)
            assert not any(one["report"]["reload_refused"] for one in mesh.shown()["reports"])
        finally:
            for listener in mesh._listeners():
                listener.server.close()


def test_who_may_call_is_asked_once_a_policy_and_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def told(_mesh: Any, service: str, _port: str, _now: datetime) -> list[str]:
        asked.append(service)
        return [service]

    monkeypatch.setattr(reporting, "callers", told)
    with MeshFile(tmp_path) as file:
        mesh, now, kept = load_mesh(file.path), utc_now(), Callers()
        assert [kept(mesh, name, "http", now) for name in "aab"] == [["a"], ["a"], ["b"]]
        assert asked == ["a", "b"]
        kept(mesh, "a", "http", now + timedelta(days=1))
        kept(replace(mesh, version="another"), "a", "http", now + timedelta(days=1))
        assert asked == ["a", "b", "a", "a"]
