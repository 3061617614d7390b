"""README's quickstart for Compose, to the letter: its commands, in order, and what it says that they print."""

from __future__ import annotations

import re
import shutil
import sys
from functools import partial
from pathlib import Path

from tests.e2e.engine import ROOT, Application, EngineError, run, until

_WHERE_COMPOSE_IS_NO_PLUGIN = """
docker() { if [ "$1" = compose ] && ! command docker compose version >/dev/null 2>&1; then shift; docker-compose "$@"
  else command docker "$@"; fi; }
"""


def _said(script: str, lines: list[str], environ: dict[str, str]) -> bool:
    """Whether it prints these lines. It may not yet: what runs beside it may have just begun."""
    program = f"{_WHERE_COMPOSE_IS_NO_PLUGIN}\n{script}"
    said = run("bash", "-c", program, env=environ, seconds=240)
    if missing := [line for line in lines if line not in said]:
        raise EngineError(f"it printed {said!r}, without {missing}")
    return True


def test_the_quickstart(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## A Compose application")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    steps = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert len(steps) == 7
    shutil.copytree(ROOT / "compose", tmp_path / "compose")
    application = Application(tmp_path / "shop", "shop")
    environ = {
        key: value for key, value in application.environ.items() if key not in ("COMPOSE_PROJECT_NAME", "SHOP_PORT")
    }
    environ |= {"XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
    script, path = f"cd {tmp_path}", Path(sys.executable).parent
    environ["PATH"] = f"{path}:{environ['PATH']}"
    try:
        for command, _, output in steps:
            if command.startswith("make setup"):
                continue  # this very interpreter is what it made
            until(command, partial(_said, f"{script}\n{command}", output.splitlines(), environ), 20, every=1)
            script += "\ncd shop" if "cd shop" in command else ""
    finally:
        if (tmp_path / "shop").exists():
            application.files = ("compose.yaml", "compose.mesh.yaml")
            application.environ["COMPOSE_PROJECT_NAME"] = "shop"
            application.down()
