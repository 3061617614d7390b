"""Who is not in the mesh comes to the sidecars, in plaintext, until a day; who passes them by is named."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, OVERRIDE, Injection, inject
from sidecar.inject.options import read_record
from sidecar.inject.outsiders import DAYS, SERVER_FIRST
from sidecar.inject.published import FIRST_INSIDE, Asked
from sidecar.policy.decide import decide
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.names import PLAINTEXT
from tests.inject.applications import OPTIONS, TODAY, inputs
from tests.inject.bed import again
from tests.unit.inject.test_facts import injected, refusal, wiring
from tests.unit.inject.test_override import _Loader

LAST = TODAY + timedelta(days=DAYS)
OLD: dict[str, Any] = {"environment": {"DB": "redis://db:6379"}, "x-mesh": {"mesh": False}}
SERVICES: dict[str, Any] = {"web": {"depends_on": ["db"], "expose": ["80"]}, "db": {"image": "redis"}, "old": OLD}


def with_old(**more: Any) -> dict[str, Any]:
    return {**SERVICES, **more}


def override(injection: Injection) -> Any:
    return yaml.load(injection.files[OVERRIDE], _Loader)  # noqa: S506  # a safe loader with two tags


def permissive(injection: Injection, app: str) -> list[tuple[str, int, str, bool]]:
    found = [it for it in wiring(injection, app).inbound if it.mode == "permissive"]
    return [(it.listen.host, it.listen.port, str(it.until), it.server_first) for it in found]


def is_let_in(injection: Injection, day: date, app: str = "db", port: str = "6379") -> bool:
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    return decide(mesh, PLAINTEXT, app, port, datetime.combine(day, time(), UTC)).allowed


def later(injection: Injection, days: int, services: dict[str, Any] = SERVICES, mesh: str | None = None) -> Injection:
    return inject(replace(again(inputs(services), injection, mesh), today=TODAY + timedelta(days=days)))


def test_the_sidecar_takes_the_app_s_place_and_names_among_outsiders() -> None:
    injection = inject(inputs(SERVICES))
    services = override(injection)["services"]
    assert services["db"]["networks"] == ("!override", {"db-private": {"aliases": ["db.app"]}})
    assert services["old"]["networks"] == ("!override", {"default": {}, "db-plain": {}, "web-plain": {}})
    there = services["db-mesh"]["networks"]["db-plain"]
    assert there["aliases"] == ["db"]
    assert permissive(injection, "db") == [(there["ipv4_address"], 6379, str(LAST), False)]
    assert {str(it.apps[0]) for it in wiring(injection, "db").inbound} == {"db.app:6379"}, (
        "its own name leads to itself"
    )
    assert {it.device for it in wiring(injection, "db").inbound if it.mode == "permissive"} == {"auto"}


def test_the_policy_names_plaintext_for_these_ports_until_that_day() -> None:
    injection = inject(inputs(SERVICES))
    assert f'{{from: plaintext, to: "db:6379", until: "{LAST}"}}' in injection.files[MESH_FILE]
    assert is_let_in(injection, LAST)
    assert not is_let_in(injection, LAST + timedelta(days=1))
    others = {**SERVICES, "db": {"expose": ["6379"], "networks": {"apart": None}}, "web": {"expose": ["80"]}}
    others["web"]["networks"] = {"apart": None, "default": None}
    apart = inject(inputs(others, {"apart": {}}))
    assert is_let_in(apart, TODAY, "web", "80")
    assert not is_let_in(apart, TODAY), "no outsider shares a network with it"
    assert permissive(apart, "db") == []


def test_the_twin_without_outsiders_nothing_is_permissive() -> None:
    injection = inject(inputs({name: it for name, it in SERVICES.items() if name != "old"}))
    assert "plaintext" not in injection.files[MESH_FILE] + injection.files[OVERRIDE]
    assert permissive(injection, "db") == []
    assert {str(it.apps[0]) for it in wiring(injection, "db").inbound} == {"db:6379"}


FAR = "2099-01-01"


def told_of_db(services: dict[str, Any], **keys: Any) -> str:
    """The Compose file with these keys at db's port."""
    x_mesh = {"sidecar": {"inbound": {"6379": keys}}}
    return yaml.safe_dump({"services": services | {"db": {"image": "redis", "x-mesh": x_mesh}}})


