"""Asking the CA: whom it is asked of, what is said when it cannot be, and what is made of its answers."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from trio.testing import MockClock

from certs.authority import authority
from certs.protocol import client as asking
from certs.protocol.addresses import CaAddresses, Place
from certs.protocol.client import SECONDS, CaClient, CaDeniedError, CaError, CaUnverifiedError
from sidecar.agent import accept
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import key_digest, new_key
from sidecar.identity.reasons import Reason, Refused
from sidecar.transport import sockets
from sidecar.transport.http1 import Incoming, Request, Response
from tests.beds.ca import CaBed, ca_bed
from tests.beds.certificates import key_pair
from tests.beds.clock import NOW
from tests.beds.impostor import FalseCa

INSTANCE = "0" * 32


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


async def client(bed: CaBed, *, show: str | None = None, port: int | None = None) -> CaClient:
    """One that trusts the bed's root, and shows the certificate of a service if told which."""
    made = CaClient(Address("127.0.0.1", port or bed.port), "shop.internal", bed.time)
    keys = bed.ca.roots if show is None else key_pair(authority.issue(bed.ca, show, bed.time()))
    await made.use(keys, Revocations())
    return made


async def fails(bed: CaBed, step: Callable[[], Awaitable[object]]) -> CaError:
    with pytest.raises(CaError) as failed:
        await bed.time.finishes(step)
    return failed.value


def polls(ca: CaClient) -> Callable[[], Awaitable[Any]]:
    return partial(ca.revocations, "", INSTANCE, 1)


def fake(bed: CaBed, path: str = "/v1/enrol", body: bytes = b"{}") -> FalseCa:
    """A CA with a genuine certificate that answers anything."""
    return bed.impostor(key_pair(authority.issue(bed.ca, "mesh/ca", bed.time())), {path: body})


# -- the answers of a real one -----------------------------------------------------------------------------------------


async def test_it_enrols_and_renews(bed: CaBed, mock_clock: MockClock) -> None:
    text, ca = bed.secret().read_text().strip(), await client(bed)
    chain = await bed.time.finishes(partial(ca.enrol, "api", text, accept.csr_for(new_key())))
    assert chain.count(b"BEGIN CERTIFICATE") == 2
    denied = await fails(bed, partial(ca.renew, accept.csr_for(new_key())))
    assert isinstance(denied, CaDeniedError)
    assert (denied.denial, denied.passing) == ("no_certificate", False)
    renewing = await client(bed, show="api")
    assert await bed.time.finishes(partial(renewing.renew, accept.csr_for(new_key())))
    for one in (ca, renewing):
        await bed.time.finishes(one.close)


async def test_an_etag_saves_the_list(bed: CaBed, mock_clock: MockClock) -> None:
    ca = await client(bed)
    first = await bed.time.finishes(polls(ca))
    assert first.document is not None
    again = await bed.time.finishes(partial(ca.revocations, first.etag, INSTANCE, 1))
    assert (again.document, again.etag) == (None, first.etag)
    await bed.time.finishes(ca.close)


async def test_bundles_are_had_unverified_and_nothing_of_ours_is_shown(bed: CaBed, mock_clock: MockClock) -> None:
    stranger = bed.impostor(
        key_pair(authority.issue(bed.ca, "web", bed.time())), {"/v1/bundle": b'{"bundles": [{"a": 1}]}'}
    )
    ca = await client(bed, show="api", port=stranger.port)
    documents = await bed.time.finishes(partial(ca.bundles, 7, unverified=True))
    assert documents == [b'{"a": 1}']
    assert bytes(stranger.received).startswith(b"GET /v1/bundle?after=7 HTTP/1.1\r\nHost: ca\r\n")
    refused = await fails(bed, partial(ca.bundles, 7))
    assert isinstance(refused, CaUnverifiedError)


async def test_connections_are_used_again(bed: CaBed, mock_clock: MockClock) -> None:
    stranger = fake(bed, "/v1/bundle", b'{"bundles": []}')
    ca = await client(bed, port=stranger.port)
    for _ in range(3):
        assert await bed.time.finishes(partial(ca.bundles, 1)) == []
    assert stranger.connections == 1
    await bed.time.finishes(partial(ca.use, bed.ca.roots, Revocations()))
    await bed.time.finishes(partial(ca.bundles, 1))
    assert stranger.connections == 2
    await bed.time.finishes(ca.close)


