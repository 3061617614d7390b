"""Whoever has stolen a key of the CA, and is on the path: what the sidecar learns from genuine lists all the same.

The thief relays what is genuine and holds back what would end his time. Each attack has its twin: the same sidecar, once the
CA is reached again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from certs.authority import authority
from certs.protocol.documents import (
    LISTS_A_SECOND,
    BundleName,
    RevocationList,
    sign_revocations,
    version_at,
)
from certs.protocol.x509_profile import Issuer
from certs.registrar import bundles
from sidecar.identity.keys import key_digest
from tests.attacks.test_ca_at_first_contact import refused_at_first
from tests.beds.asking import Desk, ca_desk, until
from tests.beds.ca import Sidecar
from tests.beds.ca_files import HOUR, service_id
from tests.beds.certificates import key_pair
from tests.beds.impostor import FalseCa, always
from tests.beds.patience import PATIENCE

NOTHING: dict[str, list[str]] = {"bundles": []}


@dataclass
class Theft:
    """``false``: the thief, with the certificate ``mesh/ca`` that the stolen issuing key made. ``delegate``: the other
    key."""

    desk: Desk
    false: FalseCa
    delegate: Issuer

    @property
    def stolen(self) -> bytes:
        return key_digest(self.false.shows.chain[1])

    async def distrusted(self) -> None:
        """The operator has found out: ``certs renew-issuing --distrust``, for both keys."""
        self.desk.clock.jump(timedelta(seconds=2))
        now = self.desk.clock()
        root = authority.load_root(self.desk.directory, None, None)
        own = authority.load(self.desk.directory, now)
        self.desk.write(lambda it: bundles.distrust(it, self.stolen, own, root, now, delegate=self.delegate))
        authority.renew_issuing(self.desk.directory, now.replace(microsecond=0))
        await until(lambda: self.desk.server.in_force.bundle.distrusted == {self.stolen, self.other})
        await until(lambda: self.desk.server.in_force.policy.authority.issuer != own.issuer)
        await self.desk.server._look()

    @property
    def other(self) -> bytes:
        return key_digest(self.delegate.certificate)

    @asynccontextmanager
    async def followed_by(self, sidecar: Sidecar) -> AsyncIterator[None]:
        """During the block it does what a member does, and ends then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.agent.run, sidecar.adopt)
            with trio.fail_after(3 * PATIENCE):
                yield
            nursery.cancel_scope.cancel()
        await sidecar.agent.close()

    async def joined(self) -> Sidecar:
        sidecar = self.desk.membership(self.false.address, text=self.desk.make_credential("web", "secret"))
        with trio.fail_after(PATIENCE):
            await sidecar.agent.enrol()
        return sidecar


@asynccontextmanager
async def theft(path: Path) -> AsyncIterator[Theft]:
    async with ca_desk(path, ago=timedelta(minutes=10)) as desk, desk.false_ca() as false:
        assert desk.ca.delegate is not None
        yield Theft(desk, false, desk.ca.delegate)


async def test_genuine_lists_and_an_old_bundle_end_the_thief_s_time_and_get_him_no_secret(tmp_path: Path) -> None:
    async with theft(tmp_path) as it:
        sidecar = await it.joined()
        serial, asked = sidecar.serial, len(it.false.bodies)
        it.false.lies["/v1/bundle"] = always(200, NOTHING)
        await it.distrusted()
        async with it.followed_by(sidecar):
            await sidecar.log.until(lambda: bool(sidecar.log.alarms))
            assert sidecar.log.alarms[0]["reason"] == "revoked"
            assert sidecar.serial == serial, "no certificate is taken"
            assert not any(b"pass" in body or b"csr" in body for body in it.false.bodies[asked:])
            found = sidecar.agent.revocations()
            assert found.keys >= {it.stolen}
            assert found.fresh_until is not None
            assert found.fresh_until > it.desk.clock(), "it serves on, by what it has"
            assert any(one[1].keys >= {it.stolen} for one in sidecar.adopted), "and refuses what the stolen key signed"
        # The twin: the path is free again.
        again = it.desk.membership(text=it.desk.make_credential("web", "secret"))
        async with it.followed_by(again):
            await again.log.until(lambda: bool(again.log.events("trust_bundle")))
            await until(lambda: again.serial != serial)
            assert again.agent.trust().get("trust_bundle_missing") is None


