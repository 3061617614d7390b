"""A CA that is taken over, or wrong: it proved who it is, and answers a renewal with what was not asked for.

The sidecar refuses the answer, keeps the certificate that it has, in memory and on the disk, says until when that is good,
and takes the next true answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from cryptography import x509

from sidecar.transport import sockets
from sidecar.transport.http1 import Request, Response
from tests.attacks.stage import assert_refused
from tests.beds import mesh as harness
from tests.beds.asking import Desk, ca_desk
from tests.beds.ca import Sidecar
from tests.beds.ca_files import DOMAIN
from tests.beds.certificates import DAY, SERVER_AUTH, Authority, Credential, credential, csr, ec_key, key_pair, pem
from tests.beds.impostor import FalseCa, always
from tests.beds.mesh import mesh_bed
from tests.beds.patience import PATIENCE

MINUTE = timedelta(minutes=1)


@dataclass
class Renewal:
    """web's sidecar, whose certificate is due, and the CA that it asks."""

    desk: Desk
    false: FalseCa
    sidecar: Sidecar
    nursery: trio.Nursery

    def run(self) -> None:
        self.nursery.start_soon(self.sidecar.agent.run, self.sidecar.adopt)

    async def kept(self, *words: str) -> None:
        """Asserts that the answer was refused with these words, and the old certificate kept."""
        own, file = self.sidecar.own, (self.sidecar.state / "identity.pem").read_bytes()
        self.run()
        await self.sidecar.log.until(lambda: bool(self.sidecar.log.events("certificate_failed")))
        said = self.sidecar.words("certificate_failed")
        for word in (*words, f"{own.svid.not_after:%F %T}"):
            assert word in said, said
        assert self.sidecar.own is own
        assert (self.sidecar.state / "identity.pem").read_bytes() == file
        assert not [one for one in self.sidecar.adopted if one[0].keys.chain != own.keys.chain]
        assert not self.sidecar.log.events("membership_failed"), self.sidecar.log.events("membership_failed")

    async def renewed(self) -> None:
        """The twin: the CA answers truly, and that is taken."""
        before = self.sidecar.own
        self.false.lies.clear()
        await self.sidecar.log.until(lambda: bool(self.sidecar.log.events("renewed")))
        assert self.sidecar.own.svid.not_after > before.svid.not_after
        assert self.sidecar.own.svid.id == before.svid.id


