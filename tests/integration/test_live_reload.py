"""A reload while connections live: it counts for every new one at once, the forbidden are cut, the others go on."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from cryptography import x509
from trio.testing import MockClock

from sidecar.config.wiring import load_config
from sidecar.documents.address import Address
from sidecar.lifecycle import reload
from sidecar.lifecycle import run as run_module
from sidecar.lifecycle.reload import snapshot
from sidecar.observe.logs import Log
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy.node import Snapshot
from sidecar.relay.relay import Wait
from sidecar.relay.strand import Steps
from sidecar.transport import handshake, sockets
from sidecar.transport.tls import KeyPair
from tests.beds.certificates import Authority, Credential
from tests.beds.clock import moment
from tests.beds.live import MESH, NO_HTTP, Live, Stage, ends_well, exchange, is_refused, is_reset, stage
from tests.beds.mesh import App, Foreigner, LogSink, connect, echo, mesh_bed, receive_all
from tests.beds.patience import PATIENCE
from tests.beds.processes import Shop, sidecar_pair

End = Literal["web", "api"]
OTHER_END: dict[End, End] = {"web": "api", "api": "web"}


def fingerprint(there: Foreigner) -> int:
    """The serial number of the certificate that it met."""
    return int(there.tls.get_peer_certificate().get_serial_number())


async def exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    with trio.fail_after(PATIENCE):
        while len(data) < size:
            more = await sockets.receive(sock, min(65536, size - len(data)))
            assert more, "the connection ended"
            data += more
    return bytes(data)


# -- policy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_policy_change_cuts_the_forbidden_at_either_end_and_nothing_else(tmp_path: Path, end: End) -> None:
    payload = bytes(range(256)) * 32_768  # 8 MiB: on its way in both directions when the change comes
    async with stage(tmp_path) as made:
        forbidden, allowed = await made.call("http"), await made.call("metrics")
        here, there = getattr(made, end), getattr(made, OTHER_END[end])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.send_all, allowed, payload)
            half = await exactly(allowed, len(payload) // 2)
            await here.policy(NO_HTTP)
            assert half + await exactly(allowed, len(payload) - len(half)) == payload
        await is_reset(forbidden)
        await made.http.until("reset")
        [cut] = here.log.connections
        assert (cut["reason"], cut["decision"], cut["port"]) == ("policy_changed", "allow", "http")
        assert "spiffe://shop.internal/web -> api:http" in cut["message"]
        assert (cut["bytes_to_app"], cut["bytes_from_app"]) == (5, 5)
        assert (await there.log.connection())["reason"] == "truncated"  # it was told of no clean end
        assert here.log.events("reloaded")[0]["connections_cut"] == 1
        await ends_well(allowed)
        await made.metrics.until("end")
        assert (await here.log.connection(2))["reason"] == "ok"
        assert bytes(made.metrics.received) == b"hello" + payload


@pytest.mark.parametrize("end", ["web", "api"])
async def test_after_a_change_new_connections_are_refused_and_after_the_next_let_in(tmp_path: Path, end: End) -> None:
    async with stage(tmp_path) as made:
        here: Live = getattr(made, end)
        await here.policy(NO_HTTP)
        await is_refused(connect(made.web.address("api:http")))
        assert (await here.log.connection())["reason"] == "policy_denied"
        await here.policy(MESH)
        await ends_well(await made.call())
        assert (await here.log.connection(2))["reason"] == "ok"


async def test_a_change_that_forbids_nothing_cuts_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as made:
        with await made.call() as sock:
            for one in made.both():
                await one.policy(MESH + '  - {from: job, to: "api:metrics"}\n')
                assert one.log.events("reloaded")[0]["connections_cut"] == 0
            await exchange(sock)


@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_deny_rule_and_a_dry_run_one(tmp_path: Path, end: End) -> None:
    rule = '  - {name: no-more, from: web, to: "api:http", action: deny%s}\n'
    async with stage(tmp_path) as made:
        here: Live = getattr(made, end)
        sock = await made.call()
        await here.policy(MESH + rule % ", mode: dry-run")
        await exchange(sock)
        await here.policy(MESH + rule % "")
        await is_reset(sock)
        assert (await here.log.connection())["reason"] == "policy_changed"


async def test_a_broken_policy_cuts_nothing_and_lets_in_whom_the_last_good_one_does(tmp_path: Path) -> None:
    async with stage(tmp_path) as made:
        with await made.call() as sock:
            await made.api.policy(NO_HTTP.replace("from: web", "from: wbe"))
            assert "unknown service 'wbe'" in made.api.said("reload_refused")[0]
            await exchange(sock)
            await ends_well(await made.call())


@pytest.fixture
def virtual_time() -> MockClock:
    """Goes on to the next deadline when nothing has happened for a moment."""
    return MockClock(autojump_threshold=moment(0.05))


async def test_a_rule_s_last_day_ends_the_connections_that_it_let_in(tmp_path: Path, virtual_time: MockClock) -> None:
    wall = datetime.now(UTC)
    midnight = datetime.combine(wall.date() + timedelta(days=1), datetime.min.time(), UTC)
    limited = MESH.replace('to: "api:http"}', f'to: "api:http", until: {wall.date()}}}', 1)
    authority = Authority()
    web, api = (authority.leaf(service, lifetime=timedelta(hours=24, minutes=30)) for service in ("web", "api"))
    async with stage(tmp_path, web=web, api=api) as made, trio.open_nursery() as nursery:
        made.api.node.clock = lambda: wall
        await made.api.policy(limited)
        sock, other = await made.call("http"), await made.call("metrics")
        nursery.start_soon(made.api.reloader.run)
        wall = midnight - timedelta(microseconds=1)
        await trio.sleep(5)
        await exchange(sock)
        wall = midnight
        await is_reset(sock)
        assert (await made.api.log.connection())["reason"] == "policy_changed"
        await exchange(other)
        await is_refused(connect(made.web.address("api:http")))
        line = await made.api.log.connection(2)
        assert line["reason"] == "policy_denied"
        assert "ran out" in line["message"]
        nursery.cancel_scope.cancel()
        other.close()


async def test_a_pass_ends_while_the_machine_sleeps(tmp_path: Path, virtual_time: MockClock) -> None:
    """The clock that connections are measured by stands still then."""
    wall = datetime.now(UTC)
    people = MESH.replace("policy:", "people: [alice]\npolicy:\n  - {from: user/alice, to: api}")
    authority = Authority()
    alice = authority.leaf(uris=["spiffe://shop.internal/user/alice"])
    async with (
        stage(tmp_path, web=authority.leaf("web"), api=authority.leaf("api")) as made,
        trio.open_nursery() as nursery,
    ):
        made.api.node.clock = lambda: wall
        await made.api.policy(people)
        there = await made.foreigner(alice)
        nursery.start_soon(made.api.reloader.run)
        await trio.sleep(5)
        assert not made.api.log.connections
        wall += timedelta(hours=2)
        assert (await made.api.log.connection())["reason"] == "expired"
        there.sock.close()
        nursery.cancel_scope.cancel()


# -- identity ----------------------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(tmp_path: Path) -> None:
    async with stage(tmp_path) as made:
        old, new = made.api.reloader.loaded, made.authority.leaf("api")
        live, theirs = await made.call(), made.authority.leaf("web")
        before = await made.foreigner(theirs)
        assert fingerprint(before) == old.svid.serial
        await made.api.is_now(new)
        assert fingerprint(await made.foreigner(theirs)) == new.certificate.serial_number != old.svid.serial
        assert await before.verdict() == "ok"
        await before.send(b"still")
        assert await before.receive() == b"still"
        await exchange(live)
        await ends_well(live)


async def test_a_new_certificate_is_what_a_caller_shows_too(tmp_path: Path) -> None:
    async with stage(tmp_path) as made, trio.open_nursery() as nursery:
        met: list[int] = []

        async def peer(sock: socket.socket, _: App) -> None:
            there = Foreigner(sock, made.authority.leaf("api"), server=True)
            await there.handshake()
            met.append(fingerprint(there))
            await there.send(b"\x02ok")
            await there.send(await there.receive())
            await there.close()

        at = (await made.bed.app(peer)).address
        old, new = made.authority.leaf("web"), made.authority.leaf("web")
        body = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{at}"]}}]\n'
        web = Live(tmp_path / "another", "web", old, body)
        nursery.start_soon(web.serve)
        for credential in (old, new):
            await web.is_now(credential)
            with await connect(web.address("api:http")) as sock:
                await exchange(sock)
        assert met == [old.certificate.serial_number, new.certificate.serial_number]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mistake", ["expired", "another service", "another trust domain"])
async def test_a_certificate_that_peers_would_refuse_stays_out_and_calls_go_on(tmp_path: Path, mistake: str) -> None:
    async with stage(tmp_path) as made:
        now, authority = made.authority.now, made.authority
        bad: dict[str, Callable[[], Credential]] = {
            "expired": lambda: authority.leaf("api", not_after=now - timedelta(minutes=1)),
            "another service": lambda: authority.leaf("web"),
            "another trust domain": lambda: authority.leaf("api", uris=["spiffe://evil.internal/api"]),
        }
        in_force = x509.load_pem_x509_certificate((made.api.own / "certificate.pem").read_bytes()).not_valid_after_utc
        with await made.call() as live:
            await made.api.is_now(bad[mistake]())
            assert f"{in_force:%F %T}" in made.api.said("reload_refused")[0]
            await exchange(live)
            await ends_well(await made.call())
            await made.api.is_now(authority.leaf("api"))
            assert made.api.said("reloaded")
            await ends_well(await made.call())


@pytest.mark.parametrize("names", [("certificate.pem", "key.pem"), ("key.pem", "certificate.pem")])
async def test_half_of_a_pair_leaves_the_old_pair_in_force_and_no_call_fails(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    async with stage(tmp_path) as made:
        old, new = made.api.reloader.loaded.svid.serial, made.authority.leaf("api")
        content = {"certificate.pem": new.chain_pem, "key.pem": new.key_pem}
        theirs = made.authority.leaf("web")
        for name, serial in zip(names, (old, new.certificate.serial_number), strict=True):
            (made.api.own / name).write_bytes(content[name])
            await made.api.reloader.reload()
            assert fingerprint(await made.foreigner(theirs)) == serial
            await ends_well(await made.call())


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_root_that_goes_takes_its_connections_with_it_and_no_others(tmp_path: Path, end: End) -> None:
    """The peer is of a second CA; ours is of the first, and so is another peer."""
    first, second = Authority(name="First"), Authority(name="Second")
    both = (*first.roots, *second.roots)
    ours, theirs = first.leaf(end).trusting(*both), second.leaf(OTHER_END[end]).trusting(*both)
    async with stage(tmp_path, **{end: ours, OTHER_END[end]: theirs}) as made:
        here: Live = getattr(made, end)
        sock = await made.call()
        await here.trusts(first)
        await is_reset(sock)
        line = await here.log.connection()
        assert (line["reason"], line["decision"]) == ("trust_changed", "allow")
        await made.http.until("reset")
        await is_refused(connect(made.web.address("api:http")))
        assert "unknown_ca" in made.web.reasons + made.api.reasons
        await here.trusts(first, second)  # and at once it may again
        await ends_well(await made.call())


async def test_a_root_that_goes_leaves_the_others_connections_alone(tmp_path: Path) -> None:
    first, second = Authority(name="First"), Authority(name="Second")
    async with stage(tmp_path, api=first.leaf("api").trusting(*first.roots, *second.roots)) as made:
        one, other = await made.foreigner(first.leaf("web")), await made.foreigner(second.leaf("web"))
        for there in (one, other):
            assert await there.verdict() == "ok"
        await made.api.trusts(first)
        with pytest.raises(ConnectionResetError):
            await other.receive()
        await one.send(b"still")
        assert await one.receive() == b"still"
        assert made.api.reasons == ["trust_changed"]


async def test_a_root_that_comes_is_trusted_at_once(tmp_path: Path) -> None:
    first, second = Authority(name="First"), Authority(name="Second")
    async with stage(
        tmp_path, api=first.leaf("api"), web=second.leaf("web").trusting(*first.roots, *second.roots)
    ) as made:
        await is_refused(connect(made.web.address("api:http")))
        assert made.api.reasons == ["unknown_ca"]
        await made.api.trusts(first, second)
        await ends_well(await made.call())


async def test_a_whole_root_is_swapped_and_no_call_fails(tmp_path: Path) -> None:
    """Trust in the new one everywhere, then certificates of the new one, then the old one goes; each end at its own time."""
    old, new = Authority(name="Old"), Authority(name="New")
    async with stage(tmp_path, web=old.leaf("web"), api=old.leaf("api")) as made:
        before = await made.call()
        for trusted, issuer in (((old, new), old), ((old, new), new)):
            for service, one in (("api", made.api), ("web", made.web)):
                await one.trusts(*trusted)
                await ends_well(await made.call())
                await one.is_now(issuer.leaf(service))
                await ends_well(await made.call())
                await exchange(before)
        after = await made.call()
        await made.api.trusts(new)
        await ends_well(await made.call())
        await is_reset(before)  # what lived by the old root alone ends with it
        await made.web.trusts(new)
        await ends_well(await made.call())
        await exchange(after)
        await ends_well(after)
        assert not {"reload_refused", "mitm_suspected"} & {
            line["event"] for live in made.both() for line in live.log.lines
        }
        assert sorted(set(made.api.reasons)) == ["ok", "trust_changed"]
        assert made.api.reasons.count("trust_changed") == 1


# -- in the middle of a connection's setup -----------------------------------------------------------------------------


class AfterStep(trio.abc.Instrument):
    """Acts once, after the ``number``-th step of the next connection of a sidecar: while it waits in one of its awaits."""

    def __init__(self, live: Live, number: int, act: Callable[[], None]) -> None:
        self.steps, self.acted = 0, False
        self._relay, self._number, self._act = live.server.node.relay, number, act
        self._tasks = set[trio.lowlevel.Task]()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        frame: Any = getattr(task.coro, "cr_frame", None)
        if task.name.endswith("Strand._await") and frame.f_locals["self"]._relay is self._relay:
            self._tasks.add(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        waits_without_a_task = any(isinstance(one, Wait) for one in self._relay._links.values())
        if task in self._tasks or waits_without_a_task:
            self.steps += 1
            if self.steps == self._number:
                self.act()

    def act(self) -> None:
        if not self.acted:
            self._act()
            self.acted = True


@pytest.fixture
def every_await_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback most of what is awaited is there at once, and nobody else gets a turn: not so here."""
    for name in ("connect", "receive", "send_all"):
        operation = getattr(sockets, name)

        async def slowly(*arguments: Any, operation: Any = operation) -> Any:
            await trio.lowlevel.checkpoint()
            return await operation(*arguments)

        monkeypatch.setattr(sockets, name, slowly)
    for name in ("_receive", "_send"):
        steps = getattr(handshake, name)

        def slow_steps(*arguments: Any, steps: Any = steps, **options: Any) -> Steps[Any]:
            yield trio.lowlevel.checkpoint
            return (yield from steps(*arguments, **options))

        monkeypatch.setattr(handshake, name, slow_steps)


