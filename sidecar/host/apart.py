"""A large ``mesh.yaml`` is parsed by a process of its own, at a low priority, beside the program that goes on.

How this works. Python runs one thread at a time. So a parser in a thread, 0.7 s for 3,000 rules and 2.3 s for 10,000,
takes turns with the loop that moves everybody's bytes, and where others want the same core, each turn is a long wait. A
child process has its own interpreter, and the system gives it what nobody else wants. It gets the text, and no secret; it
answers with the finished :class:`~sidecar.policy.mesh.Mesh`, pickled: bytes of our own program, over a pipe that nobody
else holds. It comes in pieces: what is unpickled in one call holds up every other thread, 40 ms for 3,000 rules.

A child that cannot be started, fails, or is not done after :data:`PATIENCE` seconds changes nothing but the time: then the
text is parsed here.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from types import MappingProxyType
from typing import Any

from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh, parse_mesh

LARGE = 32 * 1024
"""Characters of a text that takes longer to parse (0.1 s) than a child to start."""

PIECE = 64
"""Rules, or services: unpickled in 1 ms."""

NICE, PATIENCE = 5, 10.0
"""It leaves the core to those who serve, and yet a policy is in force within seconds on a machine that has none to spare."""

_CHILD = "import sys; sys.path[:] = {path!r}; from sidecar.host.apart import parse; parse({filename!r})"


def parse_apart(text: str, filename: str) -> Mesh:
    """What :func:`~sidecar.policy.mesh.parse_mesh` returns and raises. It waits: call it in a thread."""
    answer = _ask(text, filename) if len(text) >= LARGE else None
    if answer is None:
        return parse_mesh(text, filename)
    if isinstance(answer, Mesh):
        return answer
    raise UsageError(answer)


def _ask(text: str, filename: str) -> Mesh | str | None:
    """The child's mesh, or the mistakes that it found. None if it did not answer."""
    code = _CHILD.format(path=sys.path, filename=filename)
    try:
        # Isolated (-I): it takes no module from where it is started, and nothing from the environment.
        done = subprocess.run(  # noqa: S603 (our own interpreter, and our own code)
            [sys.executable, "-I", "-c", code],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
        )
        unpickler = pickle.Unpickler(io.BytesIO(done.stdout))  # noqa: S301 (see above)
        while isinstance(answer := unpickler.load(), tuple):
            pass  # the mesh refers to it; and other threads have their turn
    except Exception:  # half an answer may raise anything; whatever happened to the child, the text can be parsed here
        return None
    return answer if isinstance(answer, Mesh | str) else None


def parse(filename: str) -> None:
    """The child: parses its input, and writes the mesh, or the text of all mistakes, to its output."""
    os.nice(NICE)
    text = sys.stdin.buffer.read().decode()
    answer: Mesh | str
    try:
        answer = parse_mesh(text, filename)
    except UsageError as error:
        answer = str(error)
    pickler = _Pickler(sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
    if isinstance(answer, Mesh):
        for parts in (answer.rules, tuple(answer.services.values())):
            for begin in range(0, len(parts), PIECE):
                pickler.dump(parts[begin : begin + PIECE])
    pickler.dump(answer)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (_read_only, (dict(value),)) if isinstance(value, MappingProxyType) else NotImplemented


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)