@pytest.mark.parametrize(
    "keys", [{"mode": "permissive", "until": FAR}, {"server_first": True}, {"until": FAR}, {"mode": "strict"}]
)
def test_attack_the_listener_between_the_sidecars_stays_strict(keys: dict[str, Any]) -> None:
    """A sidecar that was taken over would come in plaintext where the policy refuses its identity."""
    between, *others = wiring(injected(told_of_db(SERVICES, **keys)), "db").inbound
    assert (between.mode, between.until, between.server_first) == ("strict", None, False)
    assert [it.mode for it in others] == [keys.get("mode", "permissive")]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"mode": "permissive", "until": FAR}, [(FAR, False)]),
        ({"until": FAR}, [(FAR, False)]),
        ({"server_first": True}, [(str(LAST), True)]),
        ({"mode": "strict"}, []),
    ],
)
def test_x_mesh_says_more_of_it(keys: dict[str, Any], found: list[tuple[str, bool]]) -> None:
    injection = injected(told_of_db(SERVICES, **keys))
    assert [(until, first) for _, _, until, first in permissive(injection, "db")] == found
    assert is_let_in(injection, date(2099, 1, 1)) is ("until" in keys)


@pytest.mark.parametrize("keys", [{"until": "soon"}, {"mode": "lax"}, {"server_first": "yes"}])
def test_what_x_mesh_may_not_say(keys: dict[str, Any]) -> None:
    told, *_ = refusal(told_of_db(SERVICES, **keys))
    assert told.startswith("compose.yaml:")


TWO: dict[str, Any] = {"expose": ["5432", "9090"]}


def with_two(**keys: dict[str, Any]) -> str:
    """The Compose file in which db has two ports, with these keys at them."""
    db = {**TWO, "x-mesh": {"sidecar": {"inbound": keys}}}
    services = SERVICES | {"db": db, "old": {"x-mesh": {"mesh": False}}}
    return yaml.safe_dump({"services": services}, sort_keys=False)


def days(injection: Injection, app: str = "db") -> dict[str, str]:
    return {it.port: str(it.until) for it in wiring(injection, app).inbound if it.mode == "permissive"}


def test_attack_a_day_in_x_mesh_opens_that_port_alone() -> None:
    injection = injected(with_two(**{"5432": {"until": FAR}}))
    assert days(injection) == {"5432": FAR, "9090": str(LAST)}
    far = date(2099, 1, 1)
    assert is_let_in(injection, far, port="5432")
    assert not is_let_in(injection, far, port="9090")
    assert is_let_in(injection, LAST, port="9090"), "the twin"
    assert f"old comes to db:5432 in plaintext, by its sidecar, until {FAR}" in "\n".join(injection.warnings)
    assert f"old comes to db:9090, web in plaintext, by their sidecars, until {LAST}" in "\n".join(injection.warnings)
    both = injected(with_two(**{"*": {"until": FAR}}))
    assert days(both) == {"5432": FAR, "9090": FAR}
    assert f'{{from: plaintext, to: ["db:5432", "db:9090"], until: "{FAR}"}}' in both.files[MESH_FILE], "a rule a day"


def test_the_last_word_of_x_mesh_counts_for_the_rule_as_for_the_listener() -> None:
    said = {"until": FAR}
    for keys, day in (
        ({"9090": said, "*": {"until": "2098-01-01"}}, "2098-01-01"),
        ({"*": {"until": "2098-01-01"}, "9090": said}, FAR),
    ):
        injection = injected(with_two(**keys))
        rules = parse_mesh(injection.files[MESH_FILE], MESH_FILE).rules
        (ruled,) = [str(it.until) for it in rules if it.plaintext and "9090" in it.name]
        assert days(injection)["9090"] == ruled == day


def test_a_person_s_rule_for_one_port_moves_no_other_port() -> None:
    services = with_old(db=TWO, old={"x-mesh": {"mesh": False}})
    first = inject(inputs(services))
    edited = first.files[MESH_FILE].replace(
        f'to: ["db:5432", "db:9090"], until: "{LAST}"',
        f'to: "db:5432", until: "{LAST}"}}\n  - {{from: plaintext, to: "db:9090", until: "{FAR}"',
    )
    after = later(first, 1, services, edited)
    assert days(after) == {"5432": str(LAST), "9090": FAR}
    assert after.files[MESH_FILE] == edited
    assert not any("no longer gives a reason" in it for it in after.warnings)


