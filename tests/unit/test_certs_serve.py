"""The CA's process: what it follows, what of it is refused while the last good stays, and who is let in to ask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from trio.testing import MockClock

from certs import authority, serve, standing, trust
from certs.client import CaClient
from certs.serve import CaServer
from certs.store import StoreUnavailableError, file_url
from sidecar import sockets, tls
from sidecar.address import Address
from sidecar.handshake import shake_hands
from sidecar.identity import SpiffeId
from sidecar.judge import Revocations, Terms
from sidecar.logs import Log
from sidecar.reasons import Refused, UsageError
from tests.cabed import CaBed, ca_bed, keys_of
from tests.certificates import DAY, HOUR
from tests.certificates import Authority as Stranger
from tests.harness import MESH, PATIENCE, LogSink

CA = SpiffeId("shop.internal", ("mesh", "ca"))


@pytest.fixture
async def bed(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CaBed]:
    async with ca_bed(tmp_path, mock_clock, monkeypatch) as made:
        yield made


async def handshake(bed: CaBed, keys: tls.KeyPair | tls.Roots, alpn: str = "http/1.1") -> tls.Endpoint:
    """The caller's end of one handshake with the CA, and then what it hears first: nothing, unless it was refused."""
    sock = socket.socket()
    sock.connect(("127.0.0.1", bed.port))
    sockets.prepare(sock)
    endpoint = tls.Context(keys, Terms("shop.internal")).client(alpn, CA, bed.time)
    try:
        await bed.time.finishes(partial(shake_hands, sock, endpoint))
    finally:
        sockets.hard_close(sock)
    return endpoint


async def polled(bed: CaBed) -> bytes:
    """The list of revocations that it tells now."""
    ca = CaClient(Address("127.0.0.1", bed.port), "shop.internal", bed.time)
    await ca.use(bed.server.in_force.bundle.roots, Revocations())
    got = await bed.time.finishes(partial(ca.revocations, "", "0" * 32, 1))
    await bed.time.finishes(ca.close)
    assert got.document is not None
    return got.document


def listed(bed: CaBed, document: bytes) -> trust.RevocationList:
    return trust.read_revocations(document, bed.server.in_force.bundle, bed.time())


# -- the start ---------------------------------------------------------------------------------------------------------


def again(bed: CaBed, **changed: object) -> CaServer:
    """Another CA of the same directory, which does not come to serve."""
    settings = replace(bed.settings, **changed)  # type: ignore[arg-type]
    return CaServer(settings, Log(LogSink(), "json"), bed.time)


async def test_what_is_wrong_is_said_at_the_start(bed: CaBed, mock_clock: MockClock, tmp_path: Path) -> None:
    other, wrong = tmp_path / "other", tmp_path / "wrong.yaml"
    wrong.write_text(MESH.replace("shop.internal", "evil.org"))
    authority.init(other, "shop.internal", bed.time())
    with pytest.raises(UsageError, match="holds no CA"):
        again(bed, directory=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"mesh\.yaml"):
        again(bed, mesh=tmp_path / "none" / "mesh.yaml")
    with pytest.raises(UsageError, match=r"its trust_domain is evil.org, and the CA in .* is of shop.internal"):
        again(bed, mesh=wrong)
    with pytest.raises(UsageError, match="is it the store of another CA"):
        again(bed, directory=other)
    with pytest.raises(UsageError, match="another process listens there"):
        again(bed, listen=Address("127.0.0.1", bed.port))
    with pytest.raises(UsageError, match="cannot open the store"):
        again(bed, store_url=file_url(tmp_path / "none" / "store.db"))


async def test_a_directory_of_an_older_version_is_refused_with_what_to_do(bed: CaBed, mock_clock: MockClock) -> None:
    (bed.directory / authority.DELEGATE).unlink()
    with pytest.raises(UsageError, match=r"revocation\.pem is missing: .*certs renew-issuing"):
        again(bed)


async def test_it_works_without_the_root_s_key(bed: CaBed, mock_clock: MockClock) -> None:
    (bed.directory / authority.ROOT_KEY).unlink()
    await bed.goes_down()
    bed.starts()
    api = await bed.joined()
    assert api.own.svid.id == SpiffeId("shop.internal", ("api",))
    listed(bed, await polled(bed))


async def test_a_port_of_any_family(bed: CaBed, mock_clock: MockClock) -> None:
    server = again(bed, listen=Address("::1", 0))
    assert server.address[0] == "::1"
    server.socket.close()
    server.store.close()


# -- who is let in -----------------------------------------------------------------------------------------------------


