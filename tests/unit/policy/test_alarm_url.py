"""Where alarms may go: https anywhere, plain http to this machine and private networks; everything else is refused."""

from __future__ import annotations

import pytest

from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from sidecar.policy.alarm_url import AlarmUrl, is_near, parse_alarm_url
from sidecar.policy.mesh import parse_mesh


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://hooks.example.com", AlarmUrl(True, Address("hooks.example.com", 443), "/")),
        ("https://hooks.example.com:8443/a/b?c=d&e", AlarmUrl(True, Address("hooks.example.com", 8443), "/a/b?c=d&e")),
        ("https://hooks.example.com?c", AlarmUrl(True, Address("hooks.example.com", 443), "/?c")),
        ("http://127.0.0.1:9093/", AlarmUrl(False, Address("127.0.0.1", 9093), "/")),
        ("http://10.1.2.3", AlarmUrl(False, Address("10.1.2.3", 80), "/")),
        ("http://[::1]:90/x", AlarmUrl(False, Address("::1", 90), "/x")),
        ("http://pager:90/x", AlarmUrl(False, Address("pager", 90), "/x")),
    ],
)
def test_a_url(text: str, expected: AlarmUrl) -> None:
    assert parse_alarm_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "hooks.example.com", "ftp://x/", "HTTPS://x/", "https://", "https:///x", "https://u:p@x/", "https://x/#f",
        "https://x/a b", "https://x/\r\nHost: y", "https://x/\n", "https://x:0/", "https://x:99999/", "https://0x7f.1/",
        "https://ü.example/", "http://8.8.8.8/", "http://[2001:4860:4860::8888]/", "http://0.0.0.0/",
        "https://x/" + "a" * 2000,
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"https|address"):
        parse_alarm_url(text)


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
)
def test_near(ip: str) -> None:
    assert is_near(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "172.32.0.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "0.0.0.0", "::"])
def test_far(ip: str) -> None:
    assert not is_near(ip)


MESH = "trust_domain: shop.internal\nservices:\n  api: {}\n"


def test_in_the_mesh_file() -> None:
    assert parse_mesh(MESH, "mesh.yaml").alarm is None
    found = parse_mesh(f"{MESH}alarm: {{url: 'https://x/'}}\n", "mesh.yaml").alarm
    assert found is not None
    assert found.url == "https://x/"
    with pytest.raises(UsageError, match=r"mesh.yaml:4: alarm.url: .*plain http goes to loopback"):
        parse_mesh(f"{MESH}alarm: {{url: 'http://8.8.8.8/'}}\n", "mesh.yaml")
    with pytest.raises(UsageError, match=r"alarm"):
        parse_mesh(f"{MESH}alarm: {{}}\n", "mesh.yaml")


def test_instances_in_the_mesh_file() -> None:
    assert parse_mesh(MESH, "mesh.yaml").services["api"].instances == 1
    assert parse_mesh(MESH.replace("{}", "{instances: 3}"), "mesh.yaml").services["api"].instances == 3
    for wrong in ("0", "61", "two", "1.5"):
        with pytest.raises(UsageError, match="instances"):
            parse_mesh(MESH.replace("{}", f"{{instances: {wrong}}}"), "mesh.yaml")
