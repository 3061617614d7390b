"""Posts alarms to the URL of mesh.yaml (`alarm: {url: …}`). Nothing waits for it, and nothing else depends on it.

How this works. Alarms wait in a queue, one place for each: a repeat takes the place of what waits. One at a time is posted,
as JSON, in a thread; a failure is tried again after a time that doubles, for as long as the alarm has its place. If the
queue is full the oldest gives way, and is counted. The URL is read at each attempt, so a changed mesh.yaml counts at once.

An https server is verified by the system's roots and its name, as a browser does it. Plain http is for loopback and private
addresses (:mod:`sidecar.policy.alarm_url`). No redirect is followed and no proxy is used. Of the answer the status alone is
read: 200 to 299 is success.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio

from sidecar.host.follow import ReportOnce
from sidecar.identity.spiffe import shown
from sidecar.observe.logs import Log
from sidecar.policy.alarm_url import AlarmUrl, is_near, parse_alarm_url

MOST_WAITING = 64
SECONDS = 10.0
"""For one attempt, its look-up included."""

BACKOFF = (0.5, 60.0)
"""Seconds after the first failure, and at most."""

_SUCCESS = range(200, 300)


class PostingError(Exception):
    """An alarm was not taken. The message says why."""


class Posting:
    """``url``: the one in force; None: alarms are posted nowhere. Start :meth:`run` in a nursery."""

    def __init__(self, url: Callable[[], str | None], log: Log) -> None:
        self.lost = 0
        self._url = url
        self._log = log
        self._waiting: dict[str, Mapping[str, Any]] = {}
        self._news = trio.Event()
        self._threads = trio.CapacityLimiter(2)  # one may hang in a look-up
        self._faults = ReportOnce[str](
            lambda _, message: log.warning("alarm_not_posted", message=message),
            lambda _: log.info("alarm_posted", message="alarms are posted again"),
        )

    def put(self, key: str, alarm: Mapping[str, Any]) -> None:
        """Has an alarm posted soon, in the place of an earlier one with the same key."""
        if self._url() is None:
            return
        self._waiting[key] = alarm
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        self._news.set()

    async def run(self) -> None:
        """Posts what waits, until cancelled."""
        failures = 0
        while True:
            if not self._waiting:
                self._news = trio.Event()
                await self._news.wait()
            key, alarm = next(iter(self._waiting.items()))
            if await self._posted(alarm):
                failures = 0
                if self._waiting.get(key) is alarm:
                    del self._waiting[key]
                continue
            await trio.sleep(min(BACKOFF[0] * 2**failures, BACKOFF[1]))
            failures = min(failures + 1, 16)

    async def _posted(self, alarm: Mapping[str, Any]) -> bool:
        """Whether it was taken, or is to go nowhere any more."""
        text = self._url()
        if text is None:
            self._waiting.clear()
            return True
        url, body = parse_alarm_url(text), json.dumps(alarm).encode()
        try:
            with trio.fail_after(SECONDS):
                await trio.to_thread.run_sync(partial(post, url, body), limiter=self._threads, abandon_on_cancel=True)
        except (PostingError, trio.TooSlowError, RuntimeError) as error:  # RuntimeError: the system has no thread left
            why = f"no answer within {SECONDS:g} s" if isinstance(error, trio.TooSlowError) else str(error)
            lost = f"; {self.lost} gave way to newer ones" if self.lost else ""
            self._faults.report("alarm", f"{url.address} does not take an alarm: {why}; trying again{lost}")
            return False
        self._faults.report("alarm", None)
        return True


def post(url: AlarmUrl, body: bytes) -> None:
    """Posts JSON. Blocks: to be called in a thread. Raises :class:`PostingError`."""
    import http.client  # loads the interpreter's own TLS, which nothing else here uses

    host, port = url.address.host, url.address.port
    kind = http.client.HTTPSConnection if url.is_secure else http.client.HTTPConnection  # the first verifies by default
    connection = kind(host, port, timeout=SECONDS)
    try:
        connection.connect()
        peer = connection.sock.getpeername()[0]
        if not url.is_secure and not is_near(peer):
            raise PostingError(f"{peer} is no private address, and plain http goes to no other; use https")
        headers = {"Content-Type": "application/json", "User-Agent": "mtls-sidecar"}
        connection.request("POST", url.target, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PostingError(
            shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)[1:-1]
        ) from error
    finally:
        connection.close()
    if status not in _SUCCESS:
        raise PostingError(f"it answered with status {status}")
