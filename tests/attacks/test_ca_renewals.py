"""Renewals and re-enrolments with what does not entitle to them: no certificate, another's, an ended one, a revoked one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from OpenSSL import SSL

from certs.authority import authority
from certs.protocol.wire import NONCE_SECONDS
from certs.registrar import bundles, followers, registrar, revocations
from sidecar.identity.keys import key_digest
from sidecar.transport.tls import KeyPair
from tests.beds.asking import Desk, ca_desk, names_of, parse_answer, until
from tests.beds.ca_files import DOMAIN, HOUR
from tests.beds.certificates import Authority, Credential, csr, ec_key
from tests.beds.mesh import Foreigner, connect

WEB = f"spiffe://{DOMAIN}/web"
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


async def test_the_twin_of_all_below_renews(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        leaf = (await desk.renew(desk.keys("web"))).certificate
        assert names_of(leaf) == [WEB, "web"]
        assert desk.issued() == [(WEB, "test"), (WEB, "renewal")]


async def test_without_a_certificate(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        answer = await desk.denied("no_certificate", desk.renew(None))
        assert answer.status == 401


async def test_with_another_s_certificate_one_becomes_nobody_else(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        api = desk.keys("api")
        await desk.denied("bad_csr", desk.renew(api, csr(uris=[WEB])))
        said = json.dumps({"csr": csr(), "service": "web"}).encode()
        await desk.denied("bad_request", desk.ask("POST", "/v1/renew", said, api))
        assert names_of((await desk.renew(api)).certificate) == [f"spiffe://{DOMAIN}/api", "api"]


async def test_with_the_ca_s_own_certificate(tmp_path: Path) -> None:
    """Nothing under ``mesh/`` can be had by anybody who asks."""
    async with ca_desk(tmp_path) as desk:
        for name in ("mesh/ca", "mesh/admin", "batch/nightly"):
            await desk.denied("not_entitled", desk.renew(desk.keys(name)))


async def test_of_a_service_that_is_not_in_the_mesh_any_more(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        await desk.denied("unknown_service", desk.renew(desk.keys("gone")))


async def handshake(desk: Desk, credential: Credential) -> str | None:
    """What somebody with this certificate hears of the CA."""
    with await connect(desk.address) as sock:
        caller = Foreigner(sock, credential, alpn=[b"http/1.1"])
        await caller.handshake()
        with pytest.raises((SSL.Error, EOFError, OSError)):
            await caller.receive()
        return caller.alert


STRANGERS = {
    "expired": (lambda one: one.leaf("web", not_after=one.now - SECOND), "expired", True),
    "not yet valid": (lambda one: one.leaf("web", not_before=one.now + HOUR), "not_yet_valid", True),
    "another CA's": (lambda one: one.leaf("web"), "unknown_ca", False),
    "self-signed": (lambda one: one.leaf("web", self_signed=True), "unknown_ca", True),
    "of ten years": (lambda one: one.leaf("web", lifetime=3650 * DAY, not_before=one.now), "bad_identity", True),
    "of two identities": (lambda one: one.leaf(uris=[WEB, f"{WEB}2"]), "bad_identity", True),
    "a CA": (lambda one: one.leaf("web", ca=True), "bad_identity", True),
}


@pytest.mark.parametrize(("make", "reason", "ours"), STRANGERS.values(), ids=STRANGERS.keys())
async def test_a_certificate_that_no_peer_would_take_is_refused_in_the_handshake(
    make: Callable[[Authority], Credential], reason: str, ours: bool, tmp_path: Path
) -> None:
    async with ca_desk(tmp_path) as desk:
        issuer = desk.ca.issuer
        made = Authority(DOMAIN, now=desk.clock())
        if ours:
            made.issuing = Credential(issuer.certificate, issuer.key, (issuer.certificate,))
        assert await handshake(desk, make(made)) is not None
        await desk.log.until(lambda: bool(desk.log.events("refused")))
        (line,) = desk.log.events("refused")
        assert line["reason"] == reason
        await desk.honest()
        assert (await desk.renew(desk.keys("web"))).status == 200


async def test_a_revoked_one(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        web, api, serial = desk.keys("web"), desk.keys("api"), desk.keys("api")
        await desk.revoke("web")
        await desk.denied("revoked", desk.renew(web))
        assert (await desk.renew(api)).status == 200
        number = serial.chain[0].serial_number
        desk.write(lambda transaction: revocations.revoke_certificate(transaction, number))
        await desk.denied("revoked", desk.renew(serial))
        assert (await desk.renew(api)).status == 200


async def test_what_is_issued_after_a_revocation_is_good_and_dated_after_it(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        await desk.revoke("web")
        desk.clock.jump(2 * SECOND)
        leaf = await desk.honest()
        (before,) = desk.files.revoked().identities.values()
        assert leaf.not_valid_before_utc >= before


async def test_a_connection_that_is_kept_past_its_certificate_s_end_renews_nothing(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        stream = await desk.stream(desk.keys("web"))
        body = json.dumps({"csr": csr()}).encode()
        head = f"POST /v1/renew HTTP/1.1\r\nHost: ca\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await stream.send_all(head + body)
        assert parse_answer(await stream.receive_some()).status == 200
        desk.clock.jump(HOUR + SECOND)
        await stream.send_all(head + body)
        answer = parse_answer(await stream.receive_some())
        assert (answer.status, answer.said["error"]) == (403, "expired")
        await stream.close()
        await desk.honest()


async def test_a_connection_that_was_made_before_the_revocation_renews_nothing_after_it(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        stream = await desk.stream(desk.keys("web"))
        await desk.revoke("web")
        body = json.dumps({"csr": csr()}).encode()
        await stream.send_all(
            f"POST /v1/renew HTTP/1.1\r\nHost: ca\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert parse_answer(await stream.receive_some()).said["error"] == "revoked"
        await stream.close()


async def test_a_certificate_of_a_distrusted_issuer_that_this_ca_never_issued(tmp_path: Path) -> None:
    """The issuing key was stolen and is distrusted: what the thief signs renews nothing and holds up no rotation. What the
    CA issued is replaced by its own key."""
    async with ca_desk(tmp_path) as desk:
        stolen, known = desk.keys("web", known=False), desk.keys("web")
        now = desk.clock().replace(microsecond=0)
        made, root = authority.renew_issuing(tmp_path / "ca", now)
        gone = key_digest(desk.ca.issuer.certificate)
        desk.write(lambda transaction: bundles.distrust(transaction, gone, made, root, now))
        await until(lambda: gone in desk.server.in_force.policy.distrusted)
        desk.ca = made
        for keys in (stolen, known):
            await desk.denied("revoked", desk.renew(keys))
            polls = {"Mesh-Instance": "1" * 32, "Mesh-Bundle": "1"}
            assert (await desk.ask("GET", "/v1/revocations", keys=keys, headers=polls)).status == 200
        assert desk.files.ask(lambda connection: followers.all_followers(connection, desk.clock())) == []
        await desk.denied("not_entitled", desk.reenrol(stolen.chain[0], stolen.key))
        assert (await desk.reenrol(known.chain[0], known.key)).status == 200


# -- by the key of one that ended --------------------------------------------------------------------------------------


def ended(desk: Desk, ago: timedelta = HOUR) -> KeyPair:
    """A certificate of web's that the CA issued, and that ended so long ago."""
    return desk.keys("web", dated=desk.clock() - ago - HOUR)


