"""``make bench``: our pair of sidecars beside Envoy's, HAProxy's and nginx's, in one run, under the same conditions.

The rooms: ``contestants`` says what a contestant is; ``ours``, ``envoy``, ``haproxy``, ``nginx`` configure one each, with
programs of ``roots``; ``pairs`` and ``stage`` run them, in front of ``apps`` too; ``proof`` checks, with ``hello``, that
they keep the conditions; ``loads`` and ``idle`` measure, by ``procfs``, ``machine`` and ``outputs``; ``figures`` makes
medians and ratios, ``report`` shows them, ``overview`` puts them on one page, which ``picture`` draws and ``readme``
publishes; ``comparison`` is the order of it all.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.bench import machine, report
from tests.bench.comparison import TODAY, Results, Settings, compare, contestants, missing_packages
from tests.bench.contestants import HYBRID, PARTS, X25519
from tests.bench.errors import BenchError, MissingError
from tests.bench.picture import draw

VOID, UNUSABLE, INTERRUPTED = 1, 2, 130
"""Exit codes: the run is void; a bad option, or something is not installed; stopped by a signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    options = _parse(arguments)
    if not sys.platform.startswith("linux"):
        _tell("CPU time and memory are read from /proc: this needs Linux")
        return UNUSABLE
    try:
        everybody = contestants(TODAY if options.peers == "today" else None)
        chosen = [one for one in everybody if one.name in options.only and set(one.parts) & set(options.parts)]
        taking_part, left_out = missing_packages(chosen, options.parts)
    except MissingError as error:
        _tell(str(error))
        return UNUSABLE
    if not taking_part:
        _tell("\n".join(["nobody can take part:", *(missing.what for missing in left_out)]))
        return UNUSABLE
    settings = Settings(options.rounds, options.seconds, options.connections, options.group, options.parts, taking_part)
    facts = machine.facts()
    results = None
    faults: list[BenchError] = []
    try:
        results = trio.run(_until_signal, settings)
    except* BenchError as group:
        faults = _leaves(group)
    if faults:
        for fault in faults:
            _tell(f"void: {fault}")
        return VOID
    if results is None:
        _tell("stopped; nothing was left running")
        return INTERRUPTED
    report.show(settings, results, facts, left_out)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report.as_json(settings, results, facts, left_out), indent=1) + "\n")
    overview = report.summary(settings, results, facts)
    options.json.with_suffix(".md").write_text(overview.markdown())
    try:
        draw(overview, options.json.with_suffix(".svg"))
    except ImportError:
        _tell("no picture is drawn: matplotlib (the dependency group 'bench') is not installed")
    print(f"\n{options.json} has every reading.")
    return 0


async def _until_signal(settings: Settings) -> Results | None:
    """None if a signal came first; what was started is stopped in either case."""
    results: list[Results] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            _tell(f"about {settings.about_seconds / 60:.1f} minutes")
            with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                results.append(await compare(settings, Path(directory), _tell))
            nursery.cancel_scope.cancel()
    return results[0] if results else None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leaves(group: BaseExceptionGroup[BenchError]) -> list[BenchError]:
    leaves: list[BenchError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [contestant.name for contestant in contestants()]
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=_at_least_one, default=5, help="how often each load is put on each pair")
    parser.add_argument("--seconds", type=_at_least_one, default=2, help="how long each load lasts, whole seconds")
    parser.add_argument("--connections", type=_at_least_one, default=1000, help="held open for the memory figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these and nothing else")
    parser.add_argument("--group", choices=(HYBRID, X25519), default=HYBRID, help="the key exchange of all who have it")
    parser.add_argument(
        "--peers",
        choices=("today", "here"),
        default="today",
        help="HAProxy and nginx of Debian trixie, or this machine's",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these contestants and no others")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where all readings go")
    return parser.parse_args(arguments)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
