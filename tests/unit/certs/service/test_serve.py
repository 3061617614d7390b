"""A real CA on loopback: how it starts and refuses to, what it follows, how it ends."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.authority import authority
from certs.protocol import enrolment
from certs.protocol.client import CaDeniedError, CaError
from certs.protocol.denial import Denial, Denied
from certs.protocol.documents import Bundle, read_bundle, sign_bundle
from certs.registrar import bundles, followers, registrar, revocations
from certs.service import serve
from certs.service.listener import DRAIN_SECONDS
from certs.store.store import audit_head, issued, revoked_serials
from sidecar.documents.address import Address
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.transport import sockets
from tests.beds.ca import CaBed, identity_of, serving
from tests.beds.ca_files import API, DOMAIN, WEB, CaFiles
from tests.beds.certificates import HOUR, csr
from tests.beds.clock import NOW, Clock
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE

MESH = "trust_domain: shop.internal\nservices: {api: {ports: 80}, web: {}}\n"


@pytest.fixture
def site(tmp_path: Path) -> CaFiles:
    return new_site(tmp_path)


def new_site(path: Path, clock: Clock | None = None) -> CaFiles:
    """With a store outside of the CA's directory, which some tests take away."""
    return CaFiles(path, clock, mesh=MESH, db=path / "store.db")


# -- it starts ---------------------------------------------------------------------------------------------------------


