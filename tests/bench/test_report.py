"""What is printed, and what goes into the JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench import report
from tests.bench.comparison import Results, Settings, contestants
from tests.bench.contestants import CIPHER, HYBRID, X25519, Missing
from tests.bench.figures import Reading
from tests.bench.hello import Negotiated
from tests.bench.idle import Footprint
from tests.bench.outputs import Done
from tests.bench.overview import Overview
from tests.bench.procfs import Memory
from tests.bench.proof import Proof

MACHINE: dict[str, Any] = {
    "time": "2026-11-30T02:00:00+00:00", "cpu": "a processor", "cpus": 2, "kernel": "Linux", "load": [0.0],
}  # fmt: skip
SMALL = Memory(60_000_000, 50_000_000)
FOOTPRINT = Footprint((SMALL, SMALL), (SMALL, SMALL), (SMALL, SMALL), 1000)
LEFT_OUT = [Missing("mmdebstrap, which unpacks python3.14 of Debian sid", "mmdebstrap")]


def settings(rounds: int) -> Settings:
    peers = [one for one in contestants(None) if one.name in ("sidecar", "envoy", "nginx")]
    return Settings(rounds, 2, 1000, HYBRID, ["requests", "memory"], peers)


def results(rounds: int, disturbed: float = 0.0) -> Results:
    names = {"sidecar": HYBRID, "envoy": HYBRID, "nginx": X25519}
    readings = [
        Reading("keepalive", name, group, number, 0.02, 0.03, Done(1000, 2.0, 0.001, 0.004), disturbed)
        for number in range(rounds)
        for name, group in names.items()
    ]
    proofs = {(name, "run"): Proof(Negotiated("TLS 1.3", CIPHER, group), 1) for name, group in names.items()}
    versions = {"sidecar": "0.1.0", "envoy": "1.40.0", "nginx": "1.22.1"}
    return Results(versions, {}, proofs, dict.fromkeys(names, FOOTPRINT), readings)  # type: ignore[arg-type]


def printed(capsys: pytest.CaptureFixture[str], rounds: int, disturbed: float = 0.0) -> str:
    report.show(settings(rounds), results(rounds, disturbed), MACHINE, LEFT_OUT)
    return capsys.readouterr().out


def test_a_quiet_run_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, 3)
    assert f"run: negotiated TLS 1.3, {CIPHER}, {HYBRID}, keeps channels" in text
    assert "left out, because there is none: mmdebstrap, which unpacks python3.14 of Debian sid" in text
    assert "on Debian: apt-get install mmdebstrap" in text
    assert "Requests over 32 kept connections (wrk): CPU of the pair a request" in text
    assert "Memory of each proxy" in text
    assert "count" not in text


@pytest.mark.parametrize(
    ("rounds", "disturbed", "said"),
    [
        (2, 0.0, "Nothing of it counts: fewer than 3 rounds"),
        (3, 0.4, "Too noisy to count:\n  request: sidecar (others took 40% of the machine), envoy ("),
    ],
)
def test_a_run_that_does_not_count_says_so(
    capsys: pytest.CaptureFixture[str], rounds: int, disturbed: float, said: str
) -> None:
    assert said in printed(capsys, rounds, disturbed)


def test_json_has_all_of_it() -> None:
    value = json.loads(json.dumps(report.as_json(settings(3), results(3), MACHINE, LEFT_OUT)))
    assert value["settings"]["compared_with"] == "envoy"
    assert value["contestants"]["sidecar"]["proofs"]["run"]["negotiated"]["group"] == HYBRID
    assert len(value["readings"]) == 9
    assert value["memory"]["envoy"]["after"]["caller"]["rss"] == SMALL.rss
    overview = Overview.from_json(value["overview"])
    assert overview.columns["nginx"] == f"nginx 1.22.1 with {X25519}"
    assert overview.rows[0].title == "request"
    assert overview.rows[0].cells["nginx"].ratio is None
    assert overview.made == f"2026-11-30, a processor, 2 CPUs, Linux; 3 rounds of 2 s; {HYBRID}"
