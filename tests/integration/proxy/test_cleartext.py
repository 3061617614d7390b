"""A permissive port's connection, what the attacks do not show: drain with replicas, and the words of its ends."""

from __future__ import annotations

from dataclasses import replace

from sidecar.host.clock import utc_now
from sidecar.identity.reasons import Reason
from sidecar.proxy import cleartext
from sidecar.relay.duplex import How
from tests.attacks.stage import HONEST
from tests.attacks.test_plaintext import LAST_DAY, permissive
from tests.beds.mesh import inbound


async def test_while_it_drains_a_caller_is_sent_to_a_replica() -> None:
    async with permissive() as port:
        node = port.sidecar.node
        node.draining = True
        assert await port.says(HONEST) == HONEST
        node.config = replace(node.config, has_replicas=True)
        await port.is_refused("drained", 2)
        node.draining = False
        assert await port.says(HONEST) == HONEST


def test_every_ending_has_its_word_and_none_accuses_anybody() -> None:
    assert cleartext._ENDINGS.keys() == set(How)
    assert Reason.TRUNCATED not in cleartext._ENDINGS.values()


def test_silence_counts_only_where_the_server_speaks_first_and_the_day_is_not_over() -> None:
    first = inbound("http", until=LAST_DAY, server_first=True)
    now = utc_now()
    assert cleartext.may_be_silent(first, now)
    assert not cleartext.may_be_silent(replace(first, server_first=False), now)
    assert not cleartext.may_be_silent(replace(first, until=now.date().replace(year=2020)), now)
