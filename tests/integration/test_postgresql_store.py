"""The CA's store on a real PostgreSQL: what it promises on SQLite it keeps there, and two CAs can share it."""

from __future__ import annotations

import itertools
import json
import signal
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import authority
from certs.protocol import enrolment
from certs.protocol.client import CaClient, CaDeniedError
from certs.protocol.denial import Denied
from certs.registrar import registrar, revocations
from certs.registrar.registrar import IssuingPolicy
from certs.store import audit, store
from certs.store.store import SCHEMA_VERSION, Store, Transaction
from sidecar.agent import accept
from sidecar.host.clock import utc_now
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from tests.beds.ca_processes import Caller, CaSite, denial
from tests.beds.processes import DEADLINE, Running, free_port, running
from tests.integration.database import Database, owned_directory
from tests.protocols.programs import needs
from tests.schema import open_as_later, schema_of

pytestmark = needs("postgres", "initdb", "psql")

WEB, API = (SpiffeId("shop.internal", (name,)) for name in ("web", "api"))
NUMBERS = itertools.count(1)
SERVICES = [f"s{number:02}" for number in range(40)]
MESH = "trust_domain: shop.internal\nservices:\n" + "".join(f"  {service}: {{}}\n" for service in SERVICES)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """An empty cluster, made once."""
    with owned_directory() as (path, as_owner):
        yield Database.make(path, as_owner)


@pytest.fixture
async def serving(database: Database) -> AsyncIterator[Database]:
    async with database.serves():
        yield database


@pytest.fixture
def url(serving: Database) -> str:
    """A database of the test's own."""
    return serving.create(f"store{next(NUMBERS)}")


@pytest.fixture
def opened(url: str) -> Iterator[Store]:
    with store.opened(url, clock=lambda: 1_800_000_000) as found:
        yield found


# -- the store, one process --------------------------------------------------------------------------------------------


def log(found: Store) -> list[audit.Entry]:
    return found.read(lambda connection: list(store.audit_entries(connection)))


def noting(name: str) -> Callable[[Transaction], str]:
    def note(transaction: Transaction) -> str:
        transaction.record("note", name)
        transaction.put(name, name)
        return name

    return note


def failing(transaction: Transaction) -> None:
    transaction.record("note", "never")
    transaction.put("never", "never")
    raise ValueError("undone")


async def test_what_is_written_is_read(opened: Store) -> None:
    assert opened.write(noting("one")) == "one"
    assert opened.write(lambda transaction: transaction.get("one")) == "one"
    assert [(entry.number, entry.identity) for entry in log(opened)] == [(1, "one")]


async def test_one_that_fails_undoes_itself_alone(opened: Store) -> None:
    outcomes = opened.write_many([noting("one"), failing, noting("two")])
    assert outcomes[0] == "one"
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == "two"
    assert [entry.identity for entry in log(opened)] == ["one", "two"]
    assert list(audit.faults(log(opened))) == []
    assert opened.write(lambda transaction: transaction.get("never")) is None


async def test_one_that_breaks_a_rule_of_the_database_undoes_itself_alone(opened: Store) -> None:
    """PostgreSQL aborts the whole transaction at an error; the savepoint keeps the others."""

    def twice(transaction: Transaction) -> None:
        for _ in range(2):
            transaction.connection.execute(store.meta.insert().values(key="same", value=""))

    outcomes = opened.write_many([noting("one"), twice, noting("two")])
    assert isinstance(outcomes[1], sa.exc.IntegrityError)
    assert [entry.identity for entry in log(opened)] == ["one", "two"]
    assert opened.write(lambda transaction: transaction.get("same")) is None


