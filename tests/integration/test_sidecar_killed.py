"""A sidecar killed with SIGKILL while it writes its state, again and again: it always comes back as itself, by itself."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from certs.store import store
from sidecar.agent import statedir
from sidecar.agent.agent import Agent
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import load_config
from sidecar.host.clock import utc_now
from sidecar.observe.logs import Log
from tests.beds.ca_processes import CaSite, member_process
from tests.beds.mesh import LogSink
from tests.beds.processes import Running, running
from tests.integration.members import hasty, live_ca

__all__ = ["hasty"]

pytestmark = pytest.mark.usefixtures("hasty")
CHANCE = random.Random(20261124)  # noqa: S311 (the moments of a test, the same each time)


class Lives:
    """The lives of one member, one after the other."""

    def __init__(self, program: Running) -> None:
        self.program = program
        self.number = 0

    async def live(self, file: Path, seconds: float) -> list[str]:
        """One life, killed after so long; what it logged in it."""
        before = len(self.program.lines)
        pid = await self._begin(file)
        await trio.sleep(seconds)  # the moment is the test
        await self._kill(pid)
        return [line["event"] for line in self.program.said[before:]]

    async def join(self, file: Path) -> float:
        """A first life, killed as soon as it has enrolled; how many seconds that takes on this machine now."""
        before = len(self.program.events("enrolled"))
        pid = await self._begin(file)
        born = trio.current_time()
        await self.program.event("enrolled", before + 1)
        took = trio.current_time() - born
        await self._kill(pid)
        return took

    async def _begin(self, file: Path) -> int:
        stdin = self.program.process.stdin
        assert stdin is not None
        await stdin.send_all(f"{file}\n".encode())
        self.number += 1
        return int((await self.program.event("born", self.number))["pid"])

    async def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await self.program.event("dead", self.number)
        assert self.program.errors == ""


@asynccontextmanager
async def lives() -> AsyncIterator[Lives]:
    async with running(sys.executable, "-m", "tests.integration.killable") as program:
        yield Lives(program)


def wakes_up(file: Path) -> Agent:
    """A start from what is on the disk, as far as it goes without a CA."""
    config = load_config(file, {})
    assert isinstance(config.identity, CaIdentity)
    assert not list(config.identity.state_dir.glob("*.key")), "no key lies about"
    return Agent(config.service, config.identity, lambda: config.mesh, Log(LogSink(), "json"), utc_now)


async def test_killed_while_it_renews(tmp_path: Path) -> None:
    site = CaSite.make(tmp_path)
    file = site.wiring("web", "", enrolment=site.write_credential("web", "token"))
    renewed = 0
    async with live_ca(site):
        async with lives() as them:
            took = await them.join(file)
            (site.path / "web.token").unlink()
            for number in count():
                if number >= 60 and renewed > 10:
                    break
                longer = 1.05 ** max(0, number - 60)  # on a machine so busy that most lives were too short
                renewed += (await them.live(file, longer * took * CHANCE.uniform(0.1, 1.5))).count("renewed")
                woken = wakes_up(file)
                assert woken.credentials is not None
                assert str(woken.credentials.svid.id) == "spiffe://shop.internal/web"
                assert woken.credentials.keys.chain[0].public_key() == woken.credentials.keys.key.public_key()
                # What is kept is a certificate that the CA gave.
                assert is_issued(site, woken.credentials.svid.sha256)
                await woken.close()
                assert {path.name for path in (tmp_path / "state-web").iterdir()} <= NAMES, "no litter"
        async with member_process(file) as web:  # and the program itself serves with it
            assert web.started["identity"] == "spiffe://shop.internal/web"
            assert web.program.events("enrolled") == []
    assert renewed > 10, "it was at work when it was killed"
    assert site.faults() == []


NAMES = {statedir.IDENTITY, statedir.BUNDLE, statedir.REVOCATIONS, statedir.MEMBER, statedir.PENDING, statedir.OWN}


def is_issued(site: CaSite, sha256: str) -> bool:
    found = sa.select(sa.func.count()).select_from(store.issued).where(store.issued.c.sha256 == sha256)
    return site.ask(lambda connection: connection.execute(found).scalar()) == 1


async def test_killed_while_it_enrols_by_a_token_that_is_good_once(tmp_path: Path) -> None:
    """The token may be spent and its answer lost: the same key asks again, and is answered again."""
    site = CaSite.make(tmp_path)
    deaths = lost = 0
    async with live_ca(site), lives() as them:
        secret = site.write_credential("api", "secret")
        took = await them.join(site.wiring("api", "", enrolment=secret))
        for number in range(12):
            file = site.wiring("web", "", enrolment=site.write_credential("web", "token"), state=f"state-{number}")
            identity = tmp_path / f"state-{number}" / statedir.IDENTITY
            longer = 1.0
            while not identity.exists():
                await them.live(file, longer * took * CHANCE.uniform(0.15, 0.6))
                deaths += 1
                longer *= 1.1  # the same
                lost += len(by_token(site)) > number and not identity.exists()
            woken = wakes_up(file)
            assert woken.credentials is not None
            await woken.close()
            assert len(by_token(site)) == number + 1, "one token, one certificate"
    assert deaths > 12
    assert lost > 0, "it was killed at least once when the token was spent and nothing was kept yet"


def by_token(site: CaSite) -> list[str]:
    query = sa.select(store.issued.c.sha256).where(store.issued.c.how == "token")
    return site.ask(lambda connection: list(connection.execute(query).scalars()))
