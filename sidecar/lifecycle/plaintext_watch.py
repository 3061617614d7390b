"""Watches the callers of a sidecar's permissive ports: their names, their file, and the warnings before they are cut.

How it works. Connections only note an address (:mod:`sidecar.observe.plaintext`). This task does what takes time: it asks
the resolver for the name of each new address, one at a time and not for long; it writes the inventory into ``state_dir``,
whole, once a minute if it has changed, and at the end; and it says once a day, from a week before a port's last day, who
would be cut. The day is the wall clock's, so a machine that slept over it is told of it when it wakes.

A sidecar without ``state_dir`` (its certificate is in files) forgets its callers when it ends.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from datetime import date, datetime
from functools import partial
from pathlib import Path

import trio

from sidecar.config.permissive import SOON_DAYS
from sidecar.config.sidecar_yaml import CaIdentity, Config, Inbound
from sidecar.host.atomic import SECRET, NewFile, write_files
from sidecar.host.disk import Disk
from sidecar.observe.plaintext import RECENT_DAYS, Caller, callers_of, listed, recent
from sidecar.proxy.node import Node

FILE = "plaintext.json"
MAX_FILE = 256 * 1024
LOOK_SECONDS = 5.0
SAVE_SECONDS = 60.0
LOOK_UP_SECONDS = 2.0
NAMES_A_LOOK = 16


def file_of(config: Config) -> Path | None:
    """Where a sidecar's inventory is kept; None if it has no ``state_dir``."""
    return config.identity.state_dir / FILE if isinstance(config.identity, CaIdentity) else None


def kept_callers(path: Path) -> list[Caller]:
    """What a sidecar has kept; nothing if there is no such file. Raises :class:`OSError`, or :class:`ValueError` if it is
    anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError("it is too large")
    try:
        return callers_of(json.loads(data))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class PlaintextWatch:
    """Of one sidecar."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._file = file_of(node.config)
        self._disk = Disk()
        self._threads = trio.CapacityLimiter(1)  # a look-up that hangs keeps the next one from starting
        self._day: date | None = None
        self._saved, self._save_at = 0, 0.0
        self._failed = False

    @property
    def ports(self) -> list[Inbound]:
        """Those that are permissive by the file, whether their last day is over or not."""
        return [port for port in self._node.config.inbound if port.mode == "permissive"]

    async def run(self) -> None:
        """Runs until cancelled; returns at once if no port is permissive."""
        await self.read()
        self._tell_of_strict_ports()
        if not self.ports:
            return
        try:
            while True:
                await self.look()
                await trio.sleep(LOOK_SECONDS)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self.save()

    async def read(self) -> None:
        """Takes what an earlier run has kept."""
        if self._file is None:
            return
        try:
            self._node.callers.take_kept(await self._disk.run(partial(kept_callers, self._file)))
        except (OSError, ValueError) as error:
            self._warn("plaintext_forgotten", f"{self._file}: the callers of before cannot be read: {error}")

    async def look(self) -> None:
        """Looks once: at names, at the day, at what is to be written."""
        node = self._node
        await self._ask_for_names()
        if (today := node.clock().date()) != self._day:
            self._day = today
            node.callers.forget(node.clock())
            self._tell_daily(today)
        if trio.current_time() >= self._save_at:
            await self.save()

    async def save(self) -> None:
        """Writes the inventory if it has changed. A failure is logged once, until it succeeds."""
        changes = self._node.callers.changes
        if self._file is None or changes == self._saved:
            return
        self._save_at = trio.current_time() + SAVE_SECONDS
        content = json.dumps(self._node.callers.to_keep()).encode()
        try:
            await self._disk.run(partial(write_files, [NewFile(str(self._file), content, SECRET)]))
        except OSError as error:
            if not self._failed:
                self._warn("plaintext_forgotten", f"{self._file}: the callers cannot be kept: {error}; trying again")
            self._failed = True
        else:
            self._saved, self._failed = changes, False

    async def _ask_for_names(self) -> None:
        """Asks for the names of new addresses, until one takes too long, which keeps the name of before: the rest has its
        turn later."""
        for caller, _ in zip(self._node.callers.unnamed(), range(NAMES_A_LOOK), strict=False):
            if not self._threads.available_tokens:
                return  # the look-up before it hangs
            name = await self._name_of(caller.address)
            self._node.callers.name(caller, caller.name if name is None else name)

    async def _name_of(self, address: str) -> str | None:
        """What the resolver says; "" if it knows none, None if it does not answer in time."""
        ask = partial(socket.getnameinfo, (address, 0), socket.NI_NAMEREQD | socket.NI_NUMERICSERV)
        with trio.move_on_after(LOOK_UP_SECONDS):
            try:
                return (await trio.to_thread.run_sync(ask, limiter=self._threads, abandon_on_cancel=True))[0]
            except (OSError, ValueError):
                return ""
            except RuntimeError:  # no thread can be started
                return None
        return None

    # -- what is said --------------------------------------------------------------------------------------------------

    def _tell_daily(self, today: date) -> None:
        for port in self.ports:
            assert port.until is not None  # noqa: S101 (a permissive port has one)
            cut = self._node.callers.recent(port.port, self._node.clock())
            left = (port.until - today).days
            who = listed(cut) or f"nobody in the last {RECENT_DAYS} days"
            if left < 0:
                message = f"{port.port} took plaintext until {port.until}, and refuses it since; who spoke it: {who}"
                self._warn("permissive_over", f"{message}; write `mode: strict` there")
            elif left < SOON_DAYS:
                message = f"{port.port} takes plaintext until {port.until}; who is cut then: {who}"
                self._warn("permissive_ends_soon", message)

    def _tell_of_strict_ports(self) -> None:
        """A port that was permissive and has callers still is not made strict silently."""
        node, permissive = self._node, {port.port for port in self.ports}
        for name in dict.fromkeys(port.port for port in node.config.inbound):
            # One port may have several listeners, one of which takes plaintext.
            if name not in permissive and (cut := node.callers.recent(name, node.clock())):
                who = f"these spoke plaintext to it lately and are refused: {listed(cut)}"
                self._warn("strict_cuts_callers", f"{name} is strict now, and {who}")

    def _warn(self, event: str, message: str) -> None:
        self._node.log.warning(event, service=self._node.config.service, message=message)


def who_would_be_cut(config: Config, now: datetime) -> list[str]:
    """For `sidecar check`: who of the kept inventory is refused by this file, or would be if its ports were strict now, a
    sentence for each port."""
    if (path := file_of(config)) is None:
        return []
    try:
        kept = kept_callers(path)
    except OSError as error:
        return [f"{path}: who speaks plaintext cannot be read: {error.strerror or error}"]
    except ValueError as error:
        return [f"{path}: who speaks plaintext cannot be read: {error}"]
    permissive = {port.port for port in config.inbound if port.takes_plaintext(now)}
    found = []
    for name in dict.fromkeys(port.port for port in config.inbound):
        if cut := recent(kept, name, now):
            what = "would be refused if it were strict now" if name in permissive else "are refused, as it is strict"
            found.append(
                f"{config.path}: these spoke plaintext to {config.service}:{name} in the last {RECENT_DAYS} days and "
                f"{what}: {listed(cut)}"
            )
    return found
