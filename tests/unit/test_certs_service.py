"""The CA's API: each path, over the wire, its limits, and the words of its denials.

Every request goes over TLS to a real CA; ``Caller`` is any HTTP client, with a certificate or without.
"""

from __future__ import annotations

import json
import re
import socket
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

from certs import authority, standing
from certs.authority import Issued
from certs.client import _Answer, _ask
from certs.issuance import Denial, proof_of_possession
from certs.limits import Rate
from certs.service import Limits, _source
from certs.store import StoreUnavailableError
from sidecar import answers, sockets
from sidecar.handshake import shake_hands
from sidecar.identity import SpiffeId
from sidecar.judge import Terms
from sidecar.stream import SecureStream
from sidecar.tls import Context
from tests.cabed import CaBed, ca_bed, keys_of
from tests.harness import MESH

Said = tuple[int, Any]


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


class Caller:
    """A connection of its own for each request."""

    def __init__(self, bed: CaBed, issued: Issued | None = None) -> None:
        self._bed = bed
        self._keys = bed.ca.roots if issued is None else keys_of(issued)

    async def asks(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None, source: str = ""
    ) -> _Answer:
        return await self._bed.time.finishes(partial(self._ask, method, target, body, headers or {}, source))

    async def _ask(self, method: str, target: str, body: bytes, headers: Mapping[str, str], source: str) -> _Answer:
        sock = socket.socket()
        sock.bind((source or "127.0.0.1", 0))
        sock.connect(("127.0.0.1", self._bed.port))
        sockets.prepare(sock)
        endpoint = Context(self._keys, Terms("shop.internal")).client(
            "http/1.1", SpiffeId("shop.internal", ("mesh", "ca")), self._bed.time
        )
        stream = SecureStream(sock, endpoint)
        try:
            await shake_hands(sock, endpoint)
            return await _ask(stream, h11.Connection(h11.CLIENT), method, target, headers, body)
        finally:
            await stream.close()

    async def posts(self, path: str, said: object, source: str = "") -> Said:
        answer = await self.asks("POST", path, json.dumps(said).encode(), source=source)
        return answer.status, json.loads(answer.body)

    async def enrols(self, text: str, service: str = "api", csr: str | None = None, source: str = "") -> Said:
        said = {"service": service, "pass": text, "csr": csr or fresh_csr()}
        return await self.posts("/v1/enrol", said, source)


def fresh_csr() -> str:
    return answers.csr_for(answers.new_key()).decode()


def shown(bed: CaBed, kind: str = "secret", service: str = "api") -> str:
    return bed.pass_for("token" if kind == "token" else "secret", service).read_text().strip()


def guess(bed: CaBed, number: int = 0) -> str:
    return f"mesh-secret.{number:064x}.{bed.ca.root_digest.hex()}"


def denial(said: Said) -> tuple[int, str]:
    status, body = said
    assert body.keys() == {"error", "message"}
    return status, body["error"]


# -- enrolment ---------------------------------------------------------------------------------------------------------


async def test_a_secret_s_holder_gets_a_certificate_and_its_issuer(bed: CaBed, mock_clock: MockClock) -> None:
    key = answers.new_key()
    status, said = await Caller(bed).enrols(shown(bed), csr=answers.csr_for(key).decode())
    assert (status, said.keys()) == (200, {"certificate"})
    leaf, issuer = x509.load_pem_x509_certificates(said["certificate"].encode())
    assert leaf.public_key() == key.public_key()
    assert issuer == bed.ca.issuer.certificate
    uris = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uris.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://shop.internal/api"]


async def test_each_no_has_its_status_and_its_word(bed: CaBed, mock_clock: MockClock) -> None:
    caller, token = Caller(bed), shown(bed, "token")
    assert (await caller.enrols(token))[0] == 200
    assert denial(await caller.enrols(token)) == (403, "pass_used")
    assert denial(await caller.enrols(guess(bed))) == (403, "bad_pass")
    assert denial(await caller.enrols("mesh-token.x")) == (403, "bad_pass")
    assert denial(await caller.enrols(shown(bed), "stranger")) == (403, "unknown_service")
    assert denial(await caller.enrols(shown(bed), "../mesh/ca")) == (403, "unknown_service")
    assert denial(await caller.enrols(shown(bed), "web")) == (403, "bad_pass")
    assert denial(await caller.enrols(shown(bed), csr="garbage")) == (400, "bad_csr")
    late = shown(bed, "token")
    bed.time.steps(timedelta(minutes=5))
    assert denial(await caller.enrols(late)) == (403, "pass_expired")
    secret = shown(bed)
    bed.revokes("api")
    assert denial(await caller.enrols(secret)) == (403, "pass_expired")


