"""``make siege``: honest traffic through two sidecars and a CA, while strangers do all that they can; were the bars kept?

The rooms: ``kinds`` says what strangers do; ``attackers`` (processes of their own, in a ``cgroup``) and ``actions`` (to
files, pipes and names) do it; ``besieged`` starts what is attacked, by ``launch`` and ``processes``; ``honest`` asks as apps
do, and measures; ``siege`` is the order of it all; ``figures`` makes percentiles and stalls, ``verdict`` holds them against
the bars, ``report`` shows them. ``defences`` tests the siege itself: without any one of them it must fail.

Strangers come once from many addresses, and once from the honest callers' own. Many addresses are those of 127.0.0.0/8: a
listener sees them as it sees any others, so no network namespace is needed. A namespace of mounts is, for the sidecar whose
resolver is silent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from tests.bench import machine
from tests.siege import report
from tests.siege.actions import RESOLVER
from tests.siege.besieged import Conditions
from tests.siege.defences import DEFENCES
from tests.siege.errors import InvalidError, MissingError
from tests.siege.kinds import KINDS
from tests.siege.launch import AS_IT_IS
from tests.siege.siege import Settings, run
from tests.siege.verdict import Run, judge, too_slow

FAILED, UNUSABLE, INVALID, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: a bar failed; a bad option, or something is missing; the run says nothing; stopped by a signal."""

MANY, OWN = "many addresses", "the honest callers' own address"

START_SECONDS, QUIET_SECONDS, REST_SECONDS = 6.0, 5.0, 6.0
"""Of one run: to start, about; of honest traffic alone; after each flood, for what it left to come to its deadline."""
FLOODS = 3
LEAST_FLOOD = 3.0
SHORT_FLOOD, SHORT_QUIET, SHORT_REST = 6.0, 2.0, 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sieges; returns the exit code."""
    options = _parse(arguments)
    try:
        cores = two_cores()
        kinds, left_out = possible(options.only)
    except MissingError as error:
        say(str(error))
        return UNUSABLE
    for line in left_out:
        say(line)

    async def work() -> int:
        if options.defences:
            return await try_defences(options.defences, kinds, cores)
        return await besiege(options, kinds, cores)

    code: int | None = None
    faults: list[InvalidError] = []
    try:
        code = trio.run(_until_signal, work)
    except* InvalidError as group:
        faults = _leaves(group)
    for fault in faults:
        say(f"the run is invalid: {fault}")
    if faults:
        return INVALID
    if code is None:
        say("stopped; nothing was left running")
        return INTERRUPTED
    return code


async def besiege(options: argparse.Namespace, kinds: Sequence[str], cores: tuple[int, int]) -> int:
    """From each side in turn, so often as there are rounds; prints and writes what was found."""
    facts = machine.facts()
    conditions = Conditions(cores, options.without or AS_IT_IS)
    sides = {MANY: True, OWN: False}
    if options.side:
        sides = {name: many for name, many in sides.items() if many == (options.side == "many")}
    flood = options.flood or flood_seconds(options.seconds, len(sides))
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, many in sides.items():
            say(f"round {number + 1} of {options.rounds}, strangers from {name}")
            settings = Settings(conditions, kinds, many, options.quiet, flood, options.rest, options.floods)
            runs[name].append(await run(settings, say))
    sieges = {name: (found, judge(found)) for name, found in runs.items()}
    for name, (found, rows) in sieges.items():
        report.show(f"strangers from {name}", found, rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.as_json(facts, sieges), indent=1) + "\n")
    lazy = {name: slow for name, (found, _) in sieges.items() if (slow := too_slow(found))}
    for name, slow in lazy.items():
        print(f"INVALID, strangers from {name} did less than their least: {'; '.join(slow)}")
    failed = [f"{name}: {row.bar}" for name, (_, rows) in sieges.items() for row in rows if not row.held]
    if failed:
        print(f"FAILED {len(failed)} bars:\n  " + "\n  ".join(failed))
        return FAILED
    if lazy:
        return INVALID
    print("withstood")
    return 0


async def try_defences(names: Sequence[str], possible_kinds: Sequence[str], cores: tuple[int, int]) -> int:
    """Removes each defence in turn, and lets those attack whom it is against: some bar must fail, which holds with it."""
    useless, with_it = [], {}
    for name in names:
        defence = DEFENCES[name]
        kinds = tuple(kind for kind in defence.kinds if kind in possible_kinds)
        if not kinds:
            say(f"left out: {name}")
            continue
        conditions = Conditions(cores, descriptors=defence.descriptors)
        settings = Settings(conditions, kinds, defence.many, SHORT_QUIET, SHORT_FLOOD, SHORT_REST, defence.floods)
        if settings not in with_it:
            say(f"with every defence: {', '.join(kinds)}")
            with_it[settings] = failures(await run(settings, say))
        say(f"without {name}: {defence.what}")
        without = failures(await run(replace(settings, conditions=replace(conditions, without=name)), say))
        failed = {bar: measured for bar, measured in without.items() if bar not in with_it[settings]}
        told = "; ".join(f"{bar}: {measured}" for bar, measured in failed.items()) or "NOTHING FAILS"
        others = f" (with it, too: {'; '.join(with_it[settings])})" if with_it[settings] else ""
        print(f"without {name}: {told}{others}", flush=True)
        if not failed:
            useless.append(name)
    if useless:
        print(f"the siege does not need {', '.join(useless)}: either the siege is too weak, or that defends nothing")
    return FAILED if useless else 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def failures(found: Run) -> dict[str, str]:
    """The bars that fail, and what was measured. Raises :class:`InvalidError` if attackers did too little."""
    if slow := too_slow([found]):
        raise InvalidError("; ".join(slow))
    return {row.bar: row.measured for row in judge([found]) if not row.held}


# -- what this machine allows ------------------------------------------------------------------------------------------


def two_cores() -> tuple[int, int]:
    """The product's, and the attackers'. Raises :class:`MissingError`."""
    if not sys.platform.startswith("linux"):
        raise MissingError("processes are kept to cores, and memory is read from /proc: this needs Linux")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise MissingError("one core is the product's and another one the attackers': this needs two")
    return cores[0], cores[1]


def possible(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The kinds that can be done here, and what is said about the others. Raises :class:`MissingError` if none can."""
    left_out = []
    if os.geteuid() != 0:
        left_out.append("not root: attackers have no cgroup of their own, only a core, and measuring no priority")
    hidden = RESOLVER in wanted and (os.geteuid() != 0 or shutil.which("unshare") is None)
    if hidden:
        left_out.append(
            "left out: silent-resolver, which needs root and unshare (util-linux) for a resolver of its own"
        )
    kinds = [kind for kind in wanted if kind != RESOLVER or not hidden]
    if not kinds:
        raise MissingError("\n".join(left_out))
    return kinds, left_out


