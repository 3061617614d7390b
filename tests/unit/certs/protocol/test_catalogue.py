"""The CA's metrics have names of their own, and labels that no caller chooses."""

from __future__ import annotations

from certs.protocol.catalogue import METRICS
from sidecar.observe import catalogue


def test_no_name_is_also_a_sidecar_s() -> None:
    names = {metric.name for metric in METRICS}
    assert len(names) == len(METRICS)
    assert all(name.startswith("mesh_ca_") for name in names)
    assert not names & {metric.name for metric in catalogue.METRICS}


def test_no_label_is_an_identity_or_an_address() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels <= {"path", "status", "how", "reason", "release", "version", "event", "severity"}
