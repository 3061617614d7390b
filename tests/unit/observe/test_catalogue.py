"""Every metric of a sidecar is declared once, is told with its labels, and follows Prometheus's conventions."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certs.protocol import catalogue as ca
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe import catalogue
from sidecar.observe.catalogue import METRICS, MemberNumbers, families
from sidecar.observe.exposition import Metric, text
from sidecar.observe.metrics import Metrics
from sidecar.observe.record import ConnectionRecord
from tests.beds.admin import NUMBERS

MEMBER = MemberNumbers(
    renews_at=1.8e9, obtained=3, failed=2, failing=True, bundle=4, list_version=5, listed_at=1.7e9, fresh_until=1.9e9
)
EVERY = (*METRICS, *ca.METRICS)


def counted() -> Metrics:
    metrics = Metrics()
    for outcome in (None, Reason.OK, Reason.POLICY_DENIED):
        record = ConnectionRecord("inbound", "api", "http", 0.0, peer_id="spiffe://shop.internal/web", rule="r")
        if outcome is not Reason.POLICY_DENIED:
            record.decision = "allow"
            metrics.let_in(record, record.started, stream=True)
        if outcome is Reason.OK:
            record.end(outcome)
        elif outcome is not None:
            record.refuse(Refused(outcome, "says no"))
        if outcome is not None:
            metrics.add(record, "now")
    metrics.handshakes["inbound"].add(0.003)
    metrics.connects["outbound"].add(7.0)
    metrics.lag.add(0.0)
    return metrics


def told(metrics: Metrics, numbers: catalogue.Numbers = NUMBERS) -> dict[str, float]:
    body = text(families(metrics, numbers)).decode()
    return {
        f"{one.name}{{{','.join(f'{name}={value}' for name, value in sorted(one.labels.items()))}}}": one.value
        for family in text_string_to_metric_families(body)
        for one in family.samples
    }


def test_all_that_is_declared_is_told_in_its_order_and_nothing_else() -> None:
    numbers = replace(
        NUMBERS, member=MEMBER, allow_all={"observe": 2e9}, plaintext={"http": 2}, permissive={"http": 2e9}
    )
    found = list(families(counted(), numbers))
    assert tuple(metric for metric, _ in found) == METRICS
    assert all(samples for _, samples in found), "and this state has a number for each"
    for metric, samples in found:
        assert {len(labels) for labels in samples} == {len(metric.labels)}, metric.name


def test_what_was_let_in_what_ended_and_what_was_refused() -> None:
    found = told(counted())
    edge = "direction=inbound,peer=web,port=http"
    assert found[f"sidecar_connections_opened_total{{{edge},rule=r}}"] == 2
    assert found[f"sidecar_connections_closed_total{{{edge},reason=ok,rule=r}}"] == 1
    assert found[f"sidecar_connections_refused_total{{{edge},reason=policy_denied,rule=r}}"] == 1
    assert found[f"sidecar_live_connections{{{edge},rule=r}}"] == 1
    assert found["sidecar_connections_total{decision=allow,direction=inbound,port=http,reason=ok}"] == 1
    assert found["sidecar_handshake_duration_seconds_bucket{direction=inbound,le=0.0025}"] == 0
    assert found["sidecar_handshake_duration_seconds_bucket{direction=inbound,le=0.005}"] == 1
    assert found["sidecar_connect_duration_seconds_bucket{direction=outbound,le=5.0}"] == 0
    assert found["sidecar_connect_duration_seconds_bucket{direction=outbound,le=+Inf}"] == 1
    assert found["sidecar_connect_duration_seconds_sum{direction=outbound}"] == 7


def test_a_member_of_a_ca_tells_of_its_certificate_and_another_of_its_end_alone() -> None:
    found = told(Metrics(), replace(NUMBERS, member=MEMBER))
    assert found["sidecar_certificate_renewal_timestamp_seconds{}"] == 1.8e9
    assert (found["sidecar_certificate_failing{}"], found["sidecar_bundle_version{}"]) == (1, 4)
    found = told(Metrics(), replace(NUMBERS, member=MemberNumbers()))
    assert "sidecar_bundle_version{}" not in found, "it has none yet"
    assert "sidecar_certificate_failing{}" not in told(Metrics())
    assert told(Metrics())["sidecar_certificate_not_after_timestamp_seconds{}"] == NUMBERS.certificate_end


def test_so_many_rules_that_allow_everything_are_told_and_no_more() -> None:
    rules = {f"r{number}": float("inf") for number in range(100)}
    found = told(Metrics(), replace(NUMBERS, allow_all=rules))
    named = [name for name in found if name.startswith("sidecar_policy_allow_all_until_timestamp_seconds")]
    assert len(named) == catalogue.MAX_RULES
    assert found[named[0]] == float("inf")


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_its_name_is_by_convention(metric: Metric) -> None:
    assert re.fullmatch(r"(sidecar|mesh_ca)_[a-z]+(_[a-z]+)*", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert (metric.kind != "histogram") or metric.name.endswith("_seconds")
    words = metric.name.removesuffix("_total").split("_")
    assert not {"seconds", "bytes"} & set(words[:-1]), "a unit is a suffix"
    assert not {"milliseconds", "ms", "minutes", "kilobytes"} & set(words)
    assert metric.meaning.endswith(".")
    assert not {"\n", "|", "\\"} & set(metric.meaning), "one line, in a table too"
    assert not {"le", "quantile", "instance", "job"} & set(metric.labels), "Prometheus's own"


def test_each_name_is_there_once() -> None:
    assert len({metric.name for metric in EVERY}) == len(EVERY)
