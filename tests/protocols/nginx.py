"""nginx as a test's server: one process in the foreground, with everything that it writes in the test's directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.beds.processes import Running, free_port
from tests.protocols.programs import STREAM_MODULE, program, server


@asynccontextmanager
async def http(directory: Path, location: str, *, more: str = "") -> AsyncIterator[str]:
    """An origin that serves ``directory`` on a free port, and its address; ``location`` is what goes into ``location /``."""
    address = f"127.0.0.1:{free_port()}"
    body = f"access_log off; server {{ listen {address}; location / {{ {location} }} {more} }}"
    temporary = "".join(
        f"{name}_temp_path {directory}.tmp/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    async with nginx(directory, f"http {{ {temporary} {body} }}"):
        yield address


@asynccontextmanager
async def stream(directory: Path, body: str) -> AsyncIterator[Running]:
    """nginx as a TCP proxy; ``body`` is what goes into ``stream``."""
    async with nginx(directory, f"stream {{ {body} }}", f"load_module {STREAM_MODULE};") as process:
        yield process


@asynccontextmanager
async def nginx(directory: Path, body: str, head: str = "") -> AsyncIterator[Running]:
    """``directory`` is where relative paths lead; what nginx writes for itself goes beside it."""
    beside = directory.with_name(f"{directory.name}.tmp")
    beside.mkdir()
    file = beside / "nginx.conf"
    file.write_text(
        f"{head} daemon off; master_process off; pid {beside}/pid; error_log stderr notice; lock_file {beside}/lock;\n"
        f"events {{ worker_connections 2000; }}\n{body}\n"
    )
    command = (program("nginx"), "-e", "stderr", "-p", f"{directory}/", "-c", file)
    async with server(*command, ready="event method") as process:
        yield process
