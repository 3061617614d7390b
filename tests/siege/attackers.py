"""One process of strangers: ``python -m tests.siege.attackers``, told what to do by its first line of input.

How it works. The rig starts a few of these, sends each a list of :class:`Field` as JSON, one a kind, and then ``go`` and
``stop`` in turn, once a flood. After each ``stop`` everything is closed, and a line of JSON says how often each was done.
Each kind keeps to a schedule of its own (:meth:`Siege.paced`), whatever the other side does. Connections are counted when
they are called, records when they are on their way: what the other side then makes of them is its own doing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from certs.protocol.wire import ALPN, BUNDLE_PATH
from sidecar.host.process import raise_descriptor_limit
from sidecar.transport import sockets
from tests.attacks.records import DATA, KeyLog, Writer, old_client_hello
from tests.beds.certificates import Authority, Credential, key_pair
from tests.beds.impostor import always, false_ca
from tests.beds.mesh import Foreigner
from tests.siege.kinds import KINDS

Where = tuple[str, int]

CATCH_UP = 50
"""How far behind its schedule an attacker catches up; more is left out, and missing from its rate."""

HELD = 15_000
EXPECTED = (OSError, EOFError, SSL.Error, trio.ClosedResourceError, trio.BusyResourceError)
"""How it ends for attackers."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closed by a reset, so that no port of ours stays in TIME_WAIT."""


@dataclass(frozen=True, slots=True)
class Field:
    """What is attacked, and with what. ``many``: from an address of 127.0.0.0/8 of its own for each connection; else from
    the honest callers'. ``peer`` and ``revoked``: directories with the certificate of an authorised and of a revoked
    identity. ``impostor``: where the impostor listens."""

    kind: str
    many: bool
    api: Where
    ca: Where
    admins: tuple[Where, ...]
    peer: str
    revoked: str
    impostor: Where

    @classmethod
    def of(cls, told: dict[str, Any]) -> Field:
        """From what :func:`dataclasses.asdict` made, by way of JSON."""
        where = {name: tuple(told[name]) for name in ("api", "ca", "impostor")}
        return cls(**{**told, **where, "admins": tuple(map(tuple, told["admins"]))})