async def test_two_that_open_an_empty_database_at_once_make_it_once(url: str) -> None:
    stores: list[Store] = []
    threads = [
        threading.Thread(target=lambda: stores.append(Store(url, clock=lambda: 1_800_000_000))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    for number, one in enumerate(stores):
        one.write(noting(f"from {number}"))
    assert len(log(stores[0])) == 8
    assert list(audit.faults(log(stores[0]))) == []
    for one in stores:
        one.close()


async def test_writers_of_many_connections_make_one_chain(url: str) -> None:
    def write(name: str) -> None:
        with store.opened(url, clock=lambda: 1_800_000_000) as one:
            for number in range(25):
                one.write(noting(f"{name}-{number}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.opened(url, clock=lambda: 0) as one:
        assert len(log(one)) == 100
        assert list(audit.faults(log(one))) == []


async def test_a_schema_of_a_newer_version_is_refused(url: str) -> None:
    with store.opened(url, clock=lambda: 0) as one:
        one.write(lambda transaction: transaction.put("schema_version", str(SCHEMA_VERSION + 1)))
    with pytest.raises(UsageError, match=str(SCHEMA_VERSION + 1)):
        Store(url, clock=lambda: 0)


def schema(url: str) -> Mapping[str, Any]:
    engine = store._engine(store._parse(url))
    with engine.connect() as connection:
        found = schema_of(connection)
    engine.dispose()
    return found


async def test_a_new_store_is_what_the_tables_say(serving: Database, url: str) -> None:
    with store.opened(url, clock=lambda: 0):
        pass
    made = serving.create(f"store{next(NUMBERS)}")
    engine = store._engine(store._parse(made))
    store._tables.create_all(engine)
    assert schema(url) == schema(made)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE issued ALTER COLUMN how SET DEFAULT 'token'")
    engine.dispose()
    assert schema(url) != schema(made)


async def test_the_next_change_of_the_schema_reaches_new_stores_and_old_ones(serving: Database, url: str) -> None:
    with store.opened(url, clock=lambda: 0) as old:
        old.write(noting("kept"))
    fresh, made = (serving.create(f"store{next(NUMBERS)}") for _ in range(2))
    assert await trio.to_thread.run_sync(open_as_later, fresh, made) == "3"
    assert await trio.to_thread.run_sync(open_as_later, url) == "3"
    assert schema(fresh) == schema(url) == schema(made)
    assert "note" in {column["name"] for column in schema(fresh)["passes"]["columns"]}


async def test_a_database_that_is_not_there_is_named_without_its_password(serving: Database) -> None:
    wrong = serving.url("nowhere").replace("tester@", "tester:hunter2@")
    with pytest.raises(UsageError, match=r"tester:\*\*\*@.*nowhere.* does not exist") as refused:
        Store(wrong, clock=lambda: 0)
    assert "hunter2" not in str(refused.value)


async def test_the_life_of_an_identity(opened: Store, tmp_path: Path) -> None:
    """A token, its certificate, a renewal, a revocation, and what is told of it, each through the registrar."""
    now = utc_now().replace(microsecond=0)
    site = authority.init(tmp_path / "ca", "shop.internal", now)
    terms = IssuingPolicy(site, {"web", "api"})
    opened._clock = lambda: int(now.timestamp())
    token = enrolment.make("token", site.root_digest)
    opened.write(lambda transaction: registrar.add_credential(transaction, token, WEB))
    key, other = new_key(), new_key()
    csr, other_csr = (accept.csr_for(one).decode() for one in (key, other))

    def enrol(service: str, request: str) -> Callable[[Transaction], str]:
        return lambda transaction: registrar.enrol(transaction, terms, token, service, request)

    with pytest.raises(Denied, match="bad_pass"):
        opened.write(enrol("api", csr))
    first = opened.write(enrol("web", csr))
    assert opened.write(enrol("web", csr)) == first, "the same key, the same answer"
    with pytest.raises(Denied, match="pass_used"):
        opened.write(enrol("web", other_csr))

    leaf = x509.load_pem_x509_certificate(first.encode()).public_bytes(Encoding.DER)

    def renew(request: str) -> Callable[[Transaction], str]:
        return lambda transaction: registrar.renew(transaction, terms, [leaf], request)

    assert opened.write(renew(other_csr)) != first
    secret = enrolment.make("secret", site.root_digest)
    opened.write(lambda transaction: registrar.add_credential(transaction, secret, API))
    with pytest.raises(Denied, match="key_reused"):
        opened.write(lambda transaction: registrar.enrol(transaction, terms, secret, "api", csr))

    before = opened.read(revocations.revocations_version)
    opened.write(lambda transaction: revocations.revoke_identity(transaction, WEB))
    assert opened.read(revocations.revocations_version) > before
    listed = opened.read(lambda connection: revocations.current_list(connection, "shop.internal", now))
    assert set(listed.identities) == {WEB}
    with pytest.raises(Denied, match="revoked"):
        opened.write(renew(accept.csr_for(new_key()).decode()))

    number = len(log(opened))
    opened._clock = lambda: int((now + timedelta(days=40)).timestamp())
    opened.write(registrar.prune)
    assert opened.read(lambda connection: list(connection.execute(sa.select(store.issued)))) == []
    assert len(log(opened)) == number, "the audit log forgets nothing"
    assert list(audit.faults(log(opened))) == []


# -- the database goes and comes back ----------------------------------------------------------------------------------


async def test_a_database_that_stops_and_starts_again_under_the_ca(database: Database, tmp_path: Path) -> None:
    async with database.serves():
        site = CaSite.make(tmp_path, MESH, store=database.create("stops"))
        tokens = site.make_credentials("s00")
    caller = site.caller("s00")
    async with trio.open_nursery() as databases:
        stop = trio.Event()
        await databases.start(database.live, stop)
        async with site.serves() as ca:
            await caller.enrol(tokens["s00"])
            await caller.renew()
            assert await caller.health() == 200

            stop.set()
            in_force = caller.chain
            with trio.fail_after(DEADLINE):
                while await caller.health() == 200:
                    pass
            said = await denial(caller.renew())
            assert (said.denial, said.passing) == ("unavailable", True)
            assert await caller.health() == 503
            assert caller.chain == in_force
            # What it knows it still tells: neither trust nor revocations hang on the database.
            assert (await caller.client.revocations("", "", 0)).document is not None
            await ca.event("warning")

            async with database.serves():
                renewed = await caller.renew()  # the first that asks has it
                assert await caller.health() == 200
                await ca.event("mended")
                assert renewed in site.issued()
                assert len(site.issued()) == 3
                assert site.faults() == []
                await caller.client.close()
                ca.signal(signal.SIGTERM)
                assert await ca.ended() == 0


async def test_a_ca_does_not_start_without_its_database(database: Database, tmp_path: Path) -> None:
    site = CaSite.make(tmp_path, MESH, store=database.url())
    listen = ("--mesh", str(site.path / "mesh.yaml"), "--listen", "127.0.0.1:0")
    async with running(*site.command("serve", *listen)) as ca:
        assert await ca.ended() == 2
    assert "postgresql://tester@127.0.0.1" in ca.errors
    assert "Traceback" not in ca.errors


# -- two CAs, one database ---------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two replicas of one CA, and callers who ask now this one, now that one."""

    site: CaSite
    ports: tuple[int, int]
    replicas: tuple[Running, Running]

    def caller(self, service: str, replica: int) -> Caller:
        return self.site.caller(service, port=self.ports[replica])


@asynccontextmanager
async def pair(database: Database, path: Path, name: str) -> AsyncIterator[Pair]:
    async with database.serves():
        site = CaSite.make(path, MESH, store=database.create(name))
        ports = (site.port, free_port())
        async with site.serves(port=ports[0]) as one, site.serves(port=ports[1]) as other:
            yield Pair(site, ports, (one, other))


RATE, ROUNDS = 100, 13


async def test_two_replicas_under_a_hundred_renewals_a_second(database: Database, tmp_path: Path) -> None:
    async with pair(database, tmp_path, "replicas") as two:
        secrets = two.site.make_credentials(*SERVICES, kind="secret")
        had: list[str] = []
        callers = []
        for number, service in enumerate(SERVICES):
            caller = two.caller(service, number % 2)
            had.append(await caller.enrol(secrets[service]))
            callers.append(caller)

        async def renews(caller: Caller, begin: float) -> None:
            """At its times, whatever they cost, now here, now there."""
            for number in range(ROUNDS):
                await trio.sleep_until(begin + number * len(SERVICES) / RATE)
                had.append(await caller.renew())
                caller.client, other = other_client(caller), caller.client
                await other.close()

        def other_client(caller: Caller) -> CaClient:
            here = caller.client._address.port
            there = two.caller(caller.service, 1 - two.ports.index(here)).client
            there._keys = caller.keys
            return there

        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, caller in enumerate(callers):
                nursery.start_soon(renews, caller, begin + number / RATE)
        for caller in callers:
            await caller.client.close()

        assert len(had) == len(SERVICES) * (1 + ROUNDS), "no error"
        assert sorted(two.site.issued()) == sorted(had), "none is missing, and none is there that nobody had"
        assert two.site.faults() == []
        for replica in two.replicas:
            assert [line for line in replica.said if line["level"] not in ("info",)] == []


async def test_a_token_used_at_both_replicas_at_once_has_one_winner(database: Database, tmp_path: Path) -> None:
    async with pair(database, tmp_path, "tokens") as two:
        tokens = two.site.make_credentials(*SERVICES)
        outcomes: dict[str, list[str]] = {service: [] for service in SERVICES}

        async def tries(service: str, replica: int) -> None:
            caller = two.caller(service, replica)
            try:
                await caller.enrol(tokens[service])
                outcomes[service].append("won")
            except CaDeniedError as denied:
                outcomes[service].append(denied.denial)
            await caller.client.close()

        for service in SERVICES:
            async with trio.open_nursery() as nursery:
                for replica in (0, 1, 0, 1):
                    nursery.start_soon(tries, service, replica)
        assert {tuple(sorted(each)) for each in outcomes.values()} == {("pass_used", "pass_used", "pass_used", "won")}
        assert len(two.site.issued()) == len(SERVICES)
        assert two.site.faults() == []


async def test_what_is_revoked_at_one_is_told_by_both_within_seconds(database: Database, tmp_path: Path) -> None:
    async with pair(database, tmp_path, "revoked") as two:
        secrets = two.site.make_credentials("s00", "s01", kind="secret")
        askers = [two.caller(f"s0{replica}", replica) for replica in (0, 1)]
        for asker in askers:
            await asker.enrol(secrets[asker.service])
        before = [await asker.client.revocations("", "0" * 32, 0) for asker in askers]
        again = [
            await asker.client.revocations(one.etag, "0" * 32, 0) for asker, one in zip(askers, before, strict=True)
        ]
        assert [one.document for one in again] == [None, None], "nothing new, nothing sent"

        revoked = two.caller("s39", 1)  # it got its certificate at the one, and is revoked by the other's command
        await revoked.enrol(two.site.make_credentials("s39")["s39"])
        assert "revoked all certificates" in await two.site.certs("revoke", "s39")
        with trio.fail_after(20):
            for asker, old in zip(askers, before, strict=True):
                told = old
                while told.document is None or told.etag == old.etag:
                    told = await asker.client.revocations(old.etag, "0" * 32, 0)
                assert b"spiffe://shop.internal/s39" in b64decode(json.loads(told.document)["payload"])
        assert (await denial(revoked.renew())).denial == "revoked"
        await askers[0].renew()  # the twin
        for one in (*askers, revoked):
            await one.client.close()
