"""The newest view, for all pages: each is told what changed since what it was told before, and nothing in between."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import trio
from trio.testing import MockClock

from sidecar.dashboard.board import STILL, STILL_SECONDS, Board, event


def parsed(data: bytes) -> tuple[str, Any]:
    name, text, *rest = data.decode().split("\n")
    assert rest == ["", ""]
    return name.removeprefix("event: "), json.loads(text.removeprefix("data: "))


async def told(events: AsyncGenerator[bytes, None]) -> tuple[str, Any]:
    with trio.fail_after(1):
        return parsed(await anext(events))


async def test_first_all_of_it_then_what_changes(autojump_clock: MockClock) -> None:
    board = Board()
    board.put({"services": {"a": 1}})
    async with aclosing(board.events()) as events:
        assert await told(events) == ("view", {"services": {"a": 1}})
        board.put({"services": {"a": 1, "b": 2}})
        assert await told(events) == ("change", {"services": {"set": {"b": 2}, "gone": []}})


async def test_who_is_slow_is_told_the_last_state_and_none_between(autojump_clock: MockClock) -> None:
    board = Board()
    board.put({"services": {}})
    async with aclosing(board.events()) as events:
        await told(events)
        for number in range(100):
            board.put({"services": {"a": number}})
        assert await told(events) == ("change", {"services": {"set": {"a": 99}, "gone": []}})


async def test_without_news_there_is_a_sign(autojump_clock: MockClock) -> None:
    board = Board()
    board.put({"services": {}})
    async with aclosing(board.events()) as events:
        await told(events)
        began = trio.current_time()
        assert await anext(events) == STILL
        assert trio.current_time() - began == STILL_SECONDS
        board.put({"services": {}})
        assert await anext(events) == STILL


async def test_pages_are_counted_while_they_are_there() -> None:
    board = Board()
    async with aclosing(board.events()) as events:
        await anext(events)
        assert board.pages == 1
    assert board.pages == 0


async def test_what_nobody_makes_anew_is_forgotten_while_nobody_looks() -> None:
    some: dict[bool, dict[str, Any]] = {True: {}, False: {"services": {}}}
    for forgets, kept in some.items():
        board = Board(forgets=forgets)
        async with aclosing(board.events()) as one, aclosing(board.events()) as other:
            await anext(one)
            await anext(other)
            assert board.is_looked_at()
            board.put({"services": {}})
            await other.aclose()
            assert board.view == {"services": {}}
        assert (board.view, board.is_looked_at()) == (kept, False)


def test_no_text_of_a_peer_begins_a_line_of_its_own() -> None:
    data = event("view", {"name": "x\n\nevent: view\ndata: {}\r\u2028\x00"})
    assert data.count(b"\n") == 3
    assert data.isascii()
    assert parsed(data)[1]["name"].startswith("x\n\nevent")
