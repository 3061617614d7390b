"""A sidecar's membership against a real CA, through all that may happen to either.

Certificates live 5 minutes here, so they are renewed after some 120 s: at half of their 6 (with the minute that they are
dated back), give or take a tenth.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

from certs.authority import authority, pemfiles
from certs.authority.authority import Authority
from certs.protocol import documents, x509_profile
from certs.registrar import revocations
from certs.registrar.rotation import Rotator
from certs.service.api import RateLimits
from certs.service.limits import Rate
from certs.store import store
from sidecar.agent import accept
from sidecar.agent.agent import POLL_SECONDS
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.transport.http1 import Handler, Request, Response, error
from tests.beds.ca import CaBed, Sidecar, asked, ca_bed, files_of, verdict
from tests.beds.certificates import key_pair
from tests.beds.mesh import MESH

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
API = SpiffeId("shop.internal", ("api",))


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


def key_of(sidecar: Sidecar) -> bytes:
    return accept.key_pem(sidecar.own.keys.key)


def how_issued(bed: CaBed) -> list[str]:
    """By what each certificate was had, in the store's order."""
    question = sa.select(store.issued.c.how).order_by(store.issued.c.issued_at)
    return list(bed.server.store.read(lambda connection: list(connection.execute(question).scalars())))


# -- enrolment ---------------------------------------------------------------------------------------------------------


async def test_it_enrols_once_and_a_restart_needs_nobody(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api", bed.token())
    assert api.own.svid.id == API
    assert api.events == ["trust_bundle", "enrolled"]
    serial = api.serial
    await api.ends()
    await bed.goes_down()
    again = bed.sidecar("api")  # with no token at all
    await again.joins()
    assert again.serial == serial
    assert again.events == []


async def test_what_it_keeps_is_its_own_alone(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    assert stat.S_IMODE(api.state.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in api.state.iterdir()} == dict.fromkeys(
        ("identity.pem", "bundle.json", "revocations.json", "member.json", "own.json"), 0o600
    )


async def test_a_token_is_for_one_sidecar(bed: CaBed, mock_clock: MockClock) -> None:
    token = bed.token()
    await bed.joined("api", token)
    thief = bed.sidecar("api", token, name="thief")
    with pytest.raises(UsageError, match="this token was used already"):
        await thief.joins()
    assert not (thief.state / "identity.pem").exists()


async def test_a_secret_is_for_every_replica(bed: CaBed, mock_clock: MockClock) -> None:
    secret = bed.secret()
    one, two = await bed.joined("api", secret), await bed.joined("api", secret, name="replica")
    assert one.own.svid.id == two.own.svid.id == API
    assert key_of(one) != key_of(two)


async def test_without_a_pass_it_says_how_to_get_one(bed: CaBed, mock_clock: MockClock) -> None:
    api = bed.sidecar("api")
    with pytest.raises(UsageError, match=r"has no usable certificate.*certs token api"):
        await api.joins()


async def test_a_pass_of_another_service_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    with pytest.raises(UsageError, match=r"api cannot enrol: the CA refused \(bad_pass\)"):
        await bed.sidecar("api", bed.secret("web")).joins()


async def test_a_service_that_the_mesh_does_not_have_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    secret = bed.secret("stranger")
    with pytest.raises(UsageError, match=r"unknown_service.*'stranger'"):
        await bed.sidecar("stranger", secret).joins()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mesh-token.zz", "not a token or an enrolment secret"),
        ("mesh-token." + "0" * 64 + "." + "0" * 64, "a token of the wrong length"),
        ("x" * 10_000, "not a token or an enrolment secret"),
        (" \n", "empty"),
    ],
)
async def test_what_is_no_pass_is_not_sent(bed: CaBed, mock_clock: MockClock, text: str, said: str) -> None:
    file = bed.secret()
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        await bed.sidecar("api", file).joins()
    assert asked(bed, "/v1/enrol") == 0
    assert text.strip() == "" or text not in str(refused.value)


async def test_a_pass_that_others_can_read_is_not_used(bed: CaBed, mock_clock: MockClock) -> None:
    file = bed.secret()
    file.chmod(0o644)
    with pytest.raises(UsageError, match=re.escape(f"chmod 600 {file}")):
        await bed.sidecar("api", file).joins()
    assert asked(bed, "/v1/enrol") == 0


async def test_a_pass_of_another_mesh_is_not_sent(bed: CaBed, mock_clock: MockClock) -> None:
    foreign = bed.pass_for("secret", "api", root=b"\1" * 32)
    with pytest.raises(UsageError, match=r"of a mesh under another root \(0101.*it is not sent"):
        await bed.sidecar("api", foreign).joins()
    assert asked(bed, "/v1/enrol") == 0
    await bed.sidecar("api", bed.secret(), name="twin").joins()
    assert asked(bed, "/v1/enrol") == 1


