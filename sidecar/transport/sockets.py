"""Non-blocking sockets under trio, and the ways to close one. Plain ``socket`` objects, which the relay uses directly."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import termios
from collections.abc import Sequence
from typing import Any

import trio

from sidecar.identity.reasons import UsageError
from sidecar.relay.strand import Ready, Steps, run

LINGER_SECONDS = 1.0
"""How long a side that we close may be silent before it loses what we sent last."""

ANY_DEVICE = "auto"
"""As the name of a network interface: the one that has the listener's address."""

SocketAddress = tuple[Any, ...]
"""Host, port and, for IPv6, flow label and scope."""

_BACKLOG = 1024
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_PORT_TRIES = 16
_IFNAMSIZ = 16
_SIOCGIFADDR = 0x8915  # netdevice(7); Linux
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


async def receive(sock: socket.socket, limit: int, *, first: bool = False) -> bytes:
    """At most ``limit`` bytes; b"" at the end of the stream. Raises OSError. A checkpoint also when bytes are there already,
    but at the ``first``: otherwise a flood from one peer would postpone its own deadline and delay the other tasks."""
    waited = first
    while True:
        try:
            data = sock.recv(limit)
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_readable(sock)
            waited = True
        else:
            if not waited:
                await trio.lowlevel.checkpoint()
            return data


