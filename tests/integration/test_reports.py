"""Real sidecars report to a real CA, and `certs reports` shows it to the CA's own user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from sidecar.documents.address import parse_address
from tests.beds.ca_processes import ca_mesh, echo_app
from tests.beds.processes import CERTS, DEADLINE, clean_environment, output


async def reports(directory: Path) -> dict[str, dict[str, Any]]:
    """By service: the last report of each."""
    found = json.loads(await output(*CERTS, "reports", directory, "--json"))["reports"]
    return {one["identity"].rpartition("/")[2]: one for one in found}


async def test_what_happens_is_at_the_ca_within_two_polls(tmp_path: Path) -> None:
    async with echo_app() as app, ca_mesh(tmp_path, parse_address(app)) as mesh:
        async with await trio.open_tcp_stream(mesh.entry.host, mesh.entry.port) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert b"".join([data async for data in stream]) == b"hello"
        found: dict[str, dict[str, Any]] = {}
        with trio.fail_after(DEADLINE):
            while len(found) < 2 or not all(one["report"]["channels"]["streams"] for one in found.values()):
                found = await reports(mesh.site.directory)
    for service, one in found.items():
        said = one["report"]
        assert (one["fresh"], said["healthy"], said["unwell"]) == (True, True, [])
        assert said["certificate"]["serial"] == one["serial"]
        assert said["policy"] == found["web"]["report"]["policy"]
        assert one["identity"] == f"spiffe://shop.internal/{service}"
    assert found["web"]["report"]["outbound"] == [{"to": "api:http", "allowed": True}]


async def test_they_can_be_followed_until_whoever_reads_has_gone(tmp_path: Path) -> None:
    """In a container no signal reaches it: it ends with its stdin."""
    async with echo_app() as app, ca_mesh(tmp_path, parse_address(app)) as mesh:
        command = [*CERTS, "reports", str(mesh.site.directory), "--follow", "--json"]
        process = await trio.lowlevel.open_process(command, stdin=-1, stdout=-1, env=clean_environment())
        assert process.stdout is not None
        assert process.stdin is not None
        with trio.fail_after(DEADLINE):
            data, lines = b"", list[dict[str, Any]]()
            while not lines or len(lines[-1]["reports"]) < 2:  # each is in a line after its report
                data += await process.stdout.receive_some()
                lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
            first, last = lines[0], lines[-1]
            assert first["ca"] == last["ca"]
            assert {one["identity"].rpartition("/")[2] for one in last["reports"]} == {"web", "api"}
            assert first["ca"]["trust_domain"] == "shop.internal"
            assert set(first["ca"]["services"]) == {"web", "api", "job"}
            assert first["ca"]["issuing_until"] < first["ca"]["root_until"]
            await process.stdin.aclose()
            assert await process.wait() == 0
        await process.stdout.aclose()
