"""Hundreds of certificates come and go while connections are made and one transfer goes on: nothing fails, nothing is left.

How the count is reached: four sidecars (two replicas at each end) find half of a certificate's life over a few milliseconds
after they have it (:func:`sidecar.agent.schedule.refresh_at` says so here), and then do what they do every half an
hour: a fresh
key, a question over mutual TLS with the certificate in force, the answer checked, on the disk, in force. 60 times each.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import pytest
import trio

from sidecar.agent import membership
from sidecar.host.clock import utc_now
from tests.beds.ca_processes import CaSite, echo_app, load
from tests.integration.members import LiveMember, hasty, live_ca

__all__ = ["hasty"]

ROTATIONS = 240


def at_once(_not_before: datetime, _not_after: datetime, _chance: float) -> datetime:
    return utc_now()


@pytest.mark.usefixtures("hasty")
async def test_hundreds_of_rotations_and_no_failed_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "refresh_at", at_once)
    site = CaSite.make(tmp_path)
    async with live_ca(site), echo_app() as app, trio.open_nursery() as nursery:
        body = f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app}"}}]\n'
        apis = [_member(site, "api", body, number) for number in (1, 2)]
        for api in apis:
            await nursery.start(api.run)
        peers = [f'"127.0.0.1:{api.address("http")[1]}"' for api in apis]
        body = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: [{", ".join(peers)}]}}]\n'
        webs = [_member(site, "web", body, number) for number in (1, 2)]
        for web in webs:
            await nursery.start(web.run)
        members = [*apis, *webs]
        opened: list[int] = []

        async with load(webs[0].address("api:http")) as one, load(webs[1].address("api:http")) as other:
            for share in (2, 1):
                for agent in members:
                    await agent.until_adopted(ROTATIONS // len(members) // share)
                opened.append(open_descriptors())
            for calls in (one, other):
                await calls.grows(10)  # the last certificates are as good as the first
        nursery.cancel_scope.cancel()

    adopted = [one for agent in members for one in agent.adopted]
    assert len(set(adopted)) == len(adopted) >= ROTATIONS
    refused = [line for agent in members for line in agent.log.connections if line["decision"] != "allow"]
    assert refused == []
    assert one.connections + other.connections > 50
    assert opened[1] < opened[0] + ROTATIONS // 8, "no descriptor is left by a rotation"
    for agent in members:
        assert [line for line in agent.log.lines if line["event"].endswith(("_failed", "_refused"))] == []
    assert len(site.issued()) >= len(adopted) + len(members), "each of them is in the store"
    assert site.faults() == []


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def _member(site: CaSite, service: str, body: str, number: int) -> LiveMember:
    enrolment = site.write_credential(service)
    return LiveMember(site.wiring(service, body, enrolment=enrolment, state=f"state-{service}-{number}"))
