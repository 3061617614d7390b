"""Run in a network namespace of its own: what a relay does when a host is gone, and when a program merely pauses.

The namespace's only interface is loopback; taking it down is the cable that somebody pulls. Prints one JSON object.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from contextlib import ExitStack

import trio

from sidecar.identity.reasons import Reason
from sidecar.relay import relay as relay_module
from sidecar.relay.duplex import Duplex, Ending
from sidecar.relay.relay import Relay
from sidecar.transport.tls_data import make_buffer
from tests.beds.patience import PATIENCE
from tests.beds.relay import Passthrough, drain, fill, tcp_pair
from tests.beds.relay import carry as carry_to_the_end

SILENCE = 1.0
_SIOCSIFFLAGS, _UP = 0x8914, 1


def set_loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP if up else 0))


def local_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A side on this host, which stays reachable."""
    here, there = socket.socketpair()
    for sock in (here, there):
        sock.setblocking(False)
        stack.enter_context(sock)
    return here, there


async def main() -> None:
    vars(relay_module).update(SILENCE_SECONDS=SILENCE, SWEEP_SECONDS=0.1, LOOKS=1)
    set_loopback(up=True)
    relay, outcomes = Relay(make_buffer), dict[str, Ending | Reason]()
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)

            gone = trio.Semaphore(0)

            async def carry(name: str, net: socket.socket, app: socket.socket) -> None:
                duplex = Duplex(Passthrough(), relay.buffers, tolerate_missing_close_notify=True)
                outcomes[name] = await carry_to_the_end(relay, duplex, net, app)
                gone.release()

            # A peer that does not read, with all buffers full, for several times as long as a dead host has.
            near, paused = stack.enter_context(tcp_pair(16 * 1024))
            near_app, app = local_pair(stack)
            nursery.start_soon(carry, "paused", near, near_app)
            sent, until = 0, trio.current_time() + 4 * SILENCE
            while trio.current_time() < until:
                sent += fill(app)
                await trio.sleep(0.05)
            alive = "paused" not in outcomes
            read = 0
            while alive and read < sent:
                read += len(drain(paused))
                await trio.sleep(0.01)

            # A request in flight to a peer, and an answer to an app, whose hosts are gone; and one that is idle.
            near_peer, _peer = stack.enter_context(tcp_pair())
            peers_app, caller = local_pair(stack)
            near_app_2, _app = stack.enter_context(tcp_pair())
            apps_peer, answerer = local_pair(stack)
            idle_near, _idle = stack.enter_context(tcp_pair())
            for name, net, inner in (
                ("peer", near_peer, peers_app),
                ("app", apps_peer, near_app_2),
                ("idle", idle_near, local_pair(stack)[0]),
            ):
                nursery.start_soon(carry, name, net, inner)
            await trio.sleep(0.1)
            set_loopback(up=False)
            caller.send(b"request")
            answerer.send(b"answer")
            with trio.move_on_after(PATIENCE / 2):
                await gone.acquire()
                await gone.acquire()
            said = {name: getattr(outcome, "detail", str(outcome)) for name, outcome in outcomes.items()}
            print(json.dumps({"alive": alive, "lost": sent - read, "outcomes": said}))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
