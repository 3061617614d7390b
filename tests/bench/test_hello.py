"""What two ends agreed on, read from real hellos: OpenSSL's, made in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from tests.bench.errors import BenchError
from tests.bench.hello import Negotiated, read_hellos

AES_128, AES_256 = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"
LIBRARY: Any = vars(SSL)["_lib"]


def context(groups: str, cipher: str = AES_128, version: int = SSL.TLS1_3_VERSION) -> SSL.Context:
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(version)
    made.set_max_proto_version(version)
    made.set_tls13_ciphersuites(cipher.encode())
    assert LIBRARY.SSL_CTX_set1_curves_list(vars(made)["_context"], groups.encode()) == 1
    return made


def server_context(groups: str = "X25519", **options: Any) -> SSL.Context:
    made = context(groups, **options)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
    made.use_certificate(builder.sign(key, hashes.SHA256()))
    made.use_privatekey(key)
    return made


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> tuple[bytes, bytes]:
    """Everything that each of the two sent until both are done, and the client has read what comes after."""
    client.set_connect_state()
    server.set_accept_state()
    sent = [b"", b""]
    for _ in range(4):
        for index, (one, other) in enumerate(((client, server), (server, client))):
            try:
                one.do_handshake()
                one.recv(1)
            except SSL.WantReadError:
                pass
            try:
                data = one.bio_read(65536)
            except SSL.WantReadError:
                continue
            other.bio_write(data)
            sent[index] += data
    return sent[0], sent[1]


def hellos(client: SSL.Context, server: SSL.Context) -> tuple[bytes, bytes]:
    return shake_hands(SSL.Connection(client, None), SSL.Connection(server, None))


@pytest.mark.parametrize("group", ["X25519", "X25519MLKEM768", "P-256"])
@pytest.mark.parametrize("cipher", [AES_128, AES_256])
def test_group_and_cipher(group: str, cipher: str) -> None:
    found = read_hellos(*hellos(context(group, cipher), server_context(group, cipher=cipher)))
    assert found == Negotiated("TLS 1.3", cipher, group)


def test_a_retry_is_told_and_the_second_hello_counts() -> None:
    found = read_hellos(*hellos(context("X25519:P-256"), server_context("P-256")))
    assert found == Negotiated("TLS 1.3", AES_128, "P-256", retried=True)


def test_an_old_version_is_told() -> None:
    old = SSL.TLS1_2_VERSION
    groups = "X25519:P-256"  # before 1.3 they limit the certificate's curve too
    found = read_hellos(*hellos(context(groups, version=old), server_context(groups, version=old)))
    assert found.version == "TLS 1.2"


def test_a_resumed_session_is_told() -> None:
    client, server = context("X25519"), server_context("X25519")
    first = SSL.Connection(client, None)
    assert not read_hellos(*shake_hands(first, SSL.Connection(server, None))).resumes
    session = first.get_session()
    assert session is not None
    second = SSL.Connection(client, None)
    second.set_session(session)
    assert read_hellos(*shake_hands(second, SSL.Connection(server, None))).resumes


def test_it_does_not_matter_how_much_was_kept_of_what_follows() -> None:
    from_client, from_server = hellos(context("X25519"), server_context("X25519"))
    for kept in (0, 1, 4, 5, 100):
        size = 5 + int.from_bytes(from_server[3:5]) + kept
        assert read_hellos(from_client, from_server[:size]).group == "X25519"


@pytest.mark.parametrize(
    ("client", "server"),
    [(b"", b""), (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"), (b"\x16\x03\x01\x00\x05", b"\x16\x03\x03")],
)
def test_what_is_no_tls_is_refused(client: bytes, server: bytes) -> None:
    with pytest.raises(BenchError, match="no complete TLS hellos"):
        read_hellos(client, server)


def test_a_cut_hello_is_refused() -> None:
    from_client, from_server = hellos(context("X25519"), server_context("X25519"))
    with pytest.raises(BenchError):
        read_hellos(from_client, from_server[:60])
    with pytest.raises(BenchError):
        read_hellos(from_client[:60], from_server)
