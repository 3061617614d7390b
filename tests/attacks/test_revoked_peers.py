"""A peer is revoked: its live connections are cut within ten seconds, whichever end it is at, and it is let in no more."""

from __future__ import annotations

import functools
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from certs.registrar import revocations
from certs.store.store import Transaction
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations
from sidecar.lifecycle.reload import snapshot
from sidecar.policy.mesh import parse_mesh
from sidecar.transport import sockets
from tests.attacks.stage import assert_refused
from tests.beds import mesh as harness
from tests.beds.asking import MESH, ca_desk, until
from tests.beds.ca_processes import Mesh, ca_mesh
from tests.beds.certificates import credential
from tests.beds.mesh import RunningSidecar, connect, mesh_bed
from tests.beds.patience import PATIENCE
from tests.beds.processes import sidecar_process

CUT_SECONDS = 10.0


async def call(entry: Address) -> socket.socket:
    """A live connection, which has carried bytes both ways."""
    sock = await connect(entry)
    await exchange(sock)
    return sock


async def exchange(sock: socket.socket) -> None:
    with trio.fail_after(PATIENCE):
        await sockets.send_all(sock, b"ping")
        assert await sockets.receive(sock, 4) == b"ping"


async def cut(mesh: Mesh, live: socket.socket, service: str) -> float:
    """Revokes a service; returns how many seconds later its live connection was cut, by a reset."""
    await mesh.site.certs("revoke", service)
    before = trio.current_time()
    with trio.fail_after(CUT_SECONDS), pytest.raises(ConnectionResetError):
        await sockets.receive(live, 1)
    return trio.current_time() - before


async def test_a_revoked_caller_is_cut_and_let_in_no_more_while_others_go_on(tmp_path: Path) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        async with ca_mesh(tmp_path, app.address) as mesh:
            peers = f'peers: ["{mesh.api.at("http")}"]'
            file = mesh.site.agent("job", f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", {peers}}}]\n')
            async with sidecar_process(file) as job:
                with await call(Address(*job.address("api:http"))) as honest, await call(mesh.entry) as live:
                    print(f"cut after {await cut(mesh, live, 'web'):.1f} s")
                    line = await mesh.api.program.event("connection", reason="revoked")
                    assert (line["decision"], line["direction"]) == ("allow", "inbound")
                    # New ones: refused by api's sidecar by name; web hears of it.
                    await assert_refused(mesh.entry)
                    line = await mesh.api.program.event("connection", 2, reason="revoked")
                    assert (line["decision"], line["bytes_to_app"]) == ("deny", 0)
                    assert app.connections == 2
                    # The twin, all along: job's connection, and a new one of job's.
                    await exchange(honest)
                    (await call(Address(*job.address("api:http")))).close()
            assert mesh.ca.errors == mesh.api.program.errors == mesh.web.program.errors == ""
            assert not mesh.web.program.events("internal_error") + mesh.api.program.events("internal_error")
            # It tried to come back by itself, and was told no.
            await mesh.ca.event("denied", peer_id="spiffe://shop.internal/web", reason="revoked")
            # Whoever revoked it may let it come back.
            (tmp_path / "web.secret").unlink()
            await mesh.site.certs("enrolment", "web", "--out", str(tmp_path / "web.secret"))
            await mesh.web.program.event("enrolled_again")
            (await call(mesh.entry)).close()


async def test_a_revoked_callee_is_cut_and_met_with_an_alarm(tmp_path: Path) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        async with ca_mesh(tmp_path, app.address) as mesh:
            with await call(mesh.entry) as live:
                assert not mesh.web.program.events("mitm_suspected")
                print(f"cut after {await cut(mesh, live, 'api'):.1f} s")
                line = await mesh.web.program.event("connection", reason="revoked")
                assert (line["decision"], line["direction"]) == ("allow", "outbound")
                await assert_refused(mesh.entry)
                line = await mesh.web.program.event("connection", 2, reason="revoked")
                assert (line["decision"], line["bytes_from_app"]) == ("deny", 0)
                alarm = await mesh.web.program.event("mitm_suspected")
                assert alarm["reason"] == "revoked"
                assert alarm["expected"] == "spiffe://shop.internal/api"
                assert app.connections == 1
                assert bytes(app.received) == b"ping"


async def test_the_last_of_a_thousand_that_are_revoked_at_once_is_cut_as_soon(tmp_path: Path) -> None:
    def burst(transaction: Transaction) -> None:
        for _ in range(1000):
            revocations.raise_version(transaction)  # as each revocation does

    async with mesh_bed() as bed:
        app = await bed.app()
        async with ca_mesh(tmp_path, app.address) as mesh:
            with await call(mesh.entry) as live:
                with mesh.site.opened() as store:
                    store.write(burst)
                print(f"cut after {await cut(mesh, live, 'web'):.1f} s")
            await assert_refused(mesh.entry)


# -- a list that is too old --------------------------------------------------------------------------------------------


async def test_a_stale_list_lets_nobody_new_in_cuts_nobody_and_is_no_alarm(tmp_path: Path) -> None:
    """web's list is stale, then api's; neither can know whether the other was revoked meanwhile."""
    async with ca_desk(tmp_path, ttl=timedelta(hours=12)) as desk:
        sidecar = desk.membership(text=desk.make_credential("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.agent.enrol()
        mesh, own = parse_mesh(MESH, "mesh.yaml"), sidecar.own.keys
        peer = desk.keys("api", ttl=timedelta(hours=12))
        async with mesh_bed(MESH) as bed:
            app = await bed.app()
            there = await bed.sidecar(
                "api", inbound=[harness.inbound("http", app.address)], credential=credential(peer), clock=desk.clock
            )
            here = await bed.sidecar(
                "web",
                outbound=[harness.outbound("api", "http", there.address("http"))],
                credential=credential(own),
                clock=desk.clock,
            )
            entry = here.address("api:http", "outbound")

            def polled(web: Revocations, api: Revocations) -> None:
                here.node.current = snapshot("web", mesh, own, web)
                there.node.current = snapshot("api", mesh, peer, api)

            fresh = sidecar.agent.revocations()
            polled(fresh, fresh)
            with await call(entry) as live:
                desk.clock.jump(timedelta(hours=1, seconds=1))
                await desk.server._look()
                await sidecar.agent._poll()
                newer = sidecar.agent.revocations()
                for number, (web, api, at) in enumerate([(fresh, newer, here), (newer, fresh, there)], start=1):
                    polled(web, api)
                    for one in (here, there):
                        assert await one.node.registry.rejudge(one.node.recheck) == 0
                    await assert_refused(entry)
                    await until(functools.partial(is_stale, at))
                    await exchange(live)
                    polled(newer, newer)
                    (await call(entry)).close()
                    assert app.connections == 1 + number
            assert not here.log.alarms
        await sidecar.agent.close()


async def test_without_any_list_nobody_is_let_in(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        sidecar = desk.membership(text=desk.make_credential("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.agent.enrol()
        assert (sidecar.agent.revocations().fresh_until or desk.clock()) > desk.clock()
        sidecar.agent._membership.trust = replace(sidecar.agent._trust, listed=None)
        until = sidecar.agent.revocations().fresh_until
        assert until is not None
        assert until < desk.clock() - timedelta(days=1000)
        await sidecar.agent.close()


def is_stale(sidecar: RunningSidecar) -> bool:
    return "revocations_stale" in [line["reason"] for line in sidecar.log.connections]