async def test_the_same_request_again_gets_the_same_answer_for_a_while(bed: CaBed, mock_clock: MockClock) -> None:
    caller, token, csr = Caller(bed), shown(bed, "token"), fresh_csr()
    first = await caller.enrols(token, csr=csr)
    assert first[0] == 200
    assert await caller.enrols(token, csr=csr) == first
    bed.time.steps(timedelta(seconds=301))
    assert denial(await caller.enrols(token, csr=csr)) == (400, "key_reused")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"service": "api", "pass": "x"}',
        b'{"service": "api", "pass": "x", "csr": 7}',
        b'{"service": "api", "pass": "x", "csr": "x", "ttl": "24h"}',
        b'{"service": ["api"], "pass": "x", "csr": "x"}',
        b"\xff\xfe{}",
        b"[" * 60_000,
    ],
)
async def test_a_body_of_any_other_shape_is_refused(bed: CaBed, mock_clock: MockClock, body: bytes) -> None:
    answer = await Caller(bed).asks("POST", "/v1/enrol", body)
    assert answer.status == 400
    assert json.loads(answer.body)["error"] == "bad_request"
    assert bed.log.events("internal_error") == []


async def test_a_denial_is_logged_without_what_was_shown(bed: CaBed, mock_clock: MockClock) -> None:
    text = guess(bed, 0xDEADBEEF)
    await Caller(bed).enrols(text)
    [line] = bed.log.events("denied")
    assert line["reason"] == "bad_pass"
    assert line["peer_address"].startswith("127.0.0.1:")
    assert line["peer_id"] is None
    assert "deadbeef" not in json.dumps(bed.log.lines)


# -- how often ---------------------------------------------------------------------------------------------------------


async def test_guesses_are_few_for_each_address(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(guesses=Rate(3, 0.1))) as bed:
        caller = Caller(bed)
        for number in range(3):
            assert denial(await caller.enrols(guess(bed, number))) == (403, "bad_pass")
        honest = shown(bed)
        assert denial(await caller.enrols(guess(bed))) == (429, "rate_limited")
        assert denial(await caller.enrols(honest)) == (429, "rate_limited")  # or it would tell a right one from a wrong
        assert (await caller.enrols(honest, source="127.0.0.2"))[0] == 200
        await bed.time.passes(10)
        assert (await caller.enrols(honest))[0] == 200


async def test_what_is_no_guess_costs_none(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(guesses=Rate(2, 0))) as bed:
        caller = Caller(bed)
        for _ in range(4):
            assert (await caller.enrols(shown(bed)))[0] == 200
            assert denial(await caller.enrols(shown(bed), csr="garbage")) == (400, "bad_csr")
            assert denial(await caller.enrols(shown(bed), "stranger")) == (403, "unknown_service")
        assert denial(await caller.enrols("no pass at all")) == (403, "bad_pass")
        assert denial(await caller.enrols(guess(bed))) == (403, "bad_pass")
        assert denial(await caller.enrols(shown(bed))) == (429, "rate_limited")


async def test_a_thousand_guesses_at_once_are_a_thousand(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: Any
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(guesses=Rate(3, 0))) as bed:
        caller, got = Caller(bed), list[int]()

        async def one(number: int) -> None:
            said = {"service": "api", "pass": guess(bed, number), "csr": fresh_csr()}
            answer = await caller._ask("POST", "/v1/enrol", json.dumps(said).encode(), {}, "")
            got.append(answer.status)

        async def all_at_once() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(one, number)

        await bed.time.finishes(all_at_once)
        assert sorted(got) == [403] * 3 + [429] * 27


async def test_an_identity_s_certificates_are_few(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(identity=Rate(2, 0.1))) as bed:
        caller = Caller(bed)
        for _ in range(2):
            assert (await caller.enrols(shown(bed)))[0] == 200
        status, said = await caller.enrols(shown(bed))
        assert (status, said["error"]) == (429, "rate_limited")
        assert said["message"].startswith("too many certificates for spiffe://shop.internal/api, or in all")
        assert (await caller.enrols(shown(bed, service="web"), "web"))[0] == 200  # nobody uses up another's
        bed.time.steps(timedelta(seconds=10))
        assert (await caller.enrols(shown(bed)))[0] == 200


