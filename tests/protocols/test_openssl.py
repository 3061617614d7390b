"""``openssl s_client`` and ``openssl s_server`` as peers: what they show decides, and they are told why where TLS can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.beds.mesh import mesh_bed
from tests.beds.processes import CERTS, Running, Shop, output
from tests.protocols.foreign import (
    API,
    BODY,
    DB,
    REPORTING,
    WEB,
    api_before,
    http_echo,
    place,
    post,
    refused,
    web_to,
)
from tests.protocols.programs import needs, program, server, shell

pytestmark = needs("openssl", "curl")

PAGE = BODY[:100_000].decode()


def certificate(shop: Shop, service: str) -> list[str]:
    directory = shop.path / service
    both = [part for name in ("-cert", "-cert_chain") for part in (name, f"{directory}/certificate.pem")]
    return [*both, "-key", f"{directory}/key.pem", "-CAfile", f"{directory}/bundle.pem", "-verify_return_error"]


async def s_client(shop: Shop, service: str, to: str, *options: str) -> str:
    """What is heard of an HTTP request, after s_client has verified whom it called."""
    request = b"POST / HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    command = (
        program("openssl"),
        "s_client",
        "-connect",
        to,
        "-quiet",
        "-verify_hostname",
        "api",
        "-servername",
        "api",
    )
    return await output(*command, *certificate(shop, service), *options, stdin=request, check=False)


@asynccontextmanager
async def s_server(shop: Shop, service: str, *options: str) -> AsyncIterator[tuple[str, Running]]:
    """A web server of s_server's own, which asks for a certificate; it serves the shop's directory."""
    address = place()
    command = (program("openssl"), "s_server", "-accept", address, "-Verify", "3", "-tls1_3")
    async with server(
        "sh",
        "-c",
        'cd "$1"; shift; exec "$@"',
        "sh",
        shop.path,
        *command,
        *certificate(shop, service),
        *options,
        ready="ACCEPT",
    ) as process:
        yield address, process


# -- it calls us -------------------------------------------------------------------------------------------------------


async def test_it_calls_our_port(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(http_echo)
        async with api_before(shop, app) as api:
            heard = await s_client(shop, "web", api.at("http"))
            line = await api.program.connection()
    assert (line["decision"], line["rule"], line["peer_id"]) == ("allow", "web->api:http", WEB)
    assert BODY in app.received
    assert BODY.decode() in heard
    assert line["reason"] == "ok"


async def test_another_service_calls_our_port(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(http_echo)
        async with api_before(shop, app) as api:
            assert "200 OK" not in await s_client(shop, "reporting", api.at("http"))
            await refused(api, "policy_denied", peer_id=REPORTING, rule=None)
    assert app.connections == 0


async def test_it_calls_a_port_that_requires_our_protocol(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(http_echo)
        async with api_before(shop, app, ", require_alpn: true") as api:
            assert "200 OK" not in await s_client(shop, "web", api.at("http"))
            line = await refused(api, "handshake_failed", peer_id=WEB)
            assert f"requires the ALPN protocol mesh/2/http or mesh/1/http; {WEB} offers none" in line["message"]
    assert app.connections == 0


async def test_it_offers_protocols_without_ours(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(http_echo)
        async with api_before(shop, app) as api:
            told = await s_client(shop, "web", api.at("http"), "-alpn", "h2,http/1.1,mesh/1/metrics")
            assert "alert no application protocol" in told
            line = await refused(api, "handshake_failed", peer_id=None)
            assert "mesh/1/http" in line["message"]
    assert app.connections == 0


# -- we call it --------------------------------------------------------------------------------------------------------


async def test_we_call_it(shop: Shop) -> None:
    (shop.path / "page").write_text(PAGE)
    async with s_server(shop, "api", "-WWW") as (peer, _), web_to(shop, peer) as web:
        assert await output("curl", "-sS", "--max-time", "20", f"http://{web.at('api:http')}/page") == PAGE
        line = await web.program.connection()
        assert (line["decision"], line["reason"], line["peer_id"]) == ("allow", "ok", API)
        assert not web.program.events("mitm_suspected")


async def test_another_service_answers_our_call(shop: Shop) -> None:
    async with s_server(shop, "db") as (peer, process), web_to(shop, peer) as web:
        body = shop.path / "mesh.yaml"
        assert (await post(web.at("api:http"), body)).startswith("curl: ")
        await refused(web, "unexpected_peer", peer_id=None, upstream="api:http")
        alarm = await web.program.event("mitm_suspected")
        assert (alarm["reason"], alarm["expected"]) == ("unexpected_peer", API)
        assert DB in alarm["presented"]["uris"]
        await process.line("bad certificate")  # it was told
        assert "POST" not in process.text


async def test_we_call_it_but_require_our_protocol(shop: Shop) -> None:
    async with s_server(shop, "api") as (peer, process), web_to(shop, peer, ", require_alpn: true") as web:
        assert (await post(web.at("api:http"), shop.path / "mesh.yaml")).startswith("curl: ")
        line = await refused(web, "handshake_failed")
        assert "requires the ALPN protocol mesh/2/http or mesh/1/http" in line["message"]
        assert "POST" not in process.text


async def test_it_knows_our_ca_not(shop: Shop) -> None:
    await shell('cd "$1" && shift && "$@"', shop.path, *CERTS, "init", "other", "--trust-domain", "shop.internal")
    async with s_server(shop, "api", "-CAfile", "other/root.pem") as (peer, process), web_to(shop, peer) as web:
        assert (await post(web.at("api:http"), shop.path / "mesh.yaml")).startswith("curl: ")
        line = await web.program.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("peer_refused", 0)
        assert "unknown_ca" in line["message"]
        assert "POST" not in process.text
