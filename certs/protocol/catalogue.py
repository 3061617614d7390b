"""Every metric of the CA: its name, its labels, what it means. Pure. Dashboards and alerts rely on these names."""

from __future__ import annotations

from sidecar.observe.exposition import Metric

REQUESTS = Metric("mesh_ca_requests_total", "counter", ("path", "status"), "Answers.")
ISSUED = Metric("mesh_ca_issued_total", "counter", ("how",), "Certificates, by how they were obtained.")
DENIED = Metric("mesh_ca_denied_total", "counter", ("reason",), "Denials, by their reason.")
REFUSED = Metric("mesh_ca_handshakes_refused_total", "counter", ("reason",), "Connections refused before any request.")
ISSUER = Metric("mesh_ca_issuing_not_after_timestamp_seconds", "gauge", (), "When the issuing CA's certificate ends.")
ROOT = Metric("mesh_ca_root_not_after_timestamp_seconds", "gauge", (), "When the root that it is under ends.")
BUNDLE = Metric("mesh_ca_bundle_version", "gauge", (), "The newest trust bundle.")
LIST = Metric("mesh_ca_revocation_list_version", "gauge", (), "The list of revocations that is served.")
LISTED = Metric("mesh_ca_revocation_list_timestamp_seconds", "gauge", (), "When that list was signed.")
FOLLOWERS = Metric("mesh_ca_followers", "gauge", (), "Sidecars that have polled this process.")
REPORTS = Metric("mesh_ca_reports", "gauge", (), "Sidecars that have reported to this process in the last 20 seconds.")
ALARMS = Metric(
    "mesh_ca_alarms_total",
    "counter",
    ("event", "severity"),
    "What may be an attack, each time: what sidecars reported, and what the CA met itself.",
)
STORE = Metric("mesh_ca_store_up", "gauge", (), "1 while the store answers.")
HEALTHY = Metric("mesh_ca_healthy", "gauge", (), "1 while it does its work.")
BUILD = Metric("mesh_ca_build_info", "gauge", ("release",), "1. What runs, in the label.")
POLICY = Metric("mesh_ca_policy_info", "gauge", ("version",), "1. The version of its mesh file, in the label.")

METRICS = (
    REQUESTS, ISSUED, DENIED, REFUSED, ISSUER, ROOT, BUNDLE, LIST, LISTED, FOLLOWERS, REPORTS, ALARMS, STORE, HEALTHY, BUILD,
    POLICY,
)  # fmt: skip
"""All, in the order in which they are told."""
