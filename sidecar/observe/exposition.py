"""Prometheus's text format, version 0.0.4: what ``/metrics`` answers. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


@dataclass(frozen=True, slots=True)
class Family:
    """Numbers under one name: ``samples``, by the values of ``labels``, a tuple of text. By convention a counter's name ends
    with ``_total``. ``meaning``: one line for people."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...]
    samples: Mapping[Any, float]


def single(name: str, kind: Literal["counter", "gauge"], meaning: str, number: float) -> Family:
    """One number without labels."""
    return Family(name, kind, meaning, (), {(): number})


def text(families: Iterable[Family]) -> bytes:
    """What Prometheus reads."""
    lines = []
    for one in families:
        lines += [f"# HELP {one.name} {one.meaning}", f"# TYPE {one.name} {one.kind}"]
        for values, number in one.samples.items():
            pairs = sorted(zip(one.labels, values, strict=True))
            labels = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)
            lines.append(f"{one.name}{f'{{{labels}}}' if labels else ''} {float(number)}")
    return "".join(f"{line}\n" for line in lines).encode()
