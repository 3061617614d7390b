"""What keeps a call from arriving, and what a person must answer or do about it. Pure.

A service whose port nobody knows has no listener, and a call to it is refused without a line in any log. So where something
names such a service, its port is asked for: all of them in one message, because a wrong guess would look like a broken
application. Where nothing but an order of start names it, or nothing at all, it is said that nobody can reach it. Workers
and jobs are neither asked about nor mentioned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Edge, Mention
from sidecar.inject.ports import Port

_SHOWN = 3
_ORDER = {"depends_on", "links"}
_NONE = "or =none if it listens on none"


def require_ports(
    mentions: tuple[Mention, ...],
    edges: tuple[Edge, ...],
    ports: Mapping[str, tuple[Port, ...]],
    given: Collection[str],
) -> None:
    """Raises :class:`UsageError` if an app is called by its name and its port is unknown: a line for each, with where it is
    used. ``edges`` are those of the mesh."""
    unknown = {
        edge.callee: _where(edge.callee, mentions, edges)
        for edge in edges
        if not ports[edge.callee] and edge.callee not in given and _where(edge.callee, mentions, edges)
    }
    if unknown:
        flags = " ".join(f"--port {name}=…" for name in unknown)
        lines = [f"the ports of these services were not found: add {flags} (=none for a service that listens on none)"]
        raise UsageError("\n".join([*lines, *(f"{name}: called by {where}" for name, where in unknown.items())]))


def unreached(
    meshed: Collection[str],
    mentions: tuple[Mention, ...],
    edges: tuple[Edge, ...],
    ports: Mapping[str, tuple[Port, ...]],
    quiet: Collection[str],
    workers: Collection[str],
    *,
    observe: bool,
) -> Iterator[str]:
    """What nobody can reach, the most serious first. ``quiet`` are apps whose ports were answered for, workers, and those
    that serve UDP. ``workers``: those that were taken for such, of whose ports nobody said a word."""
    if not edges and not observe:
        yield (
            "no call between these services was found in the files, so every call will be refused: run `sidecar inject "
            "--observe`, which allows all calls for two weeks and shows them, or write rules in mesh/mesh.yaml"
        )
    called = {edge.callee for edge in edges}
    unnamed = []
    for name in sorted(meshed):
        near = [it for it in mentions if it.callee == name and it.caller in meshed]
        firm = [it for it in near if it.kind not in _ORDER]
        if not ports[name] and name not in quiet and near:
            callers = ", ".join(dict.fromkeys(it.caller for it in near))
            yield f"{name}: no port known, nobody can reach it; --port {name}=…, {_NONE} (named by {callers})"
        elif not ports[name] and name not in quiet:
            unnamed.append(name)
        elif firm and name not in called and ports[name] and not observe and edges:
            where = ", ".join(dict.fromkeys(it.where for it in firm[:_SHOWN]))
            yield f"{name}: named in {where}, but no file says who calls it, so nobody may: --observe shows who does"
    if unnamed:
        them = "them" if unnamed[1:] else "it"
        yield f"{', '.join(unnamed)}: no port known, nobody can reach {them}; --port {unnamed[0]}=…, {_NONE}"
    # Whoever observes expects that everything goes on. A port that is called and not known is the one thing that does not.
    portless = [name for name in sorted(meshed) if observe and name in workers and not ports[name]]
    if portless:
        them, it = ("them", "one") if portless[1:] else ("it", "it")
        yield (
            f"{', '.join(portless)}: no port known, so nobody can call {them}, also with --observe: --port "
            f"{portless[0]}=… if somebody calls {it}"
        )


def _where(name: str, mentions: tuple[Mention, ...], edges: tuple[Edge, ...]) -> str:
    """Where others name an app so that they must call it; empty if they only wait for it."""
    callers = {edge.caller for edge in edges if edge.callee == name}
    near = [it for it in mentions if it.callee == name and it.caller in callers]
    firm = [it for it in near if it.kind not in {*_ORDER, "shared"}]
    shown = [f"{it.caller} ({it.where})" for it in firm[:_SHOWN]]
    return ", ".join(dict.fromkeys(shown)) + (f" and in {len(firm) - _SHOWN} more places" if len(firm) > _SHOWN else "")
