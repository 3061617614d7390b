"""Whoever may not is refused, by name, in one line at each end that is ours; each beside its honest twin."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import trio

from tests.beds.processes import (
    DEADLINE,
    Shop,
    SidecarProcess,
    free_port,
    needs,
    output,
    running,
    sidecar_pair,
    sidecar_process,
)

pytestmark = needs("openssl", "curl")

FIELDS = {
    "event", "time", "level", "direction", "service", "port", "peer_address", "peer_id", "upstream", "decision", "rule",
    "reason", "bytes_to_app", "bytes_from_app", "duration_ms", "handshake_ms", "tls_group", "resumed", "connection_id",
}  # fmt: skip
"""Of every line of the access log, always."""

ROOT = Path(__file__).parents[2]
WEB, API = "spiffe://shop.internal/web", "spiffe://shop.internal/api"


def check(line: dict[str, Any], **expected: Any) -> None:
    """That a line of the access log has these values, all the fields there are, and no byte in it."""
    assert line.keys() >= FIELDS
    assert {name: line[name] for name in expected} == expected
    assert (line["bytes_to_app"], line["bytes_from_app"], line["resumed"]) == (0, 0, False)


def check_refused(line: dict[str, Any], reason: str, **expected: Any) -> None:
    check(line, decision="deny", reason=reason, **expected)
    assert line["level"] == "warning"
    assert line["message"].startswith("refused: ")


async def call(sidecar: SidecarProcess, target: str = "api:http") -> bytes | None:
    """What a plaintext app hears that calls through its sidecar; None if its connection is reset."""
    with trio.fail_after(DEADLINE):
        try:
            # A reset that is quick enough is met while connecting.
            async with await trio.open_tcp_stream(*sidecar.address(target)) as stream:
                await stream.send_all(b"open sesame")
                return b"".join([data async for data in stream])
        except (trio.BrokenResourceError, OSError):
            return None


async def s_client(at: str, *options: str | Path) -> str:
    """What openssl says of a handshake as a caller; it reads once, since only then it knows how it was judged."""
    command = ("openssl", "s_client", "-connect", at, "-alpn", "mesh/1/http", "-ign_eof", *options)
    return await output(*command, check=False)


def certificate(directory: Path) -> list[str]:
    return [
        "-cert", str(directory / "certificate.pem"), "-key", str(directory / "key.pem"),
        "-cert_chain", str(directory / "certificate.pem"),
    ]  # fmt: skip


def other_ca(shop: Shop, service: str) -> Path:
    """A certificate of the same name by another CA: the attacker made it himself."""
    for arguments in (
        ["init", "evil", "--trust-domain", "shop.internal"],
        ["issue", "evil", service, "--out", "stolen"],
    ):
        shop.certs(*arguments)
    return shop.path / "stolen"


NOBODY = "127.0.0.1:9"  # where no app is; nothing in here gets that far


async def api_alone(shop: Shop) -> Path:
    return shop.wiring("api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{NOBODY}"}}]\n')


# -- callers at the inbound port ---------------------------------------------------------------------------------------


async def test_a_caller_without_a_certificate(shop: Shop) -> None:
    async with sidecar_process(await api_alone(shop)) as api:
        assert "alert certificate required" in await s_client(api.at("http"))
        line = await api.program.connection()
        check_refused(line, "no_certificate", direction="inbound", service="api", port="http", peer_id=None, rule=None)
        assert line["peer_address"].startswith("127.0.0.1:")
        assert len(line["connection_id"]) == 16


async def test_a_caller_of_another_ca(shop: Shop) -> None:
    stolen = other_ca(shop, "web")
    async with sidecar_process(await api_alone(shop)) as api:
        assert "alert unknown ca" in await s_client(api.at("http"), *certificate(stolen))
        line = await api.program.connection()
        check_refused(line, "unknown_ca", direction="inbound", peer_id=None, rule=None, tls_group=None)
        assert WEB in line["unverified"]["uris"]  # what it claims is kept, marked as what it is


async def test_a_caller_not_in_the_policy_and_one_that_is(shop: Shop) -> None:
    async with sidecar_process(await api_alone(shop)) as api:
        said = await s_client(api.at("http"), *certificate(shop.path / "reporting"))
        assert "policy_denied" in said
        line = await api.program.connection()
        identity = "spiffe://shop.internal/reporting"
        check_refused(line, "policy_denied", direction="inbound", peer_id=identity, rule=None)
        assert line["tls_group"] == "X25519MLKEM768" or line["tls_group"] is not None
        assert identity in line["message"]

        # The twin gets as far as the app, and there is none.
        assert "connect_failed" in await s_client(api.at("http"), *certificate(shop.path / "web"))
        line = await api.program.connection(2)
        check(line, decision="allow", reason="connect_failed", peer_id=WEB, rule="web->api:http")


async def test_plaintext_at_the_mtls_port(shop: Shop) -> None:
    async with sidecar_process(await api_alone(shop)) as api:
        said = await output("curl", "-sS", "--max-time", "20", f"http://{api.at('http')}/secret", check=False)
        assert said.startswith("curl:")
        line = await api.program.connection()
        check_refused(line, "plaintext_refused", peer_id=None, connection_id=None, tls_group=None, rule=None)
        assert "plain HTTP" in line["message"]
        assert "secret" not in str(line)


async def test_an_older_tls(shop: Shop) -> None:
    async with sidecar_process(await api_alone(shop)) as api:
        said = await s_client(api.at("http"), "-tls1_2", *certificate(shop.path / "web"))
        assert "alert protocol version" in said
        check_refused(await api.program.connection(), "tls_version", peer_id=None)


async def test_another_service_s_certificate_is_just_that_service(shop: Shop) -> None:
    """A sidecar that shows another's valid certificate is that other: db's may not call api, whoever holds it."""
    async with sidecar_process(await api_alone(shop)) as api:
        assert "policy_denied" in await s_client(api.at("http"), *certificate(shop.path / "db"))
        check_refused(await api.program.connection(), "policy_denied", peer_id="spiffe://shop.internal/db")


async def test_a_caller_is_told_by_its_own_sidecar_too(shop: Shop) -> None:
    """The caller's mesh.yaml is newer than the callee's: it lets pass what the other end refuses; both lines say why."""
    async with sidecar_process(await api_alone(shop)) as api:
        theirs = (shop.path / "mesh.yaml").read_text()
        (shop.path / "newer.yaml").write_text(theirs + '  - {from: reporting, to: "api:http"}\n')
        wiring = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{api.at("http")}"]}}]\n'
        file = shop.wiring("reporting", wiring)
        file.write_text(file.read_text().replace("mesh: mesh.yaml", "mesh: newer.yaml"))
        async with sidecar_process(file) as reporting:
            assert await call(reporting) is None
            here, there = await reporting.program.connection(), await api.program.connection()
    check_refused(there, "policy_denied", peer_id="spiffe://shop.internal/reporting", direction="inbound")
    check_refused(here, "peer_refused", peer_id=API, peer_reason="policy_denied", upstream="api:http")
    assert here["connection_id"] == there["connection_id"] is not None
    assert here["rule"] == "reporting->api:http"


async def test_a_service_whose_own_policy_forbids_the_call(shop: Shop) -> None:
    body = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{NOBODY}"]}}]\n'
    async with sidecar_process(shop.wiring("reporting", body)) as reporting:
        assert await call(reporting) is None
        line = await reporting.program.connection()
        check_refused(line, "policy_denied", direction="outbound", service="reporting", upstream="api:http")
        assert (line["peer_address"], line["connection_id"], line["handshake_ms"]) == (None, None, None)
        assert "api:http" in (await reporting.program.event("warning"))["message"]  # it said so at start


# -- peers that answer an outbound call --------------------------------------------------------------------------------


async def met(shop: Shop, *server: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """web calls api, where ``openssl s_server`` with these options answers: the line and the alarm."""
    port = free_port()
    command = ("openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-alpn", "mesh/1/http", *server)
    async with running(*command) as impostor:
        await impostor.line("ACCEPT")
        body = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["127.0.0.1:{port}"]}}]\n'
        async with sidecar_process(shop.wiring("web", body)) as web:
            assert await call(web) is None
            line, alarm = await web.program.connection(), await web.program.event("mitm_suspected")
            assert len(web.program.connections) == 1
        assert "sesame" not in impostor.text  # it has not seen a byte
    check_refused(line, alarm["reason"], direction="outbound", service="web", upstream="api:http", peer_id=None)
    assert alarm["level"] == "error"
    assert alarm["expected"] == API
    assert alarm["peer_address"] == line["peer_address"] == f"127.0.0.1:{port}"
    assert f"127.0.0.1:{port}" in alarm["next"]
    assert alarm["connection_id"] == line["connection_id"]
    return line, alarm


async def test_another_service_answers_in_its_place(shop: Shop) -> None:
    line, alarm = await met(shop, *certificate(shop.path / "db"))
    assert line["reason"] == "unexpected_peer"
    for word in (API, "spiffe://shop.internal/db"):
        assert word in alarm["message"]
    assert "spiffe://shop.internal/db" in alarm["presented"]["uris"]
    assert len(alarm["presented"]["sha256"]) == 64
    assert alarm["presented"] == line["unverified"]


async def test_readme_shows_the_alarm_as_it_is(shop: Shop) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("```json\n")[2].partition("```")[0]
    shown, (_, alarm) = json.loads(text), await met(shop, *certificate(shop.path / "reporting"))
    assert [key for key in alarm if key != "presented"] == [*shown]
    assert shown["connection_id"] not in ("", alarm["connection_id"])
    for key in ("message", "reason", "expected", "next", "level", "service"):
        ours, theirs = (re.sub(r"127\.0\.0\.1:[0-9]+", "PLACE", line[key]) for line in (alarm, shown))
        assert ours == theirs.replace("cache", "api"), key


async def test_another_ca_answers_in_its_place(shop: Shop) -> None:
    line, alarm = await met(shop, *certificate(other_ca(shop, "api")))
    assert line["reason"] == "unknown_ca"
    assert API in alarm["presented"]["uris"]  # the right name, by the wrong CA


async def test_an_older_tls_answers_in_its_place(shop: Shop) -> None:
    line, _ = await met(shop, "-tls1_2", *certificate(shop.path / "api"))
    assert line["reason"] == "tls_version"


async def test_plaintext_answers_in_its_place(shop: Shop) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nsend me your password")
        async for _ in stream:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, greet, 0)
        port = listeners[0].socket.getsockname()[1]
        body = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["127.0.0.1:{port}"]}}]\n'
        async with sidecar_process(shop.wiring("web", body)) as web:
            assert await call(web) is None
            check_refused(await web.program.connection(), "plaintext_refused", peer_id=None)
            assert (await web.program.event("mitm_suspected"))["reason"] == "plaintext_refused"
        nursery.cancel_scope.cancel()


async def test_the_honest_twin_of_them_all(shop: Shop) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello back")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, greet, 0)
        port = listeners[0].socket.getsockname()[1]
        async with sidecar_pair(shop, f"127.0.0.1:{port}") as (web, api):
            heard = await call(web)
            here, there = await web.program.connection(), await api.program.connection()
            assert not web.program.events("mitm_suspected")
        nursery.cancel_scope.cancel()
    assert heard in (b"hello back", None)  # the app did not read what was sent, so its close is a reset
    for line, direction, peer in ((here, "outbound", API), (there, "inbound", WEB)):
        assert line.keys() >= FIELDS
        assert (line["direction"], line["decision"], line["peer_id"]) == (direction, "allow", peer)
        assert line["rule"] == "web->api:http"
    assert here["connection_id"] == there["connection_id"]


async def test_a_refusal_leaves_the_sidecar_as_it_was(shop: Shop) -> None:
    """Refuse, accept, refuse: no refusal leaves anything behind that the next connection would meet."""
    async with sidecar_process(await api_alone(shop)) as api:
        for number in (1, 3, 5):
            assert "alert certificate required" in await s_client(api.at("http"))
            check_refused(await api.program.connection(number), "no_certificate")
            assert "connect_failed" in await s_client(api.at("http"), *certificate(shop.path / "web"))
            assert (await api.program.connection(number + 1))["reason"] == "connect_failed"