def swap(live: Live, fresh: Snapshot) -> Callable[[], None]:
    """What a reload does, in one step: few connections are judged again without a pause."""

    def act() -> None:
        live.node.current = fresh
        try:
            live.node.registry.rejudge(live.node.recheck).send(None)
        except StopIteration:
            return
        raise AssertionError("it paused")

    return act


def kept(live: Live, mesh: str = MESH, *roots: Authority) -> Snapshot:
    """A generation with the sidecar's own certificate."""
    keys = live.reloader.loaded.keys
    trusted = tuple(root for authority in roots for root in authority.roots) or keys.roots
    return snapshot(live.node.config.service, parse_mesh(mesh, "mesh.yaml"), KeyPair(keys.chain, keys.key, trusted))


async def at_every_step(made: Stage, live: Live, change: Snapshot, *, forbids: bool) -> list[dict[str, Any]]:
    """Makes a change after the first step of a connection's setup, after the second step of another's, and so on until one
    is let in before. Each is reset if the change ``forbids`` it, and else ends well. Returns the line of each."""
    before, in_setup = live.node.current, True
    lines: list[dict[str, Any]] = []
    while in_setup:
        made.web.node.registry.end_idle()  # or the next one goes without a handshake
        made.api.node.registry.end_idle()
        step, reset = AfterStep(live, len(lines) + 1, swap(live, change)), False
        trio.lowlevel.add_instrument(step)
        try:
            with await connect(made.web.address("api:http")) as sock:
                await exchange(sock)
                in_setup = step.acted
                step.act()
                if not forbids:
                    sock.shutdown(socket.SHUT_WR)
                await receive_all(sock)
        except (ConnectionResetError, BrokenPipeError):
            reset = True
        assert reset is forbids, f"changed after step {step.steps}"
        lines.append(await live.log.connection(len(lines) + 1))
        trio.lowlevel.remove_instrument(step)
        live.node.current = before
    assert len(lines) > 5
    return lines