def peek(sock: socket.socket, limit: int) -> bytes:
    """At most ``limit`` bytes of what has arrived; they stay unread. Does not wait: b"" if there is nothing, also at the end
    of the stream. Raises OSError if the connection was reset."""
    try:
        return sock.recv(limit, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return b""


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Sends all of ``data``. Raises OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_writable(sock)


def local_host(sock: socket.socket) -> str:
    """Our own address of a connection; empty if it is gone."""
    try:
        return str(sock.getsockname()[0])
    except OSError:
        return ""


async def connect(family: int, address: tuple[str | int, ...]) -> socket.socket:
    """A connected stream socket. Raises OSError; the caller sets the deadline."""
    sock, done = begin_to_connect(family, address)
    try:
        if not done:
            await trio.lowlevel.wait_writable(sock)
            end_to_connect(sock)
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        sock.close()
        raise
    return sock


def begin_to_connect(family: int, address: tuple[str | int, ...]) -> tuple[socket.socket, bool]:
    """A stream socket, and whether it is connected already; if not, :func:`end_to_connect` when it is writable. Raises
    OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        prepare(sock, remote=not is_loopback(address))
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            code = sock.connect_ex(address)  # to this machine it is done by now, which saves a tick of the loop
        if code not in (0, errno.EISCONN, errno.EINPROGRESS, errno.EALREADY):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock, code in (0, errno.EISCONN)


def end_to_connect(sock: socket.socket) -> None:
    """Raises OSError if the connection has failed."""
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


def prepare(sock: socket.socket, *, remote: bool = True) -> None:
    """Sets every connection's options: non-blocking, no delay of small writes, urgent bytes kept in the stream, and TCP
    keepalive, which finds the dead host of an idle peer in about 2 minutes (on Linux the relay finds it sooner): only if the
    other end is ``remote``. A listener's options are those of what it accepts (on Linux and BSD)."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes stay in the stream (RFC 6093 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not remote:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_loopback(address: tuple[str | int, ...]) -> bool:
    """Whether a socket address is certainly on this host."""
    host = str(address[0])
    return host.startswith("127.") or host == "::1"


def listen_all(
    where: str, host: str, port: int, device: str | None = None, *, closed: bool = False
) -> list[socket.socket]:
    """Listening sockets on every address of a host, all with the same port. ``where``: the configuration key, for errors.
    Raises :class:`UsageError`; then none is open. ``closed``: they have their addresses, but refuse every connection until
    :func:`start_listening`.

    ``localhost`` usually is 127.0.0.1 and ::1, and an app may connect to either. Addresses that this machine does not have
    are left out, as long as one is left: a container often has no IPv6. Whatever the resolver answers, ``localhost`` is
    never another address than a loopback one (RFC 6761 6.3): anyone could connect to that.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICSERV)
    except OSError as error:
        raise UsageError(f"{where}: cannot listen on {_shown(host, port)}: {error.strerror}") from error
    addresses: list[tuple[int, SocketAddress]] = list(dict.fromkeys((one[0], one[4]) for one in found))
    tries = _PORT_TRIES if port == 0 and len(addresses) > 1 else 1
    while True:
        try:
            return _listen_on(where, host, addresses, device, closed=closed)
        except OSError as error:
            tries -= 1
            # The port that the system chose for the first address may be in use on the second: it chooses again.
            if not tries or error.errno != errno.EADDRINUSE:
                raise UsageError(_cannot_listen(where, host, port, device, error)) from error


def _listen_on(
    where: str, host: str, addresses: Sequence[tuple[int, SocketAddress]], device: str | None, *, closed: bool
) -> list[socket.socket]:
    """A listening socket for each address that this machine has. Raises OSError, also if it has none."""
    opened: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as stack:
        for family, address in addresses:
            if opened:
                address = (address[0], opened[0].getsockname()[1], *address[2:])
            try:
                opened.append(stack.enter_context(_listening(family, address, device, closed=closed)))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
                continue
            # Asks the socket, not the resolver.
            bound, port = opened[-1].getsockname()[:2]
            if host.lower() == "localhost" and not plain_ip(bound).is_loopback:
                raise UsageError(
                    f"{where}: does not listen on {_shown(host, port)}: this machine resolves localhost to {bound}, to "
                    "which others can connect; correct /etc/hosts, or write 127.0.0.1"
                )
        if missing is not None and not opened:
            raise missing
        stack.pop_all()
    return opened


def listen(where: str, host: str, port: int, device: str | None = None) -> socket.socket:
    """A listening socket on an IP address. ``where``: the configuration key, for errors. Raises :class:`UsageError`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return _listening(found[0][0], found[0][4], device)
    except OSError as error:
        raise UsageError(_cannot_listen(where, host, port, device, error)) from error


def start_listening(where: str, sock: socket.socket) -> None:
    """Opens a listener that was ``closed``. Raises :class:`UsageError` if another process has opened the address."""
    try:
        sock.listen(_BACKLOG)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise UsageError(_cannot_listen(where, host, port, None, error)) from error


def _listening(family: int, address: SocketAddress, device: str | None, *, closed: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        if device is not None:
            bind_to_device(sock, device_of(str(address[0])) if device == ANY_DEVICE else device)
        prepare(sock)
        sock.bind(address)
        if not closed:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(where: str, host: str, port: int, device: str | None, error: OSError) -> str:
    hint = {
        errno.EADDRINUSE: "; another process listens there: stop it, or choose another port",
        errno.EADDRNOTAVAIL: "; no interface of this machine has that address",
        errno.EACCES: "; ports below 1024 need a privilege: choose a higher one",
        errno.ENODEV: f"; there is no network interface {device!r}",
    }.get(error.errno or 0, "")
    return f"{where}: cannot listen on {_shown(host, port)}: {error.strerror}{hint}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def device_of(address: str) -> str:
    """The interface that has an IPv4 address (Linux). In a container its name is not known beforehand. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def bind_to_device(sock: socket.socket, device: str) -> None:
    """Restricts a listener to one interface (Linux; needs no capability). Raises OSError on other systems."""
    option = getattr(socket, "SO_BINDTODEVICE", None)
    if option is None:
        raise OSError(errno.ENOPROTOOPT, "binding to a device works on Linux only")
    sock.setsockopt(socket.SOL_SOCKET, option, device.encode() + b"\0")


def is_on_device(listener: socket.socket, device: str) -> bool:
    """Whether a listener is bound to the interface that ``device`` names now. It is bound to the kernel's number of it: an
    interface that was made anew has another one, also under the old name (ENODEV)."""
    try:
        bound = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ).rstrip(b"\0").decode()
        return bound == (device_of(str(listener.getsockname()[0])) if device == ANY_DEVICE else device)
    except OSError:
        return False


def text(address: tuple[str | int, ...]) -> str:
    """``host:port``, with brackets for IPv6. IPv4-mapped IPv6 addresses (RFC 4291 2.5.5.2) are written as IPv4."""
    host = str(address[0])
    if ":" not in host:
        return f"{host}:{address[1]}"
    ip = plain_ip(host)
    return f"[{ip}]:{address[1]}" if ip.version == 6 else f"{ip}:{address[1]}"


def plain_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that a socket reports. ``::ffff:10.0.0.1`` becomes 10.0.0.1, so that an ``allow_from`` matches it."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


# -- ways to close, from clean to abrupt -------------------------------------------------------------------------------


class Closing(enum.Enum):
    """How a socket is to be closed."""

    CLEAN = enum.auto()
    LINGER = enum.auto()
    """Closed after the other side has read what we sent last (:func:`linger`)."""

    RESET = enum.auto()
    """Closed with a reset, after everything that we sent (:func:`reset`)."""

    CUT = enum.auto()
    """Closed with a reset at once (:func:`hard_close`)."""


async def linger(sock: socket.socket, longest: float = LINGER_SECONDS) -> None:
    """:func:`lingering`, in a task."""
    await run(lingering(sock, longest))


def lingering(sock: socket.socket, longest: float = LINGER_SECONDS) -> Steps[None]:
    """Ends our direction, then reads and discards until the other side closes too, is silent for :data:`LINGER_SECONDS`,
    or ``longest`` seconds have passed (without a task, that is noticed within a second more). Then closes.

    If a socket is closed while received bytes are unread, the kernel sends a reset (RFC 1122 4.2.2.13). At the other side
    that destroys what we sent last: an alert, a verdict, or an app's early answer to an unfinished upload.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        now = trio.current_time()
        until, silent = now + longest, now + LINGER_SECONDS
        while trio.current_time() < until:
            try:
                if not sock.recv(65536):
                    break
                silent = trio.current_time() + LINGER_SECONDS
                yield trio.lowlevel.checkpoint
            except (BlockingIOError, InterruptedError):
                if not (yield Ready(sock, until=min(until, silent))):
                    break
    except OSError:
        pass  # the connection is gone already
    finally:
        sock.close()


async def reset(sock: socket.socket) -> None:
    """Closes with a reset when the other side's kernel has acknowledged all we sent, or after :data:`LINGER_SECONDS`."""
    try:
        with trio.move_on_after(LINGER_SECONDS):
            while _unsent(sock):  # noqa: ASYNC110 (the kernel has no event for this)
                await trio.sleep(0.01)
    finally:
        hard_close(sock)


def hard_close(sock: socket.socket) -> None:
    """Closes with a reset at once. Does nothing if the socket is closed already."""
    if sock.fileno() < 0:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # the peer has reset it already
    finally:
        sock.close()


def _unsent(sock: socket.socket) -> int:
    """Bytes that the other side has not acknowledged (SIOCOUTQ, tcp(7)); 0 where the system does not report it."""
    try:
        size = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int.from_bytes(size, "little")
