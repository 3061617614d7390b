"""``mesh-admin``: a sidecar's own numbers, for callers whom a rule names it to, and for nobody else."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.admin import Source
from sidecar.observe.local import FIRST_REQUEST_SECONDS
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.policy.names import ADMIN_PORT
from sidecar.proxy import own_port
from sidecar.proxy.own_port import OwnApp
from sidecar.relay.strand import Steps, run
from sidecar.transport import sockets
from tests.beds.admin import NUMBERS, WELL
from tests.beds.mesh import Foreigner, LogSink, MeshBed, RunningSidecar, connect, mesh_bed, outbound, receive_all
from tests.beds.patience import PATIENCE

MESH = """\
trust_domain: shop.internal
services: {{prometheus: {{}}, web: {{}}, api: {{ports: {{http: 8080}}}}, job: {{}}}}
policy:
  - {{from: "*", to: "*"}}
  - {{from: web, to: api}}
  - {rule}
"""
IN_FULL = '{from: prometheus, to: ["api:mesh-admin", "job:mesh-admin"]}'


def source(metrics: Metrics | None = None) -> Source:
    return Source(list, bool, lambda: WELL, lambda: NUMBERS, metrics or Metrics())


async def scraped(bed: MeshBed, callee: RunningSidecar, caller: str = "prometheus") -> tuple[RunningSidecar, bytes]:
    """What a caller's app hears from a callee's own port, through its own sidecar."""
    service = callee.node.config.service
    web = await bed.sidecar(caller, outbound=[outbound(service, ADMIN_PORT, callee.address(ADMIN_PORT))])
    return web, await asked(web, f"{service}:{ADMIN_PORT}")


async def asked(caller: RunningSidecar, target: str, path: str = "/metrics", method: str = "GET") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 172.30.0.2:15100\r\nConnection: close\r\n\r\n"
    with await connect(caller.address(target, "outbound")) as app:
        try:
            await sockets.send_all(app, head.encode())
            return await receive_all(app)
        except OSError:
            return b""


@pytest.mark.parametrize("service", ["api", "job"])
async def test_whom_a_rule_names_it_to_reads_the_metrics_also_of_a_service_without_ports(service: str) -> None:
    async with mesh_bed(MESH.format(rule=IN_FULL)) as bed:
        callee = await bed.sidecar(service, own=source().mesh_routes())
        caller, answer = await scraped(bed, callee)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"sidecar_healthy 1.0\n" in answer
        line = await callee.log.connection()
        assert (line["port"], line["decision"], line["reason"]) == (ADMIN_PORT, "allow", "ok")
        assert line["upstream"] == "this sidecar"
        assert (line["peer_id"], line["rule"]) == (
            "spiffe://shop.internal/prometheus",
            "prometheus->api:mesh-admin,job:mesh-admin",
        )
        for path, status in (("/healthz", b"200"), ("/livez", b"200"), ("/status", b"404"), ("/probe", b"404")):
            assert (await asked(caller, f"{service}:{ADMIN_PORT}", path)).split()[1] == status, path
        assert (await asked(caller, f"{service}:{ADMIN_PORT}", "/metrics", "POST")).split()[1] == b"405"


@pytest.mark.parametrize(
    "rule",
    [
        '{from: prometheus, to: "*"}',
        "{from: prometheus, to: api}",
        '{from: prometheus, to: "job:mesh-admin"}',
        '{from: prometheus, to: "api:mesh-admin", mode: dry-run}',
        '{from: prometheus, to: "api:mesh-admin", until: 2020-01-01}',
    ],
)
async def test_no_other_rule_lets_in(rule: str) -> None:
    """Neither end: the caller's own sidecar refuses, and so does the callee's, whoever asks it."""
    async with mesh_bed(MESH.format(rule=rule)) as bed:
        api = await bed.sidecar("api", own=source().mesh_routes())
        caller, answer = await scraped(bed, api)
        assert (answer, (await caller.log.connection())["reason"]) == (b"", "policy_denied")
        with await connect(api.address(ADMIN_PORT)) as sock:
            prometheus = Foreigner(sock, bed.authority.leaf("prometheus"), alpn=[b"mesh/1/mesh-admin"])
            await prometheus.handshake()
            assert await prometheus.verdict() == "policy_denied"
        assert (await api.log.connection())["reason"] == "policy_denied"


async def test_a_deny_rule_means_it_only_in_full_too() -> None:
    rule = f"{IN_FULL}\n  - {{from: prometheus, to: api, action: deny}}"
    async with mesh_bed(MESH.format(rule=rule)) as bed:
        _, answer = await scraped(bed, await bed.sidecar("api", own=source().mesh_routes()))
        assert answer.startswith(b"HTTP/1.1 200")
    rule = f'{IN_FULL}\n  - {{from: prometheus, to: "api:mesh-admin", action: deny}}'
    async with mesh_bed(MESH.format(rule=rule)) as bed:
        _, answer = await scraped(bed, await bed.sidecar("api", own=source().mesh_routes()))
        assert answer == b""


async def test_whoever_speaks_no_protocol_of_ours_is_refused() -> None:
    """The twin is above: there is no raw mode here, in which the port's name would be nowhere."""
    async with mesh_bed(MESH.format(rule=IN_FULL)) as bed:
        api = await bed.sidecar("api", own=source().mesh_routes())
        with await connect(api.address(ADMIN_PORT)) as sock:
            raw = Foreigner(sock, bed.authority.leaf("prometheus"), alpn=[])
            await raw.handshake()
            line = await api.log.connection()
        assert (line["decision"], line["reason"]) == ("deny", "handshake_failed")


