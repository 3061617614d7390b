"""A real CA on loopback: how it starts and refuses to, what it follows, whom it lets in, how it ends.

Its time of day is the test's to move; but OpenSSL sees the real one, so that a CA which is to get old in a test begins in
the past. trio's clock passes by itself here, for sockets and threads are real, and is set
forward where a test would have to wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs import authority, passes, registrar, serve, standing
from certs.client import ALPN, CA_SEGMENTS, CaClient, CaDeniedError, CaError
from certs.serve import DRAIN_SECONDS, HANDSHAKE_SECONDS, CaServer, Settings
from certs.store import Store, file_url, issued
from certs.trust import Bundle, RevocationList, read_bundle, read_revocations, sign_bundle
from sidecar import sockets
from sidecar.address import Address
from sidecar.handshake import shake_hands
from sidecar.identity import SpiffeId, parse_svid
from sidecar.judge import Revocations, Terms
from sidecar.logs import Log
from sidecar.reasons import UsageError
from sidecar.stream import SecureStream
from sidecar.tls import Context, KeyPair, Roots
from sidecar.watch import LOOK_SECONDS
from tests.certificates import Authority as Forger
from tests.harness import PATIENCE, LogSink

NOW = datetime.now(UTC).replace(microsecond=0)
DOMAIN = "shop.internal"
API, WEB = (SpiffeId(DOMAIN, (name,)) for name in ("api", "web"))
MESH = "trust_domain: shop.internal\nservices: {api: {ports: 80}, web: {}}\n"
GET = b"GET /v1/revocations HTTP/1.1\r\nHost: ca\r\n\r\n"


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Site:
    """A CA's files, and what others do to them."""

    path: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.directory, self.mesh, self.db = self.path / "ca", self.path / "mesh.yaml", self.path / "store.db"
        self.own = authority.init(self.directory, DOMAIN, self.clock())
        self.mesh.write_text(MESH)

    def settings(self, **more: Any) -> Settings:
        listen = Address("127.0.0.1", 0)
        return replace(
            Settings(self.directory, self.mesh, listen, file_url(self.db), timedelta(hours=1)),
            **more,
        )

    def server(self, log: LogSink | None = None, **more: Any) -> CaServer:
        return CaServer(self.settings(**more), Log(log or LogSink(), "json"), self.clock)

    def start_once(self) -> None:
        """So that its store is there."""
        server = self.server()
        server.socket.close()
        server.store.close()

    def elsewhere(self, operation: Callable[..., Any]) -> Any:
        """What another program does to the store: ``certs revoke`` in another terminal, another CA."""
        with closing(Store(file_url(self.db), clock=lambda: int(self.clock().timestamp()))) as store:
            return store.write(operation)

    def sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.db)) as connection, connection:
            connection.execute(text)

    def make_secret(self, identity: SpiffeId) -> str:
        made = passes.make("secret", self.own.root_digest)
        self.elsewhere(lambda it: registrar.add_pass(it, made, identity))
        return str(made)

    def keys(self, service: str = "api", ttl: timedelta = timedelta(hours=1)) -> KeyPair:
        """A certificate that this CA made, and its key."""
        made = authority.issue(authority.load(self.directory, self.clock()), service, self.clock(), ttl)
        return KeyPair(made.chain, made.key, made.roots)

    def bundle(self, version: int) -> tuple[Bundle, bytes]:
        bundle = Bundle(DOMAIN, version, self.own.roots, self.own.root_digest)
        return bundle, sign_bundle(bundle, [authority.load_root(self.directory, None, None)])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Running:
    """A CA that serves."""

    def __init__(self, site: Site, clock: trio.testing.MockClock, **settings: Any) -> None:
        self.site, self._trio = site, clock
        self.log = LogSink()
        self.server = site.server(self.log, **settings)
        self.address = Address(*self.server.address)
        self.stop, self.stopped = trio.Event(), trio.Event()
        self._looks, self._looked = 0, trio.lowlevel.ParkingLot()
        look = self.server._look

        async def counted() -> None:
            await look()
            self._looks += 1
            self._looked.unpark_all()

        self.server._look = counted  # type: ignore[method-assign]

    async def run(self) -> None:
        try:
            await self.server.run(self.stop)
        finally:
            self.stopped.set()

    async def look(self) -> None:
        """Until it has looked twice at all that it follows, as it is now."""
        with trio.fail_after(PATIENCE + 3 * LOOK_SECONDS):
            for _ in range(3):  # the first may have begun before
                before = self._looks
                self._trio.jump(LOOK_SECONDS)
                while self._looks == before:
                    await self._looked.park()

    def wait(self, seconds: float) -> None:
        self._trio.jump(seconds)

    @asynccontextmanager
    async def client(self, keys: KeyPair | Roots | None = None) -> AsyncIterator[CaClient]:
        """Somebody who trusts the root, and shows what it is given."""
        client = CaClient(self.address, DOMAIN, self.site.clock)
        await client.use(self.site.own.roots if keys is None else keys, Revocations())
        try:
            yield client
        finally:
            await client.close()

    async def stream(self, keys: KeyPair | Roots | None = None) -> SecureStream:
        """A connection to say anything on."""
        context = Context(self.site.own.roots if keys is None else keys, Terms(DOMAIN))
        sock = await sockets.connect(socket.AF_INET, (self.address.host, self.address.port))
        endpoint = context.client(ALPN, SpiffeId(DOMAIN, CA_SEGMENTS), self.site.clock)
        await shake_hands(sock, endpoint)
        return SecureStream(sock, endpoint)

    async def listed(self) -> tuple[RevocationList, int]:
        """The list, and the newest bundle's version."""
        async with self.client() as client:
            polled = await client.revocations("", "", 0)
        assert polled.document is not None
        return read_revocations(polled.document, self.server.in_force.bundle, self.site.clock()), polled.bundle

    async def enrol(self, service: str, secret: str) -> tuple[x509.Certificate, ...]:
        async with self.client() as client:
            return tuple(x509.load_pem_x509_certificates(await client.enrol(service, secret, csr())))

    async def metrics(self) -> str:
        stream = await self.stream()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n")
        text = b""
        while more := await stream.receive_some():
            text += more
        await stream.close()
        return text.decode()

    def warnings(self) -> list[str]:
        return [line["message"] for line in self.log.events("warning")]

    def mended(self) -> list[str]:
        return [line["message"] for line in self.log.events("mended")]

    def reloaded(self) -> list[str]:
        return [line["message"] for line in self.log.events("reloaded")]


def csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )


def identity_of(chain: tuple[x509.Certificate, ...]) -> SpiffeId:
    return parse_svid(chain[0].public_bytes(serialization.Encoding.DER)).id


@asynccontextmanager
async def serving(site: Site, clock: trio.testing.MockClock, **settings: Any) -> AsyncIterator[Running]:
    """A CA that serves for the block, and is stopped then, which must not take long."""
    clock.rate = 1.0
    running = Running(site, clock, **settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        with trio.fail_after(10 * PATIENCE):
            yield running
        running.stop.set()
        with trio.fail_after(PATIENCE):
            await running.stopped.wait()
    assert running.log.events("internal_error") == running.log.events("reload_failed") == []


# -- it starts ---------------------------------------------------------------------------------------------------------


async def test_anybody_is_told_whom_to_trust_and_what_is_revoked(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca, ca.client() as client:
        (document,) = await client.bundles(0)
        bundle = read_bundle(document, DOMAIN, frozenset({site.own.root_digest}), NOW)
        assert bundle.roots == site.own.roots
        assert await client.bundles(bundle.version) == []
        listed, newest = await ca.listed()
        assert (listed.identities, listed.issued_at, newest) == ({}, NOW, bundle.version)


async def test_a_service_enrols_and_renews(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        chain = await ca.enrol("api", secret)
        assert identity_of(chain) == API
        async with ca.client(site.keys("web")) as client:
            assert identity_of(tuple(x509.load_pem_x509_certificates(await client.renew(csr())))) == WEB
        async with ca.client() as client:
            with pytest.raises(CaDeniedError, match="mutual TLS") as denied:
                await client.renew(csr())
            assert denied.value.denial == "no_certificate"
        with pytest.raises(CaDeniedError) as denied:
            await ca.enrol("web", secret)
        assert denied.value.denial == "bad_pass"


async def test_a_restart_goes_on_with_the_same_store(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock):
        secret = site.make_secret(API)
        site.elsewhere(lambda it: standing.publish(it, *site.bundle(int(NOW.timestamp()) + 9)))
    async with serving(site, mock_clock) as ca:
        assert (await ca.listed())[1] == int(NOW.timestamp()) + 9
        assert identity_of(await ca.enrol("api", secret)) == API


async def test_without_the_root_s_key_it_serves_as_well(site: Site, mock_clock: trio.testing.MockClock) -> None:
    (site.directory / "root.key").unlink()
    async with serving(site, mock_clock) as ca:
        assert identity_of(await ca.enrol("api", site.make_secret(API))) == API


# -- or refuses to, with a sentence ------------------------------------------------------------------------------------


def no_ca(site: Site) -> None:
    shutil.rmtree(site.directory)
    site.directory.mkdir()


def a_key_that_others_can_read(site: Site) -> None:
    (site.directory / "issuing.key").chmod(0o644)


def another_trust_domain(site: Site) -> None:
    site.mesh.write_text(MESH.replace("shop", "shoq"))


def no_mesh(site: Site) -> None:
    site.mesh.unlink()


def a_broken_mesh(site: Site) -> None:
    site.mesh.write_text("trust_domain: shop.internal\nservices: [")


def no_delegate(site: Site) -> None:
    (site.directory / "revocation.pem").unlink()


def no_bundle(site: Site) -> None:
    (site.directory / "bundle.json").unlink()


def a_bundle_of_another_ca(site: Site) -> None:
    authority.init(site.path / "other", DOMAIN, NOW)
    shutil.copy(site.path / "other" / "bundle.json", site.directory)


def a_store_of_another_ca(site: Site) -> None:
    site.start_once()
    shutil.rmtree(site.directory)
    authority.init(site.directory, DOMAIN, NOW)


def a_store_that_is_a_directory(site: Site) -> None:
    site.db.mkdir()


def a_store_that_is_none(site: Site) -> None:
    site.db.write_bytes(b"no database at all" * 100)


def a_store_of_a_newer_version(site: Site) -> None:
    site.start_once()
    site.sql("UPDATE meta SET value = '99' WHERE key = 'schema_version'")


def an_issuing_ca_that_ended(site: Site) -> None:
    site.clock.now += timedelta(days=91)


def a_clock_that_is_wrong(site: Site) -> None:
    site.clock.now -= timedelta(days=1)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (no_ca, "holds no CA: .* certs init"),
        (a_key_that_others_can_read, "can be read or written by others: chmod 600"),
        (another_trust_domain, "its trust_domain is shoq.internal, and the CA in .* is of shop.internal"),
        (no_mesh, "mesh.yaml"),
        (a_broken_mesh, "mesh.yaml"),
        (no_delegate, "revocation.pem is missing: .* certs renew-issuing"),
        (no_bundle, "bundle.json is missing: .* certs renew-issuing"),
        (a_bundle_of_another_ca, "not of the CA in"),
        (a_store_of_another_ca, "is it the store of another CA"),
        (a_store_that_is_a_directory, "cannot open the store .*store.db: it is no regular file"),
        (a_store_that_is_none, "cannot open the store .*store.db: file is not a database"),
        (a_store_of_a_newer_version, "newer version .*schema 99"),
        (an_issuing_ca_that_ended, "issuing.pem expired: .* certs renew-issuing"),
        (a_clock_that_is_wrong, "is this machine's clock right"),
    ],
)
def test_a_mistake_is_told_before_anything_is_served(
    mistake: Callable[[Site], None], sentence: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(site)
    opened: list[object] = []
    monkeypatch.setattr(sockets, "listen", lambda *where: opened.append(where))
    with pytest.raises(UsageError, match=sentence) as error:
        site.server()
    assert "\n" not in str(error.value) or mistake is a_broken_mesh
    assert opened == []


def test_a_port_that_is_taken(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--listen: cannot listen on 127.0.0.1:{port}: .* another process"):
            site.server(listen=Address("127.0.0.1", port))
    server = site.server(listen=Address("127.0.0.1", port))  # and nothing that was opened stands in the way now
    server.socket.close()
    server.store.close()
    assert site.db.exists()


# -- it follows its store ----------------------------------------------------------------------------------------------


async def test_a_revocation_by_another_program_is_told_within_a_look(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        web, secret = site.keys("web"), site.make_secret(WEB)
        before = (await ca.listed())[0].version
        site.elsewhere(lambda it: standing.revoke_identity(it, WEB))
        await ca.look()
        listed, _ = await ca.listed()
        assert listed.identities == {WEB: NOW + timedelta(seconds=1)}
        assert listed.version > before
        with pytest.raises(CaDeniedError) as denied:
            await ca.enrol("web", secret)
        assert denied.value.denial == "pass_expired"
        async with ca.client(web) as client:
            with pytest.raises(CaDeniedError) as denied:
                await client.renew(csr())
        assert denied.value.denial == "revoked"
        async with ca.client(site.keys("api")) as client:
            assert await client.renew(csr()), "its neighbour is not"


async def test_a_bundle_by_another_program_is_told_within_a_look(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before = (await ca.listed())[1]
        site.elsewhere(lambda it: standing.publish(it, *site.bundle(before + 5)))
        await ca.look()
        assert (await ca.listed())[1] == before + 5
        assert ca.reloaded() == [f"trust bundle {before + 5}"]
        async with ca.client() as client:
            assert len(await client.bundles(before)) == 1


async def test_a_bundle_of_another_ca_is_not_taken_and_revocations_are_told_all_the_same(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before = (await ca.listed())[1]
        other = authority.make(DOMAIN, NOW)
        bundle = Bundle(
            DOMAIN, before + 5, (other.root.certificate,), other.root.certificate.fingerprint(hashes.SHA256())
        )
        site.elsewhere(lambda it: standing.publish(it, bundle, sign_bundle(bundle, [other.root])))
        await ca.look()
        await ca.look()
        assert (await ca.listed())[1] == before
        (warning,) = ca.warnings()
        assert "is it the store of another CA" in warning
        assert ca.mended() == []
        site.elsewhere(lambda it: standing.revoke_identity(it, WEB))
        await ca.look()
        assert WEB in (await ca.listed())[0].identities
        site.sql("DELETE FROM bundles WHERE version = (SELECT max(version) FROM bundles)")
        await ca.look()
        assert (len(ca.warnings()), ca.mended()) == (1, ["store: good again"])


async def test_the_list_is_signed_anew_each_minute(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        first, _ = await ca.listed()
        site.clock.now += timedelta(seconds=59)
        await ca.look()
        assert (await ca.listed())[0] == first
        site.clock.now += timedelta(seconds=1)
        await ca.look()
        again, _ = await ca.listed()
        assert again == replace(first, issued_at=NOW + timedelta(minutes=1))
        site.clock.now -= timedelta(hours=2)  # a clock that was set back
        site.clock.now += timedelta(hours=1, minutes=59, seconds=30)
        await ca.look()
        assert (await ca.listed())[0].issued_at == site.clock.now


async def test_but_not_while_it_cannot_be_known_what_is_revoked(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        first, _ = await ca.listed()
        site.sql("ALTER TABLE revoked_identities RENAME TO away")
        site.clock.now += timedelta(minutes=5)
        await ca.look()
        assert (await ca.listed())[0] == first, "the last good is still told, and grows old"
        (warning,) = ca.warnings()
        assert "cannot be read" in warning
        assert "what was in force before stays" in warning
        assert "mesh_ca_store_up 0.0" in await ca.metrics()
        site.sql("ALTER TABLE away RENAME TO revoked_identities")
        await ca.look()
        assert (await ca.listed())[0].issued_at == site.clock.now
        assert (len(ca.warnings()), ca.mended()) == (1, ["store: good again"])
        assert "mesh_ca_store_up 1.0" in await ca.metrics()


async def test_what_ended_long_ago_is_forgotten_now_and_then(
    site: Site, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "PRUNE_SECONDS", 20.0)

    def certificates(connection: sa.Connection) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(issued)).scalar_one()

    async with serving(site, mock_clock) as ca:
        await ca.enrol("api", site.make_secret(API))
        await ca.look()
        site.clock.now += timedelta(days=29)
        ca.wait(20)
        await ca.look()
        assert ca.server.store.read(certificates) == 1
        site.clock.now += timedelta(days=2)
        await ca.look()
        assert ca.server.store.read(certificates) == 1, "not yet"
        ca.wait(20)
        await ca.look()
        assert ca.server.store.read(certificates) == 0


# -- its policy file ---------------------------------------------------------------------------------------------------


async def test_a_new_service_can_enrol_and_a_removed_one_cannot(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        db, api = site.make_secret(SpiffeId(DOMAIN, ("db",))), site.make_secret(API)
        with pytest.raises(CaDeniedError, match="no service 'db'"):
            await ca.enrol("db", db)
        site.mesh.write_text("trust_domain: shop.internal\nservices: {db: {}, web: {}, cache: {}}\n")
        await ca.look()
        assert ca.reloaded() == [f"{site.mesh}: 3 services"]
        assert await ca.enrol("db", db)
        with pytest.raises(CaDeniedError, match="no service 'api'"):
            await ca.enrol("api", api)


@pytest.mark.parametrize("broken", ["services: [", MESH.replace("shop", "shoq"), ""])
async def test_a_broken_one_keeps_the_last_good_and_is_said_once(
    broken: str, site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        site.mesh.write_text(broken)
        await ca.look()
        await ca.look()
        (warning,) = ca.warnings()
        assert str(site.mesh) in warning
        assert warning.endswith("what was in force before stays")
        assert await ca.enrol("api", secret)
        site.mesh.write_text(MESH)
        await ca.look()
        assert (len(ca.warnings()), ca.mended(), ca.reloaded()) == (1, ["mesh: good again"], [])


async def test_how_long_a_caller_s_certificate_may_live_is_the_file_s(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        long_lived = site.keys("api", timedelta(hours=20))
        async with ca.client(long_lived) as client:
            assert await client.renew(csr())
        site.mesh.write_text(f"{MESH}max_leaf_ttl: 2h\n")
        await ca.look()
        async with ca.client(long_lived) as client:
            with pytest.raises(CaError):
                await client.renew(csr())
        assert ca.log.events("refused")[0]["reason"] == "bad_identity"
        async with ca.client(site.keys("api")) as client:
            assert await client.renew(csr())


# -- its directory and its own certificate -----------------------------------------------------------------------------


async def test_a_new_issuing_ca_issues_from_now_on(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    site = Site(tmp_path, Clock(NOW - timedelta(minutes=30)))
    async with serving(site, mock_clock) as ca:
        secret, old = site.make_secret(API), site.keys("web")
        site.clock.now += timedelta(minutes=30)
        fresh, _ = authority.renew_issuing(site.directory, site.clock.now)
        await ca.look()
        (line,) = ca.reloaded()
        assert f"issuing until {fresh.issuer.certificate.not_valid_after_utc:%FT%TZ}" in line
        assert (await ca.enrol("api", secret))[1] == fresh.issuer.certificate
        async with ca.client(old) as client:
            assert await client.bundles(0), "what the old one issued is good still"


async def test_a_broken_directory_keeps_the_last_good(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        issuing = site.directory / "issuing.pem"
        good = issuing.read_bytes()
        issuing.write_bytes(good[:100])
        await ca.look()
        await ca.look()
        (warning,) = ca.warnings()
        assert "issuing.pem is no certificate in PEM" in warning
        assert await ca.enrol("api", secret)
        issuing.write_bytes(good)
        await ca.look()
        assert (len(ca.warnings()), ca.mended()) == (1, ["directory: good again"])


async def test_a_directory_of_another_ca_is_not_taken(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        authority.init(site.directory, "other.internal", NOW, force=True)
        await ca.look()
        assert any("another trust domain now" in warning for warning in ca.warnings())
        assert (await ca.enrol("api", secret))[1] == site.own.issuer.certificate
        authority.init(site.directory, DOMAIN, NOW, force=True)
        await ca.look()
        assert any("is it the store of another CA" in warning for warning in ca.warnings())
        assert (await ca.enrol("api", secret))[1] == site.own.issuer.certificate


async def test_a_directory_in_which_another_program_is_at_work_is_looked_at_again(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        await ca.look()
        fresh, _ = authority.renew_issuing(site.directory, NOW)
        descriptor = os.open(site.directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        await ca.look()
        assert (await ca.enrol("api", secret))[1] == site.own.issuer.certificate
        os.close(descriptor)
        await ca.look()
        await ca.look()
        assert (await ca.enrol("api", secret))[1] == fresh.issuer.certificate


async def test_its_own_certificate_is_renewed_at_half_of_its_life(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    site = Site(tmp_path, Clock(start := NOW - timedelta(hours=13)))
    async with serving(site, mock_clock) as ca:

        async def until() -> datetime:
            stream = await ca.stream()
            svid = stream.endpoint.svid
            await stream.close()
            assert svid is not None
            assert svid.id == SpiffeId(DOMAIN, ("mesh", "ca"))
            return svid.not_after

        assert await until() == start + timedelta(hours=24)
        site.clock.now += timedelta(hours=11)
        await ca.look()
        assert await until() == start + timedelta(hours=24)
        site.clock.now += timedelta(hours=2)
        await ca.look()
        assert await until() == start + timedelta(hours=37)


async def test_a_clock_that_was_ahead_and_is_right_again_leaves_no_certificate_of_the_future(
    site: Site, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        site.clock.now += timedelta(hours=13)  # it renews its certificate
        await ca.look()
        site.clock.now = NOW
        with pytest.raises(CaError, match="not yet valid"):
            await ca.listed()
        await ca.look()
        assert (await ca.listed())[0].issued_at == NOW


async def test_an_issuing_ca_that_ends_soon_is_said_once(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        site.clock.now += timedelta(days=59)
        await ca.look()
        assert ca.warnings() == []
        site.clock.now += timedelta(days=2)
        await ca.look()
        await ca.look()
        (warning,) = ca.warnings()
        assert "certs renew-issuing" in warning
        authority.renew_issuing(site.directory, site.clock.now)
        await ca.look()
        assert ca.mended() == ["issuing: good again"]


async def test_an_issuing_ca_that_ended_issues_nothing_and_the_process_lives(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    site = Site(tmp_path, Clock(NOW - timedelta(days=91)))
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        site.clock.now += timedelta(days=91)
        await ca.look()
        with pytest.raises(CaError):
            await ca.enrol("api", secret)  # its own certificate has ended too
        (site.directory / "root.pem").write_bytes(
            (site.directory / "root.pem").read_bytes() + b"\n"
        )  # so it is looked at
        for _ in range(3):
            site.clock.now += timedelta(seconds=1)
            await ca.look()
        assert any("issuing.pem expired" in warning for warning in ca.warnings())
        kinds = [re.sub("[0-9]+", "", warning) for warning in ca.warnings()]
        assert len(kinds) == len(set(kinds)), "each is said once, though the time in it passes"
        authority.renew_issuing(site.directory, site.clock.now)
        await ca.look()
        assert identity_of(await ca.enrol("api", secret)) == API


# -- whom it lets in ---------------------------------------------------------------------------------------------------


async def told(ca: Running, keys: KeyPair) -> Any:
    """Asks once with these keys, and must be refused; returns the line that says so."""
    with pytest.raises(CaError):
        async with ca.client(keys) as client:
            await client.bundles(0)
    await ca.log.until(lambda: bool(ca.log.events("refused")))
    (line,) = ca.log.events("refused")
    assert line["level"] == "warning"
    assert line["peer_address"].startswith("127.0.0.1:")
    assert line["message"].startswith("refused: the CA ")
    return line


async def test_a_stranger_is_refused_by_name(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        forged = Forger().leaf("api")
        assert isinstance(forged.key, ec.EllipticCurvePrivateKey)
        line = await told(ca, KeyPair(forged.chain, forged.key, site.own.roots))
        assert line["reason"] == "unknown_ca"
        assert "spiffe://shop.internal/api" in str(line["unverified"])
        assert 'mesh_ca_handshakes_refused_total{reason="unknown_ca"} 1.0' in await ca.metrics()
        async with ca.client(site.keys()) as client:
            assert await client.bundles(0)


async def test_a_certificate_that_has_ended_is_refused_by_name(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        keys = site.keys()
        site.clock.now += timedelta(hours=1, seconds=1)
        assert (await told(ca, keys))["reason"] == "expired"
        async with ca.client() as client:
            assert await client.bundles(0), "without one it may ask, and enrol"


async def test_what_is_no_tls_is_refused_and_the_next_is_served(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
        await stream.send_all(GET)
        await ca.log.until(lambda: bool(ca.log.events("refused")))
        assert ca.log.events("refused")[0]["reason"] == "plaintext_refused"
        await stream.aclose()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_silence_is_not_waited_for(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await trio.open_tcp_stream(ca.address.host, ca.address.port)
        await ca.look()
        ca.wait(HANDSHAKE_SECONDS)
        with pytest.raises(trio.BrokenResourceError):  # a reset
            await stream.receive_some()
        await stream.aclose()
        assert 'mesh_ca_handshakes_refused_total{reason="handshake_timeout"} 1.0' in await ca.metrics()


async def test_more_connections_of_members_than_it_may_have_are_closed_at_once(
    site: Site, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)
    async with serving(site, mock_clock) as ca:
        held = [await ca.stream(site.keys()) for _ in range(3)]
        for stream in held:  # (its certificate is judged when the CA has read it, which an answer tells)
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
            assert b"200" in await stream.receive_some()
        with pytest.raises(CaError):
            async with ca.client() as client:
                await client.bundles(0)
        for stream in held:
            await stream.close()
        while "overloaded" not in await ca.metrics():
            await ca.look()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_descriptors_run_out_and_come_back(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        await ca.look()
        sock = socket.socket()
        taken: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            sock.connect((ca.address.host, ca.address.port))
            await ca.log.until(lambda: any("cannot accept connections" in warning for warning in ca.warnings()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        await ca.log.until(lambda: "accepting: good again" in ca.mended())
        assert sum("cannot accept" in warning for warning in ca.warnings()) == 1
        sock.close()
        async with ca.client() as client:
            assert await client.bundles(0)


async def test_a_bug_in_one_connection_ends_that_one(
    site: Site, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with serving(site, mock_clock) as ca:
        monkeypatch.setattr(serve, "converse", broken)
        async with ca.client() as client:
            with pytest.raises(CaError):
                await client.bundles(0)
        monkeypatch.undo()
        async with ca.client() as client:
            assert await client.bundles(0)
        (line,) = ca.log.events("internal_error")
        assert "ZeroDivisionError" in line["exception"]
        assert line["peer_address"].startswith("127.0.0.1:")
        ca.log.lines.clear()


async def test_a_bug_in_following_ends_nothing(
    site: Site, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError

    async with serving(site, mock_clock) as ca:
        await ca.look()
        secret = site.make_secret(SpiffeId(DOMAIN, ("db",)))
        monkeypatch.setattr(serve, "load_mesh", broken)
        site.mesh.write_text(f"{MESH}  # the same\n")
        await ca.look()
        await ca.look()
        (line,) = ca.log.events("reload_failed")
        assert "ZeroDivisionError" in line["exception"]
        monkeypatch.undo()
        site.mesh.write_text("trust_domain: shop.internal\nservices: {db: {}}\n")
        await ca.look()
        assert await ca.enrol("db", secret)
        ca.log.lines.clear()


# -- how it ends -------------------------------------------------------------------------------------------------------


async def test_stopping_ends_who_is_idle_at_once(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        asked, new = await ca.stream(), await ca.stream()
        await asked.send_all(GET)
        assert (await asked.receive_some()).startswith(b"HTTP/1.1 200")
        began = trio.current_time()
        ca.stop.set()
        assert await new.receive_some() == b"", "a clean end"
        assert await asked.receive_some() == b""
        await asked.close()
        await new.close()
        await ca.stopped.wait()
        assert trio.current_time() - began < DRAIN_SECONDS
        with pytest.raises(CaError, match="cannot be reached"):
            async with ca.client() as client:
                await client.bundles(0)


async def test_stopping_lets_a_request_that_is_under_way_end(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret, granted = site.make_secret(API), []
        held = sqlite3.connect(site.db, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")  # the store is busy
        begun = trio.Event()
        write = ca.server.api.writer.write

        async def writing(operation: Any) -> Any:
            begun.set()
            return await write(operation)

        ca.server.api.writer.write = writing  # type: ignore[method-assign]

        async def enrol() -> None:
            granted.append(await ca.enrol("api", secret))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enrol)
            await begun.wait()
            ca.stop.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not ca.stopped.is_set()
            held.execute("ROLLBACK")
        held.close()
        assert identity_of(granted[0]) == API


async def test_a_request_that_does_not_end_is_cut(site: Site, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        stream = await ca.stream()
        await stream.send_all(b"POST /v1/nonce HTTP/1.1\r\nHost: ca\r\nContent-Length: 5\r\n\r\n12")
        await ca.look()
        ca.stop.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not ca.stopped.is_set()
        ca.wait(DRAIN_SECONDS)
        with trio.fail_after(PATIENCE):
            assert await stream.receive_some() == b"", "no answer"
            await stream.close()
            await ca.stopped.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it(number: int, site: Site) -> None:
    log, handler = LogSink(), signal.getsignal(number)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, site.settings(), Log(log, "json"), site.clock)
            await log.until(lambda: bool(log.events("started")))
            os.kill(os.getpid(), number)
    assert [line["event"] for line in log.lines] == ["started", "stopped"]
    assert signal.getsignal(number) is handler
    (started,) = log.events("started")
    assert started["message"] == "CA of shop.internal for 2 services"
    assert started["root_sha256"] == site.own.root_digest.hex()
    assert started["issuing_until"] == f"{site.own.issuer.certificate.not_valid_after_utc:%FT%TZ}"
    assert started["listen"].startswith("127.0.0.1:")


async def test_a_second_signal_does_not_wait(site: Site) -> None:
    log = LogSink()
    with trio.fail_after(DRAIN_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, site.settings(), Log(log, "json"), site.clock)
            await log.until(lambda: bool(log.events("started")))
            host, _, port = log.events("started")[0]["listen"].rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)):  # it says nothing, so its handshake is under way
                await trio.testing.wait_all_tasks_blocked(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert log.events("stopped") == []
                os.kill(os.getpid(), signal.SIGTERM)
                await log.until(lambda: bool(log.events("stopped")))
