"""The wiring of one sidecar: what can be wrong is found before anything is served; signals drain, then cut."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from certs.authority import authority as ca_on_disk
from certs.protocol import enrolment
from certs.protocol.documents import Bundle, RevocationList, sign_bundle, sign_revocations
from sidecar.agent import statedir
from sidecar.agent.statedir import StateDir
from sidecar.cli.commands import main
from sidecar.config.sidecar_yaml import Admin, Config
from sidecar.config.wiring import load_config
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.host.process import raise_descriptor_limit
from sidecar.identity.judge import Revocations
from sidecar.identity.reasons import UsageError
from sidecar.lifecycle import run as run_module
from sidecar.lifecycle.ending_watch import EndingWatch
from sidecar.lifecycle.run import machinery, prepare, run
from sidecar.observe.logs import Log
from tests.beds.ca import CaBed, ca_bed
from tests.beds.certificates import Authority
from tests.beds.mesh import MESH, LogSink
from tests.beds.patience import PATIENCE
from tests.beds.processes import SIDECAR, running


def wiring(directory: Path, authority: Authority | None = None, **more: str) -> Config:
    (authority or Authority()).leaf("api").write(directory)
    (directory / "mesh.yaml").write_text(MESH)
    file = directory / "sidecar.yaml"
    file.write_text(
        "service: api\nmesh: mesh.yaml\nlog_format: json\n"
        "identity: {files: {certificate: certificate.pem, key: key.pem, bundle: bundle.pem}}\n"
        'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'
        'outbound: [{to: db, listen: "127.0.0.1:0", peers: ["127.0.0.1:9"]}]\n'
    )
    return load_config(file, more)


async def test_prepare_opens_what_the_file_says(tmp_path: Path) -> None:
    server, _ = prepare(wiring(tmp_path), {}, Log(LogSink(), "json"))
    assert [listener.port for listener in server.listeners] == ["http", "5432"]
    assert str(server.node.current.id) == "spiffe://shop.internal/api"
    server.close()


async def test_prepare_refuses_before_it_opens_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = wiring(tmp_path)
    (tmp_path / "key.pem").chmod(0o644)

    def opened(*_: object) -> None:
        pytest.fail("a listener was opened with a key that others can read")

    monkeypatch.setattr("sidecar.transport.sockets.listen_all", opened)
    with pytest.raises(UsageError, match=re.escape(f"chmod 600 {tmp_path / 'key.pem'}")):
        prepare(config, {}, Log(LogSink(), "json"))


async def test_a_listener_that_nothing_reaches_makes_it_unwell(tmp_path: Path) -> None:
    config = wiring(tmp_path)
    server, reloader = prepare(config, {}, Log(LogSink(), "json"))
    for fault, unwell in ((None, []), ("nothing reaches this listener now", ["nothing reaches this listener now"])):
        server.listeners[1].fault = fault
        status = run_module._status(config, server, reloader, None, EndingWatch(server.node), trio.Event(), utc_now())
        assert (status["healthy"], status["unwell"]) == (not unwell, unwell)
    server.close()


async def test_a_revoked_certificate_makes_it_unwell(tmp_path: Path) -> None:
    config = wiring(tmp_path)
    server, reloader = prepare(config, {}, Log(LogSink(), "json"))
    own = reloader.loaded.svid
    for before, healthy in ((own.not_before, True), (own.not_before + timedelta(seconds=1), False)):
        reloader.revocations = Revocations({own.id: before})
        status = run_module._status(config, server, reloader, None, EndingWatch(server.node), trio.Event(), utc_now())
        assert (status["healthy"], any("was revoked" in one for one in status["unwell"])) == (healthy, not healthy)
    server.close()


async def test_machinery_ends_with_its_block(tmp_path: Path) -> None:
    server, _ = prepare(wiring(tmp_path), {}, Log(LogSink(), "json"))
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(PATIENCE):
        async with machinery(server.node):
            assert trio.lowlevel.current_statistics().tasks_living > before
    assert trio.lowlevel.current_statistics().tasks_living == before
    server.close()


class Console:
    """What ``run`` writes to stdout, and a wait for one of its events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sink = LogSink()
        monkeypatch.setattr(run_module, "Log", lambda **options: Log(self.sink, **options))

    async def event(self, name: str) -> None:
        await self.sink.until(lambda: bool(self.sink.events(name)))


