"""The text that Prometheus reads, read by its own parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.observe.exposition import BUCKETS, Histogram, Metric, one, table, text

# The parser of the library splits a line before it reads its quotes, at what Python calls the end of a line.
_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.just("\n"), max_size=20)


def test_the_text_of_each_kind() -> None:
    ended = Metric("a_total", "counter", ("reason", "port"), "What ended.")
    took = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 99.0):
        took.add(seconds)
    told = text(
        [
            (ended, {("ok", "http"): 3, ('a"\\\n', "grpc"): 1}),
            (Metric("b", "gauge", (), "Now."), one(1.5)),
            (Metric("c", "gauge", (), "Nothing."), {}),
            (Metric("d", "gauge", (), "Unknown."), {(): None}),
            (Metric("e_seconds", "histogram", ("x",), "How long."), {("y",): took}),
            (Metric("f", "gauge", (), "Never."), one(float("inf"))),
        ]
    ).decode()
    lines = told.splitlines()
    assert lines[:7] == [
        "# HELP a_total What ended.",
        "# TYPE a_total counter",
        'a_total{port="http",reason="ok"} 3.0',
        r'a_total{port="grpc",reason="a\"\\\n"} 1.0',
        "# HELP b Now.",
        "# TYPE b gauge",
        "b 1.5",
    ]
    assert lines[7:12] == [
        "# HELP e_seconds How long.",
        "# TYPE e_seconds histogram",
        'e_seconds_bucket{x="y",le="0.001"} 2',
        'e_seconds_bucket{x="y",le="0.0025"} 3',
        'e_seconds_bucket{x="y",le="0.005"} 3',
    ]
    assert lines[7 + 2 + len(BUCKETS) :] == [
        'e_seconds_bucket{x="y",le="+Inf"} 4',
        'e_seconds_sum{x="y"} 99.0021',
        'e_seconds_count{x="y"} 4',
        "# HELP f Never.",
        "# TYPE f gauge",
        "f +Inf",
    ]


def test_a_histogram_without_labels() -> None:
    told = text([(Metric("a_seconds", "histogram", (), "How long."), one(Histogram()))]).decode()  # type: ignore[arg-type]
    assert 'a_seconds_bucket{le="+Inf"} 0\na_seconds_sum 0.0\na_seconds_count 0\n' in told


def test_the_table() -> None:
    assert table([Metric("a_total", "counter", ("x", "y"), "What ended.")]) == [
        "| name | type | labels | meaning |",
        "|---|---|---|---|",
        "| `a_total` | counter | `x`, `y` | What ended. |",
    ]


@given(st.dictionaries(st.tuples(_TEXT, _TEXT), st.integers(0, 2**53) | st.floats(0, 1e300), max_size=5))
def test_prometheus_reads_what_was_meant(samples: dict[tuple[str, str], float]) -> None:
    """Invariant: no value of a label is lost, is another, or begins a sample of its own."""
    read = list(text_string_to_metric_families(text([(Metric("a", "gauge", ("x", "y"), "A."), samples)]).decode()))
    found = [one for family in read for one in family.samples]
    assert {(one.labels["x"], one.labels["y"]): one.value for one in found} == samples
    assert len(found) == len(samples)
