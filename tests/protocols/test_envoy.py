"""Envoy as a peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.beds.mesh import mesh_bed
from tests.beds.processes import Shop
from tests.protocols.foreign import API, DB, WEB, HalfClosingPeer, body_in, http_echo, place, post, web_to, written
from tests.protocols.programs import needs, program, server

pytestmark = needs("envoy", "curl")

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"


@asynccontextmanager
async def envoy(shop: Shop, listen: str, to: str, *, downstream: str = "", upstream: str = "") -> AsyncIterator[None]:
    """A TCP proxy; ``downstream`` and ``upstream`` are the TLS context of that side, in YAML's flow style."""
    here, there = ("socket_address: {{address: {}, port_value: {}}}".format(*it.split(":")) for it in (listen, to))
    file = written(
        shop,
        "envoy.yaml",
        f"""
static_resources:
  listeners:
  - address: {{{here}}}
    filter_chains:
    - {downstream}
      filters: [{{name: tcp, typed_config: {{"@type": {PROXY}, stat_prefix: tcp, cluster: there}}}}]
  clusters:
  - name: there
    {upstream}
    load_assignment:
      cluster_name: there
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{{there}}}}}}}]}}]
""",
    )
    options = ("--concurrency", "1", "--disable-hot-restart", "-l", "info")
    async with server(program("envoy"), "-c", file, *options, ready="starting main dispatch loop"):
        yield


def context(shop: Shop, kind: str, service: str, peer: str, more: str = "") -> str:
    """TLS 1.3 with the certificate of ``service``, for a ``peer`` that is named by its SPIFFE ID."""
    directory = shop.path / service
    return f"""transport_socket:
        name: tls
        typed_config:
          "@type": {TLS}.{kind}TlsContext
          {more}
          common_tls_context:
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            tls_certificates:
            - certificate_chain: {{filename: {directory}/certificate.pem}}
              private_key: {{filename: {directory}/key.pem}}
            validation_context:
              trusted_ca: {{filename: {directory}/bundle.pem}}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{peer}"}}}}]
"""


class TestEnvoy(HalfClosingPeer):
    refusal = ("deny", "peer_refused", "certificate_unknown")

    @asynccontextmanager
    async def caller(self, shop: Shop, service: str, to: str) -> AsyncIterator[str]:
        entry = place()
        async with envoy(shop, entry, to, upstream=context(shop, "Upstream", service, API, "sni: api")):
            yield entry

    @asynccontextmanager
    async def callee(self, shop: Shop, service: str, app: str) -> AsyncIterator[str]:
        entry = place()
        wanted = "require_client_certificate: true"
        async with envoy(shop, entry, app, downstream=context(shop, "Downstream", service, WEB, wanted)):
            yield entry

    async def test_it_refuses_a_caller_of_ours_that_it_does_not_expect(self, shop: Shop, tmp_path: Path) -> None:
        """Our policy lets reporting call db; Envoy in db's place lets in nobody but web."""
        async with mesh_bed() as bed:
            app = await bed.app(http_echo)
            async with (
                self.callee(shop, "db", str(app.address)) as peer,
                web_to(shop, peer, service="reporting", target="db:redis") as reporting,
            ):
                assert (await post(reporting.at("db:redis"), body_in(tmp_path))).startswith("curl: ")
                line = await reporting.program.connection()
                assert (line["reason"], line["peer_id"], line["bytes_to_app"]) == ("peer_refused", DB, 0)
                assert "certificate_unknown" in line["message"]
                assert not reporting.program.events("mitm_suspected")
        assert app.received == b""  # but Envoy has connected to it: it does so before it has judged its caller