async def test_too_few_descriptors_are_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin is every other test here: with enough of them there is no warning."""
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 128)
    console = Console(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, wiring(tmp_path), {})
        await console.event("started")
        nursery.cancel_scope.cancel()
    (warning,) = console.sink.events("warning")
    assert "128 file descriptors" in warning["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(monkeypatch)
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    handler = signal.getsignal(number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, wiring(tmp_path), {})
        await console.event("started")
        os.kill(os.getpid(), number)
        await console.event("stopped")
    assert [line["event"] for line in console.sink.lines] == ["started", "draining", "stopped"]
    assert signal.getsignal(number) is handler  # given back
    started = console.sink.events("started")[0]
    assert started["identity"] == "spiffe://shop.internal/api"
    assert started["inbound"][0].startswith("http on 127.0.0.1:")
    assert started["outbound"][0].startswith("db:5432 on 127.0.0.1:")
    assert json.dumps(started).isascii()


# -- a sidecar whose certificate comes from a CA -----------------------------------------------------------------------


def of_a_ca(directory: Path, root_sha256: str) -> Config:
    """A sidecar whose CA does not answer, for nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ca = f"https://127.0.0.1:{free.getsockname()[1]}"
    (directory / "mesh.yaml").write_text(MESH)
    secret = directory / "secret"
    secret.touch(0o600)
    secret.write_text(str(enrolment.make("secret", bytes.fromhex(root_sha256))))
    file = directory / "sidecar.yaml"
    file.write_text(
        "service: api\nmesh: mesh.yaml\nlog_format: json\n"
        f"identity: {{ca: {ca!r}, root_sha256: {root_sha256}, enrolment: secret, state_dir: state}}\n"
        'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'
    )
    return load_config(file, {})


def enrol_by_hand(directory: Path) -> tuple[str, datetime]:
    """Fills ``state_dir`` as an enrolment a moment ago would have; returns the root's fingerprint and the certificate's
    end."""
    now = utc_now().replace(microsecond=0)
    made = ca_on_disk.make("shop.internal", now)
    root = made.root.certificate
    own = ca_on_disk.Authority("shop.internal", (root,), root, made.issuing, made.delegate)
    issued = ca_on_disk.issue(own, "api", now)
    state = StateDir(directory / "state")
    state.write(statedir.IDENTITY, issued.key_pem + issued.chain_pem)
    state.write(statedir.BUNDLE, sign_bundle(Bundle("shop.internal", 1, (root,), own.root_digest), [made.root]))
    state.write(statedir.REVOCATIONS, sign_revocations(RevocationList("shop.internal", 1, now), made.delegate))
    state.write(statedir.MEMBER, json.dumps({"instance": "a" * 32, "pin": own.root_digest.hex()}).encode())
    state.close()
    return own.root_digest.hex(), issued.not_after


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait_for_a_ca_that_is_not_there(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch)
    handler = signal.getsignal(number)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, of_a_ca(tmp_path, "ab" * 32), {})
            await console.event("joining_failed")
            os.kill(os.getpid(), number)
    assert "cannot be reached" in console.sink.events("joining_failed")[0]["message"]
    assert [line["event"] for line in console.sink.lines] == ["joining_failed"], "nothing was served, and nothing broke"
    assert signal.getsignal(number) is handler
    StateDir(tmp_path / "state").close()  # nobody has it any more


async def test_sighup_does_not_end_the_wait(tmp_path: Path) -> None:
    config = of_a_ca(tmp_path, "ab" * 32)
    async with running(*SIDECAR, "run", config.path) as process:
        await process.event("joining_failed")
        process.signal(signal.SIGHUP)
        process.signal(signal.SIGTERM)
        assert (await process.ended(), process.errors) == (0, "")


async def test_and_the_program_ends_with_0(tmp_path: Path) -> None:
    config = of_a_ca(tmp_path, "ab" * 32)
    async with running(*SIDECAR, "run", config.path) as process:
        await process.event("joining_failed")
        process.signal(signal.SIGTERM)
        assert (await process.ended(), process.errors) == (0, "")
    assert [line["event"] for line in process.said] == ["joining_failed"]


async def test_a_restart_needs_no_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(monkeypatch)
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    root, until = enrol_by_hand(tmp_path)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, of_a_ca(tmp_path, root), {})
            await console.event("started")
            await console.event("revocations_failed")  # it asks, and goes on without an answer
            os.kill(os.getpid(), signal.SIGTERM)
    (started,) = console.sink.events("started")
    assert started["identity"] == "spiffe://shop.internal/api"
    assert started["certificate_until"] == f"{until:%FT%TZ}"
    assert console.sink.lines[-1]["event"] == "stopped"
    assert console.sink.events("joining_failed") == []
    StateDir(tmp_path / "state").close()


