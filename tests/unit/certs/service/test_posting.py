"""Posting: each alarm once, whole, to the URL in force; a receiver that fails delays nothing and loses nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trio

from certs.service import posting
from certs.service.posting import MOST_WAITING, Posting, PostingError, post
from sidecar.observe.logs import Log
from sidecar.policy.alarm_url import parse_alarm_url
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE


class Receiver:
    """A small HTTP server. ``status``: what it answers; ``got``: what it was posted, path and JSON."""

    def __init__(self) -> None:
        self.status = 204
        self.got: list[tuple[str, Any]] = []
        self.url = ""


@contextmanager
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/json"
            found.got.append((self.path, json.loads(body)))
            self.send_response(found.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/alarms?who=mesh"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Site:
    def __init__(self, url: str | None) -> None:
        self.url = url
        self.log = LogSink()
        self.posting = Posting(lambda: self.url, Log(self.log, "json"))

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]


@asynccontextmanager
async def running(url: str | None) -> AsyncIterator[Site]:
    site = Site(url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.posting.run)
        yield site
        nursery.cancel_scope.cancel()


async def until_got(there: Receiver, number: int) -> None:
    with trio.fail_after(PATIENCE):
        while len(there.got) < number:  # noqa: ASYNC110 (a thread fills it)
            await trio.sleep(0.01)


async def test_an_alarm_is_posted_whole() -> None:
    with receiver() as there:
        async with running(there.url) as site:
            site.posting.put("1", {"event": "mitm_suspected", "message": "\u00fc\n"})
            await until_got(there, 1)
            assert there.got == [("/alarms?who=mesh", {"event": "mitm_suspected", "message": "\u00fc\n"})]
            await trio.sleep(0.05)
            assert len(there.got) == 1
            assert site.events == []


@pytest.mark.parametrize("status", [500, 404, 302, 199])
async def test_what_is_not_taken_is_tried_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "BACKOFF", (0.01, 0.02))
    with receiver() as there:
        there.status = status
        async with running(there.url) as site:
            site.posting.put("1", {"n": 1})
            await until_got(there, 3)
            assert {path for path, _ in there.got} == {"/alarms?who=mesh"}, "no redirect is followed"
            there.status = 200
            await site.log.until(lambda: site.events == ["alarm_not_posted", "alarm_posted"])
            assert f"it answered with status {status}" in site.log.lines[0]["message"]


async def test_a_receiver_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "BACKOFF", (0.01, 0.02))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    async with running(nobody) as site:
        site.posting.put("1", {"n": 1})
        await site.log.until(lambda: "alarm_not_posted" in site.events)
        with receiver() as there:
            site.url = there.url  # mesh.yaml has changed
            await until_got(there, 1)


async def test_a_repeat_takes_the_place_of_what_waits() -> None:
    with receiver() as there:
        site = Site(there.url)
        for number in range(3):
            site.posting.put("1", {"n": number})
        site.posting.put("2", {"n": 9})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.posting.run)
            await until_got(there, 2)
            nursery.cancel_scope.cancel()
        assert [body for _, body in there.got] == [{"n": 2}, {"n": 9}]


async def test_the_queue_is_bounded_and_counts_what_it_lost() -> None:
    site = Site("http://127.0.0.1:1/")
    for number in range(MOST_WAITING + 5):
        site.posting.put(str(number), {})
    assert site.posting.lost == 5
    assert next(iter(site.posting._waiting)) == "5"


async def test_without_a_url_nothing_waits() -> None:
    async with running(None) as site:
        site.posting.put("1", {})
        await trio.testing.wait_all_tasks_blocked()
        assert not site.posting._waiting
        with receiver() as there:
            site.url = there.url
            site.posting.put("2", {"n": 2})
            await until_got(there, 1)
            assert there.got[0][1] == {"n": 2}


async def test_a_url_that_is_taken_away_ends_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "BACKOFF", (0.01, 0.02))
    async with running("http://127.0.0.1:1/") as site:
        site.posting.put("1", {})
        await site.log.until(lambda: "alarm_not_posted" in site.events)
        site.url = None
        with trio.fail_after(PATIENCE):
            while site.posting._waiting:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_receiver_that_never_answers_holds_up_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with running(f"http://127.0.0.1:{silent.getsockname()[1]}/") as site:
            site.posting.put("1", {})
            await site.log.until(lambda: "alarm_not_posted" in site.events)


def test_plain_http_goes_to_no_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the name says: the address that was connected to counts."""
    with receiver() as there:
        monkeypatch.setattr(posting, "is_near", lambda _ip: False)
        with pytest.raises(PostingError, match="no private address"):
            post(parse_alarm_url(there.url), b"{}")
        assert there.got == []


def test_an_unverified_https_server_gets_nothing() -> None:
    with receiver() as there, pytest.raises(PostingError):
        post(parse_alarm_url(there.url.replace("http:", "https:")), b"{}")
    assert there.got == []


async def test_a_machine_without_a_thread_left_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "BACKOFF", (0.01, 0.02))
    real, left = trio.to_thread.run_sync, [1]

    async def none_left(*arguments: Any, **options: Any) -> Any:
        if left:
            left.pop()
            raise RuntimeError("can't start new thread")
        return await real(*arguments, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", none_left)
    with receiver() as there:
        async with running(there.url) as site:
            site.posting.put("1", {"id": "1"})
            await until_got(there, 1)
            assert site.events[0] == "alarm_not_posted"
