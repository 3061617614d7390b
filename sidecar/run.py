"""``sidecar run``: one sidecar in one process. Wiring only."""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from sidecar import config as configuration
from sidecar.config import Config
from sidecar.logs import Log
from sidecar.node import Node
from sidecar.reload import Reloader, generation, load_credentials
from sidecar.server import Server
from sidecar.tls import utc_now


def prepare(config: Config, environ: Mapping[str, str], log: Log) -> tuple[Server, Reloader]:
    """Everything that can be wrong at start: credentials, then listeners. Raises :class:`UsageError`."""
    loaded = load_credentials(config, config.mesh, utc_now())
    node = Node(config, generation(config.service, config.mesh, loaded.keys), log)
    return Server(node), Reloader(node, loaded, environ)


@asynccontextmanager
async def machinery(node: Node) -> AsyncIterator[None]:
    """The tasks that a node's connections rely on, for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.relay.run)
        nursery.start_soon(node.gate.run)
        nursery.start_soon(node.resolver.run)
        yield
        nursery.cancel_scope.cancel()


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts at once; SIGHUP reloads the files at once.
    ``environ`` is what ``config`` was read with. Raises :class:`UsageError` at start."""
    log = Log(style=config.log_format)
    server, reloader = prepare(config, environ, log)
    raise_descriptor_limit()
    stop = trio.Event()
    for warning in configuration.warnings(config, utc_now()):
        log.warning("warning", service=config.service, message=warning)
    async with machinery(server.node), trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            nursery.start_soon(_obey, signals, stop, server.node, reloader, nursery.cancel_scope)
            nursery.start_soon(reloader.run)
            svid = reloader.loaded.svid
            log.info(
                "started",
                service=config.service,
                identity=str(svid.id),
                certificate_until=f"{svid.not_after:%FT%TZ}",
                inbound=[f"{one.port} on {_at(one.address)}" for one in server.listeners if one.direction == "inbound"],
                outbound=[
                    f"{one.upstream} on {_at(one.address)}" for one in server.listeners if one.direction == "outbound"
                ],
            )
            await server.serve(stop)
            nursery.cancel_scope.cancel()
    log.info("stopped", service=config.service)


async def _obey(
    signals: AsyncIterator[int], stop: trio.Event, node: Node, reloader: Reloader, everything: trio.CancelScope
) -> None:
    service, seconds = node.config.service, node.config.timeouts.drain
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            await reloader.reload()
        elif stop.is_set():
            node.log.warning("cutting", service=service, message=f"{name} again: connections are cut now")
            everything.cancel()
        else:
            message = f"{name}: up to {seconds:g} s for connections to finish"
            node.log.info("draining", service=service, message=message)
            stop.set()


def _at(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def raise_descriptor_limit() -> None:
    """Two descriptors a connection: take as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
