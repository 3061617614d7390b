"""How `sidecar verify` asks a running sidecar: over its Unix socket, or by a command in its container. I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from sidecar.observe import probe

SECONDS = 10.0
AT_ONCE = 8


class Door(Protocol):
    """One sidecar that can be asked. Each answers a JSON object; one with ``error`` if it does not answer, or refuses."""

    def seen(self) -> dict[str, Any]: ...
    def expect(self, callers: list[str], strangers: list[str], seconds: float) -> dict[str, Any]: ...
    def probe_all(self, targets: Sequence[str], through_app: bool) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class SocketDoor:
    """By its Unix socket (``unix:/…``). ``service``: whose sidecar, where one socket is for several; "" if for one."""

    listen: str
    service: str = ""

    def seen(self) -> dict[str, Any]:
        query = f"?{urlencode({'service': self.service})}" if self.service else ""
        return self._ask(f"/probe/seen{query}")

    def expect(self, callers: list[str], strangers: list[str], seconds: float) -> dict[str, Any]:
        return self._ask("/probe/expect", {"callers": callers, "strangers": strangers, "seconds": seconds})

    def probe(self, to: str, through_app: bool) -> dict[str, Any]:
        return self._ask("/probe", {"to": to, "through_app": through_app})

    def probe_all(self, targets: Sequence[str], through_app: bool) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(lambda to: self.probe(to, through_app), targets))

    def _ask(self, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if body is not None and self.service:
            body["service"] = self.service
        sent = None if body is None else json.dumps(body).encode()
        return ask(self.listen, target, sent)


@dataclass(frozen=True, slots=True)
class CommandDoor:
    """By `sidecar probe` in its container. ``run`` runs a command there, with this on its stdin, and returns what it prints;
    it raises OSError or ValueError if that fails."""

    run: Callable[[list[str], str], str]

    def seen(self) -> dict[str, Any]:
        return self._ask("/probe/seen", [""])[0]

    def expect(self, callers: list[str], strangers: list[str], seconds: float) -> dict[str, Any]:
        body = json.dumps({"callers": callers, "strangers": strangers, "seconds": seconds})
        return self._ask("/probe/expect", [body])[0]

    def probe_all(self, targets: Sequence[str], through_app: bool) -> list[dict[str, Any]]:
        return self._ask("/probe", [json.dumps({"to": to, "through_app": through_app}) for to in targets])

    def _ask(self, target: str, bodies: list[str]) -> list[dict[str, Any]]:
        """Asks all in one process, a line each: to start one in a container takes longer than all else."""
        try:
            told = self.run(["sidecar", "probe", "--raw", target], "\n".join(bodies)).splitlines()
            found = [_object(line) for line in told]
        except (OSError, ValueError) as fault:
            return [{"error": (str(fault).splitlines() or [type(fault).__name__])[-1]}] * len(bodies)
        return found if len(found) == len(bodies) else [{"error": "it does not answer each question"}] * len(bodies)


def ask_lines(listen: str, target: str, text: str) -> str:
    """The other end of that, in the container: a POST of each line of ``text``, or a GET if there is none."""
    bodies: list[bytes | None] = [line.encode() for line in text.splitlines() if line] or [None]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return "\n".join(json.dumps(one) for one in threads.map(lambda body: ask(listen, target, body), bodies))


def ask(listen: str, target: str, sent: bytes | None = None) -> dict[str, Any]:
    """What a sidecar answers on its socket."""
    try:
        status, body = probe.ask(listen, target, sent, SECONDS)
        found = _object(body)
    except (OSError, ValueError) as fault:
        return {"error": str(fault) or type(fault).__name__}
    if status == 200:
        return found
    return {"error": str(found.get("message", f"HTTP {status}"))}


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError as fault:  # its words differ from one Python to another
        raise ValueError("what answers there is nested too deeply for a sidecar") from fault
    if not isinstance(found, dict):
        raise ValueError("what answers there is not a sidecar")  # noqa: TRY004 (as json.loads)
    return found
