"""The PROXY protocol header, against a parser that was written from the specification alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.spiffe import SpiffeId
from sidecar.transport.proxy_protocol import LOCAL, MAX_HEADER, End, HeaderTooLongError, Mode, bare_header, header

WEB = SpiffeId("shop.internal", ("web",))
BATCH = SpiffeId("shop.internal", ("batch", "web"))
CALLER: End = (IPv4Address("10.0.0.7"), 40_000)
HERE: End = (IPv4Address("10.0.0.9"), 8080)
CERTIFICATE = b"0\x82 a certificate"


@dataclass(frozen=True)
class Read:
    """A header as an app reads it: ``tlvs`` and those ``inside`` PP2_TYPE_SSL by type, and what follows it."""

    source: tuple[str, int]
    destination: tuple[str, int]
    tlvs: dict[int, bytes]
    client: int
    verify: int
    inside: dict[int, bytes]
    rest: bytes


def parse(data: bytes) -> Read:
    assert data[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    version_command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    assert version_command == 0x21, "version 2, PROXY"
    size = {0x11: 4, 0x21: 16}[family]
    body, rest = data[16 : 16 + length], data[16 + length :]
    assert len(body) == length
    source, destination = ip_address(body[:size]), ip_address(body[size : 2 * size])
    calling, called = struct.unpack("!HH", body[2 * size : 2 * size + 4])
    found = tlvs(body[2 * size + 4 :])
    ssl = found.get(0x20, bytes(5))
    return Read(
        (str(source), calling),
        (str(destination), called),
        found,
        ssl[0],
        int.from_bytes(ssl[1:5], "big"),
        tlvs(ssl[5:]),
        rest,
    )


def tlvs(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        kind, length = data[0], int.from_bytes(data[1:3], "big")
        assert kind not in found
        assert len(data) >= 3 + length
        found[kind], data = data[3 : 3 + length], data[3 + length :]
    return found


def test_conn_tells_the_addresses_and_nothing_else() -> None:
    assert header("conn", CALLER, HERE, WEB, CERTIFICATE) == (
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x07\x0a\x00\x00\x09\x9c\x40\x1f\x90"
    )


def test_tls_tells_the_judged_identity() -> None:
    read = parse(header("tls", CALLER, HERE, WEB, CERTIFICATE))
    assert (read.source, read.destination, read.rest) == (("10.0.0.7", 40_000), ("10.0.0.9", 8080), b"")
    assert (read.client, read.verify) == (0x07, 0)
    assert read.inside == {0x21: b"TLS 1.3", 0x22: b"web"}
    assert read.tlvs.keys() == {0x20, 0xE0}
    assert read.tlvs[0xE0] == b"spiffe://shop.internal/web"


def test_tls_full_tells_the_certificate_too() -> None:
    read = parse(header("tls-full", CALLER, HERE, WEB, CERTIFICATE))
    assert read.inside == {0x21: b"TLS 1.3", 0x22: b"web", 0x28: CERTIFICATE}


def test_an_identity_that_is_no_service_is_never_taken_for_one() -> None:
    read = parse(header("tls", CALLER, HERE, BATCH, CERTIFICATE))
    assert read.inside[0x22] == read.tlvs[0xE0] == b"spiffe://shop.internal/batch/web"


def test_ipv6() -> None:
    read = parse(header("tls", (IPv6Address("fd00::7"), 1), (IPv6Address("fd00::9"), 65535), WEB, CERTIFICATE))
    assert (read.source, read.destination) == (("fd00::7", 1), ("fd00::9", 65535))


def test_ends_of_two_families_are_no_connection() -> None:
    with pytest.raises(ValueError, match="one connection"):
        header("conn", CALLER, (IPv6Address("::1"), 1), WEB, CERTIFICATE)


@pytest.mark.parametrize(("size", "fits"), [(3900, True), (MAX_HEADER, False), (70_000, False)])
def test_what_no_app_reads_is_an_error_and_not_cut(size: int, fits: bool) -> None:
    if fits:
        assert parse(header("tls-full", CALLER, HERE, WEB, bytes(size))).inside[0x28] == bytes(size)
    else:
        with pytest.raises(HeaderTooLongError, match=f"of {MAX_HEADER}|apps read {MAX_HEADER}"):
            header("tls-full", CALLER, HERE, WEB, bytes(size))
    assert parse(header("tls", CALLER, HERE, WEB, bytes(size))).inside[0x22] == b"web"


def test_the_longest_header_is_exactly_the_bound() -> None:
    least = len(header("tls-full", CALLER, HERE, WEB, b""))
    assert len(header("tls-full", CALLER, HERE, WEB, bytes(MAX_HEADER - least))) == MAX_HEADER
    with pytest.raises(HeaderTooLongError):
        header("tls-full", CALLER, HERE, WEB, bytes(MAX_HEADER - least + 1))


def test_a_connection_of_the_sidecar_s_own_names_nobody() -> None:
    assert LOCAL == b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


SEGMENTS = st.text("abcXYZ019._-", min_size=1, max_size=40).filter(lambda text: text not in {".", ".."})
IDS = st.builds(SpiffeId, st.text("abc0.-_", min_size=1, max_size=60), st.lists(SEGMENTS, min_size=1).map(tuple))
PORTS = st.integers(0, 65535)


@given(
    mode=st.sampled_from(["conn", "tls", "tls-full"]),
    ends=st.one_of(
        *[st.tuples(st.tuples(st.ip_addresses(v=v), PORTS), st.tuples(st.ip_addresses(v=v), PORTS)) for v in (4, 6)]
    ),
    caller=IDS,
    certificate=st.binary(max_size=5000),
    said=st.binary(max_size=40),
)
def test_whatever_is_written_is_read_again_and_the_caller_s_bytes_follow(
    mode: Mode, ends: tuple[End, End], caller: SpiffeId, certificate: bytes, said: bytes
) -> None:
    try:
        made = header(mode, *ends, caller, certificate)
    except HeaderTooLongError:
        assert mode != "conn"
        assert len(certificate) + 2 * len(str(caller)) > MAX_HEADER - 100
        return
    assert len(made) <= MAX_HEADER
    read = parse(made + said)
    assert (read.source, read.destination) == tuple((str(ip), port) for ip, port in ends)
    assert read.rest == said
    assert read.tlvs.get(0xE0) == (None if mode == "conn" else str(caller).encode())
    assert read.inside.get(0x28) == (certificate if mode == "tls-full" else None)


def test_of_a_caller_without_tls_addresses_are_told_and_nothing_else() -> None:
    assert bare_header(CALLER, HERE) == header("conn", CALLER, HERE, WEB, CERTIFICATE)
    assert parse(bare_header(CALLER, HERE)).tlvs == {}
