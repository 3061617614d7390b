"""The records of one socket: one at a time, each reported once."""

from __future__ import annotations

from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.lines import Lines


def test_each_stream_has_a_record_of_its_own_that_is_reported_once() -> None:
    reported: list[ConnectionRecord] = []
    lines = Lines(ConnectionRecord("inbound", "api", "http", started=1.0), reported.append)
    first = lines.present
    first.peer_address, first.rule, first.unverified["claim"] = "10.0.0.7:5", "a rule", "x"
    first.end(Reason.OK)
    for _ in range(2):
        lines.end()
    assert reported == [first]
    lines.begin(9.0)
    second = lines.present
    assert (second.started, second.peer_address, second.service) == (9.0, "10.0.0.7:5", "api")
    assert (second.rule, second.reason, second.unverified) == (None, None, {})
    lines.end()
    assert reported == [first, second]
    assert len({id(one) for one in reported}) == 2
