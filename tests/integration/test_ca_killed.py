"""`certs serve` killed in the midst of 200 enrolments at once: what it answered it remembers, and nobody is stranded."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from certs.protocol.client import CaDeniedError, CaError
from certs.protocol.enrolment import EnrolmentCredential
from certs.store.store import enrolment_credentials
from tests.beds.ca_processes import Caller, CaSite, denial
from tests.beds.patience import PATIENCE

SERVICES = [f"s{number:03}" for number in range(200)]
MESH = "trust_domain: shop.internal\nservices:\n" + "".join(f"  {service}: {{}}\n" for service in SERVICES)


class Crowd:
    """200 callers, each with a token, from an address of its own. ``answered`` holds every answer that anybody had."""

    def __init__(self, site: CaSite) -> None:
        self.tokens = site.make_credentials(*SERVICES)
        self.callers = {
            service: site.caller(service, source=f"127.1.{number // 250}.{1 + number % 250}")
            for number, service in enumerate(SERVICES)
        }
        self.answered: dict[str, set[str]] = {service: set() for service in SERVICES}
        self.cut: list[str] = []
        self.on_answer: Callable[[], None] = lambda: None

    async def all_ask_once(self) -> None:
        async with trio.open_nursery() as nursery:
            for service in SERVICES:
                nursery.start_soon(self._ask, service, self.callers[service], self.tokens[service])

    async def all_ask(self) -> None:
        """Until each has its answer, as sidecars do: where all ask in one instant, a busy machine has none for the last of
        them within the time that a request has."""
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for service in SERVICES:
                    nursery.start_soon(self._ask_until_answered, service)

    async def _ask_until_answered(self, service: str) -> None:
        while not await self._ask(service, self.callers[service], self.tokens[service]):
            pass

    async def _ask(self, service: str, caller: Caller, token: EnrolmentCredential) -> bool:
        """Whether it has its certificate. A no for good fails the test."""
        try:
            self.answered[service].add(await caller.enrol(token))
        except CaError as error:
            if isinstance(error, CaDeniedError) and not error.passing:
                raise
            self.cut.append(service)
            return False
        finally:
            self.on_answer()
            await caller.client.close()
        return True

    @property
    def number_answered(self) -> int:
        return sum(1 for answers in self.answered.values() if answers)


@pytest.mark.parametrize("killed_after", [1, 10, 25])
async def test_killed_during_200_enrolments(tmp_path: Path, killed_after: int) -> None:
    site = CaSite.make(tmp_path, MESH)
    crowd = Crowd(site)
    async with site.serves() as ca:

        def kill() -> None:
            if crowd.number_answered >= killed_after:
                ca.signal(signal.SIGKILL)

        crowd.on_answer = kill
        await crowd.all_ask_once()
    first = crowd.number_answered
    assert killed_after <= first < 200
    assert first + len(crowd.cut) == 200

    # What left it was on its disk before.
    assert {one for answers in crowd.answered.values() for one in answers} <= set(site.issued())
    assert site.faults() == []

    async with site.serves():
        await crowd.all_ask()  # the same tokens, the same keys: also those who had their answer
        assert {len(answers) for answers in crowd.answered.values()} == {1}, "the same key has the same certificate"
        stranger = site.caller("s000")
        assert (await denial(stranger.enrol(crowd.tokens["s000"]))).denial == "pass_used"
        await stranger.client.close()

    assert sorted(site.issued()) == sorted(one for answers in crowd.answered.values() for one in answers)
    assert site.faults() == []
    unused = (
        sa.select(sa.func.count()).select_from(enrolment_credentials).where(enrolment_credentials.c.used_by.is_(None))
    )
    assert site.ask(lambda connection: connection.execute(unused).scalar()) == 0
