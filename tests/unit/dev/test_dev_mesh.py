"""A whole mesh in one process: real mutual TLS between its sidecars, keys in memory, and its file followed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import Inbound, Outbound
from sidecar.config.wiring import parse_config
from sidecar.dev import dev_mesh
from sidecar.dev.dev_mesh import DevMesh, MemoryCa, run_dev
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import parse_mesh
from sidecar.relay import relay
from sidecar.relay.poller import LevelPoller
from sidecar.transport.sockets import listen
from tests.beds.clock import time_passes
from tests.beds.dev_mesh import GROWN, MESH, MeshFile, connect_to, dev_bed, is_free
from tests.beds.live import ends_well, exchange, is_refused, is_reset
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE

HAS_IPV6 = "::1" in dev_mesh._loopbacks()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MeshFile]:
    with MeshFile(tmp_path) as made:
        yield made


@pytest.fixture
def virtual_time() -> MockClock:
    """Goes on to the next deadline when nothing has happened for a moment: to the next look at the file, that is."""
    return MockClock()


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_calls_cross_real_mutual_tls_and_each_caller_s_port_is_its_identity(file: MeshFile) -> None:
    async with dev_bed(file) as mesh:
        for number, caller in enumerate(("web", "job"), start=1):
            await mesh.works(caller, "api:http")
            line = await mesh.line("api", number)
            assert line["peer_id"] == f"spiffe://shop.internal/{file.name(caller)}"
            assert (line["direction"], line["decision"], line["reason"]) == ("inbound", "allow", "ok")
            assert line["tls_group"] == "X25519MLKEM768"
            assert (await mesh.line(caller))["connection_id"] == line["connection_id"]
        await mesh.works("web", "db:sql")


async def test_what_it_does_not_say_itself_is_what_a_file_says_by_default(file: MeshFile) -> None:
    text = (
        f"service: {file.name('web')}\nmesh: m\nidentity: {{files: {{certificate: c, key: k, bundle: b}}}}\n"
        "inbound: [{port: http, listen: '127.0.0.1:1', app: 'a:1', require_alpn: true}]\n"
        "outbound: [{to: db-TAG:sql, listen: '127.0.0.1:2', peers: 'b:1', require_alpn: true}]"
    )
    async with dev_bed(file, apps=False) as bed:
        mesh = parse_mesh(file.tagged(MESH.replace("web-TAG: {}", "web-TAG: {ports: {http: 1}}")), str(file.path))
        written = parse_config(file.tagged(text), str(file.path), {}, mesh)
        made = bed.mesh.node(file.name("web")).config
        assert made.timeouts == replace(written.timeouts, drain=dev_mesh.DRAIN_SECONDS)
        as_made = replace(made, mesh=mesh, mesh_path=written.mesh_path, identity=written.identity)
        assert as_made == replace(written, inbound=(), outbound=(), timeouts=made.timeouts)
        listeners = [one for sidecar in bed.mesh._sidecars.values() for one in sidecar.listeners]
        assert {type(one) for one in listeners} == {Inbound, Outbound}
        for one in listeners:
            if isinstance(one, Inbound):
                (like,) = written.inbound
                assert replace(like, port=one.port, listen=one.listen, apps=one.apps) == one
            else:
                (other,) = written.outbound
                assert replace(other, target=one.target, listen=one.listen, peers=one.peers) == one


async def test_a_call_that_the_policy_denies_is_refused_by_name(file: MeshFile) -> None:
    port = file.free_port()
    file.write(MESH.replace("job-TAG: {}", f'job-TAG: {{dev: {{calls: {{"db-TAG:sql": {port}}}}}}}'))
    async with dev_bed(file) as mesh:
        await is_refused(connect_to(port))
        line = await mesh.line("job")
        assert (line["reason"], line["upstream"]) == ("policy_denied", f"{file.name('db')}:sql")
        assert "no rule allows it" in str(line["message"])
        assert mesh.lines("db") == []
        await mesh.works("web", "db:sql")  # the twin


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
@pytest.mark.parametrize("app_host", ["127.0.0.1", "::1"])
async def test_both_loopbacks_for_callers_and_for_apps(file: MeshFile, app_host: str) -> None:
    async with dev_bed(file, apps=False) as mesh:
        await mesh.app("api:http", app_host)
        for host in ("127.0.0.1", "::1"):
            await mesh.works("web", "api:http", host)


async def test_without_an_ipv6_loopback_there_is_one_less(file: MeshFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("sidecar.dev.dev_mesh.socket.socket", none)
    assert dev_mesh._loopbacks() == ["127.0.0.1"]


async def test_an_app_that_does_not_run_is_named(file: MeshFile) -> None:
    async with dev_bed(file, apps=False) as mesh:
        await is_refused(mesh.call("web", "api:http"))
        line = await mesh.line("api")
        assert line["reason"] == "connect_failed"
        assert f"{file.name('api')}'s app" in str(line["message"])


async def test_everything_works_where_there_is_no_epoll(file: MeshFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac."""
    monkeypatch.setattr(relay, "make_poller", LevelPoller)
    async with dev_bed(file) as mesh:
        assert isinstance(mesh.mesh._relay._poller, LevelPoller)
        sock = await mesh.call("web", "api:http")
        await exchange(sock, bytes(1 << 20))
        await ends_well(sock)
        assert (await mesh.line("api"))["reason"] == "ok"