class Siege:
    """What an attack works with: its pace, its count, and its sockets, which are closed after each flood."""

    def __init__(self, field: Field, nursery: trio.Nursery) -> None:
        self.field = field
        self.kind = KINDS[field.kind]
        self.nursery = nursery
        self.done = 0
        self.held: dict[socket.socket, None] = {}
        self._unsent: deque[tuple[socket.socket, bytes]] = deque()

    async def paced(self, rate: float | None = None) -> AsyncIterator[int]:
        """Yields at each time that the schedule has."""
        every = 1 / (rate or self.kind.rate)
        due = trio.current_time()
        for number in itertools.count():
            await trio.sleep_until(due)
            yield number
            due = max(due + every, trio.current_time() - CATCH_UP * every)

    def call(self, where: Where, first: bytes = b"") -> socket.socket | None:
        """A connection on its way, held until the flood's end or until somebody drops it; None if it cannot be made.
        ``first`` is sent at once if it is there already, as it mostly is on loopback, or else with one of the next calls."""
        sock = socket.socket()
        self.held[sock] = None
        while len(self.held) > HELD:
            self.drop(next(iter(self.held)))
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if self.field.many:
                # The port is chosen with the address called, so the source addresses do not run out of ports (ip(7)).
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
                sock.bind((somewhere(), 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(where)
        except OSError:
            self.drop(sock)
            return None
        if first:
            self._unsent.append((sock, first))
        for _ in range(min(len(self._unsent), 10)):
            self._try_to_send(*self._unsent.popleft())
        return sock

    def _try_to_send(self, sock: socket.socket, first: bytes) -> None:
        try:
            if sock in self.held:
                sock.send(first)
        except BlockingIOError:
            self._unsent.append((sock, first))
        except OSError:
            self.drop(sock)

    async def called(self, where: Where) -> socket.socket | None:
        """The same, once it is there."""
        if (sock := self.call(where)) is not None:
            await trio.lowlevel.wait_writable(sock)
        return sock

    def start(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """In the background. That the other side ends it is what attackers expect."""

        async def tolerant() -> None:
            try:
                await task(*arguments)
            except* EXPECTED:
                pass

        self.nursery.start_soon(tolerant)

    def drop(self, sock: socket.socket) -> None:
        if self.held.pop(sock, 0) is None:
            trio.lowlevel.notify_closing(sock)
            sock.close()

    def close(self) -> None:
        for sock in list(self.held):
            self.drop(sock)


def somewhere() -> str:
    """An address of loopback that nobody else uses."""
    return f"127.{random.randint(16, 250)}.{random.randint(0, 255)}.{random.randint(1, 254)}"  # noqa: S311


# -- strangers ---------------------------------------------------------------------------------------------------------


def hello() -> bytes:
    """A whole ClientHello."""
    connection: Any = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    connection.set_connect_state()
    connection.set_alpn_protos([b"mesh/1/http"])
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    return bytes(connection.bio_read(65536))


async def hold(siege: Siege, where: tuple[Where, ...], firsts: tuple[bytes, ...]) -> None:
    """Connections that nobody looks at again: cheap for those who attack."""
    async for number in siege.paced():
        siege.call(where[number % len(where)], firsts[number // len(where) % len(firsts)])
        siege.done += 1


async def half_open(siege: Siege) -> None:
    whole = hello()
    await hold(siege, (siege.field.api,), (whole[: len(whole) // 2], whole[:3]))


async def idle(siege: Siege) -> None:
    await hold(siege, (siege.field.api,), (b"",))


async def unanswered(siege: Siege) -> None:
    await hold(siege, (siege.field.api,), (hello(),))


async def ca_idle(siege: Siege) -> None:
    await hold(siege, (siege.field.ca,), (b"", hello()[:100], hello()))


async def admin_idle(siege: Siege) -> None:
    await hold(siege, siege.field.admins, (b"", b"GET /healthz HTTP/1.1\r\n"))


async def garbage(siege: Siege) -> None:
    words = (
        os.urandom(600),
        b"GET / HTTP/1.1\r\nHost: api\r\n\r\n",
        old_client_hello(b"\x03\x03"),
        b"\x16\x03\x01\x3f\xff",
    )
    await hold(siege, (siege.field.api, siege.field.ca), words)


WAVE_SECONDS = 3.0


async def mass_ending(siege: Siege) -> None:
    """They come one after the other and go at the same moment: all their ends are due in one turn of a loop."""
    wave = int(siege.kind.rate * WAVE_SECONDS)
    first = hello()[:50]
    async for number in siege.paced():
        if number % wave == wave - 1:
            siege.close()
        siege.call(siege.field.api, first)
        siege.done += 1


# -- with a certificate of their own -----------------------------------------------------------------------------------


class Caller(Foreigner):
    """A TLS client that shares its OpenSSL context with others: a certificate of 90 KB is parsed once."""

    def __init__(self, sock: socket.socket, context: SSL.Context, alpn: bytes = b"mesh/1/http") -> None:
        self.sock = sock
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.tls.set_alpn_protos([alpn])
        self.alert = None


def context_of(credential: Credential) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(credential.chain[0])
    for issuer in credential.chain[1:]:
        context.add_extra_chain_cert(issuer)
    context.use_privatekey(credential.key)
    return context


def large(size: int) -> Credential:
    """A certificate of a stranger's, of about so many bytes: all names."""
    names = [f"n{number:05}.{'x' * 20}.example" for number in range(size // 37)]
    return Authority().leaf("web", dns=names)


async def show(siege: Siege, where: Where, context: SSL.Context, alpn: bytes = b"mesh/1/http") -> None:
    """One handshake with it, up to the refusal."""
    sock = await siege.called(where)
    if sock is None:
        return
    try:
        caller = Caller(sock, context, alpn)
        with contextlib.suppress(SSL.Error):
            await caller.handshake()  # it returns once the certificate is on its way
            await caller.receive()
    finally:
        siege.drop(sock)


async def shown(siege: Siege, where: Where, size: int, alpn: bytes = b"mesh/1/http") -> None:
    context = context_of(large(size))
    async for _ in siege.paced():
        siege.start(show, siege, where, context, alpn)
        siege.done += 1


async def huge_certificate(siege: Siege) -> None:
    await shown(siege, siege.field.api, 90_000)


async def large_certificate(siege: Siege) -> None:
    await shown(siege, siege.field.api, 29_500)


async def ca_huge_certificate(siege: Siege) -> None:
    await shown(siege, siege.field.ca, 90_000, ALPN.encode())


async def ca_revoked(siege: Siege) -> None:
    context = context_of(saved(siege.field.revoked))

    async def one() -> None:
        sock = await siege.called(siege.field.ca)
        if sock is not None:
            try:
                caller = Caller(sock, context, ALPN.encode())
                await caller.handshake()
                while await sockets.receive(sock, 4096):
                    pass
            finally:
                siege.drop(sock)

    async for _ in siege.paced():
        siege.start(one)
        siege.done += 1


# -- with a good certificate -------------------------------------------------------------------------------------------


def saved(directory: str) -> Credential:
    """What the rig had issued."""
    chain = tuple(x509.load_pem_x509_certificates((Path(directory) / "certificate.pem").read_bytes()))
    key: Any = serialization.load_pem_private_key((Path(directory) / "key.pem").read_bytes(), None)
    return Credential(chain[0], key, chain)


PEERS = 6
"""Connections that an authorised attacker has at a time."""

CONNECT_SECONDS = 0.5
"""For those that were cut to be made again, before the next burst."""

BURST = 4_000
"""Records that are sent at once, made beforehand: what a receiver finds in its socket is much work in few bytes."""


async def admitted(siege: Siege, log: KeyLog | None = None) -> Foreigner | None:
    """A connection to the service, let in."""
    sock = await siege.called(siege.field.api)
    if sock is None:
        return None
    caller = Foreigner(sock, saved(siege.field.peer), configure=log.configure if log else lambda _context: None)
    await caller.handshake()
    await caller.verdict()
    return caller


async def records(siege: Siege, burst: Callable[[Writer], bytes]) -> None:
    """Bursts of records made by hand, on a few connections at the same moment. What comes back is read."""
    writers: dict[socket.socket, Writer] = {}

    async def connect() -> None:
        log = KeyLog()
        if (caller := await admitted(siege, log)) is None:
            return
        writers[caller.sock] = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
        try:
            while await sockets.receive(caller.sock, 65536):
                pass
        finally:
            del writers[caller.sock]
            siege.drop(caller.sock)

    async for _ in siege.paced(siege.kind.rate / BURST / PEERS):
        for _ in range(PEERS - len(writers)):
            siege.start(connect)
        await trio.sleep(CONNECT_SECONDS)
        for sock, data in [(sock, burst(writer)) for sock, writer in writers.items()]:
            siege.start(sockets.send_all, sock, data)
            siege.done += BURST


async def key_updates(siege: Siege) -> None:
    """The byte of data in time is what makes them a peer's right."""

    def burst(writer: Writer) -> bytes:
        return b"".join(
            writer.record(DATA, b"x") if number % 1000 == 0 else writer.key_update(wants_reply=True)
            for number in range(BURST)
        )

    await records(siege, burst)


async def tiny_records(siege: Siege) -> None:
    await records(siege, lambda writer: b"".join(writer.record(DATA, b"x") for _ in range(BURST)))


async def slow_readers(siege: Siege) -> None:
    """The service sends back what it gets: all buffers on both ways fill, and stay full."""

    async def one() -> None:
        if (caller := await admitted(siege)) is None:
            return
        while True:
            caller.tls.sendall(bytes(16 * 1024))
            await caller.flush()

    async for _ in siege.paced():
        siege.start(one)
        siege.done += 1


# -- in the CA's place -------------------------------------------------------------------------------------------------

JUNK = 700_000
"""Documents in the answer, 1.4 MB of them; none is a bundle."""


async def ca_impostor(siege: Siege) -> None:
    """Under a certificate that no root of the mesh has signed: what a caller then asks for is the bundle, unverified."""
    mesh = Authority("shop.internal")
    bundles = always(200, b'{"bundles": [' + b",".join([b"0"] * JUNK) + b"]}")

    async def answer(request: Any) -> Any:
        siege.done += 1
        return await bundles(request)

    async with false_ca(key_pair(mesh.leaf("mesh/ca")), port=siege.field.impostor[1]) as false:
        false.lies[BUNDLE_PATH] = answer
        await trio.sleep_forever()


ATTACKS: dict[str, Callable[[Siege], Awaitable[None]]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        half_open, idle, unanswered, mass_ending, garbage, huge_certificate, large_certificate, ca_huge_certificate,
        ca_idle, ca_revoked, admin_idle, key_updates, tiny_records, slow_readers, ca_impostor,
    )
}  # fmt: skip


# -- the process -------------------------------------------------------------------------------------------------------


async def flood(fields: Sequence[Field], stopped: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    """Attacks until ``stopped`` returns; how often each was done, in how long."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        sieges = [Siege(field, nursery) for field in fields]
        for siege in sieges:
            nursery.start_soon(ATTACKS[siege.kind.name], siege)
        await stopped()
        lasted = trio.current_time() - began
        done = {siege.kind.name: siege.done for siege in sieges}
        for siege in sieges:
            siege.close()
        nursery.cancel_scope.cancel()
    for siege in sieges:  # those that connected in the last moment
        siege.close()
    return {"done": done, "seconds": lasted}


async def main() -> None:
    raise_descriptor_limit()
    lines = read_lines(trio.lowlevel.FdStream(os.dup(0)))
    fields = [Field.of(told) for told in json.loads(await anext(lines))]
    hello()  # what is loaded at first use is loaded now
    print(json.dumps({"ready": len(fields)}), flush=True)
    async for line in lines:
        if line == "go":
            print(json.dumps(await flood(fields, lambda: anext(lines))), flush=True)


async def read_lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[str]:
    """Ends with its input: when the rig dies, so do its attackers."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


if __name__ == "__main__":
    sys.exit(trio.run(main))
