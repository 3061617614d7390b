"""``make bench-ca``: renewals a second over the wire against one ``certs serve``, what each costs it, and its memory.

The load is a process of its own, and asks as sidecars do: over mutual TLS, each time for a fresh key. ``kept`` connections
are used again and again; ``fresh`` ones are made for each renewal, with a whole handshake, as real sidecars do it, which
renew once in half an hour. The CA's limits of how often are lifted, or it would measure those. With ``--profile`` the CA
says where its time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import trio

from certs.service import serve
from certs.service.api import RateLimits
from certs.service.limits import Rate
from certs.service.serve import Settings
from sidecar.agent import accept
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import new_key
from sidecar.observe.logs import Log
from tests.beds.ca_processes import Caller, CaSite
from tests.beds.processes import Running, running
from tests.bench import machine
from tests.bench.procfs import ProcessTree
from tests.integration.database import Database, owned_directory
from tests.protocols.programs import find

SERVICES = [f"s{number:02}" for number in range(64)]
MESH = "trust_domain: shop.internal\nservices:\n" + "".join(f"  {service}: {{}}\n" for service in SERVICES)
UNLIMITED = RateLimits(identity=Rate(1e9, 1e9), everybody=Rate(1e9, 1e9))


@dataclass(frozen=True)
class Reading:
    """``cpu_ms``: of the CA, for each renewal. ``rss_mb``: of the CA, before and after."""

    store: str
    connections: str
    at_once: int
    renewals: int
    per_second: float
    cpu_ms: float
    busy: float
    p50_ms: float
    p99_ms: float
    rss_before_mb: float
    rss_after_mb: float


async def measure(site: CaSite, ca: Running, store: str, callers: list[Caller], seconds: float, kept: bool) -> Reading:
    tree = ProcessTree("certs serve", ca.process.pid)
    memory, cpu = tree.memory().rss, tree.cpu_seconds()
    took: list[float] = []
    begin = trio.current_time()

    async def renews(caller: Caller) -> None:
        while trio.current_time() < begin + seconds:
            csr = accept.csr_for(new_key())
            asked = trio.current_time()
            await caller.client.renew(csr)
            took.append(trio.current_time() - asked)
            if not kept:
                await caller.client.close()

    async with trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(renews, caller)
    lasted = trio.current_time() - begin
    spent = tree.cpu_seconds() - cpu
    after = tree.memory().rss
    cuts = statistics.quantiles(took, n=100)
    return Reading(
        store, "kept" if kept else "fresh", len(callers), len(took), len(took) / lasted, 1000 * spent / len(took),
        spent / lasted, 1000 * cuts[49], 1000 * cuts[98], memory / 1e6, after / 1e6,
    )  # fmt: skip


@asynccontextmanager
async def serving(site: CaSite, profile: Path | None) -> AsyncIterator[Running]:
    """The CA, without its limits."""
    options = ["--serve", str(site.directory), str(site.path / "mesh.yaml"), str(site.port), site.url]
    async with running(sys.executable, "-m", "tests.bench.ca", *options, str(profile or "")) as program:
        await program.event("started")
        yield program
        program.signal(signal.SIGTERM)
        await program.ended()


async def compare(site: CaSite, store: str, seconds: float, profile: Path | None) -> list[Reading]:
    readings = []
    secrets = site.make_credentials(*SERVICES, kind="secret")
    async with serving(site, profile) as ca:
        callers = [site.caller(service) for service in SERVICES]
        for caller in callers:
            await caller.enrol(secrets[caller.service])
        for kept, at_once in ((True, 64), (True, 8), (False, 64), (False, 8)):
            for caller in callers:
                await caller.client.use(caller.keys, Revocations())
            readings.append(await measure(site, ca, store, callers[:at_once], seconds, kept))
        for caller in callers:
            await caller.client.close()
    faults = site.faults()
    if faults:
        raise SystemExit(f"void: the audit log is broken: {faults[0]}")
    return readings


async def bench(seconds: float, profile: Path | None) -> list[Reading]:
    with tempfile.TemporaryDirectory(prefix="bench-ca-") as directory:
        site = CaSite.make(Path(directory) / "sqlite", MESH)
        readings = await compare(site, "sqlite", seconds, profile)
        if all(find(name) for name in ("postgres", "initdb", "psql")):
            with owned_directory() as (path, as_owner):
                database = Database.make(path, as_owner)
                async with database.serves(fsync="on"):
                    site = CaSite.make(Path(directory) / "postgresql", MESH, store=database.create("bench"))
                    readings += await compare(site, "postgresql", seconds, None)
        else:
            print("postgresql is left out: it is not installed")
        return readings


def be_the_ca(directory: str, mesh: str, port: str, store: str, profile: str) -> None:
    """What runs as the process that is measured."""
    listen = Address("127.0.0.1", int(port))
    settings = Settings(Path(directory), Path(mesh), listen, store, timedelta(hours=1), UNLIMITED)
    if not profile:
        trio.run(serve.serve, settings, Log(style="json"), utc_now)
        return
    profiler = cProfile.Profile()
    profiler.runcall(trio.run, serve.serve, settings, Log(style="json"), utc_now)
    profiler.dump_stats(profile)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench-ca", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load lasts")
    parser.add_argument("--json", type=Path, default=Path("build/bench-ca.json"), help="where all readings go")
    parser.add_argument("--profile", action="store_true", help="where the CA's time goes (which makes it slower)")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        be_the_ca(*options.serve)
        return
    facts = machine.facts()
    with tempfile.TemporaryDirectory() as directory:
        profile = Path(directory) / "profile" if options.profile else None
        readings = trio.run(bench, options.seconds, profile)
        if profile is not None:
            pstats.Stats(str(profile)).sort_stats("tottime").print_stats(25)
            pstats.Stats(str(profile)).sort_stats("cumtime").print_stats("certs/|sidecar/", 25)
    print(f"{facts['cpus']} CPUs, load before {facts['load'][0]}")
    print("store       connections  at once  renewals/s  CPU ms each  busy  p50 ms  p99 ms  RSS MB before, after")
    for one in readings:
        print(
            f"{one.store:11} {one.connections:11}  {one.at_once:7}  {one.per_second:10.0f}  {one.cpu_ms:11.2f}  "
            f"{one.busy:4.0%}  {one.p50_ms:6.1f}  {one.p99_ms:6.1f}  {one.rss_before_mb:.0f}, {one.rss_after_mb:.0f}"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    said = {"machine": facts, "seconds": options.seconds, "readings": [asdict(one) for one in readings]}
    options.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
