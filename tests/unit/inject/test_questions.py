"""What is asked, what is said about services that nobody can reach, and what needs neither."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Text
from sidecar.inject.injection import inject
from tests.inject.applications import OPTIONS, inputs

DB: dict[str, Any] = {"image": "redis"}


def said(services: dict[str, Any], **more: Any) -> list[str]:
    return list(inject(inputs(services, **more)).warnings)


def test_a_name_without_a_port_is_asked_for_a_line_a_service() -> None:
    services = {
        "a": {},
        "b": {},
        "web": {"depends_on": ["a", "b"], "environment": {"HOST": "b"}, "command": "serve --host=b --server b"},
        "cron": {"environment": {"A_HOST": "a", "B_HOST": "b"}},
    }
    with pytest.raises(UsageError) as asked:
        inject(inputs(services))
    assert str(asked.value).splitlines() == [
        "the ports of these services were not found: add --port a=… --port b=… "
        "(=none for a service that listens on none)",
        "a: called by cron (environment A_HOST)",
        "b: called by web (environment HOST), web (command), cron (environment B_HOST)",
    ]
    answered = inject(inputs(services, options=with_ports(a=(), b=(80,))))
    assert "nobody can reach it" not in str([it for it in answered.warnings if it.startswith(("a:", "b:"))])


def with_ports(**ports: tuple[int, ...]) -> Any:
    return replace(OPTIONS, ports=ports)


def test_more_places_than_a_line_holds() -> None:
    callers = {f"c{number}": {"environment": {"A_HOST": "a"}} for number in range(5)}
    with pytest.raises(UsageError, match=r"a: called by c0 \(.*\), c1 \(.*\), c2 \(.*\) and in 2 more places$"):
        inject(inputs({"a": {}, **callers}))


def test_an_order_of_start_alone_is_no_question_and_is_said() -> None:
    web = {"ports": [{"target": 80, "host_ip": "127.0.0.1"}], "depends_on": ["back", "db"]}
    assert said({"web": web, "back": {}, "db": DB}) == [
        "back: no port known, nobody can reach it; --port back=…, or =none if it listens on none (named by web)"
    ]
    assert said({"web": {"expose": ["80"], "depends_on": ["db"]}, "back": {}, "db": DB}) == [
        "back: no port known, nobody can reach it; --port back=…, or =none if it listens on none"
    ]
    assert said({"web": {"expose": ["80"], "depends_on": ["db"]}, "back": {}, "front": {}, "db": DB}) == [
        "back, front: no port known, nobody can reach them; --port back=…, or =none if it listens on none"
    ]


@pytest.mark.parametrize(
    "service",
    [{"command": "celery -A shop worker"}, {"restart": "no"}, {"image": "minio/mc"}, {"expose": ["80"]}],
)  # fmt: skip
def test_the_twins_about_which_nothing_is_said(service: dict[str, Any]) -> None:
    assert said({"web": {"expose": ["80"], "depends_on": ["other", "db"]}, "other": service, "db": DB}) == []


def test_whoever_observes_hears_of_workers_too_as_their_ports_are_what_does_not_go_on() -> None:
    services = {"web": {"expose": ["80"], "depends_on": ["db"]}, "job": {"restart": "no"}, "db": DB}
    observed = replace(OPTIONS, observe=True)
    assert said(services, options=observed) == [
        "job: no port known, so nobody can call it, also with --observe: --port job=… if somebody calls it"
    ]
    assert said(services, options=replace(observed, ports={"job": ()})) == []
    assert said(services, options=replace(observed, ports={"job": (9,)})) == []
    assert said({**services, "task": services["job"]}, options=observed) == [
        "job, task: no port known, so nobody can call them, also with --observe: --port job=… if somebody calls one"
    ]


def test_a_job_that_others_wait_for() -> None:
    done = {"prepare": {"condition": "service_completed_successfully", "required": True}}
    assert (
        said({"web": {"expose": ["80"], "depends_on": done, "environment": {"X": "db:6379"}}, "prepare": {}, "db": DB})
        == []
    )


def test_answers_are_final() -> None:
    services = {"web": {"expose": ["80"], "depends_on": ["back", "db"]}, "back": {}, "db": DB}
    assert said(services, options=with_ports(back=())) == []
    assert said(services, options=with_ports(back=(99,))) == []


# -- nothing foreseen -------------------------------------------------------------------------------------------------


def test_no_call_at_all_is_said_first() -> None:
    assert said({"web": {"expose": ["80"]}, "db": DB}) == [
        "no call between these services was found in the files, so every call will be refused: run `sidecar inject "
        "--observe`, which allows all calls for two weeks and shows them, or write rules in mesh/mesh.yaml"
    ]
    assert said({"web": {"expose": ["80"]}, "db": DB}, options=replace(OPTIONS, observe=True)) == []


def test_the_twin_whose_calls_stay_outside_of_the_mesh() -> None:
    networks = {"outer": {"name": "outer", "external": True}}
    both = {"networks": {"outer": None}, "expose": ["80"]}
    services = {
        "web": {**both, "environment": {"X": "http://api:80"}},
        "api": both,
        "a": {"expose": ["1"]},
        "b": {"expose": ["2"]},
    }
    assert [it for it in said(services, networks=networks) if it.startswith("no call")] == []


def test_a_service_that_files_name_and_nobody_may_call() -> None:
    services = {"web": {"expose": ["80"], "depends_on": ["db"]}, "api": {"expose": ["81"]}, "db": DB}
    shared = {"web": (Text("app/config.js", "x\nhttp://api:81", "shared"),)}
    found = inject(inputs(services)).warnings
    assert found == ()
    given = inputs(services)
    assert list(inject(replace(given, texts=shared)).warnings) == [
        "api: named in app/config.js:2, but no file says who calls it, so nobody may: --observe shows who does"
    ]