async def test_certificates_in_all_are_few(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(everybody=Rate(2, 0))) as bed:
        caller = Caller(bed)
        assert (await caller.enrols(shown(bed)))[0] == 200
        assert (await caller.enrols(shown(bed, service="web"), "web"))[0] == 200
        assert denial(await caller.enrols(shown(bed, service="db"), "db")) == (429, "rate_limited")


async def test_a_token_that_met_the_limit_is_not_spent(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=Limits(identity=Rate(1, 0.1))) as bed:
        caller, token = Caller(bed), shown(bed, "token")
        assert (await caller.enrols(shown(bed)))[0] == 200
        assert denial(await caller.enrols(token)) == (429, "rate_limited")
        bed.time.steps(timedelta(seconds=10))
        assert (await caller.enrols(token))[0] == 200


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("10.0.0.1:5000", "10.0.0.1"),
        ("[2001:db8:1:2:3:4:5:6]:5000", "2001:0db8:0001:0002"),
        ("[2001:db8:1:2::1]:5000", "2001:0db8:0001:0002"),
        ("[::1]:5000", "0000:0000:0000:0000"),
    ],
)
def test_whose_guesses_count_together(address: str, source: str) -> None:
    assert _source(address) == source


# -- renewal and re-enrolment ------------------------------------------------------------------------------------------


async def test_a_renewal_is_for_who_shows_a_certificate(bed: CaBed, mock_clock: MockClock) -> None:
    api = authority.issue(bed.ca, "api", bed.time())
    status, said = await Caller(bed, api).posts("/v1/renew", {"csr": fresh_csr()})
    assert status == 200
    assert "BEGIN CERTIFICATE" in said["certificate"]
    assert denial(await Caller(bed).posts("/v1/renew", {"csr": fresh_csr()})) == (401, "no_certificate")
    for name in ("mesh/ca", "batch/nightly"):
        other = authority.issue(bed.ca, name, bed.time())
        assert denial(await Caller(bed, other).posts("/v1/renew", {"csr": fresh_csr()})) == (403, "not_entitled")
    gone = authority.issue(bed.ca, "stranger", bed.time())
    assert denial(await Caller(bed, gone).posts("/v1/renew", {"csr": fresh_csr()})) == (403, "unknown_service")
    bed.revokes("api")
    assert denial(await Caller(bed, api).posts("/v1/renew", {"csr": fresh_csr()})) == (403, "revoked")


async def enrolled(bed: CaBed) -> tuple[str, ec.EllipticCurvePrivateKey]:
    key = answers.new_key()
    _, said = await Caller(bed).enrols(shown(bed), csr=answers.csr_for(key).decode())
    return said["certificate"], key


