"""What a process asks of its system: each in a process of its own, since it cannot be taken back."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from sidecar.host.process import MAX_STRANGERS, OTHER_DESCRIPTORS, Capacity, capacity, descriptor_limit, shortage
from tests.beds.processes import clean_environment

SAYS = """
import ctypes, resource
from sidecar.host.process import keep_memory_private, raise_descriptor_limit
{calls}
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) if {linux} else 0,
      resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def says(calls: str) -> str:
    text = SAYS.format(calls=calls, linux=sys.platform == "linux")
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        ),
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_GET_DUMPABLE is Linux's")
def test_memory_is_private_once_asked_for_and_not_before() -> None:
    assert says("keep_memory_private()") == "(0, 0) 0 64"
    assert " 1 " in says("")


def test_the_descriptor_limit_is_raised_to_what_the_system_allows() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert says("raise_descriptor_limit()").endswith(f" {hard}")
    assert says("raise_descriptor_limit(); raise_descriptor_limit()").endswith(f" {hard}")
    assert says("").endswith(" 64")


def test_what_is_loaded_is_no_work_of_the_collector_s_any_more() -> None:
    text = "import gc; from sidecar.host.process import settle_memory; {} print(gc.get_freeze_count() > 1_000)"
    for call, settled in (("settle_memory();", "True"), ("", "False")):
        done = subprocess.run(
            [sys.executable, "-c", text.format(call)],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
        )
        assert done.stdout.strip() == settled


# -- dividing them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "descriptors", "strangers", "fits"),
    [
        (10_000, 1_000_000, MAX_STRANGERS, 10_000),
        (10_000, sys.maxsize, MAX_STRANGERS, 10_000),
        (10_000, 1024, 500, 250),
        (10_000, 128, 52, 26),
        (100, 1_000_000, 100, 100),
        (1, 1_000_000, 64, 1),
        (10_000, OTHER_DESCRIPTORS + 4, 2, 1),
        (10_000, 8, 1, 1),  # so few that it cannot hold: it still tries
    ],
)
def test_strangers_and_connections_never_need_more_descriptors_than_there_are(
    connections: int, descriptors: int, strangers: int, fits: int
) -> None:
    divided = capacity(connections, descriptors)
    assert divided == Capacity(strangers, fits)
    if descriptors > OTHER_DESCRIPTORS + 3:
        assert strangers + 2 * fits + OTHER_DESCRIPTORS <= descriptors


def test_too_few_descriptors_are_a_warning_that_says_what_fits() -> None:
    warning = shortage(10_000, 1024)
    assert warning is not None
    for part in ("limits.connections is 10000", "1024 file descriptors", "250 connections", "500", "ulimit -n"):
        assert part in warning


def test_nine_tenths_are_enough() -> None:
    descriptors = OTHER_DESCRIPTORS + MAX_STRANGERS + 2 * 9_000
    assert shortage(10_000, descriptors) is None
    assert shortage(10_000, descriptors - 1) is not None


def test_the_twin_enough_of_them_are_none() -> None:
    assert shortage(10_000, 10_000_000) is None
    assert shortage(250, 1024) is None


def test_the_limit_is_the_process_s() -> None:
    assert descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_no_limit_is_a_large_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert descriptor_limit() == sys.maxsize
