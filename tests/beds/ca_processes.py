"""A CA that serves, as a process, and whoever asks it: callers by hand, sidecars from their files, and load between them.

A test reads as a transcript: ``site = CaSite.make(path)``, ``async with site.serves() as ca``, then
``caller = site.caller("web")``, ``await caller.enrol(token)``, ``await caller.renew()``.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from cryptography import x509

from certs.authority import authority
from certs.protocol import enrolment
from certs.protocol.addresses import Place
from certs.protocol.client import CaClient, CaDeniedError
from certs.protocol.enrolment import EnrolmentCredential, Kind
from certs.registrar import registrar
from certs.store import audit, store
from certs.store.store import Store
from sidecar.agent import accept
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import new_key
from sidecar.transport import sockets
from sidecar.transport.tls import Context, KeyPair
from tests import commands
from tests.beds.processes import (
    CERTS,
    DEADLINE,
    MESH,
    SIDECAR,
    Running,
    SidecarProcess,
    free_port,
    output,
    running,
)

TRUST_DOMAIN = "shop.internal"
CALLS_API = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
  job: {}
policy:
  - {from: [web, job], to: "api:http"}
"""
"""A mesh.yaml in which web and job call api."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class CaSite:
    """A directory with a CA (``ca/``), a ``mesh.yaml`` and sidecars' files. ``store``: the URL of another store than the
    one in the directory."""

    path: Path
    port: int
    store: str | None = None

    @classmethod
    def make(
        cls,
        path: Path,
        mesh: str = MESH,
        *,
        store: str | None = None,
        init: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> CaSite:
        """Made by ``certs init``, with more options and variables if need be."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "mesh.yaml").write_text(mesh)
        commands.ran("init", str(path / "ca"), "--trust-domain", TRUST_DOMAIN, *init, variables=variables)
        return cls(path, free_port(), store)

    @property
    def directory(self) -> Path:
        return self.path / "ca"

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return self.store or store.file_url(self.directory / authority.STORE)

    # -- the process ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serves(
        self, *options: str, port: int | None = None, before: Sequence[str] = ()
    ) -> AsyncIterator[Running]:
        """``certs serve``, once it has started. ``before``: what runs it, such as a shell with a limit."""
        listen = ("--mesh", str(self.path / "mesh.yaml"), "--listen", f"127.0.0.1:{port or self.port}")
        command = (
            *before,
            *CERTS,
            "serve",
            str(self.directory),
            *listen,
            "--log",
            "json",
            *self.store_option,
            *options,
        )
        async with running(*command) as program:
            await program.event("started")
            yield program

    @property
    def store_option(self) -> tuple[str, ...]:
        return () if self.store is None else ("--store", self.store)

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command about this CA."""
        return [*CERTS, name, *self.store_option, str(self.directory), *arguments]

    async def certs(
        self, name: str, *arguments: str, check: bool = True, variables: Mapping[str, str] | None = None
    ) -> str:
        """What a command prints, once it has ended."""
        return await output(*self.command(name, *arguments), check=check, variables=variables, cwd=self.path)

    # -- its store, looked at from outside -----------------------------------------------------------------------------

    def opened(self) -> contextlib.AbstractContextManager[Store]:
        return store.opened(self.url, clock=lambda: int(utc_now().timestamp()))

    def ask(self, question: Callable[[sa.Connection], _T]) -> _T:
        with self.opened() as found:
            return found.read(question)

    def faults(self) -> list[str]:
        """What is wrong with the audit log."""
        return self.ask(lambda connection: list(audit.faults(store.audit_entries(connection))))

    def issued(self) -> list[str]:
        """The certificates that the CA knows to have issued."""
        return self.ask(lambda connection: list(connection.execute(sa.select(store.issued.c.certificate)).scalars()))

    def make_credentials(self, *services: str, kind: Kind = "token") -> dict[str, EnrolmentCredential]:
        """Tokens or secrets as ``certs token`` makes them, many at once."""
        loaded = authority.load(self.directory, utc_now())
        made = {service: enrolment.make(kind, loaded.root_digest) for service in services}
        with self.opened() as found:
            for service, one in made.items():
                identity = authority.identity_of(loaded, service)
                found.write(partial(registrar.add_credential, credential=one, identity=identity))
        return made

    # -- who asks ------------------------------------------------------------------------------------------------------

    def roots(self) -> tuple[x509.Certificate, ...]:
        return tuple(x509.load_pem_x509_certificates((self.directory / authority.ROOT).read_bytes()))

    def caller(self, service: str, *, source: str | None = None, port: int | None = None) -> Caller:
        """Somebody who wants to be ``service``. ``source``: the address that it asks from, 127.x.y.z."""
        address = self.address if port is None else Address("127.0.0.1", port)
        client = CaClient(address, TRUST_DOMAIN, utc_now) if source is None else _Elsewhere(address, source)
        return Caller(service, client, self.roots())

    def wiring(self, service: str, body: str, *, enrolment: str | None = None, state: str | None = None) -> Path:
        """Writes the sidecar.yaml of a member; ``enrolment`` is the file with its token or secret."""
        path = self.path / f"{service}-{len(list(self.path.glob('*.yaml')))}.yaml"
        shown = "" if enrolment is None else f", enrolment: {enrolment}"
        identity = f'ca: "https://{self.address}", root: pinned.pem, state_dir: {state or "state-" + service}{shown}'
        path.write_text(f"service: {service}\nmesh: mesh.yaml\nidentity: {{{identity}}}\n{body}")
        pinned = self.path / "pinned.pem"
        if not pinned.exists():  # what sidecars were told at first stays what they were told
            pinned.write_bytes((self.directory / authority.ROOT).read_bytes())
        return path

    def agent(self, service: str, body: str) -> Path:
        """The sidecar.yaml of a service with an enrolment secret of its own."""
        return self.wiring(service, f"log_format: json\n{body}", enrolment=self.write_credential(service))

    def write_credential(self, service: str, kind: Kind = "secret") -> str:
        """A new token or secret in a file for its owner alone; returns the file's name."""
        name = f"{service}.{kind}"
        (self.path / name).unlink(missing_ok=True)
        with os.fdopen(os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{self.make_credentials(service, kind=kind)[service]}\n")
        return name


@dataclass
class Caller:
    """One service's key and certificate, and its way to the CA; it asks when told to."""

    service: str
    client: CaClient
    roots: tuple[x509.Certificate, ...]
    key: Any = field(default_factory=new_key)
    chain: tuple[x509.Certificate, ...] = ()

    async def enrol(self, shown: EnrolmentCredential) -> str:
        """The certificate for its key; the same key at each call."""
        await self.client.use(self.roots, Revocations())
        text = await self.client.enrol(self.service, str(shown), accept.csr_for(self.key))
        await self._is_now(text, self.key)
        return text.decode()

    async def renew(self) -> str:
        """The next certificate, for a fresh key."""
        key = new_key()
        text = await self.client.renew(accept.csr_for(key))
        await self._is_now(text, key)
        return text.decode()

    async def _is_now(self, text: bytes, key: Any) -> None:
        self.key, self.chain = key, tuple(x509.load_pem_x509_certificates(text))
        await self.client.use(self.keys, Revocations())

    @property
    def keys(self) -> KeyPair:
        return KeyPair(self.chain, self.key, self.roots)

    async def health(self) -> int:
        """The status that /healthz answers."""
        return (await self.client._request("GET", "/healthz", {}, b"", 1024)).status


class _Elsewhere(CaClient):
    """A client with an address of its own, as a container has one."""

    def __init__(self, address: Address, source: str) -> None:
        super().__init__(address, TRUST_DOMAIN, utc_now)
        self._source = source

    async def _attempt(self, place: Place, context: Context) -> Any:
        sock = socket.socket()
        try:
            sockets.prepare(sock)
            sock.bind((self._source, 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(place.address)
            await trio.lowlevel.wait_writable(sock)
        except BaseException:
            sock.close()
            raise
        return await self._secure(sock, place, context)


async def denial(asking: Any) -> CaDeniedError:
    """The CA's no."""
    try:
        answer = await asking
    except CaDeniedError as error:
        return error
    raise AssertionError(f"the CA said yes: {answer}")


# -- sidecars and load -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def member_process(file: Path, *, variables: Mapping[str, str] | None = None) -> AsyncIterator[SidecarProcess]:
    """``sidecar run`` on a member's file, once it serves."""
    variables = {"SIDECAR_LOG_FORMAT": "json", **(variables or {})}
    async with running(*SIDECAR, "run", file, variables=variables) as program:
        yield SidecarProcess(program, await program.event("started"))


@dataclass
class Mesh:
    """A CA, web's sidecar and api's, and where web's app calls api."""

    site: CaSite
    ca: Running
    web: SidecarProcess
    api: SidecarProcess

    @property
    def entry(self) -> Address:
        return Address(*self.web.address("api:http"))

    @property
    def programs(self) -> list[Running]:
        return [self.ca, self.web.program, self.api.program]


@asynccontextmanager
async def ca_mesh(path: Path, app: Address) -> AsyncIterator[Mesh]:
    """A whole mesh of processes, as a newcomer starts it. ``job`` may call api, too."""
    site = CaSite.make(path, CALLS_API)
    async with site.serves() as ca:
        file = site.agent("api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app}"}}]\n')
        async with member_process(file) as api:
            peers = f'peers: ["{api.at("http")}"]'
            file = site.agent("web", f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", {peers}}}]\n')
            async with member_process(file) as web:
                yield Mesh(site, ca, web, api)


@asynccontextmanager
async def echo_app() -> AsyncIterator[str]:
    """An app that sends everything back; yields its address."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, _echo, [listener])
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def _echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


@dataclass
class Load:
    """Connections one after the other, and transfers, of which one goes on at any time. ``failed`` says how."""

    address: tuple[str, int]
    connections: int = 0
    transfers: int = 0
    transferred: int = 0
    seconds: float = 1.5
    failed: list[str] = field(default_factory=list)
    stopped: trio.Event = field(default_factory=trio.Event)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def short(self) -> None:
        """One connection after the other, each with its bytes there and back and its clean end."""
        chance = random.Random(4)  # noqa: S311 (any bytes will do)
        while not self.stopped.is_set():
            sent = chance.randbytes(chance.randrange(1, 4000))
            try:
                with trio.fail_after(DEADLINE):
                    async with await trio.open_tcp_stream(*self.address) as stream:
                        await stream.send_all(sent)
                        await stream.send_eof()
                        got = b"".join([data async for data in stream])
                if got != sent:
                    self.failed.append(f"{len(got)} bytes of {len(sent)}")
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                self.failed.append(repr(error))
            self.connections += 1
            await trio.sleep(0.01)  # paced, as the transfer is
            self._news.unpark_all()

    async def long(self) -> None:
        """One transfer after the other, of :attr:`seconds` each. (Connections older than the mesh's ``max_age`` are cut when
        a root retires; a transfer that is shorter is not.)"""
        try:
            while not self.stopped.is_set():
                await self._transfer()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self.failed.append(f"the transfer: {error!r}")

    async def _transfer(self) -> None:
        end = trio.current_time() + self.seconds
        async with await trio.open_tcp_stream(*self.address) as stream:
            while not self.stopped.is_set() and trio.current_time() < end:
                block = self.transferred.to_bytes(8, "big") * 512
                await stream.send_all(block)
                got = b""
                with trio.fail_after(DEADLINE):
                    while len(got) < len(block):
                        data = await stream.receive_some(65536)
                        if not data:
                            break
                        got += data
                if got != block:
                    self.failed.append(f"the transfer was cut after {self.transferred} bytes")
                    self.stopped.set()
                    return
                self.transferred += len(block)
                await trio.sleep(0.01)  # paced: it is there all the time, and leaves the machine to others
            await stream.send_eof()
            if await stream.receive_some() != b"":
                self.failed.append("the transfer did not end where it should")
            self.transfers += 1

    async def grows(self, connections: int) -> None:
        """Returns after so many more connections; fails with the first that fails."""
        wanted = self.connections + connections
        with trio.fail_after(DEADLINE):
            while self.connections < wanted and not self.failed:
                await self._news.park()
        assert self.failed == [], self.failed


@asynccontextmanager
async def load(address: tuple[str, int], *, callers: int = 1) -> AsyncIterator[Load]:
    """A :class:`Load` for the time of the block; nothing of it has failed at the end."""
    made = Load(address)
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(made.short)
        nursery.start_soon(made.long)
        yield made
        made.stopped.set()
    assert made.failed == [], made.failed
