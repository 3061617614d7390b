"""An app that sends everything back: ``python -m tests.siege.echo CORE PORT``.

It is the service behind the sidecar. Idle, and on the product's core, it is the control process that stalls are measured
against.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial

import trio

READ_BYTES = 16 * 1024


async def echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


def main(core: str, port: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    trio.run(partial(trio.serve_tcp, echo, int(port), host="127.0.0.1", backlog=4096))


if __name__ == "__main__":
    main(*sys.argv[1:])
