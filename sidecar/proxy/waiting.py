"""Listeners that stay closed until what is behind them has answered once since the start (``timeouts.wait``).

How this works. A listener that is open at once tells a lie to `wait-for-it`, `nc -z` and every other program that waits for
a service by connecting to it: they reach the sidecar, though the service's app is not up. So a closed listener has its
address, and refuses connections as the app itself would. Trials find out when to open it: for an inbound listener a
connection to the app, for an outbound one a connection through the mesh up to the verdict, since a callee's sidecar connects
to its app before it answers. No trial carries a byte of an app. It says that it is one, so that nobody takes it for a call:
the callee logs it as a probe, and `sidecar policy learn` learns nothing from it.

Only a target that cannot be reached is waited for (:func:`is_not_yet`). After any other refusal, and where our own policy
denies the call, the listener opens: the call is then refused by name, in the log. It also opens when the time is up.

Bounds. Trials are :data:`PAUSE_SECONDS` apart, or further if many listeners wait (:data:`TRIALS_A_SECOND`). A trial that
the callee refuses is logged there; so after these the pause doubles, up to :data:`LONGEST_PAUSE_SECONDS`. A callee that
waits for its own app refuses the connection itself, which costs nothing and is logged nowhere. An alarm ends the trials.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable

import trio

from sidecar.config.sidecar_yaml import Inbound, Outbound
from sidecar.identity.reasons import Reason, Refused, UsageError
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide
from sidecar.proxy.channels import PeerChannel
from sidecar.proxy.listener import Listener
from sidecar.proxy.node import Node
from sidecar.proxy.outbound import find_peer
from sidecar.relay.frames import Attribute
from sidecar.transport import dial, proxy_protocol, sockets
from sidecar.transport.verdict import RETRY_ELSEWHERE

PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 4.0
"""Where members elect a leader, as ZooKeeper's do, it listens to the others for ten seconds."""
TRIALS_A_SECOND = 20
"""The most trials of one sidecar, all its listeners together."""

Trial = Callable[[], Awaitable[Refused | None]]
"""Asks once. Returns why the target has not answered yet; None if it has, or if calls to it are to be refused by name."""

_NOT_THERE = frozenset({Reason.CONNECT_FAILED, Reason.HANDSHAKE_TIMEOUT})
_PEER_NOT_READY = frozenset({None, Reason.DRAINED.value, *RETRY_ELSEWHERE})


class Waiting:
    """The listeners of one sidecar that are still closed, each with the reason, as a sentence."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.reasons: dict[Listener, str] = {}

    async def open(self, listener: Listener, trial: Trial, seconds: float) -> None:
        """Opens a closed listener when a trial says so, or after ``seconds``."""
        node, service, began = self._node, self._node.config.service, self._node.time()
        self.reasons[listener] = f"{listener.where}: closed: what is behind it was not asked yet"
        waited = False
        with trio.move_on_after(seconds) as limit:
            pause = PAUSE_SECONDS
            while (refusal := await trial()) is not None:
                self.reasons[listener] = (
                    f"{listener.where}: closed, as its target has not answered yet: {refusal.detail}"
                )
                if not waited:
                    message = f"{self.reasons[listener]}; it opens when that answers, or after {seconds:g} s"
                    node.log.info("waiting", service=service, message=message)
                    waited = True
                if refusal.reason is Reason.PEER_REFUSED:
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                await trio.sleep(max(pause, len(self.reasons) / TRIALS_A_SECOND))
        await self._open(listener)
        at = f"{listener.where}: listens on {sockets.text(listener.address)}"
        if limit.cancelled_caught:
            message = (
                f"{at}, although its target has not answered within {seconds:g} s: connections are refused by name now"
            )
            node.log.warning("listening", service=service, message=message)
        elif waited:
            node.log.info("listening", service=service, message=f"{at} after {node.time() - began:.1f} s: it answers")
        del self.reasons[listener]

    async def _open(self, listener: Listener) -> None:
        """Opens it. While another process has its address, ``fault`` says so."""
        while listener.closed:
            try:
                listener.open()
            except UsageError as error:
                listener.fault = f"nothing reaches this listener now: {error}"
                await trio.sleep(PAUSE_SECONDS)
        listener.fault = None


async def ask_app(node: Node, port: Inbound, app: dial.Upstream) -> Refused | None:
    """The :data:`Trial` of an inbound listener: connects to our app. One that expects a header gets it."""
    failures: dict[dial.Endpoint, Refused] = {}
    try:
        found = await app.reach(node.config.timeouts.connect, failures)
        if found is None:
            return list(failures.values())[-1]
    except Refused as refusal:
        return refusal
    finally:
        failures.clear()  # a refusal's traceback holds this frame, and so the refusals: a cycle
    sock, endpoint = found
    endpoint.answered()
    if port.proxy_protocol != "off":
        with contextlib.suppress(OSError):
            sock.send(proxy_protocol.LOCAL)
    sock.close()
    return None


async def ask_callee(node: Node, route: Outbound, upstream: dial.Upstream) -> Refused | None:
    """The :data:`Trial` of an outbound listener: connects to the callee's app through its sidecar. Judged as a call is; a
    peer that may be an attacker raises the alarm."""
    snapshot = node.current
    if route.ambiguous_with or not decide(snapshot.mesh, snapshot.id, route.service, route.port, node.clock()).allowed:
        return None
    record = ConnectionRecord("outbound", node.config.service, route.port, node.time(), upstream=str(route.target))
    try:
        found = await find_peer(node, snapshot, route, upstream, record, lambda: None, Attribute.TRIAL)
    except Refused as refusal:
        return refusal if is_not_yet(refusal) else None
    await end_unused(found)
    return None


def is_not_yet(refusal: Refused) -> bool:
    """Whether a refusal means that the callee, its sidecar or its app is not up, rather than that we may not call it."""
    if refusal.reason is Reason.PEER_REFUSED:
        return refusal.peer_reason in _PEER_NOT_READY
    return refusal.reason in _NOT_THERE


async def end_unused(found: PeerChannel) -> None:
    """Ends a connection without a byte of an app: cleanly, so that the callee logs no fault; with a reset if the callee's
    app does not end it too."""
    try:
        found.carrier.close()
        with trio.move_on_after(sockets.LINGER_SECONDS):
            await sockets.send_all(found.sock, found.channel.take_all())
            found.sock.shutdown(socket.SHUT_WR)
            while await sockets.receive(found.sock, 65536):
                pass
    except OSError:
        pass  # the peer has ended it already
    finally:
        found.end()