async def test_what_is_wrong_with_the_rest_gives_state_dir_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Console(monkeypatch)
    root, _ = enrol_by_hand(tmp_path)
    config = of_a_ca(tmp_path, root)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        inbound = replace(config.inbound[0], listen=Address("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(UsageError, match=str(inbound.listen.port)):
            await run(replace(config, inbound=(inbound,)), {})
    StateDir(tmp_path / "state").close()


# -- the admin port ----------------------------------------------------------------------------------------------------


async def test_the_admin_port_is_served_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(monkeypatch)
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    config = replace(wiring(tmp_path), admin=Admin(Address("127.0.0.1", 0)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, config, {})
        await console.event("started")
        host, _, port = console.sink.events("started")[0]["admin"].rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200")
        os.kill(os.getpid(), signal.SIGTERM)
    assert console.sink.lines[-1]["event"] == "stopped"


def test_an_admin_port_that_is_taken_is_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    wiring(tmp_path)
    file = tmp_path / "sidecar.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = "{}:{}".format(*taken.getsockname())
        file.write_text(f"{file.read_text()}admin: {{listen: {listen!r}}}\n")
        result = CliRunner().invoke(main, ["run", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {file}: admin.listen: ")
    assert listen in result.stderr
    assert "started" not in result.stdout, "and the listeners that were open already are closed"


def test_the_descriptor_limit_is_raised_to_what_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: said.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    raise_descriptor_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    raise_descriptor_limit()
    assert said == [(4096, 4096)]


# -- with a CA ---------------------------------------------------------------------------------------------------------


def by_ca(bed: CaBed, enrolment: Path | None, port: int | None = None) -> Config:
    """api's wiring, its identity from the bed's CA."""
    file = bed.path / "sidecar.yaml"
    named = "" if enrolment is None else f", enrolment: {enrolment.name}"
    file.write_text(
        "service: api\nmesh: mesh.yaml\nlog_format: json\n"
        f"identity: {{ca: 'https://127.0.0.1:{port or bed.port}', root_sha256: {bed.ca.root_digest.hex()}, "
        f"state_dir: state{named}}}\n"
        'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'
    )
    return load_config(file, {})


async def test_a_sidecar_with_a_ca_enrols_serves_renews_and_drains(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch)
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(run_module, "descriptor_limit", lambda: 1_000_000)
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as bed:
        monkeypatch.setattr(run_module, "utc_now", bed.time)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, by_ca(bed, bed.secret()), {})
            await bed.time.until(lambda: console.sink.events("started"))
            await bed.time.until(lambda: console.sink.events("renewed"), within=200)
            os.kill(os.getpid(), signal.SIGTERM)
            await bed.time.until(lambda: console.sink.events("stopped"))
    events = [line["event"] for line in console.sink.lines]
    assert events[:3] == ["trust_bundle", "enrolled", "started"]
    assert events[-2:] == ["draining", "stopped"]
    [started] = console.sink.events("started")
    assert started["identity"] == "spiffe://shop.internal/api"


async def test_a_sidecar_that_cannot_join_opens_nothing_and_ends_at_a_signal(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch)

    def opened(*_: object) -> None:
        pytest.fail("a listener was opened by a sidecar that is nobody")

    async with ca_bed(tmp_path, mock_clock, monkeypatch) as bed:
        config = by_ca(bed, bed.secret())
        await bed.goes_down()
        monkeypatch.setattr(run_module, "prepare", opened)
        ended = trio.Event()

        async def until_it_ends() -> None:
            await run(config, {})
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_it_ends)
            await bed.time.until(lambda: console.sink.events("joining_failed"))
            os.kill(os.getpid(), signal.SIGTERM)
            await bed.time.until(ended.is_set)
        # What it held is given back: another may start.
        bed.starts()
        with pytest.raises(UsageError, match="names no token or secret"):
            await bed.time.finishes(lambda: run(by_ca(bed, None), {}))


async def test_prepare_takes_what_the_ca_gave(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as bed:
        api = await bed.joined()
        told = api.agent.revocations()
        server, reloader = prepare(by_ca(bed, None), {}, Log(LogSink(), "json"), api.own, told)
        assert reloader.loaded is api.own
        assert server.node.current.context.params.revocations == told
        server.close()