def test_a_rule_whose_ports_have_days_of_their_own_now_has_its_reason_still() -> None:
    services = with_old(db=TWO, old={"x-mesh": {"mesh": False}})
    first = inject(inputs(services))
    mine = first.files[MESH_FILE] + "# mine\n"
    parted = {**services, "db": {**TWO, "x-mesh": {"sidecar": {"inbound": {"5432": {"mode": "strict"}}}}}}
    told = "the application no longer gives a reason for rule 'plaintext->db:5432,db:9090'"
    after = later(first, 1, parted, mine)
    assert after.files[MESH_FILE] == mine
    assert not any(told in it for it in after.warnings)
    gone = later(first, 1, {name: it for name, it in services.items() if name != "old"}, mine)
    assert any(told in it for it in gone.warnings), "the twin"


def test_a_day_that_x_mesh_says_no_more_is_taken_back() -> None:
    first = injected(told_of_db(SERVICES, until=FAR))
    assert days(first) == {"6379": FAR}
    after = later(first, 1)
    assert days(after) == {"6379": str(LAST)}
    assert not is_let_in(after, date(2099, 1, 1))
    edited = later(first, 1, mesh=first.files[MESH_FILE] + "# mine\n")
    assert days(edited) == {"6379": FAR}, "the twin: the file is a person's now, and its rules count"


@pytest.mark.parametrize("number", [3306, 25, 22])
def test_a_strict_port_of_a_server_that_speaks_first(number: int) -> None:
    db = {"expose": [str(number)], "x-mesh": {"sidecar": {"inbound": {str(number): {"mode": "strict"}}}}}
    injection = injected(yaml.safe_dump({"services": SERVICES | {"db": db, "old": {"x-mesh": {"mesh": False}}}}))
    assert {(it.mode, it.until, it.server_first) for it in wiring(injection, "db").inbound} == {("strict", None, False)}
    assert len(wiring(injection, "db").inbound) == 2, "outsiders meet it, and are refused"


def test_a_strict_port_has_no_rule_and_no_note() -> None:
    injection = injected(with_two(**{"9090": {"mode": "strict"}}))
    assert days(injection) == {"5432": str(LAST)}
    assert '"db:9090"' not in injection.files[MESH_FILE]
    told = "\n".join(injection.warnings)
    assert f"old comes to db:5432, web in plaintext, by their sidecars, until {LAST}" in told
    none = injected(with_two(**{"*": {"mode": "strict"}}))
    assert days(none) == {}
    assert "plaintext->db" not in str(parse_mesh(none.files[MESH_FILE], MESH_FILE).rules)
    assert [it for it in none.warnings if "in plaintext" in it and "db" in it] == []
    assert any(it.startswith("old comes to web in plaintext") for it in none.warnings), "the twin"


def test_what_is_strict_may_still_be_not_complete() -> None:
    text = yaml.safe_load(with_two(**{"*": {"mode": "strict"}}))
    text["services"]["db"]["ports"] = [{"target": 5432, "published": "5", "protocol": "tcp"}]
    told = injected(yaml.safe_dump(text)).warnings
    assert any(
        re.match(r"db: strict is not complete: its sidecar does not see who comes at published port", it) for it in told
    )


def test_published_ports_of_the_mesh_are_never_permissive() -> None:
    for services in (SERVICES, {name: it for name, it in SERVICES.items() if name != "old"}):
        text = told_of_db(services, mode="permissive", until=FAR)
        injection = injected(text, options=replace(OPTIONS, publish_mesh={"db": Asked()}))
        modes = {it.listen.port: it.mode for it in wiring(injection, "db").inbound if it.listen.port >= FIRST_INSIDE}
        assert modes == {FIRST_INSIDE: "strict"}
        assert "permissive" in {it.mode for it in wiring(injection, "db").inbound}, "the twin"


