"""A CA's directory, its policy file and its store, and what other programs do to them; with nobody to serve it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from cryptography import x509

from certs.authority import authority
from certs.protocol import enrolment
from certs.protocol.documents import Bundle, RevocationList, sign_bundle
from certs.protocol.enrolment import Kind
from certs.registrar import registrar, revocations
from certs.service.api import RateLimits
from certs.service.serve import CaServer, Settings
from certs.store import store
from certs.store.store import Store
from sidecar.documents.address import Address
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.transport.tls import KeyPair
from tests.beds.certificates import key_pair
from tests.beds.clock import Clock
from tests.beds.mesh import MESH, LogSink

DOMAIN = "shop.internal"
API, WEB = (SpiffeId(DOMAIN, (name,)) for name in ("api", "web"))
HOUR = timedelta(hours=1)

_T = TypeVar("_T")
_Operation = Callable[[store.Transaction], Any]


def service_id(name: str) -> SpiffeId:
    return SpiffeId(DOMAIN, tuple(name.split("/")))


class CaFiles:
    """A CA's files, and what others do to them. ``age``: how long ago it was made."""

    def __init__(
        self,
        path: Path,
        clock: Clock | None = None,
        *,
        mesh: str = MESH,
        db: Path | None = None,
        ttl: timedelta = HOUR,
        limits: RateLimits | None = None,
        age: timedelta = timedelta(),
    ) -> None:
        self.path, self.clock, self.ttl, self.limits = path, clock or Clock(), ttl, limits or RateLimits()
        self.directory, self.mesh = path / "ca", path / "mesh.yaml"
        self.ca = authority.init(self.directory, DOMAIN, self.clock().replace(microsecond=0) - age)
        self.db = db or self.directory / authority.STORE
        self.mesh.write_text(mesh)

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return self.ca.roots

    def settings(self, **more: Any) -> Settings:
        listen = Address("127.0.0.1", 0)
        made = Settings(self.directory, self.mesh, listen, store.file_url(self.db), self.ttl, self.limits)
        return replace(made, **more)

    def new_server(self, log: LogSink | None = None, **more: Any) -> CaServer:
        return CaServer(self.settings(**more), Log(log or LogSink(), "json"), self.clock)

    def start_once(self) -> None:
        """So that its store is there."""
        server = self.new_server()
        for sock in server.sockets:
            sock.close()
        server.store.close()

    def load_mesh(self) -> Mesh:
        return load_mesh(self.mesh)

    # -- what other programs do ----------------------------------------------------------------------------------------

    def elsewhere(self, operation: _Operation) -> Any:
        """What another program does to the store: ``certs revoke`` in another terminal, another CA."""
        with closing(Store(store.file_url(self.db), clock=self.clock.seconds)) as opened:
            return opened.write(operation)

    def sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.db)) as connection, connection:
            connection.execute(text)

    def make_credential(self, service: str | SpiffeId, kind: Kind = "token", root: bytes | None = None) -> str:
        made = enrolment.make(kind, root or self.ca.root_digest)
        identity = service_id(service) if isinstance(service, str) else service
        self.elsewhere(lambda it: registrar.add_credential(it, made, identity))
        return str(made)

    def make_secret(self, service: str | SpiffeId) -> str:
        return self.make_credential(service, "secret")

    def revokes(self, service: str) -> None:
        """``certs revoke``."""
        self.elsewhere(lambda it: revocations.revoke_identity(it, service_id(service)))

    def keys(
        self, service: str = "api", ttl: timedelta = HOUR, *, dated: datetime | None = None, known: bool = False
    ) -> KeyPair:
        """A certificate of this CA's and its key, as it issued it ``dated``. ``known``: to its store too."""
        loaded = authority.load(self.directory, self.clock())
        made = authority.issue(loaded, service, dated or self.clock(), ttl)
        if known:
            self.elsewhere(lambda it: registrar.remember(it, made.chain, "test"))
        return key_pair(made)

    def bundle(self, version: int) -> tuple[Bundle, bytes]:
        bundle = Bundle(DOMAIN, version, self.ca.roots, self.ca.root_digest)
        return bundle, sign_bundle(bundle, [authority.load_root(self.directory, None, None)])

    def revoked(self) -> RevocationList:
        """What the store holds as revoked."""
        return self.ask(lambda one: revocations.current_list(one, DOMAIN, self.clock()))

    def ask(self, question: Callable[[sa.Connection], _T]) -> _T:
        with closing(Store(store.file_url(self.db), clock=self.clock.seconds)) as opened:
            return opened.read(question)

    def issued(self) -> list[tuple[str, str]]:
        """(identity, how) of every certificate that the store knows, in its order."""
        question = sa.select(store.issued.c.identity, store.issued.c.how)
        return [(row.identity, row.how) for row in self.ask(lambda one: one.execute(question).all())]