async def test_a_ca_that_is_not_there_yet_is_waited_for(bed: CaBed, mock_clock: MockClock) -> None:
    secret = bed.secret()
    await bed.goes_down()
    api = bed.sidecar("api", secret)
    bed.nursery.start_soon(api.agent.enrol)
    await bed.time.passes(300)
    [said] = api.said("joining_failed")  # once, however often it tried
    assert said.startswith(f"cannot join the mesh yet: the CA at 127.0.0.1:{bed.port} cannot be reached: ")
    assert said.endswith("; trying again")
    bed.starts()
    took = await bed.time.until(lambda: api.agent.credentials, within=61)
    assert took <= 60


async def test_the_ca_s_passing_no_is_waited_out(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RateLimits(identity=Rate(1, 1 / 30))
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=limits) as bed:
        await bed.joined("api")
        second = bed.sidecar("api", bed.secret(), name="replica")
        await second.joins()
        [said] = second.said("joining_failed")
        assert "(rate_limited): too many certificates for spiffe://shop.internal/api" in said


async def test_an_answer_that_got_lost_costs_no_token(bed: CaBed, mock_clock: MockClock) -> None:
    """Nor does being killed before it came: the key was kept before it was asked for."""

    async def lost(request: Request) -> Response:
        await bed.api.enrol(request)
        return error(503, "unavailable", "the answer got lost")

    bed.api.bent["/v1/enrol"] = lost
    api = bed.sidecar("api", bed.token())
    await bed.time.gives_up(api.agent.enrol, after=3)
    assert api.agent.credentials is None
    assert (api.state / "pending.pem").exists()
    await api.ends()
    del bed.api.bent["/v1/enrol"]
    again = bed.sidecar("api", api.identity.enrolment)
    await again.joins()
    assert again.own.svid.id == API
    assert not (again.state / "pending.pem").exists()


async def test_a_certificate_without_its_bundle_is_not_used(bed: CaBed, mock_clock: MockClock) -> None:
    """Nothing that is kept counts without the roots that it is judged by."""
    api = await bed.joined("api", bed.token())
    serial = api.serial
    await api.ends()
    (api.state / "bundle.json").unlink()
    again = bed.sidecar("api", bed.token())
    with pytest.raises(RuntimeError, match="not enrolled yet"):
        again.agent.revocations()
    await again.joins()
    assert again.serial != serial
    again.agent.revocations()


async def test_a_damaged_pending_key_is_made_anew(bed: CaBed, mock_clock: MockClock) -> None:
    secret = bed.secret()
    api = bed.sidecar("api", secret)
    await api.ends()
    (api.state / "pending.pem").write_text("-----BEGIN PRIV")
    (api.state / "pending.pem").chmod(0o600)
    again = bed.sidecar("api", secret)
    await again.joins()
    assert again.own.svid.id == API


# -- renewal -----------------------------------------------------------------------------------------------------------


