"""A peer is revoked: its live connections are cut within ten seconds, whichever end it is at, and it is let in no more."""

from __future__ import annotations

import functools
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations
from sidecar.lifecycle.reload import snapshot
from sidecar.policy.mesh import parse_mesh
from sidecar.transport import sockets
from sidecar.transport.tls import KeyPair
from tests import harness
from tests.attacks.camesh import Mesh, ca_mesh
from tests.attacks.castage import MESH, ca_desk, membership, until
from tests.attacks.stage import assert_refused
from tests.certificates import Credential
from tests.harness import PATIENCE, RunningSidecar, connect, mesh_bed
from tests.integration.processes import sidecar_process

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
    await mesh.ca.certs("revoke", service)
    before = trio.current_time()
    with trio.fail_after(CUT_SECONDS), pytest.raises(ConnectionResetError):
        await sockets.receive(live, 1)
    return trio.current_time() - before


async def test_a_revoked_caller_is_cut_and_let_in_no_more_while_others_go_on(tmp_path: Path) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        async with ca_mesh(tmp_path, app) as mesh:
            peers = f'peers: ["{mesh.api.at("http")}"]'
            file = await mesh.ca.wiring("job", f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", {peers}}}]\n')
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
            assert mesh.ca.program.errors == mesh.api.program.errors == mesh.web.program.errors == ""
            assert not mesh.web.program.events("internal_error") + mesh.api.program.events("internal_error")
            # It tried to come back by itself, and was told no.
            await mesh.ca.program.event("denied", peer_id="spiffe://shop.internal/web", reason="revoked")
            # Whoever revoked it may let it come back.
            (tmp_path / "web.enrol").unlink()
            await mesh.ca.certs("enrolment", "web", "--out", str(tmp_path / "web.enrol"))
            await mesh.web.program.event("enrolled_again")
            (await call(mesh.entry)).close()


async def test_a_revoked_callee_is_cut_and_met_with_an_alarm(tmp_path: Path) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        async with ca_mesh(tmp_path, app) as mesh:
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


# -- a list that is too old --------------------------------------------------------------------------------------------


async def test_a_stale_list_lets_nobody_new_in_cuts_nobody_and_is_no_alarm(tmp_path: Path) -> None:
    """web's list is stale, then api's; neither can know whether the other was revoked meanwhile."""
    async with ca_desk(tmp_path, ttl=timedelta(hours=12)) as desk:
        sidecar = membership(desk, desk.address, text=desk.make_pass("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.member.join()
        mesh, own = parse_mesh(MESH, "mesh.yaml"), sidecar.in_force.keys
        peer = desk.keys("api", ttl=timedelta(hours=12))
        async with mesh_bed(MESH) as bed:
            app = await bed.app()
            there = await bed.sidecar(
                "api", inbound=[harness.inbound("http", app.address)], credential=as_credential(peer), clock=desk.clock
            )
            here = await bed.sidecar(
                "web",
                outbound=[harness.outbound("api", "http", there.address("http"))],
                credential=as_credential(own),
                clock=desk.clock,
            )
            entry = here.address("api:http", "outbound")

            def polled(web: Revocations, api: Revocations) -> None:
                here.node.current = snapshot("web", mesh, own, web)
                there.node.current = snapshot("api", mesh, peer, api)

            fresh = sidecar.member.revocations()
            polled(fresh, fresh)
            with await call(entry) as live:
                desk.clock.jump(timedelta(hours=1, seconds=1))
                await desk.server._look()
                await sidecar.member._poll()
                newer = sidecar.member.revocations()
                for number, (web, api, at) in enumerate([(fresh, newer, here), (newer, fresh, there)], start=1):
                    polled(web, api)
                    for one in (here, there):
                        assert await one.node.registry.rejudge(one.node.standing) == 0
                    await assert_refused(entry)
                    await until(functools.partial(is_stale, at))
                    await exchange(live)
                    polled(newer, newer)
                    (await call(entry)).close()
                    assert app.connections == 1 + number
            assert not here.log.alarms
        await sidecar.member.close()


async def test_without_any_list_nobody_is_let_in(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        sidecar = membership(desk, desk.address, text=desk.make_pass("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.member.join()
        assert (sidecar.member.revocations().fresh_until or desk.clock()) > desk.clock()
        sidecar.member._listed = None
        until = sidecar.member.revocations().fresh_until
        assert until is not None
        assert until < desk.clock() - timedelta(days=1000)
        await sidecar.member.close()


def is_stale(sidecar: RunningSidecar) -> bool:
    return "revocations_stale" in [line["reason"] for line in sidecar.log.connections]


def as_credential(keys: KeyPair) -> Credential:
    return Credential(keys.chain[0], keys.key, keys.chain, keys.roots)
