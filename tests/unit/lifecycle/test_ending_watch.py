"""Which calls in use end with a rule: found, told once, and told again when they change."""

from __future__ import annotations

from datetime import timedelta

import trio
from trio.testing import MockClock

from sidecar.identity.spiffe import SpiffeId
from sidecar.lifecycle.ending_watch import LOOK_SECONDS, MAX_SHOWN, EndingWatch, calls_of, told
from sidecar.observe.traffic import OTHERS, Edge
from sidecar.policy.ending import Ending
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.names import PLAINTEXT, Target
from sidecar.proxy.node import Node
from tests.unit.proxy.test_node import AUTHORITY, node

UNTIL = AUTHORITY.now.date() + timedelta(days=3)
MESH = f"""\
trust_domain: shop.internal
services: {{web: {{}}, api: {{ports: {{http: 80}}}}, db: {{ports: {{sql: 5432}}}}}}
policy:
  - {{name: observe, from: "*", to: "*", until: {UNTIL}}}
"""
WEB_API = Edge("inbound", "web", "http", "observe")
API_DB = Edge("outbound", "db", "db:sql", "observe")


class Lines:
    """A log that keeps its warnings."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def warning(self, event: str, *, service: str, message: str) -> None:
        assert service == "api"
        self.told.append((event, message))


def watched(text: str = MESH, *edges: Edge) -> tuple[Node, EndingWatch, Lines]:
    here, lines = node(parse_mesh(text, "mesh.yaml")), Lines()
    here.log = lines  # type: ignore[assignment]
    for edge in edges:
        here.metrics.edges[edge].opened += 1
    return here, EndingWatch(here), lines


async def test_what_is_in_use_and_ends() -> None:
    here, watch, lines = watched(MESH, WEB_API, API_DB)
    here.metrics.edges[Edge("inbound", "db", "http", "")].refused["policy_denied"] += 1  # type: ignore[index]
    await watch.look()
    assert [one.as_json() for one in watch.calls] == [
        {"from": "api", "to": "db:sql", "rule": "observe", "until": str(UNTIL)},
        {"from": "web", "to": "api:http", "rule": "observe", "until": str(UNTIL)},
    ]
    assert lines.told == [
        (
            "rule_ends_soon",
            "refused soon, when the last rule that allows it runs out: "
            f"api -> db:sql (rule 'observe', until {UNTIL}), web -> api:http (rule 'observe', until {UNTIL}); "
            "`sidecar policy learn` adds rules",
        )
    ]


async def test_what_another_rule_allows_does_not_end() -> None:
    _, watch, lines = watched(MESH + '  - {from: web, to: "api:http"}\n', WEB_API)
    await watch.look()
    assert (watch.calls, lines.told) == ((), [])


async def test_nothing_ends_soon() -> None:
    _, watch, lines = watched(MESH.replace(str(UNTIL), "2999-01-01"), WEB_API)
    await watch.look()
    assert (watch.calls, lines.told) == ((), [])


async def test_it_is_told_again_when_it_changes(autojump_clock: MockClock) -> None:
    here, watch, lines = watched(MESH, WEB_API)
    with trio.move_on_after(LOOK_SECONDS * 3.5):
        await watch.run()
    assert len(lines.told) == 1
    here.metrics.edges[API_DB].opened += 1
    with trio.move_on_after(LOOK_SECONDS * 1.5):
        await watch.run()
    assert len(lines.told) == 2


def test_edges_that_name_no_call_are_left_out() -> None:
    own = parse_mesh(MESH, "m").identity("api")
    edges = [WEB_API, Edge("inbound", OTHERS, "http", ""), Edge("inbound", "", "http", "")]
    edges.append(Edge("outbound", "", "a:1 or b:1", ""))
    assert [(str(source), target) for (source, target), _ in calls_of([*edges, API_DB], own)] == [
        ("spiffe://shop.internal/web", Target("api", "http")),
        ("spiffe://shop.internal/api", Target("db", "sql")),
    ]


def test_a_long_list_is_cut() -> None:
    line = told(tuple(Ending(f"a{number}", "b:1", "r", UNTIL) for number in range(MAX_SHOWN + 2)))
    assert line is not None
    assert "a7 -> b:1" in line
    assert "a8" not in line
    assert " and 2 more; " in line
    assert told(()) is None


def test_callers_without_tls_are_one_caller() -> None:
    [(call, _)] = calls_of([Edge("inbound", "plaintext", "http", "old")], SpiffeId("shop.internal", ("api",)))
    assert call == (PLAINTEXT, Target("api", "http"))
