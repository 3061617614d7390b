"""What each program that runs for long does for its memory and its loop: asked of the process itself, as it runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ca_processes import CaSite
from tests.beds.dev_mesh import MeshFile
from tests.beds.processes import CERTS, SIDECAR, Running, Shop, running

ASKED = """\
import gc, json, signal, sys


def tell(_number, _frame):
    import trio

    def names(task):
        yield task.name
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from names(child)

    tasks = list(names(trio.lowlevel.current_root_task()))
    found = {"threshold": gc.get_threshold()[0], "switch": sys.getswitchinterval(), "tasks": tasks,
             "ends_by_hangup": signal.getsignal(signal.SIGHUP) is signal.SIG_DFL,
             "modules": sorted({name.partition(".")[0] for name in sys.modules})}
    print(json.dumps({"event": "asked", **found}), flush=True)


signal.signal(signal.SIGUSR1, tell)
"""
"""As ``sitecustomize``, which Python imports at its start."""


async def asked(program: Running) -> dict[str, Any]:
    await program.event("started")
    program.signal(signal.SIGUSR1)
    return await program.event("asked")


HEAVY = {
    "jsonschema",  # tests need it
    "multiprocessing",  # 1 MB
    "pydantic",  # 12 MB with shapes of ours, 0.2 s: `documents.schema` checks files
    "prometheus_client",  # 3 MB: its text format is a few lines (`observe.exposition`)
    "rich",  # 3 MB, for whoever has it installed: libraries load it if it is there
    "structlog",  # 3 MB, and loads asyncio and rich
}
"""What no program loads that runs for long, and why: each is memory in every container, and time before the first
connection."""

ONLY_A_CA = {
    "sqlalchemy",  # 15 MB
    "sqlite3",
    "asyncio",  # 1.5 MB, 60 ms: trio needs none of it, SQLAlchemy does
}


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "sitecustomize.py").write_text(ASKED)
    checkout = str(Path(__file__).parents[2])
    return {"PYTHONPATH": os.pathsep.join((str(tmp_path / "asked"), checkout))}


@pytest.mark.parametrize("program", ["run", "dev", "serve"])
async def test_it_has_settled(program: str, tmp_path: Path, variables: dict[str, str]) -> None:
    command: list[str | Path]
    with MeshFile(tmp_path) as file:
        if program == "run":
            body = (
                'outbound: [{to: "api:http", listen: "127.0.0.1:0", peers: ["127.0.0.1:1"]}]\n'
                'admin: {listen: "127.0.0.1:0"}\n'
            )
            command = [*SIDECAR, "run", Shop.make(tmp_path / "shop", ["web"]).wiring("web", body)]
        elif program == "dev":
            command = [*SIDECAR, "dev", "--log", "json", file.path]
        else:
            site = CaSite.make(tmp_path / "site")
            listen = ("--listen", str(site.address))
            command = [*CERTS, "serve", site.directory, "--mesh", site.path / "mesh.yaml", *listen, "--log", "json"]
        async with running(*command, variables=variables) as it:
            found = await asked(it)
    assert found["threshold"] == 2_000, "few collections, short ones, and what was imported is in none of them"
    assert found["switch"] == 0.0005, "a thread that computes gives the interpreter back soon"
    assert "sidecar.host.memory.give_back" in json.dumps(found["tasks"])
    assert not found["ends_by_hangup"]
    loaded = set(found["modules"])
    assert {"trio", "OpenSSL"} < loaded, "the twin: it was looked for where it would be"
    assert loaded & HEAVY == set()
    if program != "dev":  # which loads its CA while it runs
        assert loaded & ONLY_A_CA == (set() if program == "run" else ONLY_A_CA)
