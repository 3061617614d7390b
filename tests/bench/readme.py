"""``make bench-readme``: puts what ``make bench`` found into README.md, as a table and a picture, with date and machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.errors import BenchError
from tests.bench.overview import Overview
from tests.bench.picture import draw
from tests.bench.roots import PROJECT

BEGIN, END = "<!-- bench: `make bench-readme` writes this -->\n", "<!-- bench: end -->\n"
PICTURE = ".github/bench.svg"


def published(readme: str, overview: Overview) -> str:
    """The README with this run in the place of the one before. Raises :class:`BenchError` if it has no place for one."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"README.md has no lines {BEGIN.strip()} and {END.strip()}, between which the figures go")
    noisy = "`~`: too noisy to count. " if overview.noisy() else ""
    peer = overview.columns[overview.peer]
    text = (
        f"![Each beside {peer}]({PICTURE})\n\n{overview.markdown()}\n{noisy}×: beside {peer}. Made {overview.made}.\n"
    )
    return f"{before}{begin}{text}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make bench-readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("json", type=Path, nargs="?", default=Path("build/bench.json"), help="what `make bench` wrote")
    parser.add_argument("--root", type=Path, default=PROJECT, help="where README.md is")
    options = parser.parse_args(arguments)
    readme = options.root / "README.md"
    try:
        overview = Overview.from_json(json.loads(options.json.read_text())["overview"])
        text = published(readme.read_text(), overview)
    except (BenchError, OSError, ValueError, KeyError) as error:
        print(f"{options.json}: {error}", file=sys.stderr)
        return 1
    draw(overview, options.root / PICTURE)
    readme.write_text(text)
    for line in overview.noisy():
        print(f"too noisy to count: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
