"""The same with OpenSSL's own programs as the other end: a library that is not ours, of another version."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.attacks.stage import STOLEN, Port, assert_refused, attacked_port
from tests.beds.certificates import Authority, Credential
from tests.beds.mesh import connect, mesh_bed, outbound
from tests.beds.patience import PATIENCE

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl program on this machine")


def shown(credential: Credential | None, directory: Path) -> list[str]:
    """The options with which openssl shows a credential."""
    if credential is None:
        return []
    files = credential.write(directory)
    return [
        *("-cert", str(files / "certificate.pem"), "-cert_chain", str(files / "certificate.pem")),
        *("-key", str(files / "key.pem"), "-CAfile", str(files / "bundle.pem")),
    ]


@asynccontextmanager
async def openssl(*arguments: str) -> AsyncIterator[trio.Process]:
    """The running program, with pipes; ended with the block."""
    assert OPENSSL is not None
    pipe = subprocess.PIPE
    command = partial(
        trio.run_process, [OPENSSL, *arguments], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, check=False
    )
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(command)
        yield process
        nursery.cancel_scope.cancel()


async def until(process: trio.Process, wanted: bytes) -> bytes:
    """What the program prints, up to what matches this expression, or all if that never comes."""
    assert process.stdout is not None
    said = b""
    with trio.fail_after(PATIENCE):
        while not re.search(wanted, said) and (more := await process.stdout.receive_some()):
            said += more
    return said


async def call(port: Port, *options: str, wanted: bytes, says: bytes = STOLEN) -> bytes:
    """s_client calls the port and says something; what it prints up to ``wanted``."""
    async with openssl("s_client", "-connect", str(port.address), "-ign_eof", *options) as client:
        assert client.stdin is not None
        with contextlib.suppress(trio.BrokenResourceError):  # refused already
            await client.stdin.send_all(says + b"\n")
        return await until(client, wanted)


async def test_s_client_with_a_good_certificate(tmp_path: Path) -> None:
    async with attacked_port() as port:
        options = shown(port.bed.authority.leaf("web"), tmp_path)
        said = await call(port, *options, "-alpn", "mesh/1/http", wanted=b"a greeting\n", says=b"a greeting")
        assert b"\x02oka greeting\n" in said
        said = await call(port, *options, wanted=b"a greeting\n", says=b"a greeting")
        assert b"a greeting\n" in said
        assert b"\x02ok" not in said  # without ALPN it is spoken to raw


@pytest.mark.parametrize(
    ("options", "reason", "alert"),
    [
        (["-tls1_2"], "tls_version", b"protocol version"),
        (["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"], "tls_version", b"protocol version"),
        (["-tls1", "-cipher", "DEFAULT:@SECLEVEL=0"], "tls_version", b"protocol version"),
        (["-tls1_2", "-fallback_scsv"], "tls_version", b"alert"),
        (["-alpn", "h2"], "handshake_failed", b"no application protocol"),
        (["-groups", "ffdhe8192"], "handshake_failed", b"handshake failure"),
    ],
    ids=["TLS 1.2", "TLS 1.1", "TLS 1.0", "a fallback", "another protocol", "no group of ours"],
)
async def test_s_client_with_other_wishes(tmp_path: Path, options: list[str], reason: str, alert: bytes) -> None:
    async with attacked_port() as port:
        said = await call(port, *shown(port.bed.authority.leaf("web"), tmp_path), *options, wanted=alert)
        assert alert in said
        await port.refused(reason)


async def test_s_client_with_bad_certificates(tmp_path: Path) -> None:
    async with attacked_port() as port:
        for number, (credential, reason, alert) in enumerate(
            [
                (None, "no_certificate", b"certificate required"),
                (Authority().leaf("web"), "unknown_ca", b"unknown ca"),
                (port.bed.authority.leaf("web", ca=True, cn="web"), "bad_identity", b"bad certificate"),
            ]
        ):
            said = await call(port, *shown(credential, tmp_path / str(number)), wanted=alert)
            assert alert in said
            await port.refused(reason)


async def test_s_client_saves_its_session_and_offers_it(tmp_path: Path) -> None:
    async with attacked_port() as port:
        options = [*shown(port.bed.authority.leaf("web"), tmp_path), "-alpn", "mesh/1/http"]
        session = tmp_path / "session"
        await call(port, *options, "-sess_out", str(session), wanted=STOLEN)
        assert session.stat().st_size
        said = await call(port, *options, "-sess_in", str(session), wanted=STOLEN)
        assert b"New, TLSv1.3" in said
        assert b"Reused" not in said
        for number in (1, 2):
            assert (await port.sidecar.log.connection(number))["resumed"] is False


async def test_early_data_is_never_taken(tmp_path: Path) -> None:
    """A session that allows early data, had from a server of the attacker's, is offered to the sidecar with such data."""
    async with attacked_port() as port:
        api, web = port.bed.authority.leaf("api"), port.bed.authority.leaf("web")
        session, early = str(tmp_path / "session"), tmp_path / "early"
        early.write_bytes(STOLEN)
        options = [*shown(web, tmp_path / "web"), "-alpn", "mesh/1/http"]
        saving = ("-sess_out", session, "-ign_eof")
        async with (
            s_server(api, tmp_path / "api", "-early_data") as (place, server),
            openssl("s_client", "-connect", str(place), *saving, *options) as client,
        ):
            assert b"Early data was not sent" in await until(client, b"Early data was not sent")
            assert server.stdin is not None
            await server.stdin.send_all(b"behind the tickets\n")
            assert b"behind" in await until(client, b"behind the tickets")
        said = await call(
            port, *options, "-sess_in", session, "-early_data", str(early), wanted=b"a greeting\n", says=b"a greeting"
        )
        assert b"Early data was rejected" in said
        assert b"\x02oka greeting" in said
        assert bytes(port.app.received) == b"a greeting\n"


