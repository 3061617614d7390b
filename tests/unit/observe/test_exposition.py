"""The text that Prometheus reads, read by its own parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.observe.exposition import Family, single, text

# The parser of the library splits a line before it reads its quotes, at what Python calls the end of a line.
_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.just("\n"), max_size=20)


def test_the_text_of_each_kind() -> None:
    ended = Family("a_total", "counter", "What ended.", ("reason", "port"), {("ok", "http"): 3, ('a"\\\n', "grpc"): 1})
    assert text([ended, single("b", "gauge", "Now.", 1.5)]).decode().splitlines() == [
        "# HELP a_total What ended.",
        "# TYPE a_total counter",
        'a_total{port="http",reason="ok"} 3.0',
        r'a_total{port="grpc",reason="a\"\\\n"} 1.0',
        "# HELP b Now.",
        "# TYPE b gauge",
        "b 1.5",
    ]


@given(st.dictionaries(st.tuples(_TEXT, _TEXT), st.integers(0, 2**53) | st.floats(0, 1e300), max_size=5))
def test_prometheus_reads_what_was_meant(samples: dict[tuple[str, str], float]) -> None:
    """Invariant: no value of a label is lost, is another, or begins a sample of its own."""
    read = list(text_string_to_metric_families(text([Family("a", "gauge", "A.", ("x", "y"), samples)]).decode()))
    found = [one for family in read for one in family.samples]
    assert {(one.labels["x"], one.labels["y"]): one.value for one in found} == samples
    assert len(found) == len(samples)
