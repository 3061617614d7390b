"""host:port as a value: what is read, what is refused, and which addresses lead where."""

from __future__ import annotations

import re

import pytest

from sidecar.documents.address import Address, ca_address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:1", "::1", 1),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("db.mesh:5432", "db.mesh", 5432),
        (f"{'a.' * 126}a:80", "a." * 126 + "a", 80),  # 253 characters
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
    ("text", "why"),
    [
        ("80", "is no host:port, with a port"),
        (":80", "has no host: say which address"),
        ("::1:80", "an IPv6 address is written in brackets"),
    ],
)
def test_what_is_missing_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_address(text)


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


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://ca:8443", "ca", 8443),
        ("https://ca:8443/", "ca", 8443),
        ("https://ca", "ca", 443),
        ("https://ca.example.com/", "ca.example.com", 443),
        ("https://10.0.0.1:8443", "10.0.0.1", 8443),
        ("https://[2001:db8::1]:8443", "2001:db8::1", 8443),
        ("https://[2001:db8::1]", "2001:db8::1", 443),
    ],
)
def test_where_a_ca_is(url: str, host: str, port: int) -> None:
    assert ca_address(url) == Address(host, port)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ca:8443",
        "http://ca:8443",
        "HTTPS://ca:8443",
        "https:/ca",
        "https://",
        "https:///",
        "https://ca:8443/v1",
        "https://ca:8443//",
        "https://ca:8443?x",
        "https://ca#x",
        "https://user@ca:8443",
        "https://user:word@ca",
        "https://ca:0",
        "https://ca:99999",
        "https://ca:",
        "https://0.0.0.0:8443",
        "https://127.1:8443",
        "https://ca :8443",
        "https://ca\n:8443",
        "https://2001:db8::1",
    ],
)
def test_no_address_of_a_ca(url: str) -> None:
    with pytest.raises(ValueError, match="is no address of a CA: write it as https://ca:8443"):
        ca_address(url)
