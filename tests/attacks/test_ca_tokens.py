"""Tokens and enrolment secrets: stolen, used twice, run out, of others, forged, guessed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from certs.protocol import enrolment
from certs.registrar import registrar
from certs.service.api import RateLimits
from certs.service.limits import Rate
from certs.store.store import StoreUnavailableError
from tests.beds.asking import Answer, ca_desk, names_of
from tests.beds.ca_files import DOMAIN, service_id
from tests.beds.certificates import csr, ec_key

WEB = f"spiffe://{DOMAIN}/web"


async def test_a_token_that_was_stolen_and_used_is_worth_nothing_again_and_says_that_it_was_used(
    tmp_path: Path,
) -> None:
    async with ca_desk(tmp_path) as desk:
        token = desk.make_credential("web")
        assert names_of((await desk.enrol("web", token)).certificate)[0] == WEB
        answer = await desk.denied("pass_used", desk.enrol("web", token))
        assert answer.status == 403
        assert "certs revoke web" in answer.said["message"]


async def test_of_twenty_that_use_one_token_at_once_one_wins(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, limits=RateLimits(guesses=Rate(100, 1))) as desk:
        token, answers = desk.make_credential("web"), list[Answer]()

        async def use() -> None:
            answers.append(await desk.enrol("web", token))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(use)
        assert sorted(answer.status for answer in answers) == [200] + [403] * 19
        assert {answer.said["error"] for answer in answers if answer.status != 200} == {"pass_used"}
        assert desk.issued() == [(WEB, "token")]
        await desk.honest()


async def test_the_same_request_again_gets_the_same_certificate_and_with_another_key_none(tmp_path: Path) -> None:
    """An answer may get lost; whoever has the token, and not the key, gains nothing by that."""
    async with ca_desk(tmp_path) as desk:
        token, key = desk.make_credential("web"), ec_key()
        first = (await desk.enrol("web", token, csr(key=key))).certificate
        assert (await desk.enrol("web", token, csr(key=key))).certificate == first
        await desk.denied("pass_used", desk.enrol("web", token))
        desk.clock.jump(timedelta(minutes=6))
        await desk.denied("key_reused", desk.enrol("web", token, csr(key=key)))
        await desk.denied("key_reused", desk.enrol("api", desk.make_credential("api"), csr(key=key)))


async def test_a_token_runs_out_after_five_minutes_and_a_secret_does_not(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token, secret = desk.make_credential("web"), desk.make_credential("web", "secret")
        desk.clock.jump(timedelta(minutes=5))
        await desk.denied("pass_expired", desk.enrol("web", token))
        for _ in range(3):
            assert names_of((await desk.enrol("web", secret)).certificate)[0] == WEB


@pytest.mark.parametrize("kind", ["token", "secret"])
async def test_a_pass_of_another_service_is_worth_as_much_as_none(kind: enrolment.Kind, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        others = desk.make_credential("api", kind)
        stolen = await desk.denied("bad_pass", desk.enrol("web", others))
        forged = await desk.denied("bad_pass", desk.enrol("web", str(enrolment.make(kind, desk.ca.root_digest))))
        assert stolen.said == forged.said, "whose it is is told to nobody"
        assert names_of((await desk.enrol("api", others)).certificate)[0] == f"spiffe://{DOMAIN}/api"


async def test_a_revoked_secret_and_a_revoked_token_end_at_once(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token, secret = desk.make_credential("api"), desk.make_credential("api", "secret")
        (await desk.enrol("api", secret)).certificate  # noqa: B018 (asserts that it was one)
        desk.write(lambda transaction: registrar.end_credentials(transaction, service_id("api")))
        await desk.denied("pass_expired", desk.enrol("api", secret))
        await desk.denied("pass_expired", desk.enrol("api", token))


async def test_a_revocation_ends_the_passes_of_its_service_and_no_other_s(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        api = [desk.make_credential("api", kind) for kind in ("token", "secret")]
        web = desk.make_credential("web", "secret")
        await desk.revoke("api")
        for ended in api:
            await desk.denied("pass_expired", desk.enrol("api", ended))
        assert (await desk.enrol("web", web)).status == 200
        assert (await desk.enrol("api", desk.make_credential("api"))).status == 200, (
            "made since, so somebody wants it back"
        )


@pytest.mark.parametrize(
    "bend",
    [
        lambda text: text.replace("token", "secret"),
        lambda text: text.replace("mesh-token.", "mesh-token.."),
        lambda text: text[:-64] + "0" * 63,
        lambda text: text + "\n",
        lambda text: text.upper(),
        lambda text: text.split(".")[1],
        lambda text: "",
        lambda text: "mesh-token." + "%" * 32 + "." + "0" * 64,
    ],
    ids=["other kind", "two dots", "short root", "newline", "case", "bare", "empty", "like pattern"],
)
async def test_a_forged_pass(bend: Callable[[str], str], tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token = desk.make_credential("web")
        await desk.denied("bad_pass", desk.enrol("web", bend(token)))
        assert (await desk.enrol("web", token)).status == 200, "the guess used up nothing of the real one"


@pytest.mark.parametrize(
    "name",
    ["../web", "web/", "/web", "web/../api", "mesh/ca", "web\0", "web\n", "WEB", "wеb", ".", "..", "", "a" * 3000],
)
async def test_a_name_that_is_no_declared_service(name: str, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token = desk.make_credential("web")
        answer = await desk.denied("bad_pass", desk.enrol(name, token))
        assert answer.said["message"].isprintable()
        assert len(answer.said["message"]) < 500


async def test_guesses_from_one_address_are_limited_and_honest_enrolments_are_not_counted(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, limits=RateLimits(guesses=Rate(10, 0.0001))) as desk:
        for _ in range(12):
            await desk.honest()  # more than ten: none of them is a guess
        statuses = [(await desk.enrol("web", str(enrolment.make("token", b"\0" * 32)))).status for _ in range(15)]
        assert statuses == [403] * 10 + [429] * 5
        for kind in ("token", "secret"):
            assert (await desk.enrol("web", desk.make_credential("web", kind))).status == 200, (
                "one who is right is let in"
            )
        assert (await desk.renew(desk.keys("web"))).status == 200, "renewals go on"


async def test_a_store_that_is_away_makes_no_guesses_of_honest_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ca_desk(tmp_path, limits=RateLimits(guesses=Rate(3, 0.0001))) as desk:
        token = desk.make_credential("web")
        real = type(desk.server.store).write_many

        def away(*_: object) -> None:
            raise StoreUnavailableError("the disk is full")

        monkeypatch.setattr(type(desk.server.store), "write_many", away)
        assert [(await desk.enrol("web", token)).status for _ in range(5)] == [503] * 5
        monkeypatch.setattr(type(desk.server.store), "write_many", real)
        assert (await desk.enrol("web", token)).status == 200


async def test_a_thousand_guesses_at_once_are_a_thousand_guesses(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, limits=RateLimits(guesses=Rate(10, 0.0001))) as desk:
        statuses = list[int]()

        async def guess() -> None:
            statuses.append((await desk.enrol("web", str(enrolment.make("token", b"\0" * 32)))).status)

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(guess)
        assert sorted(statuses) == [403] * 10 + [429] * 50
