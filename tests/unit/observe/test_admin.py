"""What the admin port answers."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.observe.admin import Source
from sidecar.observe.metrics import Metrics
from tests.beds.admin import LOOPBACK, NUMBERS, WELL, admin, asked


async def test_it_says_whether_all_is_well() -> None:
    async with admin(LOOPBACK) as one:
        assert await asked(one.address, "/healthz") == (200, '{"healthy": true, "unwell": []}\n')


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"healthy": False, "unwell": ["its certificate ended"]}, "its certificate ended"),
        ({"draining": True}, "it is draining"),
    ],
)
async def test_and_why_not(status: dict[str, Any], said: str) -> None:
    async with admin(LOOPBACK, **status) as one:
        code, body = await asked(one.address, "/healthz")
        assert (code, said in body) == (503, True)


async def test_live_is_the_process_and_ready_is_who_can_be_called() -> None:
    async with admin(LOOPBACK) as one:
        assert await asked(one.address, "/livez") == (200, '{"live": true}\n')
        assert await asked(one.address, "/readyz") == (200, '{"ready": true, "unwell": []}\n')
    for status in ({"healthy": False, "unwell": ["its certificate ended"]}, {"draining": True}):
        async with admin(LOOPBACK, **status) as one:
            assert (await asked(one.address, "/livez"))[0] == 200
            code, body = await asked(one.address, "/readyz")
            assert (code, '"ready": false' in body) == (503, True)


def test_the_mesh_is_told_numbers_and_no_names_of_people_s_mistakes() -> None:
    source = Source(list, bool, lambda: WELL, lambda: NUMBERS, Metrics())
    assert sorted(source.mesh_routes()) == ["/healthz", "/livez", "/metrics", "/readyz"]
    assert {method for methods in source.mesh_routes().values() for method in methods} == {"GET"}
    assert source.mesh_routes().keys() < source.routes().keys()


async def test_status_and_metrics() -> None:
    async with admin(LOOPBACK) as one:
        assert '"healthy": true' in (await asked(one.address, "/status"))[1]
        _, text = await asked(one.address, "/metrics")
        assert 'sidecar_connections_total{decision="allow",direction="inbound",port="http",reason="ok"} 3.0' in text
        assert "sidecar_healthy 1.0" in text
        assert "sidecar_log_folded_total 7.0" in text
        assert "sidecar_log_lost_total 3.0" in text
        assert "sidecar_strangers 5.0" in text
        edge = 'direction="outbound",peer="api",port="api:http"'
        assert f'sidecar_streams_total{{{edge},rule="one"}} 5.0' in text
        assert f'sidecar_streams_reused_total{{{edge},rule="another"}} 3.0' in text
        assert "sidecar_idle_channels 4.0" in text