# -- the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["call", "mesh"])
async def test_a_port_that_is_taken_is_one_clear_error_and_nothing_is_left_listening(
    file: MeshFile, which: str
) -> None:
    made = file.plan(MESH)
    taken = file.call("web", "db:sql") if which == "call" else made.inbound[file.target("db:sql")]
    with socket.create_server(("127.0.0.1", taken)):
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{taken}: .*another process listens there"):
            DevMesh(file.path, Log(LogSink()))
        assert [port for port in file.ports if not is_free(port)] == [taken]


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH.replace("from: web-TAG", "from: wbe-TAG"))
    with pytest.raises(UsageError, match="did you mean 'web-TAG'"):
        DevMesh(path, Log(LogSink()))


def test_a_trust_domain_that_no_certificate_can_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text("trust_domain: .internal\nservices: {}\n")
    with pytest.raises(UsageError, match=r"mesh\.yaml: '\.internal' cannot be a trust domain"):
        DevMesh(path, Log(LogSink()))


def test_the_ca_is_new_each_time_and_what_it_issues_is_short_lived() -> None:
    now = datetime.now(UTC)
    one, other = MemoryCa("shop.internal", now), MemoryCa("shop.internal", now)
    assert one.roots != other.roots
    keys = one.issue(SpiffeId("shop.internal", ("web",)), now)
    assert keys.roots == one.roots
    assert keys.chain[0].not_valid_after_utc - now <= timedelta(hours=1)
    assert len(keys.chain) == 2


# -- renewal -----------------------------------------------------------------------------------------------------------


async def test_certificates_are_renewed_at_half_of_their_life_by_the_wall_clock(
    file: MeshFile, virtual_time: MockClock
) -> None:
    began = datetime.now(UTC) - timedelta(minutes=40)
    wall = began
    async with dev_bed(file, clock=lambda: wall) as mesh:
        live = await mesh.call("web", "api:http")
        await exchange(live)
        first = mesh.mesh._sidecars[file.name("api")].keys
        wall = began + timedelta(minutes=29)
        await trio.sleep(3)
        assert mesh.log.events("certificate_renewed") == []
        wall = began + timedelta(minutes=30)  # as a laptop's clock, after a sleep
        await trio.sleep(3)
        assert len(mesh.log.events("certificate_renewed")) == 4  # each service's, once
        renewed = mesh.mesh._sidecars[file.name("api")].keys
        assert renewed.chain[0].serial_number != first.chain[0].serial_number
        assert renewed.key != first.key
        wall = datetime.now(UTC)
        await mesh.works("web", "api:http")
        await exchange(live)
        await ends_well(live)


# -- changes -----------------------------------------------------------------------------------------------------------


async def test_a_rule_that_goes_cuts_its_connections_and_new_calls_are_refused_by_name(
    file: MeshFile, virtual_time: MockClock
) -> None:
    async with dev_bed(file) as mesh:
        forbidden, allowed = await mesh.call("web", "api:http"), await mesh.call("web", "db:sql")
        for sock in (forbidden, allowed):
            await exchange(sock)
        file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG"))
        await is_reset(forbidden)
        assert (await mesh.line("web"))["reason"] == "policy_changed"
        web, api = file.name("web"), file.name("api")
        said = await mesh.event("reloaded")
        assert f"; {web} calls {api}:http at 127.0.0.1:" in said
        assert said.endswith("(denied: every call is refused)")
        assert mesh.log.events("reloaded")[0]["connections_cut"] == 2  # at both ends
        await is_refused(mesh.call("web", "api:http"))  # the port is still there, to say why
        assert (await mesh.line("web", 2))["reason"] == "policy_denied"
        await mesh.works("job", "api:http")
        await exchange(allowed)
        await ends_well(allowed)


async def test_a_rule_that_comes_opens_a_port_and_says_where_and_cuts_nothing(
    file: MeshFile, virtual_time: MockClock
) -> None:
    async with dev_bed(file) as mesh:
        live = await mesh.call("job", "api:http")
        await exchange(live)
        file.write(GROWN)
        said = await mesh.event("reloaded")
        port = file.call("job", "db:sql")
        assert said == f"{file.path} is in force; {file.name('job')} calls {file.name('db')}:sql at 127.0.0.1:{port}"
        await mesh.works("job", "db:sql")
        await exchange(live)
        await ends_well(live)


