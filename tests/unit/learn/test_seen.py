"""What of a log or a report counts as a call, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import SpiffeId
from sidecar.learn import seen as module
from sidecar.learn.seen import CARRIED, Call, Seen, time_of
from sidecar.policy.names import PLAINTEXT, Target
from tests.unit.learn.lines import DOMAIN, inbound, outbound, plaintext


def call(caller: str, target: str) -> Call:
    service, _, port = target.partition(":")
    return Call(SpiffeId(DOMAIN, tuple(caller.split("/"))), Target(service, port))


WEB_API = call("web", "api:http")


def seen(*lines: dict[str, Any]) -> Seen:
    found = Seen(DOMAIN)
    for line in lines:
        found.take(line)
    return found


def test_both_ends_lines_are_one_connection() -> None:
    found = seen(
        inbound("web", "api:http"),
        outbound("web", "api:http"),
        inbound("web", "api:http", time="2026-05-01T00:00:00+00:00"),
    )
    [(one, tally)] = found.calls.items()
    assert (one, str(one)) == (WEB_API, "web -> api:http")
    assert (tally.connections, tally.refusals, tally.seen_by_callee, tally.rules) == (2, 0, True, {"observe"})
    assert tally.first == datetime(2026, 5, 1, tzinfo=UTC)
    assert tally.last == datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert not found.left_out


def test_the_caller_s_own_word_is_kept_apart() -> None:
    assert not seen(outbound("web", "api:http")).calls[WEB_API].seen_by_callee


def test_an_identity_that_is_no_service_s() -> None:
    assert list(seen(inbound("batch/one", "api:http")).calls) == [call("batch/one", "api:http")]
    assert str(call("batch/one", "api:http")) == "spiffe://shop.internal/batch/one -> api:http"


@pytest.mark.parametrize("reason", sorted(set(Reason) - CARRIED))
@pytest.mark.parametrize("make", [inbound, outbound])
def test_what_was_refused_or_broken_off_is_no_call(reason: Reason, make: Any) -> None:
    assert not seen(make("web", "api:http", reason=str(reason))).calls
    if reason is not Reason.POLICY_DENIED:
        assert not seen(make("web", "api:http", reason=str(reason), decision="deny")).calls


@pytest.mark.parametrize("reason", sorted(CARRIED))
def test_what_was_carried_is_one(reason: Reason) -> None:
    assert list(seen(inbound("web", "api:http", reason=str(reason))).calls) == [WEB_API]
    refused = seen(inbound("web", "api:http", reason=str(reason), decision="deny"))
    assert (refused.calls, refused.left_out.total()) == ({}, 1)


@pytest.mark.parametrize(
    "line",
    [
        inbound("web", "api:http", decision="deny", reason="policy_denied", rule=None),
        outbound("web", "api:http", decision="deny", reason="policy_denied", rule=None, peer_id=None),
        outbound("web", "api:http", decision="deny", reason="peer_refused", peer_reason="policy_denied"),
    ],
)
def test_what_the_policy_refused_is_seen_and_was_not_let_in(line: dict[str, Any]) -> None:
    [(one, tally)] = seen(line).calls.items()
    assert (one, tally.connections, tally.refusals, tally.rules) == (WEB_API, 0, 1, set())


def test_what_the_other_end_refused_for_another_reason_is_not() -> None:
    assert not seen(outbound("web", "api:http", decision="deny", reason="peer_refused", peer_reason="revoked")).calls


@pytest.mark.parametrize("make", [inbound, outbound])
def test_a_probe_is_no_call(make: Any) -> None:
    found = seen(make("web", "api:http", probe=True), make("web", "api:http", reason="probe"))
    assert (found.calls, found.left_out) == ({}, {"a probe": 2})


@pytest.mark.parametrize("make", [inbound, outbound])
@pytest.mark.parametrize(
    "peer",
    [None, 1, "", "web", "spiffe://shop.internal", "spiffe://shop.internal/../web", "spiffe://shop.internal/a b"],
)
def test_a_peer_without_a_verified_identity_makes_no_call(make: Any, peer: object) -> None:
    found = seen(make("web", "api:http", peer_id=peer, unverified={"uris": "spiffe://shop.internal/web"}))
    assert (found.calls, found.left_out) == ({}, {"of an unverified peer": 1})


@pytest.mark.parametrize("make", [inbound, outbound])
def test_nor_does_one_of_another_mesh(make: Any) -> None:
    found = seen(make("web", "api:http", domain="other.internal"))
    assert (found.calls, found.foreign, found.left_out) == ({}, {"other.internal"}, {"of another trust domain": 1})


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": "connection"},
        {"event": "started", **{k: v for k, v in inbound("web", "api:http").items() if k != "event"}},
        inbound("web", "api:http", direction="sideways"),
        inbound("web", "api:http", direction=["inbound"]) | {"direction": "?"},
        inbound("web", "api:http", service="a b"),
        inbound("web", "api:http", service=None),
        inbound("web", "api:http", port="ht:tp"),
        inbound("web", "api:http", port=None) | {"port": ""},
        outbound("web", "api:http", upstream="api:http or db:sql"),
        outbound("web", "api:http", upstream=None),
        outbound("web", "api:http", upstream="db:sql"),
        outbound("web", "api:http", peer_id="spiffe://shop.internal/db"),
    ],
)
def test_a_line_that_does_not_say_all_makes_no_call(line: dict[str, Any]) -> None:
    assert not seen(line).calls


@pytest.mark.parametrize("time", [None, 1, "", "yesterday", "2026-06-01", "0001-01-01T00:00:00+23:59"])
def test_a_time_that_is_none(time: Any) -> None:
    assert time_of(time) is None
    [tally] = seen(inbound("web", "api:http", time=time)).calls.values()
    assert (tally.connections, tally.first, tally.last) == (1, None, None)


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 2)
    found = seen(*(inbound(f"job/{number}", "api:http") for number in range(5)), inbound("job/0", "api:http"))
    assert len(found.calls) == 2
    assert found.left_out == {"of more than 2 callers and ports": 3}
    assert found.calls[call("job/0", "api:http")].connections == 2


def test_names_of_rules_and_meshes_are_bounded() -> None:
    lines = [inbound("web", "api:http", rule=f"r{number}") for number in range(50)]
    lines += [inbound("web", "api:http", domain=f"d{number}") for number in range(50)]
    found = seen(*lines)
    assert len(found.calls[WEB_API].rules) == len(found.foreign) == module.MAX_RULES


# -- alarms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alarm", "alarmed"),
    [
        ({"event": "mitm_suspected", "service": "web", "upstream": "api:http"}, [WEB_API]),
        ({"event": "tampering_suspected", "service": "api", "upstream": "api:http"}, [WEB_API]),
        ({"event": "identity_elsewhere", "service": "web"}, [WEB_API, call("web", "db:sql")]),
        ({"event": "identity_elsewhere", "service": "spiffe://shop.internal/db"}, [call("web", "db:sql")]),
        ({"event": "identity_moved", "service": "web", "severity": "notice"}, []),
        ({"event": "mitm_suspected", "service": None}, []),
        ({"event": "started", "service": "web"}, []),
    ],
)
def test_an_alarm_is_about_a_call_or_an_identity(alarm: dict[str, Any], alarmed: list[Call]) -> None:
    found = seen(alarm)
    assert [one for one in (WEB_API, call("web", "db:sql")) if found.is_alarmed(one)] == alarmed


def test_of_too_many_alarms_each_call_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALARMS", 1)
    alarms = [{"event": "mitm_suspected", "service": "x", "upstream": f"y:{port}"} for port in range(2)]
    assert not seen(alarms[0]).is_alarmed(WEB_API)
    assert seen(*alarms).is_alarmed(WEB_API)


# -- reports -----------------------------------------------------------------------------------------------------------


def edge(direction: str, peer: str, port: str, **changes: Any) -> dict[str, Any]:
    return {"direction": direction, "peer": peer, "port": port, "rule": "observe", "opened": 3, **changes}


def reported(*edges: Any, identity: str = "spiffe://shop.internal/api", **more: Any) -> Seen:
    found = Seen(DOMAIN)
    times = {"started_at": "2026-06-01T00:00:00Z", "at": "2026-06-02T00:00:00Z"}
    found.take_report(identity, {"edges": list(edges), **times, **more})
    return found


def test_a_report() -> None:
    found = reported(edge("inbound", "web", "http"), edge("outbound", "db", "db:sql", opened=1))
    assert found.calls.keys() == {WEB_API, call("api", "db:sql")}
    tally = found.calls[WEB_API]
    assert (tally.connections, tally.rules, tally.seen_by_callee) == (3, {"observe"}, True)
    assert (tally.first, tally.last) == (datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC))
    assert not found.calls[call("api", "db:sql")].seen_by_callee


def test_what_ended_badly_or_was_refused_is_not_counted() -> None:
    bad = edge("inbound", "web", "http", ended={"ok": 1, "truncated": 1, "revoked": 1}, refused={"policy_denied": 2})
    tally = reported(bad).calls[WEB_API]
    assert (tally.connections, tally.refusals) == (1, 2)
    assert not reported(edge("inbound", "web", "http", ended={"truncated": 9})).calls
    assert not reported(edge("inbound", "web", "http", ended={"probe": 3})).calls
    assert not reported(edge("inbound", "web", "http", opened=0, refused={"probe": 9, "expired": 9})).calls


@pytest.mark.parametrize(
    "one",
    [
        edge("inbound", "others", "http"),
        edge("inbound", "", "http"),
        edge("inbound", "a b", "http"),
        edge("inbound", "web", ""),
        edge("sideways", "web", "http"),
        edge("outbound", "", "a:1 or b:1"),
        edge("inbound", "web", "http", opened=True),
        edge("inbound", "web", "http", opened=-1),
        edge("inbound", "web", "http", opened=1e400),
        edge("inbound", "web", "http", opened="3"),
        {"peer": None},
        None,
    ],
)
def test_an_edge_that_does_not_say_all(one: Any) -> None:
    assert not reported(one).calls


def test_reports_of_another_mesh_or_of_no_service() -> None:
    assert not reported(edge("inbound", "web", "http"), identity="spiffe://other/api").calls
    assert not reported(edge("inbound", "web", "http"), identity="spiffe://shop.internal/a/b").calls
    assert reported("x", identity="spiffe://other/api").foreign == {"other"}
    assert not reported(edges=None).calls


def test_alarms_of_reports() -> None:
    found = reported(alarms=[{"event": "mitm_suspected", "service": "web", "upstream": "api:http"}, 7])
    assert found.is_alarmed(WEB_API)
    assert not found.is_alarmed(call("web", "db:sql"))


def test_a_caller_without_tls_is_seen_as_what_it_is() -> None:
    found = seen(plaintext("db:sql"), plaintext("db:sql"), inbound("web", "db:sql"))
    without = Call(PLAINTEXT, Target("db", "sql"))
    assert found.calls[without].connections == 2
    assert (str(without), without.caller) == ("plaintext -> db:sql", "plaintext")
    assert sorted(found.calls, key=lambda one: one.order) == [call("web", "db:sql"), without]


def test_what_claims_both_is_no_call() -> None:
    assert not seen(inbound("web", "db:sql", plaintext=True)).calls
    for word in ("yes", 1, None):
        assert not seen(inbound("web", "db:sql", plaintext=word, peer_id=None)).calls
    assert not seen(plaintext("db:sql", reason="plaintext_refused", decision="deny")).calls


def test_a_person_is_seen_as_rules_name_one() -> None:
    found = seen(inbound("user/alice", "db:sql"))
    (one,) = found.calls
    assert (str(one), one.caller) == ("user/alice -> db:sql", "user/alice")


def test_a_report_of_callers_without_tls() -> None:
    found = Seen(DOMAIN)
    edge = {"direction": "inbound", "peer": "plaintext", "port": "sql", "rule": "old", "opened": 3, "ended": {"ok": 3}}
    found.take_report("spiffe://shop.internal/db", {"edges": [edge]})
    assert {str(one): tally.connections for one, tally in found.calls.items()} == {"plaintext -> db:sql": 3}
