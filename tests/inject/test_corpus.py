"""The scorer of other people's applications, on an invented one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inject import corpus
from tests.inject.corpus import Outcome, Score, Truth, parse_truth, score

SERVICES = dict.fromkeys(["web", "api", "db", "worker"])
TRUTH = Truth(
    edges=frozenset({("web", "api", 80), ("api", "db", 5432), ("worker", "db", 5432), ("worker", "api", 81)}),
    possible=frozenset({("web", "worker", None), ("api", "worker", 9)}),
    ports={"api": frozenset({80, 81}), "db": frozenset({5432})},
    workers=frozenset({"worker"}),
)


def test_truth() -> None:
    raw = {
        "edges": ["web -> api:80", "api -> db:5432", "worker -> db:5432", "worker -> api:81"],
        "possible": ["web -> worker", "api -> worker:9"],
        "ports": {"api": [80, 81], "db": [5432]},
        "workers": ["worker"],
    }
    assert parse_truth(raw, SERVICES) == TRUTH


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"edges": ["web -> mail:25"]}, "no such service: mail"),
        ({"edges": ["web:80"]}, "is no call"),
        ({"edges": ["web -> web:80"]}, "is no call"),
        ({"edges": ["web -> api"]}, "has no port"),
        ({"edges": ["web -> api:80", "web -> api:80"]}, "is there twice"),
        ({"edges": [], "possible": ["mail -> web"]}, "no such service: mail"),
        ({"edges": [], "ports": {"mail": [25]}}, "no such service: mail"),
        ({"edges": [], "workers": ["mail"]}, "no such service: mail"),
        ({"edges": [], "ports": {"web": [80]}, "workers": ["web"]}, "listens, and is a worker"),
        ({"edges": [], "worker": ["web"]}, "unknown: worker"),
    ],
)
def test_truth_that_cannot_be_true(raw: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_truth(raw, SERVICES)


def test_score() -> None:
    """One of each: found, missed with and without a listener, outside of the mesh, possible (any port, one port), wrong."""
    outcome = Outcome(
        allowed=frozenset({("web", "api", 80), ("web", "api", 81), ("web", "worker", 7), ("api", "worker", 9)}),
        outside=frozenset({("worker", "db")}),
        listeners={"api": frozenset({80}), "db": frozenset({5432})},
        notes=("worker, db: no port known, nobody can reach them", "web: no port known, nobody can reach it"),
    )
    assert score(TRUTH, outcome) == Score(
        found=frozenset({("web", "api", 80)}),
        missed=frozenset({("api", "db", 5432), ("worker", "api", 81)}),
        outside=frozenset({("worker", "db", 5432)}),
        wrong=frozenset({("web", "api", 81)}),
        dead=frozenset({("worker", "api", 81)}),
        untrue=("worker", "db"),
    )


def test_a_call_is_not_dead_without_a_word_if_a_note_says_that_nobody_can_reach_it() -> None:
    silent, said = (), ("db: no port known, nobody can reach it",)
    allowed = TRUTH.edges - {("api", "db", 5432)}
    assert score(TRUTH, Outcome(allowed=allowed, notes=silent)).dead == {("api", "db", 5432)}
    assert score(TRUTH, Outcome(allowed=allowed, notes=said)).dead == frozenset()


def test_nothing_is_dead_in_an_application_that_inject_refused() -> None:
    refused = score(TRUTH, Outcome(failed="no two services"))
    assert refused.missed == TRUTH.edges
    assert refused.dead == frozenset()


def test_a_possible_call_at_one_port_does_not_excuse_another() -> None:
    assert score(TRUTH, Outcome(allowed=frozenset({("api", "worker", 10)}))).wrong == {("api", "worker", 10)}


@pytest.mark.parametrize("note", ["db: 2 ports known", "api: reachable without the mesh: published port 80"])
def test_other_notes_are_not_about_unknown_ports(note: str) -> None:
    assert corpus.unknown_ports((note,)) == []


def test_report(tmp_path: Path) -> None:
    """Through the real Compose: a call that is found, one that is not, and an application that inject refuses."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/compose.yaml").write_text(
        "services:\n  web: {image: web, environment: {DB: 'postgres://db:5432/shop'}}\n  db: {image: postgres}\n"
    )
    (tmp_path / "shop.truth.yaml").write_text("edges: ['web -> db:5432', 'db -> web:80']\nports: {db: [5432]}\n")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/compose.yaml").write_text("services:\n  web: {image: web}\n")
    (tmp_path / "alone.truth.yaml").write_text("edges: []\n")
    lines = list(corpus.report(tmp_path))
    assert lines[0].startswith("alone ")
    assert "no two services" in lines[0]
    assert lines[1].startswith("shop ")
    assert lines[2].startswith("    missed  db -> web:80")
    assert "visible edges      1 of 2 (50.0%)" in lines
    assert "wrong edges        0" in lines
    assert "without a flag     1 of 2 files" in lines


def test_a_truth_that_cannot_be_true_ends_the_report_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/compose.yaml").write_text("services:\n  web: {image: web}\n")
    (tmp_path / "shop.truth.yaml").write_text("edges: ['web -> db:5432']\n")
    with pytest.raises(ValueError, match="no such service: db"):
        next(corpus.report(tmp_path))
