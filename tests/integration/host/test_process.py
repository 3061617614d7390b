"""What a process asks of its system: each in a process of its own, since it cannot be taken back."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

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
