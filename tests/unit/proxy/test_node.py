"""What a sidecar's connections share: one generation at a time, swapped whole, and what it says of a live connection."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import Config, FileIdentity, Limits, Timeouts
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import parse_svid
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.proxy.live import Admission
from sidecar.proxy.node import Node, Snapshot
from sidecar.transport import tls
from tests.beds.certificates import Authority
from tests.beds.mesh import MESH, LogSink

NOWHERE = Path("x")
AUTHORITY = Authority()
CALLER = AUTHORITY.leaf("web")
NONE_REVOKED = Revocations()


def snapshot(mesh: Mesh, revocations: Revocations = NONE_REVOKED) -> Snapshot:
    leaf = AUTHORITY.leaf("api")
    assert isinstance(leaf.key, tls.PrivateKey)
    keys = tls.KeyPair(leaf.chain, leaf.key, AUTHORITY.roots)
    return Snapshot(
        mesh.identity("api"), mesh, tls.Context(keys, VerifyParams(mesh.trust_domain, revocations=revocations))
    )


def node(mesh: Mesh) -> Node:
    config = Config(
        path=NOWHERE, service="api", mesh=mesh, mesh_path=NOWHERE, identity=FileIdentity(NOWHERE, NOWHERE, NOWHERE),
        inbound=(), outbound=(), admin=None, timeouts=Timeouts(5, 5, 8), limits=Limits(1), log_format="json",
    )  # fmt: skip
    return Node(config, snapshot(mesh), Log(LogSink(), "json"), lambda: AUTHORITY.now)


MESH_NOW = parse_mesh(MESH, "mesh.yaml")
WITHOUT_WEB = parse_mesh(MESH.replace('  - {from: web, to: "api:http"}\n', ""), "mesh.yaml")


def admission(anchor: bytes) -> Admission:
    path = (*CALLER.chain_der, AUTHORITY.root.der)
    return Admission(MESH_NOW.identity("web"), "api", "http", parse_svid(CALLER.der), path, anchor)


async def test_a_generation_cannot_be_changed_only_replaced() -> None:
    one = snapshot(MESH_NOW)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.mesh = WITHOUT_WEB  # type: ignore[misc]


async def test_what_is_in_force_decides_of_a_live_connection() -> None:
    one = node(MESH_NOW)
    (anchor,) = one.current.context.anchors
    assert one.recheck(admission(anchor)) is None
    one.current = snapshot(WITHOUT_WEB)
    assert one.recheck(admission(anchor)) is Reason.POLICY_CHANGED
    one.current = snapshot(MESH_NOW)
    assert one.recheck(admission(b"the digest of a root that is gone")) is Reason.TRUST_CHANGED


@pytest.mark.parametrize(
    "revoked",
    [
        Revocations({MESH_NOW.identity("web"): AUTHORITY.now}),
        Revocations(serials=frozenset({(parse_svid(CALLER.der).issuer, parse_svid(CALLER.der).serial)})),
        Revocations(keys=frozenset({key_digest(AUTHORITY.issuing.certificate)})),
    ],
    ids=["identity", "serial", "issuer"],
)
async def test_a_live_connection_of_a_revoked_peer_may_not_go_on(revoked: Revocations) -> None:
    one = node(MESH_NOW)
    (anchor,) = one.current.context.anchors
    one.current = snapshot(MESH_NOW, revoked)
    assert one.recheck(admission(anchor)) is Reason.REVOKED


async def test_nor_is_one_cut_for_somebody_else_s_revocation_or_for_a_stale_list() -> None:
    one = node(MESH_NOW)
    (anchor,) = one.current.context.anchors
    others = Revocations(
        {MESH_NOW.identity("db"): AUTHORITY.now}, frozenset({(b"another", 1)}), frozenset({b"another"}), AUTHORITY.now
    )
    one.current = snapshot(MESH_NOW, others)
    assert one.recheck(admission(anchor)) is None


async def test_a_person_s_connection_may_not_go_on_behind_the_pass_and_a_service_s_may() -> None:
    text = MESH.replace("policy:", 'people: [alice]\npolicy:\n  - {from: user/alice, to: "api:http"}')
    one = node(parse_mesh(text, "mesh.yaml"))
    (anchor,) = one.current.context.anchors
    leaf = AUTHORITY.leaf(uris=["spiffe://shop.internal/user/alice"])
    alice = parse_svid(leaf.der)
    judged = Admission(alice.id, "api", "http", alice, (*leaf.chain_der, AUTHORITY.root.der), anchor)
    now = alice.not_after - timedelta(seconds=1)
    one.clock = lambda: now
    assert one.recheck(judged) is None
    now = alice.not_after
    assert one.recheck(judged) is Reason.EXPIRED
    assert one.recheck(admission(anchor)) is None


async def test_durations_are_measured_on_trio_s_clock(mock_clock: MockClock) -> None:
    one = node(MESH_NOW)
    before = one.time()
    mock_clock.jump(12.5)
    assert one.time() - before == pytest.approx(12.5)


async def test_two_nodes_share_nothing_by_accident() -> None:
    one, other = node(MESH_NOW), node(MESH_NOW)
    shared: list[Any] = [
        name for name in ("relay", "gate", "resolver", "registry") if getattr(one, name) is getattr(other, name)
    ]
    assert shared == []
