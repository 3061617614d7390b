"""The CA's numbers, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from certs.metrics import Metrics
from tests.mini_ca import NOW


def numbers(metrics: Metrics) -> dict[str, float]:
    """Each sample by its name and labels: ``name{label=value}``."""
    found = {}
    for family in text_string_to_metric_families(metrics.text(NOW, 7, 3).decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_is_in_force_is_told() -> None:
    told = numbers(Metrics())
    assert told["mesh_ca_issuing_not_after_seconds"] == NOW.timestamp()
    assert told["mesh_ca_bundle_version"] == 7
    assert told["mesh_ca_followers"] == 3
    assert told["mesh_ca_store_up"] == 0


def test_what_happened_is_counted() -> None:
    metrics = Metrics()
    metrics.answered("/v1/enrol", 200)
    metrics.answered("/v1/enrol", 200)
    metrics.answered("/v1/enrol", 403)
    metrics.issued("token")
    metrics.denied("bad_pass")
    metrics.refused("unknown_ca")
    told = numbers(metrics)
    assert told["mesh_ca_requests_total{path=/v1/enrol,status=200}"] == 2
    assert told["mesh_ca_requests_total{path=/v1/enrol,status=403}"] == 1
    assert told["mesh_ca_issued_total{how=token}"] == 1
    assert told["mesh_ca_denied_total{reason=bad_pass}"] == 1
    assert told["mesh_ca_handshakes_refused_total{reason=unknown_ca}"] == 1


def test_the_store_comes_and_goes() -> None:
    metrics = Metrics()
    metrics.store_up(up=True)
    assert numbers(metrics)["mesh_ca_store_up"] == 1
    metrics.store_up(up=False)
    assert numbers(metrics)["mesh_ca_store_up"] == 0


def test_two_cas_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.issued("token")
    assert "mesh_ca_issued_total{how=token}" not in numbers(other)
