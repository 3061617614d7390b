"""How each service is: its replicas, its certificate, and what of it is unlike the others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sidecar.dashboard.pairs import PLAINTEXT, STRANGERS
from sidecar.dashboard.reading import read
from sidecar.dashboard.services import LATE, services
from tests.beds.dashboard import NOW, entry, iso, shown


def made(*entries: dict[str, Any], **ca: Any) -> dict[str, dict[str, Any]]:
    return services(read(shown(*entries, **ca), NOW), {})


def certificate(left: timedelta, renews: timedelta | None = None) -> dict[str, Any]:
    return {"not_after": iso(NOW + left), **({} if renews is None else {"renews_at": iso(NOW + renews)})}


@pytest.mark.parametrize(
    ("said", "late", "state"),
    [
        ({}, 0, "well"),
        ({"healthy": False, "unwell": ["no list"]}, 0, "unwell"),
        ({"draining": True}, 0, "draining"),
        ({}, 21, "silent"),
        ({"healthy": "yes"}, 0, "unwell"),
    ],
)
def test_how_it_is(said: dict[str, Any], late: float, state: str) -> None:
    assert made(entry("api", late=late, **said))["api"]["state"] == state


def test_of_which_no_report_came() -> None:
    found = made(entry("api"), services=["api", "db"])
    assert (found["db"]["state"], found["db"]["replicas"]) == ("unknown", 0)


def test_a_replica_that_is_gone_does_not_count_while_another_is_there() -> None:
    found = made(entry("api", late=600, healthy=False), entry("api", instance="1" * 32))
    assert (found["api"]["state"], found["api"]["replicas"]) == ("well", 1)


def test_what_replicas_say_is_put_together() -> None:
    open_ = {"port": "sql", "may_call": ["web", "job"], "mode": "permissive", "until": "2026-12-31"}
    shut = {"port": "sql", "may_call": ["web"], "mode": "strict"}
    other = {"port": "admin", "may_call": []}
    one = entry("db", inbound=[shut])
    found = made(one, entry("db", instance="1" * 32, inbound=[open_, other], policy="old", bundle=2, certificate={}))[
        "db"
    ]
    assert found["ports"] == [
        {"name": "sql", "may_call": ["web", "job"], "permissive": True, "until": "2026-12-31"},
        {"name": "admin", "may_call": [], "permissive": False, "until": ""},
    ]
    assert (found["policy"], found["bundle"]) == ("0123456789ab, old", "3, 2")
    assert (found["certificate"], made(one)["db"]["bundle"]) == ("unknown", 3)


def test_whoever_is_named_by_calls_alone_is_not_missing() -> None:
    told = {one: {"from": one, "to": "db"} for one in ("user/alice", "mesh/probe", STRANGERS, PLAINTEXT, "web")}
    found = services(read(shown(entry("db"), services=["db", "web"]), NOW), told)
    assert {name: one["state"] for name, one in found.items()} == {
        "db": "well", "web": "unknown", "user/alice": "other", "mesh/probe": "other",
        STRANGERS: "stranger", PLAINTEXT: "stranger",
    }  # fmt: skip


def test_what_somebody_has_to_look_at_besides() -> None:
    said: dict[str, Any] = {"waiting": ["a"], "reload_refused": ["b"], "log_lost": 7, "cut": 2}
    found = made(entry("api", **said))["api"]
    assert (found["state"], found["sentences"]) == ("well", [])
    assert found["notes"] == [
        "not open: a", "refused at the last reload: b", "7 lines of its log were LOST",
        "2 entries did not fit into its report",
    ]  # fmt: skip


def test_the_worst_replica_tells() -> None:
    found = made(entry("api"), entry("api", instance="1" * 32, healthy=False, unwell=["why"]))
    assert (found["api"]["state"], found["api"]["replicas"], found["api"]["sentences"]) == ("unwell", 2, ["why"])


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (certificate(timedelta(minutes=50), timedelta(minutes=20)), "good"),
        (certificate(timedelta(minutes=20), -LATE + timedelta(seconds=1)), "good"),
        (certificate(timedelta(minutes=20), -LATE - timedelta(seconds=1)), "late"),
        (certificate(timedelta(hours=23)), "ends"),
        (certificate(timedelta(hours=25)), "good"),
        (certificate(timedelta(seconds=0), timedelta(minutes=1)), "over"),
        ({}, "unknown"),
        ({"not_after": "9999-12-31T23:59:59Z", "renews_at": "9999-12-31T23:59:59Z"}, "good"),
        ({"not_after": "9999-12-31T23:59:59Z", "renews_at": "0001-01-01T00:00:00Z"}, "late"),
    ],
)
def test_its_certificate(said: dict[str, Any], state: str) -> None:
    assert made(entry("api", certificate=said))["api"]["certificate"] == state


def test_versions_that_drifted() -> None:
    found = made(entry("api", policy="old", bundle=2), entry("db"), entry("web", release="0.0.9"))
    assert found["api"]["drift"] == [
        "its policy is old, and the mesh's is 0123456789ab",
        "its trust bundle is 2, and the mesh's is 3",
    ]
    assert found["db"]["drift"] == []
    assert found["web"]["drift"] == ["its release is 0.0.9, and most have 0.1.0"]


def test_without_the_ca_s_word_the_most_have_the_right_version() -> None:
    some = [entry(name, policy=policy) for name, policy in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert [one["drift"] for one in made(*some, policy="").values()] == [
        [],
        [],
        ["its policy is y, and the mesh's is x"],
    ]


def test_permissive_ports_and_their_callers() -> None:
    port = {"port": "sql", "may_call": ["api"], "mode": "permissive", "until": "2026-12-31"}
    caller = {"port": "sql", "address": "10.0.0.5", "name": "old.lan", "count": 4, "allowed": True}
    found = made(entry("db", inbound=[port], plaintext=[caller]))["db"]
    assert found["ports"] == [{"name": "sql", "may_call": ["api"], "permissive": True, "until": "2026-12-31"}]
    assert found["plaintext"][0]["name"] == "old.lan"