@asynccontextmanager
async def s_server(
    credential: Credential, directory: Path, *options: str
) -> AsyncIterator[tuple[Address, trio.Process]]:
    """s_server with this credential on a free port; it sends back what it gets, line by line, in reverse."""
    listen = ("s_server", "-accept", "127.0.0.1:0", "-Verify", "3", "-verify_return_error")
    async with openssl(*listen, *shown(credential, directory), *options) as server:
        listening = rb"ACCEPT 127.0.0.1:(\d+)\n"
        place = re.search(listening, await until(server, listening))
        assert place is not None
        yield Address("127.0.0.1", int(place[1])), server


@pytest.mark.parametrize(
    ("who", "options", "reason"),
    [
        ("api", [], None),
        ("api", ["-alpn", "h2"], "peer_refused"),
        ("api", ["-tls1_2"], "tls_version"),
        ("db", [], "unexpected_peer"),
        ("web", [], "unexpected_peer"),
    ],
    ids=["good", "another protocol", "TLS 1.2", "another service", "ourselves"],
)
async def test_s_server_in_the_place_of_a_service(
    who: str, options: list[str], reason: str | None, tmp_path: Path
) -> None:
    async with mesh_bed() as bed, s_server(bed.authority.leaf(who), tmp_path, "-rev", *options) as (place, _):
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place)])
        entry = web.address("api:http", "outbound")
        if reason is None:
            with await connect(entry) as client:
                await sockets.send_all(client, b"abc\n")
                with trio.fail_after(PATIENCE):
                    assert await sockets.receive(client, 100) == b"cba\n"
                client.shutdown(socket.SHUT_WR)
            assert web.log.alarms == []
        else:
            await assert_refused(entry)
            line = await web.log.connection()
            assert (line["reason"], line["decision"]) == (reason, "deny")
            assert len(web.log.alarms) == (reason != "peer_refused")