async def test_a_ca_that_was_restarted_meanwhile_is_asked_again(bed: CaBed, mock_clock: MockClock) -> None:
    ca = await client(bed)
    await bed.time.finishes(polls(ca))
    await bed.goes_down()
    bed.starts()
    await bed.time.finishes(polls(ca))
    await bed.goes_down()
    assert "cannot be reached: Connection refused" in str(await fails(bed, polls(ca)))
    bed.starts()
    await bed.time.finishes(polls(ca))
    await bed.time.finishes(ca.close)


async def test_two_at_once_wait_for_each_other(bed: CaBed, mock_clock: MockClock) -> None:
    ca, got = await client(bed), []

    async def one() -> None:
        got.append((await ca.revocations("", INSTANCE, 1)).document)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)

    await bed.time.finishes(both)
    assert len(got) == 2
    await bed.time.finishes(ca.close)


# -- whoever else answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["ca", "web", "mesh/other", "ca/mesh"])
async def test_a_certificate_of_anybody_else_is_refused(bed: CaBed, mock_clock: MockClock, service: str) -> None:
    stranger = bed.impostor(key_pair(authority.issue(bed.ca, service, bed.time())))
    ca = await client(bed, show="api", port=stranger.port)
    refused = await fails(bed, partial(ca.enrol, "api", "secret", b"csr"))
    assert isinstance(refused, CaUnverifiedError)
    assert refused.refusal.reason is Reason.UNEXPECTED_PEER
    assert f"but met spiffe://shop.internal/{service} (valid, same CA)" in str(refused)
    assert stranger.received == b""


async def test_an_issuer_that_counts_no_longer_vouches_for_no_ca(bed: CaBed, mock_clock: MockClock) -> None:
    ca = await client(bed)
    issuer = bed.server.in_force.policy.authority.issuer.certificate
    await ca.use(bed.ca.roots, Revocations(keys=frozenset({key_digest(issuer)})))
    refused = await fails(bed, polls(ca))
    assert isinstance(refused, CaUnverifiedError)
    assert refused.refusal.reason is Reason.REVOKED


async def test_with_no_roots_nobody_is_the_ca(bed: CaBed, mock_clock: MockClock) -> None:
    ca = CaClient(Address("127.0.0.1", bed.port), "shop.internal", bed.time)
    assert isinstance(await fails(bed, polls(ca)), CaUnverifiedError)


async def test_a_server_that_speaks_no_tls_is_not_the_ca(bed: CaBed, mock_clock: MockClock) -> None:
    async def plaintext(sock: socket.socket) -> None:
        await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\n\r\n")
        await sockets.receive(sock, 65536)

    refused = await fails(bed, polls(await client(bed, port=listening(bed, plaintext))))
    assert isinstance(refused, CaUnverifiedError)
    assert refused.refusal.reason is Reason.PLAINTEXT_REFUSED


def listening(bed: CaBed, handler: Callable[[socket.socket], Awaitable[None]]) -> int:
    """The port of something that is no CA."""
    listener = sockets.listen("test", "127.0.0.1", 0)

    async def serve() -> None:
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                with sock:
                    sockets.prepare(sock)
                    await handler(sock)

    bed.nursery.start_soon(serve)
    port: int = listener.getsockname()[1]
    return port


