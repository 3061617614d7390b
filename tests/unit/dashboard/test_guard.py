"""Who may ask: each check beside what it lets through."""

from __future__ import annotations

import pytest

from sidecar.dashboard.guard import HEADERS, Guard, hosts_of

GUARD = Guard(hosts_of(8000), "token")
MINE = {"host": "127.0.0.1:8000", "authorization": "Bearer token"}


def test_a_browser_leaves_http_s_own_port_out() -> None:
    guard = Guard(hosts_of(80), "token")
    for host in ("127.0.0.1", "127.0.0.1:80"):
        assert guard.fault(MINE | {"host": host, "origin": f"http://{host}"}, secret=True) is None


@pytest.mark.parametrize("host", ["127.0.0.1:8000"])
def test_our_own_hosts(host: str) -> None:
    assert GUARD.fault({**MINE, "host": host}, secret=True) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:8001",
        "localhost",
        "localhost:8000",
        "[::1]:8000",
        "evil.example:8000",
        "127.0.0.1.evil.example:8000",
        "127.0.0.2:8000",
    ],
)
def test_another_host_is_dns_rebinding_or_a_mistake(host: str) -> None:
    assert (GUARD.fault({**MINE, "host": host}, secret=False) or (0,))[0] == 421
    without = {"authorization": "Bearer token"}
    assert (GUARD.fault(without, secret=False) or (0,))[0] == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:8001", "https://127.0.0.1:8000", "http://localhost:8000", ""],
)
def test_another_origin(origin: str) -> None:
    assert (GUARD.fault({**MINE, "origin": origin}, secret=True) or (0,))[0] == 403
    assert (GUARD.fault({**MINE, "origin": origin}, secret=False) or (0,))[0] == 403


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "HTTP://127.0.0.1:8000"])
def test_our_own_origin(origin: str) -> None:
    assert GUARD.fault({**MINE, "origin": origin}, secret=True) is None


@pytest.mark.parametrize(("site", "status"), [("none", 0), ("same-origin", 0), ("same-site", 403), ("cross-site", 403)])
def test_what_the_browser_says_of_the_page_that_asks(site: str, status: int) -> None:
    assert (GUARD.fault({**MINE, "sec-fetch-site": site}, secret=True) or (0,))[0] == status


@pytest.mark.parametrize(
    "given", ["", "token", "Bearer ", "Bearer toke", "Bearer tokens", "bearer token", "Bearer tökén", "Basic token"]
)
def test_another_token(given: str) -> None:
    assert (GUARD.fault({**MINE, "authorization": given}, secret=True) or (0,))[0] == 401


def test_the_page_itself_is_no_secret() -> None:
    assert GUARD.fault({"host": "127.0.0.1:8000"}, secret=False) is None
    assert (GUARD.fault({"host": "127.0.0.1:8000"}, secret=True) or (0,))[0] == 401


def test_the_token_is_in_no_repr() -> None:
    assert "token'" not in repr(GUARD)


def test_what_every_answer_forbids() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "://" not in policy
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["Referrer-Policy"] == "no-referrer"
