"""What is sent to the CA: CSRs that ask for more than a key, bodies that are none, verbs and paths that there are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from certs.protocol.csr import MAX_CSR_BYTES
from sidecar.transport import sockets
from sidecar.transport.http1 import MAX_BODY_BYTES, MAX_HEAD_BYTES, REQUEST_SECONDS
from tests.beds.asking import ca_desk, names_of, parse_answer
from tests.beds.ca_files import DOMAIN
from tests.beds.certificates import CA_USAGE, csr, ec_key, pem_of, raw, raw_names, rsa_key

WEB, API = (f"spiffe://{DOMAIN}/{name}" for name in ("web", "api"))


def altered(text: str) -> str:
    """The same CSR, its last byte, which is of the signature, changed."""
    der = bytearray(x509.load_pem_x509_csr(text.encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return pem_of(bytes(der))


def with_a_stolen_key() -> str:
    """Somebody else's public key in a CSR that is signed with our own."""
    ours, theirs = (ec_key() for _ in range(2))
    mine, stolen = (
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (ours, theirs)
    )
    der = x509.load_pem_x509_csr(csr(key=ours).encode()).public_bytes(Encoding.DER).replace(mine, stolen)
    return pem_of(bytes(der))


EKU, SAN = ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME
BAD_CSRS: dict[str, Any] = {
    "another service's URI": lambda: csr(uris=[API]),
    "the CA's URI": lambda: csr(uris=[f"spiffe://{DOMAIN}/mesh/ca"]),
    "two URIs, ours first": lambda: csr(uris=[WEB, API]),
    "two URIs, ours last": lambda: csr(uris=[API, WEB]),
    "ours twice": lambda: csr(uris=[WEB, WEB]),
    "another trust domain": lambda: csr(uris=["spiffe://evil.internal/web"]),
    "a DNS name": lambda: csr(names=[x509.DNSName("web")]),
    "a DNS name beside ours": lambda: csr(uris=[WEB], names=[x509.DNSName("api")]),
    "an e-mail address": lambda: csr(uris=[WEB], names=[x509.RFC822Name("a@b.c")]),
    "NUL in the URI": lambda: csr(extensions=[raw(SAN, raw_names(uris=[WEB.encode() + b"\0.evil"]))]),
    "no ASCII in the URI": lambda: csr(extensions=[raw(SAN, raw_names(uris=["spiffe://shop.internal/wеb".encode()]))]),
    "a SAN of nothing": lambda: csr(extensions=[raw(SAN, b"\x30\x00")]),
    "a subject": lambda: csr(cn="web"),
    "another's subject": lambda: csr(uris=[WEB], cn="api"),
    "cA=true": lambda: csr(extensions=[(x509.BasicConstraints(ca=True, path_length=None), True)]),
    "cA=false": lambda: csr(extensions=[(x509.BasicConstraints(ca=False, path_length=None), True)]),
    "keyCertSign": lambda: csr(extensions=[(CA_USAGE, True)]),
    "an EKU": lambda: csr(extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)]),
    "a malformed EKU": lambda: csr(extensions=[raw(EKU, b"\x30\x03\x06\x05")]),
    "an empty EKU": lambda: csr(extensions=[raw(EKU, b"")]),
    "a malformed SAN": lambda: csr(extensions=[raw(SAN, b"\x30\x84\xff\xff\xff\xff")]),
    "an unknown extension": lambda: csr(extensions=[raw(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")]),
    "an attribute": lambda: csr(
        attributes=[(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"valid for ten years, please")]
    ),
    "RSA": lambda: csr(key=rsa_key(2048)),
    "a weak key": lambda: csr(key=rsa_key(1024)),
    "another curve": lambda: csr(key=ec.generate_private_key(ec.SECP384R1())),
    "Ed25519": lambda: pem_of(
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
    ),
    "a weak hash": lambda: pem_of(
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(ec_key(), hashes.SHA224())
    ),
    "an altered signature": lambda: altered(csr()),
    "somebody else's key": with_a_stolen_key,
    "a certificate": lambda: csr().replace("CERTIFICATE REQUEST", "CERTIFICATE"),
    "no PEM": lambda: "please",
    "nothing": lambda: "",
    "not ASCII": lambda: "é" * 50,
    "too large": lambda: csr() + " " * MAX_CSR_BYTES,
    "one that is large itself": lambda: csr(uris=[f"{WEB}{number}" for number in range(500)]),
}


@pytest.mark.parametrize("bend", BAD_CSRS.values(), ids=BAD_CSRS.keys())
async def test_a_csr_that_asks_for_anything_but_a_key_is_refused_and_not_corrected(bend: Any, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token = desk.make_credential("web")
        answer = await desk.denied("bad_csr", desk.enrol("web", token, bend()))
        assert answer.said["message"].isprintable()
        await desk.denied("bad_csr", desk.renew(desk.keys("web"), bend()))
        assert (await desk.enrol("web", token)).status == 200, "and the token is not spent by it"


@pytest.mark.parametrize("uris", [[], [WEB]], ids=["nothing", "our own URI"])
async def test_a_csr_that_asks_for_nothing_or_for_what_it_gets_anyway(uris: list[str], tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        leaf = (await desk.enrol("web", desk.make_credential("web"), csr(uris=uris))).certificate
        assert names_of(leaf) == [WEB, "web"]
        assert list(leaf.subject) == []
        assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


# -- verbs and paths ---------------------------------------------------------------------------------------------------

ANYTHING = b'{"service": "web"'


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("PUT", "/v1/enrol", 405),
        ("GET", "/v1/enrol", 405),
        ("HEAD", "/v1/enrol", 405),
        ("post", "/v1/enrol", 405),
        ("FOO", "/v1/renew", 405),
        ("TRACE", "/v1/renew", 405),
        ("CONNECT", "evil.example:443", 404),
        ("OPTIONS", "*", 404),
        ("GET", "http://evil.example/v1/bundle", 404),
        ("GET", "//evil.example/v1/bundle", 404),
        ("POST", "/v1/enrol/", 404),
        ("POST", "/v1/../v1/enrol", 404),
        ("POST", "/v1/%65nrol", 404),
        ("POST", "/V1/ENROL", 404),
        ("POST", "/v2/enrol", 404),
        ("POST", "/", 404),
    ],
)
async def test_an_unknown_verb_or_path_is_answered_before_anything_else_is_looked_at(
    method: str, target: str, status: int, tmp_path: Path
) -> None:
    async with ca_desk(tmp_path) as desk:
        keys = desk.keys("web")
        for body in (b"", ANYTHING, b"\0" * 1000):
            answer = await desk.ask(method, target, body, keys)
            assert answer.status == status
            assert (answer.body == b"") == (method == "HEAD")
            assert answer.headers["connection"] == "close"
        assert not desk.log.events("denied")
        await desk.honest()


async def test_a_body_that_is_announced_for_no_path_is_not_waited_for(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        raw_answer = await desk.say(b"POST /nowhere HTTP/1.1\r\nHost: ca\r\nContent-Length: 999999999\r\n\r\n")
        assert parse_answer(raw_answer).status == 404
        await desk.honest()


async def test_a_body_that_is_announced_too_large_is_not_waited_for(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        head = b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nContent-Length: %d\r\n\r\n"
        with trio.fail_after(REQUEST_SECONDS / 2):
            assert parse_answer(await desk.say(head % (MAX_BODY_BYTES + 1))).status == 413
        await desk.honest()


# -- bodies ------------------------------------------------------------------------------------------------------------

GOOD = {"service": "web", "pass": "x", "csr": "y"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 60_000,
        b"\xff\xfe",
        json.dumps({**GOOD, "identity": API}).encode(),
        json.dumps({**GOOD, "ttl": "87600h"}).encode(),
        json.dumps({**GOOD, "csr": ["y"]}).encode(),
        json.dumps({**GOOD, "pass": None}).encode(),
        json.dumps({**GOOD, "service": {"$ne": ""}}).encode(),
        json.dumps({"service": "web", "pass": "x"}).encode(),
    ],
    ids=[
        "none",
        "empty",
        "list",
        "null",
        "deep",
        "no UTF-8",
        "identity",
        "ttl",
        "list CSR",
        "null pass",
        "object",
        "less",
    ],
)
async def test_a_body_that_is_not_exactly_what_is_asked_for(body: bytes, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        await desk.denied("bad_request", desk.ask("POST", "/v1/enrol", body))


async def test_a_megabyte_is_refused_by_its_length_and_by_its_bytes(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        large = json.dumps({**GOOD, "csr": "A" * (1 << 20)}).encode()
        assert (await desk.ask("POST", "/v1/enrol", large)).status == 413
        chunk = b"2000\r\n" + b"A" * 0x2000 + b"\r\n"
        head = b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert parse_answer(await desk.say(head + chunk * 10)).status == 413
        assert (await desk.ask("POST", "/v1/enrol", b" " * MAX_BODY_BYTES)).said["error"] == "bad_request"
        await desk.honest()


@pytest.mark.parametrize(
    "said",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: ca\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: ca\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: ca\r\nHost: evil\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: ca\r\nX: a\r\n folded\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
        b"\n\n\n\n",
        b"hello\r\n\r\n",
    ],
    ids=[
        "long target", "many headers", "no host", "two hosts", "two lengths", "negative length", "plus length", "encodings",
        "NUL in a header", "HTTP/2", "TLS in TLS", "newlines", "prose",
    ],
)  # fmt: skip
async def test_what_is_no_http_ends_its_own_connection_and_nothing_else(said: bytes, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        heard = await desk.say(said + b"\r\n\r\n")
        assert heard == b"" or parse_answer(heard).status in (400, 404, 431, 501), heard
        await desk.honest()


async def test_a_smuggled_second_request_is_none(tmp_path: Path) -> None:
    """Both a length and chunks: whoever is read differently by two ends could hide one request in another."""
    async with ca_desk(tmp_path) as desk:
        hidden = b"GET /metrics HTTP/1.1\r\nHost: ca\r\n\r\n"
        both = (
            b"POST /v1/nonce HTTP/1.1\r\nHost: ca\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        heard = await desk.say(both + hidden)
        assert heard.count(b"HTTP/1.1 ") == 1
        assert parse_answer(heard).status == 400
        await desk.honest()


# -- before HTTP -------------------------------------------------------------------------------------------------------


async def test_the_ca_connects_nowhere_that_a_caller_names(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        with sockets.listen("trap", "127.0.0.1", 0) as trap:
            place = f"127.0.0.1:{trap.getsockname()[1]}"
            bait = f"http://{place}/"
            await desk.denied("bad_csr", desk.enrol("web", desk.make_credential("web"), csr(uris=[bait])))
            await desk.denied("bad_pass", desk.enrol(bait, desk.make_credential("web")))
            await desk.denied("bad_request", desk.ask("GET", f"/v1/bundle?after=0&url={bait}"))
            assert (await desk.ask("GET", bait)).status == 404
            for name in ("Host", "Forwarded", "X-Forwarded-For", "Origin", "Referer"):
                assert (await desk.ask("GET", "/healthz", headers={name: place})).status == 200
            with pytest.raises(BlockingIOError):
                trap.accept()
