"""What the shell does for each step, with a CA in memory. ``tests/integration/agent`` has the same with a CA that serves."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from trio.testing import MockClock

from certs.authority import authority, pemfiles
from certs.protocol import documents, enrolment, report, x509_profile
from certs.protocol.client import CaDeniedError, CaError, Polled
from certs.protocol.denial import Denial
from certs.protocol.documents import Bundle, RevocationList
from sidecar.agent.agent import NO_REPORTS_SECONDS, Agent, pinned
from sidecar.agent.credentials import Credentials
from sidecar.agent.membership import Enrol, Failure, FetchBundles, GiveUp, Poll, Renew, Wait, Why
from sidecar.agent.statedir import PENDING
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import parse_mesh
from tests.beds.clock import NOW, Clock
from tests.beds.mesh import LogSink

DOMAIN = "shop.internal"
API = SpiffeId(DOMAIN, ("api",))
HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
MADE = authority.make(DOMAIN, NOW - 24 * HOUR)
PIN = certificate_digest(MADE.root.certificate)
BUNDLE = documents.sign_bundle(Bundle(DOMAIN, 1, (MADE.root.certificate,), PIN), [MADE.root])
MESH = parse_mesh(f"trust_domain: {DOMAIN}\nservices: {{api: {{}}, web: {{}}}}", "mesh.yaml")
CA = "https://127.0.0.1:1"


@dataclass
class MemoryCa:
    """In place of :class:`~certs.protocol.client.CaClient`. ``shown``: what the sidecar showed it last; ``denial``: with
    which word it refuses to enrol."""

    clock: Clock
    shown: Any = None
    denial: str = ""
    revoked: dict[SpiffeId, datetime] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    fault: CaError | None = None

    async def use(self, keys: Any, _revocations: Revocations) -> None:
        self.shown = keys

    async def judge_by(self, _revocations: Revocations) -> None:
        """All that it says is believed here."""

    async def close(self) -> None:
        """Nothing is open."""

    async def bundles(self, after: int, *, unverified: bool) -> list[bytes]:
        return [] if after else [BUNDLE]

    async def revocations(self, _etag: str, _instance: str, _bundle: int) -> Polled:
        name = documents.read_kept_bundle(BUNDLE, DOMAIN, NOW).name
        listed = RevocationList(DOMAIN, 1 + len(self.revoked), self.clock(), self.revoked, bundle=name)
        return Polled(documents.sign_revocations(listed, MADE.delegate), '"1"')

    async def report(self, instance: str, document: bytes) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        self.reports.append({"instance": instance, **report.parse(document)})
        return {}

    async def enrol(self, _service: str, _text: str, csr: bytes) -> bytes:
        if self.denial:
            raise CaDeniedError(self.denial, "no", passing=False)
        return self.issue(csr)

    def issue(self, csr: bytes) -> bytes:
        key = x509.load_pem_x509_csr(csr).public_key()
        leaf = x509_profile.leaf(API, key, MADE.issuing, self.clock(), HOUR)
        return pemfiles.pem(leaf, MADE.issuing.certificate)


@dataclass
class It:
    agent: Agent
    ca: MemoryCa
    clock: Clock
    log: LogSink
    state: Path
    adopted: list[tuple[Credentials, Revocations]] = field(default_factory=list)

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]

    async def adopt(self, credentials: Credentials, revocations: Revocations) -> None:
        self.adopted.append((credentials, revocations))

    async def adopts(self) -> int:
        """How often it puts something in force."""
        before = len(self.adopted)
        await self.agent._adopt(self.adopt)
        return len(self.adopted) - before


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[It]:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(f"{enrolment.make('secret', PIN)}\n")
    identity = CaIdentity(ca=CA, root_sha256=PIN.hex(), enrolment=secret, state_dir=tmp_path / "state")
    clock, log = Clock(NOW), LogSink()
    agent = Agent("api", identity, lambda: MESH, Log(log, "json"), clock)
    ca = MemoryCa(clock)
    agent._client = ca  # type: ignore[assignment]
    yield It(agent, ca, clock, log, identity.state_dir)
    await agent.close()


async def test_it_enrols_and_tells_of_it(it: It) -> None:
    assert it.agent.trust() == {"ca": CA}
    await it.agent.enrol()
    assert it.events == ["trust_bundle", "enrolled"]
    assert set(it.agent.trust()) == {"ca", "trust_bundle", "roots", "revocations_as_of", "renews_at"}
    await it.agent._do(Enrol())
    assert it.events[-1] == "enrolled_again"


async def test_to_wait_is_to_wait(it: It, mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0
    begin = trio.current_time()
    await it.agent._do(Wait(begin + 5))
    assert trio.current_time() == begin + 5
    assert it.agent._membership.reports == []


async def test_it_gives_up_with_the_reason(it: It) -> None:
    cause = UsageError("secret: it is not one")
    with pytest.raises(UsageError) as raised:
        await it.agent._do(GiveUp(Failure(Why.UNUSABLE, "no", cause)))
    assert raised.value is cause
    for why, itself in ((Why.UNUSABLE, None), (Why.DENIED, CaError("refused"))):
        with pytest.raises(UsageError, match=rf"^{CA}: api cannot enrol: no$") as raised:
            await it.agent._do(GiveUp(Failure(why, "no", itself)))
        assert raised.value.__cause__ is itself


async def test_only_what_is_new_is_put_in_force(it: It) -> None:
    assert await it.adopts() == 0, "without a certificate nothing is"
    await it.agent.enrol()
    assert await it.adopts() == 1
    assert await it.adopts() == 0
    await it.agent._do(Enrol())  # another certificate
    assert await it.adopts() == 1
    assert await it.adopts() == 0
    it.clock.pass_by(seconds=1)  # a list that is fresh for longer
    await it.agent._do(Poll())
    assert await it.adopts() == 1
    assert await it.adopts() == 0
    it.ca.revoked[SpiffeId(DOMAIN, ("web",))] = NOW  # and one that says more
    await it.agent._do(Poll())
    assert await it.adopts() == 1
    assert await it.adopts() == 0
    assert it.adopted[-1][1].identities == it.ca.revoked


async def test_nothing_is_renewed_without_a_bundle_and_a_certificate(it: It) -> None:
    with pytest.raises(RuntimeError, match="not enrolled yet"):
        await it.agent._obtain(Enrol())
    await it.agent._do(FetchBundles(verified=False))
    with pytest.raises(RuntimeError, match="not enrolled yet"):
        await it.agent._obtain(Renew())


async def test_the_key_of_a_lost_answer_is_kept_unless_the_ca_does_not_repeat_it(it: It) -> None:
    await it.agent._do(FetchBundles(verified=False))
    it.ca.denial = Denial.PASS_EXPIRED
    with pytest.raises(CaDeniedError):
        await it.agent._obtain(Enrol())
    kept = (it.state / PENDING).read_bytes()
    it.ca.denial = Denial.KEY_REUSED
    with pytest.raises(CaError, match="an earlier answer was lost"):
        await it.agent._obtain(Enrol())
    assert not (it.state / PENDING).exists()
    assert kept


async def test_a_certificate_that_has_ended_is_not_shown_to_the_ca(it: It) -> None:
    await it.agent.enrol()
    own = it.agent.credentials
    assert own is not None
    await it.agent._configure_client()
    assert it.ca.shown == own.keys
    it.clock.now = own.svid.not_after
    await it.agent._configure_client()
    assert it.ca.shown == own.keys
    it.clock.now += SECOND
    await it.agent._configure_client()
    assert it.ca.shown == own.keys.roots


def test_a_ca_is_pinned_by_one_of_two(tmp_path: Path) -> None:
    identity = CaIdentity(ca=CA, root_sha256=PIN.hex(), state_dir=tmp_path)
    file = tmp_path / "root.pem"
    file.write_bytes(pemfiles.pem(MADE.root.certificate))
    assert pinned(identity) == pinned(replace(identity, root_sha256=None, root=file)) == PIN
    with pytest.raises(UsageError, match="needs root or root_sha256"):
        pinned(replace(identity, root_sha256=None))


# -- reports -----------------------------------------------------------------------------------------------------------


def counted(it: It) -> None:
    """Its reports are numbered."""
    numbers = itertools.count(1)
    it.agent.report(lambda: {"version": 1, "strangers": next(numbers)})


async def test_each_poll_has_a_report(it: It) -> None:
    await it.agent.enrol()
    assert it.ca.reports == [], "nobody makes one yet"
    counted(it)
    for _ in range(2):
        await it.agent._do(Poll())
    assert [one["strangers"] for one in it.ca.reports] == [1, 2]
    assert {one["instance"] for one in it.ca.reports} == {it.agent._saved.instance}


async def test_one_that_is_wanted_soon_ends_the_wait_for_the_next_poll(it: It, mock_clock: MockClock) -> None:
    await it.agent.enrol()
    mock_clock.autojump_threshold = 0
    counted(it)
    began = trio.current_time()
    it.agent.report_soon()
    await it.agent._do(Wait(began + 5))
    assert (len(it.ca.reports), trio.current_time()) == (1, began)
    await it.agent._do(Wait(began + 5))
    assert (len(it.ca.reports), trio.current_time()) == (1, began + 5)


async def test_a_ca_that_does_not_take_it_is_told_of_once_and_is_polled_as_ever(it: It) -> None:
    await it.agent.enrol()
    counted(it)
    for fault in (CaError("no answer"), CaDeniedError("rate_limited", "too many", passing=True)):
        it.ca.fault = fault
        for _ in range(3):
            await it.agent._do(Poll())
    assert it.events.count("report_failed") == 2
    assert it.agent._membership.reports == [] or all(one.message is None for one in it.agent._membership.reports)
    it.ca.fault = None
    await it.agent._do(Poll())
    assert it.events[-1] == "report_mended"


async def test_an_older_ca_is_not_asked_again_for_an_hour(it: It, mock_clock: MockClock) -> None:
    await it.agent.enrol()
    counted(it)
    it.ca.fault = CaDeniedError("not_found", "there is no such path", passing=False)
    await it.agent._do(Poll())
    it.ca.fault = None
    await it.agent._do(Poll())
    assert (it.ca.reports, "report_failed" in it.events) == ([], False)
    mock_clock.jump(NO_REPORTS_SECONDS)
    await it.agent._do(Poll())
    assert len(it.ca.reports) == 1


async def test_a_fault_of_ours_in_a_report_costs_the_report_alone(it: It) -> None:
    await it.agent.enrol()
    nothing: dict[str, dict[str, Any]] = {}
    it.agent.report(lambda: nothing["x"])
    await it.agent._do(Poll())
    assert "report_failed" in it.events
    assert all(one.message is None for one in it.agent._membership.reports)


async def test_how_many_may_have_our_identity_is_what_the_mesh_file_says_now(it: It) -> None:
    for services, room in (("{api: {instances: 3}}", 3), ("{api: {}}", 1), ("{web: {}}", 1)):
        mesh = parse_mesh(f"trust_domain: shop.internal\nservices: {services}\n", "mesh.yaml")
        it.agent.follow(lambda mesh=mesh: mesh)  # type: ignore[misc]
        assert it.agent._twins._instances() == room
