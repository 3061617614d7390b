"""``python -m sidecar.demo``: exit code 0 if every check of the demo holds, 1 if one fails."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import trio

from sidecar.demo.stage import StoryError, stage
from sidecar.demo.story import Story


async def _demo() -> None:
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as directory:
        async with stage(Path(directory)) as made:
            story = Story(made)
            await story.set_up()
            await story.play()


def main() -> int:
    """Runs the demo; returns the exit code."""
    failures: list[BaseException] = []
    try:
        trio.run(_demo)
    except* StoryError as group:
        failures.extend(_leaves(group))
    if failures:
        click.echo(click.style(f"\n  ✗ {failures[0]}", fg="red", bold=True), err=True)
        return 1
    click.echo(click.style("\nAll of it was checked against the sidecars' own logs.", bold=True))
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


if __name__ == "__main__":
    sys.exit(main())
