"""Whatever restarts comes back by itself, without a token; and only connections through what ended are lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ask import protected
from tests.e2e.engine import Application, docker, until
from tests.e2e.figures import FIGURES

SEED = int(os.environ.get("SEED", "20261124"))
KILLS = int(os.environ.get("KILLS", "20"))


def back(mesh: Application, what: str) -> None:
    until(f"the shop, after {what}", lambda: protected(mesh), 60)


@pytest.mark.parametrize("service", ["api", "db", "api-mesh", "web-mesh", "mesh-ca"])
def test_a_restart(mesh: Application, service: str) -> None:
    mesh.compose("restart", "--timeout", "9", service)
    back(mesh, f"a restart of {service}")


def test_up_again_changes_nothing_and_after_a_change_what_changed(mesh: Application) -> None:
    before = mesh.container("api-mesh")
    mesh.inject()
    mesh.up()
    assert mesh.container("api-mesh") == before
    file = mesh.directory / "compose.yaml"
    file.write_text(file.read_text().replace("REDIS_HOST: cache", "REDIS_HOST: cache\n      ADDED: something"))
    mesh.inject()
    mesh.up()
    assert "ADDED=something" in mesh.inspect("api")["Config"]["Env"]
    back(mesh, "up")


def test_three_of_api_and_back(mesh: Application) -> None:
    mesh.up("--scale", "api=3", "--no-recreate")
    assert len(mesh.containers("api")) == 3

    def spread() -> bool:
        mesh.page()
        lines = [it for it in mesh.log("api-mesh")[-20:] if it.get("direction") == "inbound" and it["reason"] == "ok"]
        return len({it["upstream"] for it in lines}) == 3

    until("each of the three is called", spread, 60)
    mesh.up("--scale", "api=1", "--no-recreate")
    back(mesh, "scaling down")
    assert len(mesh.containers("api")) == 1


def test_a_stopped_ca_stops_nothing(mesh: Application) -> None:
    mesh.compose("stop", "mesh-ca")
    try:
        assert protected(mesh)
        docker("restart", "--time", "9", mesh.container("api-mesh"))
        back(mesh, "a restart of a sidecar without a CA")
    finally:
        mesh.compose("start", "mesh-ca")


_LOAD = """
import http.client, json, sys, time
end, told = time.time() + float(sys.argv[1]), {"asked": 0, "answered": 0, "refused": 0}
while time.time() < end:
    told["asked"] += 1
    try:
        connection = http.client.HTTPConnection("localhost", 8000, timeout=8)
        connection.request("GET", "/teapot")
        told["answered" if connection.getresponse().status == 200 else "refused"] += 1
        connection.close()
    except OSError:
        told["refused"] += 1
    time.sleep(0.02)
print(json.dumps(told))
"""


def test_killing_one_at_random_loses_only_what_ran_through_it(mesh: Application) -> None:
    """Seeded; the client never tries again. Every connection is in the sidecars' logs, with who called whom: any that did
    not end well must have run through what was killed."""
    chance = random.Random(SEED)  # noqa: S311  # to be repeated, not to be secret
    victims = ["api", "db", "cache", "api-mesh", "db-mesh", "cache-mesh", "web-mesh"]
    sidecars = [f"{name}-mesh" for name in ("web", "api", "db", "cache")]
    seconds = 600  # at most: it is ended when the last kill is over
    command = ["docker", "exec", mesh.container("web"), "python3", "-c", _LOAD, str(seconds)]
    lost = well = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        try:
            for number in range(KILLS):
                victim = chance.choice(victims)
                marks = {name: len(mesh.log(name)) for name in sidecars}
                docker("kill", mesh.container(victim))
                docker("start", mesh.container(victim))
                until(f"kill {number}, {victim}", lambda: protected(mesh), 60)
                quiet(0.3)
                lines = [it for name in sidecars for it in mesh.log(name)[marks[name] :] if it["event"] == "connection"]
                for line in lines:
                    if line["reason"] == "ok" or ends(line) == ("reporting", "db"):
                        well += 1
                    else:
                        lost += 1
                        ran = {name for end in ends(line) for name in (end, f"{end}-mesh")}
                        assert victim in ran, f"kill {number}, {victim}, seed {SEED}: {line}"
            assert load.poll() is None, "the load ended before the kills did"
        finally:
            docker("exec", mesh.container("web"), "python3", "-c", _STOP)
            load.wait(10)
    assert lost > 0
    assert well > 10 * KILLS
    FIGURES[f"{KILLS} kills at random under load"] = (
        f"{well} connections ended well, {lost} were lost, each through what was killed"
    )


_STOP = """
import os, signal, pathlib
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        if b"sys.argv[1]), {" in path.read_bytes() and int(path.parent.name) != os.getpid():
            os.kill(int(path.parent.name), signal.SIGTERM)
    except OSError:
        pass
"""


def ends(line: dict[str, Any]) -> tuple[str, str]:
    """Who called whom."""
    if line["direction"] == "outbound":
        return line["service"], str(line["upstream"]).partition(":")[0]
    return str(line["peer_id"]).rpartition("/")[2], line["service"]


def quiet(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251  # lets what was cut be told


def test_a_restart_of_the_engine(mesh: Application) -> None:
    """Only of one that ``make e2e`` started itself: somebody's own has other containers to care for."""
    pidfile = os.environ.get("E2E_ENGINE_PIDFILE")
    if not pidfile:
        FIGURES["a restart of the engine"] = "not tried: this engine was here before, and is not ours to restart"
        return
    pid = int(Path(pidfile).read_text())
    os.kill(pid, signal.SIGTERM)
    until("the engine is down", lambda: not Path(f"/proc/{pid}").exists(), 60)
    began = time.monotonic()
    subprocess.run([os.environ["E2E_ENGINE_START"], "start"], check=True, timeout=90)
    back(mesh, "a restart of the engine")
    FIGURES["a restart of the engine"] = f"the shop answers again after {time.monotonic() - began:.1f} s, by itself"


def test_the_logs_are_json(mesh: Application) -> None:
    for line in docker("logs", "--tail", "50", mesh.container("api-mesh")).splitlines():
        json.loads(line)