async def test_a_service_comes_and_goes(file: MeshFile, virtual_time: MockClock) -> None:
    grown = MESH.replace("policy:", "  log-TAG: {ports: {in: 82}}\npolicy:") + "  - {from: api-TAG, to: log-TAG}\n"
    async with dev_bed(file) as mesh:
        stays = await mesh.call("web", "db:sql")
        await exchange(stays)
        file.write(grown)
        assert f"service '{file.name('log')}' is new; takes effect when" in await mesh.event("reload_waiting")
        await mesh.event("reloaded")
        await mesh.app("log:in")
        live, port = await mesh.call("api", "log:in"), file.call("api", "log:in")
        await exchange(live)
        inbound = mesh.mesh.plan.inbound[file.target("log:in")]
        file.write(MESH)
        await is_reset(live)
        said = await mesh.event("reloaded", 2)
        assert f"{file.name('api')} no longer calls {file.name('log')}:in" in said
        assert f"{file.name('log')} no longer serves in" in said
        assert is_free(port)
        assert is_free(inbound)
        with pytest.raises(KeyError):
            mesh.mesh.node(file.name("log"))
        await exchange(stays)
        await ends_well(stays)


async def test_a_call_moves_to_another_port(file: MeshFile, virtual_time: MockClock) -> None:
    async with dev_bed(file) as mesh:
        old = file.call("web", "api:http")
        moves, stays = await mesh.call("web", "api:http"), await mesh.call("web", "db:sql")
        for sock in (moves, stays):
            await exchange(sock)
        new = file.free_port()
        file.write(MESH.replace("web-TAG: {}", f'web-TAG: {{dev: {{calls: {{"api-TAG:http": {new}}}}}}}'))
        said = await mesh.event("reloaded")
        assert f"{file.name('web')} calls {file.name('api')}:http at 127.0.0.1:{new}" in said
        with await connect_to(new) as sock:
            await exchange(sock)
        assert is_free(old)
        await is_reset(moves)
        await exchange(stays)
        await ends_well(stays)


async def test_an_app_moves_to_another_port(file: MeshFile, virtual_time: MockClock) -> None:
    async with dev_bed(file) as mesh:
        await mesh.works("web", "api:http")
        new = file.free_port()
        app_moves = MESH.replace(
            "api-TAG: {ports: {http: 80}}", f"api-TAG: {{ports: {{http: 80}}, dev: {{app: {{http: {new}}}}}}}"
        )
        file.write(app_moves)
        assert f"{file.name('api')} serves http from its app on 127.0.0.1:{new}" in await mesh.event("reloaded")
        app = await mesh.app("api:http")
        assert app.address.port == new
        await mesh.works("web", "api:http")
        assert app.connections == 1


async def test_a_port_that_is_taken_is_told_once_and_used_as_soon_as_it_is_free(
    file: MeshFile, virtual_time: MockClock
) -> None:
    async with dev_bed(file) as mesh:
        live = await mesh.call("job", "api:http")
        await exchange(live)
        port = next(
            call for call in file.plan(GROWN).calls if call.caller == file.name("job") and "db" in str(call.target)
        )
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", port.local_port))
            squatter.listen()
            file.write(GROWN)
            said = await mesh.event("reload_incomplete")
            assert f"127.0.0.1:{port.local_port}" in said
            await trio.sleep(20)
            assert len(mesh.log.events("reload_incomplete")) == 1
            assert mesh.log.events("listening") == []
        assert f"127.0.0.1:{port.local_port}" in await mesh.event("listening")
        await mesh.works("job", "db:sql")
        await exchange(live)
        await ends_well(live)


async def test_a_broken_file_changes_nothing_and_a_good_one_again_is_told(
    file: MeshFile, virtual_time: MockClock
) -> None:
    async with dev_bed(file) as mesh:
        live = await mesh.call("web", "api:http")
        await exchange(live)
        file.write(MESH.replace("from: web-TAG", "from: wbe-TAG"))
        said = await mesh.event("reload_refused")
        assert "did you mean" in said
        assert said.endswith(f"; still in force: {file.path} as it was read before")
        file.write(MESH.replace("shop.internal", "evil.internal"))
        assert "another trust_domain is another mesh" in await mesh.event("reload_refused", 2)
        file.path.unlink()
        assert "cannot be read" in await mesh.event("reload_refused", 3)
        await mesh.works("web", "api:http")
        file.write(MESH)
        assert await mesh.event("reloaded") == f"{file.path} is in force"
        await exchange(live)
        await ends_well(live)


