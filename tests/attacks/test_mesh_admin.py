"""Whoever wants the metrics of a sidecar without a rule that names them in full, or something else than its metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from OpenSSL import SSL

from sidecar.observe.admin import Source
from sidecar.observe.metrics import Metrics
from sidecar.policy.names import ADMIN_PORT
from sidecar.transport import sockets
from tests.beds.admin import NUMBERS, WELL
from tests.beds.certificates import Authority
from tests.beds.mesh import Foreigner, MeshBed, RunningSidecar, connect, inbound, mesh_bed, outbound, receive_all

MESH = """\
trust_domain: shop.internal
services: {prometheus: {}, web: {}, api: {ports: {http: 8080}}, job: {}}
policy:
  - {from: "*", to: "*"}
  - {from: prometheus, to: ["api:mesh-admin", "api:http"]}
"""
ASKED = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ROUTES = Source(list, bool, lambda: WELL, lambda: NUMBERS, Metrics()).mesh_routes()


async def callee(bed: MeshBed) -> RunningSidecar:
    return await bed.sidecar("api", inbound=[inbound("http", (await bed.app()).address)], own=ROUTES)


async def shown(caller: RunningSidecar, target: str) -> bytes:
    """What a caller's app gets to see."""
    with await connect(caller.address(target, "outbound")) as app:
        try:
            await sockets.send_all(app, ASKED)
            return await receive_all(app)
        except OSError:
            return b""


async def heard_by(peer: Foreigner) -> bytes:
    """What a peer gets that asks whatever its handshake came to."""
    heard = b""
    with contextlib.suppress(SSL.Error, EOFError, OSError):  # an alert, or an end
        await peer.handshake()
        await peer.send(ASKED)
        while data := await peer.receive():
            heard += data
    return heard


async def test_a_call_of_another_port_that_is_led_here() -> None:
    """web may call every port that api declares; somebody on the way leads it to the one that none declares."""
    async with mesh_bed(MESH) as bed:
        api = await callee(bed)
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address(ADMIN_PORT))])
        assert await shown(web, "api:http") == b""
        line = await api.log.connection()
        assert (line["port"], line["decision"], line["reason"]) == (ADMIN_PORT, "deny", "handshake_failed")
        there = await bed.sidecar("prometheus", outbound=[outbound("api", ADMIN_PORT, api.address(ADMIN_PORT))])
        assert b"sidecar_healthy" in await shown(there, f"api:{ADMIN_PORT}"), "the twin"


async def test_a_scrape_that_is_led_to_the_app() -> None:
    async with mesh_bed(MESH) as bed:
        api = await callee(bed)
        scraper = await bed.sidecar("prometheus", outbound=[outbound("api", ADMIN_PORT, api.address("http"))])
        assert await shown(scraper, f"api:{ADMIN_PORT}") == b""
        assert (await api.log.connection())["reason"] == "handshake_failed"


async def test_a_scrape_that_is_led_to_another_sidecar() -> None:
    """job's sidecar answers to the same name of a port, and it is not the one that is asked."""
    async with mesh_bed(MESH) as bed:
        job = await bed.sidecar("job", own=ROUTES)
        scraper = await bed.sidecar("prometheus", outbound=[outbound("api", ADMIN_PORT, job.address(ADMIN_PORT))])
        assert await shown(scraper, f"api:{ADMIN_PORT}") == b""
        assert (await scraper.log.connection())["reason"] == "unexpected_peer"
        assert scraper.log.alarms


@pytest.mark.parametrize("alpn", [[b"mesh/1/mesh-admin"], [b"mesh/1/http"], []], ids=["ours", "another", "none"])
@pytest.mark.parametrize("service", ["web", "job"])
async def test_any_other_certificate_of_the_mesh(service: str, alpn: Sequence[bytes]) -> None:
    async with mesh_bed(MESH) as bed:
        api = await callee(bed)
        with await connect(api.address(ADMIN_PORT)) as sock:
            assert b"sidecar_" not in await heard_by(Foreigner(sock, bed.authority.leaf(service), alpn=alpn))
        line = await api.log.connection()
        assert line["decision"] == "deny"
        assert line["reason"] in ("policy_denied", "handshake_failed")


async def test_plaintext_no_certificate_and_a_foreign_one() -> None:
    async with mesh_bed(MESH) as bed:
        api = await callee(bed)
        with await connect(api.address(ADMIN_PORT)) as plain:
            await sockets.send_all(plain, ASKED)
            assert b"sidecar_" not in await receive_all(plain)
        for credential in (None, Authority().leaf("prometheus")):
            with await connect(api.address(ADMIN_PORT)) as sock:
                peer = Foreigner(sock, credential, alpn=[b"mesh/1/mesh-admin"])
                assert b"sidecar_" not in await heard_by(peer)
        await api.log.until(lambda: len(api.log.connections) == 3)
        reasons = {line["reason"] for line in api.log.connections}
        assert reasons == {"plaintext_refused", "no_certificate", "unknown_ca"}
