"""Who calls whom: both ends of a call are one pair, with the numbers of the end that knows."""

from __future__ import annotations

from typing import Any

from sidecar.dashboard.pairs import PLAINTEXT, STRANGERS, counters, id_of, pairs
from sidecar.dashboard.rates import Rates
from sidecar.dashboard.reading import read
from tests.beds.dashboard import NOW, entry, inbound, outbound, shop, shown


def made(*documents: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rates = Rates()
    for document in documents:
        said = read(document, NOW)
        rates.take(counters(said))
    return pairs(said, rates)


def test_both_ends_are_one_pair_with_the_callee_s_numbers() -> None:
    found = made(shown(entry("web", edges=[outbound("api:http", 9)]), entry("api", edges=[inbound("web", "http", 7)])))
    assert list(found) == ["web>api"]
    assert (found["web>api"]["opened"], list(found["web>api"]["ports"])) == (7, ["http"])


def test_what_never_arrived_is_the_caller_s() -> None:
    refused = outbound("api:http", 0, refused={"connect_failed": 4})
    found = made(shown(entry("web", edges=[refused]), entry("api")))
    assert (found["web>api"]["opened"], found["web>api"]["refused"]) == (0, 4)


def test_replicas_and_rules_are_added_up() -> None:
    one = inbound("web", "http", 3, rule="a")
    other = inbound("web", "http", 4, rule="b")
    found = made(shown(entry("api", edges=[one, other]), entry("api", instance="1" * 32, edges=[one])))
    assert found["web>api"]["opened"] == 10
    assert found["web>api"]["ports"]["http"]["rules"] == ["a", "b"]


def test_rates_of_two_looks() -> None:
    later = NOW.replace(second=10)
    found = made(shop(calls=100), shop(later, calls=300))
    assert (found["web>api"]["rate"], found["web>api"]["up"], found["web>api"]["down"]) == (20.0, 2000, 18000)
    assert (found["api>cache"]["rate"], found["api>cache"]["opening_ms"]) == (40.0, 2.0)


def test_before_the_second_look_there_is_no_rate() -> None:
    assert made(shop())["web>api"]["rate"] is None


def test_a_call_that_is_allowed_and_was_never_made() -> None:
    found = made(
        shown(entry("web", outbound=[{"to": "api:http", "allowed": True}, {"to": "db:sql", "allowed": False}]))
    )
    assert {key: one["opened"] for key, one in found.items()} == {"web>api": 0}


def test_who_proved_no_identity() -> None:
    found = made(shown(entry("api", edges=[inbound("", "http", 0, refused={"no_certificate": 2})])))
    assert found[id_of(STRANGERS, "api")]["refused"] == 2


def test_who_speaks_plaintext_to_a_permissive_port() -> None:
    port = {"port": "postgres", "mode": "permissive", "until": "2026-12-31"}
    caller = {"port": "postgres", "address": "10.0.0.5", "count": 4}
    found = made(shown(entry("db", inbound=[port, {"port": "other"}], plaintext=[caller, caller])))
    (one,) = found.values()
    assert (one["from"], one["plaintext"], one["opened"]) == (PLAINTEXT, True, 8)
    assert list(one["ports"]) == ["postgres"]


def test_a_flow_of_nothing_is_no_pair() -> None:
    assert made(shown(entry("api", edges=[inbound("web", "http", 0)]))) == {}
