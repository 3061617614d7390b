"""A pass in use, with real processes: a CA, the callee's sidecar before Redis, and ``sidecar connect``."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from certs.authority import authority
from certs.protocol import x509_profile
from certs.protocol.access_pass import Pass, encode
from sidecar.connect.owner import Ends
from sidecar.connect.person import load
from sidecar.connect.session import HOST_VARIABLE, PORT_VARIABLE, Session, own_user_only
from sidecar.connect.words import PersonLog
from sidecar.documents.address import Address, parse_address
from sidecar.host.clock import utc_now
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.lines import Lines
from sidecar.proxy.live import Live
from sidecar.relay.strand import Steps
from tests.beds.ca_processes import CaSite
from tests.beds.processes import (
    SIDECAR,
    Running,
    SidecarProcess,
    clean_environment,
    free_port,
    needs,
    output,
    running,
    sidecar_process,
)
from tests.unit.certs.protocol.test_access_pass import MESH as AUTHORITY
from tests.unit.certs.protocol.test_access_pass import made

pytestmark = needs("redis-server", "redis-cli")

MESH = """\
trust_domain: shop.internal
services:
  web: {ports: {redis: 6379}}
  db: {ports: {redis: 6379, other: 6380}}
people: [alice, bob]
policy:
  - {from: user/alice, to: "db:redis"}
"""
PING = f"redis-cli -p ${PORT_VARIABLE} ping"


@dataclass(frozen=True)
class Shop:
    """The CA, and db's sidecar before a Redis."""

    site: CaSite
    ca: Running
    db: SidecarProcess

    async def make_pass(self, *more: str, person: str = "alice", name: str = "alice.pass", at: str = "") -> Path:
        """What ``certs pass`` writes."""
        asked = ("--person", person, "--to", "db:redis", "--at", at or self.db.at("redis"), "--out", name, "--force")
        told = await self.site.certs("pass", *asked, *more)
        assert f"a pass for user/{person} to call db:redis" in told
        return self.site.path / name

    async def revoke(self, name: str) -> None:
        await self.site.certs("revoke", name)
        await self.db.program.event("reloaded")

    def short_pass(self, seconds: int) -> Path:
        """One that ends earlier than any that ``certs pass`` makes."""
        loaded, key, now = authority.load(self.site.directory, utc_now()), new_key(), utc_now().replace(microsecond=0)
        person, ttl = SpiffeId("shop.internal", ("user", "alice")), timedelta(seconds=seconds)
        leaf = x509_profile.leaf(person, key.public_key(), loaded.issuer, now, ttl, shortest=timedelta())
        chain = (leaf, loaded.issuer.certificate)
        at = parse_address(self.db.at("redis"))
        callee = SpiffeId("shop.internal", ("db",))
        return write(
            self.site.path / "short.pass", encode(Pass(person, callee, "redis", at, 90000, loaded.roots, chain, key))
        )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@asynccontextmanager
async def shop_with_redis(path: Path) -> AsyncIterator[Shop]:
    site, port = CaSite.make(path, MESH), free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(path))
    async with running("redis-server", *options) as redis, site.serves() as ca:
        await redis.line("Ready to accept connections")
        wiring = site.agent("db", f'inbound: [{{port: redis, listen: "127.0.0.1:0", app: "127.0.0.1:{port}"}}]\n')
        async with sidecar_process(wiring) as db:
            yield Shop(site, ca, db)


@asynccontextmanager
async def connected(file: Path, *options: str) -> AsyncIterator[tuple[Running, list[str]]]:
    """``sidecar connect`` without a program, once it listens, and how redis's clients reach it."""
    async with running(*SIDECAR, "connect", file, *options) as program:
        told = await program.line("Ctrl-C closes it")
        host, _, port = told.split(" is at ")[1].split(" for ")[0].rpartition(":")
        yield program, ["-h", host, "-p", port]


SETS = 10
"""How many programs call one after the other."""


async def use(file: Path, *words: str) -> str:
    return await output(*SIDECAR, "connect", file, "--", *words, check=False)


