"""``sidecar run``: one sidecar in one process. Puts the parts together and obeys signals; no logic of its own."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config import environment
from sidecar.config import wiring as configuration
from sidecar.config.sidecar_yaml import Config, FileIdentity
from sidecar.host import memory
from sidecar.host.clock import utc_now
from sidecar.host.process import (
    descriptor_limit,
    hangup_ignored,
    keep_loop_responsive,
    raise_descriptor_limit,
    shortage,
)
from sidecar.identity.judge import Revocations, revoked
from sidecar.identity.reasons import UsageError
from sidecar.lifecycle.ending_watch import EndingWatch
from sidecar.lifecycle.gauges import Gauges
from sidecar.lifecycle.plaintext_watch import PlaintextWatch
from sidecar.lifecycle.reload import NOTHING_REVOKED, Reloader, load_credentials, snapshot
from sidecar.lifecycle.report import report_of
from sidecar.lifecycle.status import CurrentState, describe
from sidecar.observe import lag, stray
from sidecar.observe.admin import Source
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.proxy.live import BareAdmission
from sidecar.proxy.node import Node
from sidecar.proxy.probing import Probing
from sidecar.proxy.probing import routes as probing_routes
from sidecar.proxy.server import Server


def prepare(
    config: Config,
    environ: Mapping[str, str],
    log: Log,
    loaded: Credentials | None = None,
    revocations: Revocations = NOTHING_REVOKED,
    alarms: AlarmLog | None = None,
) -> tuple[Server, Reloader]:
    """Everything that can fail at the start: reads the credential files, unless ``loaded`` are from a CA, then opens the
    listeners. Raises :class:`UsageError`."""
    if loaded is None:
        loaded = load_credentials(config, config.mesh, utc_now())
    node = Node(config, snapshot(config.service, config.mesh, loaded.keys, revocations), log, alarms=alarms)
    return Server(node), Reloader(node, loaded, environ, revocations)


@asynccontextmanager
async def machinery(node: Node) -> AsyncIterator[None]:
    """Runs the background tasks that a node's connections need, for the time of the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.relay.run)
        nursery.start_soon(node.gate.run)
        nursery.start_soon(node.resolver.run)
        yield
        nursery.cancel_scope.cancel()


