"""One sidecar after another has the new image, and a run that was broken off goes on where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject import steps
from sidecar.inject.composecli import Compose
from sidecar.inject.steps import InjectRequest, carry_out, plan
from sidecar.inject.upgrade import upgrade
from tests.inject.bed import environment
from tests.unit.inject.test_steps import COMPOSE, TODAY, no_certs

ALL = ["mesh-ca", "db-mesh", "web-mesh"]


class Engine:
    """Compose, as far as it would need an engine. Of each ``up`` it notes which services had which image then."""

    def __init__(self, project: Path) -> None:
        self.project, self.running, self.broken = project, list(ALL), ""
        self.told: list[str] = []
        self.odd: dict[str, str] = {}

    def run(self, _files: object, _environ: object, *arguments: str) -> str:
        if arguments[:2] == ("ps", "--services"):
            return "\n".join(self.running)
        if arguments[0] == "ps":
            return self.ps(arguments[-1])
        self.told.append(f"{arguments[0]} {arguments[-1]}: new {' '.join(self.new())}")
        if arguments[-1] == self.broken:
            raise UsageError("docker compose up: is unhealthy")
        return ""

    def ps(self, service: str) -> str:
        """As Compose prints it: an object a line."""
        image = f"shop-sidecar:{plan(InjectRequest(), environ(), TODAY).inputs.image}"
        told = {"Name": f"shop-{service}-1", "Image": image, "State": "running", "Health": "healthy", **self.odd}
        return "" if self.odd == {"Name": ""} else json.dumps(told) + "\n"

    def new(self) -> list[str]:
        text = (self.project / "compose.mesh.yaml").read_text()
        found = re.findall(r'^  ([\w-]+):\n    image: .*:(\w+)"?$', text, re.MULTILINE)
        return [name for name, tag in found if (self.project / f"mesh/image/{tag}/new").exists()]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The application is injected, with another version than the one that runs now."""
    project = tmp_path / "shop"
    project.mkdir()
    (project / "compose.yaml").write_text(COMPOSE)
    monkeypatch.chdir(project)
    monkeypatch.setattr(steps, "image_files", lambda: {"Dockerfile": b"old"})
    carry_out(plan(InjectRequest(), environ(), TODAY), no_certs)
    monkeypatch.setattr(steps, "image_files", lambda: {"Dockerfile": b"new", "new": b""})
    made = Engine(project)
    monkeypatch.setattr(Compose, "run", lambda _, *arguments: made.run(*arguments))
    return made


def environ() -> dict[str, str]:
    return environment(HOME=str(Path.cwd().parent))


def upgraded(say: Callable[[str], None] = lambda _: None) -> None:
    upgrade(InjectRequest(), environ(), TODAY, say, no_certs)


def test_one_after_another(engine: Engine) -> None:
    said: list[str] = []
    assert plan(InjectRequest(), environ(), TODAY).changes == ()
    upgraded(said.append)
    assert engine.told == [
        "build mesh-ca: new mesh-ca",
        "up mesh-ca: new mesh-ca",
        "up db-mesh: new db-mesh mesh-ca",
        "up web-mesh: new db-mesh web-mesh mesh-ca",
    ]
    assert said == [*(f"{name}: upgraded" for name in ALL), "every sidecar and the CA have the image of this version"]
    assert [path.name for path in (engine.project / "mesh/image").iterdir()] == [
        plan(InjectRequest(), environ(), TODAY).inputs.image
    ]
    engine.told.clear()
    upgraded()
    assert engine.told == [f"up {name}: new db-mesh web-mesh mesh-ca" for name in ALL]


def test_what_does_not_run_is_written_and_not_started(engine: Engine) -> None:
    engine.running = ["mesh-ca"]
    upgraded()
    assert engine.told == ["build mesh-ca: new mesh-ca", "up mesh-ca: new mesh-ca"]
    assert set(engine.new()) == set(ALL)


def test_a_failure_ends_it_and_the_next_run_goes_on(engine: Engine) -> None:
    engine.broken = "db-mesh"
    with pytest.raises(UsageError, match=r"(?s)is unhealthy.*db-mesh did not become healthy.*--upgrade` again"):
        upgraded()
    assert engine.new() == ["db-mesh", "mesh-ca"]
    assert plan(InjectRequest(), environ(), TODAY).changes == ()
    engine.broken = ""
    engine.told.clear()
    upgraded()
    assert engine.told == [
        "up mesh-ca: new db-mesh mesh-ca",
        "up db-mesh: new db-mesh mesh-ca",
        "build mesh-ca: new db-mesh web-mesh mesh-ca",
        "up web-mesh: new db-mesh web-mesh mesh-ca",
    ]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"Health": "unhealthy"}, "shop-mesh-ca-1 is running unhealthy, of shop-sidecar:"),
        ({"State": "exited", "Health": ""}, "shop-mesh-ca-1 is exited"),
        ({"Image": "shop-sidecar:old"}, "of shop-sidecar:old"),
        ({"Name": ""}, "there is no container"),
    ],
)
def test_a_failure_that_compose_does_not_tell(engine: Engine, odd: dict[str, str], said: str) -> None:
    engine.odd = odd
    with pytest.raises(UsageError, match=f"(?s)^docker compose ps: .*{said}.*mesh-ca did not become healthy"):
        upgraded()
    assert engine.new() == ["mesh-ca"]


def test_changes_of_the_application_come_first(engine: Engine) -> None:
    (engine.project / "compose.yaml").write_text(COMPOSE.replace("redis://db", "redis://db:7000"))
    with pytest.raises(UsageError, match=r"^--upgrade: compose.mesh.yaml is not up to date: run `sidecar inject` and"):
        upgraded()
    assert engine.told == []
    assert engine.new() == []