async def test_the_program_has_the_port_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        file = await shop.make_pass()
        sets = f"for each in $(seq {SETS}); do redis-cli -p ${PORT_VARIABLE} set a b; done"
        script = f"echo ${HOST_VARIABLE}; {PING}; {sets}; exit 7"
        async with running(*SIDECAR, "connect", file, "--", "sh", "-c", script) as program:
            assert await program.ended() == 7
            assert program.lines == ["127.0.0.1", "PONG", *["OK"] * SETS]
            assert program.errors == ""
        seen = await shop.db.program.connection()
        assert seen["peer_id"] == "spiffe://shop.internal/user/alice"
        assert (seen["decision"], seen["rule"], seen["reason"]) == ("allow", "user/alice->db:redis", "ok")
        # The channel was kept. A program that comes before its stream has ended at both ends gets another one.
        assert any([(await shop.db.program.connection(2 + number))["reused"] for number in range(SETS)])
        (pass_made,) = [line for line in (await shop.site.certs("audit")).splitlines() if " pass_made " in line]
        assert f'"by_user":{os.getuid()}' in pass_made
        assert '"to":"db:redis"' in pass_made


async def test_a_port_without_a_program_until_a_signal(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        port = free_port()
        async with connected(await shop.make_pass(), "--listen", f"127.0.0.1:{port}") as (program, where):
            assert program.lines[0].startswith(f"db:redis is at 127.0.0.1:{port} for user/alice, until ")
            assert await output("redis-cli", *where, "ping") == "PONG\n"
            program.signal(signal.SIGINT)
            assert await program.ended() == 0
        assert "Connection refused" in await output("redis-cli", *where, "ping", check=False)


async def test_the_signals_of_a_program(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        file = await shop.make_pass()
        script = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
        async with running(*SIDECAR, "connect", file, "--", "sh", "-c", script) as program:
            await program.line("ready")
            program.signal(signal.SIGTERM)
            assert await program.ended() == 3
            assert program.lines == ["ready", "asked"]
        async with running(*SIDECAR, "connect", file, "--", "sh", "-c", "kill -9 $$") as program:
            assert await program.ended() == 137


async def test_a_pass_that_is_revoked_is_cut_and_lets_nobody_in_again(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        async with connected(await shop.make_pass()) as (program, where):
            async with running("redis-cli", *where, "subscribe", "news") as subscriber:
                await subscriber.line("subscribe")
                await shop.revoke("user/alice")
                await program.until(lambda: "was cut: by its sidecar" in program.errors, "the cut")
            await output("redis-cli", *where, "ping", check=False)
            await program.until(lambda: "this pass was revoked; ask whoever gave you" in program.errors, "the reason")
        cut = await shop.db.program.event("connection", reason="revoked", decision="allow")
        assert cut["peer_id"] == "spiffe://shop.internal/user/alice"
        # The twin: a pass that is made after the revocation is good.
        assert "PONG" in await use(await shop.make_pass(), "sh", "-c", PING)


async def test_taking_the_rule_away_cuts_it_too(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop, connected(await shop.make_pass()) as (program, where):
        async with running("redis-cli", *where, "subscribe", "news") as subscriber:
            await subscriber.line("subscribe")
            (tmp_path / "mesh.yaml").write_text(MESH.replace("user/alice, to", "user/bob, to"))
            shop.db.program.signal(signal.SIGHUP)
            await shop.db.program.event("connection", reason="policy_changed")
        await output("redis-cli", *where, "ping", check=False)
        await program.until(
            lambda: "no rule of its mesh allows user/alice to call it now" in program.errors, "the reason"
        )
        refusal = await shop.site.certs(
            "pass", "--person", "alice", "--to", "db:redis", "--at", "x:1", "--out", "n", check=False
        )
        assert 'add to `policy:` in mesh.yaml: - {from: ["user/alice"], to: ["db:redis"]}' in refusal


async def test_the_end_of_a_pass_ends_program_and_connections_at_both_ends(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        script = f"redis-cli -p ${PORT_VARIABLE} subscribe news; exec sleep 60"
        async with running(*SIDECAR, "connect", shop.short_pass(6), "--", "sh", "-c", script) as program:
            await program.line("subscribe")
            assert await program.ended() == 1
            assert "this pass has ended at" in program.errors
        cut = await shop.db.program.event("connection", bytes_to_app=29)
        assert cut["reason"] in {"expired", "client_reset", "truncated"}  # whose clock came first


async def test_the_callee_ends_it_even_if_its_caller_does_not(tmp_path: Path) -> None:
    """As a pass whose holder uses another program."""
    async with shop_with_redis(tmp_path) as shop:
        never = "import sidecar.connect.session as s, sys; from sidecar.__main__ import main\n"
        never += "async def watch(*_): pass\ns.Session._watch = watch\nsys.argv[0] = 'sidecar'\nmain()"
        command = (sys.executable, "-c", never, "connect", str(shop.short_pass(8)))
        script = f"redis-cli -p ${PORT_VARIABLE} subscribe news; echo over"
        async with running(*command, "--", "sh", "-c", script) as program:
            await program.line("subscribe")
            await program.line("over")
            cut = await shop.db.program.event("connection", reason="expired", decision="allow")
            assert cut["message"] == "cut: the pass of spiffe://shop.internal/user/alice has ended, and is not renewed"


async def test_who_answers_in_its_place_gets_nothing(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        wiring = shop.site.agent("web", 'inbound: [{port: redis, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n')
        async with sidecar_process(wiring) as web:
            told = await use(await shop.make_pass(at=web.at("redis")), "sh", "-c", PING)
            assert "ALARM: what answers at" in told
            assert "met spiffe://shop.internal/web (valid, same CA)" in told
            assert "PONG" not in told
            assert not web.program.events("connection", decision="allow")


async def test_where_nobody_is(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        port = free_port()
        told = await use(await shop.make_pass(at=f"127.0.0.1:{port}"), "sh", "-c", PING)
        assert f"sidecar connect: cannot reach db:redis at 127.0.0.1:{port}: " in told


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv")
async def test_another_user_of_the_machine_gets_nothing(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        file = await shop.make_pass()
        as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        async with connected(file) as (program, where):
            told = await output(*as_nobody, "redis-cli", *where, "ping", check=False)
            assert "PONG" not in told
            await program.until(
                lambda: "refused a connection to its port: it came from user 65534" in program.errors, "the reason"
            )
            assert await output("redis-cli", *where, "ping") == "PONG\n"
        async with connected(file, "--any-user") as (program, where):
            assert "PONG" in await output(*as_nobody, "redis-cli", *where, "ping")


async def test_what_cannot_begin(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        file = await shop.make_pass()
        assert (
            await use(file, "no-such-program") == "error: cannot start 'no-such-program': No such file or directory\n"
        )
        file.chmod(0o644)
        assert f"{file}: can be read by others" in await use(file, "true")
        file.chmod(0o600)
        taken = shop.db.at("redis")
        assert "cannot listen on" in await output(*SIDECAR, "connect", file, "--listen", taken, check=False)
        write(file, file.read_bytes().replace(b"user/alice", b"user/bobby"))
        assert "was changed: it is for spiffe://shop.internal/user/bobby" in await use(file, "true")


# -- in this process: what takes minutes ---------------------------------------------------------------------------------


def session(tmp_path: Path, left: timedelta) -> tuple[Session, StringIO, datetime]:
    """A session whose pass is good for so long yet, what it says, and when it begins. Its clock is the loop's."""
    file = write(tmp_path / "alice.pass", encode(made()))
    person = load(file, Address("127.0.0.1", 0), AUTHORITY.now)
    begins, stream = person.until - left, StringIO()
    log = PersonLog(person.name, str(person.at), stream)
    at = trio.current_time()
    return Session(person, log, lambda: begins + timedelta(seconds=trio.current_time() - at)), stream, begins


async def test_the_end_is_told_a_minute_before(tmp_path: Path, autojump_clock: MockClock) -> None:
    one, stream, _ = session(tmp_path, timedelta(minutes=10))
    began = trio.current_time()
    assert await one.run((), {}) == 1
    assert abs(trio.current_time() - began - 600) < 2
    one._log.flush()
    warned, ended = stream.getvalue().splitlines()
    assert "in a minute: all its connections are cut then" in warned
    assert "this pass has ended at" in ended


async def test_of_a_pass_for_a_minute_the_end_alone_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    one, stream, _ = session(tmp_path, timedelta(seconds=59))
    assert await one.run((), {}) == 1
    one._log.flush()
    assert len(stream.getvalue().splitlines()) == 1


async def test_a_machine_that_slept_past_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    one, _, begins = session(tmp_path, timedelta(minutes=10))
    now = [begins]
    one._clock = lambda: now[0]
    began = trio.current_time()

    def slept() -> None:
        now[0] += timedelta(hours=8)

    assert await one.run((), {}, slept) == 1
    assert trio.current_time() - began < 2


@pytest.mark.parametrize("owner", [None, os.getuid() + 1])
async def test_a_connection_of_nobody_known_is_refused(owner: int | None) -> None:
    served: list[str] = []

    def serve(*_: object) -> Steps[None]:
        served.append("yes")
        yield from ()

    record = ConnectionRecord("outbound", "user/alice", "redis", 0.0, upstream="db:redis")
    lines = Lines(record, lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        sock, _ = server.accept()
        with sock:
            for found, refused in ((owner, True), (os.getuid(), False)):
                steps = own_user_only(serve, os.getuid(), {ends_of(sock): found}.get)(sock, lines, Live())
                asks: Any = next(steps)
                answer = await asks()
                if refused:
                    with pytest.raises(Refused, match="refused a connection to its port"):
                        steps.send(answer)
                    assert served == []
                else:
                    with pytest.raises(StopIteration):
                        steps.send(answer)
    assert served == ["yes"]


async def test_one_whose_owner_cannot_be_looked_up_for_want_of_a_thread_is_refused_in_words() -> None:
    record = ConnectionRecord("outbound", "user/alice", "redis", 0.0, upstream="db:redis")
    lines = Lines(record, lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        sock, _ = server.accept()
        with sock:
            steps = own_user_only(lambda *_: pytest.fail("it is served"), os.getuid())(sock, lines, Live())
            next(steps)
            with pytest.raises(Refused, match="could not be looked up: can't start new thread") as refused:
                steps.throw(RuntimeError("can't start new thread"))
    assert refused.value.reason is Reason.OVERLOADED


def ends_of(sock: socket.socket) -> Ends:
    return sock.getpeername()[:2], sock.getsockname()[:2]


# -- with a terminal -----------------------------------------------------------------------------------------------------


async def test_the_terminal_s_ctrl_c_is_the_program_s_alone_and_once(tmp_path: Path) -> None:
    async with shop_with_redis(tmp_path) as shop:
        file = await shop.make_pass()
        script = "trap 'echo heard; n=x$n; [ $n = xx ] && exit 4' INT; echo ready; while :; do sleep 0.1; done"
        command = [*SIDECAR, "connect", str(file), "--", "sh", "-c", script]
        typed = await trio.to_thread.run_sync(type_twice, command)
        assert typed == ["ready", "^Cheard", "^Cheard", "4"]


def type_twice(command: list[str]) -> list[str]:
    """Runs a command on a terminal of its own, types Ctrl-C when it says `ready` and once more; returns what is seen, and
    the exit code."""
    terminal, other_end = pty.openpty()
    # A session's first process that opens a terminal has it from then on.
    opened = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(other_end), *command]
    with subprocess.Popen(opened, env=clean_environment(), start_new_session=True) as process:
        seen = b""
        for said in (b"ready", b"heard"):
            while said not in seen:
                seen += os.read(terminal, 1000)
            time.sleep(0.3)  # noqa: TID251 (a second signal would come by now)
            os.write(terminal, b"\x03")
        os.close(other_end)
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while more := os.read(terminal, 1000):
                seen += more
    os.close(terminal)
    return [*seen.decode().split(), str(process.returncode)]