def flood_seconds(seconds: float, sides: int) -> float:
    """How long a flood may last, for all to take about ``seconds``; pure."""
    a_run = seconds / sides - START_SECONDS - QUIET_SECONDS
    return max(LEAST_FLOOD, a_run / FLOODS - REST_SECONDS)


async def _until_signal(work: Callable[[], Awaitable[int]]) -> int | None:
    """None if a signal came first; what was started is stopped in either case."""
    code: list[int] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            code.append(await work())
            nursery.cancel_scope.cancel()
    return code[0] if code else None


def _leaves(group: BaseExceptionGroup[InvalidError]) -> list[InvalidError]:
    leaves: list[InvalidError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make siege", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long a round takes, about")
    parser.add_argument("--rounds", type=int, default=1, help="how often; figures are medians of the rounds'")
    parser.add_argument("--flood", type=float, help="seconds of one flood, instead of what --seconds leaves for it")
    parser.add_argument("--floods", type=int, default=FLOODS, help="identical floods in a round")
    parser.add_argument("--quiet", type=float, default=QUIET_SECONDS, help="seconds of honest traffic alone")
    parser.add_argument("--rest", type=float, default=REST_SECONDS, help="seconds after each flood")
    parser.add_argument("--only", type=_some_of(KINDS), default=list(KINDS), help="these kinds of attack: a,b,…")
    parser.add_argument("--side", choices=["many", "own"], help="strangers from this side only")
    parser.add_argument("--without", choices=DEFENCES, help="the product lacks this defence")
    parser.add_argument(
        "--defences", type=_some_of(DEFENCES), nargs="?", const=list(DEFENCES),
        help="tests the siege: without each defence (or these: a,b,…), it must fail",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="a file for all readings")
    return parser.parse_args(arguments)


def _some_of(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are: {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
