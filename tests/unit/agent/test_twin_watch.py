"""What the CA's answer becomes: an alarm once, or a notice once, with what a person needs to act."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.agent.twin_watch import TwinWatch
from sidecar.agent.twins import Own
from sidecar.host.clock import utc_now
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, parse_mesh
from tests.beds.mesh import LogSink

START = 1_000_000


class Site:
    def __init__(self, instances: int = 1) -> None:
        self.log = LogSink()
        self.instances = instances
        alarms = AlarmLog(Log(self.log, "json"), utc_now)
        self.watch = TwinWatch(SpiffeId("shop.internal", ("api",)), Own(("aa",)), alarms, self._mesh)
        self.watch.hear({"now": START, "live": []})

    def _mesh(self) -> Mesh:
        return parse_mesh(
            f"trust_domain: shop.internal\nservices: {{api: {{instances: {self.instances}}}}}\n", "mesh.yaml"
        )

    def hear(self, at: int, *live: dict[str, Any]) -> bool:
        return self.watch.hear({"now": START + at, "live": list(live)})

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]


def entry(serial: str, issued_at: int, **more: Any) -> dict[str, Any]:
    return {"serial": serial, "key": "bb", "how": "secret", "issued_at": START + issued_at, "not_after": 0, **more}


async def test_a_twin_is_an_alarm_once() -> None:
    site = Site()
    for at in (100, 130, 160):
        site.hear(at, entry("2f", 60))
    (line,) = site.log.lines
    assert (line["event"], line["level"], line["service"]) == ("identity_elsewhere", "error", "api")
    assert (line["reason"], line["presented"], line["count"]) == ("secret", {"serial": "2f"}, 1)
    assert line["expected"] == "spiffe://shop.internal/api"
    assert "obtained with its enrolment secret at 1970-01-12T13:47:40Z, never used to poll" in line["message"]
    assert "certs revoke api" in line["next"]
    assert "instances: 2" in line["next"]


async def test_each_twin_is_one_alarm() -> None:
    site = Site()
    site.hear(100, entry("2f", 60), entry("3f", 61))
    assert site.events == ["identity_elsewhere"] * 2


async def test_room_that_is_made_later_counts_at_once() -> None:
    site = Site(instances=2)
    site.hear(100, entry("2f", 60))
    assert site.events == []
    site.instances = 1
    site.hear(130, entry("2f", 60))
    assert site.events == ["identity_elsewhere"]


async def test_a_past_life_is_a_notice() -> None:
    site = Site()
    site.hear(10, entry("2f", -60, seen_at=START - 5))
    assert site.events == []
    for at in (60, 90):
        site.hear(at, entry("2f", -60, seen_at=START - 5))
    (line,) = site.log.lines
    assert (line["event"], line["level"], line["severity"]) == ("identity_moved", "warning", "notice")
    assert "last used to poll at" in line["message"]


async def test_the_first_answer_is_kept_and_no_other() -> None:
    site = Site()
    assert site.watch.own.since == START
    assert not site.hear(5)
    assert TwinWatch(site.watch._identity, Own(), site.watch._alarms, site._mesh).hear({"now": 3, "live": []})


async def test_an_older_ca_says_nothing() -> None:
    site = Site()
    assert not site.watch.hear({})
    assert site.events == []


async def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="not as it should be"):
        Site().watch.hear({"live": 3})