async def test_it_opens_at_once_though_others_wait_for_their_app() -> None:
    async with mesh_bed(MESH.format(rule=IN_FULL)) as bed:
        api = await bed.sidecar("api", own=source().mesh_routes(), timeouts=Timeouts(wait=1000.0))
        _, answer = await scraped(bed, api)
        assert answer.startswith(b"HTTP/1.1 200")


async def reached(app: OwnApp) -> socket.socket:
    found = await run(app.reach_only(0.0, {}, never))
    assert found is not None
    return found[0]


def never() -> Steps[None]:
    raise AssertionError("nothing is waited for")


async def test_so_many_at_a_time_and_none_before_it_runs(autojump_clock: MockClock) -> None:
    app, routes = OwnApp(Log(LogSink(), "json")), dict[str, Any]()
    with pytest.raises(Refused) as early:
        await reached(app)
    assert early.value.reason is Reason.CONNECT_FAILED
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run, routes)
        await trio.testing.wait_all_tasks_blocked()
        held = []
        for _ in range(own_port.MAX_CONNECTIONS):
            held.append(await reached(app))
        with pytest.raises(Refused) as full:
            await reached(app)
        assert full.value.reason is Reason.OVERLOADED
        began = trio.current_time()
        for sock in held:  # none has asked: each is ended, and makes room
            with trio.fail_after(PATIENCE):
                assert await sockets.receive(sock, 1) == b""
            sock.close()
        assert trio.current_time() - began == FIRST_REQUEST_SECONDS
        (await reached(app)).close()
        nursery.cancel_scope.cancel()
    with pytest.raises(Refused):
        await reached(app)
    with pytest.raises(Refused):
        await app.reach(1.0, {})


async def test_without_a_descriptor_left_the_caller_is_refused_and_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    app = OwnApp(Log(LogSink(), "json"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run, {})
        await trio.testing.wait_all_tasks_blocked()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", none_left)
            with pytest.raises(Refused, match="cannot answer on mesh-admin now: Too many open files") as refused:
                await reached(app)
        assert refused.value.reason is Reason.CONNECT_FAILED
        assert app._open == 0
        nursery.cancel_scope.cancel()


async def test_a_bug_in_an_answer_ends_that_connection_alone() -> None:
    async def broken(_: object) -> None:
        raise ZeroDivisionError

    async with mesh_bed(MESH.format(rule=IN_FULL)) as bed:
        api = await bed.sidecar("api", own={"/metrics": {"GET": broken}})  # type: ignore[dict-item]
        caller, answer = await scraped(bed, api)
        assert answer == b""
        assert api.log.events("internal_error")[0]["exception"].endswith("ZeroDivisionError")
        assert (await asked(caller, f"api:{ADMIN_PORT}", "/other")).split()[1] == b"404"
