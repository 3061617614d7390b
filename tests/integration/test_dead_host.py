"""A host that vanishes with a request in flight is noticed in half a minute, not in a quarter of an hour; a program that
pauses for as long as it likes loses nothing. With the kernel itself, in a network namespace, and a shorter threshold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import trio

from tests.beds.patience import PATIENCE


async def test_a_host_that_is_gone_is_cut_and_a_peer_that_pauses_is_not() -> None:
    namespace = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    command = [*namespace, sys.executable, "-m", "tests.integration.dead_host"]
    with trio.fail_after(4 * PATIENCE):
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout.decode()
    seen = json.loads(done.stdout)
    assert (seen["alive"], seen["lost"]) == (True, 0), "it only paused"
    said = "the {} acknowledged nothing for 1 s: its host or the network is gone"
    assert seen["outcomes"] == {"peer": said.format("peer"), "app": said.format("app")}, (
        "an idle one has nothing to lose"
    )
