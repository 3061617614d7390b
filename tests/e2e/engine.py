"""A Compose application on a real Docker engine, by the commands that a person uses. For the demo, the drill, the tests.

What is started here has a project name of its own, and :meth:`Application.down` removes what has that name, nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidecar.inject.composecli import find_compose

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "compose" / "demo"


class EngineError(Exception):
    """A command failed; what it said."""


def run(
    *command: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = 300,
    stdin: str | None = None,
) -> str:
    """What it prints. Raises :class:`EngineError`."""
    done = subprocess.run(
        command, env=env, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
        errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise EngineError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def docker(*arguments: str, seconds: float = 120) -> str:
    return run("docker", *arguments, seconds=seconds)


def until(what: str, ask: Callable[[], Any], seconds: float = 60, every: float = 0.25) -> Any:
    """The first true answer; an :class:`EngineError` of the last try counts as none. Raises :class:`EngineError`."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            answer = ask()
        except EngineError as error:
            answer, last = None, error
        if answer:
            return answer
        time.sleep(every)  # noqa: TID251  # no event loop here: it waits for other programs
    raise EngineError(f"{what}: not within {seconds:g} s{f': {last}' if last else ''}")


class Application:
    """A copy of the demo shop in ``directory``, under its own project name. ``meshed`` after :meth:`inject`."""

    def __init__(self, directory: Path, project: str, more: Mapping[str, str] | None = None) -> None:
        self.directory, self.project = directory, project
        self.state = directory.parent / f"{directory.name}-state"
        environ = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
        self.environ = environ | {"COMPOSE_PROJECT_NAME": project, "SHOP_PORT": "0", **(more or {})}
        if "DOCKER_BUILDKIT" not in environ and not _has_buildx():
            self.environ["DOCKER_BUILDKIT"] = "0"
        self._compose = find_compose(self.environ).command
        self.files: tuple[str, ...] = ("compose.yaml",)
        self._containers: dict[str, list[str]] = {}

    @property
    def meshed(self) -> bool:
        return len(self.files) > 1

    def compose(self, *arguments: str, seconds: float = 300) -> str:
        if arguments[0] != "ps":
            self._containers.clear()
        named = [part for file in self.files for part in ("-f", file)]
        return run(*self._compose, *named, *arguments, env=self.environ, cwd=self.directory, seconds=seconds)

    def inject(self, *options: str) -> str:
        command = (sys.executable, "-m", "sidecar", "inject", "--state", str(self.state), *options)
        environ = self.environ | {"PYTHONPATH": str(ROOT)}
        said = run(*command, env=environ, cwd=self.directory)
        self.files = ("compose.yaml", "compose.mesh.yaml")
        return said

    def up(self, *options: str) -> None:
        self.compose("up", "--detach", "--wait", *options)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "2", "--rmi", "local")
        for image in docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"{self.project}-sidecar").split():
            docker("rmi", image)  # by its name: another project may have the same under another

    def container(self, service: str) -> str:
        return self.containers(service)[0]

    def containers(self, service: str) -> list[str]:
        found = self._containers.get(service) or self.compose("ps", "--all", "--quiet", service).split()
        if not found:
            raise EngineError(f"{service}: has no container")
        self._containers[service] = found
        return found

    def call(self, service: str, *command: str, seconds: float = 60) -> str:
        """Runs it in the service's container."""
        return docker("exec", self.container(service), *command, seconds=seconds)

    def python(self, service: str, code: str, *arguments: str, seconds: float = 60) -> str:
        return self.call(service, "python3", "-c", code, *arguments, seconds=seconds)

    def address(self, service: str, network: str) -> str:
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def inspect(self, service: str) -> dict[str, Any]:
        return dict(json.loads(docker("inspect", self.container(service)))[0])

    def log(self, service: str) -> list[dict[str, Any]]:
        """The lines of a sidecar that are JSON."""
        lines = docker("logs", self.container(service)).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, service: str, wanted: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
        """Those of them that are wanted, once there is one: a line comes some time after what it tells of."""
        return list(until(f"{service}: a line", lambda: [it for it in self.log(service) if wanted(it)], 20))

    def page(self, path: str = "/teapot") -> str:
        """What web answers, asked inside of its own container: the whole way web, api, database."""
        code = (
            "import sys, http.client as h; c = h.HTTPConnection('localhost', 8000, timeout=30); "
            "c.request('GET', sys.argv[1]); print(c.getresponse().read().decode())"
        )
        return self.python("web", code, path).strip()


def _has_buildx() -> bool:
    return subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0


@contextmanager
def shop(project: str, more: Mapping[str, str] | None = None) -> Iterator[Application]:
    """A copy of the demo, taken away again with all that it started."""
    with TemporaryDirectory(prefix="sidecar-e2e-") as place:
        directory = Path(place) / "shop"
        shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("__pycache__", "show.py"))
        application = Application(directory, project, more)
        before = _dangling()
        try:
            yield application
        finally:
            application.down()
            for image in _dangling() - before:  # what the old builder keeps of a build's first stages
                docker("rmi", image)


def _dangling() -> set[str]:
    return set(docker("images", "--quiet", "--filter", "dangling=true").split())
