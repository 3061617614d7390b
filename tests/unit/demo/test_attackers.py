"""The demo's tap: forwards every byte both ways, and flips exactly one bit, only if told."""

from __future__ import annotations

import ssl  # noqa: TID251 (a server for the stranger)
from functools import partial

import pytest
import trio

from sidecar.demo.attackers import Tap, stranger
from sidecar.demo.stage import free_ports
from tests.beds.certificates import Authority
from tests.beds.patience import PATIENCE

PATTERN = bytes(range(256)) * 400


async def through_a_tap(flip_after: int | None) -> tuple[bytes, Tap]:
    """What a caller gets through a tap from a service that sends a pattern."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(PATTERN)
        await stream.send_eof()

    port, target = free_ports(2)
    tap = Tap(port, target)
    tap.flip_after = flip_after
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve, target, host="127.0.0.1"))
        await nursery.start(tap.run)
        got = b""
        with trio.fail_after(PATIENCE):
            async with await trio.open_tcp_stream("127.0.0.1", port) as caller:
                await caller.send_all(b"hello")
                async for data in caller:
                    got += data
        nursery.cancel_scope.cancel()
    return got, tap


async def test_a_tap_forwards_and_keeps_what_it_saw() -> None:
    got, tap = await through_a_tap(None)
    assert got == PATTERN
    assert b"hello" in tap.seen
    assert not tap.flipped


async def test_a_tap_flips_one_bit_when_told() -> None:
    got, tap = await through_a_tap(1000)
    assert tap.flipped
    assert len(got) == len(PATTERN)
    assert sum((one ^ other).bit_count() for one, other in zip(got, PATTERN, strict=True)) == 1


@pytest.mark.parametrize("answers", [True, False])
async def test_a_stranger_tells_an_answer_from_none(tmp_path_factory: pytest.TempPathFactory, answers: bool) -> None:
    keys = Authority().leaf("web").write(tmp_path_factory.mktemp("keys"))

    async def plaintext(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "certificate.pem", keys / "key.pem")

    async def answer(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        await tls.receive_some()
        await tls.send_all(b"here you are")

    (port,) = free_ports(1)
    handler = answer if answers else plaintext
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, handler, port, host="127.0.0.1"))
        assert await trio.to_thread.run_sync(stranger, port, keys) == (b"here you are" if answers else None)
        nursery.cancel_scope.cancel()
