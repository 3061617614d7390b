"""Who calls whom, and how much: what is counted of an edge, and that there are never more than so many."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.observe.traffic import MAX_EDGES, OTHERS, Edge, Edges, Traffic


@dataclass(eq=False)
class Carried:
    to_app: int = 0
    from_app: int = 0


def test_what_was_opened_and_has_not_ended_is_live() -> None:
    traffic = Traffic()
    traffic.opened = 3
    traffic.ended[Reason.OK] += 1
    traffic.ended[Reason.APP_RESET] += 1
    traffic.refused[Reason.POLICY_DENIED] += 5
    assert traffic.live == 1, "a refused connection was never opened"


def test_bytes_count_while_they_flow_and_never_fall() -> None:
    traffic, one, other = Traffic(), Carried(), Carried()
    traffic.begin(one)
    traffic.begin(other)
    one.to_app, one.from_app, other.to_app = 3, 5, 7
    assert (traffic.to_app, traffic.from_app) == (10, 5)
    traffic.finish(one)
    assert (traffic.to_app, traffic.from_app) == (10, 5)
    other.from_app += 1
    assert (traffic.to_app, traffic.from_app) == (10, 6)
    traffic.finish(other)
    assert (traffic.to_app, traffic.from_app) == (10, 6)


@pytest.mark.parametrize(
    ("fields", "edge"),
    [
        ({"peer_id": "spiffe://shop.internal/web", "rule": "r"}, Edge("inbound", "web", "http", "r")),
        ({"peer_id": "spiffe://shop.internal/batch/night"}, Edge("inbound", "batch/night", "http", "")),
        ({}, Edge("inbound", "", "http", "")),
        ({"unverified": {"uris": ["spiffe://shop.internal/web"]}}, Edge("inbound", "", "http", "")),
        ({"direction": "outbound", "upstream": "db:5432"}, Edge("outbound", "db", "db:5432", "")),
        ({"direction": "outbound", "upstream": "db:a or mq:b"}, Edge("outbound", "", "db:a or mq:b", "")),
        ({"direction": "outbound"}, Edge("outbound", "", "", "")),
    ],
)
def test_an_edge_has_verified_names_only(fields: dict[str, object], edge: Edge) -> None:
    record = ConnectionRecord("inbound", "api", "http", 0.0, upstream="127.0.0.1:8081")
    for name, value in fields.items():
        setattr(record, name, value)
    if "direction" in fields:
        record.upstream = fields.get("upstream")  # type: ignore[assignment]
    assert record.edge == edge


def test_beyond_so_many_the_others_share_one_for_each_port() -> None:
    edges = Edges()
    for number in range(MAX_EDGES):
        edges[Edge("inbound", f"s{number}", "http", "r")].opened += 1
    for number in range(1000):
        edges[Edge("inbound", f"more{number}", "http", f"r{number}")].opened += 1
        edges[Edge("inbound", f"more{number}", "other", "")].opened += 1
    assert len(edges) == MAX_EDGES + 2
    assert edges[Edge("inbound", OTHERS, "http", "")].opened == 1000
    assert edges[Edge("inbound", "s7", "http", "r")].opened == 1, "who was there first keeps its own"


def test_an_edge_is_found_again() -> None:
    edges, edge = Edges(), Edge("outbound", "db", "db:5432", "r")
    assert edges[edge] is edges[edge]
    assert len(edges) == 1
