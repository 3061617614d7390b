"""The CA's numbers, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from certs.protocol.catalogue import METRICS
from certs.service.metrics import Metrics, Numbers

NUMBERS = Numbers(
    issuing_end=1.8e9, root_end=1.9e9, bundle=7, list_version=9, listed_at=1.7e9, followers=3, reports=2,
    alarms={("mitm_suspected", "alarm"): 4}, healthy=True,
    release="0.1.0", policy="0123456789ab",
)  # fmt: skip


def samples(metrics: Metrics) -> dict[str, float]:
    """Each sample as it is written, without the times at which counters were made."""
    text = metrics.text(NUMBERS).decode()
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_fresh_ca_has_nothing_to_tell_but_how_it_stands() -> None:
    assert samples(Metrics()) == {
        "mesh_ca_issuing_not_after_timestamp_seconds": 1.8e9,
        "mesh_ca_root_not_after_timestamp_seconds": 1.9e9,
        "mesh_ca_bundle_version": 7,
        "mesh_ca_revocation_list_version": 9,
        "mesh_ca_revocation_list_timestamp_seconds": 1.7e9,
        "mesh_ca_followers": 3,
        "mesh_ca_reports": 2,
        "mesh_ca_alarms_total event=mitm_suspected severity=alarm": 4,
        "mesh_ca_store_up": 0,
        "mesh_ca_healthy": 1,
        "mesh_ca_build_info release=0.1.0": 1,
        "mesh_ca_policy_info version=0123456789ab": 1,
    }


def test_each_thing_is_counted_under_its_own_name() -> None:
    metrics = Metrics()
    metrics.answered("/v1/enrol", 200)
    metrics.answered("/v1/enrol", 200)
    metrics.answered("/v1/enrol", 403)
    metrics.issued("token")
    metrics.denied("bad_pass")
    metrics.refused("no_certificate")
    told = samples(metrics)
    named = {name.partition(" ")[0] for name in told}
    assert named == {metric.name for metric in METRICS}, "all that is declared is told, and nothing else"
    assert told["mesh_ca_requests_total path=/v1/enrol status=200"] == 2
    assert told["mesh_ca_requests_total path=/v1/enrol status=403"] == 1
    assert told["mesh_ca_issued_total how=token"] == 1
    assert told["mesh_ca_denied_total reason=bad_pass"] == 1
    assert told["mesh_ca_handshakes_refused_total reason=no_certificate"] == 1


def test_the_store_is_up_while_it_answers_and_down_while_it_does_not() -> None:
    metrics = Metrics()
    metrics.store_up(up=True)
    assert samples(metrics)["mesh_ca_store_up"] == 1
    metrics.store_up(up=False)
    assert samples(metrics)["mesh_ca_store_up"] == 0


def test_two_cas_in_one_process_do_not_count_for_each_other() -> None:
    one, other = Metrics(), Metrics()
    one.issued("token")
    assert "mesh_ca_issued_total how=token" in samples(one)
    assert "mesh_ca_issued_total how=token" not in samples(other)


def test_they_tell_of_the_ca_and_not_of_the_process() -> None:
    """Whatever else registers itself in the process is nobody's business who asks a CA."""
    assert all(name.startswith("mesh_ca_") for name in samples(Metrics()))
