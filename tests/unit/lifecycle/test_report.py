"""The report is made from the status, and the CA takes all of it."""

from __future__ import annotations

from certs.protocol.report import encode, parse
from sidecar.identity.reasons import Reason, Refused
from sidecar.lifecycle.report import grouped, report_of
from sidecar.lifecycle.status import describe
from sidecar.observe.metrics import Metrics
from sidecar.observe.record import ConnectionRecord
from tests.unit.lifecycle.test_status import NOW, SVID, state

AT = "2026-11-30T06:00:00Z"


def refused(metrics: Metrics, at: str, reason: Reason = Reason.POLICY_DENIED, address: str = "10.0.0.5:1") -> None:
    record = ConnectionRecord(service="api", direction="inbound", port="http", started=0.0)
    record.peer_id, record.peer_address, record.connection_id = "spiffe://shop.internal/db", address, f"c{at}"
    record.refuse(Refused(reason, "does not let it in"))
    metrics.add(record, at)


def test_all_of_it_is_taken() -> None:
    metrics = Metrics()
    refused(metrics, "1")
    trust = {"trust_bundle": "3", "revocations_as_of": AT, "renews_at": AT}
    found = report_of(describe(NOW, state(trust=trust, unwell=["ill"], log_lost=4), metrics), AT)
    assert parse(encode(found)) == found
    assert (found["bundle"], found["list"], found["healthy"], found["log_lost"]) == (3, AT, False, 4)
    assert found["certificate"] == {
        "serial": f"{SVID.serial:x}",
        "not_after": f"{SVID.not_after:%FT%TZ}",
        "renews_at": AT,
    }
    (edge,) = found["edges"]
    assert (edge["direction"], edge["peer"], edge["port"], edge["opened"]) == ("inbound", "db", "http", 0)
    assert edge["refused"] == {"policy_denied": 1}
    assert [one["port"] for one in found["inbound"]] == ["http", "metrics"]
    assert found["outbound"] == [{"to": "db:5432", "allowed": False}]


def test_without_a_ca_nothing_is_said_of_its_versions() -> None:
    found = report_of(describe(NOW, state(), Metrics()), AT)
    assert (found["bundle"], found["list"]) == (None, None)


def test_refusals_that_are_alike_are_one() -> None:
    metrics = Metrics()
    for number in range(1, 4):
        refused(metrics, str(number), address=f"10.0.0.5:{number}")
    refused(metrics, "4", Reason.EXPIRED)
    expired, denied = report_of(describe(NOW, state(), metrics), AT)["refusals"]
    assert (expired["reason"], expired["count"], expired["first"], expired["last"]) == ("expired", 1, "4", "4")
    assert (denied["reason"], denied["count"], denied["first"], denied["last"]) == ("policy_denied", 3, "1", "3")
    assert (denied["address"], denied["connection_id"], denied["peer"]) == (
        "10.0.0.5:3",
        "c3",
        "spiffe://shop.internal/db",
    )
    assert denied["port"] == "http"


def test_the_port_of_a_call_is_its_target() -> None:
    one = {
        "direction": "outbound",
        "port": "http",
        "upstream": "api:http",
        "reason": "unknown_ca",
        "at": "1",
        "message": "m",
    }
    (group,) = grouped([one])
    assert (group["port"], group["count"]) == ("api:http", 1)
    assert "peer" not in group
