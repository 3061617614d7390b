"""What is remembered from one run to the next."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.options import Options, Record, parse_ports, read_record, record_line
from sidecar.inject.topology import Layout

OPTIONS = Options("/a $b", "1:2", "drop", ("x", "y"), True, IPv4Network("10.0.0.0/16"), {"db": (1, 2), "w": ()})
LAYOUT = Layout(
    {"web-private": IPv4Network("10.0.0.0/25")},
    {"web": IPv4Address("10.0.1.2")},
    {"web": {"db": "web-private"}},
    {"web": {"db": "db", "$x": ""}},
    {"web": {"side": "side"}},
)
RECORD = Record(OPTIONS, ("a.yaml",), IPv4Network("10.0.0.0/20"), "00", frozenset({"a->b"}), LAYOUT)


def test_back_as_it_was() -> None:
    line = record_line(RECORD)
    assert "$$b" in line
    assert "\n" not in line
    assert read_record(f"# head\n{line}\nservices: {{}}\n", "f") == RECORD


@pytest.mark.parametrize("text", ["", "services: {}", "# x-sidecar-inject: {}", "a: x-sidecar-inject: {}"])
def test_a_file_of_somebody_else(text: str) -> None:
    with pytest.raises(UsageError, match=r"^f: exists already and was not written by `sidecar inject`"):
        read_record(text, "f")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"drop"', '"all"'),
        ('"10.0.0.0/20"', "1.5"),
        ("{", "{,"),
        ('"only"', '"x"'),
        ("[1, 2]", "1"),
        ('"10.0.0.0/25"', "[]"),
        ('"subnets": {', '"nets": {'),
    ],
)
def test_a_record_that_was_tampered_with(old: str, new: str) -> None:
    with pytest.raises(UsageError, match=r"^f:2: x-sidecar-inject: cannot be read"):
        read_record("#\n" + record_line(RECORD).replace(old, new, 1), "f")


def test_answers() -> None:
    assert parse_ports(("db=3306", "mq=5672,15672", "w=none")) == {"db": (3306,), "mq": (5672, 15672), "w": ()}


@pytest.mark.parametrize("text", ["db", "db=", "=1", "db=x", "db=0", "db=65536", "db=1,,2", "db=-1", "db=None"])
def test_no_answers(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--port: "):
        parse_ports((text,))