async def test_the_key_of_one_that_ended_lately_is_enough(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web = ended(desk)
        assert names_of((await desk.reenrol(web.chain[0], web.key)).certificate) == [WEB, "web"]
        assert desk.issued()[-1] == (WEB, "re-enrolment")


async def test_another_key_is_not(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web, api = ended(desk), desk.keys("api")
        await desk.denied("not_entitled", desk.reenrol(web.chain[0], ec_key()))
        await desk.denied("not_entitled", desk.reenrol(web.chain[0], api.key))


async def test_a_signature_for_another_new_key_is_not(tmp_path: Path) -> None:
    """Whoever sees a re-enrolment pass cannot have his own key certified by it."""
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web = ended(desk)
        await desk.denied("not_entitled", desk.reenrol(web.chain[0], web.key, signed_key=ec_key()))


async def test_a_nonce_of_nobody_s_or_of_long_ago_is_not(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web = ended(desk)
        good = await desk.nonce()
        for bad in (b"", b"\0" * 48, good[:-1], good + b"\0", bytes([good[0] ^ 1]) + good[1:], good[:16] + b"\0" * 32):
            await desk.denied("bad_request", desk.reenrol(web.chain[0], web.key, nonce=bad))
        desk.clock.jump((NONCE_SECONDS + 2) * SECOND)
        await desk.denied("bad_request", desk.reenrol(web.chain[0], web.key, nonce=good))
        desk.clock.jump(-NONCE_SECONDS * SECOND)
        assert (await desk.reenrol(web.chain[0], web.key, nonce=good)).status == 200


async def test_after_the_window_it_is_over(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web = ended(desk, DAY + 2 * SECOND)
        answer = await desk.denied("expired", desk.reenrol(web.chain[0], web.key))
        assert "reenrol_window" in answer.said["message"]
        web = ended(desk, DAY - 60 * SECOND)
        assert (await desk.reenrol(web.chain[0], web.key)).status == 200


async def test_a_revoked_one_is_not_brought_back_by_its_key(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web = ended(desk)
        await desk.revoke("web")
        await desk.denied("revoked", desk.reenrol(web.chain[0], web.key))


async def test_a_certificate_that_this_ca_did_not_issue(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        other = Authority(DOMAIN).leaf("web")
        await desk.denied("not_entitled", desk.reenrol(other.certificate, other.key))
        unknown = desk.keys("web", known=False)
        await desk.denied("not_entitled", desk.reenrol(unknown.chain[0], unknown.key))
        ca = desk.keys("mesh/ca")
        await desk.denied("not_entitled", desk.reenrol(ca.chain[0], ca.key))


async def test_a_key_is_certified_once(tmp_path: Path) -> None:
    async with ca_desk(tmp_path, age=2 * DAY) as desk:
        web, api, key = desk.keys("web"), desk.keys("api"), ec_key()
        first = (await desk.renew(web, csr(key=key))).certificate
        assert (await desk.renew(web, csr(key=key))).certificate == first, "an answer that got lost"
        await desk.denied("key_reused", desk.renew(api, csr(key=key)))
        desk.clock.jump(timedelta(seconds=registrar.AGAIN_SECONDS + 1))
        await desk.denied("key_reused", desk.renew(web, csr(key=key)))
        await desk.denied("key_reused", desk.renew(api, csr(key=key)))
        await desk.denied("key_reused", desk.renew(web, csr(key=web.key)))


async def test_with_the_certificate_of_a_pass(tmp_path: Path) -> None:
    """A person's access ends with the pass: it is not renewed, neither before its end nor after it."""
    async with ca_desk(tmp_path) as desk:
        keys = desk.keys("user/alice")
        await desk.denied("not_entitled", desk.renew(keys))
        await desk.denied("not_entitled", desk.renew(keys, csr(uris=[f"spiffe://{DOMAIN}/user/alice"])))
        await desk.denied("not_entitled", desk.renew(keys, csr(uris=[WEB])))
        await desk.denied("not_entitled", desk.reenrol(keys.chain[0], keys.key))
        web = desk.keys("web")
        desk.clock.jump(HOUR + SECOND)
        await desk.denied("not_entitled", desk.reenrol(keys.chain[0], keys.key))
        assert names_of((await desk.reenrol(web.chain[0], web.key)).certificate) == [WEB, "web"]


async def test_nobody_waits_for_a_pass_and_it_reports_nothing(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        alice, web = desk.keys("user/alice"), desk.keys("web")
        asked = {"Mesh-Instance": "a" * 32, "Mesh-Bundle": "1"}
        for keys, status in ((alice, 401), (web, 200)):
            assert (await desk.ask("GET", "/v1/revocations", b"", keys, headers=asked)).status == 200
            said = json.dumps({"version": 1, "healthy": True}).encode()
            assert (await desk.ask("POST", "/v1/report", said, keys, headers=asked)).status == status
        found = desk.write(lambda it: followers.all_followers(it.connection, desk.clock()))
        assert [one.identity for one in found] == [WEB]
