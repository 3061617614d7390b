"""The PROXY protocol header as the real nginx and the real HAProxy read it, as the app behind a sidecar."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.beds.processes import Running, Shop, free_port, output
from tests.protocols import nginx
from tests.protocols.foreign import api_before, place, web_to, written
from tests.protocols.programs import find, needs, program, server, shell

pytestmark = needs("nginx", "haproxy", "curl")

MODES = ("conn", "tls", "tls-full")


def version(name: str) -> tuple[int, ...]:
    if find(name) is None:
        return (0,)
    done = subprocess.run([program(name), "-v"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", done.stdout + done.stderr)
    assert found is not None
    return tuple(int(part or 0) for part in found.groups())


NGINX_READS_TLVS, HAPROXY_READS_TLVS = version("nginx") >= (1, 23, 2), version("haproxy") >= (2, 9)


@asynccontextmanager
async def nginx_app(shop: Shop, directory: Path) -> AsyncIterator[str]:
    """It answers with whom the header names, in ``address CN SPIFFE-ID``, the last two where this version reads them."""
    await shell('mkdir "$1"', directory)
    names = " $proxy_protocol_tlv_ssl_cn $proxy_protocol_tlv_0xE0" if NGINX_READS_TLVS else ""
    where = f"127.0.0.1:{free_port()}"
    more = f"}} server {{ listen {where} proxy_protocol;"
    more += f'location / {{ return 200 "$proxy_protocol_addr:$proxy_protocol_port{names}"; }}'
    async with nginx.http(directory, "return 404;", more=more):
        yield where


@asynccontextmanager
async def haproxy_app(shop: Shop, directory: Path) -> AsyncIterator[str]:
    del directory
    names = " %[fc_pp_tlv(0xE0)]" if HAPROXY_READS_TLVS else ""
    where = place()
    file = written(
        shop,
        "app.cfg",
        f"""
defaults
  mode http
  timeout connect 60s
  timeout client 60s
  timeout server 60s
frontend here
  bind {where} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]{names}"
""",
    )
    async with server(program("haproxy"), "-W", "-f", file, ready="Loading success"):
        yield where


Started = Callable[[Shop, Path], AbstractAsyncContextManager[str]]
APPS = pytest.mark.parametrize("app", [nginx_app, haproxy_app])


@APPS
@pytest.mark.parametrize("mode", MODES)
async def test_it_knows_who_calls(shop: Shop, tmp_path: Path, app: Started, mode: str) -> None:
    async with (
        app(shop, tmp_path / "root") as address,
        api_before(shop, address, f", proxy_protocol: {mode}") as api,
        web_to(shop, api.at("http")) as web,
    ):
        for number in (1, 2):  # the second is a stream of the same channel
            said = (await output("curl", "-sS", "--max-time", "20", f"http://{web.at('api:http')}/")).split()
            line = await api.program.connection(number)
            assert (said[0], line["reason"]) == (line["peer_address"], "ok")
            if mode != "conn" and said[1:]:
                assert said[-1] == "spiffe://shop.internal/web"
                assert said[1:-1] in ([], ["web"])


@APPS
async def test_an_app_that_expects_it_serves_nobody_without_it(shop: Shop, tmp_path: Path, app: Started) -> None:
    async with (
        app(shop, tmp_path / "root") as address,
        api_before(shop, address) as api,
        web_to(shop, api.at("http")) as web,
    ):
        said = await output("curl", "-sS", "--max-time", "20", f"http://{web.at('api:http')}/", check=False)
        assert said.startswith("curl: ")


@APPS
async def test_a_caller_s_own_header_is_a_bad_request_and_no_address(shop: Shop, tmp_path: Path, app: Started) -> None:
    """HAProxy's own words, sent by curl as the caller: they come after ours."""
    async with (
        app(shop, tmp_path / "root") as address,
        api_before(shop, address, ", proxy_protocol: tls") as api,
        web_to(shop, api.at("http")) as web,
    ):
        forging = ("curl", "-sS", "--max-time", "20", "--haproxy-protocol", "-w", "[%{http_code}]")
        said = await output(*forging, f"http://{web.at('api:http')}/", check=False)
        assert said.endswith("[400]")


ENVOY = "type.googleapis.com/envoy.extensions.filters"


@asynccontextmanager
async def envoy_app(shop: Shop) -> AsyncIterator[tuple[str, Running]]:
    """It answers with the address of the header, and writes a line with the SPIFFE ID of the TLV 0xE0."""
    where = place()
    host, port = where.split(":")
    file = written(
        shop,
        "app.yaml",
        f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: {host}, port_value: {port}}}}}
    listener_filters:
    - name: proxy
      typed_config:
        "@type": {ENVOY}.listener.proxy_protocol.v3.ProxyProtocol
        rules: [{{tlv_type: 224, on_tlv_present: {{metadata_namespace: caller, key: id}}}}]
    access_log:
    - name: stdout
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
        log_format: {{text_format_source: {{inline_string: "calls: %DYNAMIC_METADATA(caller:id)%;\\n"}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {ENVOY}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters:
          - name: router
            typed_config: {{"@type": {ENVOY}.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              response_headers_to_add:
              - header: {{key: x-address, value: "%DOWNSTREAM_REMOTE_ADDRESS%"}}
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]
""",
    )
    options = ("--concurrency", "1", "--disable-hot-restart", "-l", "info")
    async with server(program("envoy"), "-c", file, *options, ready="starting main dispatch loop") as process:
        yield where, process


@needs("envoy")
@pytest.mark.parametrize("mode", MODES)
async def test_envoy_reads_the_spiffe_id(shop: Shop, mode: str) -> None:
    async with (
        envoy_app(shop) as (address, envoy),
        api_before(shop, address, f", proxy_protocol: {mode}") as api,
        web_to(shop, api.at("http")) as web,
    ):
        said = await output("curl", "-sSi", "--max-time", "20", f"http://{web.at('api:http')}/")
        line = await api.program.connection()
        assert f"x-address: {line['peer_address']}" in said.splitlines()
        await envoy.line(f"calls: {'-' if mode == 'conn' else 'spiffe://shop.internal/web'};")