async def test_it_renews_at_half_life_with_a_fresh_key(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    for _ in range(2):
        serial, key = api.serial, key_of(api)
        took = await bed.time.until(lambda serial=serial: api.serial != serial, within=300)  # type: ignore[misc]
        assert 180 * 0.9 - 60 - POLL_SECONDS <= took <= 180 * 1.1 - 60 + POLL_SECONDS
        assert key_of(api) != key
        assert api.own.svid.id == API
        assert api.adopted[-1][0].svid.serial == api.serial
        kept = x509.load_pem_x509_certificates((api.state / "identity.pem").read_bytes())
        assert kept[0].serial_number == api.serial
    assert api.events == ["trust_bundle", "enrolled", "renewed", "renewed"]
    assert asked(bed, "/v1/enrol") == 1


async def test_a_suspended_laptop_renews_on_waking(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    serial = api.serial
    await bed.time.passes(30)
    assert api.serial == serial
    bed.time.jump(150 * timedelta(seconds=1))  # by the wall clock alone: it slept
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)


async def test_a_clock_that_was_set_back_delays_no_renewal(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    serial = api.serial
    bed.time.jump(-40 * timedelta(seconds=1))  # less than certificates are dated back
    await bed.time.until(lambda: api.serial != serial, within=150 * 1.1 + POLL_SECONDS)


async def test_a_ca_down_for_longer_than_half_a_life_costs_nothing(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    serial, until = api.serial, api.own.svid.not_after
    await bed.goes_down()
    await bed.time.passes(230)
    assert api.serial == serial
    [said] = api.said("certificate_failed")  # once
    assert f"the certificate in force is good until {until:%F %T} UTC; trying again" in said
    assert len(api.said("revocations_failed")) == 1
    assert api.adopted == []
    bed.starts()
    await bed.time.until(lambda: api.serial != serial, within=61)
    await bed.time.passes(POLL_SECONDS)
    assert bed.time() < until
    assert api.said("certificate_mended") == api.said("revocations_mended") == ["good again"]
    assert api.events[-1] != "certificate_failed"


async def test_failures_are_tried_again_after_half_a_second_to_a_minute(bed: CaBed, mock_clock: MockClock) -> None:
    times: list[float] = []

    async def no(_request: Request) -> Response:
        times.append(trio.current_time())
        return error(503, "unavailable", "not now")

    api = await bed.joined()
    bed.api.bent["/v1/renew"] = no
    bed.api.bent["/v1/nonce"] = no
    await bed.time.passes(290)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) < 14
    assert 0.25 <= gaps[0] <= 0.6
    assert max(gaps) <= 60 + POLL_SECONDS
    assert gaps[-1] > 16
    assert len(api.said("certificate_failed")) == 1


async def test_a_fault_of_our_own_ends_nothing(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await bed.joined()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.agent, "_poll", broken)
    await bed.time.passes(2 * POLL_SECONDS)
    assert "ZeroDivisionError" in api.log.events("membership_failed")[0]["exception"]
    serial = api.serial
    await bed.time.until(lambda: api.serial != serial, within=150)


# -- past the end ------------------------------------------------------------------------------------------------------


async def test_past_the_certificate_s_end_it_is_closed_and_comes_back_by_its_old_key(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api, web = await bed.joined("api"), await bed.joined("web", name="web")
    serial = api.serial
    await bed.goes_down()
    await bed.time.passes(400)
    assert api.serial == serial
    assert verdict(web, api) == "expired"
    bed.starts()
    await bed.time.until(lambda: api.serial != serial, within=61)
    await bed.time.until(lambda: web.own.svid.not_after > bed.time(), within=61)
    assert verdict(web, api) == verdict(api, web) == "ok"
    assert "re-enrolled" in api.events
    assert asked(bed, "/v1/enrol") == 0  # of the new process
    assert how_issued(bed)[-2:] == ["re-enrolment", "re-enrolment"]


async def test_a_laptop_that_slept_past_its_certificate_s_end_is_back_at_once(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api = await bed.joined("api", bed.token())
    serial = api.serial
    bed.time.jump(5 * HOUR)
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)
    assert api.events[-1] == "re-enrolled"


async def test_past_the_window_it_says_exactly_why_not(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api", bed.token())
    serial, end = api.serial, api.own.svid.not_after
    bed.time.jump(25 * HOUR)
    await bed.time.passes(120)
    assert api.serial == serial
    [said] = api.said("certificate_failed")
    for word in (f"{end:%F %T} UTC", "(expired)", "(reenrol_window)", "certs token api", "(pass_used)"):
        assert word in said
    # The token that it has still was used, and is not taken twice; a new one in its place brings it back.
    assert api.identity.enrolment is not None
    api.identity.enrolment.write_text(bed.token().read_text())
    await bed.time.until(lambda: api.serial != serial, within=61)
    assert "enrolled_again" in api.events


async def test_past_the_window_an_enrolment_secret_brings_it_back(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api", bed.secret())
    serial = api.serial
    bed.time.jump(25 * HOUR)
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)
    assert api.events[-1] == "enrolled_again"


async def test_past_the_window_without_a_secret_it_says_just_what_the_ca_says(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api = await bed.joined("api", bed.token())
    api.agent._membership.has_secret = False
    bed.time.jump(25 * HOUR)
    await bed.time.passes(120)
    [said] = api.said("certificate_failed")
    assert "reenrol_window" in said
    assert "identity.enrolment" not in said


async def test_a_secret_is_not_used_while_the_ca_s_no_to_the_old_key_may_pass(
    bed: CaBed, mock_clock: MockClock
) -> None:
    async def no(_request: Request) -> Response:
        return error(503, "unavailable", "come again")

    api = await bed.joined("api", bed.secret())
    serial, enrolled = api.serial, asked(bed, "/v1/enrol")
    bed.api.bent["/v1/reenrol"] = no
    bed.time.jump(5 * HOUR)
    await bed.time.passes(120)
    assert asked(bed, "/v1/enrol") == enrolled
    del bed.api.bent["/v1/reenrol"]
    await bed.time.until(lambda: api.serial != serial, within=61)
    assert "re-enrolled" in api.events
    assert "enrolled_again" not in api.events


async def test_past_the_window_a_start_without_a_pass_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api")
    await api.ends()
    bed.time.jump(25 * HOUR)
    with pytest.raises(UsageError, match="reenrol_window"):
        await bed.sidecar("api").joins()


# -- clocks ------------------------------------------------------------------------------------------------------------


class Skewed:
    """A machine's clock, which somebody sets."""

    def __init__(self, bed: CaBed) -> None:
        self.bed = bed
        self.by = timedelta()

    def __call__(self) -> datetime:
        return self.bed.time() + self.by


@pytest.mark.parametrize("by", [2 * HOUR, -2 * HOUR])
async def test_a_clock_that_is_two_hours_wrong_for_a_while_costs_nothing_in_the_end(
    bed: CaBed, mock_clock: MockClock, by: timedelta
) -> None:
    clock = Skewed(bed)
    api = await bed.joined("api", clock=clock)
    serial = api.serial
    await bed.time.passes(10)
    clock.by = by
    await bed.time.passes(170)
    assert api.serial == serial  # what it was offered is no good by its clock, and what it has is kept
    assert len(api.said("certificate_failed")) == 1
    clock.by = timedelta()
    await bed.time.until(lambda: api.serial != serial, within=61)
    # The list in force looked two hours old when it came; the next one is signed a minute later at most.
    await bed.time.until(lambda: verdict(api, api) == "ok", within=61 + 2 * POLL_SECONDS)
    assert api.said("certificate_mended") == ["good again"]
    assert api.log.alarms == []


async def test_a_wrong_clock_is_no_alarm(bed: CaBed, mock_clock: MockClock) -> None:
    """Though no certificate of the CA's is good by it."""
    clock = Skewed(bed)
    api = await bed.joined("api", clock=clock)
    clock.by = -2 * HOUR
    await bed.goes_down()
    bed.starts()
    await bed.time.passes(10)
    assert "is not valid before" in api.said("revocations_failed")[0]
    assert api.log.alarms == []


async def test_everybody_s_clock_stepped_at_once(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api")
    for by in (2 * HOUR, -2 * HOUR):
        serial = api.serial
        bed.time.jump(by)
        await bed.time.until(lambda serial=serial: api.serial != serial, within=200)  # type: ignore[misc]
        await bed.time.passes(2 * POLL_SECONDS)
        assert verdict(api, api) == "ok"


# -- answers that are not what was asked for ---------------------------------------------------------------------------


def answering(make: Callable[[ec.EllipticCurvePublicKey], bytes | str]) -> Handler:
    """A handler that certifies whatever ``make`` makes of the key in the CSR."""

    async def answer(request: Request) -> Response:
        csr = x509.load_pem_x509_csr(json.loads(request.body)["csr"].encode())
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        made = make(key)
        return Response.of(200, {"certificate": made if isinstance(made, str) else made.decode()})

    return answer


class Offers:
    """Certificates that a CA in other hands could answer with, each for a key."""

    def __init__(self, bed: CaBed) -> None:
        self.bed = bed
        self.ca: Authority = bed.ca

    def leaf(
        self, key: ec.EllipticCurvePublicKey, who: str = "api", ttl: timedelta = 5 * MINUTE, **more: datetime
    ) -> bytes:
        identity = SpiffeId("shop.internal", tuple(who.split("/")))
        now = more.get("now", self.bed.time())
        leaf = x509_profile.leaf(identity, key, self.ca.issuer, now, ttl)
        return pemfiles.pem(leaf, self.ca.issuer.certificate)

    def of_another_ca(self, key: ec.EllipticCurvePublicKey) -> bytes:
        issuing = authority.make("shop.internal", self.bed.time()).issuing
        leaf = x509_profile.leaf(API, key, issuing, self.bed.time(), 5 * MINUTE)
        return pemfiles.pem(leaf, issuing.certificate)

    def with_another_s_issuer(self, key: ec.EllipticCurvePublicKey) -> bytes:
        leaf = x509.load_pem_x509_certificates(self.leaf(key))[0]
        return pemfiles.pem(leaf, authority.make("shop.internal", self.bed.time()).issuing.certificate)


OFFERS: dict[str, tuple[Callable[[Offers, ec.EllipticCurvePublicKey], bytes | str], str]] = {
    "another identity": (lambda offers, key: offers.leaf(key, "web"), "every peer would refuse it, because it met"),
    "a name of the mesh": (lambda offers, key: offers.leaf(key, "mesh/ca"), "every peer would refuse it"),
    "another key": (lambda offers, _: offers.leaf(new_key().public_key()), "for another key than the one"),
    "another CA's": (lambda offers, key: offers.of_another_ca(key), "every peer would refuse it"),
    "a wrong issuer": (lambda offers, key: offers.with_another_s_issuer(key), "every peer would refuse it"),
    "without its issuer": (lambda offers, key: offers.leaf(key).split(b"-----END CERTIFICATE-----\n")[0]
        + b"-----END CERTIFICATE-----\n", "1 in its chain; expected a leaf and its issuer"),
    "a long chain": (lambda offers, key: offers.leaf(key) * 3, "6 in its chain"),
    "too long a life": (lambda offers, key: offers.leaf(key, ttl=24 * HOUR), "longer than max_leaf_ttl"),
    "almost over": (lambda offers, key: offers.leaf(key, now=offers.bed.time() - 250 * timedelta(seconds=1)),
        "are both clocks right"),
    "garbage": (lambda _offers, _key: "garbage", "it is not PEM with certificates"),
    "nothing": (lambda _offers, _key: "", "it is not PEM with certificates"),
    "half of it": (lambda offers, key: offers.leaf(key)[:500], "it is not PEM with certificates"),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERS)
async def test_an_answer_that_was_not_asked_for_is_refused_and_the_old_kept(
    bed: CaBed, mock_clock: MockClock, name: str
) -> None:
    bed.mesh.write_text(f"max_leaf_ttl: 6h\n{MESH}")
    api, (make, said) = await bed.joined(), OFFERS[name]
    serial, kept = api.serial, files_of(api.state)["identity.pem"]
    offers = Offers(bed)
    bed.api.bent["/v1/renew"] = answering(lambda key: make(offers, key))
    bed.time.jump(200 * timedelta(seconds=1))
    await bed.time.passes(20)
    assert api.serial == serial
    assert files_of(api.state)["identity.pem"] == kept
    [message] = api.said("certificate_failed")
    assert re.search(said, message), message
    assert f"{api.own.svid.not_after:%F %T}" in message
    assert [one for one, _ in api.adopted if one.svid.serial != serial] == []
    del bed.api.bent["/v1/renew"]  # its twin: the same request, answered honestly
    await bed.time.until(lambda: api.serial != serial, within=61)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"garbage", "the CA's answer is not JSON"),
        (b"[" * 60_000, "the CA's answer is not JSON"),
        (b"[]", "the CA's answer is not a certificate"),
        (b'{"certificate": 7}', "the CA's answer is not a certificate"),
        (b'{"certificate": "' + b"x" * (5 << 20) + b'"}', "larger than 64 KiB"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused_and_the_old_kept(
    bed: CaBed, mock_clock: MockClock, body: bytes, said: str
) -> None:
    api = await bed.joined()
    serial = api.serial

    async def senseless(_request: Request) -> Response:
        return Response(200, body)

    bed.api.bent |= {"/v1/renew": senseless, "/v1/reenrol": senseless}
    bed.time.jump(150 * timedelta(seconds=1))
    await bed.time.passes(20)
    assert api.serial == serial
    [message] = api.said("certificate_failed")
    assert said in message
    bed.api.bent.clear()
    await bed.time.until(lambda: api.serial != serial, within=61)


# -- whom it tells its secret ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "detail"),
    [
        ("another root", "no trust bundle that the pinned root signed"),
        ("another root, and the real bundle", "unknown|trust bundle"),
        ("a service named ca", "met spiffe://shop.internal/ca (valid, same CA)"),
        ("another service", "met spiffe://shop.internal/web (valid, same CA)"),
        ("garbage", "not a list of bundles"),
    ],
)
async def test_a_pass_leaves_for_the_ca_alone(bed: CaBed, mock_clock: MockClock, who: str, detail: str) -> None:
    secret = bed.secret()
    text = secret.read_text().strip()
    real = authority.bundle_document(bed.directory)
    if who.startswith("another root"):
        made = authority.make("shop.internal", bed.time())
        root = made.root.certificate
        foreign = Authority("shop.internal", (root,), root, made.issuing, made.delegate)
        keys = key_pair(authority.issue(foreign, "mesh/ca", bed.time()))
        own = documents.sign_bundle(
            documents.Bundle("shop.internal", 7, (root,), certificate_digest(root)), [made.root]
        )
    else:
        service = "ca" if who == "a service named ca" else "web"
        keys, own = key_pair(authority.issue(bed.ca, service, bed.time())), real
    bundle = real if "real bundle" in who else own
    said = b"[]" if who == "garbage" else json.dumps({"bundles": [json.loads(bundle)]}).encode()
    enrolled = json.dumps({"certificate": ""}).encode()
    fake = bed.impostor(keys, {"/v1/bundle": said, "/v1/enrol": enrolled})
    api = bed.sidecar("api", secret, ca=fake.url)
    await bed.time.gives_up(api.agent.enrol, after=120)
    assert fake.connections > 3  # it goes on asking
    assert b"/v1/bundle" in fake.received
    assert b"/v1/enrol" not in fake.received
    assert text.encode() not in fake.received
    assert text.split(".")[1].encode() not in fake.received
    [message] = api.said("joining_failed")
    assert re.search(detail.replace("(", r"\(").replace(")", r"\)"), message), message
    if who == "garbage":
        assert api.log.alarms == []
    else:
        [alarm] = api.log.alarms
        whom = (
            "a CA under the pinned root at https" if who == "another root" else "spiffe://shop.internal/mesh/ca at 127"
        )
        assert alarm["message"].startswith(f"refused: api expected {whom}")
        assert alarm["message"].endswith("something answers in the CA's place")
    await api.ends()
    twin = bed.sidecar("api", secret)
    await twin.joins()
    assert text not in json.dumps(twin.log.lines)


async def test_somebody_in_the_ca_s_place_later_is_an_alarm_and_the_old_stays(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api = await bed.joined()
    serial = api.serial
    await bed.goes_down()
    fake = bed.impostor(key_pair(authority.issue(bed.ca, "web", bed.time())), {}, bed.port)
    await bed.time.passes(60)
    assert len(api.log.alarms) == 1
    assert api.log.alarms[0]["reason"] == "unexpected_peer"
    bed.time.jump(150 * timedelta(seconds=1))
    await bed.time.passes(30)
    assert api.serial == serial
    assert b"csr" not in fake.received


# -- revocations -------------------------------------------------------------------------------------------------------


async def test_a_revocation_is_heard_within_ten_seconds(bed: CaBed, mock_clock: MockClock) -> None:
    api, web = await bed.joined("api"), await bed.joined("web", name="web")
    await bed.time.passes(2)
    assert verdict(api, web) == "ok"
    bed.revokes("web")
    took = await bed.time.until(lambda: verdict(api, web) == "revoked", within=10)
    assert took <= POLL_SECONDS + 1 + 0.1
    assert api.adopted[-1][1].identities.keys() == {SpiffeId("shop.internal", ("web",))}
    assert verdict(api, api) == "ok"
    await api.ends()
    await bed.goes_down()
    again = bed.sidecar("api")  # it is kept
    await again.joins()
    assert verdict(again, web) == "revoked"


async def test_its_own_revocation_is_noticed_and_a_new_secret_brings_it_back(bed: CaBed, mock_clock: MockClock) -> None:
    secret = bed.secret()
    api, web = await bed.joined("api", secret), await bed.joined("web", name="web")
    serial = api.serial
    bed.revokes("api")
    await bed.time.until(lambda: api.said("certificate_failed"), within=10)
    [said] = api.said("certificate_failed")
    assert "(revoked): this certificate of spiffe://shop.internal/api was revoked" in said
    assert "(pass_expired): this secret was revoked; for a new one: certs enrolment api" in said
    await bed.time.passes(100)
    assert api.serial == serial
    assert verdict(web, api) == "revoked"
    secret.write_text(bed.secret().read_text())
    await bed.time.until(lambda: api.serial != serial, within=61)
    assert verdict(web, api) == "ok"


async def test_a_stale_list_lets_nobody_in_and_a_fresh_one_opens_again(bed: CaBed, mock_clock: MockClock) -> None:
    bed.mesh.write_text(f"revocation_staleness: 2m\n{MESH}")
    api = await bed.joined()
    await bed.time.passes(20)
    assert verdict(api, api) == "ok"
    await bed.goes_down()
    until = api.agent.revocations().fresh_until
    assert until is not None
    await bed.time.passes((until - bed.time()).total_seconds())
    assert verdict(api, api) == "ok"
    await bed.time.passes(1)
    assert verdict(api, api) == "revocations_stale"
    [said] = api.said("revocations_failed")
    assert f"the list of revocations in force lets new connections in until {until:%F %T} UTC; trying again" in said
    bed.starts()
    await bed.time.until(lambda: verdict(api, api) == "ok", within=2 * POLL_SECONDS)


async def test_how_stale_a_list_may_be_is_followed_with_the_mesh(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    listed = api.agent.revocations().fresh_until
    text = bed.mesh.read_text()
    bed.mesh.write_text(f"revocation_staleness: 2m\n{text}")
    tighter = bed.files.load_mesh()
    api.agent.follow(lambda: tighter)
    now = api.agent.revocations().fresh_until
    assert listed is not None
    assert now is not None
    assert listed - now == HOUR - timedelta(minutes=2)


def signed(bed: CaBed, version: int, by: str = "delegate", age: timedelta = timedelta()) -> bytes:
    """A list that says that nobody is revoked."""
    own = bed.server.in_force.policy.authority
    assert own.delegate is not None
    signer = {
        "delegate": own.delegate,
        "issuing": own.issuer,
        "other": authority.make("shop.internal", bed.time()).root,
    }
    listed = documents.RevocationList("shop.internal", version, bed.time() - age)
    return documents.sign_revocations(listed, signer[by])


LISTS: dict[str, tuple[Callable[[CaBed], bytes], str]] = {
    "an older version": (lambda bed: signed(bed, 1), "it is older"),
    "of before": (lambda bed: signed(bed, newest(bed), age=HOUR), "it is older"),
    "by the issuing key": (lambda bed: signed(bed, 1 << 40, "issuing"), "such as an issuing CA's"),
    "by another root": (lambda bed: signed(bed, 1 << 40, "other"), "by a certificate that no trusted root issued"),
    "unsigned": (lambda bed: json.dumps({**json.loads(signed(bed, 1 << 40)), "signatures": []}).encode(),
        "it is not signed"),
    "a bundle": (lambda bed: authority.bundle_document(bed.directory), "where mesh-revocations/2 is expected"),
    "garbage": (lambda _: b"garbage", "it is not a signed document"),
    "too large": (lambda _: b"x" * (1 << 20) * 2, "it is larger than 1024 KiB"),
}  # fmt: skip


def newest(bed: CaBed) -> int:
    return bed.server.store.read(revocations.revocations_version)


@pytest.mark.parametrize("name", LISTS)
async def test_a_list_that_does_not_count_is_refused_and_the_old_kept(
    bed: CaBed, mock_clock: MockClock, name: str
) -> None:
    api, web = await bed.joined("api"), await bed.joined("web", name="web")
    bed.revokes("web")
    await bed.time.until(lambda: verdict(api, web) == "revoked", within=10)
    kept, (make, said) = files_of(api.state)["revocations.json"], LISTS[name]
    document = make(bed)

    async def bent(_request: Request) -> Response:
        version = str(bed.server.in_force.bundle.version)
        return Response(200, document, headers={"ETag": '"bent"', "Mesh-Bundle": version})

    bed.api.bent["/v1/revocations"] = bent
    await bed.time.passes(20)
    assert verdict(api, web) == "revoked"
    assert files_of(api.state)["revocations.json"] == kept
    [message] = api.said("revocations_failed")
    assert "the CA's list of revocations is refused: " in message
    assert said in message
    bed.api.bent.clear()
    await bed.time.until(lambda: api.said("revocations_mended"), within=10)


# -- the trust bundle --------------------------------------------------------------------------------------------------


def rotator(bed: CaBed, directory: Path | None = None) -> Rotator:
    """As ``certs rotate-root`` makes one."""
    old = authority.load_root(bed.directory, None, None)
    return Rotator(bed.directory, bed.server.store, old, "shop.internal")


async def rotated(bed: CaBed) -> None:
    """A whole rotation, which waits for nobody."""
    rotation = rotator(bed)
    rotation.prepare(bed.time())
    for stage in (rotation.distribute, rotation.activate, rotation.retire):
        stage(bed.time())
        await bed.time.passes(5)
    rotation.finish(bed.directory, None)
    await bed.time.passes(5)


async def test_a_whole_rotation_is_followed(bed: CaBed, mock_clock: MockClock) -> None:
    api, web = await bed.joined("api"), await bed.joined("web", name="web")
    old = api.own.keys.roots
    rotation = rotator(bed)
    rotation.prepare(bed.time())
    for stage in (rotation.distribute, rotation.activate):
        made = stage(bed.time())
        await bed.time.until(lambda made=made: not rotation.laggards(made, bed.time()), within=30)  # type: ignore[misc]
        assert verdict(api, web) == verdict(web, api) == "ok"
    made = rotation.retire(bed.time())
    await bed.time.until(lambda: not rotation.laggards(made, bed.time()), within=30)
    rotation.finish(bed.directory, None)
    await bed.time.passes(10)
    assert verdict(api, web) == verdict(web, api) == "ok"
    assert len(api.own.keys.roots) == 1
    assert api.own.keys.roots != old
    assert [event for event in api.events if event.endswith("_failed")] == []
    assert asked(bed, "/v1/enrol") == 2


@pytest.mark.parametrize("rotations", [1, 2])
@pytest.mark.parametrize("slept", [timedelta(), 2 * HOUR])
async def test_who_slept_through_rotations_comes_back(
    bed: CaBed, mock_clock: MockClock, rotations: int, slept: timedelta
) -> None:
    """With no token: by the bundles that the old roots signed, and its old key."""
    api = await bed.joined("api", bed.token())
    old = api.own.keys.roots
    await api.ends()
    for _ in range(rotations):
        await rotated(bed)
    bed.time.jump(slept)
    again = bed.sidecar("api")
    await again.joins()
    again.follows()
    await bed.time.until(lambda: again.own.keys.roots == bed.server.in_force.policy.authority.roots, within=15)
    await bed.time.until(lambda: again.serial != api.serial, within=61)
    await bed.time.passes(10)
    assert again.own.keys.roots != old
    assert verdict(again, again) == "ok"
    assert "re-enrolled" in again.events
    assert again.log.alarms == []


async def test_who_was_down_for_longer_than_bundles_are_told_says_why_not(bed: CaBed, mock_clock: MockClock) -> None:
    """The CA's root changed, and nothing that the old one signed says so."""
    api = await bed.joined("api", bed.token())
    await bed.goes_down()
    made = authority.make("shop.internal", bed.time())
    root = made.root.certificate
    foreign = Authority("shop.internal", (root,), root, made.issuing, made.delegate)
    document = documents.sign_bundle(
        documents.Bundle("shop.internal", 1 << 40, (root,), certificate_digest(root)), [made.root]
    )
    said = {"/v1/bundle": json.dumps({"bundles": [json.loads(document)]}).encode()}
    bed.impostor(key_pair(authority.issue(foreign, "mesh/ca", bed.time())), said, bed.port)
    await bed.time.passes(30)
    assert len(api.said("bundle_failed")) == 1
    assert len(api.said("revocations_failed")) == 1
    assert len(api.log.alarms) == 1
    assert api.own.keys.roots == bed.ca.roots


async def test_an_older_bundle_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    older = authority.bundle_document(bed.directory)
    rotation = rotator(bed)
    rotation.prepare(bed.time())
    made = rotation.distribute(bed.time())
    await bed.time.until(lambda: not rotation.laggards(made, bed.time()), within=30)
    both, kept = api.own.keys.roots, files_of(api.state)["bundle.json"]
    assert len(both) == 2

    async def bundles(_request: Request) -> Response:
        return Response.of(200, {"bundles": [json.loads(older)]})

    listed = documents.RevocationList("shop.internal", made.bundle, bed.time())
    own = bed.server.in_force.policy.authority.delegate
    assert own is not None
    named = replace(listed, bundle=documents.BundleName(made.bundle + 1, b"\1" * 32))
    document = documents.sign_revocations(named, own)

    async def newer(_request: Request) -> Response:
        return Response(200, document, headers={"ETag": '"newer"'})

    bed.api.bent |= {"/v1/bundle": bundles, "/v1/revocations": newer}
    await bed.time.passes(15)
    assert api.own.keys.roots == both
    assert files_of(api.state)["bundle.json"] == kept
    assert len(api.said("bundle_failed")) == 1


async def test_somebody_in_the_ca_s_place_at_a_late_restart_is_an_alarm(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined("api", bed.token())
    await api.ends()
    await bed.goes_down()
    bed.time.jump(HOUR)  # its certificate has ended
    bed.impostor(key_pair(authority.issue(bed.ca, "web", bed.time())), {}, bed.port)
    again = bed.sidecar("api")
    await bed.time.gives_up(again.agent.enrol, after=60)
    assert len(again.log.alarms) == len(again.said("joining_failed")) == 1


async def test_no_secret_leaves_before_a_list_that_counts(bed: CaBed, mock_clock: MockClock) -> None:
    """Nothing else says that the CA that answers is still trusted."""

    async def bent(_request: Request) -> Response:
        return Response(200, b"garbage", headers={"ETag": '"bent"', "Mesh-Bundle": "1"})

    bed.api.bent["/v1/revocations"] = bent
    api = bed.sidecar("api", bed.secret())
    await bed.time.gives_up(api.agent.enrol, after=30)
    assert asked(bed, "/v1/enrol") == 0
    [said] = api.said("joining_failed")
    assert "the CA's list of revocations is refused: it is not a signed document" in said
    bed.api.bent.clear()
    await api.joins()
    assert verdict(api, api) == "ok"


@pytest.mark.parametrize("kind", ["secret", "token"])
async def test_an_answer_that_got_lost_long_ago_strands_nobody_who_has_a_secret(
    bed: CaBed, mock_clock: MockClock, kind: Literal["secret", "token"]
) -> None:
    """The CA tells an answer again for five minutes only, and certifies no key twice."""

    async def lost(request: Request) -> Response:
        await bed.api.enrol(request)
        return error(503, "unavailable", "the answer got lost")

    bed.api.bent["/v1/enrol"] = lost
    api = bed.sidecar("api", bed.pass_for(kind, "api"))
    await bed.time.gives_up(api.agent.enrol, after=3)
    await api.ends()
    bed.api.bent.clear()
    bed.time.jump(6 * MINUTE)
    again = bed.sidecar("api", api.identity.enrolment)
    if kind == "secret":
        await again.joins()
        assert again.own.svid.id == API
    else:
        with pytest.raises(UsageError, match="pass_used"):
            await again.joins()


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b'{"instance": "../x", "pin": 7}'])
async def test_who_it_was_among_its_replicas_is_made_anew_if_it_cannot_be_read(
    bed: CaBed, mock_clock: MockClock, content: bytes
) -> None:
    api = await bed.joined()
    await api.ends()
    before = json.loads((api.state / "member.json").read_bytes())
    (api.state / "member.json").write_bytes(content)
    again = bed.sidecar("api")
    await again.joins()
    assert again.serial == api.serial
    after = json.loads((api.state / "member.json").read_bytes())
    assert re.fullmatch(r"[0-9a-f]{32}", after["instance"])
    assert after["instance"] != before["instance"]
    assert after["pin"] == before["pin"]


async def test_whom_to_trust_at_first_contact_must_be_said(bed: CaBed, mock_clock: MockClock) -> None:
    pinned = bed.sidecar("api").identity
    with pytest.raises(UsageError, match="needs root or root_sha256"):
        Sidecar(bed, "api", replace(pinned, root_sha256=None))


async def test_a_start_with_a_bundle_and_no_certificate_has_nothing_to_ignore(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api = await bed.joined("api", bed.token())
    await api.ends()
    (api.state / "identity.pem").unlink()
    again = bed.sidecar("api", bed.token())
    await again.joins()
    assert again.events == ["enrolled"]


async def test_what_it_reports_is_kept_at_the_ca_and_an_older_ca_is_none_the_worse(
    bed: CaBed, mock_clock: MockClock
) -> None:
    api = await bed.joined()
    api.agent.report(lambda: {"version": 1, "healthy": True, "policy": "abc"})
    await bed.time.passes(2 * POLL_SECONDS)
    (kept,) = bed.api.reports.current(bed.clock())
    assert (kept.identity, kept.serial) == (str(API), f"{api.serial:x}")
    assert json.loads(kept.report) == {"version": 1, "healthy": True, "policy": "abc"}

    async def unknown(_: Request) -> Response:
        return error(404, "not_found", "there is no such path")

    bed.api.bent["/v1/report"] = unknown
    before = len(bed.api.asked)
    await bed.time.passes(20 * POLL_SECONDS)
    paths = [path for path, _ in bed.api.asked[before:]]
    assert (paths.count("/v1/report"), paths.count("/v1/revocations") > 15) == (1, True)
    assert api.said("report_failed") == []
