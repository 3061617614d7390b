"""Ports: each source in its turn, and what is left is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Text, find_edges, find_mentions
from sidecar.inject.ports import Port, infer_ports, require_ports
from sidecar.inject.visibility import find_apps
from tests.inject.applications import application


def ports(
    db: dict[str, Any],
    web: dict[str, Any] | None = None,
    text: Text | None = None,
    dockerfile: str | None = None,
    given: dict[str, tuple[int, ...]] | None = None,
) -> tuple[Port, ...]:
    whole = application({"db": db, "web": web or {}})
    apps = find_apps(whole)
    mentions = find_mentions(whole, apps, {"web": (text,)} if text else {})
    return infer_ports(apps, mentions, {"db": dockerfile} if dockerfile else {}, given or {})["db"]


EVERYTHING: dict[str, Any] = {
    "expose": ["1001"],
    "command": "--port 1003",
    "healthcheck": {"test": "curl localhost:1004"},
    "image": "postgres",
}
CALLER = {"environment": {"X": "db:1002"}}


def test_in_this_order() -> None:
    text, dockerfile = Text("f", "db:1005", "shared"), "FROM postgres\nEXPOSE 1006"
    left = dict(EVERYTHING)
    assert ports(left, {}, text, dockerfile) == (Port(1001, "ports or expose"),)
    del left["expose"]
    assert ports(left, CALLER, text, dockerfile) == (Port(1002, "environment X of web"),)
    assert ports(left, {}, text, dockerfile) == (Port(1003, "its command"),)
    del left["command"]
    assert ports(left, {}, text, dockerfile) == (Port(1004, "its health check"),)
    del left["healthcheck"]
    assert ports(left, {}, text, dockerfile) == (Port(1005, "f:1 of web"),)
    assert ports(left, {}, None, dockerfile) == (Port(1006, "its Dockerfile"),)
    assert ports(left, {}, None, "FROM postgres") == (Port(5432, "what its image is known for"),)
    assert ports(left) == (Port(5432, "what its image is known for"),)
    assert ports({"image": "example/x"}) == ()


def test_what_callers_write_is_there_besides_what_is_declared() -> None:
    assert [it.number for it in ports({"expose": ["1001"]}, CALLER)] == [1001, 1002]


def test_a_store_is_called_at_its_own_port_whatever_is_published() -> None:
    broker = {"image": "rabbitmq", "ports": [{"target": 15672, "protocol": "tcp"}]}
    assert [it.number for it in ports(broker, {"depends_on": ["db"]})] == [5672, 15672]
    assert [it.number for it in ports(broker)] == [15672]
    assert [it.number for it in ports(broker, {"environment": {"X": "db:5673"}})] == [5673, 15672]
    assert [it.number for it in ports({"image": "nginx", "expose": ["8080"]}, {"depends_on": ["db"]})] == [8080]


def test_udp_is_no_port() -> None:
    assert [it.number for it in ports({"expose": ["8125/udp", "8126"]}, {"environment": {"X": "db:8125"}})] == [8126]


def test_an_answer_is_final() -> None:
    assert ports(EVERYTHING, CALLER, given={"db": (7,)}) == (Port(7, "given"),)
    assert ports(EVERYTHING, given={"db": ()}) == ()


def test_what_is_left_is_asked_for_in_one_message() -> None:
    whole = application({"a": {}, "b": {}, "web": {"depends_on": ["a", "b"], "environment": {"HOST": "b"}}})
    apps = find_apps(whole)
    mentions = find_mentions(whole, apps, {})
    edges, none = find_edges(mentions), infer_ports(apps, mentions, {}, {})
    with pytest.raises(UsageError) as asked:
        require_ports(edges, none, {})
    assert str(asked.value).splitlines() == [
        "the ports of these services were not found: add --port a=… --port b=… "
        "(=none for a service that listens on none)",
        "a: called by web (depends_on)",
        "b: called by web (depends_on)",
    ]
    require_ports(edges, none, {"a": (), "b": ()})
    with pytest.raises(UsageError, match="--port b=… "):
        require_ports(edges, none, {"a": ()})
