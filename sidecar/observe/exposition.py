"""Prometheus's text format, version 0.0.4: what ``/metrics`` answers. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format

Names follow https://prometheus.io/docs/practices/naming/: one prefix, base units (seconds, bytes) as a suffix, ``_total``
for what only rises, ``_timestamp_seconds`` for a moment (since 1970), ``_info`` for text, as a label of the number 1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""The upper bounds of each histogram's buckets, in seconds. The last bucket, above them, has none."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True, slots=True)
class Metric:
    """What a name stands for. ``labels``: which its numbers have. ``meaning``: one line for people."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


class Histogram:
    """How long something took, each time."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


Samples = Mapping[Any, Any]
"""The numbers of a metric, or its histograms, by the values of its labels: a tuple of text."""


def one(number: float) -> Samples:
    """The number of a metric without labels."""
    return {(): number}


def text(families: Iterable[tuple[Metric, Samples]]) -> bytes:
    """What Prometheus reads. A metric without a number is left out, and so is a number that is None: it is not known."""
    return "".join(f"{line}\n" for metric, samples in families for line in _lines(metric, samples)).encode()


def _lines(metric: Metric, samples: Samples) -> list[str]:
    found = [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {metric.kind}"]
    order = sorted(range(len(metric.labels)), key=metric.labels.__getitem__)
    names = [f'{metric.labels[at]}="' for at in order]
    for values, number in samples.items():
        labels = ",".join([f'{name}{values[at].translate(_ESCAPES)}"' for name, at in zip(names, order, strict=True)])
        if isinstance(number, Histogram):
            found += _histogram(metric.name, labels, number)
        elif number is not None:
            found.append(f"{metric.name}{f'{{{labels}}}' if labels else ''} {_number(number)}")
    return found if len(found) > 2 else []  # more than its head


def _histogram(name: str, labels: str, histogram: Histogram) -> list[str]:
    """Its buckets are cumulative: each counts what the ones before it do, too."""
    before, shown = f"{labels}," if labels else "", f"{{{labels}}}" if labels else ""
    sums = list(accumulate(histogram.counts))
    bounds = [*map(str, BUCKETS), "+Inf"]
    return [
        *(f'{name}_bucket{{{before}le="{bound}"}} {count}' for bound, count in zip(bounds, sums, strict=True)),
        f"{name}_sum{shown} {histogram.sum}",
        f"{name}_count{shown} {sums[-1]}",
    ]


def _number(number: float) -> str:
    found = float(number)
    return "+Inf" if found == float("inf") else str(found)


def table(metrics: Iterable[Metric]) -> list[str]:
    """The metrics as a table in Markdown."""
    rows = [
        f"| `{it.name}` | {it.kind} | {', '.join(f'`{label}`' for label in it.labels)} | {it.meaning} |"
        for it in metrics
    ]
    return ["| name | type | labels | meaning |", "|---|---|---|---|", *rows]