async def run(config: Config, environ: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second of these cuts all connections; SIGHUP reloads the files.
    ``environ``: the environment that ``config`` was read with. Raises :class:`UsageError` at the start."""
    log = Log(style=config.log_format, connections=config.access_log)
    raise_descriptor_limit()
    keep_loop_responsive()
    with stray.to_log(log), hangup_ignored():
        await _run(config, environ, log)


async def _run(config: Config, environ: Mapping[str, str], log: Log) -> None:
    for warning in environment.warnings(environ):
        log.warning("warning", service=config.service, message=warning)
    if isinstance(config.identity, FileIdentity):
        await _serve(config, log, *prepare(config, environ, log))
        return
    alarms = AlarmLog(log, utc_now, config.identity.state_dir / "evidence")
    agent = Agent(config.service, config.identity, lambda: config.mesh, log, utc_now, alarms)
    try:
        enrolled = await _enrol(agent)
        if enrolled is None:
            return
        server, reloader = prepare(config, environ, log, enrolled, agent.revocations(), alarms)
        agent.follow(lambda: server.node.current.mesh)
        await _serve(config, log, server, reloader, agent)
    finally:
        alarms.write_all()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await agent.close()


async def _enrol(agent: Agent) -> Credentials | None:
    """Waits for a usable certificate; None if a signal came first. SIGHUP has no effect: files are read after the wait, and
    the token or secret at each attempt. Raises :class:`UsageError` if waiting cannot help."""
    enrolled, refused = None, None
    # The signal block is outside of the nursery: waiting for a signal after its block has ended is an error.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            try:
                await agent.enrol()
                enrolled = agent.credentials
            except UsageError as error:
                refused = error  # raised below: the nursery would wrap it in an exception group
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    return enrolled


async def _serve(config: Config, log: Log, server: Server, reloader: Reloader, agent: Agent | None = None) -> None:
    stop = trio.Event()
    endings = EndingWatch(server.node)
    status = partial(_status, config, server, reloader, agent, endings, stop, server.node.clock())
    if agent is not None:
        agent.report(lambda: report_of(status(), f"{server.node.clock():%FT%TZ}"))
    unwell = partial(_unwell, server, reloader)
    numbers = Gauges(server, reloader, agent, endings, unwell, stop.is_set).now
    source = Source(unwell, stop.is_set, status, numbers, server.node.metrics)
    admins: list[LocalServer] = []
    if config.admin is not None:
        probing = Probing(server.node, lambda: config.outbound, lambda: reloader.loaded.keys, lambda: server.listening)
        acting = source.routes() | probing_routes(lambda name: probing if name in (None, config.service) else None)
        listen, beside = config.admin.listen, config.admin.socket
        try:
            # What acts is on a Unix socket only: a web page can reach loopback.
            answers = acting if isinstance(listen, Path) else source.routes()
            admins.append(LocalServer(f"{config.path}: admin.listen", listen, answers, log))
            if beside is not None:
                admins.append(LocalServer(f"{config.path}: admin.socket", beside, acting, log))
        except BaseException:
            server.close()
            for admin in admins:
                admin.close()
            raise
    if (warning := shortage(config.limits.connections, descriptor_limit())) is not None:
        log.warning("warning", service=config.service, message=warning)
    for warning in configuration.warnings(config, utc_now()):
        log.warning("warning", service=config.service, message=warning)
    async with machinery(server.node), trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            nursery.start_soon(_handle_signals, signals, stop, server.node, reloader, nursery.cancel_scope)
            nursery.start_soon(reloader.run)
            nursery.start_soon(endings.run)
            nursery.start_soon(PlaintextWatch(server.node).run)
            nursery.start_soon(memory.give_back)
            nursery.start_soon(server.node.alarm_log.run)
            nursery.start_soon(server.own_app.run, source.mesh_routes())
            nursery.start_soon(lag.measure, server.node.metrics.lag)
            for admin in admins:
                nursery.start_soon(admin.run)
            if agent is not None:
                nursery.start_soon(agent.run, reloader.adopt)
                nursery.start_soon(_report_alarms, agent, server.node.alarm_log)
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
                **({"admin": ", ".join(admin.address for admin in admins)} if admins else {}),
            )
            await server.serve(stop)
            nursery.cancel_scope.cancel()
    server.node.alarm_log.write_all()
    log.info("stopped", service=config.service)


async def _report_alarms(agent: Agent, alarms: AlarmLog) -> None:
    """Has the CA hear of each new alarm at once."""
    while True:
        await alarms.news()
        agent.report_soon()


def _unwell(server: Server, reloader: Reloader) -> list[str]:
    """Why no new connection can succeed now, a sentence each. It is asked at every health check."""
    now, svid, fresh_until = server.node.clock(), reloader.loaded.svid, reloader.revocations.fresh_until
    unwell = server.faults
    if now > svid.not_after:
        unwell.append(f"its certificate ended at {svid.not_after:%FT%TZ}, so every peer refuses it")
    own = tuple(certificate.public_bytes(Encoding.DER) for certificate in reloader.loaded.keys.chain)
    if revoked(svid, own, reloader.revocations) is not None:
        unwell.append("its certificate was revoked, so every peer refuses it, and the CA renews it no longer")
    if fresh_until is not None and now > fresh_until:
        unwell.append(f"its list of revocations was good until {fresh_until:%FT%TZ}, so it accepts no new connection")
    return unwell


def _status(
    config: Config,
    server: Server,
    reloader: Reloader,
    agent: Agent | None,
    endings: EndingWatch,
    stop: trio.Event,
    started_at: datetime,
) -> dict[str, Any]:
    """Current state, as the admin listener serves it."""
    node = server.node
    live = [
        ("inbound", str(admission.source), admission.port)
        if isinstance(admission, BareAdmission) or admission.peer.id == admission.source
        else ("outbound", str(admission.peer.id), f"{admission.service}:{admission.port}")
        for admission in node.registry.admissions()
    ]
    trust = {} if agent is None else agent.trust()
    strangers = node.room.strangers
    state = CurrentState(
        config=config,
        mesh=node.current.mesh,
        svid=reloader.loaded.svid,
        started_at=started_at,
        live=live,
        unwell=_unwell(server, reloader),
        trust=trust,
        draining=stop.is_set(),
        strangers=len(strangers),
        max_strangers=strangers.limit,
        log_lost=node.log.lost,
        idle_channels=node.registry.idle,
        alarms=node.alarm_log.alarms.current(),
        reload_refused=list(reloader.refused.values()),
        waiting=list(server.waiting.reasons.values()),
        ending=endings.calls,
        plaintext=node.callers.current(),
    )
    return describe(node.clock(), state, node.metrics)


async def _handle_signals(
    signals: AsyncIterator[int], stop: trio.Event, node: Node, reloader: Reloader, everything: trio.CancelScope
) -> None:
    service, seconds = node.config.service, node.config.timeouts.drain
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            reloader.request_reload()  # not here: reading may take a while, and the next signal must not wait
        elif stop.is_set():
            node.log.warning("cutting", service=service, message=f"{name} again: connections are cut now")
            everything.cancel()
        else:
            message = f"{name}: up to {seconds:g} s for requests to finish; idle connections end now"
            node.log.info("draining", service=service, message=message)
            node.draining = True
            stop.set()


def _at(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
