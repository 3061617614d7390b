"""A sidecar's membership against a real CA, through all that may happen to either.

Certificates live 5 minutes here, so they are renewed after some 120 s: at half of their 6 (with the minute that they are
dated back), give or take a tenth.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from trio.testing import MockClock

from certs import authority, passes, profile, standing, trust
from certs.authority import Authority
from certs.http1 import Handler, Request, Response, error
from certs.rotation import Rotator
from certs.service import Limits, Rate
from sidecar import answers, statedir
from sidecar.identity import SpiffeId
from sidecar.judge import Presented, Terms, judge
from sidecar.member import MAX_PASS_BYTES, POLL_SECONDS
from sidecar.reasons import Refused, UsageError
from tests.cabed import CaBed, Sidecar, ca_bed, files_of, impostor, keys_of
from tests.harness import MESH

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
API = SpiffeId("shop.internal", ("api",))


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


def asked(bed: CaBed, path: str) -> int:
    return sum(1 for one, _ in bed.api.asked if one == path)


def key_of(sidecar: Sidecar) -> bytes:
    return answers.key_pem(sidecar.own.keys.key)


def verdict(sidecar: Sidecar, peer: Sidecar) -> str:
    """What a sidecar says now of a peer that connects."""
    roots = {root.subject: root for root in sidecar.own.keys.roots}
    chain = [*peer.own.keys.chain]
    if chain[-1].issuer in roots:
        chain.append(roots[chain[-1].issuer])
    path = tuple(one.public_bytes(Encoding.DER) for one in chain)
    terms = Terms("shop.internal", revocations=sidecar.member.revocations())
    try:
        judge(Presented(path[:2], path), terms, sidecar.bed.time())
    except Refused as refusal:
        return str(refusal.reason)
    return "ok"


# -- enrolment ---------------------------------------------------------------------------------------------------------


async def test_it_enrols_once_and_a_restart_needs_nobody(bed: CaBed) -> None:
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


async def test_what_it_keeps_is_its_own_alone(bed: CaBed) -> None:
    api = await bed.joined()
    assert stat.S_IMODE(api.state.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in api.state.iterdir()} == dict.fromkeys(
        ("identity.pem", "bundle.json", "revocations.json", "member.json"), 0o600
    )


async def test_a_token_is_for_one_sidecar(bed: CaBed) -> None:
    token = bed.token()
    await bed.joined("api", token)
    thief = bed.sidecar("api", token, name="thief")
    with pytest.raises(UsageError, match="this token was used already"):
        await thief.joins()
    assert not (thief.state / "identity.pem").exists()


async def test_a_secret_is_for_every_replica(bed: CaBed) -> None:
    secret = bed.secret()
    one, two = await bed.joined("api", secret), await bed.joined("api", secret, name="replica")
    assert one.own.svid.id == two.own.svid.id == API
    assert key_of(one) != key_of(two)


async def test_without_a_pass_it_says_how_to_get_one(bed: CaBed) -> None:
    api = bed.sidecar("api")
    with pytest.raises(UsageError, match="has no usable certificate.*certs token api"):
        await api.joins()


async def test_a_pass_of_another_service_is_refused(bed: CaBed) -> None:
    with pytest.raises(UsageError, match="api cannot enrol: the CA says no .bad_pass."):
        await bed.sidecar("api", bed.secret("web")).joins()


async def test_a_service_that_the_mesh_does_not_have_is_refused(bed: CaBed) -> None:
    secret = bed.secret("stranger")
    with pytest.raises(UsageError, match="unknown_service.*there is no service 'stranger'"):
        await bed.sidecar("stranger", secret).joins()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mesh-token.zz", "no token and no enrolment secret"),
        ("mesh-token." + "0" * 64 + "." + "0" * 64, "a token of a wrong length"),
        ("x" * MAX_PASS_BYTES * 2, "no token and no enrolment secret"),
        (" \n", "empty"),
    ],
)
async def test_what_is_no_pass_is_not_sent(bed: CaBed, text: str, said: str) -> None:
    file = bed.secret()
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        await bed.sidecar("api", file).joins()
    assert asked(bed, "/v1/enrol") == 0
    assert text.strip() == "" or text not in str(refused.value)


async def test_a_pass_that_others_can_read_is_not_used(bed: CaBed) -> None:
    file = bed.secret()
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        await bed.sidecar("api", file).joins()
    assert asked(bed, "/v1/enrol") == 0


async def test_a_pass_of_another_mesh_is_not_sent(bed: CaBed) -> None:
    foreign = bed.pass_for("secret", "api", root=b"\1" * 32)
    with pytest.raises(UsageError, match=r"of a mesh under another root \(0101.*it is not sent"):
        await bed.sidecar("api", foreign).joins()
    assert asked(bed, "/v1/enrol") == 0
    await bed.sidecar("api", bed.secret(), name="twin").joins()
    assert asked(bed, "/v1/enrol") == 1


async def test_a_ca_that_is_not_there_yet_is_waited_for(bed: CaBed) -> None:
    secret = bed.secret()
    await bed.goes_down()
    api = bed.sidecar("api", secret)
    bed.nursery.start_soon(api.member.join)
    await bed.time.passes(300)
    [said] = api.said("joining_failed")  # once, however often it tried
    assert said.startswith(f"cannot join the mesh yet: the CA at 127.0.0.1:{bed.port} cannot be reached: ")
    assert said.endswith("; trying again")
    bed.starts()
    took = await bed.time.until(lambda: api.member.credentials, within=61)
    assert took <= 60


async def test_the_ca_s_passing_no_is_waited_out(tmp_path: Path, mock_clock: MockClock, monkeypatch) -> None:
    limits = Limits(identity=Rate(1, 1 / 30))
    async with ca_bed(tmp_path, mock_clock, monkeypatch, limits=limits) as bed:
        await bed.joined("api")
        second = bed.sidecar("api", bed.secret(), name="replica")
        await second.joins()
        [said] = second.said("joining_failed")
        assert "the CA says no (rate_limited): too many certificates for spiffe://shop.internal/api" in said


async def test_an_answer_that_got_lost_costs_no_token(bed: CaBed) -> None:
    """Nor does being killed before it came: the key was kept before it was asked for."""

    async def lost(request: Request) -> Response:
        await bed.api.enrol(request)
        return error(503, "unavailable", "the answer got lost")

    bed.api.bent["/v1/enrol"] = lost
    api = bed.sidecar("api", bed.token())
    with trio.CancelScope() as killed:
        bed.nursery.start_soon(_within, killed, api.member.join)
        await bed.time.passes(3)
        killed.cancel()
    await bed.time.settles()
    assert api.member.credentials is None
    assert (api.state / "pending.pem").exists()
    await api.ends()
    del bed.api.bent["/v1/enrol"]
    again = bed.sidecar("api", api.identity.enrolment)
    await again.joins()
    assert again.own.svid.id == API
    assert not (again.state / "pending.pem").exists()


async def _within(scope: trio.CancelScope, step: Callable[[], object]) -> None:
    with scope:
        await step()  # type: ignore[misc]


async def test_a_damaged_pending_key_is_made_anew(bed: CaBed) -> None:
    secret = bed.secret()
    api = bed.sidecar("api", secret)
    await bed.time.finishes(api.member.close)
    (api.state / "pending.pem").write_text("-----BEGIN PRIV")
    (api.state / "pending.pem").chmod(0o600)
    again = bed.sidecar("api", secret)
    await again.joins()
    assert again.own.svid.id == API


# -- renewal -----------------------------------------------------------------------------------------------------------


async def test_it_renews_at_half_life_with_a_fresh_key(bed: CaBed) -> None:
    api = await bed.joined()
    for _ in range(3):
        serial, key = api.serial, key_of(api)
        took = await bed.time.until(lambda serial=serial: api.serial != serial, within=300)  # type: ignore[misc]
        assert 180 * 0.9 - 60 - POLL_SECONDS <= took <= 180 * 1.1 - 60 + POLL_SECONDS
        assert key_of(api) != key
        assert api.own.svid.id == API
        assert api.adopted[-1][0].svid.serial == api.serial
        kept = x509.load_pem_x509_certificates((api.state / "identity.pem").read_bytes())
        assert kept[0].serial_number == api.serial
    assert api.events == ["trust_bundle", "enrolled", "renewed", "renewed", "renewed"]
    assert asked(bed, "/v1/enrol") == 1


async def test_a_suspended_laptop_renews_on_waking(bed: CaBed) -> None:
    api = await bed.joined()
    serial = api.serial
    await bed.time.passes(30)
    assert api.serial == serial
    bed.time.steps(150 * timedelta(seconds=1))  # by the wall clock alone: it slept
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)


async def test_a_clock_that_was_set_back_delays_no_renewal(bed: CaBed) -> None:
    api = await bed.joined()
    serial = api.serial
    bed.time.steps(-40 * timedelta(seconds=1))  # less than certificates are dated back
    await bed.time.until(lambda: api.serial != serial, within=150 * 1.1 + POLL_SECONDS)


async def test_a_ca_down_for_longer_than_half_a_life_costs_nothing(bed: CaBed) -> None:
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


async def test_failures_are_tried_again_after_half_a_second_to_a_minute(bed: CaBed) -> None:
    times: list[float] = []

    async def no(_request: Request) -> Response:
        times.append(trio.current_time())
        return error(503, "unavailable", "not now")

    api = await bed.joined()
    bed.api.bent["/v1/renew"] = no
    bed.api.bent["/v1/nonce"] = no
    await bed.time.passes(290)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(times) < 14
    assert 0.25 <= gaps[0] <= 0.6
    assert max(gaps) <= 60 + POLL_SECONDS
    assert gaps[-1] > 16
    assert len(api.said("certificate_failed")) == 1


async def test_a_fault_of_our_own_ends_nothing(bed: CaBed, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await bed.joined()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.member, "_poll", broken)
    await bed.time.passes(2 * POLL_SECONDS)
    assert "ZeroDivisionError" in api.log.events("membership_failed")[0]["exception"]
    serial = api.serial
    await bed.time.until(lambda: api.serial != serial, within=150)


# -- past the end ------------------------------------------------------------------------------------------------------


async def test_past_the_certificate_s_end_it_is_closed_and_comes_back_by_its_old_key(bed: CaBed) -> None:
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
    how = bed.server.store.read(lambda connection: standing.all_followers(connection, bed.time()))
    assert {one.identity for one in how} == {"spiffe://shop.internal/api", "spiffe://shop.internal/web"}


async def test_a_laptop_that_slept_past_its_certificate_s_end_is_back_at_once(bed: CaBed) -> None:
    api = await bed.joined("api", bed.token())
    serial = api.serial
    bed.time.steps(5 * HOUR)
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)
    assert api.events[-1] == "re-enrolled"


async def test_past_the_window_it_says_exactly_why_not(bed: CaBed) -> None:
    api = await bed.joined("api", bed.token())
    serial, end = api.serial, api.own.svid.not_after
    bed.time.steps(25 * HOUR)
    await bed.time.passes(120)
    assert api.serial == serial
    [said] = api.said("certificate_failed")
    assert f"our certificate ended at {end:%F %T} UTC; the CA says no (expired): the certificate ended at" in said
    assert "and could be renewed until" in said
    assert "(reenrol_window); enrol anew: certs token api" in said
    # The token that it has still was used, and is not taken twice; a new one in its place brings it back.
    assert api.identity.enrolment is not None
    api.identity.enrolment.write_text(bed.token().read_text())
    await bed.time.until(lambda: api.serial != serial, within=61)
    assert "enrolled_again" in api.events


async def test_past_the_window_an_enrolment_secret_brings_it_back(bed: CaBed) -> None:
    api = await bed.joined("api", bed.secret())
    serial = api.serial
    bed.time.steps(25 * HOUR)
    await bed.time.until(lambda: api.serial != serial, within=POLL_SECONDS)
    assert api.events[-1] == "enrolled_again"


async def test_past_the_window_a_start_without_a_pass_is_refused(bed: CaBed) -> None:
    api = await bed.joined("api")
    await api.ends()
    bed.time.steps(25 * HOUR)
    with pytest.raises(UsageError, match="reenrol_window"):
        await bed.sidecar("api").joins()
