"""Which ended connections count as tampering. ``attacks/test_tampering`` and ``test_neighbours`` have the rest, on
sockets."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.observe.recurrence import FEW
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy.suspects import look_at
from tests.beds.mesh import MESH
from tests.unit.proxy.test_node import node

WEB = "spiffe://shop.internal/web"


def record(**known: Any) -> ConnectionRecord:
    values = {"peer_address": "10.0.0.9:4711", "peer_id": WEB, "altered": True, "reason": Reason.TRUNCATED, **known}
    return ConnectionRecord(values.pop("direction", "inbound"), "api", "http", 0.0, **values)


def alarms(*records: ConnectionRecord) -> list[dict[str, Any]]:
    here = node(parse_mesh(MESH, "mesh.yaml"))
    for one in records:
        look_at(here, one)
    return here.alarm_log.alarms.current()


async def test_the_third_at_one_place_is_an_alarm_whatever_the_peer_s_port() -> None:
    assert alarms(*[record(peer_address=f"10.0.0.9:{number}") for number in range(FEW - 1)]) == []
    (met,) = alarms(*[record(peer_address=f"10.0.0.9:{number}") for number in range(FEW)])
    assert (met["event"], met["peer_address"], met["upstream"]) == ("tampering_suspected", "10.0.0.9", "api:http")
    assert "found here" in met["message"]


async def test_each_place_counts_apart() -> None:
    assert (
        alarms(record(), record(), record(peer_address="10.0.0.8:1"), record(direction="outbound", upstream="x:1"))
        == []
    )


@pytest.mark.parametrize("word", ["bad_record_mac", "decrypt_error"])
async def test_what_the_peer_says_counts_too(word: str) -> None:
    one = record(direction="outbound", altered=False, peer_reason=word, upstream="db:5432", reason=Reason.PEER_REFUSED)
    (met,) = alarms(*[one] * FEW)
    assert (met["upstream"], met["reason"]) == ("db:5432", "peer_refused")
    assert "found by the peer" in met["message"]


@pytest.mark.parametrize(
    "known",
    [
        {"altered": False}, {"altered": False, "peer_reason": "revoked"}, {"peer_id": None}, {"peer_address": None},
        {"peer_id": None, "altered": False, "peer_reason": "bad_record_mac"},
    ],
)  # fmt: skip
async def test_what_is_no_sign_and_what_strangers_do_never_counts(known: dict[str, Any]) -> None:
    assert alarms(*[record(**known)] * 10) == []


async def test_a_callee_that_has_not_proved_itself_counts_as_we_called_it() -> None:
    assert len(alarms(*[record(direction="outbound", peer_id=None, upstream="db:5432")] * FEW)) == 1
