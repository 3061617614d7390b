"""Applications of many shapes, each with what a person finds in it, through the real Compose and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.inject.injection import Injection, inject
from sidecar.inject.topology import sidecar_of
from tests.inject import bed
from tests.inject.bed import Case

CASES = bed.all_cases()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found = request.param
    assert isinstance(found, Case)
    return found


@pytest.fixture
def injection(case: Case) -> Injection:
    return bed.outcome(case)


def test_there_are_twenty_shapes_at_least() -> None:
    assert len(CASES) >= 20


def test_who_calls_whom(case: Case, injection: Injection) -> None:
    assert bed.edge_texts(injection) == sorted(case.expected["edges"])


def test_at_which_ports(case: Case, injection: Injection) -> None:
    found = {name: [port.number for port in injection.ports[name]] for name in injection.services}
    assert found == case.expected["ports"]


def test_what_is_not_in_the_mesh(case: Case, injection: Injection) -> None:
    excluded = injection.topology.excluded
    expected = case.expected.get("excluded", {})
    assert excluded.keys() == expected.keys()
    assert [name for name, reason in expected.items() if reason not in excluded[name]] == []
    assert [" ".join(pair) for pair in injection.topology.plaintext] == case.expected.get("plaintext", [])


def test_what_is_said(case: Case, injection: Injection) -> None:
    unsaid = list(injection.warnings)
    for expected in case.expected["notes"]:
        said = next((note for note in unsaid if expected in note), None)
        assert said is not None, f"{expected!r} is not said: {unsaid}"
        unsaid.remove(said)
    assert unsaid == []


def test_names_and_networks(case: Case, injection: Injection) -> None:
    for name, number in case.expected.get("networks", {}).items():
        assert len(injection.topology.slots[name]) == number
    for name, names in case.expected.get("names", {}).items():
        assert sorted(word for slot in injection.topology.slots[name] for word in slot.names) == names


def test_what_must_hold_of_what_compose_makes_of_it(case: Case, injection: Injection, tmp_path: Path) -> None:
    inputs = case.inputs()
    after = bed.merged_case(case)
    wiring = bed.configs(injection, tmp_path)
    assert bed.shared_between_apps(injection, after) == []
    assert bed.own_names_carried(inputs, injection, after) == []
    assert bed.app_names_on_the_mesh(injection, after) == []
    assert bed.edges_without_listener(inputs, injection, after, wiring) == []
    assert bed.outsiders_without_way(inputs, injection, after, wiring) == []
    assert bed.held_by_another(injection, after, wiring) == []
    assert bed.overlapping(injection) == []
    assert bed.values_in_comments(inputs, injection) == []
    assert bed.wrongly_decided(injection) == []


def test_the_application_is_otherwise_what_it_was(case: Case) -> None:
    inputs = case.inputs()
    after = bed.merged_case(case)
    for name, before in inputs.config["services"].items():
        now = after["services"][name]
        changed = {key for key in {*before, *now} if before.get(key) != now.get(key)}
        assert changed <= {"networks", "depends_on", "links", "labels"}, name
        waited = {**(before.get("depends_on") or {})}
        assert {key: (now.get("depends_on") or {}).get(key) for key in waited} == waited


def test_every_app_waits_for_its_sidecar_and_shares_its_profiles(case: Case, injection: Injection) -> None:
    services = bed.merged_case(case)["services"]
    for name in injection.services:
        sidecar = services[sidecar_of(name)]
        assert services[name]["depends_on"][sidecar_of(name)]["condition"] == "service_healthy"
        assert sidecar.get("profiles") == services[name].get("profiles")
        assert sidecar["cap_drop"] == ["ALL"]
        assert sidecar["read_only"] is True
        assert sidecar["user"] == "1000:1000"
        assert sidecar["sysctls"]["net.ipv4.ip_forward"] == "0"
        assert not any("docker.sock" in volume["source"] for volume in sidecar["volumes"])


def test_a_second_run_changes_nothing(case: Case, injection: Injection) -> None:
    inputs = case.inputs()
    assert inject(bed.again(inputs, injection)).files == injection.files


def test_how_much_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(bed.report())
    with capsys.disabled():
        print("\n" + lines[-1])
    found, there, known, needed = (int(word) for word in lines[-1].split() if word.isdigit())
    assert there - found == sum(len(case.expected.get("missed", [])) for case in CASES)
    assert known >= needed - 2
