"""``sidecar run``: one sidecar in one process. Wiring only."""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from sidecar import config as configuration
from sidecar.config import Config, FileIdentity
from sidecar.credentials import Credentials
from sidecar.judge import Revocations
from sidecar.logs import Log
from sidecar.member import Member
from sidecar.node import Node
from sidecar.reasons import UsageError
from sidecar.reload import NOTHING_REVOKED, Reloader, generation, load_credentials
from sidecar.server import Server
from sidecar.tls import utc_now


def prepare(
    config: Config,
    environ: Mapping[str, str],
    log: Log,
    loaded: Credentials | None = None,
    revocations: Revocations = NOTHING_REVOKED,
) -> tuple[Server, Reloader]:
    """Everything that can be wrong at start: credentials (those of the files, unless a CA gave some), then listeners.
    Raises :class:`UsageError`."""
    if loaded is None:
        loaded = load_credentials(config, config.mesh, utc_now())
    node = Node(config, generation(config.service, config.mesh, loaded.keys, revocations), log)
    return Server(node), Reloader(node, loaded, environ, revocations)


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
    if isinstance(config.identity, FileIdentity):
        await _serve(config, log, *prepare(config, environ, log))
        return
    member = Member(config.service, config.identity, lambda: config.mesh, log, utc_now)
    try:
        joined = await _join(member)
        if joined is None:
            return
        server, reloader = prepare(config, environ, log, joined, member.revocations())
        member.follow(lambda: server.node.current.mesh)
        await _serve(config, log, server, reloader, member)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await member.close()


async def _join(member: Member) -> Credentials | None:
    """Waits until we are somebody; None if a signal came first."""
    outcome: Credentials | UsageError | None = None
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

            async def give_up() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            try:
                await member.join()
                outcome = member.credentials
            except UsageError as error:  # raised out here it is a sentence; out of the nursery, a group of exceptions
                outcome = error
            nursery.cancel_scope.cancel()
    if isinstance(outcome, UsageError):
        raise outcome
    return outcome


async def _serve(config: Config, log: Log, server: Server, reloader: Reloader, member: Member | None = None) -> None:
    raise_descriptor_limit()
    stop = trio.Event()
    for warning in configuration.warnings(config, utc_now()):
        log.warning("warning", service=config.service, message=warning)
    async with machinery(server.node), trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            nursery.start_soon(_obey, signals, stop, server.node, reloader, nursery.cancel_scope)
            nursery.start_soon(reloader.run)
            if member is not None:
                nursery.start_soon(member.run, reloader.adopt)
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
