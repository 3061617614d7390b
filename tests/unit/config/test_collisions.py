"""Listeners in one place, and connections that would run in circles."""

from __future__ import annotations

import pytest

from sidecar.documents.address import parse_address
from tests.specimens import HEAD, mistakes, parsed


def wired(inbound: list[tuple[str, str]], outbound: list[tuple[str, str]], admin: str = "127.0.0.1:9999") -> str:
    lines = [f"- {{port: http, listen: '{listen}', app: '{app}'}}" for listen, app in inbound]
    out = [f"- {{to: db, listen: '{listen}', peers: '{peer}', allow_from: 10.0.0.0/8}}" for listen, peer in outbound]
    return "\n".join([HEAD + "inbound:", *lines, "outbound:", *out, f"admin: {{listen: '{admin}'}}"])


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.1:81", False),
        ("10.0.0.1:80", "10.0.0.2:80", False),
        ("10.0.0.1:0", "10.0.0.1:0", False),
        ("0.0.0.0:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "0.0.0.0:80", True),
        ("0.0.0.0:80", "[fd00::1]:80", False),
        ("[::]:80", "[fd00::1]:80", True),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "10.0.0.1:80", True),
        ("[::]:80", "0.0.0.0:80", True),
        ("0.0.0.0:80", "[::]:80", True),
        ("here:80", "[::]:80", True),
        ("0.0.0.0:80", "0.0.0.0:80", True),
        ("[::]:80", "[::]:80", True),
        ("0.0.0.0:80", "localhost:80", True),
        ("0.0.0.0:80", "somewhere:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("LocalHost:80", "[::1]:80", True),
        ("127.0.0.2:80", "127.0.0.1:80", False),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", True),
        ("here:80", "HERE:80", True),
        ("here:80", "there:80", False),
    ],
)
def test_two_listeners_in_one_place(one: str, other: str, *, collide: bool) -> None:
    text = wired([(one, "app:1"), (other, "app:2")], [])
    if not collide:
        assert len(parsed(text).inbound) == 2
    else:
        host = parse_address(other, listening=True)
        taken = parse_address(one, listening=True)
        assert mistakes(text) == [
            f"s.yaml:6: inbound[1].listen: '{host}' is taken already by inbound[0].listen ('{taken}')"
        ]


def test_listeners_of_all_kinds_collide() -> None:
    assert mistakes(wired([("0.0.0.0:80", "app:1")], [("10.0.0.1:80", "db:1")], "127.0.0.1:80")) == [
        "s.yaml:7: outbound[0].listen: '10.0.0.1:80' is taken already by inbound[0].listen ('0.0.0.0:80')",
        "s.yaml:8: admin.listen: '127.0.0.1:80' is taken already by inbound[0].listen ('0.0.0.0:80')",
    ]


def test_where_the_mesh_asks_for_metrics_is_a_listener_too() -> None:
    text = wired([("10.0.0.1:80", "app:1")], [("10.0.0.1:81", "10.0.0.1:82")])
    text = text.replace("admin: {", "admin: {mesh_listen: '10.0.0.1:80', ")
    (taken,) = mistakes(text)
    assert taken == "s.yaml:8: admin.mesh_listen: '10.0.0.1:80' is taken already by inbound[0].listen ('10.0.0.1:80')"
    assert mistakes(text.replace("mesh_listen: '10.0.0.1:80'", "mesh_listen: '10.0.0.1:82'")) == [
        "s.yaml:7: outbound[0].peers: '10.0.0.1:82' is this sidecar's own admin.mesh_listen ('10.0.0.1:82'): a loop"
    ]


@pytest.mark.parametrize(
    ("listen", "app", "loop"),
    [
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.1:81", False),
        ("10.0.0.1:80", "10.0.0.2:80", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.2:80", True),
        ("0.0.0.0:80", "localhost:80", True),
        ("0.0.0.0:80", "[::1]:80", True),
        ("0.0.0.0:80", "10.0.0.1:80", False),  # another container's
        ("0.0.0.0:80", "app:80", False),
        ("[::]:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "localhost:80", True),
        ("localhost:80", "[::1]:80", True),
        ("[::1]:80", "127.0.0.1:80", False),
        ("[::1]:80", "localhost:80", True),
        ("here:80", "HERE:80", True),
    ],
)
def test_a_loop_to_its_own_listener(listen: str, app: str, *, loop: bool) -> None:
    text = wired([(listen, app)], [])
    if loop:
        assert mistakes(text) == [
            f"s.yaml:5: inbound[0].app: '{app}' is this sidecar's own inbound[0].listen ('{listen}'): a loop"
        ]
    else:
        assert str(parsed(text).inbound[0].apps[0]) == app


def test_loops_between_all_kinds() -> None:
    text = wired([("0.0.0.0:80", "127.0.0.1:9999"), ("10.0.0.7:81", "10.0.0.9:82")], [("10.0.0.9:82", "10.0.0.9:80")])
    assert mistakes(text) == [
        "s.yaml:5: inbound[0].app: '127.0.0.1:9999' is this sidecar's own admin.listen ('127.0.0.1:9999'): a loop",
        "s.yaml:6: inbound[1].app: '10.0.0.9:82' is this sidecar's own outbound[0].listen ('10.0.0.9:82'): a loop",
        "s.yaml:8: outbound[0].peers: '10.0.0.9:80' is this sidecar's own inbound[0].listen ('0.0.0.0:80'): a loop",
    ]
