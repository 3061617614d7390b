"""The defences, and how to run the product without one: the siege's own test. With any of them removed, the siege must fail.

A removal replaces one constant or function of a module before the program starts. It runs in the product's process, see
:mod:`tests.siege.launch`; so what it needs is imported there and then.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

DESCRIPTORS = 4096
"""The most that a process can have, here: the least hard limit that is usual. What strangers may hold follows from it."""


@dataclass(frozen=True, slots=True)
class Defence:
    """``kinds``: the attacks that must succeed without it. ``many``: from many addresses. ``floods``: how many it takes.
    ``descriptors``: so few that they are used up within a flood."""

    name: str
    what: str
    kinds: Sequence[str]
    remove: Callable[[], object]
    many: bool = True
    floods: int = 1
    descriptors: int = DESCRIPTORS


def replaced(module: str, name: str, value: Any) -> Callable[[], None]:
    """Another value for a name of a module, or for an attribute of a class in it (``Class.attribute``)."""

    def remove() -> None:
        place: Any = import_module(module)
        *way, last = name.split(".")
        for part in way:
            place = getattr(place, part)
        if not hasattr(place, last):
            raise AttributeError(f"{module}.{name} is not there: the table of defences must follow the code")
        setattr(place, last, value)

    return remove


def _at_once(*_arguments: object, **_named: object) -> bool:
    """Everybody passes, and nobody waits for a turn."""
    return True


def _log_written_at_once() -> None:
    log_queue: Any = import_module("sidecar.observe.log_queue")
    log_queue.output = log_queue._Direct


def _no_room_is_made(server: Any, connections: Any, sock: Any) -> None:
    """In the place of ``LocalServer._admit``: at the limit, the newcomer is closed."""
    local: Any = import_module("sidecar.observe.local")
    if len(server._open) >= local.MAX_CONNECTIONS:
        sock.close()
        return
    stream = local._PlainStream(sock)
    server._open[stream] = None
    connections.start_soon(server._connection, stream)


def _handshakes_kept() -> None:
    """Each gives an abandoned handshake's memory back: its end, the channel's, and Python's collector, which in a flood has
    enough to do to come soon."""
    for name in ("end_handshake", "free"):
        replaced("sidecar.transport.tls", f"TlsChannel.{name}", lambda _channel: None)()
    replaced("sidecar.host.process", "settle_memory", gc.disable)()


def _bundles_without_limits() -> None:
    """Neither by their number and size nor by the parts of an answer."""
    replaced("certs.protocol.client", "MAX_JSON_PARTS", 8 << 20)()
    for name in ("MAX_BUNDLES", "MAX_UNVERIFIED_BUNDLES_BYTES", "MAX_BUNDLES_BYTES"):
        replaced("certs.protocol.wire", name, 8 << 20)()


def _revoked_are_members() -> None:
    """Either alone stands in for the other: the revoked are strangers, and no identity has more than its share."""
    replaced("certs.service.api", "CaApi.in_good_standing", lambda _api, peer: peer)()
    replaced("certs.service.listener", "MAX_OF_ONE_IDENTITY", 1 << 20)()


def _strangers_unlimited() -> None:
    """Neither by their number nor when descriptors run out."""
    replaced("sidecar.transport.strangers", "Strangers.full", property(lambda _strangers: False))()
    replaced("sidecar.transport.strangers", "Strangers.cut_one", lambda _strangers, _now: math.inf)()


def _bursts_in_one_piece() -> None:
    """What pays for records without data stands in for what bounds a turn, and the other way round: a burst of KeyUpdates is
    cut, or it is taken in pieces."""
    replaced("sidecar.transport.tls_data", "MAX_READ_COST", 1 << 30)()
    replaced("sidecar.relay.duplex", "MAX_DATALESS_RECORDS", 1 << 30)()
    replaced("sidecar.relay.relay", "PUMP_SECONDS", 10.0)()
    replaced("sidecar.relay.relay", "PASS_SECONDS", 10.0)()
    replaced("sidecar.relay.relay", "MAX_PASS_SECONDS", 10.0)()


DEFENCES: Mapping[str, Defence] = {
    defence.name: defence
    for defence in (
        Defence("log-queue", "lines are written by a thread", ["log-stalled"], _log_written_at_once),
        Defence(
            "handshake-bytes",
            "32 KiB from one peer in a handshake",
            ["huge-certificate", "ca-huge-certificate"],
            replaced("sidecar.transport.tls", "MAX_HANDSHAKE_BYTES", 256 * 1024),
        ),
        Defence(
            "handshake-memory",
            "an abandoned handshake's memory is given back at once",
            ["half-open", "unanswered", "mass-ending"],
            _handshakes_kept,
            floods=3,
        ),
        Defence(
            "gate",
            "a few steps of handshakes for each turn of the loop",
            ["unanswered", "mass-ending"],
            replaced("sidecar.transport.gate", "Gate.passes", _at_once),
        ),
        Defence(
            "resolution-delay",
            "a name that is not resolved soon holds up no other",
            ["silent-resolver"],
            replaced("sidecar.transport.dial", "RESOLUTION_DELAY_SECONDS", 9.0),
        ),
        Defence(
            "strangers",
            "a budget for connections that nobody has judged",
            ["half-open", "idle", "mass-ending", "ca-idle"],
            _strangers_unlimited,
            descriptors=512,
        ),
        Defence(
            "ca-members",
            "a revoked identity is a stranger, and no identity has more than its share",
            ["ca-revoked"],
            _revoked_are_members,
            descriptors=256,
        ),
        Defence("bundle-limits", "64 bundles and 256 KiB of them", ["ca-impostor"], _bundles_without_limits),
        Defence(
            "bursts",
            "a burst of records is taken in pieces, and records without data are paid for by data",
            ["key-updates", "tiny-records"],
            _bursts_in_one_piece,
        ),
        Defence(
            "admin-room",
            "a health check closes the oldest silent connection",
            ["admin-idle"],
            replaced("sidecar.observe.local", "LocalServer._admit", _no_room_is_made),
        ),
    )
}