async def reenrolment(bed: CaBed, certificate: str, key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    _, said = await Caller(bed).posts("/v1/nonce", {})
    new = answers.new_key()
    proof = proof_of_possession(b64decode(said["nonce"]), new.public_key())
    return {
        "certificate": certificate,
        "nonce": said["nonce"],
        "signature": b64encode(key.sign(proof, ec.ECDSA(hashes.SHA256()))).decode(),
        "csr": answers.csr_for(new).decode(),
    }


async def test_an_old_key_s_holder_gets_a_certificate(bed: CaBed, mock_clock: MockClock) -> None:
    certificate, key = await enrolled(bed)
    bed.time.steps(timedelta(hours=5))
    assert (await Caller(bed).posts("/v1/reenrol", await reenrolment(bed, certificate, key)))[0] == 200
    stranger = await reenrolment(bed, certificate, answers.new_key())
    assert denial(await Caller(bed).posts("/v1/reenrol", stranger)) == (403, "not_entitled")
    swapped = {**await reenrolment(bed, certificate, key), "csr": fresh_csr()}  # for somebody else's key
    assert denial(await Caller(bed).posts("/v1/reenrol", swapped)) == (403, "not_entitled")
    by_hand = authority.issue(bed.ca, "api", bed.time())
    unknown = await reenrolment(bed, by_hand.chain_pem.decode(), by_hand.key)
    assert denial(await Caller(bed).posts("/v1/reenrol", unknown)) == (403, "not_entitled")
    bed.time.steps(timedelta(hours=25))
    await bed.time.passes(2)  # the CA slept too: its own certificate has to be renewed
    late = await reenrolment(bed, certificate, key)
    assert denial(await Caller(bed).posts("/v1/reenrol", late)) == (403, "expired")


async def test_a_nonce_is_of_this_ca_and_good_for_a_minute(bed: CaBed, mock_clock: MockClock) -> None:
    certificate, key = await enrolled(bed)
    said = await reenrolment(bed, certificate, key)
    bed.time.steps(timedelta(seconds=60))
    assert (await Caller(bed).posts("/v1/reenrol", said))[0] == 200
    old = await reenrolment(bed, certificate, key)
    bed.time.steps(timedelta(seconds=61))
    assert denial(await Caller(bed).posts("/v1/reenrol", old)) == (400, "bad_request")
    early = await reenrolment(bed, certificate, key)
    bed.time.steps(-timedelta(seconds=5))
    assert denial(await Caller(bed).posts("/v1/reenrol", early)) == (400, "bad_request")
    bed.time.steps(timedelta(seconds=5))
    bent = bytearray(b64decode(early["nonce"]))
    for at in (0, 12, 20):
        flipped = bytes(byte ^ (index == at) for index, byte in enumerate(bent))
        forged = {**early, "nonce": b64encode(flipped).decode()}
        assert denial(await Caller(bed).posts("/v1/reenrol", forged)) == (400, "bad_request")


@pytest.mark.parametrize(
    "bent",
    [
        {"certificate": "garbage"},
        {"certificate": ""},
        {"nonce": ""},
        {"nonce": "%%%"},
        {"nonce": "AAAA"},
        {"signature": "%%%"},
    ],
)
async def test_a_re_enrolment_that_cannot_be_read(bed: CaBed, mock_clock: MockClock, bent: dict[str, str]) -> None:
    certificate, key = await enrolled(bed)
    said = {**await reenrolment(bed, certificate, key), **bent}
    assert denial(await Caller(bed).posts("/v1/reenrol", said)) == (400, "bad_request")
    assert bed.log.events("internal_error") == []


async def test_a_signature_of_garbage_is_no_proof(bed: CaBed, mock_clock: MockClock) -> None:
    certificate, key = await enrolled(bed)
    for signature in (b"", b"garbage", b"\x30\x06\x02\x01\x00\x02\x01\x00"):
        said = {**await reenrolment(bed, certificate, key), "signature": b64encode(signature).decode()}
        assert denial(await Caller(bed).posts("/v1/reenrol", said)) == (403, "not_entitled")


# -- trust -------------------------------------------------------------------------------------------------------------


async def test_bundles_newer_than_one(bed: CaBed, mock_clock: MockClock) -> None:
    caller, version = Caller(bed), bed.server.in_force.bundle.version
    for target, number in (("/v1/bundle", 1), ("/v1/bundle?after=0", 1), (f"/v1/bundle?after={version}", 0)):
        answer = await caller.asks("GET", target)
        assert answer.status == 200
        assert len(json.loads(answer.body)["bundles"]) == number


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=", "after=" + "9" * 16, "after=1&b=2", "before=1"])
async def test_a_query_of_any_other_kind_is_refused(bed: CaBed, mock_clock: MockClock, query: str) -> None:
    answer = await Caller(bed).asks("GET", f"/v1/bundle?{query}")
    assert answer.status == 400
    assert json.loads(answer.body)["error"] == "bad_request"


async def test_the_list_of_revocations_and_its_name(bed: CaBed, mock_clock: MockClock) -> None:
    caller = Caller(bed)
    first = await caller.asks("GET", "/v1/revocations")
    assert (first.status, first.body) == (200, bed.server.in_force.revocations)
    named = {"If-None-Match": first.headers["etag"]}
    again = await caller.asks("GET", "/v1/revocations", headers=named)
    assert (again.status, again.body) == (304, b"")
    assert again.headers["mesh-bundle"] == first.headers["mesh-bundle"] == str(bed.server.in_force.bundle.version)
    bed.revokes("web")
    await bed.time.passes(2)
    assert (await caller.asks("GET", "/v1/revocations", headers=named)).status == 200


async def test_who_says_what_it_has_is_remembered_as_who_it_is(bed: CaBed, mock_clock: MockClock) -> None:
    api, web = (Caller(bed, authority.issue(bed.ca, name, bed.time())) for name in ("api", "web"))
    says = {"Mesh-Instance": "a" * 32, "Mesh-Bundle": "7"}
    for caller in (api, web, Caller(bed)):  # the same instance of two services is two; of nobody, none
        assert (await caller.asks("GET", "/v1/revocations", headers=says)).status == 200
    for bad in ({"Mesh-Instance": "x"}, {"Mesh-Instance": "a" * 33, "Mesh-Bundle": "1"}, {"Mesh-Bundle": "1"}):
        assert (await api.asks("GET", "/v1/revocations", headers=bad)).status == 200
    found = bed.server.store.read(lambda connection: standing.all_followers(connection, bed.time()))
    assert [(one.identity, one.bundle, one.root) for one in found] == [
        ("spiffe://shop.internal/api", 7, bed.ca.root_digest.hex()),
        ("spiffe://shop.internal/web", 7, bed.ca.root_digest.hex()),
    ]
    assert (await api.asks("GET", "/v1/revocations", headers={**says, "Mesh-Bundle": "8"})).status == 200
    found = bed.server.store.read(lambda connection: standing.all_followers(connection, bed.time()))
    assert [one.bundle for one in found] == [8, 7]


async def test_what_is_no_news_is_not_written_each_time(bed: CaBed, mock_clock: MockClock) -> None:
    api = Caller(bed, authority.issue(bed.ca, "api", bed.time()))
    says = {"Mesh-Instance": "a" * 32, "Mesh-Bundle": "7"}

    def seen() -> list[float]:
        found = bed.server.store.read(lambda connection: standing.all_followers(connection, bed.time()))
        return [one.seen_at.timestamp() for one in found]

    await api.asks("GET", "/v1/revocations", headers=says)
    first = seen()
    await bed.time.passes(20)
    await api.asks("GET", "/v1/revocations", headers=says)
    assert seen() == first
    await bed.time.passes(20)
    await api.asks("GET", "/v1/revocations", headers=says)
    assert seen() > first


# -- about itself ------------------------------------------------------------------------------------------------------


async def test_healthz_says_whether_the_store_can_be_written(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = await Caller(bed).asks("GET", "/healthz")
    assert (healthy.status, json.loads(healthy.body)) == (200, {"status": "ok"})

    def full(_: object) -> list[object]:
        raise StoreUnavailableError("the store sqlite:///x cannot be written: disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(bed.server.store, "write_many", full)
        sick = await Caller(bed).asks("GET", "/healthz")
        assert (sick.status, sick.headers["retry-after"]) == (503, "5")
        assert json.loads(sick.body)["error"] == "unavailable"
        assert denial(await Caller(bed).enrols(guess(bed))) == (503, "unavailable")
        assert "disk I/O" not in sick.body.decode()
    assert (await Caller(bed).asks("GET", "/healthz")).status == 200


async def test_a_bug_ends_one_request_and_is_seen(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(standing, "bundles_after", lambda *_: 1 / 0)
        answer = await Caller(bed).asks("GET", "/v1/bundle")
    assert (answer.status, json.loads(answer.body)["error"]) == (500, "internal_error")
    assert "ZeroDivisionError" in bed.log.events("internal_error")[0]["exception"]
    assert b"Zero" not in answer.body
    assert (await Caller(bed).asks("GET", "/v1/bundle")).status == 200


async def test_metrics_have_labels_of_ours_alone(bed: CaBed, mock_clock: MockClock) -> None:
    caller = Caller(bed)
    await caller.enrols(shown(bed))
    await caller.enrols(guess(bed))
    for number in range(5):
        await caller.asks("GET", f"/made/up/{number}")
        await caller.asks("POST", "/healthz")
        await caller.enrols("x", f"service-{number}")
    answer = await caller.asks("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    assert 'mesh_ca_requests_total{path="other",status="404"} 5.0' in text
    assert 'mesh_ca_issued_total{how="secret"} 1.0' in text
    assert 'mesh_ca_denied_total{reason="bad_pass"}' in text
    assert f"mesh_ca_bundle_version {float(bed.server.in_force.bundle.version)!r}".split("e")[0] in text
    assert "mesh_ca_store_up 1.0" in text
    assert "made" not in text
    assert "service-" not in text
    words = set(re.findall(r'="([^"]*)"', text))
    known = {"other", "secret", *map(str, Denial), *bed.api.routes(), *(str(status) for status in range(200, 600))}
    assert words <= known


async def test_a_service_of_a_changed_mesh_is_taken(bed: CaBed, mock_clock: MockClock) -> None:
    caller, secret = Caller(bed), shown(bed, service="fresh")
    assert denial(await caller.enrols(secret, "fresh")) == (403, "unknown_service")
    bed.mesh_path.write_text(MESH.replace("web: {}", "web: {}\n  fresh: {}"))
    await bed.time.passes(3)
    assert (await caller.enrols(secret, "fresh"))[0] == 200