async def silent(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while await sockets.receive(sock, 65536):
            pass


async def gone(_: socket.socket) -> None:
    """Closes at once."""


# -- whoever does not answer -------------------------------------------------------------------------------------------


async def test_a_ca_that_is_not_there(bed: CaBed, mock_clock: MockClock) -> None:
    await bed.goes_down()
    failed = await fails(bed, polls(await client(bed)))
    assert str(failed) == f"the CA at 127.0.0.1:{bed.port} cannot be reached: Connection refused"


async def test_a_name_that_is_nobody_s(bed: CaBed, mock_clock: MockClock) -> None:
    ca = CaClient(Address("ca.invalid", 443), "shop.internal", bed.time)
    assert "the CA at ca.invalid:443 cannot be reached: " in str(await fails(bed, polls(ca)))


async def test_a_ca_that_never_shakes_hands_is_given_up(bed: CaBed, mock_clock: MockClock) -> None:
    ca, begin = await client(bed, port=listening(bed, silent)), trio.current_time()
    assert f"did not answer within {SECONDS:g} s" in str(await fails(bed, polls(ca)))
    assert SECONDS <= trio.current_time() - begin <= SECONDS + 1


async def test_a_ca_that_leaves_in_the_handshake_may_come_back(bed: CaBed, mock_clock: MockClock) -> None:
    failed = await fails(bed, polls(await client(bed, port=listening(bed, gone))))
    assert not isinstance(failed, CaUnverifiedError)


async def test_a_ca_that_never_answers_is_given_up(bed: CaBed, mock_clock: MockClock) -> None:
    async def never(_request: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    bed.api.bent["/v1/revocations"] = never
    ca, begin = await client(bed), trio.current_time()
    assert str(await fails(bed, polls(ca))) == f"the CA did not answer within {SECONDS:g} s"
    assert SECONDS <= trio.current_time() - begin <= SECONDS + 2.1  # for closing
    bed.api.bent.clear()
    await bed.time.finishes(polls(ca))
    await bed.time.finishes(ca.close)


async def test_a_connection_that_breaks_is_said(bed: CaBed, mock_clock: MockClock) -> None:
    async def dies(_request: Request) -> Response:
        raise trio.BrokenResourceError

    bed.api.bent["/v1/revocations"] = dies
    assert str(await fails(bed, polls(await client(bed)))) == "the CA closed the connection without an answer"
    [line] = bed.log.events("internal_error")  # and is seen at the CA
    assert "BrokenResourceError" in line["exception"]


# -- what is made of answers -------------------------------------------------------------------------------------------


def answering(answer: Response) -> Callable[[Request], Awaitable[Response]]:
    async def handler(_request: Request) -> Response:
        return answer

    return handler


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response(404, b"{}"), "the CA refused"),
        (Response(500, b"oops"), "the CA's answer is not JSON .status 500."),
        (Response(503, b'{"error": "unavailable", "message": "later"}'), r"the CA refused \(unavailable\): later"),
        (Response(301, b"[]", headers={"Location": "https://evil.example/"}), "the CA refused"),
        (Response(204, b""), "not JSON|not valid HTTP"),
        (Response(200, b"x" * (5 << 20), headers={"Mesh-Bundle": "1"}), "is larger than 2048 KiB"),
    ],
)
async def test_an_answer_to_a_poll_that_makes_no_sense(
    bed: CaBed, mock_clock: MockClock, answer: Response, said: str
) -> None:
    bed.api.bent["/v1/revocations"] = answering(answer)
    ca = await client(bed)
    with pytest.raises(CaError, match=said):
        await bed.time.finishes(polls(ca))
    bed.api.bent.clear()
    assert (await bed.time.finishes(polls(ca))).document is not None
    await bed.time.finishes(ca.close)


@pytest.mark.parametrize("body", [b"7", b"{}", b'{"bundles": 7}', b'{"bundles": {"a": 1}}', b"[" * 20_000])
async def test_what_is_no_list_of_bundles(bed: CaBed, mock_clock: MockClock, body: bytes) -> None:
    bed.api.bent["/v1/bundle"] = answering(Response(200, body))
    with pytest.raises(CaError, match=r"not a list of bundles|not JSON"):
        await bed.time.finishes(partial((await client(bed)).bundles, 0, unverified=True))


@pytest.mark.parametrize("body", [b"7", b"[]", b'"{}"'])
async def test_what_is_no_answer_to_a_report(bed: CaBed, mock_clock: MockClock, body: bytes) -> None:
    bed.api.bent["/v1/report"] = answering(Response(200, body))
    ca = await client(bed)
    assert str(await fails(bed, partial(ca.report, "0" * 32, b"{}"))) == "the CA's answer to a report is not an object"
    await bed.time.finishes(ca.close)


