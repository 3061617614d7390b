"""The rules that allow everything, as the metrics tell them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from sidecar.lifecycle.gauges import allow_all
from sidecar.policy.mesh import parse_mesh

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 5, 5, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ('{name: r, from: "*", to: "*"}', {"r": math.inf}),
        ('{name: r, from: "*", to: "*", until: 2026-05-04}', {"r": MIDNIGHT}),
        ('{name: r, from: "*", to: "*", until: 2026-05-03}', {}),
        ('{name: r, from: "*", to: "*", mode: dry-run}', {}),
        ('{name: r, from: "*", to: "*", action: deny}', {}),
        ('{name: r, from: web, to: "*"}', {}),
        ('{name: r, from: "*", to: api}', {}),
    ],
)
def test_a_rule_that_allows_every_service_every_port_now(rule: str, told: dict[str, float]) -> None:
    text = f"trust_domain: shop.internal\nservices: {{web: {{}}, api: {{ports: 80}}}}\npolicy:\n  - {rule}\n"
    assert allow_all(parse_mesh(text, "mesh.yaml"), NOON) == told
