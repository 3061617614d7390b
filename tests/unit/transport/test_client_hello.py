"""The ALPN protocols of a ClientHello: of real ones, of ours and of others', and of everything that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.spiffe import SpiffeId
from sidecar.transport.client_hello import FIRST_BYTES, is_bare, missing_bytes, offered_protocols
from sidecar.transport.tls import Context
from tests.beds.certificates import Authority, key_pair


def hello(*protocols: bytes, server_name: bytes | None = None) -> bytes:
    """The ClientHello of plain OpenSSL."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    connection.set_connect_state()
    if protocols:
        connection.set_alpn_protos(list(protocols))
    if server_name is not None:
        connection.set_tlsext_host_name(server_name)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


def test_of_a_sidecar() -> None:
    context = Context(key_pair(Authority().leaf("web")), VerifyParams("shop.internal"))
    channel = context.client(["mesh/1/http"], SpiffeId("shop.internal", ("api",)), utc_now)
    channel.step(b"")
    assert offered_protocols(bytes(channel.take_all())) == [b"mesh/1/http"]


@pytest.mark.parametrize("protocols", [(), (b"h2", b"http/1.1"), (b"mesh/1/http",), (b"x" * 255, b"mesh/1/a")])
@pytest.mark.parametrize("server_name", [None, b"mesh.example"])
def test_of_openssl(protocols: tuple[bytes, ...], server_name: bytes | None) -> None:
    assert offered_protocols(hello(*protocols, server_name=server_name)) == list(protocols)


def test_what_follows_does_not_matter() -> None:
    assert offered_protocols(hello(b"h2") + b"\x17\x03\x03 more") == [b"h2"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x16",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x02" + hello(b"h2")[6:],
        b"\x17" + hello(b"h2")[1:],
    ],
)
def test_what_is_none(data: bytes) -> None:
    assert offered_protocols(data) == []


def test_a_part_of_one_offers_what_has_arrived() -> None:
    whole = hello(b"mesh/1/http")
    found = [offered_protocols(whole[:size]) for size in range(len(whole))]
    assert [] in found
    assert all(b"mesh/1/http".startswith(name) for names in found for name in names)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_nothing_makes_it_fail(noise: bytes, at: int) -> None:
    whole = _HELLO
    offered_protocols(noise)
    offered_protocols(whole[:at] + noise)
    offered_protocols(whole[:at] + noise + whole[at + len(noise) :])


_HELLO = hello(b"mesh/1/http", server_name=b"api.example")


# -- how much is missing -------------------------------------------------------------------------------------------------


def test_a_hello_is_missing_bytes_until_it_is_whole() -> None:
    whole = hello(b"mesh/1/http")
    assert [missing_bytes(whole[:at]) for at in range(5)] == [5, 4, 3, 2, 1]
    assert [missing_bytes(whole[:at]) for at in range(5, len(whole))] == [
        len(whole) - at for at in range(5, len(whole))
    ]
    assert missing_bytes(whole) == missing_bytes(whole + b"more") == 0


@pytest.mark.parametrize(
    "data", [b"G", b"GET /", b"\x15\x03", b"\x80\x2e\x01", bytes((22, 3, 1, 64, 1)), bytes((22, 3, 1, 0, 0))]
)
def test_for_what_begins_no_hello_nothing_is_waited_for(data: bytes) -> None:
    assert missing_bytes(data) == 0


def test_the_longest_record_is_waited_for() -> None:
    longest = bytes((22, 3, 1, 64, 0))
    assert missing_bytes(longest) == FIRST_BYTES - 5


@given(st.binary(max_size=40))
def test_whatever_arrives(data: bytes) -> None:
    assert 0 <= missing_bytes(data) <= FIRST_BYTES


def test_one_byte_tells_tls_from_anything_else() -> None:
    assert [is_bare(said) for said in (b"", b"\x16", b"\x16GET")] == [False, False, False]
    assert all(is_bare(bytes((first,)) + b"\x16") for first in range(256) if first != 22)