@pytest.mark.usefixtures("every_await_waits")
@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_policy_change_in_any_phase_of_a_connection_s_setup_is_not_missed(tmp_path: Path, end: End) -> None:
    async with stage(tmp_path) as made:
        live: Live = getattr(made, end)
        lines = await at_every_step(made, live, kept(live, NO_HTTP), forbids=True)
        # Whoever is judged after it is refused, whoever was judged before is cut; at either end both are met.
        assert {line["reason"] for line in lines} <= {"policy_denied", "policy_changed"}
        assert lines[-1]["reason"] == "policy_changed"


@pytest.mark.usefixtures("every_await_waits")
@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_change_of_trust_in_any_phase_of_a_connection_s_setup_is_not_missed(tmp_path: Path, end: End) -> None:
    first, second = Authority(name="First"), Authority(name="Second")
    both = (*first.roots, *second.roots)
    ours, theirs = first.leaf(end).trusting(*both), second.leaf(OTHER_END[end]).trusting(*both)
    async with stage(tmp_path, **{end: ours, OTHER_END[end]: theirs}) as made:
        live: Live = getattr(made, end)
        lines = await at_every_step(made, live, kept(live, MESH, first), forbids=True)
        assert {line["reason"] for line in lines} == {"trust_changed"}


@pytest.mark.usefixtures("every_await_waits")
@pytest.mark.parametrize("end", ["web", "api"])
async def test_a_change_that_allows_it_still_disturbs_no_setup_in_any_phase(tmp_path: Path, end: End) -> None:
    async with stage(tmp_path) as made:
        live: Live = getattr(made, end)
        more = MESH + '  - {from: job, to: "api:metrics"}\n'
        lines = await at_every_step(made, live, kept(live, more), forbids=False)
        assert {line["reason"] for line in lines} == {"ok"}


