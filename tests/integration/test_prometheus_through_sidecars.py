"""A real Prometheus reads a sidecar's metrics through its own sidecar, by the rules and the configuration that we ship."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import trio

from tests.beds import admin
from tests.beds.processes import DEADLINE, Shop, free_port, needs, running, sidecar_process

pytestmark = needs("prometheus")

OURS = Path(__file__).parents[2] / "compose/observability/prometheus"
RULES = len([line for line in (OURS / "mesh.rules.yml").read_text().splitlines() if "- alert:" in line])


async def asked(at: str, path: str, **query: str) -> Any:
    """What Prometheus's API answers. Raises OSError as long as it does not."""
    status, text = await admin.asked(at, f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
    if status != 200:
        raise OSError(f"Prometheus answers {status}: {text}")
    return json.loads(text)["data"]


async def value_of(at: str, query: str) -> str:
    """The one value of a query, once there is one."""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                if found := (await asked(at, "query", query=query))["result"]:
                    return str(found[0]["value"][1])
            except OSError:
                pass  # it has not started yet
            await trio.sleep(0.2)


async def test_it_reads_a_sidecar_s_metrics_in_mutual_tls(tmp_path: Path) -> None:
    shop = Shop.make(tmp_path / "shop", ["web", "api"])
    mesh = shop.path / "mesh.yaml"
    mesh.write_text(mesh.read_text() + '  - {from: web, to: "api:mesh-admin"}\n')
    port, own = free_port(), free_port()
    callee = shop.wiring("api", f'admin: {{listen: "127.0.0.1:0", mesh_listen: "127.0.0.1:{port}"}}\n')
    caller = shop.wiring(
        "web", f'outbound: [{{to: "api:mesh-admin", listen: "127.0.0.1:0", peers: ["127.0.0.1:{port}"]}}]\n'
    )
    async with sidecar_process(callee) as api, sidecar_process(caller) as web:
        target = {"targets": [web.at("api:mesh-admin")], "labels": {"instance": "api", "service": "api"}}
        (tmp_path / "prometheus.json").write_text(json.dumps([target]))
        (tmp_path / "mesh.rules.yml").write_text((OURS / "mesh.rules.yml").read_text())
        config = (OURS / "prometheus.yml").read_text().replace("/etc/mesh-scrape/", f"{tmp_path}/").replace("15s", "1s")
        (tmp_path / "prometheus.yml").write_text(config)
        at = f"127.0.0.1:{own}"
        options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        async with running("prometheus", *options, f"--web.listen-address={at}"):
            assert await value_of(at, 'up{service="api"} == 1') == "1"
            assert await value_of(at, 'sidecar_healthy{service="api"}') == "1"
            opened = 'sidecar_connections_opened_total{direction="inbound",peer="web",port="mesh-admin"}'
            assert await value_of(at, opened) == "1", "its scrapes follow one another on one connection"
            groups = (await asked(at, "rules"))["groups"]
            assert [len(group["rules"]) for group in groups] == [RULES]
            with trio.fail_after(DEADLINE):
                while any(  # noqa: ASYNC110  # of another process
                    rule["health"] != "ok" for rule in (await asked(at, "rules"))["groups"][0]["rules"]
                ):
                    await trio.sleep(0.2)  # each has been evaluated once, without an error
        assert not api.program.errors
