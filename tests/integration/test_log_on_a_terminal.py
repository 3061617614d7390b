"""On a terminal a sidecar's log is lines for eyes, with colours where something is wrong; piped it is JSON."""

from __future__ import annotations

import os
import pty
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.beds.processes import DEADLINE, SIDECAR, Shop, clean_environment, running


class Terminal:
    """A pseudo-terminal, and all that was written to it."""

    def __init__(self) -> None:
        self.reader, self.writer = pty.openpty()
        self.text = ""

    async def until(self, word: str) -> None:
        with trio.fail_after(DEADLINE):
            while word not in self.text:
                await trio.lowlevel.wait_readable(self.reader)
                self.text += os.read(self.reader, 65536).decode()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    yield one
    os.close(one.reader)
    os.close(one.writer)


def wiring(shop: Shop, log_format: str = "") -> Path:
    return shop.wiring("api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}}]\n{log_format}')


async def test_lines_for_eyes(shop: Shop, terminal: Terminal) -> None:
    command = [*SIDECAR, "run", str(wiring(shop))]
    process = await trio.lowlevel.open_process(command, stdout=terminal.writer, env=clean_environment())
    try:
        await terminal.until("started")
        found = re.search(r"http on 127\.0\.0\.1:(\d+)", terminal.text)
        assert found
        async with await trio.open_tcp_stream("127.0.0.1", int(found[1])) as stream:
            await stream.send_all(b"\x1b[2Jforged\r\n\r\n")
            await terminal.until("plaintext_refused")
        process.send_signal(signal.SIGTERM)
        await terminal.until("stopped")
        with trio.fail_after(DEADLINE):
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
    lines = terminal.text.replace("\r\n", "\n").splitlines()
    refusal = next(line for line in lines if "plaintext_refused" in line)
    assert refusal.startswith("\x1b[33m")
    assert "api:http <- 127.0.0.1:" in refusal
    for line in lines:
        plain = re.sub(r"\x1b\[\d+m", "", line)
        assert plain.isprintable()
        assert re.match(r"\d\d:\d\d:\d\d ", plain)
        assert "forged" not in plain


async def test_json_where_the_file_says_so_or_nobody_looks(shop: Shop) -> None:
    for log_format in ("", "log_format: json\n"):
        async with running(*SIDECAR, "run", wiring(shop, log_format)) as api:
            await api.event("started")
            api.signal(signal.SIGTERM)
            assert await api.ended() == 0
            assert {line["service"] for line in api.said} == {"api"}


async def test_lines_for_eyes_in_a_file_have_no_colours(shop: Shop) -> None:
    async with running(*SIDECAR, "run", wiring(shop, "log_format: console\n")) as api:
        await api.line("started")
        api.signal(signal.SIGTERM)
        assert await api.ended() == 0
        assert "\x1b" not in api.text
        assert not api.lines[0].startswith("{")