async def test_a_fault_of_ours_in_reading_the_file_ends_nothing(
    file: MeshFile, virtual_time: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with dev_bed(file) as mesh:
        live = await mesh.call("web", "db:sql")
        await exchange(live)
        with monkeypatch.context() as patch:
            patch.setattr(dev_mesh, "load_mesh", broken)
            file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG"))
            await mesh.log.until(lambda: bool(mesh.log.events("reload_failed")))
        assert "ZeroDivisionError" in mesh.log.events("reload_failed")[0]["exception"]
        await mesh.works("web", "api:http")
        file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG") + "# again\n")
        await mesh.event("reloaded")
        await is_refused(mesh.call("web", "api:http"))
        await exchange(live)
        await ends_well(live)


async def test_a_service_may_call_itself(file: MeshFile, virtual_time: MockClock) -> None:
    """Each listener of a sidecar is a server of its own here, and none is a loop for another."""
    async with dev_bed(file) as mesh:
        file.write(MESH + '  - {from: api-TAG, to: "api-TAG:http"}\n')
        await mesh.event("reloaded")
        await mesh.works("api", "api:http")


async def test_all_listeners_of_a_service_judge_by_the_one_state_in_force(file: MeshFile) -> None:
    async with dev_bed(file) as mesh:
        name = file.name("api")
        mesh.mesh.rotate(name)
        node = mesh.mesh.node(name)
        listeners = mesh.mesh._sidecars[name].listeners.values()
        assert listeners
        assert all(one.server.node is node for one in listeners)
        await mesh.works("web", "api:http")


async def test_a_file_that_stays_is_never_told_of(file: MeshFile, virtual_time: MockClock) -> None:
    async with dev_bed(file) as mesh:
        await trio.sleep(30)
        assert [line["event"] for line in mesh.log.lines] == ["started"]


async def test_what_changed_before_the_first_look_is_not_missed(file: MeshFile, virtual_time: MockClock) -> None:
    mesh = DevMesh(file.path, Log(log := LogSink(), "json"))
    file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG"))
    stop = trio.Event()
    async with time_passes(), trio.open_nursery() as nursery:
        nursery.start_soon(mesh.run, stop)
        await log.until(lambda: bool(log.events("reloaded")))
        stop.set()


async def test_a_rule_s_last_day_ends_its_connections(file: MeshFile, virtual_time: MockClock) -> None:
    wall = datetime.now(UTC)
    file.write(MESH.replace('to: "api-TAG:http"}', f'to: "api-TAG:http", until: {wall.date()}}}'))
    async with dev_bed(file, clock=lambda: wall) as mesh:
        limited, other = await mesh.call("web", "api:http"), await mesh.call("web", "db:sql")
        for sock in (limited, other):
            await exchange(sock)
        wall = datetime.combine(wall.date() + timedelta(days=1), datetime.min.time(), UTC)
        await is_reset(limited)
        assert (await mesh.line("web"))["reason"] == "policy_changed"
        await exchange(other)
        other.close()


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_it_ends_within_the_drain_time_with_connections_open(file: MeshFile, virtual_time: MockClock) -> None:
    async with dev_bed(file) as mesh:
        sock = await mesh.call("web", "api:http")
        await exchange(sock)
        before = trio.current_time()
        mesh.stop.set()
        await mesh.stopped.wait()
        assert trio.current_time() - before <= dev_mesh.DRAIN_SECONDS + 0.1
        await is_reset(sock)
        assert [line["reason"] for line in mesh.lines("web")] == ["drained"]
    assert all(is_free(port) for port in file.plan(MESH).inbound.values())


async def test_connections_that_end_in_time_end_well(file: MeshFile) -> None:
    async with dev_bed(file) as mesh:
        sock = await mesh.call("web", "api:http")
        await exchange(sock)
        mesh.stop.set()
        await exchange(sock)
        await ends_well(sock)
        await mesh.stopped.wait()
        assert [line["reason"] for line in mesh.log.connections] == ["ok", "ok"]


async def test_a_second_ctrl_c_does_not_wait_for_connections(file: MeshFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev_mesh, "DRAIN_SECONDS", 1e6)
    mesh = DevMesh(file.path, Log(LogSink(), "json"))
    with trio.fail_after(PATIENCE), listen("test", "127.0.0.1", file.app("api:http")) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_dev, mesh)
            caller = await connect_to(file.call("web", "api:http"))
            await trio.lowlevel.wait_readable(app)
            reached, _ = app.accept()
            caller.send(b"?")
            await trio.lowlevel.wait_readable(reached)  # so a request is in flight, and would be for ever
            os.kill(os.getpid(), signal.SIGINT)
            while not all(one.stop.is_set() for one in mesh._listeners()):
                await trio.lowlevel.checkpoint()
            assert mesh.node(file.name("web")).registry
            os.kill(os.getpid(), signal.SIGINT)
    reached.close()
    await is_reset(caller)