@pytest.mark.parametrize("holds_back", ["the bundle", "the lists", "both"])
async def test_a_sidecar_with_nothing_sends_the_thief_no_secret(holds_back: str, tmp_path: Path) -> None:
    async with theft(tmp_path) as it:
        text = it.desk.make_credential("web", "secret")
        old_list = it.desk.server.in_force.revocations
        old_bundle = authority.bundle_document(it.desk.directory)
        await it.distrusted()
        if holds_back != "the lists":
            it.false.lies["/v1/bundle"] = always(200, {"bundles": [json.loads(old_bundle)]})
        if holds_back != "the bundle":
            it.false.lies["/v1/revocations"] = always(200, old_list, {"ETag": '"old"'})
        it.desk.clock.jump(timedelta(minutes=4))
        sidecar = it.desk.membership(it.false.address, text=text)
        await refused_at_first(sidecar)
        assert "/v1/enrol" not in it.false.asked
        assert not any(text.encode() in body for body in it.false.bodies)
        await sidecar.agent.close()
        # The twin: the CA itself is reached.
        again = it.desk.membership(text=text)
        with trio.fail_after(PATIENCE):
            await again.agent.enrol()
        await again.agent.close()


async def test_the_revocation_key_s_poison_ends_with_the_bundle_that_distrusts_it(tmp_path: Path) -> None:
    """A list that is dated and numbered as late as is taken, and names a bundle that does not exist."""
    async with theft(tmp_path) as it:
        sidecar = await it.joined()
        latest = it.desk.clock().replace(microsecond=0) + timedelta(seconds=280)
        worst = RevocationList(
            "shop.internal",
            version_at(latest, LISTS_A_SECOND),
            latest,
            bundle=BundleName(version_at(latest), b"\7" * 32),
            distrusted=frozenset({b"\7" * 32}),
        )
        too_late = replace(worst, issued_at=latest + timedelta(days=3650))
        it.false.lies["/v1/revocations"] = always(200, sign_revocations(too_late, it.delegate), {"ETag": '"1"'})
        async with it.followed_by(sidecar):
            await sidecar.log.until(lambda: bool(sidecar.said("revocations_failed")))
            assert "are both clocks right" in sidecar.words("revocations_failed")
            assert b"\7" * 32 not in sidecar.agent.revocations().keys
            it.false.lies["/v1/revocations"] = always(200, sign_revocations(worst, it.delegate), {"ETag": '"2"'})
            await until(lambda: b"\7" * 32 in sidecar.agent.revocations().keys)
            await sidecar.log.until(lambda: bool(sidecar.said("bundle_failed")))
            # The twin: the operator distrusts the key, and the path is free again.
            await it.distrusted()
            it.false.lies.clear()
            it.false.shows = key_pair(
                authority.issue(it.desk.server.in_force.policy.authority, "mesh/ca", it.desk.clock(), HOUR)
            )
            await until(lambda: sidecar.agent.trust().get("trust_bundle_missing") is None)
            await until(lambda: b"\7" * 32 not in sidecar.agent.revocations().keys)
            await until(lambda: (sidecar.agent.revocations().fresh_until or latest) > it.desk.clock())


async def test_a_ca_whose_certificate_is_on_the_list_is_not_asked(tmp_path: Path) -> None:
    """By serial number, though its issuer is as good as ever."""
    async with theft(tmp_path) as it:
        sidecar = await it.joined()
        leaf = it.false.shows.chain[0]
        now = it.desk.clock().replace(microsecond=0) + timedelta(seconds=1)
        listed = RevocationList(
            "shop.internal",
            2,
            now,
            serials=frozenset({(leaf.issuer.public_bytes(), leaf.serial_number)}),
            bundle=it.desk.server.in_force.bundle.name,
        )
        it.false.lies["/v1/revocations"] = always(200, sign_revocations(listed, it.delegate), {"ETag": '"1"'})
        async with it.followed_by(sidecar):
            await sidecar.log.until(lambda: bool(sidecar.said("revocations_failed")))
            assert "a revoked certificate" in sidecar.words("revocations_failed")
            # The twin: the CA's own certificate is another.
            it.false.shows = key_pair(authority.issue(it.desk.ca, "mesh/ca", it.desk.clock(), HOUR))
            await sidecar.log.until(lambda: bool(sidecar.said("revocations_mended")))


async def test_a_failing_bundle_keeps_no_list_from_being_taken(tmp_path: Path) -> None:
    async with theft(tmp_path) as it:
        sidecar = await it.joined()
        it.false.lies["/v1/bundle"] = always(500, {"error": "internal_error"})
        bundle, document = it.desk.files.bundle(it.desk.server.in_force.bundle.version + 1)
        it.desk.write(lambda transaction: bundles.publish(transaction, bundle, document))
        it.desk.clock.jump(timedelta(seconds=2))
        await it.desk.revoke("api")
        await until(lambda: it.desk.server.in_force.bundle.version == bundle.version)
        async with it.followed_by(sidecar):
            await sidecar.log.until(lambda: bool(sidecar.said("bundle_failed")))
            assert f"trust bundle {bundle.version} is in force in the mesh" in sidecar.words("bundle_failed")
            assert service_id("api") in sidecar.agent.revocations().identities
            assert not sidecar.said("revocations_failed")
            it.false.lies.clear()
            await sidecar.log.until(lambda: bool(sidecar.said("bundle_mended")))
