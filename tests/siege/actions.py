"""The attacks that come from no socket: the rig itself does them to pipes, files and names, for the time of a flood.

Each is a function that runs until it is cancelled, counts what it did at ``did``, and then puts everything back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from sidecar.host.follow import LOOK_SECONDS, OPEN_SECONDS
from tests.bench.stage import Ports
from tests.siege import honest
from tests.siege.besieged import LOOPBACK, MESH, SILENT_RESOLVER, Besieged, big_mesh, late_command, started
from tests.siege.honest import Traffic
from tests.siege.kinds import KINDS

RESOLVER = "silent-resolver"
LATE = "a sidecar that starts beside a silent resolver"

Action = Callable[["Count", Besieged, Traffic], Awaitable[None]]


@dataclass(slots=True)
class Count:
    done: float = 0.0


async def log_stalled(count: Count, mesh: Besieged, _traffic: Traffic) -> None:
    """The pipe to the reader of the log is full after 64 KB."""
    began = trio.current_time()
    try:
        for process in mesh.product:
            process.stall()
        await trio.sleep_forever()
    finally:
        count.done += trio.current_time() - began
        for process in mesh.product:
            process.go_on()


HUNG_SECONDS, WHOLE_SECONDS = 2.5, 1.0


async def files_hung(count: Count, mesh: Besieged, _traffic: Traffic) -> None:
    """Nobody ever writes to the FIFO: who opens it waits for ever, unless he says that he will not."""
    paths = [mesh.mesh_of("api"), mesh.mesh_of("ca")]
    try:
        while True:
            for path in paths:
                fresh = path.with_suffix(".fifo")
                os.mkfifo(fresh)
                fresh.replace(path)
            count.done += 1
            await trio.sleep(HUNG_SECONDS)
            for path in paths:
                put(path, MESH)
            await trio.sleep(WHOLE_SECONDS)
    finally:
        for path in paths:
            put(path, MESH)


async def big_mesh_saved(count: Count, mesh: Besieged, _traffic: Traffic) -> None:
    """Saved as rarely as an editor saves it: each is read. The first opens, so it has the time to take effect."""
    path = mesh.mesh_of("web")
    every = 1 / KINDS["big-mesh"].rate
    try:
        put(path, await trio.to_thread.run_sync(big_mesh, 0))
        await trio.sleep(OPEN_SECONDS + 3 * LOOK_SECONDS)
        while True:
            put(path, await trio.to_thread.run_sync(big_mesh, int(count.done)))
            count.done += 1
            await trio.sleep(every)
    finally:
        put(path, MESH)


def put(path: os.PathLike[str], text: str) -> None:
    """Puts a file in the path's place, as a whole."""
    fresh = f"{os.fspath(path)}.fresh"
    with open(fresh, "w") as file:  # noqa: PTH123 (a path of any kind)
        file.write(text)
    os.replace(fresh, path)  # noqa: PTH105


# -- the one that begins before its flood ------------------------------------------------------------------------------


@asynccontextmanager
async def late_sidecar(mesh: Besieged, traffic: Traffic, *, resolved: bool) -> AsyncIterator[Count]:
    """A sidecar that has just started, and honest calls through it from then on, which are counted. What a resolver does is
    felt in its first ten seconds."""
    entry = (LOOPBACK, Ports().take())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((SILENT_RESOLVER, 53))  # it takes questions, and never answers
        late = await mesh.processes.start("late", late_command(mesh, entry, resolved=resolved))
        try:
            await late.line(started)
            run = traffic.calls(LATE, KINDS[RESOLVER].rate, partial(honest.ask_anew, entry))
            calls, count = traffic.sorts[LATE], Count()
            before = calls.begun
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield count
                count.done += calls.begun - before
                with trio.move_on_after(honest.DEADLINE):  # those that are under way come back, or are lost
                    while len(calls.made) < calls.begun:  # noqa: ASYNC110 (real sockets)
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                late.kill()
                await late.process.wait()
                mesh.processes.forget(late)


ACTIONS: dict[str, Action] = {
    "log-stalled": log_stalled,
    "files-hung": files_hung,
    "big-mesh": big_mesh_saved,
}