async def test_whoever_shows_nothing_may_ask_and_whoever_shows_something_must_be_somebody(
    bed: CaBed, mock_clock: MockClock
) -> None:
    assert (await handshake(bed, bed.ca.roots)).svid is not None
    assert (await handshake(bed, keys_of(authority.issue(bed.ca, "api", bed.time())))).svid is not None
    stranger = Stranger()
    leaf = stranger.leaf("api")
    assert isinstance(leaf.key, tls.PrivateKey)
    for keys, reason in (
        (tls.KeyPair(leaf.chain, leaf.key, bed.ca.roots), "unknown_ca"),
        (expired(bed), "expired"),
    ):
        await handshake(bed, keys)  # a TLS 1.3 client's end is over before it is judged
        await bed.time.passes(2)
        line = bed.log.events("refused")[-1]
        assert line["reason"] == reason
        assert line["message"].startswith("refused: the CA met ")
        assert line["peer_address"].startswith("127.0.0.1:")


def expired(bed: CaBed) -> tls.KeyPair:
    issued = authority.issue(bed.ca, "api", bed.time(), timedelta(minutes=5))
    bed.time.steps(timedelta(minutes=6))
    return keys_of(issued)


async def test_another_protocol_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    with pytest.raises(Refused):
        await handshake(bed, bed.ca.roots, alpn="mesh/1/http")
    await bed.time.passes(2)
    assert "only http/1.1 is spoken here" in bed.said("refused")[0]


async def test_plaintext_is_refused(bed: CaBed, mock_clock: MockClock) -> None:
    with socket.create_connection(("127.0.0.1", bed.port)) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
        await bed.time.passes(2)
        assert bed.log.events("refused")[0]["reason"] == "plaintext_refused"


async def test_silence_is_cut_after_five_seconds(bed: CaBed, mock_clock: MockClock) -> None:
    with socket.create_connection(("127.0.0.1", bed.port)) as sock:
        sock.setblocking(False)
        await bed.time.passes(4.9)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        await bed.time.passes(0.2)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    await bed.joined()


async def test_too_many_connections_are_closed_and_the_rest_goes_on(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)
    held = [socket.create_connection(("127.0.0.1", bed.port)) for _ in range(3)]
    await bed.time.settles()
    over = socket.create_connection(("127.0.0.1", bed.port))
    await bed.time.settles()
    assert over.recv(1) == b""
    for sock in (*held, over):
        sock.close()
    await bed.time.settles()
    await bed.joined()