def test_the_day_is_never_moved_by_a_run() -> None:
    first = inject(inputs(SERVICES))
    second = later(first, 5)
    assert second.files == {**first.files}
    after = later(second, 30)
    assert permissive(after, "db") == permissive(first, "db")
    assert not is_let_in(after, TODAY + timedelta(days=30))
    told = f"plaintext to db, web ended on {LAST}: old is refused there; `until` of the rule from plaintext"
    assert any(it.startswith(told) for it in after.warnings)
    gone = later(after, 31, {name: it for name, it in SERVICES.items() if name != "old"})
    assert read_record(gone.files[OVERRIDE], OVERRIDE).plaintext == {"db": LAST, "web": LAST}
    assert permissive(later(gone, 32), "db") == permissive(first, "db"), (
        "not by taking the outsider out for a moment either"
    )


def test_who_meets_outsiders_later_has_a_day_of_its_own() -> None:
    first = inject(inputs(SERVICES))
    after = later(first, 20, with_old(new={"expose": ["90"], "depends_on": ["db"]}))
    assert permissive(after, "new")[0][2] == str(TODAY + timedelta(days=20 + DAYS))
    assert permissive(after, "db")[0][2] == str(LAST)
    assert is_let_in(after, TODAY + timedelta(days=20), "new", "90")


def test_a_person_moves_the_day_in_the_rule_and_the_listener_follows() -> None:
    first = inject(inputs(SERVICES))
    for day in ("2027-03-01", "2026-11-25"):
        edited = first.files[MESH_FILE].replace(f'to: "db:6379", until: "{LAST}"', f'to: "db:6379", until: "{day}"')
        after = later(first, 1, mesh=edited)
        assert permissive(after, "db")[0][2] == day
        assert permissive(after, "web")[0][2] == str(LAST)
        assert after.files[MESH_FILE] == edited
        labels = [override(it)["services"][f"{app}-mesh"]["labels"] for it in (first, after) for app in ("db", "web")]
        assert labels[0] != labels[2], "`docker compose up` starts it anew: only then it reads its wiring"
        assert labels[1] == labels[3]


def test_a_rule_that_a_person_removed_stays_removed() -> None:
    first = inject(inputs(SERVICES))
    edited = "".join(it for it in first.files[MESH_FILE].splitlines(keepends=True) if 'to: "db:6379", until' not in it)
    after = later(first, 1, mesh=edited)
    assert not is_let_in(after, TODAY)
    assert is_let_in(after, TODAY, "web", "80")
    assert [it for it in after.warnings if "in plaintext" in it and "db" in it] == [], "it does not come any more"
    assert any(it.startswith("old comes to web in plaintext") for it in after.warnings), "the twin"
    assert days(after) == {}
    assert {it.mode for it in wiring(after, "db").inbound} == {"strict"}, "and nothing calls the port permissive"
    assert {it.mode for it in wiring(after, "web").inbound} == {"strict", "permissive"}, "the twin"
    back = later(after, 2, mesh=first.files[MESH_FILE] + "# mine\n")
    assert permissive(back, "db") == permissive(first, "db"), "who writes the rule again has its day again"
    assert any(
        "plaintext->db:6379 (old: not in the mesh) is not allowed there, and stays so" in it for it in after.warnings
    )


@pytest.mark.parametrize(
    ("ports", "written"),
    [([6379], "{ports: {redis: 6379}}"), ([6379, 9], '{ports: {"6379": 6379, "9": 9}}'), ([9], "{ports: 9}")],
)
def test_attack_a_removed_rule_stays_removed_whatever_the_ports_are_called(ports: list[int], written: str) -> None:
    first = inject(inputs(SERVICES))
    edited = "".join(it for it in first.files[MESH_FILE].splitlines(keepends=True) if 'to: "db:6379", until' not in it)
    renamed = edited.replace("db: {ports: 6379}", f"db: {written}").replace('to: "db:6379"', "to: db")
    assert renamed != edited
    after = later(first, 1, mesh=renamed)
    assert "plaintext, to: " not in "".join(it for it in after.files[MESH_FILE].splitlines() if "db" in it)
    for name in parse_mesh(after.files[MESH_FILE], MESH_FILE).services["db"].ports:
        assert not is_let_in(after, TODAY, port=name)
    assert any(
        re.search(r"plaintext->db:\S+ \(old: not in the mesh\) is not allowed there", it) for it in after.warnings
    )
    assert after.files[MESH_FILE] == renamed, "and nothing else is added"
    assert is_let_in(after, TODAY, "web", "80"), "the twin"