@pytest.mark.parametrize("said", [{}, {"nonce": 7}, {"nonce": "no base64!"}, []])
async def test_what_is_no_nonce(bed: CaBed, mock_clock: MockClock, said: object) -> None:
    bed.api.bent["/v1/nonce"] = answering(Response.of(200, said))
    own, key, ca = authority.issue(bed.ca, "api", bed.time()), new_key(), await client(bed)
    ask = partial(ca.reenrol, own.chain[0], own.key, accept.csr_for(key), key.public_key())
    assert str(await fails(bed, ask)) == "the CA's answer is not a nonce"
    await bed.time.finishes(ca.close)


@pytest.mark.parametrize(
    ("status", "passing"), [(400, False), (401, False), (403, False), (429, True), (500, True), (503, True)]
)
async def test_a_no_is_passing_where_the_ca_may_think_otherwise_later(
    bed: CaBed, mock_clock: MockClock, status: int, passing: bool
) -> None:
    bed.api.bent["/v1/enrol"] = answering(Response.of(status, {"error": "some", "message": "words\n\x1b[2J"}))
    ca = await client(bed)
    denied = await fails(bed, partial(ca.enrol, "api", "x", b"csr"))
    assert isinstance(denied, CaDeniedError)
    assert (denied.denial, denied.passing) == ("some", passing)
    assert str(denied).isprintable()
    await bed.time.finishes(ca.close)


async def test_a_no_of_any_shape(bed: CaBed, mock_clock: MockClock) -> None:
    ca = await client(bed)
    shapes: list[object] = [[], 7, None, {"error": ["x"], "message": {"a": 1}}, {"error": "x" * 10_000}]
    for said in shapes:
        bed.api.bent["/v1/enrol"] = answering(Response.of(403, said))
        denied = await fails(bed, partial(ca.enrol, "api", "x", b"csr"))
        assert isinstance(denied, CaDeniedError)
        assert len(str(denied)) < 1000
    await bed.time.finishes(ca.close)


RAW: dict[str, tuple[bytes, str]] = {
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", "the CA's answer is not valid HTTP"),
    "nothing": (b"", "the CA closed the connection without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "the CA closed the connection without an answer"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "not valid HTTP"),
    "a header that is no ASCII": (b"HTTP/1.1 200 OK\r\nX: \xff\r\nContent-Length: 2\r\n\r\n{}", "not valid HTTP"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "not valid HTTP"),
    "an endless head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not valid HTTP"),
    "another protocol": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "not valid HTTP",
    ),
}


@pytest.mark.parametrize("name", RAW)
async def test_what_is_no_answer(bed: CaBed, mock_clock: MockClock, name: str) -> None:
    raw, said = RAW[name]
    stranger = fake(bed, "/v1/enrol")
    stranger.raw = raw
    ca = await client(bed, port=stranger.port)
    with pytest.raises(CaError, match=said):
        await bed.time.finishes(partial(ca.enrol, "api", "x", b"csr"))


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n" + json.dumps({"certificate": ""}).encode()
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" + b'{"certificate": ""}',
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b'{"certificate": ""}',
        b"HTTP/1.0 200 OK\r\n\r\n" + b'{"certificate": ""}',
    ],
)  # fmt: skip
async def test_answers_in_other_words_of_http(bed: CaBed, mock_clock: MockClock, raw: bytes) -> None:
    stranger = fake(bed, "/v1/enrol")
    stranger.raw = raw
    ca = await client(bed, port=stranger.port)
    assert await bed.time.finishes(partial(ca.enrol, "api", "x", b"csr")) == b""
    await bed.time.finishes(ca.close)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (HEAD + b"a:\r\n" * 3000 + b"\r\n", "at most 64 fields"),
        (CHUNKED + b"1\r\n \r\n" * 3000, "at most 512 lines"),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 1000, "more than 8 interim answers"),
        (HEAD + b"Content-Length: 262145\r\n\r\n" + b" " * 262145, "larger than 256 KiB"),
        (b"[{}%s]" % (b",[]" * 8200), "more than 8192 parts"),
        (b"[%s]" % b",".join([b"{}"] * 65), "has 65 bundles; at most 64 are read"),
    ],
    ids=["fields", "chunks", "interim answers", "bytes", "parts", "documents"],
)
async def test_whoever_proves_nothing_is_read_no_further_than_need_be(
    bed: CaBed, mock_clock: MockClock, raw: bytes, said: str
) -> None:
    """Each of these took the loop of a sidecar between 45 ms and 7 s, at every poll."""
    if raw.startswith(b"["):
        body = b'{"bundles": %s}' % raw
        raw = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    stranger = fake(bed)
    stranger.raw = raw
    ca = await client(bed, port=stranger.port)
    assert said in str(await fails(bed, partial(ca.bundles, 0, unverified=True)))


