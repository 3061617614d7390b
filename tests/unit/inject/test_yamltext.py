"""What is written is read back as it was, by YAML 1.1 and 1.2."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.inject.yamltext import Commented, Flow, Tagged, block, comment, flow, scalar

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "no",
        "on",
        "y",
        "null",
        "~",
        "1",
        "1.5",
        "0x1",
        "1:30",
        "1e3",
        "- a",
        "a: b",
        "#",
        "&a",
        "*",
        "!x",
        "",
        " a",
        "a #b",
        ".inf",
        "@",
    ]
)
DATA = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, DATA, max_size=4))
def test_back_as_it_was(data: dict[str, Any]) -> None:
    assert (yaml.safe_load("\n".join(block(data))) or {}) == data
    assert yaml.safe_load(flow(data)) == data


def test_as_people_write_it() -> None:
    data = {
        "a": Tagged("!override", {"b": Flow({"c": [1, "x:y"]})}),
        "d": Tagged("!reset", []),
        "e": Commented("f", "why"),
        "g": Commented({"h": None}, "above"),
        "i": [Commented("j", "behind"), Flow({"k": True})],
    }
    assert block(data) == [
        "a: !override",
        '  b: {c: [1, "x:y"]}',
        "d: !reset []",
        "e: f  # why",
        "# above",
        "g:",
        "  h: null",
        "i:",
        "  - j  # behind",
        "  - {k: true}",
    ]


def test_a_comment_stays_on_its_line() -> None:
    assert comment("a\nb: c\u2028d\x00") == "a b: c d "
    assert len(block({"a": Commented(1, "x\nb: 2")})) == 1


@pytest.mark.parametrize("text", ["web", "a-b_c.d", "./mesh", "/etc/mesh"])
def test_plain_text_is_not_quoted(text: str) -> None:
    assert scalar(text) == text