def test_an_edited_file_gets_the_rule_once() -> None:
    without = {name: it for name, it in SERVICES.items() if name != "old"}
    first = inject(inputs(without))
    after = later(first, 1, mesh=first.files[MESH_FILE] + "# mine\n")
    with_it = inject(again(inputs(SERVICES), after))
    assert is_let_in(with_it, LAST)
    assert "# mine" in with_it.files[MESH_FILE]


@pytest.mark.parametrize(("days", "named"), [(7, False), (8, True), (14, True), (15, False)])
def test_the_end_is_named_from_a_week_before(days: int, named: bool) -> None:
    said = later(inject(inputs(SERVICES)), days).warnings
    assert (
        any("rule 'plaintext->db:6379' runs out after" in it and "still calls in plaintext" in it for it in said)
        is named
    )
    assert not any("policy learn" in it for it in said)


def test_an_app_that_calls_the_outsider_keeps_meeting_it_and_is_called_not_complete() -> None:
    services = with_old(web={"depends_on": ["db", "old"], "expose": ["80"]}, old={**OLD, "expose": ["9"]})
    injection = inject(inputs(services))
    found = override(injection)["services"]
    assert found["web"]["networks"][1] == {"web-private": {"aliases": ["web.app"]}, "web-plain-beside": {}}
    assert found["old"]["networks"][1].keys() == {"default", "db-plain", "web-plain", "web-plain-beside"}
    assert found["web-mesh"]["networks"].keys() == {"sidecar-mesh", "web-private", "web-plain"}
    assert "web-plain" < "web-plain-beside", "the resolver asks the sidecar's network first"
    told = (
        f"web: strict is not complete, also after {LAST}: its sidecar does not see who comes by old, not in the "
        "mesh (the app calls it)"
    )
    assert told in injection.warnings
    assert not any(it.startswith("db: strict is not complete") for it in injection.warnings), "the twin"
    assert read_record(injection.files[OVERRIDE], OVERRIDE).not_seen == {
        "web": ["by old, not in the mesh (the app calls it)"]
    }
    assert (
        "db can no longer call old, as nothing says that it does: if so, name that in `depends_on`"
        in injection.warnings
    )


def test_while_everything_is_allowed_every_app_may_call_every_outsider() -> None:
    injection = inject(inputs(SERVICES, options=replace(OPTIONS, observe=True)))
    assert "db-plain-beside" in override(injection)["networks"]
    assert injection.topology.parted == ()
    assert any("(the app may call it, while the rule 'observe' lasts)" in it for it in injection.warnings)
    ended = inject(replace(again(inputs(SERVICES), injection), options=OPTIONS))
    assert "db-plain-beside" not in override(ended)["networks"]


@pytest.mark.parametrize(("days", "removed", "beside"), [(1, False, True), (15, False, False), (0, True, False)])
def test_when_that_rule_has_run_out_or_was_removed_only_the_apps_that_call_an_outsider_do(
    days: int, removed: bool, beside: bool
) -> None:
    asked = inputs(SERVICES, options=replace(OPTIONS, observe=True))
    injection = inject(asked)
    text = injection.files[MESH_FILE]
    rule = next(line for line in text.splitlines(keepends=True) if "name: observe" in line)
    edited = text.replace(rule, "") if removed else None
    later = inject(replace(again(asked, injection, edited), today=TODAY + timedelta(days=days)))
    assert ("db-plain-beside" in override(later)["networks"]) is beside
    assert any("strict is not complete" in it for it in later.warnings) is beside


PAST: dict[str, tuple[dict[str, Any], str]] = {
    "published": ({"ports": [{"target": 6379, "published": "1", "protocol": "tcp"}]}, "at published port 6379"),
    "the host's network": ({}, "by agent, on the host's network"),
}


