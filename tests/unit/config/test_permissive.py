"""Permissive ports: the keys that go together, and until when one takes plaintext."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from tests.specimens import HEAD, mistakes, parsed


def port(more: str) -> str:
    return f'{HEAD}inbound:\n  - {{port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:8081"{more}}}\n'


ENDLESS = "permissive needs `until`: the last day on which plaintext is taken, such as 2027-01-31"
STRICT = "is for a port in `mode: permissive`; this one is strict, and takes no plaintext"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (", mode: permissive", f"mode: {ENDLESS}"),
        (", mode: permissive, until: ", f"mode: {ENDLESS}"),
        (", mode: permissive, until: never", "until: 'never' is no day: write it as 2027-01-31"),
        (", mode: permissive, until: 20270131", "until: must be text, not 20270131 (quote it)"),
        (", until: 2027-01-31", f"until: {STRICT}"),
        (", mode: strict, until: 2027-01-31", f"until: {STRICT}"),
        (", server_first: true", f"server_first: {STRICT}"),
        (", mode: permisive, until: 2027-01-31", f"until: {STRICT}"),
        (", mode: plaintext", "mode: must be strict or permissive, not 'plaintext'"),
    ],
)  # fmt: skip
def test_a_mistake(more: str, line: str) -> None:
    assert f"s.yaml:5: inbound[0].{line}" in mistakes(port(more))


def test_a_permissive_port_takes_plaintext_through_its_last_day() -> None:
    [inbound] = parsed(port(", mode: permissive, until: 2027-01-31, server_first: true")).inbound
    assert (inbound.mode, inbound.until, inbound.server_first) == ("permissive", date(2027, 1, 31), True)
    assert inbound.takes_plaintext(datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC))
    assert not inbound.takes_plaintext(datetime(2027, 2, 1, tzinfo=UTC))
    endless = replace(inbound, until=None)  # no file can say that
    assert not endless.takes_plaintext(datetime(2020, 1, 1, tzinfo=UTC))
    strict = replace(inbound, mode="strict")  # nor this
    assert not strict.takes_plaintext(datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("more", ["", ", mode: strict", ", server_first: false"])
def test_a_port_is_strict_without_the_word(more: str) -> None:
    [inbound] = parsed(port(more)).inbound
    assert not inbound.takes_plaintext(datetime(2020, 1, 1, tzinfo=UTC))
