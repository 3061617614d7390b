"""All that the page shows: what each pair is at a glance, and what is shown while the CA does not answer."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from sidecar.dashboard.changes import changes
from sidecar.dashboard.view import MOST_SERVICES, Watching
from tests.beds.dashboard import NOW, denied, entry, inbound, large, mitm, shop, shown


@pytest.fixture
def watching() -> Watching:
    return Watching("a test")


def test_what_each_pair_is(watching: Watching) -> None:
    clear = {"port": "redis", "mode": "permissive", "until": "2026-12-31"}
    document = shop(
        db={"refusals": [denied()]},
        cache={"inbound": [clear], "edges": []},
        web={"outbound": [{"to": "api:http", "allowed": True}, {"to": "db:postgres", "allowed": True}]},
    )
    found = watching.take(document, NOW)["pairs"]
    assert {key: one["state"] for key, one in found.items()} == {
        "web>api": "ok",
        "web>db": "idle",
        "reporting>api": "ok",
        "reporting>db": "refused",
        "api>db": "ok",
        "api>cache": "ok",
        "plaintext callers>cache": "plaintext",
    }


def test_an_alarm_is_more_than_a_refusal(watching: Watching) -> None:
    found = watching.take(shop(alarms={"current": [mitm()]}), NOW)
    assert found["pairs"]["api>cache"]["state"] == "alarm"
    assert found["pairs"]["web>api"]["state"] == "ok"


def test_a_notice_colours_nothing(watching: Watching) -> None:
    found = watching.take(shop(alarms={"current": [mitm(severity="notice")]}), NOW)
    assert found["pairs"]["api>cache"]["state"] == "ok"


def test_while_the_ca_does_not_answer_the_page_says_so_and_keeps_what_it_had(watching: Watching) -> None:
    watching.take(shop(), NOW)
    found = watching.take({"error": "no CA answers\x1b[2J"}, NOW + timedelta(minutes=1))
    assert found["verdict"]["state"] == "bad"
    assert found["mesh"]["fault"] == "no CA answers\\x1b[2J"
    assert found["mesh"]["since"] == "2026-11-30T09:00:00Z"
    assert set(found["services"]) == {"web", "api", "db", "cache", "reporting"}
    again = watching.take(shop(NOW + timedelta(minutes=2)), NOW)
    assert (again["mesh"]["fault"], again["verdict"]["state"]) == ("", "good")


def test_before_the_first_answer(watching: Watching) -> None:
    found = watching.take({"error": "no CA answers"}, NOW)
    assert (found["services"], found["mesh"]["since"]) == ({}, "")


def test_a_look_that_finds_the_same_changes_nothing(watching: Watching) -> None:
    first = watching.take(shop(), NOW)
    assert changes(first, watching.take(shop(), NOW)) == {}


def test_a_minute_in_which_only_time_passes_changes_only_when_a_report_came(watching: Watching) -> None:
    """No answer is another only because the clock went on: the page counts by itself."""
    first = watching.take(shop(), NOW)
    later = shop()
    later["now"] = "2026-11-30T09:00:10Z"
    assert changes(first, watching.take(later, NOW)) == {}


def test_places_stay_while_the_same_services_call_each_other(watching: Watching) -> None:
    first = watching.take(shop(calls=100), NOW)
    assert watching.take(shop(calls=200), NOW)["layout"] is first["layout"]


def test_a_report_of_a_thousand_names_makes_a_page_that_can_be_drawn(watching: Watching) -> None:
    edges = [inbound(f"invented-{at}", "http", 1) for at in range(256)]
    found = watching.take(shown(entry("api", edges=edges), entry("db", edges=edges)), NOW)
    assert len(found["services"]) == MOST_SERVICES
    assert found["mesh"]["left_out"].startswith("58 more services and 116 more calls are not shown here")
    assert watching.take(shop(), NOW)["mesh"]["left_out"] == ""
    assert all({one["from"], one["to"]} <= found["services"].keys() for one in found["pairs"].values())


def test_what_is_wrong_is_shown_and_answered_however_much_there_is_besides(watching: Watching) -> None:
    well = [entry(f"a-{at}") for at in range(MOST_SERVICES + 9)]
    bad = [entry("zoe", healthy=False, unwell=["why"]), entry("zorro", refusals=[denied()])]
    found = watching.take(shown(*well, *bad), NOW)
    assert found["verdict"] == {"state": "bad", "text": "zoe: not well. 1 more below."}
    assert {"zoe", "zorro", "reporting"} <= found["services"].keys()
    assert found["pairs"]["reporting>zorro"]["state"] == "refused"
    assert len(found["services"]) == MOST_SERVICES
    assert watching.take(shown(*well), NOW)["verdict"]["text"].startswith(
        f"All is well: all that the sidecars of {MOST_SERVICES + 9} services let in"
    )


def test_so_many_pairs_and_no_more(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.dashboard.view.MOST_PAIRS", 2)
    found = watching.take(shop(db={"refusals": [denied()]}), NOW)
    assert len(found["pairs"]) == 2
    assert "reporting>db" in found["pairs"]
    assert found["mesh"]["left_out"].startswith("0 more services and 3 more calls")


def test_of_a_look_that_could_not_be_shown_what_was_before(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    watching.take(shop(), NOW)
    with monkeypatch.context() as patch:
        patch.setattr("sidecar.dashboard.view.services", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            watching.take(shown(entry("api")), NOW)
    found = watching.failed()
    assert (found["verdict"]["state"], set(found["services"])) == ("bad", {"web", "api", "db", "cache", "reporting"})
    assert "bug" in found["mesh"]["fault"]


def test_thirty_services_and_two_hundred_pairs(watching: Watching) -> None:
    found = watching.take(large(), NOW)
    assert (len(found["services"]), len(found["pairs"])) == (30, 200)
    assert len(json.dumps(found)) < 400_000