async def test_as_much_as_may_be_is_read(bed: CaBed, mock_clock: MockClock) -> None:
    document = json.dumps({"payload": "x" * 3000, "signatures": [{"certificate": "x", "signature": "x"}] * 8})
    body = b'{"bundles": [%s]}' % ", ".join([document] * 64).encode()
    stranger = fake(bed, "/v1/bundle", body + b" " * ((256 << 10) - len(body)))
    ca = await client(bed, port=stranger.port)
    assert len(await bed.time.finishes(partial(ca.bundles, 0, unverified=True))) == 64


@pytest.mark.parametrize("said", [None, [], "certificate", {}, {"certificate": None}, {"certificate": ["PEM"]}])
def test_an_answer_without_a_certificate(said: object) -> None:
    assert asking._certificate({"certificate": "PEM"}) == b"PEM"
    with pytest.raises(CaError, match="is not a certificate"):
        asking._certificate(said)


LIMIT = 256 << 10


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
async def test_an_answer_as_large_as_may_be(size: int) -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "ca")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (size, b"x" * size))
    incoming = Incoming(None, connection)  # type: ignore[arg-type]  # all of it is here already
    if size == LIMIT:
        assert len((await asking._answer(incoming, LIMIT)).body) == size
    else:
        with pytest.raises(CaError, match="is larger than 256 KiB"):
            await asking._answer(incoming, LIMIT)


async def test_a_handshake_that_failed_leaves_no_tls_memory_behind(bed: CaBed, mock_clock: MockClock) -> None:
    """Without the help of Python's collector, and though the error is kept, whose traceback holds the channel."""

    async def plaintext(sock: socket.socket) -> None:
        await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\n\r\n")
        await sockets.receive(sock, 65536)

    ca = await client(bed, port=listening(bed, plaintext))
    gc.collect()
    gc.disable()
    try:
        before = tls_objects()
        refused = await fails(bed, polls(ca))
        assert isinstance(refused, CaUnverifiedError)
        assert tls_objects() == before
    finally:
        gc.enable()


def tls_objects() -> int:
    return sum(type(one).__module__ == "OpenSSL.SSL" and type(one).__name__ == "Connection" for one in gc.get_objects())


def test_of_several_addresses_the_one_of_the_impostor_is_named() -> None:
    place, fault = Place(socket.AF_INET, ("127.0.0.9", 8443)), Refused(Reason.UNKNOWN_CA, "met another CA")
    for host, where in (("ca.mesh", "ca.mesh:8443 (127.0.0.9:8443)"), ("127.0.0.9", "127.0.0.9:8443")):
        ca = CaClient(Address(host, 8443), "shop.internal", lambda: NOW)
        assert f"at {where} but met another CA" in str(ca._unverified({place: fault}))


def test_a_fault_without_the_system_s_words_has_its_own() -> None:
    assert asking._words(OSError("its host name has no address")) == "its host name has no address"
    assert asking._words(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"


async def test_a_resolver_that_does_not_answer_is_named(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def places(_: CaAddresses) -> list[Place]:
        await trio.sleep_forever()

    monkeypatch.setattr(CaAddresses, "places", places)
    ca = CaClient(Address("ca.mesh", 8443), "shop.internal", lambda: NOW)
    with pytest.raises(CaError, match="its host name was not resolved within"):
        await ca.bundles(0, unverified=True)
