"""``sidecar run``: one sidecar in one process. Wiring only."""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import trio

from sidecar import config as configuration
from sidecar import credentials
from sidecar.config import Config
from sidecar.judge import Terms
from sidecar.logs import Log
from sidecar.node import Generation, Node
from sidecar.reasons import UsageError
from sidecar.server import Server
from sidecar.tls import Context, utc_now

EXPIRY_CHECK_SECONDS = 30.0
EXPIRY_WARNING = timedelta(minutes=10)


def prepare(config: Config, log: Log) -> tuple[Server, credentials.Credentials]:
    """Everything that can be wrong at start: credentials, then listeners. Raises :class:`UsageError`."""
    if not isinstance(config.identity, configuration.FileIdentity):
        raise UsageError(
            f"{config.path}: identity.ca: this version takes certificates from files only; "
            "make them with `certs issue` and write identity: {files: {certificate: …, key: …, bundle: …}}"
        )
    files, mesh = config.identity, config.mesh
    own = mesh.identity(config.service)
    terms = Terms(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl)
    loaded = credentials.load(
        files.certificate, files.key, files.bundle, Terms(mesh.trust_domain, own, mesh.max_leaf_ttl), utc_now()
    )
    node = Node(config, Generation(own, mesh, Context(loaded.keys, terms)), log)
    return Server(node), loaded


@asynccontextmanager
async def machinery(node: Node) -> AsyncIterator[None]:
    """The tasks that a node's connections rely on, for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.relay.run)
        nursery.start_soon(node.gate.run)
        nursery.start_soon(node.resolver.run)
        yield
        nursery.cancel_scope.cancel()


async def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts at once. Raises :class:`UsageError` at start."""
    log = Log(style=config.log_format)
    server, loaded = prepare(config, log)
    _raise_descriptor_limit()
    stop = trio.Event()
    for warning in configuration.warnings(config, utc_now()):
        log.warning("warning", service=config.service, message=warning)
    async with machinery(server.node), trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            nursery.start_soon(_obey, signals, stop, log, config, nursery.cancel_scope)
            nursery.start_soon(_watch_expiry, loaded, log, config.service)
            log.info(
                "started",
                service=config.service,
                identity=str(loaded.svid.id),
                certificate_until=f"{loaded.svid.not_after:%FT%TZ}",
                inbound=[f"{one.port} on {_at(one.address)}" for one in server.listeners if one.direction == "inbound"],
                outbound=[
                    f"{one.upstream} on {_at(one.address)}" for one in server.listeners if one.direction == "outbound"
                ],
            )
            await server.serve(stop)
            nursery.cancel_scope.cancel()
    log.info("stopped", service=config.service)


async def _obey(
    signals: AsyncIterator[int], stop: trio.Event, log: Log, config: Config, everything: trio.CancelScope
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if stop.is_set():
            log.warning("cutting", service=config.service, message=f"{name} again: connections are cut now")
            everything.cancel()
        else:
            log.info(
                "draining",
                service=config.service,
                message=f"{name}: up to {config.timeouts.drain:g} s for connections to finish",
            )
            stop.set()


async def _watch_expiry(loaded: credentials.Credentials, log: Log, service: str) -> None:
    """Says before and when our own certificate runs out: from then on every peer refuses us."""
    until, said = loaded.svid.not_after, ""
    while True:
        left = until - utc_now()
        stage = "expired" if left <= timedelta() else "expiring" if left <= EXPIRY_WARNING else ""
        if stage != said:
            message = f"our certificate is good until {until:%F %T} UTC and no longer: issue a new one and restart"
            log.warning(f"certificate_{stage}", service=service, message=message)
            said = stage
        await trio.sleep(EXPIRY_CHECK_SECONDS)


def _at(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _raise_descriptor_limit() -> None:
    """Two descriptors a connection: take as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
