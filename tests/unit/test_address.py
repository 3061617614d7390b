"""host:port as a value: what is read, what is refused, and which addresses lead where."""

from __future__ import annotations

import re

import pytest

from sidecar.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:1", "::1", 1),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("db.mesh:5432", "db.mesh", 5432),
        ("my_app-1:80", "my_app-1", 80),
        ("1password:80", "1password", 80),
        ("a.0x1g:80", "a.0x1g", 80),
    ],
)
def test_address(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["127.0.0.1:0", "0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80", "[::]:0"])
def test_only_to_listen_on(text: str) -> None:
    assert str(parse_address(text, listening=True)) == text
    with pytest.raises(ValueError, match="can be listened on, not connected to"):
        parse_address(text)


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            ":80",
            "80",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:-1",
            "localhost:65536",
            "a:999999",
        ),
        *("::1:80", "[::1]", "[::1]80", "[]:80", "[127.0.0.1]:80", "[::1%]:80", "[fe80::1%a b]:80", "[a]:80", "a:b:80"),
        *(
            "unix:/run/app.sock",
            "/run/app.sock",
            "http://a:80",
            "a b:80",
            "-a:80",
            "a-:80",
            "a..b:80",
            ".a:80",
            "a.:80",
        ),
        *("user@a:80", "a/b:80", "é:80", "a:８０", "a:80 ", " a:80", "*:80", f"{'a' * 64}:80", f"{'a.' * 127}a:80"),
        # What a resolver takes for an IPv4 address, though it does not look like one
        *(
            "0:80",
            "127.1:80",
            "2130706433:80",
            "0x7f.1:80",
            "0x7f000001:80",
            "0177.0.0.1:80",
            "1.2.3.4.5:80",
            "256.1.1.1:80",
            "a.0x:80",
        ),
    ],
)
def test_no_address(text: str, *, listening: bool) -> None:
    with pytest.raises(ValueError, match=re.escape(ascii(text))[:40]):
        parse_address(text, listening=listening)


@pytest.mark.parametrize(
    ("host", "wildcard", "loopback"),
    [
        ("0.0.0.0", True, False),
        ("::", True, False),
        ("::ffff:0.0.0.0", True, False),
        ("127.0.0.1", False, True),
        ("127.9.9.9", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("localhost", False, True),
        ("LOCALHOST", False, True),
        ("10.0.0.1", False, False),
        ("localhost.evil", False, False),
    ],
)
def test_kinds_of_addresses(host: str, *, wildcard: bool, loopback: bool) -> None:
    address = Address(host, 80)
    assert (address.is_wildcard, address.is_loopback) == (wildcard, loopback)
