"""Who calls whom: both ends of a call are one pair, with the numbers of the end that knows."""

from __future__ import annotations

from typing import Any

from sidecar.dashboard.pairs import OTHER_CALLERS, PLAINTEXT, STRANGERS, counters, id_of, pairs
from sidecar.dashboard.rates import Rates
from sidecar.dashboard.reading import read
from sidecar.observe.traffic import OTHERS
from tests.beds.dashboard import NOW, entry, in_plaintext, inbound, outbound, shop, shown


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


PORT = {"port": "postgres", "mode": "permissive", "until": "2026-12-31"}
CALLERS = [{"port": "postgres", "address": "10.0.0.5", "count": 4}]


def test_who_speaks_plaintext_is_one_caller_in_the_edges_and_in_the_inventory() -> None:
    later = NOW.replace(second=10)
    said: dict[str, Any] = {"inbound": [PORT], "plaintext": CALLERS}
    found = made(
        shown(entry("db", edges=[in_plaintext("postgres", 4)], **said)),
        shown(entry("db", later, edges=[in_plaintext("postgres", 14, live=2)], **said), now=later),
    )
    (one,) = found.values()
    assert (one["from"], one["plaintext"], one["opened"], one["live"], one["rate"]) == (PLAINTEXT, True, 14, 2, 1.0)
    closed = made(shown(entry("db", edges=[in_plaintext("postgres", 4)], inbound=[PORT | {"mode": "strict"}])))
    assert closed[id_of(PLAINTEXT, "db")]["plaintext"]


def test_replicas_that_take_plaintext_are_added_up_and_those_that_are_gone_are_not() -> None:
    said: dict[str, Any] = {"inbound": [PORT], "plaintext": CALLERS}
    some = [entry("db", instance=str(at) * 32, late=late, **said) for at, late in ((1, 0), (2, 0), (3, 900))]
    assert made(shown(*some))[id_of(PLAINTEXT, "db")]["opened"] == 8
    assert made(shown(some[2])) == {}


def test_what_was_open_at_a_sidecar_that_is_gone_is_not_open_now() -> None:
    one = inbound("web", "http", 3, live=2)
    found = made(shown(entry("api", edges=[one]), entry("api", instance="1" * 32, late=900, edges=[one])))
    assert (found["web>api"]["live"], found["web>api"]["opened"]) == (2, 6)


def test_callers_without_a_row_of_their_own_are_no_service() -> None:
    document = shown(entry("api", edges=[inbound(OTHERS, "http", 3)]))
    assert list(made(document)) == [id_of(OTHER_CALLERS, "api")]
    document["ca"]["services"] = ["api", OTHERS]
    assert list(made(document)) == [id_of(OTHERS, "api")]


def test_no_service_can_have_the_name_of_those_that_stand_for_many() -> None:
    assert all(" " in name for name in (STRANGERS, PLAINTEXT, OTHER_CALLERS))


def test_a_flow_of_nothing_is_no_pair() -> None:
    assert made(shown(entry("api", edges=[inbound("web", "http", 0)]))) == {}