@pytest.mark.parametrize("way", PAST)
def test_who_passes_the_sidecar_is_named_as_not_seen(way: str) -> None:
    more, what = PAST[way]
    agent = {"agent": {"network_mode": "host"}} if "host" in way else {}
    injection = inject(inputs(with_old(db={"image": "redis", **more}, **agent)))
    (told,) = [it for it in injection.warnings if re.match(r"db.*: strict is not complete", it)]
    assert what in told
    assert what in str(read_record(injection.files[OVERRIDE], OVERRIDE).not_seen["db"])


def test_an_app_with_udp_meets_outsiders_itself() -> None:
    injection = inject(inputs(with_old(db={"image": "redis", "expose": ["6379", "53/udp"]})))
    services = override(injection)["services"]
    assert "db-plain" in services["db"]["networks"][1]
    assert "db-plain" not in services["db-mesh"]["networks"]
    assert permissive(injection, "db") == []
    assert not is_let_in(injection, TODAY)
    told = "old can reach db past its sidecar, not seen: the app serves UDP, which no sidecar carries"
    assert told in injection.warnings


def test_links_of_outsiders_lead_to_the_sidecar_which_is_waited_for() -> None:
    old = {**OLD, "links": ["db:store", "other"], "depends_on": ["db", "other"], "environment": {}}
    services = with_old(old=old, other={"network_mode": None, "networks": {"default": None}, "x-mesh": {"mesh": False}})
    found = override(inject(inputs(services)))["services"]
    assert found["old"]["links"] == ("!override", ["other:other"])
    assert found["old"]["depends_on"] == {
        "db": {"condition": "service_started", "required": True},
        "db-mesh": {"condition": "service_healthy"},
    }
    assert found["db-mesh"]["networks"]["db-plain"]["aliases"] == ["db", "store"]
    only = override(inject(inputs(with_old(old={**old, "links": ["db"]}))))["services"]
    assert only["old"]["links"] == ("!reset", [])


@pytest.mark.parametrize(("number", "first"), [(3306, True), (5432, False)])
def test_a_server_that_speaks_first(number: int, first: bool) -> None:
    injection = inject(inputs(with_old(db={"expose": [str(number)]}, old={"x-mesh": {"mesh": False}})))
    assert permissive(injection, "db")[0][3] is first
    assert (number in SERVER_FIRST) is first


def test_a_port_that_an_outsider_calls_must_be_known() -> None:
    services = with_old(store={}, old={"environment": {"URL": "tcp://store"}, "x-mesh": {"mesh": False}})
    with pytest.raises(UsageError, match="store: called by old"):
        inject(inputs(services))
    assert inject(inputs(services, options=replace(OPTIONS, ports={"store": (7,)})))
    silent = inject(inputs(with_old(store={})))
    assert "store-plain" not in override(silent)["networks"], "nothing is known of it, and nobody names it"


def test_what_is_left_out_by_only_meets_the_sidecars() -> None:
    services: dict[str, Any] = {**SERVICES, "old": {"environment": {"DB": "redis://db:6379"}}}
    injection = inject(inputs(services, options=replace(OPTIONS, only=("web", "db"))))
    assert permissive(injection, "db")
    back = inject(replace(again(inputs(services), injection), options=OPTIONS))
    assert permissive(back, "db") == []
    assert not is_let_in(back, TODAY), "the file was not edited, so it follows"


def test_a_name_that_an_app_shares_with_an_outsider_is_told() -> None:
    alias: dict[str, Any] = {"networks": {"default": {"aliases": ["cache"]}}}
    told = (
        "db and old, which is not in the mesh, share the name 'cache': Docker led to each in turn, and now each caller is "
        "led to one of them alone; give them names of their own"
    )
    services = with_old(db={"image": "redis", **alias}, old={**OLD, **alias})
    assert told in inject(inputs(services)).warnings
    assert told in inject(inputs({**services, "db": {"image": "none", **alias}})).warnings, (
        "also where none can call it"
    )
    for twin in (with_old(db={"image": "redis", **alias}), with_old(old={**OLD, **alias})):
        assert not any("share the name" in it for it in inject(inputs(twin)).warnings)
    apart = {"networks": {"apart": {"aliases": ["cache"]}, "default": None}}
    one = inject(inputs({**services, "old": {**OLD, **apart}}, {"apart": {}}))
    assert not any("share the name" in it for it in one.warnings), "it is another network's name"