# -- the process -------------------------------------------------------------------------------------------------------


async def test_sighup_reloads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = LogSink()
    monkeypatch.setattr(run_module, "Log", lambda **options: Log(sink, **options))
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    monkeypatch.setattr(reload, "LOOK_SECONDS", 1e6)  # nobody looks
    files = Live(tmp_path, "api", Authority().leaf("api"), "log_format: json\n")
    files.server.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_module.run, load_config(tmp_path / "sidecar.yaml", {}), {})
        await sink.until(lambda: bool(sink.events("started")))
        files.mesh.write_text(NO_HTTP)
        os.kill(os.getpid(), signal.SIGHUP)
        await sink.until(lambda: bool(sink.events("reloaded")))
        files.mesh.write_text("nonsense")
        os.kill(os.getpid(), signal.SIGHUP)
        await sink.until(lambda: bool(sink.events("reload_refused")))
        assert not sink.events("draining")
        os.kill(os.getpid(), signal.SIGTERM)
    assert sink.lines[-1]["event"] == "stopped"


async def test_real_processes_follow_their_files(shop: Shop) -> None:
    mesh = shop.path / "mesh.yaml"
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            sock = await connect(Address(*web.address("api:http")))
            await exchange(sock)
            shop.certs("issue", "ca", "api", "--out", "api", "--force")
            assert "certificate, good until" in (await api.program.event("reloaded"))["message"]
            await exchange(sock)  # a new certificate is no reason to end what lives
            fresh = shop.path / "mesh.yaml.fresh"
            fresh.write_text(mesh.read_text().replace('  - {from: web, to: "api:http"}\n', ""))
            fresh.rename(mesh)
            await is_reset(sock)
            for program, number in ((web.program, 1), (api.program, 2)):
                assert "policy of" in (await program.event("reloaded", number))["message"]
                await program.connection()
            assert "policy_changed" in [line["reason"] for one in (web, api) for line in one.program.connections]
            mesh.write_text("trust_domain: [")
            for sidecar in (web, api):
                await sidecar.program.event("reload_refused")
                sidecar.program.signal(signal.SIGTERM)
                assert await sidecar.program.ended() == 0
                assert sidecar.program.errors == ""
