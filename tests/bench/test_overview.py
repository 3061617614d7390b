"""All figures on one page: table, picture, and their place in the README."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.bench import readme
from tests.bench.errors import BenchError
from tests.bench.figures import Reading
from tests.bench.idle import Footprint
from tests.bench.outputs import Done
from tests.bench.overview import Cell, Overview, Row, rows
from tests.bench.picture import FARTHEST, draw, layout
from tests.bench.procfs import Memory
from tests.bench.roots import PROJECT

COLUMNS = {"sidecar": "sidecar 0.1.0", "envoy": "envoy 1.40.0", "envoy-64": "envoy-64 1.40.0"}
OVERVIEW = Overview(
    "2026-11-30, a machine",
    "envoy",
    COLUMNS,
    [
        Row("request", "µs of CPU", {"sidecar": Cell(46.25, 1.05, None), "envoy": Cell(44.0, 1.0, None)}),
        Row(
            "new connection",
            "µs of CPU",
            {"sidecar": Cell(3054, 4.5, "noise"), "envoy": Cell(1055, 1.0, None), "envoy-64": Cell(778, 0.74, None)},
        ),
    ],
)
PAGE = f"before\n{readme.BEGIN}old\n{readme.END}after\n"


def test_a_table_for_a_readme() -> None:
    assert OVERVIEW.markdown() == (
        "|  | sidecar 0.1.0 | envoy 1.40.0 | envoy-64 1.40.0 |\n"
        "|---|---:|---:|---:|\n"
        "| request, µs of CPU | 46.2 (×1.05) | 44.0 (×1.00) |  |\n"
        "| new connection, µs of CPU | ~3,054 (×4.50) | 1,055 (×1.00) | 778 (×0.74) |\n"
    )


def test_what_is_too_noisy_is_named() -> None:
    assert OVERVIEW.noisy() == ["new connection: sidecar (noise)"]


def test_what_json_holds_can_be_read_again() -> None:
    assert Overview.from_json(json.loads(json.dumps(OVERVIEW.as_json()))) == OVERVIEW


def test_rows_are_costs_then_latencies_then_memory() -> None:
    readings = [
        Reading(load, name, "X25519", number, cpu, cpu, Done(100, 2.0, 0.001, p99))
        for number in range(3)
        for load in ("latency-1000", "upload", "keepalive")
        for name, cpu, p99 in (("sidecar", 0.002, 0.005), ("envoy", 0.001, 0.004))
    ]

    def footprint(size: int) -> Footprint:
        sides = [tuple(Memory(megabytes * 10**6, None) for megabytes in (size, size + more)) for more in (1, 21, 6)]
        idle, held, after = ((one, other) for one, other in sides)
        return Footprint(idle, held, after, connections=500)

    found = rows(readings, {"sidecar": footprint(60), "envoy": footprint(30)}, "envoy")
    assert [(row.title, row.unit) for row in found] == [
        ("request", "µs of CPU"),
        ("bulk, caller to callee", "s of CPU a GB"),
        ("p99 at 1,000 requests/s", "ms"),
        ("memory, just started", "MB"),
        ("memory that 1,000 idle connections add", "MB"),
        ("memory after a burst", "MB"),
    ]
    ours = [row.cells["sidecar"] for row in found]
    assert [cell.value for cell in ours] == pytest.approx([40.0, 4e-5, 5.0, 61.0, 40.0, 66.0])
    assert [cell.ratio for cell in ours] == pytest.approx([2.0, 2.0, 1.25, 61 / 31, 1.0, 66 / 36])


@pytest.mark.parametrize(("kept", "noisy"), [(951.0, False), (949.0, True)])
def test_latency_at_a_rate_that_was_not_kept_does_not_count(kept: float, noisy: bool) -> None:
    readings = [
        Reading("latency-1000", "envoy", "X25519", number, 1.0, 1.0, Done(2 * kept, 2.0, 0.001, 0.004))
        for number in range(3)
    ]
    (row,) = rows(readings, {}, "envoy")
    assert row.cells["envoy"].noise == ("949 requests a second instead of 1,000" if noisy else None)


# -- the picture -------------------------------------------------------------------------------------------------------


def test_a_bar_for_each_ratio_but_the_peer_s() -> None:
    plan = layout(OVERVIEW)
    assert [(bar.contestant, bar.length, bar.text, bar.pale) for bar in plan.bars] == [
        ("sidecar", 1.05, "1.05", False),
        ("sidecar", FARTHEST, "~4.50", True),
        ("envoy-64", 0.74, "0.74", False),
    ]
    assert list(plan.titles.values()) == ["request", "new connection"]
    places = [bar.at for bar in plan.bars]
    assert places == sorted(set(places))
    assert plan.height > places[-1]


def test_the_picture_is_an_svg_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the dependency group 'bench' is not installed")
    for name in ("one.svg", "two.svg"):
        draw(OVERVIEW, tmp_path / name)
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")  # noqa: S314 (see above)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


# -- the README --------------------------------------------------------------------------------------------------------


def test_a_run_takes_the_place_of_the_one_before() -> None:
    text = readme.published(PAGE, OVERVIEW)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert OVERVIEW.markdown() in text
    assert "Made 2026-11-30, a machine." in text
    assert "`~`: too noisy to count" in text
    assert readme.published(text, OVERVIEW) == text


@pytest.mark.parametrize("page", ["", f"{readme.BEGIN}no end", f"no begin {readme.END}"])
def test_a_readme_without_a_place_is_refused(page: str) -> None:
    with pytest.raises(BenchError, match=r"README.md has no lines"):
        readme.published(page, OVERVIEW)


def test_the_readme_of_this_project_has_a_place() -> None:
    assert OVERVIEW.markdown() in readme.published((PROJECT / "README.md").read_text(), OVERVIEW)


def test_it_is_published_from_what_a_run_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(readme, "draw", lambda overview, path: drawn.append(path))
    run, page = tmp_path / "bench.json", tmp_path / "README.md"
    arguments = [str(run), "--root", str(tmp_path)]
    page.write_text(PAGE)
    assert readme.main(arguments) == 1  # no run yet
    assert page.read_text() == PAGE
    run.write_text(json.dumps({"overview": OVERVIEW.as_json()}))
    assert readme.main(arguments) == 0
    assert page.read_text() == readme.published(PAGE, OVERVIEW)
    assert drawn == [tmp_path / ".github/bench.svg"]
