"""A thief who owns one part of a mesh, among real processes; and the table of what each part is good for.

The mesh: ``certs serve``, and api's ``sidecar run``. api reaches the CA through :class:`~tests.siege.wire.Wire`, so a test
can give that path to the thief. The thief makes certificates with what was stolen, and calls api with them.

Each test of a stolen part declares its row of the table by :func:`stolen`. README has the table; a test compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio
from cryptography import x509
from OpenSSL import SSL

from certs.protocol import x509_profile
from certs.protocol.enrolment import EnrolmentCredential
from certs.protocol.x509_profile import Issuer
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import new_key
from sidecar.identity.spiffe import SpiffeId
from tests.beds import forks
from tests.beds.ca_processes import CALLS_API, TRUST_DOMAIN, Caller, CaSite, echo_app, member_process
from tests.beds.certificates import Credential
from tests.beds.mesh import Foreigner, connect
from tests.beds.processes import Running, SidecarProcess, free_port
from tests.siege.wire import Wire

LOOPBACK = "127.0.0.1"
ATTEMPTS = 40
CONSTANTS = {"sidecar.policy.mesh_yaml.LEAST_STALENESS_SECONDS": 1}
"""api's, so that a test has its lists too old within seconds."""

_Test = TypeVar("_Test", bound=Callable[..., Any])


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """``can`` and ``cannot``: what the part is good for. ``ends``: for how long, and what ends it."""

    part: str
    can: str
    cannot: str
    ends: str


ROWS: dict[str, Row] = {}


def stolen(part: str, *, can: str, cannot: str, ends: str) -> Callable[[_Test], _Test]:
    """Declares what the decorated test shows."""

    def declare(test: _Test) -> _Test:
        ROWS[test.__name__] = Row(part, can, cannot, ends)
        return test

    return declare


def table() -> str:
    """The rows, as Markdown."""
    rows = (f"| {row.part} | {row.can} | {row.cannot} | {row.ends} |" for row in ROWS.values())
    return "\n".join(["| a thief of | can | cannot | until |", "|---|---|---|---|", *rows]) + "\n"


# -- the mesh ----------------------------------------------------------------------------------------------------------


@dataclass
class Field:
    """``file``: api's. ``path``: where api's connections to the CA lead; ``at_ca``: to the CA itself."""

    site: CaSite
    ca: Running
    api: SidecarProcess
    file: Path
    path: Wire
    at_ca: tuple[str, int]
    app: str
    callers: list[Caller] = dataclasses.field(default_factory=list)

    async def call(self, credential: Credential | None, at: SidecarProcess | None = None) -> str:
        """The reason with which api's sidecar, or another, ends a call with this certificate: ``ok`` if it was served."""
        called = at or self.api
        before = len(called.program.connections)
        with await connect(Address(*called.address("http"))) as sock:
            peer = Foreigner(sock, credential)
            with contextlib.suppress(SSL.Error, EOFError, OSError):
                await peer.handshake()
                if (await peer.receive()).startswith(b"\x02ok"):
                    await peer.send(b"to be read")
                    assert await peer.receive() == b"to be read"
                    await peer.close()
        return str((await called.program.connection(before + 1))["reason"])

    async def until(self, reason: str, credential: Credential, at: SidecarProcess | None = None) -> None:
        """Calls until api answers so: within seconds, or the test fails."""
        met = []
        for _ in range(ATTEMPTS):
            met.append(await self.call(credential, at))
            if met[-1] == reason:
                return
            await trio.sleep(0.5)
        raise AssertionError(f"{reason} was waited for, and api ended its calls with {met}")

    def edit(self, more: str) -> None:
        """Other keys in mesh.yaml, in force now."""
        (self.site.path / "mesh.yaml").write_text(CALLS_API + more)
        if self.api.program.process.returncode is None:
            self.api.program.signal(signal.SIGHUP)

    async def says(self, event: str, words: str) -> None:
        """Once api has a line of this event with these words."""
        program = self.api.program
        await program.until(lambda: words in str(program.events(event)), f"{event}: {words}")

    def another(self, pinned: str = "pinned.pem") -> Path:
        """The file of one more sidecar of api's, on the same path to the CA. ``pinned``: the file of the root that it was
        told."""
        file = self.site.agent("api", inbound(self.app))
        text = file.read_text().replace("pinned.pem", pinned).replace("state-", f"state-{file.stem}-")
        file.write_text(text)
        return file

    @asynccontextmanager
    async def elsewhere(self) -> AsyncIterator[SidecarProcess]:
        """One more sidecar of api's, with another path to the CA."""
        file = self.another()
        file.write_text(file.read_text().replace(str(self.site.address), str(Address(*self.at_ca))))
        async with member_process(file) as other:
            yield other

    async def joined(self, service: str, shown: EnrolmentCredential | None = None, port: int = 0) -> Caller:
        """A service with an honest certificate, or whoever has its secret. ``port``: of another path to the CA."""
        caller = self.site.caller(service, port=port or self.at_ca[1])
        self.callers.append(caller)
        await caller.enrol(shown or self.site.make_credentials(service)[service])
        return caller

    async def list_version(self) -> int:
        """Of the list that the CA signs now."""
        caller = self.site.caller("web", port=self.at_ca[1])
        self.callers.append(caller)
        await caller.client.use(caller.roots, Revocations())
        polled = await caller.client.revocations("", "0" * 32, 0)
        payload = json.loads(b64decode(json.loads(polled.document or b"")["payload"]))
        return int(payload["version"])

    async def certs(self, name: str, *arguments: str) -> str:
        return await self.site.certs(name, *arguments)


def inbound(app: str) -> str:
    """Before this app, at any port."""
    return f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app}"}}]\n'


def held(caller: Caller) -> Credential:
    """What is in the state_dir of a service: its key and certificate."""
    return Credential(caller.chain[0], caller.key, caller.chain)


@asynccontextmanager
async def field(path: Path, *, init: Sequence[str] = ()) -> AsyncIterator[Field]:
    """The mesh of processes, once api serves."""
    site = CaSite.make(path / "shop", CALLS_API, init=init)
    at_ca = (LOOPBACK, free_port())
    wire = Wire(at_ca)
    async with trio.open_nursery() as nursery, site.serves(port=at_ca[1]) as ca, echo_app() as app:
        await nursery.start(wire.serve, site.port)
        file = site.agent("api", inbound(app))
        async with member_process(file, variables={forks.CONSTANTS: json.dumps(CONSTANTS)}) as api:
            mesh = Field(site, ca, api, file, wire, at_ca, app)
            try:
                yield mesh
            finally:
                for caller in mesh.callers:
                    await caller.client.close()
        nursery.cancel_scope.cancel()


# -- what a thief makes ------------------------------------------------------------------------------------------------


def forged(service: str, issuer: Issuer, *above: x509.Certificate, trust_domain: str = TRUST_DOMAIN) -> Credential:
    """A certificate of this service, by a stolen CA's key; ``above``: what is sent between that CA and a root."""
    key = new_key()
    leaf = x509_profile.leaf(SpiffeId(trust_domain, tuple(service.split("/"))), key.public_key(), issuer, utc_now())
    return Credential(leaf, key, (leaf, issuer.certificate, *above), ())
