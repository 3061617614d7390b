"""`sidecar verify` as a program: of a running `sidecar dev`, of sidecars by their files, of bare addresses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.identity.reasons import UsageError
from sidecar.observe import probe
from sidecar.verify import places
from sidecar.verify.judgement import Attempt
from tests.beds.dev_mesh import MeshFile
from tests.beds.mesh import mesh_bed
from tests.beds.processes import SIDECAR, Running, Shop, SidecarProcess, free_port, output, running, sidecar_process


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MeshFile]:
    with MeshFile(tmp_path) as made:
        yield made


@asynccontextmanager
async def dev(file: MeshFile, runtime: str) -> AsyncIterator[Running]:
    command = [*SIDECAR, "dev", "--log", "json"]
    async with running(*command, variables={"XDG_RUNTIME_DIR": runtime}, cwd=file.path.parent) as program:
        await program.line("started")
        yield program


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import tempfile  # the path of a Unix socket is short

    with tempfile.TemporaryDirectory() as directory:
        yield directory


async def verified(*arguments: str | Path, code: int = 0, **variables: str) -> dict[str, Any]:
    """The report as JSON."""
    text = await output(*SIDECAR, "verify", "--json", *arguments, check=code == 0, variables=variables)
    found: dict[str, Any] = json.loads(text)
    assert found["proved"] is (code == 0)
    return found


async def test_a_mesh_on_a_laptop_is_proved_without_its_apps(file: MeshFile, runtime: str) -> None:
    async with dev(file, runtime) as program:
        report = await verified(file.path, XDG_RUNTIME_DIR=runtime)
        edges = [one for one in report["checks"] if one["kind"] == "edge"]
        assert len(edges) == 3
        assert {one["status"] for one in report["checks"]} == {"ok"}
        assert len(report["certificates"]) == 4
        assert any(text.startswith("apps on this machine") for text in report["not_covered"])
        assert program.events("mitm_suspected") == []
        assert {line["reason"] for line in program.events("connection") if line.get("probe")} == {
            "probe", "unknown_ca", "policy_denied",
        }  # fmt: skip


async def test_through_the_apps_it_fails_where_none_is(file: MeshFile, runtime: str) -> None:
    async with dev(file, runtime):
        text = await output(
            *SIDECAR, "verify", file.path, "--through-app", check=False, variables={"XDG_RUNTIME_DIR": runtime}
        )
        assert "NOT PROVED" in text
        assert "connect_failed" in text


async def test_a_mesh_that_does_not_run_is_a_mistake(file: MeshFile, runtime: str) -> None:
    text = await output(*SIDECAR, "verify", file.path, check=False, variables={"XDG_RUNTIME_DIR": runtime})
    assert text.startswith(f"error: {file.path}: no `sidecar dev` of this file answers")


@asynccontextmanager
async def pair(shop: Shop, directory: str) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, list[Path]]]:
    """web's and api's sidecars as processes, before an app; and their files."""
    number = free_port()
    async with mesh_bed() as bed:
        app = await bed.app()
        there = shop.wiring(
            "api",
            f'inbound: [{{port: http, listen: "127.0.0.1:{number}", app: "{app.address}"}}]\n'
            f'admin: {{listen: "127.0.0.1:0", socket: "{directory}/api.sock"}}\n',
        )
        here = shop.wiring(
            "web",
            f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["127.0.0.1:{number}"]}}]\n'
            f'admin: {{listen: "unix:{directory}/web.sock"}}\n',
        )
        async with sidecar_process(there) as api, sidecar_process(here) as web:
            yield web, api, [here, there]


async def test_sidecars_by_their_files_with_reports_for_everybody(tmp_path: Path, runtime: str) -> None:
    shop = Shop.make(tmp_path / "shop", ["web", "api", "mesh/probe"])
    async with pair(shop, runtime) as (_, api, files):
        junit, html = tmp_path / "report.xml", tmp_path / "report.html"
        own: list[str | Path] = ["--identity", shop.path / "mesh" / "probe", "--junit", junit, "--html", html]
        report = await verified(*files, *own, "--app", f"api=127.0.0.1:{free_port()}")
        assert [one["kind"] for one in report["checks"] if one["subject"] == "web -> api:http"] == ["edge", "policy"]
        assert "<testsuite" in junit.read_text()
        assert "<!doctype html>" in html.read_text()
        assert api.program.events("connection", reason="probe", decision="allow")


async def test_what_acts_is_on_the_unix_socket_only(tmp_path: Path, runtime: str) -> None:
    shop = Shop.make(tmp_path / "shop", ["web", "api"])
    async with pair(shop, runtime) as (_, api, _):
        tcp, _, unix = api.program.events("started")[0]["admin"].partition(", ")
        questions = [("/probe/seen", None), ("/probe/expect", b"{}"), ("/probe", b"{}")]
        for target, sent in questions:
            assert (await trio.to_thread.run_sync(probe.ask, tcp, target, sent))[0] == 404
            assert (await trio.to_thread.run_sync(probe.ask, f"unix:{unix}", target, sent))[0] in (200, 400)
        assert (await trio.to_thread.run_sync(probe.ask, tcp, "/status"))[0] == 200


async def test_a_person_probes_by_hand(tmp_path: Path, runtime: str) -> None:
    shop = Shop.make(tmp_path / "shop", ["web", "api"])
    async with pair(shop, runtime) as (_, _, (here, _)):
        assert " ok  spiffe://shop.internal/api" in await output(*SIDECAR, "probe", here, "api:http", "--through-app")
        refused = await output(*SIDECAR, "probe", here, "api:http", check=False)
        assert "REFUSED  peer_refused" in refused
        assert "api:metrics  NOT CALLED: not_declared" in await output(
            *SIDECAR, "probe", here, "api:metrics", check=False
        )
        by_name = {"SIDECAR_ADMIN_SOCKET": f"{runtime}/web.sock"}
        told = await output(*SIDECAR, "probe", "api:http", "--through-app", "--json", variables=by_name)
        assert json.loads(told)[0]["results"][0]["result"] == "ok"


async def test_bare_addresses_are_tried_and_what_cannot_be_known_is_said(tmp_path: Path, runtime: str) -> None:
    shop = Shop.make(tmp_path / "shop", ["web", "api"])
    async with pair(shop, runtime) as (_, api, _):
        report = await verified(f"api:http={api.at('http')}")
        assert {one["kind"] for one in report["checks"]} == {"plaintext", "no certificate", "foreign CA", "TLS 1.2"}
        said = " ".join(report["not_covered"])
        assert "why api refused" in said
        assert "valid identity, no rule: no certificate of mesh/probe was given" in said


async def test_an_address_where_nobody_listens_is_no_pass() -> None:
    report = await verified(f"api:http=127.0.0.1:{free_port()}", code=1)
    assert {one["status"] for one in report["checks"]} == {"not tried"}


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no host:port"):
        places.listed(["api:http=nowhere"], {}, [])
    with pytest.raises(UsageError, match="SERVICE=HOST:PORT"):
        places.listed([], {}, ["127.0.0.1"])
    with pytest.raises(UsageError, match=r"has no certificate\.pem"):
        places.listed([], {Attempt.NO_RULE: tmp_path}, [])


async def test_a_port_on_every_address_is_tried_on_loopback(tmp_path: Path) -> None:
    shop = Shop.make(tmp_path, ["api"])
    file = shop.wiring("api", 'inbound: [{port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:9"}]\n')
    place = await trio.to_thread.run_sync(places.listed, [str(file)], {}, [])
    assert [str(one) for one in place.listeners] == ["api:http at 127.0.0.1:8080"]
    assert place.doors == {}


async def test_the_port_of_a_sidecar_s_own_metrics_is_tried_as_any_other(tmp_path: Path, runtime: str) -> None:
    shop = Shop.make(tmp_path / "shop", ["api", "mesh/probe"])
    number = free_port()
    file = shop.wiring("api", f'admin: {{listen: "unix:{runtime}/api.sock", mesh_listen: "127.0.0.1:{number}"}}\n')
    async with sidecar_process(file):
        report = await verified(file, "--identity", shop.path / "mesh" / "probe")
        tried = {one["kind"] for one in report["checks"] if one["subject"].startswith("api:mesh-admin at")}
        assert tried == {
            "plaintext", "no certificate", "foreign CA", "TLS 1.2", "valid identity, no rule", "who answers",
        }  # fmt: skip
