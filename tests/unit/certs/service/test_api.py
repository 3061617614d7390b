"""The CA's API: what each path answers, on a real store; who may ask how often; what is told, and what is noted."""

from __future__ import annotations

import json
import sqlite3
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol import enrolment
from certs.protocol.csr import proof_of_possession
from certs.protocol.documents import (
    Bundle,
    RevocationList,
    read_bundle,
    read_revocations,
    sign_bundle,
    sign_revocations,
)
from certs.protocol.enrolment import EnrolmentCredential
from certs.protocol.wire import NONCE_SECONDS
from certs.registrar import bundles, followers, registrar, revocations, twins
from certs.registrar.followers import Follower
from certs.service import api
from certs.service.api import HEALTHY_SECONDS, NOTE_SECONDS, SEEN_SECONDS, CaApi, RateLimits, Snapshot, daily, etag
from certs.service.limits import Rate
from certs.store.store import Store, StoreUnavailableError, file_url
from certs.store.writer import Writer
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.spiffe import SpiffeId, parse_svid
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Peer, Request, Response
from tests.beds.certificates import csr
from tests.beds.mesh import LogSink

NOW = datetime.now(UTC).replace(microsecond=0)
DOMAIN = "shop.internal"
API = SpiffeId(DOMAIN, ("api",))
MADE = authority.make(DOMAIN, NOW)
OWN = Authority(DOMAIN, (MADE.root.certificate,), MADE.root.certificate, MADE.issuing, MADE.delegate)
ANYBODY = "192.0.2.1:40000"


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def bundle_of(version: int) -> Bundle:
    return Bundle(DOMAIN, version, OWN.roots, OWN.root_digest)


@dataclass
class Sidecar:
    """One that has a certificate; ``instance`` is what it calls itself."""

    service: str = "api"
    instance: str = "0" * 32
    chain: tuple[x509.Certificate, ...] = ()
    key: ec.EllipticCurvePrivateKey | None = None

    @property
    def peer(self) -> Peer:
        path = (*map(der, self.chain), der(OWN.root))
        return Peer(ANYBODY, parse_svid(path[0]), path)