async def test_descriptors_that_run_out_are_said_once_and_waited_for(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A listening socket of a process that has no descriptor left."""

        def __init__(self, real: socket.socket) -> None:
            self._real, self.full = real, True

        def accept(self) -> tuple[socket.socket, object]:
            if self.full:
                raise OSError(24, "Too many open files")
            return self._real.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    full = Full(bed.server.socket)
    monkeypatch.setattr(bed.server, "socket", full)
    with socket.create_connection(("127.0.0.1", bed.port)):
        await bed.time.passes(3)
    assert bed.said("warning") == ["cannot accept connections: Too many open files"]
    full.full = False
    await bed.joined()
    assert "accepting: good again" in bed.said("mended")


# -- what it follows ---------------------------------------------------------------------------------------------------


async def test_a_broken_mesh_keeps_the_last_good_and_is_said_once(bed: CaBed, mock_clock: MockClock) -> None:
    before, web = bed.server.in_force.terms.services, bed.sidecar("web", bed.secret("web"))
    bed.mesh_path.write_text(MESH.replace("web: {}", "web: {"))
    await bed.time.passes(30)
    assert bed.server.in_force.terms.services == before
    [said] = bed.said("warning")
    assert str(bed.mesh_path) in said
    assert said.endswith("; what was in force before stays")
    bed.mesh_path.write_text(MESH.replace("web: {}", "web: {}\n  fresh: {}"))
    await bed.time.passes(3)
    assert "fresh" in bed.server.in_force.terms.services
    assert bed.said("mended") == ["mesh: good again"]
    await web.joins()


async def test_a_mesh_of_another_trust_domain_or_none_is_not_taken(bed: CaBed, mock_clock: MockClock) -> None:
    for break_it in (
        lambda: bed.mesh_path.write_text(MESH.replace("shop.internal", "evil.org")),
        lambda: bed.mesh_path.unlink(),
    ):
        break_it()
        await bed.time.passes(3)
        assert bed.server.in_force.terms.services == frozenset({"web", "api", "db", "reporting"})
        assert len(bed.said("warning")) >= 1
    assert len(bed.said("warning")) == 2


async def test_a_service_that_left_the_mesh_gets_no_more_certificates(bed: CaBed, mock_clock: MockClock) -> None:
    web = await bed.joined("web")
    serial = web.serial
    bed.mesh_path.write_text(
        MESH.replace("  web: {}\n", "")
        .replace('  - {from: web, to: "api:http"}\n', "")
        .replace('  - {from: web, to: "api:metrics"}\n', "")
    )
    await bed.time.passes(3)
    bed.time.steps(timedelta(seconds=150))
    await bed.time.passes(20)
    assert web.serial == serial
    assert "there is no service 'web' in the CA's mesh.yaml" in web.said("certificate_failed")[0]


async def test_a_new_issuing_ca_is_taken_without_a_restart(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    old = api.own.keys.chain[1]
    authority.renew_issuing(bed.directory, bed.time())
    await bed.time.passes(4)
    assert bed.server.in_force.terms.authority.issuer.certificate != old
    assert any("issuing until" in said for said in bed.said("reloaded"))
    serial = api.serial
    await bed.time.until(lambda: api.serial != serial, within=150)
    assert api.own.keys.chain[1] == bed.server.in_force.terms.authority.issuer.certificate
    listed(bed, await polled(bed))


@pytest.mark.parametrize("name", [authority.ISSUING, authority.ROOT, authority.DELEGATE])
@pytest.mark.parametrize("content", [None, b"", b"garbage"])
async def test_a_broken_directory_keeps_the_last_good(
    bed: CaBed, mock_clock: MockClock, name: str, content: bytes | None
) -> None:
    file = bed.directory / name
    before, kept = bed.server.in_force.terms, file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    await bed.time.passes(5)
    assert bed.server.in_force.terms.authority == before.authority
    assert len(bed.said("warning")) == 1
    await bed.joined()
    file.touch(0o600)
    file.write_bytes(kept)
    await bed.time.passes(5)
    assert bed.said("mended") == ["directory: good again"]


async def test_the_directory_of_another_ca_is_not_taken(bed: CaBed, mock_clock: MockClock, tmp_path: Path) -> None:
    before = bed.server.in_force
    for trust_domain in ("evil.org", "shop.internal"):
        other = tmp_path / trust_domain
        authority.init(other, trust_domain, bed.time())
        for name in (authority.ROOT, authority.ISSUING, authority.ISSUING_KEY, authority.DELEGATE):
            shutil.copy(other / name, bed.directory / name)
        await bed.time.passes(4)
        assert bed.server.in_force.terms.authority == before.terms.authority
    assert len(bed.said("warning")) == 2
    assert bed.said("reloaded") == []


async def test_the_list_is_signed_anew_each_minute(bed: CaBed, mock_clock: MockClock) -> None:
    first = listed(bed, await polled(bed))
    await bed.time.passes(65)
    second = listed(bed, await polled(bed))
    assert second.version == first.version
    assert timedelta(seconds=58) <= second.issued_at - first.issued_at <= timedelta(seconds=65)


async def test_a_store_that_is_gone_is_said_and_its_list_grows_old(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that cannot know of a revocation does not vouch that there was none."""
    first = listed(bed, await polled(bed))

    def gone(_: object) -> None:
        raise StoreUnavailableError("the store x cannot be read: connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(bed.server.store, "read", gone)
        await bed.time.passes(180)
        assert listed(bed, await polled(bed)) == first
        assert bed.said("warning") == ["the store x cannot be read: connection refused; what was in force before stays"]
        assert b"mesh_ca_store_up 0.0" in metrics(bed)
    await bed.time.passes(2)
    assert bed.said("mended") == ["store: good again"]
    assert listed(bed, await polled(bed)).issued_at > first.issued_at
    assert b"mesh_ca_store_up 1.0" in metrics(bed)


def metrics(bed: CaBed) -> bytes:
    return bed.api.metrics.text(bed.time(), 1, 0)


async def test_a_revocation_by_another_process_is_told_within_a_second_or_so(bed: CaBed, mock_clock: MockClock) -> None:
    bed.revokes("web")
    took = await bed.time.until(lambda: SpiffeId("shop.internal", ("web",)) in revoked(bed), within=5)
    assert took <= 1.1


def revoked(bed: CaBed) -> set[SpiffeId]:
    return set(listed(bed, bed.server.in_force.revocations).identities)


async def test_a_clock_that_was_ahead_and_is_set_right_costs_a_second(bed: CaBed, mock_clock: MockClock) -> None:
    before = (await handshake(bed, bed.ca.roots)).svid
    bed.time.steps(13 * HOUR)
    await bed.time.passes(3)
    assert (await handshake(bed, bed.ca.roots)).svid != before
    bed.time.steps(-13 * HOUR)
    await bed.time.passes(3)
    assert abs(listed(bed, await polled(bed)).issued_at - bed.time()) < timedelta(seconds=5)


async def test_its_own_certificate_is_renewed_at_half_life(bed: CaBed, mock_clock: MockClock) -> None:
    async def shown() -> datetime:
        endpoint = await handshake(bed, bed.ca.roots)
        assert endpoint.svid is not None
        return endpoint.svid.not_after

    first = await shown()
    bed.time.steps(11 * HOUR)
    await bed.time.passes(3)
    assert await shown() == first
    bed.time.steps(2 * HOUR)
    await bed.time.passes(3)
    assert await shown() - first > 12 * HOUR
    bed.time.steps(30 * HOUR)  # its machine slept
    await bed.time.passes(3)
    assert await shown() > bed.time() + 23 * HOUR


async def test_the_end_of_the_issuing_ca_is_said_from_thirty_days_before(bed: CaBed, mock_clock: MockClock) -> None:
    bed.time.steps(59 * DAY)
    await bed.time.passes(3)
    assert bed.said("warning") == []
    bed.time.steps(2 * DAY)
    await bed.time.passes(3)
    [said] = bed.said("warning")
    assert said.startswith("the issuing CA is good until ")
    assert said.endswith("certs renew-issuing")
    authority.renew_issuing(bed.directory, bed.time())
    await bed.time.passes(3)
    assert bed.said("mended") == ["issuing: good again"]


async def test_what_ended_long_ago_is_forgotten(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "PRUNE_SECONDS", 5.0)
    await bed.joined()
    assert issued(bed) == 1
    await bed.time.passes(7)
    assert issued(bed) == 1
    bed.time.steps(31 * DAY)
    for sidecar in [*bed.sidecars]:
        await sidecar.ends()
    await bed.time.passes(7)
    assert issued(bed) == 0


def issued(bed: CaBed) -> int:
    return bed.server.store.read(lambda connection: len(connection.execute(sa.text("SELECT 1 FROM issued")).all()))


async def test_a_fault_of_our_own_in_following_serves_on(
    bed: CaBed, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bed.server, "_take_store", broken)
    await bed.time.passes(2)
    assert "ZeroDivisionError" in bed.log.events("reload_failed")[0]["exception"]
    await bed.joined()


async def test_a_bundle_that_another_process_published_is_in_force(bed: CaBed, mock_clock: MockClock) -> None:
    own = bed.server.in_force.terms.authority
    root = authority.load_root(bed.directory, None, None)
    key = b"\7" * 32
    bed.server.store.write(lambda transaction: standing.distrust(transaction, key, own, root, bed.time()))
    await bed.time.passes(2)
    assert bed.server.in_force.terms.distrusted == {key}
    assert any(said.startswith("trust bundle ") for said in bed.said("reloaded"))


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_stopping_ends_idle_connections_and_lets_requests_end(bed: CaBed, mock_clock: MockClock) -> None:
    api = await bed.joined()
    bed.stop.set()
    took = await bed.time.until(bed._stopped.is_set, within=10)
    assert took <= serve.DRAIN_SECONDS + 1.1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", bed.port))
    assert bed.log.events("internal_error") == []
    assert api.own is not None


async def test_a_signal_ends_it(tmp_path: Path) -> None:
    """On the machine's own clock, as ``certs serve`` runs it."""
    directory, mesh, log = tmp_path / "ca", tmp_path / "mesh.yaml", LogSink()
    mesh.write_text(MESH)
    authority.init(directory, "shop.internal", tls.utc_now())
    settings = serve.Settings(
        directory, mesh, Address("127.0.0.1", 0), file_url(directory / authority.STORE), timedelta(hours=1)
    )
    handler = signal.getsignal(signal.SIGTERM)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve.serve, settings, Log(log, "json"), tls.utc_now)
            await log.until(lambda: bool(log.events("started")))
            os.kill(os.getpid(), signal.SIGTERM)
            await log.until(lambda: bool(log.events("stopped")))
    assert signal.getsignal(signal.SIGTERM) is handler
    [started] = log.events("started")
    assert started["message"] == "CA of shop.internal for 4 services"
    assert started["root_sha256"] == authority.load(directory, tls.utc_now()).root_digest.hex()
    assert json.dumps(log.lines).isascii()