@asynccontextmanager
async def due(path: Path) -> AsyncIterator[Renewal]:
    async with ca_desk(path, ago=45 * MINUTE) as desk, desk.false_ca() as false:
        sidecar = desk.membership(false.address, text=desk.make_credential("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.agent.enrol()
        desk.clock.jump(40 * MINUTE)
        try:
            async with trio.open_nursery() as nursery:
                yield Renewal(desk, false, sidecar, nursery)
                nursery.cancel_scope.cancel()
        finally:
            await sidecar.agent.close()


def key_in(request: Request) -> Any:
    """The key that was sent, as far as a signer needs it."""
    public = x509.load_pem_x509_csr(json.loads(request.body)["csr"].encode()).public_key()
    return SimpleNamespace(public_key=lambda: public)


Chain = Callable[[Desk, Any], tuple[x509.Certificate, ...]]


def leaf(service: str = "web", **bent: Any) -> Chain:
    """What the CA's own issuing key signs, bent in one field."""

    def make(desk: Desk, key: Any) -> tuple[x509.Certificate, ...]:
        issuer = desk.ca.issuer
        own = Credential(issuer.certificate, issuer.key, (issuer.certificate,))
        found = {name: value(desk) if callable(value) else value for name, value in bent.items()}
        made = Authority(DOMAIN, now=desk.clock()).leaf(service, **{"key": key, "signer": own, **found})
        return made.certificate, issuer.certificate

    return make


LIES: dict[str, tuple[Chain, str | None]] = {
    "another's identity": (leaf("api"), "spiffe://shop.internal/api"),
    "the CA's identity": (leaf("mesh/ca"), "spiffe://shop.internal/mesh/ca"),
    "another trust domain": (leaf(uris=["spiffe://evil.internal/web"]), None),
    "two identities": (leaf(uris=["spiffe://shop.internal/web", "spiffe://shop.internal/api"]), None),
    "another's key": (leaf(key=lambda _: ec_key()), None),
    "a CA": (leaf(ca=True), None),
    "one way only": (leaf(eku=(SERVER_AUTH,)), None),
    "ten years": (leaf(lifetime=3650 * DAY), None),
    "two days": (leaf(lifetime=2 * DAY), None),
    "over already": (leaf(not_after=lambda desk: desk.clock() - MINUTE), None),
    "over in a moment": (leaf(not_after=lambda desk: desk.clock() + MINUTE / 2), None),
    "not yet": (leaf(not_before=lambda desk: desk.clock() + 5 * MINUTE), None),
    "no issuer with it": (lambda desk, key: leaf()(desk, key)[:1], None),
    "a long chain": (lambda desk, key: (*leaf()(desk, key), *desk.roots * 3), None),
    "the chain upside down": (lambda desk, key: leaf()(desk, key)[::-1], None),
    "somebody else's issuer": (lambda desk, key: Authority(DOMAIN, now=desk.clock()).leaf("web", key=key).chain, None),
    "an issuer that did not sign it": (
        lambda desk, key: (leaf()(desk, key)[0], Authority(DOMAIN).issuing.certificate),
        None,
    ),
}
"""And whose identity the message names. Its sentences are those of tests/unit/test_answers.py."""


@pytest.mark.parametrize(("chain", "named"), LIES.values(), ids=LIES.keys())
async def test_a_certificate_that_was_not_asked_for_so_is_not_taken(
    chain: Chain, named: str | None, tmp_path: Path
) -> None:
    async with due(tmp_path) as renewal:

        async def lie(request: Request) -> Response:
            return Response.of(200, {"certificate": pem(*chain(renewal.desk, key_in(request))).decode()})

        renewal.false.lies["/v1/renew"] = lie
        await renewal.kept(named or "")
        await renewal.renewed()


async def test_the_bent_leaf_unbent_is_taken(tmp_path: Path) -> None:
    """The control: it is the bend that was refused above, not this way of making certificates."""
    async with due(tmp_path) as renewal:

        async def answer(request: Request) -> Response:
            return Response.of(200, {"certificate": pem(*leaf()(renewal.desk, key_in(request))).decode()})

        renewal.false.lies["/v1/renew"] = answer
        renewal.run()
        await renewal.sidecar.log.until(lambda: bool(renewal.sidecar.log.events("renewed")))


@pytest.mark.parametrize(
    ("status", "said", "quoted"),
    [
        (200, b"", ""),
        (200, b"garbage", ""),
        (200, b"\xff\xfe", ""),
        (200, b"[" * 100_000, ""),
        (200, {}, ""),
        (200, [], ""),
        (200, {"certificate": None}, ""),
        (200, {"certificate": "please"}, ""),
        (200, {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, ""),
        (200, b" " * (5 << 20), ""),
        (503, {"error": "unavailable", "message": "later"}, "later"),
        (500, b"<html>", "500"),
        (403, {"error": "\x1b[2J", "message": "a\nb" + "x" * 9999}, "xxx"),
        (418, {"error": ["odd"], "message": {}}, ""),
    ],
)
async def test_garbage_is_not_taken_either(status: int, said: Any, quoted: str, tmp_path: Path) -> None:
    async with due(tmp_path) as renewal:
        renewal.false.lies = {path: always(status, said) for path in ("/v1/renew", "/v1/reenrol", "/v1/nonce")}
        await renewal.kept(quoted)
        assert renewal.sidecar.words("certificate_failed").isprintable()
        assert len(renewal.sidecar.words("certificate_failed")) < 1000
        await renewal.renewed()


async def test_a_no_of_the_ca_s_does_not_end_what_is_in_force(tmp_path: Path) -> None:
    async with due(tmp_path) as renewal:
        for path in ("/v1/renew", "/v1/reenrol"):
            renewal.false.lies[path] = always(403, {"error": "revoked", "message": "go away"})
        await renewal.kept("go away")
        await renewal.renewed()


async def test_somebody_in_the_ca_s_place_at_a_renewal_is_an_alarm_and_hears_nothing(tmp_path: Path) -> None:
    async with due(tmp_path) as renewal:
        other = Authority(DOMAIN).leaf("mesh/ca")
        honest, renewal.false.shows = renewal.false.shows, key_pair(other)
        renewal.false.bodies.clear()
        await renewal.sidecar.agent._client.close()  # else it would go on over the connection that it has
        await renewal.kept("spiffe://shop.internal/mesh/ca")
        assert {alarm["reason"] for alarm in renewal.sidecar.log.alarms} == {"unknown_ca"}
        assert not any(renewal.false.bodies)
        renewal.false.shows = honest
        await renewal.renewed()


async def test_the_csr_that_leaves_gives_a_key_and_asks_for_nothing(tmp_path: Path) -> None:
    async with due(tmp_path) as renewal:
        renewal.run()
        await renewal.sidecar.log.until(lambda: bool(renewal.sidecar.log.events("renewed")))
        keys = set()
        for body in renewal.false.bodies:
            if b"csr" in body:
                request = x509.load_pem_x509_csr(json.loads(body)["csr"].encode())
                assert list(request.subject) == list(request.extensions) == list(request.attributes) == []
                keys.add(request.public_key().public_numbers())  # type: ignore[union-attr]
        assert len(keys) == 2, "a fresh key each time"
    assert csr()


# -- a CA that is down -------------------------------------------------------------------------------------------------


async def test_a_ca_that_is_down_past_the_certificate_s_end_closes_the_mesh_and_never_opens_it(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        async with desk.false_ca() as false:
            sidecar = desk.membership(false.address, text=desk.make_credential("web"))
            with trio.fail_after(PATIENCE):
                await sidecar.agent.enrol()
            own = sidecar.own
        # It is gone now.
        api = desk.keys("api")
        async with mesh_bed() as bed, trio.open_nursery() as nursery:
            app = await bed.app()
            there = await bed.sidecar(
                "api", inbound=[harness.inbound("http", app.address)], credential=credential(api), clock=desk.clock
            )
            here = await bed.sidecar(
                "web",
                outbound=[harness.outbound("api", "http", there.address("http"))],
                credential=credential(own.keys),
                clock=desk.clock,
            )
            entry = here.address("api:http", "outbound")
            with await harness.connect(entry) as client:
                await sockets.send_all(client, b"ping")
                assert await sockets.receive(client, 4) == b"ping"
            await there.log.connection(1)
            desk.clock.jump(timedelta(hours=2))
            nursery.start_soon(sidecar.agent.run, sidecar.adopt)
            await sidecar.log.until(lambda: bool(sidecar.log.events("certificate_failed")))
            assert sidecar.own.keys.chain == own.keys.chain
            await assert_refused(entry)
            assert (await here.log.connection(2))["reason"] == "expired"
            assert app.connections == 1
            assert bytes(app.received) == b"ping"
            nursery.cancel_scope.cancel()
        await sidecar.agent.close()
