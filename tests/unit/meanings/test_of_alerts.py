"""Every TLS alert that is no reason of ours has its meaning."""

from __future__ import annotations

from sidecar.identity.reasons import Reason
from sidecar.meanings.meaning import Kind
from sidecar.meanings.of_alerts import ALERTS
from sidecar.transport.tls_errors import alert_name


def test_every_alert_has_an_entry_and_nothing_else_has() -> None:
    names = {name for number in range(256) if not (name := alert_name(number)).startswith("alert ")}
    ours = {str(reason) for reason in Reason} - {"internal_error"}  # the peer's fault, not ours
    assert {one.word for one in ALERTS} == names - ours
    assert {one.kind for one in ALERTS} == {Kind.ALERT}


def test_each_names_causes_and_what_to_do() -> None:
    assert all(one.causes and one.steps for one in ALERTS)