async def test_anybody_is_told_whom_to_trust_and_what_is_revoked(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca, ca.client() as client:
        (document,) = await client.bundles(0)
        bundle = read_bundle(document, DOMAIN, frozenset({site.ca.root_digest}), NOW)
        assert bundle.roots == site.ca.roots
        assert await client.bundles(bundle.version) == []
        listed, newest = await ca.listed()
        assert (listed.identities, listed.issued_at, newest) == ({}, NOW, bundle.version)


async def test_a_service_enrols_and_renews(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        chain = await ca.enrolled("api", secret)
        assert identity_of(chain) == API
        async with ca.client(site.keys("web")) as client:
            assert identity_of(tuple(x509.load_pem_x509_certificates(await client.renew(csr().encode())))) == WEB
        async with ca.client() as client:
            with pytest.raises(CaDeniedError, match="mutual TLS") as denied:
                await client.renew(csr().encode())
            assert denied.value.denial == "no_certificate"
        with pytest.raises(CaDeniedError) as denied:
            await ca.enrolled("web", secret)
        assert denied.value.denial == "bad_pass"


async def test_a_restart_goes_on_with_the_same_store(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock):
        secret = site.make_secret(API)
        site.elsewhere(lambda it: bundles.publish(it, *site.bundle(int(NOW.timestamp()) + 9)))
    async with serving(site, mock_clock) as ca:
        assert (await ca.listed())[1] == int(NOW.timestamp()) + 9
        assert identity_of(await ca.enrolled("api", secret)) == API


async def test_without_the_root_s_key_it_serves_as_well(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    (site.directory / "root.key").unlink()
    async with serving(site, mock_clock) as ca:
        assert identity_of(await ca.enrolled("api", site.make_secret(API))) == API


# -- or refuses to, with a sentence ------------------------------------------------------------------------------------


def no_ca(site: CaFiles) -> None:
    shutil.rmtree(site.directory)
    site.directory.mkdir()


def a_key_that_others_can_read(site: CaFiles) -> None:
    (site.directory / "issuing.key").chmod(0o644)


def another_trust_domain(site: CaFiles) -> None:
    site.mesh.write_text(MESH.replace("shop", "shoq"))


def no_mesh(site: CaFiles) -> None:
    site.mesh.unlink()


def a_broken_mesh(site: CaFiles) -> None:
    site.mesh.write_text("trust_domain: shop.internal\nservices: [")


def no_delegate(site: CaFiles) -> None:
    (site.directory / "revocation.pem").unlink()


def no_bundle(site: CaFiles) -> None:
    (site.directory / "bundle.json").unlink()


def a_bundle_of_another_ca(site: CaFiles) -> None:
    authority.init(site.path / "other", DOMAIN, NOW)
    shutil.copy(site.path / "other" / "bundle.json", site.directory)


def a_store_of_another_ca(site: CaFiles) -> None:
    site.start_once()
    shutil.rmtree(site.directory)
    authority.init(site.directory, DOMAIN, NOW)


def a_store_that_is_a_directory(site: CaFiles) -> None:
    site.db.mkdir()


def a_store_that_is_none(site: CaFiles) -> None:
    site.db.write_bytes(b"no database at all" * 100)


def a_store_of_a_newer_version(site: CaFiles) -> None:
    site.start_once()
    site.sql("UPDATE meta SET value = '99' WHERE key = 'schema_version'")


def an_issuing_ca_that_ended(site: CaFiles) -> None:
    site.clock.now += timedelta(days=91)


def a_clock_that_is_wrong(site: CaFiles) -> None:
    site.clock.now -= timedelta(days=1)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (no_ca, "holds no CA: .* certs init"),
        (a_key_that_others_can_read, "can be read or written by others: chmod 600"),
        (another_trust_domain, "its trust_domain is shoq.internal, but the CA in .* is of shop.internal"),
        (no_mesh, "mesh.yaml"),
        (a_broken_mesh, "mesh.yaml"),
        (no_delegate, "revocation.pem is missing: .* certs renew-issuing"),
        (no_bundle, "bundle.json is missing: .* certs renew-issuing"),
        (a_bundle_of_another_ca, "not of the CA in"),
        (a_store_of_another_ca, "is it the store of another CA"),
        (a_store_that_is_a_directory, "cannot open the store .*store.db: it is not a regular file"),
        (a_store_that_is_none, "cannot open the store .*store.db: file is not a database"),
        (a_store_of_a_newer_version, "newer version .*schema 99"),
        (an_issuing_ca_that_ended, "issuing.pem expired: .* certs renew-issuing"),
        (a_clock_that_is_wrong, "is this machine's clock right"),
    ],
)
def test_a_mistake_is_told_before_anything_is_served(
    mistake: Callable[[CaFiles], None], sentence: str, site: CaFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(site)
    opened: list[object] = []
    monkeypatch.setattr(sockets, "listen", lambda *where: opened.append(where))
    with pytest.raises(UsageError, match=sentence) as error:
        site.new_server()
    assert "\n" not in str(error.value) or mistake is a_broken_mesh
    assert opened == []


def test_a_port_that_is_taken(site: CaFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--listen: cannot listen on 127.0.0.1:{port}: .* another process"):
            site.new_server(listen=Address("127.0.0.1", port))
    server = site.new_server(listen=Address("127.0.0.1", port))  # and nothing that was opened stands in the way now
    for sock in server.sockets:
        sock.close()
    server.store.close()
    assert site.db.exists()


# -- it follows its store ----------------------------------------------------------------------------------------------


async def test_a_revocation_by_another_program_is_told_within_a_look(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        web, secret = site.keys("web"), site.make_secret(WEB)
        before = (await ca.listed())[0].version
        site.elsewhere(lambda it: revocations.revoke_identity(it, WEB))
        await ca.look()
        listed, _ = await ca.listed()
        assert listed.identities == {WEB: NOW + timedelta(seconds=1)}
        assert listed.version > before
        with pytest.raises(CaDeniedError) as denied:
            await ca.enrolled("web", secret)
        assert denied.value.denial == "pass_expired"
        async with ca.client(web) as client:
            with pytest.raises(CaDeniedError) as denied:
                await client.renew(csr().encode())
        assert denied.value.denial == "revoked"
        async with ca.client(site.keys("api")) as client:
            assert await client.renew(csr().encode()), "its neighbour is not"


async def test_a_bundle_by_another_program_is_told_within_a_look(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before = (await ca.listed())[1]
        site.elsewhere(lambda it: bundles.publish(it, *site.bundle(before + 5)))
        await ca.look()
        assert (await ca.listed())[1] == before + 5
        assert ca.reloaded() == [f"trust bundle {before + 5}"]
        async with ca.client() as client:
            assert len(await client.bundles(before)) == 1


async def test_a_bundle_of_another_ca_is_not_taken_and_revocations_are_told_all_the_same(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before = (await ca.listed())[1]
        other = authority.make(DOMAIN, NOW)
        bundle = Bundle(
            DOMAIN, before + 5, (other.root.certificate,), other.root.certificate.fingerprint(hashes.SHA256())
        )
        site.elsewhere(lambda it: bundles.publish(it, bundle, sign_bundle(bundle, [other.root])))
        await ca.look()
        await ca.look()
        assert (await ca.listed())[1] == before
        (warning,) = ca.warnings()
        assert "is it the store of another CA" in warning
        assert ca.mended() == []
        site.elsewhere(lambda it: revocations.revoke_identity(it, WEB))
        await ca.look()
        assert WEB in (await ca.listed())[0].identities
        site.sql("DELETE FROM bundles WHERE version = (SELECT max(version) FROM bundles)")
        await ca.look()
        assert (len(ca.warnings()), ca.mended()) == (1, ["store: good again"])


async def test_the_list_is_signed_anew_each_minute(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
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


async def test_a_list_that_nobody_could_read_is_not_signed(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        first, _ = await ca.listed()
        rows = [{"issuer": "QUFB" * 100, "serial": f"{number:x}", "not_after": 1 << 40} for number in range(2000)]
        site.elsewhere(lambda it: it.connection.execute(revoked_serials.insert(), rows))
        site.clock.now += timedelta(seconds=61)
        await ca.look()
        (warning,) = ca.warnings()
        assert "so it is not signed: revoke whole services" in warning
        assert (await ca.listed())[0] == first, "and none that says that less is revoked"
        site.elsewhere(lambda it: it.connection.execute(revoked_serials.delete()))
        await ca.look()
        assert (await ca.listed())[0].issued_at == site.clock.now


async def test_but_not_while_it_cannot_be_known_what_is_revoked(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        first, _ = await ca.listed()
        site.sql("ALTER TABLE revoked_identities RENAME TO away")
        site.clock.now += timedelta(minutes=5)
        await ca.look()
        assert (await ca.listed())[0] == first, "the last good is still told, and grows old"
        (warning,) = ca.warnings()
        assert "cannot be read" in warning
        assert "the previous state stays in force" in warning
        assert "mesh_ca_store_up 0.0" in await ca.metrics()
        site.sql("ALTER TABLE away RENAME TO revoked_identities")
        await ca.look()
        assert (await ca.listed())[0].issued_at == site.clock.now
        assert (len(ca.warnings()), ca.mended()) == (1, ["store: good again"])
        assert "mesh_ca_store_up 1.0" in await ca.metrics()


async def test_what_ended_long_ago_is_forgotten_now_and_then(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "PRUNE_SECONDS", 20.0)

    def certificates(connection: sa.Connection) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(issued)).scalar_one()

    async with serving(site, mock_clock) as ca:
        await ca.enrolled("api", site.make_secret(API))
        await ca.look()
        site.clock.now += timedelta(days=29)
        await ca.time.passes(20)
        await ca.look()
        assert ca.server.store.read(certificates) == 1
        site.clock.now += timedelta(days=2)
        await ca.look()
        assert ca.server.store.read(certificates) == 1, "not yet"
        await ca.time.passes(20)
        await ca.look()
        assert ca.server.store.read(certificates) == 0
        head = ca.server.store.read(audit_head).replace(" ", ":")
        assert ca.said("audit_head")[-1] == f"the newest entry of the audit log is {head}", (
            "for another machine to keep"
        )


# -- its policy file ---------------------------------------------------------------------------------------------------


async def test_a_new_service_can_enrol_and_a_removed_one_cannot(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        db, api = site.make_secret(SpiffeId(DOMAIN, ("db",))), site.make_secret(API)
        with pytest.raises(CaDeniedError, match="no service 'db'") as denied:
            await ca.enrolled("db", db)
        assert not denied.value.passing
        site.mesh.write_text("trust_domain: shop.internal\nservices: {db: {}, web: {}, cache: {}}\n")
        await ca.look()
        (waiting,) = ca.said("reload_waiting")
        assert waiting.startswith(
            f"{site.mesh}: service 'db' is new; takes effect when the file has not changed for 5 s"
        )
        with pytest.raises(CaDeniedError, match="service 'db' is new, and not in force yet") as denied:
            await ca.enrolled("db", db)
        assert denied.value.passing
        assert await ca.enrolled("api", api)
        await ca.opens()
        assert ca.reloaded() == [f"{site.mesh}: 3 services"]
        assert await ca.enrolled("db", db)
        with pytest.raises(CaDeniedError, match="no service 'api'"):
            await ca.enrolled("api", api)


async def test_sidecars_of_a_service_that_was_removed_are_forgotten_now_and_at_the_next_start(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    """A rotation of the root would wait for them."""

    def poll(service: SpiffeId) -> None:
        one = followers.Follower(str(service)[-1] * 32, str(service), 1, "0" * 64, site.clock() + HOUR, site.clock())
        site.elsewhere(lambda transaction: followers.save(transaction, one))

    def known() -> list[str]:
        return [one.identity for one in site.ask(lambda connection: followers.all_followers(connection, site.clock()))]

    async with serving(site, mock_clock) as ca:
        for service in (API, WEB):
            poll(service)
        site.mesh.write_text("trust_domain: shop.internal\nservices: {api: {ports: 80}}\n")
        await ca.look()
        assert known() == [str(API)]
    poll(WEB)
    site.start_once()
    assert known() == [str(API)]


@pytest.mark.parametrize("broken", ["services: [", MESH.replace("shop", "shoq"), ""])
async def test_a_broken_one_keeps_the_last_good_and_is_said_once(
    broken: str, site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        site.mesh.write_text(broken)
        await ca.look()
        await ca.look()
        (warning,) = ca.warnings()
        assert str(site.mesh) in warning
        assert warning.endswith("the previous state stays in force")
        assert await ca.enrolled("api", secret)
        site.mesh.write_text(MESH)
        await ca.look()
        assert (len(ca.warnings()), ca.mended(), ca.reloaded()) == (1, ["mesh: good again"], [])


async def test_how_long_a_caller_s_certificate_may_live_is_the_file_s(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        long_lived = site.keys("api", timedelta(hours=20))
        async with ca.client(long_lived) as client:
            assert await client.renew(csr().encode())
        site.mesh.write_text(f"{MESH}max_leaf_ttl: 2h\n")
        await ca.look()
        async with ca.client(long_lived) as client:
            with pytest.raises(CaError):
                await client.renew(csr().encode())
        assert ca.log.events("refused")[0]["reason"] == "bad_identity"
        async with ca.client(site.keys("api")) as client:
            assert await client.renew(csr().encode())


# -- its directory and its own certificate -----------------------------------------------------------------------------


async def test_a_new_issuing_ca_issues_from_now_on(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    site = new_site(tmp_path, Clock(NOW - timedelta(minutes=30)))
    async with serving(site, mock_clock) as ca:
        secret, old = site.make_secret(API), site.keys("web")
        site.clock.now += timedelta(minutes=30)
        fresh, _ = authority.renew_issuing(site.directory, site.clock.now)
        await ca.look()
        (line,) = ca.reloaded()
        assert f"issuing until {fresh.issuer.certificate.not_valid_after_utc:%FT%TZ}" in line
        assert (await ca.enrolled("api", secret))[1] == fresh.issuer.certificate
        async with ca.client(old) as client:
            assert await client.bundles(0), "what the old one issued is good still"


async def test_a_broken_directory_keeps_the_last_good(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        issuing = site.directory / "issuing.pem"
        good = issuing.read_bytes()
        issuing.write_bytes(good[:100])
        await ca.look()
        await ca.look()
        (warning,) = ca.warnings()
        assert "issuing.pem is not a certificate in PEM" in warning
        assert await ca.enrolled("api", secret)
        issuing.write_bytes(good)
        await ca.look()
        assert (len(ca.warnings()), ca.mended()) == (1, ["directory: good again"])


async def test_a_directory_of_another_ca_is_not_taken(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        authority.init(site.directory, "other.internal", NOW, force=True)
        await ca.look()
        assert any("now holds a CA of another trust domain" in warning for warning in ca.warnings())
        assert (await ca.enrolled("api", secret))[1] == site.ca.issuer.certificate
        authority.init(site.directory, DOMAIN, NOW, force=True)
        await ca.look()
        assert any("is it the store of another CA" in warning for warning in ca.warnings())
        assert (await ca.enrolled("api", secret))[1] == site.ca.issuer.certificate


async def test_a_directory_in_which_another_program_is_at_work_is_looked_at_again(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        await ca.look()
        fresh, _ = authority.renew_issuing(site.directory, NOW)
        descriptor = os.open(site.directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        await ca.look()
        assert (await ca.enrolled("api", secret))[1] == site.ca.issuer.certificate
        os.close(descriptor)
        await ca.look()
        await ca.look()
        assert (await ca.enrolled("api", secret))[1] == fresh.issuer.certificate


async def test_while_the_directory_cannot_be_read_a_new_bundle_waits_and_revocations_do_not(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    """The files that a bundle is about count before it does."""
    async with serving(site, mock_clock) as ca:
        before = (await ca.listed())[1]
        await ca.look()
        bundle = site.bundle(before + 5)
        descriptor = os.open(site.directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        site.elsewhere(lambda it: bundles.publish(it, *bundle))
        site.elsewhere(lambda it: revocations.revoke_identity(it, WEB))
        await ca.look()
        listed, newest = await ca.listed()
        assert (WEB in listed.identities, newest) == (True, before)
        (warning,) = ca.warnings()
        assert warning.endswith("the previous state stays in force")
        os.close(descriptor)
        await ca.look()
        assert (await ca.listed())[1] == before + 5
        assert ca.mended() == ["store: good again"]


async def health(ca: CaBed) -> str:
    """What ``/healthz`` says."""
    stream = await ca.stream()
    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n")
    text = b""
    while more := await stream.receive_some():
        text += more
    await stream.close()
    return text.decode()


async def test_with_a_directory_that_cannot_be_loaded_and_a_newer_bundle_it_signs_lists_and_is_not_healthy(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before, secret = (await ca.listed())[1], site.make_secret(API)
        await ca.look()
        bundle, key = site.bundle(before + 5), site.directory / "issuing.key"
        key.chmod(0o640)
        await ca.look()
        assert " 200 " in await health(ca), "nothing is missed yet"
        site.elsewhere(lambda it: bundles.publish(it, *bundle))
        for _ in range(3):
            site.clock.now += timedelta(seconds=61)
            await ca.look()
            listed, newest = await ca.listed()
            assert (listed.issued_at, newest) == (site.clock.now, before)
            assert listed.bundle == ca.server.in_force.bundle.name, "a list names the bundle that is in force here"
        said = await health(ca)
        assert " 503 " in said
        assert "the newest trust bundle is not in force here" in said
        assert await ca.enrolled("api", secret)
        key.chmod(0o600)
        site.clock.now -= timedelta(seconds=183)  # OpenSSL asks the machine for the time
        await ca.look()
        await ca.look()
        assert (await ca.listed())[1] == before + 5
        assert " 200 " in await health(ca)


def distrusting(site: CaFiles, version: int, key: bytes) -> tuple[Bundle, bytes]:
    bundle = replace(site.bundle(version)[0], distrusted=frozenset({key}))
    return bundle, sign_bundle(bundle, [authority.load_root(site.directory, None, None)])


async def test_a_bundle_that_ends_trust_does_not_wait_for_the_directory(
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before, secret = (await ca.listed())[1], site.make_secret(API)
        await ca.look()
        bundle = distrusting(site, before + 5, b"\1" * 32)
        (site.directory / "issuing.key").chmod(0o640)
        site.elsewhere(lambda it: bundles.publish(it, *bundle))
        await ca.look()
        listed, newest = await ca.listed()
        assert (newest, listed.distrusted) == (before + 5, frozenset({b"\1" * 32}))
        assert await ca.enrolled("api", secret), "its own key is trusted"
        assert " 200 " in await health(ca)


@pytest.mark.parametrize("of", ["issuer", "delegate"])
async def test_with_a_distrusted_key_of_its_own_it_issues_nothing_and_is_not_healthy(
    of: str, site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        before, secret = (await ca.listed())[1], site.make_secret(API)
        await ca.look()
        bundle = distrusting(site, before + 5, key_digest(getattr(site.ca, of).certificate))
        site.elsewhere(lambda it: bundles.publish(it, *bundle))
        await ca.look()
        assert ca.server.in_force.bundle.version == before + 5
        assert "issues no certificates: a key of it is distrusted" in str(ca.server.api.ailment())
        credential = enrolment.parse(secret)
        with pytest.raises(Denied, match="cannot issue now") as denied:
            await ca.server.api.write(
                lambda it: registrar.enrol(it, ca.server.in_force.policy, credential, "api", csr())
            )
        assert denied.value.denial is Denial.UNAVAILABLE
        authority.renew_issuing(site.directory, NOW)
        await ca.look()
        await ca.look()
        assert ca.server.api.ailment() is None
        assert await ca.enrolled("api", secret)


async def test_a_list_that_cannot_be_signed_is_no_health(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
    async with serving(site, mock_clock) as ca:
        rows = [{"issuer": "QUFB" * 100, "serial": f"{number:x}", "not_after": 1 << 40} for number in range(2000)]
        site.elsewhere(lambda it: it.connection.execute(revoked_serials.insert(), rows))
        site.clock.now += timedelta(seconds=200)
        await ca.look()
        assert "the list of revocations cannot be signed" in await health(ca)
        site.elsewhere(lambda it: it.connection.execute(revoked_serials.delete()))
        await ca.look()
        assert " 200 " in await health(ca)


async def test_its_own_certificate_is_renewed_at_half_of_its_life(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    site = new_site(tmp_path, Clock(start := NOW - timedelta(hours=13)))
    async with serving(site, mock_clock) as ca:

        async def until() -> datetime:
            stream = await ca.stream()
            svid = stream.channel.svid
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
    site: CaFiles, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(site, mock_clock) as ca:
        site.clock.now += timedelta(hours=13)  # it renews its certificate
        await ca.look()
        site.clock.now = NOW
        with pytest.raises(CaError, match="not yet valid"):
            await ca.listed()
        await ca.look()
        assert (await ca.listed())[0].issued_at == NOW


async def test_an_issuing_ca_that_ends_soon_is_said_once(site: CaFiles, mock_clock: trio.testing.MockClock) -> None:
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
    site = new_site(tmp_path, Clock(NOW - timedelta(days=91)))
    async with serving(site, mock_clock) as ca:
        secret = site.make_secret(API)
        site.clock.now += timedelta(days=91)
        await ca.look()
        with pytest.raises(CaError):
            await ca.enrolled("api", secret)  # its own certificate has ended too
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
        assert identity_of(await ca.enrolled("api", secret)) == API


async def test_a_bug_in_following_ends_nothing(
    site: CaFiles, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
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
        await ca.opens()
        assert await ca.enrolled("db", secret)
        ca.log.lines.clear()


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it(number: int, site: CaFiles) -> None:
    log, handler = LogSink(), signal.getsignal(number)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, site.settings(), Log(log, "json"), site.clock)
            await log.until(lambda: bool(log.events("started")))
            os.kill(os.getpid(), number)
    assert [line["event"] for line in log.lines] == ["started", "stopped"]
    assert signal.getsignal(number) is handler
    (started,) = log.events("started")
    assert re.fullmatch("[0-9]+:[0-9a-f]{64}", started["audit_head"])
    assert started["message"] == "CA of shop.internal for 2 services"
    assert started["root_sha256"] == site.ca.root_digest.hex()
    assert started["issuing_until"] == f"{site.ca.issuer.certificate.not_valid_after_utc:%FT%TZ}"
    assert started["listen"].startswith("127.0.0.1:")


async def test_sighup_reads_everything_again_and_ends_nothing(site: CaFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LOOK_SECONDS", 1e6)  # nobody looks
    log, handler = LogSink(), signal.getsignal(signal.SIGHUP)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, site.settings(), Log(log, "json"), site.clock)
            await log.until(lambda: bool(log.events("started")))
            site.mesh.write_text("trust_domain: shop.internal\nservices: {db: {}}\n")
            os.kill(os.getpid(), signal.SIGHUP)
            await log.until(lambda: bool(log.events("reloaded")))
            os.kill(os.getpid(), signal.SIGTERM)
    assert [line["event"] for line in log.lines] == ["started", "reloaded", "stopped"]
    assert signal.getsignal(signal.SIGHUP) is handler


async def test_a_second_signal_does_not_wait(site: CaFiles) -> None:
    log = LogSink()
    with trio.fail_after(DRAIN_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, site.settings(), Log(log, "json"), site.clock)
            await log.until(lambda: bool(log.events("started")))
            host, _, port = log.events("started")[0]["listen"].rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(bytes((22, 3, 1, 0, 6, 1, 0, 3, 232, 3, 3)))  # its handshake is under way
                await trio.testing.wait_all_tasks_blocked(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert log.events("stopped") == []
                os.kill(os.getpid(), signal.SIGTERM)
                await log.until(lambda: bool(log.events("stopped")))
