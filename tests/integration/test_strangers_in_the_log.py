"""A flood of strangers in the log: their lines are folded, nobody else's, and lines and summaries add up to the sockets."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.observe.folding import LINES, SECONDS
from sidecar.transport import sockets
from tests.beds.certificates import Authority, Credential
from tests.beds.mesh import Foreigner, connect, inbound, mesh_bed

FORGED = Authority().leaf("web")


async def probe(address: Address) -> None:
    (await connect(address)).close()


async def plaintext(address: Address) -> None:
    with await connect(address) as sock, contextlib.suppress(OSError):
        await sockets.send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        await sockets.receive(sock, 100)


async def call(address: Address, credential: Credential | None) -> None:
    caller = Foreigner(await connect(address), credential)
    with caller.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
        await caller.handshake()
        await caller.receive()


async def refuser(address: Address) -> None:
    """Refuses our certificate: a caller that does not trust our root, of which the operator must hear each time."""

    def verifying(context: SSL.Context) -> None:
        context.set_verify(SSL.VERIFY_PEER, lambda *_: False)

    caller = Foreigner(await connect(address), None, configure=verifying)
    with caller.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
        await caller.handshake()


@pytest.mark.parametrize("seed", range(3))
async def test_lines_and_summaries_add_up_to_sockets(seed: int, mock_clock: MockClock) -> None:
    """Callers of every kind, in any order, over three minutes."""
    choice, mock_clock.rate = random.Random(seed), 1  # noqa: S311 (no secret)
    calls: Counter[str] = Counter()
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        where = api.address("http")
        kinds: dict[str, Callable[[Address], Awaitable[None]]] = {
            "probe": probe,
            "plaintext_refused": plaintext,
            "no_certificate": lambda where: call(where, None),
            "unknown_ca": lambda where: call(where, FORGED),
            "peer_refused": refuser,
            "policy_denied": lambda where: call(where, bed.authority.leaf("db")),
        }
        for _ in range(3):
            # As many kinds at once as there are, and of each enough to be folded.
            for name in choice.sample([*kinds] * 18, 6 * 18):
                await kinds[name](where)
                calls[name] += 1
            await wait_all_tasks_blocked()
            before = len(api.log.events("connection_summary"))
            mock_clock.jump(SECONDS)
            await wait_all_tasks_blocked()
            assert {line["reason"] for line in api.log.events("connection_summary")[before:]} == {
                "probe",
                "plaintext_refused",
                "no_certificate",
            }
        for _ in range(LINES + 2):
            await probe(where)
            calls["probe"] += 1
        assert await api.drained() == calls
        folded = sum(line["count"] for line in api.log.events("connection_summary"))
        assert api.node.metrics.folded == folded
        assert len(api.log.events("connection_summary")) == 3 * 3 + 1, "the last at the end of the drain"
        written = Counter(line["reason"] for line in api.log.connections)
        assert [written[name] for name in ("unknown_ca", "peer_refused", "policy_denied")] == [3 * 18] * 3
        assert [written[name] for name in ("probe", "plaintext_refused", "no_certificate")] == [
            4 * LINES,
            *[3 * LINES] * 2,
        ]
