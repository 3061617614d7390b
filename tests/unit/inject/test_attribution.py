"""Whose a source file is, where several services are built from one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.inject.mounted import read_texts


def write(path: Path, text: str = "db:5432") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def built(project: Path, **services: dict[str, Any]) -> dict[str, set[str]]:
    """By service: the files that are its own."""
    config = {
        "services": {
            name: {**raw, "build": {**raw.get("build", {}), "context": str(project / raw.get("at", ""))}}
            for name, raw in services.items()
        }
    }
    texts = read_texts(config, project).texts
    return {name: {it.label for it in texts.get(name, ()) if it.kind == "build"} for name in services}


def test_a_server_and_its_worker_have_the_same_source(tmp_path: Path) -> None:
    write(tmp_path / "Dockerfile", "FROM python\nCOPY . .")
    write(tmp_path / "shop/settings.py")
    write(tmp_path / "tests/fake.py")
    write(tmp_path / "front/api.js")
    config = built(tmp_path, web={"command": ["gunicorn", "shop.wsgi"]}, worker={}, front={"at": "front"})
    assert config == {"web": {"shop/settings.py"}, "worker": {"shop/settings.py"}, "front": {"front/api.js"}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"command": ["/srv/cmd/api/run.sh"]}, {"command": "cmd/worker/run.sh -v"}),
        ({"command": ["npm", "run", "start", "--prefix=cmd/api"]}, {"command": ["npm", "-w", "worker", "start"]}),
        ({"build": {"args": {"PROGRAM": "api"}}}, {"build": {"args": {"PROGRAM": "worker"}}}),
        ({"build": {"dockerfile": "cmd/api/Dockerfile"}}, {"build": {"dockerfile": "cmd/worker/Dockerfile"}}),
        ({"command": "python -m cmd.api.main"}, {"command": "uvicorn cmd.worker.main:app"}),
    ],
)  # fmt: skip
def test_programs_of_one_repository_have_their_own(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        write(tmp_path / f"cmd/{name}/run.sh")
        write(tmp_path / f"cmd/{name}/main.py")
    write(tmp_path / "lib/common.py")
    both = built(tmp_path, api=one, worker=other)
    assert both == {
        "api": {"cmd/api/run.sh", "cmd/api/main.py", "lib/common.py"},
        "worker": {"cmd/worker/run.sh", "cmd/worker/main.py", "lib/common.py"},
    }


def test_what_lies_at_the_top_of_the_whole_project_is_nobodys(tmp_path: Path) -> None:
    for name in (
        "values.yaml",
        "main.py",
        "package.json",
        "deploy/x.py",
        "src/config.yaml",
        "api/config.yaml",
        "api/docs/x.py",
    ):
        write(tmp_path / name)
    write(tmp_path / "Dockerfile", "COPY . .")
    assert built(tmp_path, web={}, api={"at": "api"}) == {
        "web": {"main.py", "package.json", "src/config.yaml"},
        "api": {"api/config.yaml"},
    }


def test_the_twin_that_names_its_program_alone_keeps_the_other_from_nothing(tmp_path: Path) -> None:
    write(tmp_path / "config/settings.py")
    write(tmp_path / "manage.py")
    both = built(tmp_path, web={"command": "python manage.py runserver"}, worker={"command": "celery -A config worker"})
    assert both == {name: {"config/settings.py", "manage.py"} for name in ("web", "worker")}


@pytest.mark.parametrize(
    ("dockerfile", "own"),
    [
        ("FROM a", {"api/a.go", "web/b.go", "go.go"}),
        ("COPY api/ /app/\nCOPY --from=x web /web", {"api/a.go"}),
        ('ADD ["api", "go*.go", "/app"]', {"api/a.go", "web/b.go", "go.go"}),
        ("COPY api/target/*.jar \\\n app.jar", {"api/a.go"}),
        ("COPY $WHICH /app", {"api/a.go", "web/b.go", "go.go"}),
        ("COPY https://example.test/x <<EOF /app", {"api/a.go", "web/b.go", "go.go"}),
    ],
)  # fmt: skip
def test_what_a_dockerfile_copies(tmp_path: Path, dockerfile: str, own: set[str]) -> None:
    for name in ("api/a.go", "web/b.go", "go.go"):
        write(tmp_path / name)
    write(tmp_path / "Dockerfile", dockerfile)
    assert built(tmp_path, api={}) == {"api": own}
