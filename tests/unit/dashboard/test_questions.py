"""The four questions and the verdict: never "yes" of what is not known, and the worst comes first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sidecar.dashboard.questions import listed
from sidecar.dashboard.view import Watching
from tests.beds.dashboard import NOW, denied, entry, inbound, iso, mitm, refusal, shop, shown, twin


def view(document: dict[str, Any]) -> dict[str, Any]:
    return Watching("a test").take(document, NOW)


def answer(document: dict[str, Any], name: str) -> tuple[str, str]:
    one = view(document)["questions"][name]
    return one["state"], "".join(part if isinstance(part, str) else "<time>" for part in one["answer"])


def verdict(document: dict[str, Any]) -> tuple[str, str]:
    one = view(document)["verdict"]
    return one["state"], one["text"]


PERMISSIVE = {"port": "postgres", "may_call": ["api"], "mode": "permissive", "until": "2026-12-31"}
CALLER = {"port": "postgres", "address": "10.0.0.5", "name": "old.lan", "count": 4}


def test_all_is_well() -> None:
    state, text = verdict(shop())
    assert (state, text.partition(":")[0]) == ("good", "All is well")
    assert "all that the sidecars of 5 services let in is mutual TLS 1.3, nothing refused" in text
    assert [one["state"] for one in view(shop())["questions"].values()] == ["good"] * 4
    assert list(view(shop())["questions"]) == ["encrypted", "calls", "refused", "ends"]


def test_of_nothing_nothing_is_said() -> None:
    assert verdict(shown()) == ("unknown", "No sidecar has reported yet, so nothing is known.")
    assert answer(shown(), "encrypted")[0] == answer(shown(), "ends")[0] == "unknown"


def test_a_service_without_a_report_makes_encryption_uncertain() -> None:
    state, text = answer(shown(entry("api"), services=["api", "db"]), "encrypted")
    assert state == "look"
    assert "Not known: db" in text
    assert answer(shown(entry("api"), entry("db", late=60)), "encrypted")[0] == "look"
    assert verdict(shown(entry("api"), services=["api", "db", "web"])) == ("look", "db, web do not report.")


def test_a_permissive_port_is_not_encrypted() -> None:
    state, text = answer(shop(db={"inbound": [PERMISSIVE], "plaintext": [CALLER]}), "encrypted")
    assert (state, text) == ("look", "No: db:postgres still takes plaintext (1 caller).")
    assert verdict(shop(db={"inbound": [PERMISSIVE]}))[1].startswith("Not everything is encrypted: db:postgres")


def test_and_its_last_day_is_told_from_two_weeks_before() -> None:
    soon = PERMISSIVE | {"until": "2026-12-10"}
    state, text = answer(shop(db={"inbound": [soon]}), "ends")
    assert (state, text) == ("look", "plaintext to db:postgres is refused <time>.")
    assert view(shop(db={"inbound": [soon]}))["questions"]["ends"]["answer"][1] == {"at": "2026-12-11T00:00:00Z"}
    assert answer(shop(db={"inbound": [PERMISSIVE]}), "ends")[0] == "good"
    assert answer(shop(db={"inbound": [PERMISSIVE | {"until": "9999-12-31"}]}), "ends")[0] == "good"


def test_who_calls_whom() -> None:
    state, text = answer(shop(), "calls")
    pairs, _, rate = text.partition(". ")
    assert (state, rate) == ("good", "No new connection now.")
    assert sorted(pairs.split(", ")) == ["api → cache", "api → db", "reporting → api", "web → api"]
    assert answer(shown(entry("api")), "calls") == ("good", "Nobody has called anybody yet.")
    watching = Watching("a test")
    watching.take(shop(calls=100), NOW)
    found = watching.take(shop(NOW + timedelta(seconds=10), calls=200), NOW)
    said = "api → cache, web → api, api → db, reporting → api. 35.5 new connections a second now."
    assert found["questions"]["calls"]["answer"] == [said]


def test_who_is_not_well_and_who_drifted() -> None:
    assert verdict(shop(api={"healthy": False, "unwell": ["its list is old"]})) == ("bad", "api: not well.")
    assert verdict(shop(api={"policy": "old"})) == ("look", "api has another version than the others.")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"waiting": ["port 80 is taken"]}, "api: not open: port 80 is taken."),
        ({"reload_refused": ["mesh.yaml:3: no"]}, "api: refused at the last reload: mesh.yaml:3: no."),
        ({"log_lost": 7}, "api: 7 lines of its log were LOST."),
        ({"cut": 2}, "api: 2 entries did not fit into its report."),
    ],
)
def test_what_a_sidecar_tells_besides_is_not_well(said: dict[str, Any], words: str) -> None:
    assert verdict(shop(api=said)) == ("look", words)
    assert words in answer(shop(api=said), "calls")[1]
    assert words in answer(shop(api=said, db={"policy": "old"}), "calls")[1]


def test_reports_that_were_not_read_are_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.dashboard.reading.MAX_SIDECARS", 5)
    assert verdict(shop())[0] == "good"
    monkeypatch.setattr("sidecar.dashboard.reading.MAX_SIDECARS", 4)
    document = shop()
    document["ca"]["services"] = document["ca"]["services"][:4]
    assert verdict(document) == ("look", "reports that are too many and were not read: 1.")


def test_of_a_certificate_that_is_not_told_nothing_is_said() -> None:
    text = "Not known: db does not tell when its certificate ends."
    assert answer(shop(db={"certificate": {}}), "ends") == ("unknown", text)
    assert verdict(shop(db={"certificate": {}})) == ("unknown", text)


def test_who_passes_a_sidecar_is_not_encrypted() -> None:
    found = Watching("a test", {"web": ["at published port 80"]}).take(shop(), NOW)
    words = "NOT SEEN: who comes at published port 80, past web's sidecar."
    assert found["verdict"] == {"state": "look", "text": words}
    assert found["questions"]["encrypted"]["answer"][0].endswith(words)
    also = Watching("a test", {"web": ["at published port 80"]}).take(shop(db={"inbound": [PERMISSIVE]}), NOW)
    assert words in also["questions"]["encrypted"]["answer"][0]


def test_people_and_probes_are_not_missing() -> None:
    edges = [inbound("user/alice", "http", 3), inbound("mesh/probe", "http", 1), inbound("others", "http", 1)]
    assert answer(shown(entry("api", edges=edges)), "encrypted")[0] == "good"


def test_an_authority_that_has_ended() -> None:
    for name, whose in (("issuing_until", "the CA's issuing certificate"), ("root_until", "the root's certificate")):
        document = shown(entry("api"))
        document["ca"][name] = iso(NOW)
        state, text = answer(document, "ends")
        assert (state, text.partition(":")[0]) == ("bad", f"{whose} has ended")


def test_a_denied_caller_is_no_attack() -> None:
    document = shop(db={"refusals": [denied()]})
    state, text = verdict(document)
    assert (state, text) == ("look", "reporting → db:postgres was refused. No sign of an attack: no rule allows it.")
    assert answer(document, "refused")[1].startswith("reporting → db:postgres was refused <time>. No sign")


def test_a_certificate_that_was_revoked_and_one_that_has_ended() -> None:
    peer: dict[str, Any] = {"peer": "spiffe://shop.internal/web"}
    assert verdict(shop(api={"refusals": [refusal("revoked", "http", **peer)]})) == (
        "bad",
        "It may be a stolen key: revoked.",
    )
    for reason, words in (("expired", "has ended"), ("not_yet_valid", "is not valid yet")):
        document = shop(api={"refusals": [refusal(reason, "http", **peer)]})
        text = f"web → api:http was refused. No sign of an attack: its certificate {words}."
        assert verdict(document) == ("look", text)


def test_a_stranger() -> None:
    assert "proved no identity" in verdict(shop(api={"refusals": [refusal("no_certificate", "http")]}))[1]


def test_something_in_the_middle_is_the_verdict_whatever_else_is_wrong() -> None:
    document = shop(alarms={"current": [mitm(), twin()]}, db={"refusals": [denied()], "policy": "old"})
    state, text = verdict(document)
    assert state == "bad"
    assert text == (
        "This may be an attack (api → cache): something answers in cache's place. It was refused, and got nothing. "
        "1 more below."
    )
    said = (
        "It may be: 2 alarms, the last api → cache (unexpected_peer) <time>. It was refused, and got nothing. "
        "What to do is below. Besides, reporting → db:postgres was refused <time>. No sign of an attack: no rule allows it."
    )
    assert answer(document, "refused") == ("bad", said)


def test_an_alarm_of_another_kind_does_not_say_that_it_was_refused() -> None:
    assert "got nothing" not in answer(shop(alarms={"current": [twin()]}), "refused")[1]


def test_a_suspect_without_an_alarm_may_be_an_attack_as_well() -> None:
    one = refusal("unexpected_peer", "db:postgres", direction="outbound", message="refused: something answers")
    assert verdict(shop(api={"refusals": [one]})) == ("bad", "It may be: something answers.")


def test_it_may_be_an_attack_also_if_something_harmless_came_after_it() -> None:
    earlier = iso(NOW - timedelta(minutes=5))
    one = refusal("unexpected_peer", "db:postgres", direction="outbound", message="refused: it answers") | {
        "last": earlier
    }
    document = shop(api={"refusals": [one]}, db={"refusals": [denied()]})
    assert verdict(document) == ("bad", "It may be: it answers.")
    assert "Besides, reporting → db:postgres was refused" in answer(document, "refused")[1]


def test_a_notice_is_no_alarm() -> None:
    assert answer(shop(alarms={"current": [mitm(severity="notice")]}), "refused")[0] == "good"


def test_refusals_of_yesterday() -> None:
    old = denied() | {"last": iso(NOW - timedelta(days=1))}
    assert answer(shop(db={"refusals": [old]}), "refused") == (
        "good", "Nothing in the last 15 minutes, and no alarm. 1 older refusal below.",
    )  # fmt: skip


def certificate(left: timedelta, renews: timedelta | None = None) -> dict[str, Any]:
    times = {"not_after": iso(NOW + left), **({} if renews is None else {"renews_at": iso(NOW + renews)})}
    return {"certificate": times}


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("said", "state", "text"),
    [
        (certificate(9 * MINUTE, 2 * MINUTE), "good", "db's certificate <time>. It renews itself <time>."),
        (certificate(9 * MINUTE, -9 * MINUTE), "bad", "db's certificate was not renewed in time and ends <time>."),
        (certificate(9 * MINUTE), "bad", "db's certificate ends <time>."),
        (certificate(-MINUTE), "bad", "db: the certificate has ended, so every peer refuses it."),
    ],
)
def test_what_ends_next(said: dict[str, Any], state: str, text: str) -> None:
    assert answer(shop(db=said), "ends") == (state, text)


def test_what_nobody_renews() -> None:
    near = iso(NOW + timedelta(days=13))
    assert answer(shown(entry("api"), issuing_until=near), "ends") == (
        "look",
        "the CA's issuing certificate ends <time>.",
    )
    assert answer(shown(entry("api"), root_until=near), "ends")[1] == "the root's certificate ends <time>."
    rule = {"from": "web", "to": "api:http", "until": "2026-12-02", "rule": "for-now"}
    text = "the rule for-now ends, and web → api:http is refused <time>."
    assert answer(shop(api={"ending": [rule, rule]}, web={"ending": [rule]}), "ends") == ("look", text)


def test_a_list_names_the_first_few() -> None:
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert listed(["a"]) == "a"
