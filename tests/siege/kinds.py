"""The kinds of attack: what each does, what it is counted in, and how often a second it must at least be done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Gang = Literal["sockets", "certificates", "records"]
"""Those who attack from one process: a burst of records takes long to make, and must not hold up those who connect."""


@dataclass(frozen=True, slots=True)
class Kind:
    """``rate``: what it aims at, in ``unit`` a second. ``least``: below it the run is invalid. ``by``: whose process does
    it; None is the rig itself, which does to files and pipes what nobody does from a socket."""

    name: str
    what: str
    unit: str
    rate: float
    least: float
    by: Gang | None = "sockets"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("half-open", "half a ClientHello at a service's port, held", "connections", 120, 80),
        Kind("idle", "silent connections at a service's port, held", "connections", 60, 40),
        Kind("unanswered", "whole ClientHellos, and no answer to the reply", "connections", 40, 20),
        Kind("mass-ending", "waves of half-open connections that end at the same moment", "connections", 150, 90),
        Kind("garbage", "random bytes, HTTP, TLS 1.2 at a service's port and the CA's", "connections", 40, 25),
        Kind("huge-certificate", "a certificate of 90 KB at a service's port", "certificates", 10, 6, "certificates"),
        Kind("large-certificate", "a certificate of 30 KB at a service's port", "certificates", 10, 6, "certificates"),
        Kind("ca-huge-certificate", "a certificate of 90 KB at the CA", "certificates", 10, 6, "certificates"),
        Kind("ca-idle", "silent and half-open connections at the CA, held", "connections", 60, 40),
        Kind("ca-revoked", "connections of a revoked identity at the CA, held", "connections", 60, 25, "certificates"),
        Kind("admin-idle", "silent connections at both admin ports, held", "connections", 40, 25),
        Kind("key-updates", "KeyUpdates of an authorised peer, data among them", "records", 4_000, 1_500, "records"),
        Kind("tiny-records", "records of one byte of an authorised peer", "records", 8_000, 3_000, "records"),
        Kind("slow-readers", "authorised peers that fill all buffers and read nothing", "connections", 4, 2, "records"),
        Kind(
            "ca-impostor",
            "in the CA's place, with bundles of 1.4 MB of junk",
            "answers",
            1,
            0.05,
            "certificates",
        ),
        Kind("log-stalled", "nobody reads the product's stdout", "seconds", 1, 0.8, None),
        Kind("files-hung", "mesh.yaml's place is taken by a FIFO, then given back", "swaps", 0.4, 0.1, None),
        Kind("big-mesh", "a mesh.yaml of 3,000 rules, saved again and again", "changes", 0.4, 0.1, None),
        Kind("silent-resolver", "calls while no resolver knows a second name of the peers", "calls", 4, 2, None),
    )
}