@dataclass
class Office:
    """The API, its store and its clock. ``now`` is the time of day; trio's is the test's mock clock."""

    path: Path
    limits: RateLimits = field(default_factory=RateLimits)
    now: datetime = NOW
    log: LogSink = field(default_factory=LogSink)

    def __post_init__(self) -> None:
        self.store = Store(file_url(self.path), clock=lambda: int(self.now.timestamp()))
        self.api = CaApi(self, self.store, Writer(self.store), Log(self.log, "json"), lambda: self.now, self.limits)
        self.in_force = Snapshot(
            registrar.IssuingPolicy(OWN, frozenset({"api", "web"}), admit=self.api.admit),
            bundle_of(1),
            b"",
            "",
            Revocations(),
        )
        self.revoked()
        self.publish(1)

    def revoked(self, version: int = 1) -> None:
        """A list is in force."""
        signed = sign_revocations(RevocationList(DOMAIN, version, self.now), MADE.delegate)
        self.in_force = replace(self.in_force, revocations=signed, etag=etag(signed))

    def publish(self, version: int) -> None:
        bundle = bundle_of(version)
        self.store.write(lambda it: bundles.publish(it, bundle, sign_bundle(bundle, [MADE.root])))
        self.in_force = replace(self.in_force, bundle=bundle)

    def make_credential(self, kind: enrolment.Kind = "secret", identity: SpiffeId = API) -> EnrolmentCredential:
        made = enrolment.make(kind, OWN.root_digest)
        self.store.write(lambda it: registrar.add_credential(it, made, identity))
        return made

    async def ask(
        self,
        line: str,
        said: Any = None,
        *,
        peer: Peer | str = ANYBODY,
        raw: bytes | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        method, _, path = line.partition(" ")
        peer = Peer(peer, None, ()) if isinstance(peer, str) else peer
        body = raw if raw is not None else b"" if said is None else json.dumps(said).encode()
        return await self.api.routes()[path][method](Request(peer, query or {}, headers or {}, body))

    async def enrol(self, shown: object, service: str = "api", peer: str = ANYBODY) -> Response:
        return await self.ask("POST /v1/enrol", {"service": service, "pass": str(shown), "csr": csr()}, peer=peer)

    async def guess(self, peer: str = ANYBODY) -> str:
        """What a wrong secret is answered with."""
        return denial(await self.enrol(enrolment.make("secret", OWN.root_digest), peer=peer))

    async def report(self, who: Sidecar, said: Any = None, **more: Any) -> Response:
        said = {"version": 1, "healthy": True} if said is None else said
        given: dict[str, Any] = {"peer": who.peer, "headers": {"mesh-instance": who.instance}, **more}
        return await self.ask("POST /v1/report", said, **given)

    async def poll(self, who: Sidecar, bundle: str = "1", **more: str) -> Response:
        headers = {"mesh-instance": who.instance, "mesh-bundle": bundle, **more}
        return await self.ask("GET /v1/revocations", peer=who.peer, headers=headers)

    def sidecar(self, service: str = "api", instance: str = "0" * 32) -> Sidecar:
        """One whose certificate is in the store."""
        issued = authority.issue(OWN, service, self.now)
        self.store.write(lambda it: registrar.remember(it, issued.chain, "secret"))
        return Sidecar(service, instance, issued.chain, issued.key)

    def followers(self) -> list[Follower]:
        return self.store.read(lambda connection: followers.all_followers(connection, self.now))

    async def metrics(self) -> str:
        return (await self.ask("GET /metrics")).body.decode()

    # -- the store's bad days ------------------------------------------------------------------------------------------

    def _sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(text)

    def fill_the_disk(self) -> None:
        self._sql(
            "CREATE TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )

    def free_the_disk(self) -> None:
        self._sql("DROP TRIGGER full")


def said(answer: Response, status: int = 200) -> Any:
    assert answer.status == status, answer.body
    assert answer.content_type == "application/json"
    return json.loads(answer.body)


def denial(answer: Response) -> str:
    """The word for a no; ``ok`` for a yes."""
    return "ok" if answer.status == 200 else str(json.loads(answer.body)["error"])


def leaf_of(answer: Response) -> x509.Certificate:
    (word,) = said(answer).items()
    assert word[0] == "certificate"
    leaf, issuer = x509.load_pem_x509_certificates(word[1].encode())
    assert issuer == OWN.issuer.certificate
    leaf.verify_directly_issued_by(issuer)
    return leaf


@asynccontextmanager
async def office(path: Path, **options: Any) -> AsyncIterator[Office]:
    one = Office(path / "store.db", **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.api.writer.run)
        try:
            yield one
        finally:
            nursery.cancel_scope.cancel()
    one.store.close()


# -- about itself ------------------------------------------------------------------------------------------------------


async def test_these_are_all_the_paths(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        assert {path: set(methods) for path, methods in ca.api.routes().items()} == {
            "/livez": {"GET"},
            "/healthz": {"GET"},
            "/readyz": {"GET"},
            "/metrics": {"GET"},
            "/v1/enrol": {"POST"},
            "/v1/renew": {"POST"},
            "/v1/nonce": {"POST"},
            "/v1/reenrol": {"POST"},
            "/v1/bundle": {"GET"},
            "/v1/revocations": {"GET"},
            "/v1/report": {"POST"},
        }


async def test_healthy_is_who_can_write(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path) as ca:
        assert said(await ca.ask("GET /healthz")) == {"status": "ok"}
        ca.fill_the_disk()
        assert said(await ca.ask("GET /healthz")) == {"status": "ok"}, "asked once a second at most"
        mock_clock.jump(HEALTHY_SECONDS)
        answer = await ca.ask("GET /healthz")
        assert said(answer, 503) == {
            "error": "unavailable",
            "message": "the CA's store is not available now; try again",
        }
        assert answer.headers["Retry-After"] == "5"
        said(await ca.ask("GET /readyz"), 503)
        assert said(await ca.ask("GET /livez")) == {"status": "ok"}
        line, _ = ca.log.events("store_unavailable")
        assert "disk is full" in line["message"]
        ca.free_the_disk()
        assert said(await ca.ask("GET /healthz")) == {"status": "ok"}, "and good again at once"
        assert said(await ca.ask("GET /readyz")) == {"status": "ok"}


async def test_a_ca_that_does_not_do_its_work_is_not_healthy_and_lives(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        ca.api.ailment = lambda: "the newest trust bundle is not in force here"
        for path in ("/healthz", "/readyz"):
            assert said(await ca.ask(f"GET {path}"), 503)["message"] == "the newest trust bundle is not in force here"
        assert said(await ca.ask("GET /livez")) == {"status": "ok"}
        ca.api.ailment = lambda: None
        assert said(await ca.ask("GET /healthz")) == {"status": "ok"}


async def test_metrics_have_no_label_that_a_stranger_chose(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        await ca.enrol("mesh-secret.evil", service="evil")
        await ca.enrol(ca.make_credential(), service="evil")
        await ca.enrol(ca.make_credential())
        await ca.ask("POST /v1/renew", {"csr": "evil"}, peer=ca.sidecar().peer)
        await ca.ask("POST /v1/enrol", {"evil": "evil"})
        await ca.ask("GET /v1/bundle", query={"after": "evil"})
        await ca.poll(ca.sidecar(instance="e" * 32))
        text = await ca.metrics()
    assert "evil" not in text
    assert "eeee" not in text
    assert 'mesh_ca_issued_total{how="secret"} 1.0' in text
    assert 'mesh_ca_denied_total{reason="bad_pass"} 2.0' in text
    assert 'mesh_ca_denied_total{reason="bad_csr"} 1.0' in text
    assert 'mesh_ca_denied_total{reason="bad_request"} 2.0' in text
    assert "mesh_ca_bundle_version 1.0" in text
    assert "mesh_ca_followers 1.0" in text
    assert "mesh_ca_issuing_not_after_timestamp_seconds" in text


async def test_a_bug_of_ours_ends_one_request_and_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("secret words")

    async with office(tmp_path) as ca:
        monkeypatch.setattr(registrar, "enrol", broken)
        answer = await ca.enrol(ca.make_credential())
        monkeypatch.undo()
        assert said(answer, 500) == {"error": "internal_error", "message": "a bug in the CA; see its log"}
        assert "ZeroDivisionError" in ca.log.events("internal_error")[0]["exception"]
        assert denial(await ca.enrol(ca.make_credential())) == "ok"


# -- enrolment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token", "secret"])
async def test_a_pass_gets_its_service_a_certificate(kind: enrolment.Kind, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        leaf = leaf_of(await ca.enrol(ca.make_credential(kind)))
        assert parse_svid(der(leaf)).id == API


BODY = {"service": "api", "pass": "x", "csr": "x"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b"[" * 60_000,
        b'{"n": ' + b"1" * 6000 + b"}",
        json.dumps({"service": "api", "pass": "x"}).encode(),
        json.dumps(BODY | {"more": "x"}).encode(),
        json.dumps(BODY | {"ttl": "24h"}).encode(),
        json.dumps(BODY | {"csr": 1}).encode(),
        json.dumps(BODY | {"csr": None}).encode(),
        json.dumps(BODY | {"service": ["api"]}).encode(),
    ],
)
async def test_a_body_of_anything_else_than_exactly_its_fields(body: bytes, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        answer = await ca.ask("POST /v1/enrol", raw=body)
        assert said(answer, 400)["error"] == "bad_request"
        for path in ("renew", "reenrol"):
            assert said(await ca.ask(f"POST /v1/{path}", raw=body), 400)["error"] == "bad_request"
        assert ca.log.events("internal_error") == []


async def test_a_name_given_twice_is_no_way_to_say_two_things(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        text = json.dumps({"service": "api", "pass": str(ca.make_credential()), "csr": csr()})
        twice = text[:-1] + ', "service": "web"}'
        assert said(await ca.ask("POST /v1/enrol", raw=twice.encode()), 400)["error"] == "bad_request"
        assert denial(await ca.ask("POST /v1/enrol", raw=text.encode())) == "ok"


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\u0430pi", "x" * 60_000, "\x1b[31m\nevil"])
async def test_odd_text_is_refused_by_name_and_forges_no_line(text: str, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        good = {"service": "api", "pass": str(ca.make_credential()), "csr": csr()}
        for name in good:
            answer = await ca.ask("POST /v1/enrol", good | {name: text})
            assert answer.status in (400, 403)
        sidecar = ca.sidecar()
        odd = dict.fromkeys(("certificate", "nonce", "signature", "csr"), text)
        assert denial(await ca.ask("POST /v1/reenrol", odd)) == "bad_request"
        assert denial(await ca.ask("POST /v1/renew", {"csr": text}, peer=sidecar.peer)) == "bad_csr"
        assert ca.log.events("internal_error") == []
        assert len(ca.log.events("denied")) == len(ca.log.lines) == 5
        assert denial(await ca.ask("POST /v1/enrol", good)) == "ok"


async def test_a_denial_says_why_to_the_caller_and_in_the_log(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        used, sidecar = ca.make_credential("token"), ca.sidecar("web")
        await ca.enrol(used)
        answer = await ca.enrol(used)
        assert set(said(answer, 403)) == {"error", "message"}
        assert said(answer, 403)["error"] == "pass_used"
        (line,) = ca.log.events("denied")
        assert line["level"] == "warning"
        assert (line["reason"], line["peer_address"], line["peer_id"]) == ("pass_used", ANYBODY, None)
        assert line["message"] == said(answer, 403)["message"]
        assert "certs token api" in line["message"], "what to do"
        await ca.ask("POST /v1/renew", {"csr": ""}, peer=sidecar.peer)
        assert ca.log.events("denied")[1]["peer_id"] == "spiffe://shop.internal/web"
        assert used.secret not in ca.log.getvalue() + json.dumps(ca.log.lines), "no secret in a log"


# -- how often ---------------------------------------------------------------------------------------------------------


async def test_guesses_are_counted_by_address_and_refuse_nobody_who_is_right(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(3, 0.1))) as ca:
        secret, token = ca.make_credential(), ca.make_credential("token")
        assert [await ca.guess() for _ in range(4)] == ["bad_pass"] * 3 + ["rate_limited"]
        assert [denial(await ca.enrol(one)) for one in (secret, token, secret)] == ["ok"] * 3, "behind one address"
        assert [await ca.guess("192.0.2.1:9"), await ca.guess("192.0.2.2:9")] == ["rate_limited", "bad_pass"]
        mock_clock.jump(10)
        assert [await ca.guess(), await ca.guess()] == ["bad_pass", "rate_limited"]


async def test_guesses_of_one_ipv6_host_are_counted_by_its_network(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(2, 0.1))) as ca:
        same = [await ca.guess(f"[2001:db8:1:2:{n}::1]:443") for n in range(3)]
        assert same == ["bad_pass", "bad_pass", "rate_limited"]
        assert await ca.guess("[2001:db8:1:3::1]:443") == "bad_pass"
        assert await ca.guess("[::1]:443") == "bad_pass"


async def test_what_is_no_pass_at_all_is_a_guess(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(2, 0.1))) as ca:
        assert [denial(await ca.enrol("x")) for _ in range(3)] == ["bad_pass", "bad_pass", "rate_limited"]


async def test_another_service_s_pass_is_a_guess(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(2, 0.1))) as ca:
        secret = ca.make_credential()
        assert [denial(await ca.enrol(secret, "web")) for _ in range(3)] == ["bad_pass", "bad_pass", "rate_limited"]


async def test_a_right_pass_is_no_guess_however_it_ends(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(1, 0.1))) as ca:
        secret, used = ca.make_credential(), ca.make_credential("token")
        ended = [denial(await ca.enrol(one)) for one in (secret, secret, used, used)]
        assert ended == ["ok", "ok", "ok", "pass_used"]
        bad_csr = {"service": "api", "pass": str(secret), "csr": "x"}
        assert [denial(await ca.ask("POST /v1/enrol", bad_csr)) for _ in range(2)] == ["bad_csr", "bad_csr"]
        ca.in_force = replace(ca.in_force, policy=replace(ca.in_force.policy, services=frozenset({"web"})))
        assert denial(await ca.enrol(secret)) == "unknown_service"
        assert [await ca.guess(), await ca.guess()] == ["bad_pass", "rate_limited"]


async def test_a_store_that_is_gone_makes_nobody_a_guesser(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path, limits=RateLimits(guesses=Rate(2, 0.1))) as ca:
        secret = ca.make_credential()
        ca.fill_the_disk()
        assert [denial(await ca.enrol(secret)) for _ in range(3)] == ["unavailable"] * 3
        ca.free_the_disk()
        assert denial(await ca.enrol(secret)) == "ok"


async def test_a_thousand_guesses_at_once_are_a_thousand(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    answers: Counter[str] = Counter()
    async with office(tmp_path) as ca:

        async def guess() -> None:
            answers[await ca.guess()] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(guess)
        assert answers == {"bad_pass": 10, "rate_limited": 990}
        assert denial(await ca.enrol(ca.make_credential())) == "ok"


@pytest.mark.parametrize("name", ["api", "web", "db", "mesh/ca", "../api", "", "x" * 300, "\ud800"])
async def test_a_stranger_does_not_learn_which_services_there_are(name: str, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        webs = ca.make_credential(identity=SpiffeId(DOMAIN, ("web",)))
        wrong = [enrolment.make("secret", OWN.root_digest), *([] if name == "web" else [webs]), "mesh-secret.x"]
        printed = ascii(name if len(name) <= 120 else f"{name[:120]}…")[1:-1]
        queries: list[str] = []
        sa.event.listen(ca.store._engine, "before_cursor_execute", lambda *said: queries.append(said[2]))
        for shown in wrong:
            for request in (csr(), csr(uris=["spiffe://shop.internal/web"]), "junk"):
                body = {"service": name, "pass": str(shown), "csr": request}
                answer = said(await ca.ask("POST /v1/enrol", body), 403)
                unread = "the enrolment credential is not a token or an enrolment secret: "
                unknown = f"this CA has no such token or enrolment secret of {printed}, or no such service"
                assert answer["error"] == "bad_pass"
                assert answer["message"].startswith(unread if shown == "mesh-secret.x" else unknown)
        assert len(queries) == 3 * len(wrong[:-1]) * len(set(queries)), "and each costs the same"
        assert denial(await ca.enrol(webs, "web")) == "ok" if name != "web" else True


async def test_two_hundred_services_of_one_address_enrol_at_once(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    answers: Counter[str] = Counter()
    async with office(tmp_path) as ca:
        secret = ca.make_credential()

        async def enrol() -> None:
            answers[denial(await ca.enrol(secret))] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(enrol)
    assert answers == {"ok": 200}


async def test_certificates_are_counted_by_identity_and_in_all(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    limits = RateLimits(identity=Rate(2, 1), everybody=Rate(3, 1))
    async with office(tmp_path, limits=limits) as ca:
        api, web = ca.make_credential(), ca.make_credential(identity=SpiffeId(DOMAIN, ("web",)))
        assert [denial(await ca.enrol(api)) for _ in range(3)] == ["ok", "ok", "rate_limited"]
        assert [denial(await ca.enrol(web, "web")) for _ in range(2)] == ["ok", "rate_limited"], "three in all"
        answer = await ca.enrol(web, "web")
        assert "web" in said(answer, 429)["message"]
        ca.now += timedelta(seconds=2)
        assert denial(await ca.enrol(web, "web")) == "ok"


async def test_certificates_of_one_identity_are_counted_by_the_day(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with office(tmp_path, limits=RateLimits(day=Rate(3, 3 / 86400))) as ca:
        api, web = ca.make_credential(), ca.make_credential(identity=SpiffeId(DOMAIN, ("web",)))
        assert [denial(await ca.enrol(api)) for _ in range(4)] == ["ok"] * 3 + ["rate_limited"]
        assert denial(await ca.enrol(web, "web")) == "ok", "each service has its own"
        ca.now += timedelta(hours=7)
        assert denial(await ca.enrol(api)) == "rate_limited"
        ca.now += timedelta(hours=1)
        assert [denial(await ca.enrol(api)) for _ in range(2)] == ["ok", "rate_limited"]


@pytest.mark.parametrize("minutes", [5, 60, 24 * 60])
def test_a_day_is_enough_for_the_most_replicas_and_little_for_the_store(minutes: int, tmp_path: Path) -> None:
    ttl = timedelta(minutes=minutes)
    rate = daily(ttl)
    assert rate.burst >= 256 * (timedelta(days=1) / (ttl / 2))
    assert rate.per_second * 86400 == pytest.approx(rate.burst)
    if minutes >= 60:
        assert rate.burst * 3000 < 50e6


def test_a_certificate_takes_three_kilobytes_of_the_store(tmp_path: Path) -> None:
    ca = Office(tmp_path / "store.db")

    def size() -> int:
        ca.store.read(lambda connection: connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all())
        return ca.path.stat().st_size

    before = size()
    for _ in range(200):
        ca.sidecar()
    assert 0 < (size() - before) / 200 < 3000
    ca.store.close()


async def test_who_is_denied_anyway_uses_up_no_turn_of_anybody(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with office(tmp_path, limits=RateLimits(identity=Rate(1, 0), everybody=Rate(1, 0))) as ca:
        secret = ca.make_credential()
        assert [await ca.guess() for _ in range(5)] == ["bad_pass"] * 5
        assert denial(await ca.enrol(secret)) == "ok"
        assert denial(await ca.enrol(secret)) == "rate_limited"


# -- renewal -----------------------------------------------------------------------------------------------------------


async def test_a_renewal_is_by_the_certificate_that_was_shown(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        leaf = leaf_of(await ca.ask("POST /v1/renew", {"csr": csr()}, peer=ca.sidecar("web").peer))
        assert str(parse_svid(der(leaf)).id) == "spiffe://shop.internal/web"
        answer = await ca.ask("POST /v1/renew", {"csr": csr()})
        assert said(answer, 401)["error"] == "no_certificate"
        assert 'mesh_ca_issued_total{how="renewal"} 1.0' in await ca.metrics()


@pytest.mark.parametrize(("parts", "why"), [(62, "the body must be"), (63, "the body has too many parts")])
async def test_a_body_of_many_parts_is_not_parsed(parts: int, why: str, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        raw = b'{"csr": [%s]}' % b",".join([b"1"] * (parts + 1))
        assert said(await ca.ask("POST /v1/renew", raw=raw), 400)["message"].startswith(why)


def by_identity(_who: Sidecar) -> Revocations:
    return Revocations(identities={API: NOW + timedelta(seconds=1)})


def by_serial(who: Sidecar) -> Revocations:
    leaf = who.chain[0]
    return Revocations(serials=frozenset({(leaf.issuer.public_bytes(), leaf.serial_number)}))


def by_issuer(who: Sidecar) -> Revocations:
    return Revocations(keys=frozenset({key_digest(who.chain[1])}))


@pytest.mark.parametrize("how", [by_identity, by_serial, by_issuer])
async def test_who_is_revoked_is_anybody_and_hears_why_it_is_not_renewed(how: Any, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        api = ca.sidecar("api")
        assert said(await ca.ask("POST /v1/renew", {"csr": csr()}, peer=api.peer))  # the twin: it is good still
        polls = {"mesh-instance": "1" * 32, "mesh-bundle": "1"}
        ca.in_force = replace(ca.in_force, revoked=how(api))
        answer = said(await ca.ask("POST /v1/renew", {"csr": csr()}, peer=api.peer), 403)
        assert answer["error"] == "revoked"
        assert answer["message"].startswith("this connection is of spiffe://shop.internal/api with a revoked ")
        (line,) = ca.log.events("denied")
        assert (line["reason"], line["peer_id"]) == ("revoked", str(API))
        # What anybody may have, it has: the list, the bundles, and what a new secret is worth. It is no follower.
        assert (await ca.ask("GET /v1/revocations", peer=api.peer, headers=polls)).status == 200
        assert (await ca.ask("GET /v1/bundle", peer=api.peer)).status == 200
        assert ca.followers() == []
        fields = {"service": "api", "pass": str(ca.make_credential()), "csr": csr()}
        assert leaf_of(await ca.ask("POST /v1/enrol", fields, peer=api.peer))
        ca.in_force = replace(ca.in_force, revoked=Revocations())
        assert (await ca.ask("GET /v1/revocations", peer=api.peer, headers=polls)).status == 200
        assert len(ca.followers()) == 1


async def test_no_handler_sees_the_identity_of_who_is_revoked(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        api, seen = ca.sidecar("api").peer, []

        async def note(request: Request) -> Response:
            seen.append((request.peer.svid, request.peer.path))
            return Response(200)

        answer = ca.api._safe(note)
        await answer(Request(api, {}, {}, b""))
        ca.in_force = replace(ca.in_force, revoked=by_identity(ca.sidecar("api")))
        await answer(Request(api, {}, {}, b""))
    assert seen == [(api.svid, api.path), (None, ())]


async def test_denials_of_strangers_are_folded_and_no_others(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        folded: list[tuple[str, str]] = []

        def fold(reason: str, address: str) -> bool:
            folded.append((reason, address))
            return True

        ca.api.fold = fold
        await ca.ask("POST /v1/renew", {"csr": csr()})
        await ca.ask("POST /v1/renew", {"csr": "no CSR"}, peer=ca.sidecar("web").peer)
        api = ca.sidecar("api")
        ca.in_force = replace(ca.in_force, revoked=by_identity(api))
        await ca.ask("POST /v1/renew", {"csr": csr()}, peer=api.peer)
    assert folded == [("no_certificate", ANYBODY)]
    assert [line["reason"] for line in ca.log.events("denied")] == ["bad_csr", "revoked"]


async def reenrol(ca: Office, who: Sidecar, nonce: bytes, bent: dict[str, str] | None = None) -> Response:
    new = ec.generate_private_key(ec.SECP256R1())
    assert who.key is not None
    signature = who.key.sign(proof_of_possession(nonce, new.public_key()), ec.ECDSA(hashes.SHA256()))
    fields = {
        "certificate": who.chain[0].public_bytes(serialization.Encoding.PEM).decode(),
        "nonce": b64encode(nonce).decode(),
        "signature": b64encode(signature).decode(),
        "csr": csr(new),
    }
    return await ca.ask("POST /v1/reenrol", fields | (bent or {}))


async def a_nonce(ca: Office) -> bytes:
    answer = said(await ca.ask("POST /v1/nonce"))
    assert set(answer) == {"nonce"}
    return b64decode(answer["nonce"], validate=True)


async def test_the_key_of_a_certificate_that_ended_gets_another(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        slept = ca.sidecar()
        ca.now += timedelta(hours=5)
        leaf = leaf_of(await reenrol(ca, slept, await a_nonce(ca)))
        assert parse_svid(der(leaf)).id == API
        assert 'mesh_ca_issued_total{how="re-enrolment"} 1.0' in await ca.metrics()
        thief = Sidecar(chain=slept.chain, key=ec.generate_private_key(ec.SECP256R1()))
        assert denial(await reenrol(ca, thief, await a_nonce(ca))) == "not_entitled"


async def test_a_nonce_is_good_for_a_minute(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        slept = ca.sidecar()
        ca.now += timedelta(hours=3)
        nonce = await a_nonce(ca)
        assert nonce != await a_nonce(ca)
        ca.now += timedelta(seconds=NONCE_SECONDS)
        assert denial(await reenrol(ca, slept, nonce)) == "ok"
        ca.now += timedelta(seconds=1)
        answer = await reenrol(ca, slept, nonce)
        assert said(answer, 400)["error"] == "bad_request"
        assert "older than a minute" in said(answer, 400)["message"]
        ca.now -= timedelta(hours=2)
        assert denial(await reenrol(ca, slept, nonce)) == "bad_request", "a nonce of the future is none"
        assert denial(await reenrol(ca, slept, await a_nonce(ca))) == "ok", "a clock that was set back strands nobody"


async def test_a_nonce_of_another_ca_or_a_bent_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with office(tmp_path) as ca, office(tmp_path / "other") as other:
        slept, nonce = ca.sidecar(), await a_nonce(ca)
        bent = [bytes([nonce[0] ^ 1]) + nonce[1:], nonce[:-1] + bytes([nonce[-1] ^ 1]), nonce + b"\0", nonce[:-1], b""]
        for one in (await a_nonce(other), *bent):
            assert denial(await reenrol(ca, slept, one)) == "bad_request"
        assert denial(await reenrol(ca, slept, nonce)) == "ok"


@pytest.mark.parametrize("field_", ["certificate", "nonce", "signature"])
async def test_what_cannot_be_read_is_no_re_enrolment(field_: str, tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        answer = await reenrol(ca, ca.sidecar(), await a_nonce(ca), {field_: "!"})
        assert said(answer, 400)["message"] == "certificate must be PEM, nonce and signature base64"


# -- trust -------------------------------------------------------------------------------------------------------------


async def test_bundles_are_told_from_the_oldest_that_is_news(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        ca.publish(2)
        ca.publish(7)

        async def versions(**query: str) -> Sequence[int]:
            answer = said(await ca.ask("GET /v1/bundle", query=query))
            assert set(answer) == {"bundles"}
            anchors = frozenset({certificate_digest(OWN.root)})
            return [read_bundle(json.dumps(one).encode(), DOMAIN, anchors, NOW).version for one in answer["bundles"]]

        assert await versions() == [1, 2, 7]
        assert await versions(after="0") == [1, 2, 7]
        assert await versions(after="1") == [2, 7]
        assert await versions(after="7") == []
        assert await versions(after="9" * 15) == []


@pytest.mark.parametrize(
    "query",
    [
        {"after": ""},
        {"after": "-1"},
        {"after": "+1"},
        {"after": "1.0"},
        {"after": " 1"},
        {"after": "1\n"},
        {"after": "\u0661"},
        {"after": "9" * 16},
        {"after": "1", "more": "2"},
        {"before": "1"},
    ],
)
async def test_what_is_no_version_is_refused(query: dict[str, str], tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        answer = await ca.ask("GET /v1/bundle", query=query)
        assert said(answer, 400)["error"] == "bad_request"


async def test_a_list_is_told_once(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        sidecar = ca.sidecar()
        first = await ca.poll(sidecar)
        assert (first.status, first.headers["Mesh-Bundle"]) == (200, "1")
        assert read_revocations(first.body, ca.in_force.bundle, NOW).version == 1
        again = await ca.poll(sidecar, **{"if-none-match": first.headers["ETag"]})
        assert (again.status, again.body, again.headers) == (304, b"", first.headers)
        ca.revoked(2)
        ca.publish(3)
        news = await ca.poll(sidecar, **{"if-none-match": first.headers["ETag"]})
        assert (news.status, news.headers["Mesh-Bundle"]) == (200, "3")
        assert news.headers["ETag"] != first.headers["ETag"]
        assert (await ca.poll(sidecar, **{"if-none-match": "*"})).status == 200


async def test_a_list_is_told_to_anybody_and_notes_nobody_who_shows_no_certificate(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        headers = {"mesh-instance": "a" * 32, "mesh-bundle": "1"}
        assert (await ca.ask("GET /v1/revocations", headers=headers)).status == 200
        assert ca.followers() == []


# -- who follows -------------------------------------------------------------------------------------------------------


async def test_who_polls_is_noted_with_what_it_has(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        await ca.poll(ca.sidecar("web"), "1")
        (follower,) = ca.followers()
    assert (follower.identity, follower.bundle) == ("spiffe://shop.internal/web", 1)
    assert follower.root == certificate_digest(OWN.root).hex()
    assert (follower.not_after, follower.seen_at) == (NOW + timedelta(hours=1), NOW)


@pytest.mark.parametrize(
    ("instance", "bundle"), [("", "1"), ("A" * 32, "1"), ("a" * 31, "1"), ("a" * 32, ""), ("a" * 32, "x")]
)
async def test_who_does_not_say_what_it_has_is_answered_and_not_noted(
    instance: str, bundle: str, tmp_path: Path
) -> None:
    async with office(tmp_path) as ca:
        assert (await ca.poll(ca.sidecar(instance=instance), bundle)).status == 200
        assert ca.followers() == []


@pytest.mark.parametrize("gone", ["revoked", "removed"])
async def test_who_gets_no_certificate_any_more_is_answered_and_not_noted(gone: str, tmp_path: Path) -> None:
    """A rotation of the root would wait for it."""
    async with office(tmp_path) as ca:
        api, web = ca.sidecar("api"), ca.sidecar("web", instance="b" * 32)
        for sidecar in (api, web):
            await ca.poll(sidecar, "1")
        assert len(ca.followers()) == 2
        if gone == "revoked":
            ca.store.write(lambda transaction: revocations.revoke_identity(transaction, API))
        else:
            left = replace(ca.in_force.policy, services=frozenset({"web"}))
            ca.in_force = replace(ca.in_force, policy=left)
        for sidecar in (api, web):
            assert (await ca.poll(sidecar, "2")).status == 200
        assert [(one.identity, one.bundle) for one in ca.followers()] == [("spiffe://shop.internal/web", 2)]


async def test_no_news_is_noted_now_and_then_and_news_at_once(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with office(tmp_path) as ca:
        sidecar = ca.sidecar()

        async def noted(bundle: str = "1") -> tuple[datetime, int]:
            await ca.poll(sidecar, bundle)
            (follower,) = ca.followers()
            return follower.seen_at, follower.bundle

        assert await noted() == (NOW, 1)
        ca.now += timedelta(seconds=5)
        assert await noted() == (NOW, 1), "nothing new"
        assert await noted("2") == (ca.now, 2)
        mock_clock.jump(SEEN_SECONDS)
        ca.now += timedelta(seconds=SEEN_SECONDS)
        assert await noted("2") == (ca.now, 2)


async def test_a_new_certificate_is_news(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path) as ca:
        await ca.poll(ca.sidecar())
        ca.now += timedelta(minutes=30)
        await ca.poll(ca.sidecar())
        (follower,) = ca.followers()
        assert follower.not_after == ca.now + timedelta(hours=1)


async def test_nobody_overwrites_what_another_said(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        api = ca.sidecar("api", instance="a" * 32)
        await ca.poll(api, "1")
        await ca.poll(ca.sidecar("web", instance="a" * 32), "9")  # posing as the same instance
        await ca.poll(ca.sidecar("api", instance="b" * 32), "5")
        assert sorted((one.identity.rpartition("/")[2], one.bundle) for one in ca.followers()) == [
            ("api", 1),
            ("api", 5),
            ("web", 9),
        ]


async def test_who_calls_itself_something_else_each_time_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(api, "MOST_SEEN", 8)
    async with office(tmp_path) as ca:
        sidecar = ca.sidecar()
        for number in range(30):
            assert (await ca.poll(replace(sidecar, instance=f"{number:032x}"))).status == 200
            told = (await ca.metrics()).split("\nmesh_ca_followers ")[1].split()[0]
            assert float(told) <= 8
        assert len(ca.followers()) == 30, "and whoever waits for them forgets nobody"


async def test_a_full_disk_keeps_no_list_from_who_needs_it(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path) as ca:
        sidecar = ca.sidecar()
        ca.fill_the_disk()
        assert (await ca.poll(sidecar)).status == 200
        assert ca.followers() == []
        assert len(ca.log.events("store_unavailable")) == 1
        ca.free_the_disk()
        assert (await ca.poll(sidecar)).status == 200
        assert len(ca.followers()) == 1


async def test_a_store_that_answers_nobody_keeps_no_list_from_who_needs_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    ca = Office(tmp_path / "store.db")  # and nothing runs that would write
    sidecar = ca.sidecar()
    began = trio.current_time()
    assert (await ca.poll(sidecar)).status == 200
    assert trio.current_time() - began == NOTE_SECONDS
    ca.store.close()


# -- reports -----------------------------------------------------------------------------------------------------------


async def test_a_report_is_kept_under_the_identity_of_its_certificate(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        who = ca.sidecar("web", "1" * 32)
        answer = await ca.report(who, {"version": 1, "identity": "spiffe://shop.internal/api", "healthy": False})
        assert answer.status == 200
        said = json.loads(answer.body)
        assert said["now"] == int(ca.now.timestamp())
        assert [(one["serial"], one["how"]) for one in said["live"]] == [(f"{who.chain[0].serial_number:x}", "secret")]
        (kept,) = ca.api.reports.current(ca.now)
        assert (kept.identity, kept.instance) == ("spiffe://shop.internal/web", "1" * 32)
        assert kept.serial == f"{who.chain[0].serial_number:x}"
        assert json.loads(kept.report) == {"version": 1, "healthy": False}


async def test_no_report_of_somebody_without_a_certificate_or_with_a_revoked_one(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        who = ca.sidecar()
        assert denial(await ca.report(who, peer=ANYBODY)) == "no_certificate"
        ca.in_force = replace(ca.in_force, revoked=Revocations({API: NOW + timedelta(hours=1)}))
        assert denial(await ca.report(who)) == "no_certificate"
        assert len(ca.api.reports) == 0


@pytest.mark.parametrize(
    "more",
    [{"headers": {}}, {"headers": {"mesh-instance": "../x"}}, {"raw": b"{}"}, {"raw": b"\xff"}, {"said": []}],
)
async def test_what_is_no_report_is_refused_and_the_last_one_stays(tmp_path: Path, more: dict[str, Any]) -> None:
    async with office(tmp_path) as ca:
        who = ca.sidecar()
        await ca.report(who)
        assert denial(await ca.report(who, **more)) == "bad_request"
        assert [json.loads(one.report) for one in ca.api.reports.current(ca.now)] == [{"version": 1, "healthy": True}]


async def test_one_identity_has_its_share_of_reports(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with office(tmp_path, limits=RateLimits(reports=Rate(2, 0.1))) as ca:
        api, web = ca.sidecar(), ca.sidecar("web")
        assert [(await ca.report(api)).status for _ in range(3)] == [200, 200, 429]
        assert (await ca.report(web)).status == 200
        mock_clock.jump(10)
        assert (await ca.report(api)).status == 200


async def test_a_report_is_taken_without_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with office(tmp_path) as ca:
        who = ca.sidecar()

        def unavailable(_question: object) -> None:
            raise StoreUnavailableError("the disk is full")

        monkeypatch.setattr(ca.store, "read", unavailable)
        answer = await ca.report(who)
        assert (answer.status, answer.body) == (200, b"{}\n")


async def test_an_alarm_in_a_report_is_posted_once(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        posted: list[Any] = []
        ca.api.post = lambda _key, alarm: posted.append(alarm)
        who = ca.sidecar()
        met = {"event": "mitm_suspected", "count": 1, "message": "somebody", "upstream": "db:5432"}
        for _ in range(2):
            assert (await ca.report(who, {"version": 1, "alarms": [met]})).status == 200
        (alarm,) = posted
        assert (alarm["message"], alarm["reported_by"]) == ("somebody", "spiffe://shop.internal/api")
        assert ca.api.desk.current() == posted


@pytest.mark.parametrize(("ago", "severity"), [(0, "alarm"), (59, "alarm"), (60, "notice"), (3000, "notice")])
async def test_a_token_that_is_used_twice_is_an_alarm_if_its_holder_lives(
    tmp_path: Path, ago: int, severity: str
) -> None:
    async with office(tmp_path) as ca:
        token = ca.make_credential("token")
        leaf = leaf_of(await ca.enrol(token))
        assert ca.api.desk.current() == []
        seen = ca.now - timedelta(seconds=ago)
        ca.store.write(lambda it: twins.saw(it, sha256(der(leaf)).hexdigest(), seen))
        assert denial(await ca.enrol(token)) == "pass_used"
        (told,) = ca.api.desk.current()
        assert (told["event"], told["severity"], told["service"]) == ("token_used_twice", severity, "api")


async def test_a_token_that_is_used_twice_is_no_alarm_if_nobody_ever_polled_with_it(tmp_path: Path) -> None:
    async with office(tmp_path) as ca:
        token = ca.make_credential("token")
        await ca.enrol(token)
        await ca.enrol(token)
        assert ca.api.desk.current()[0]["severity"] == "notice"
