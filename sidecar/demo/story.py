"""What happens in the demo, act by act; each act says what the logs must hold, and fails if they do not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from typing import Any

import click
import trio
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from sidecar.demo.apps import FILE_BYTES, PIECE
from sidecar.demo.attackers import Tap, stranger
from sidecar.demo.stage import PATIENCE_SECONDS, LogFile, Stage, StoryError, free_ports, from_ca, from_files, wiring

PASSWORD = "Bearer correct-horse-battery-staple"  # noqa: S105 (what the tap must not see)

MESH = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}}
  api: {ports: {http: 8080}}
  cache: {ports: {redis: 6379}}
  reporting: {}
policy:
  - {from: web, to: "api:http"}
  - {from: api, to: "cache:redis"}
tests:
  - {from: reporting, to: cache, expect: deny}
"""

LIES = MESH.replace("reporting: {}", "reporting: {ports: {http: 8080}}").replace("api:http", "reporting:http")
"""The impostor's own idea of the mesh: its sidecar would let web in."""


class Story:
    """The mesh of the demo, and its acts in order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        ends = "ca, web app, api app, redis, api, cache, impostor, tap"
        names = f"{ends}, web>api, web>tap, web>impostor, api>cache, reporting>cache".split(", ")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))

    async def set_up(self) -> None:
        """The CA, a secret for each service to enrol with, the files, the apps and the sidecars."""
        stage, port = self._stage, self._ports
        _act("Setting up", "a CA that serves, four services that enrol with it by themselves, one policy file")
        await stage.certs("init", "ca", "--trust-domain", "shop.internal")
        await stage.certs("init", "other-ca", "--trust-domain", "shop.internal")
        await stage.certs("issue", "other-ca", "web", "--out", "forged")
        for service in ("web", "api", "cache", "reporting"):
            await stage.certs("enrolment", "ca", service, "--out", f"{service}.enrol")
        stage.write("root.pem", stage.read("ca/root.pem"))
        stage.write("mesh.yaml", MESH)
        stage.write("lies.yaml", LIES)
        await stage.ca(port["ca"])
        stage.write(
            "web.yaml",
            wiring(
                "web",
                from_ca("web", port["ca"]),
                outbound=[
                    _outbound("api:http", port["web>api"], port["api"]),
                    _outbound("api:http", port["web>tap"], port["tap"]),
                    _outbound("api:http", port["web>impostor"], port["impostor"]),
                ],
            ),
        )
        stage.write(
            "api.yaml",
            wiring(
                "api",
                from_ca("api", port["ca"]),
                inbound=[_inbound("http", port["api"], port["api app"])],
                outbound=[_outbound("cache:redis", port["api>cache"], port["cache"])],
            ),
        )
        inbound = [_inbound("redis", port["cache"], port["redis"])]
        stage.write("cache.yaml", wiring("cache", from_ca("cache", port["ca"]), inbound=inbound))
        outbound = [_outbound("cache:redis", port["reporting>cache"], port["cache"])]
        stage.write("reporting.yaml", wiring("reporting", from_ca("reporting", port["ca"]), outbound=outbound))
        inbound = [_inbound("http", port["impostor"], port["api app"])]
        stage.write("impostor.yaml", wiring("reporting", from_files("stolen"), "lies.yaml", inbound=inbound))
        redis = await stage.redis(port["redis"])
        _say(f"the apps: web (HTTP) -> api (HTTP) -> {redis}; none of them knows of TLS")
        started: dict[str, LogFile] = {}

        async def start(name: str) -> None:
            started[name] = await stage.sidecar(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.app, "web", port["web app"], port["web>api"])
            nursery.start_soon(stage.app, "api", port["api app"], port["api>cache"])
            for name in ("web", "api", "cache", "reporting"):
                nursery.start_soon(start, name)
        stage.steal("reporting", "stolen")
        await stage.sidecar("impostor")
        self._web, self._api, self._cache = started["web"], started["api"], started["cache"]
        self._reporting = started["reporting"]

    async def play(self) -> None:
        """All acts."""
        for act in (
            self.an_allowed_call,
            self.a_denied_call,
            self.plaintext,
            self.a_forged_ca,
            self.another_service_calls,
            self.another_service_answers,
            self.a_tap_reads,
            self.a_tap_flips_a_bit,
            self.the_root_is_rotated,
            self.a_service_is_revoked,
        ):
            await act()

    async def an_allowed_call(self) -> None:
        _act("An allowed call", "a visitor opens web's page; web asks api, api counts in Redis")
        page = await _get(self._ports["web app"])
        _check(page.startswith("<h1>shop</h1> visits: "), f"the page says {page!r}")
        _say(f"the page says: {page}")
        for caller, callee, name in ((self._web, self._api, "api:http"), (self._api, self._cache, "cache:redis")):
            there = await caller.find(event="connection", direction="outbound", upstream=name, reason="ok")
            here = await callee.find(event="connection", direction="inbound", connection_id=there["connection_id"])
            _check((there["decision"], here["decision"]) == ("allow", "allow"), "both ends must have allowed it")
            _check(here["reason"] == "ok", f"it ended as {here['reason']} at the callee")
            _check(here["bytes_to_app"] == there["bytes_from_app"] > 0, "the ends count different bytes")
            _line(caller, there)
            _line(callee, here)
        _good("both ends tell of the same connections, by their ids")

    async def a_denied_call(self) -> None:
        _act("A denied call", "reporting tries Redis; no rule lets it")
        reset = await trio.to_thread.run_sync(_talk, self._ports["reporting>cache"], b"PING\r\n")
        _check(reset is None, f"reporting got an answer: {reset!r}")
        line = await self._reporting.find(event="connection", reason="policy_denied", decision="deny")
        _line(self._reporting, line)
        callers = {line["peer_id"] for line in self._cache.lines if line["event"] == "connection"}
        _check(callers == {"spiffe://shop.internal/api"}, f"cache's sidecar was called by {callers}")
        _good("reporting's app saw a reset, and nothing left its machine")

    async def plaintext(self) -> None:
        _act("Plaintext", "somebody talks plain HTTP to api's sidecar")
        answer = await trio.to_thread.run_sync(_talk, self._ports["api"], b"GET /visits HTTP/1.1\r\nHost: api\r\n\r\n")
        _check(not answer, f"it was answered: {answer!r}")
        await self._refused(self._api, "plaintext_refused")

    async def a_forged_ca(self) -> None:
        _act("A forged CA", "a certificate that says it is web, signed by a CA of the attacker's own")
        await self._stranger("forged")
        await self._refused(self._api, "unknown_ca")

    async def another_service_calls(self) -> None:
        _act("A valid certificate of another service, calling", "reporting's key was stolen; it is used to reach api")
        await self._stranger("stolen")
        line = await self._refused(self._api, "policy_denied")
        _check(line["peer_id"] == "spiffe://shop.internal/reporting", f"it was taken for {line['peer_id']}")

    async def another_service_answers(self) -> None:
        _act(
            "A valid certificate of another service, answering",
            "reporting sits at api's address, with the same CA's leave",
        )
        answer = await trio.to_thread.run_sync(_talk, self._ports["web>impostor"], b"GET / HTTP/1.0\r\n\r\n")
        _check(answer is None, f"web's app got an answer: {answer!r}")
        await self._web.find(event="mitm_suspected", reason="unexpected_peer")
        await self._refused(self._web, "unexpected_peer")
        _good("and web's sidecar raised the alarm: mitm_suspected")

    async def a_tap_reads(self) -> None:
        _act("Somebody in the middle who reads", "a tap between web's sidecar and api's forwards every byte")
        tap = await self._tap()
        await _get(self._ports["web>tap"], "/visits", PASSWORD)
        _check(len(tap.seen) > 1000, "the tap saw nothing: the call went another way")
        _say(f"web's app sent : GET /visits … Authorization: {PASSWORD}")
        _say(f"the tap saw    : {bytes(tap.seen[-48:]).hex(' ', 4)}")
        _check(PASSWORD.encode() not in tap.seen and b"visits" not in tap.seen, "the tap could read it")
        line = await self._web.find(event="connection", reason="ok", peer_address=f"127.0.0.1:{tap.port}")
        _line(self._web, line)
        _good(f"{len(tap.seen)} bytes went by, and the password was not in them")

    async def a_tap_flips_a_bit(self) -> None:
        _act("Somebody in the middle who alters", "the same tap flips one bit in the middle of a download")
        since = len(self._web.lines)
        tap = self._the_tap
        tap.flip_after = FILE_BYTES // 4
        got, clean = await trio.to_thread.run_sync(_download, self._ports["web>tap"])
        _check(tap.flipped, "the tap did not get to it")
        _check(not clean and got < FILE_BYTES, "the download was taken for complete")
        line = await self._web.find(since, event="connection", reason="truncated")
        _line(self._web, line)
        _good(f"the app got {got} bytes, each of them right, and then a reset: not one altered byte was delivered")

    async def the_root_is_rotated(self) -> None:
        _act("The root of all trust is replaced under a running transfer", "certs rotate-root; nothing restarts")
        since = {log: len(log.lines) for log in (self._web, self._api)}
        halfway, go_on, results = trio.Event(), trio.Event(), []

        def pause() -> None:
            trio.from_thread.run_sync(halfway.set)
            trio.from_thread.run(go_on.wait)

        async def download() -> None:
            results.append(await trio.to_thread.run_sync(_download, self._ports["web>api"], pause))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(download)
            await halfway.wait()
            # The old root is kept until connections that it verified may have ended: the transfer, here.
            await self._stage.certs_until("settle:", "rotate-root", "ca")
            for log, lines in since.items():
                line = await log.find(lines, event="renewed")
                _say(
                    f"{log.name}'s sidecar: a new key, its certificate under the new root, until {line['certificate_until']}"
                )
            _check(not results, "the transfer was over before the certificates came")
            go_on.set()
        got, clean = results[0]
        _check(clean and got == FILE_BYTES, f"the transfer ended after {got} bytes")
        _say("certs rotate-root was interrupted there; it is run again, and goes on")
        await self._stage.certs("rotate-root", "ca", "--max-age", "1s")
        await self._api.find(since[self._api], event="trust_bundle", roots=[self._new_root()])
        page = await _get(self._ports["web>api"], "/visits")
        _check("visits" in page, f"a new call fails: {page!r}")
        await self._stranger("stolen")
        await self._refused(self._api, "unknown_ca")
        _good(f"{got} bytes, all of them right, begun before and ended after; what the old root vouched for is refused")

    async def a_service_is_revoked(self) -> None:
        _act("A service is taken over, and revoked", "certs revoke web; it holds an open connection to api")
        await self._stage.certs("revoke", "ca", "web")
        sock = await trio.to_thread.run_sync(_connect, self._ports["web>api"])
        with sock:
            line = await self._api.find(event="connection", reason="revoked")
            _line(self._api, line)
            _check(await trio.to_thread.run_sync(_is_cut, sock), "the open connection went on")
        _good("cut within seconds, and let in no more")

    # -- tools of the acts ---------------------------------------------------------------------------------------------

    async def _tap(self) -> Tap:
        self._the_tap = Tap(self._ports["tap"], self._ports["api"])
        await self._stage.background(self._the_tap.run)
        return self._the_tap

    def _new_root(self) -> str:
        """How sidecars log the root that the CA has now."""
        certificate = load_pem_x509_certificate(self._stage.read("ca/root.pem").encode())
        return certificate.fingerprint(SHA256()).hex()[:16]

    async def _stranger(self, keys: str) -> None:
        """Calls api's sidecar by hand, with somebody's key and certificate, and asks for what ``web`` asks for."""
        answer = await trio.to_thread.run_sync(stranger, self._ports["api"], self._stage.directory / keys)
        _check(answer is None, f"the stranger got an answer: {answer!r}")

    async def _refused(self, log: LogFile, reason: str) -> dict[str, Any]:
        line = await log.find(event="connection", reason=reason, decision="deny")
        _check(line["bytes_to_app"] == line["bytes_from_app"] == 0, "bytes reached the app")
        _line(log, line)
        _good(f"refused by name, {reason}; nothing reached the app")
        return line


def _inbound(port: str, listen: int, app: int) -> dict[str, str]:
    return {"port": port, "listen": f"127.0.0.1:{listen}", "app": f"127.0.0.1:{app}"}


def _outbound(to: str, listen: int, peer: int) -> dict[str, object]:
    return {"to": to, "listen": f"127.0.0.1:{listen}", "peers": [f"127.0.0.1:{peer}"]}


async def _get(port: int, path: str = "/", authorization: str = "") -> str:
    """A page, fetched as a browser would. Raises :class:`StoryError` if there is none."""

    def get() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", path, headers={"Authorization": authorization})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    try:
        return await trio.to_thread.run_sync(get)
    except OSError as error:
        raise StoryError(f"no page at port {port}: {error}") from error


def _talk(port: int, request: bytes) -> bytes | None:
    """What is answered to these bytes; None for a reset."""
    try:  # (a refusal may come before the connection seems to be there)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as sock:
            sock.sendall(request)
            return sock.recv(4096)
    except (ConnectionResetError, BrokenPipeError):
        return None


def _connect(port: int) -> socket.socket:
    """A connection through the mesh that api's app has begun to answer."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    sock.sendall(b"GET /file HTTP/1.1\r\nHost: api\r\n\r\n")
    sock.recv(1)
    return sock


def _is_cut(sock: socket.socket) -> bool:
    """Whether it ends with a reset, once what was under way is read."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return False


def _download(port: int, pause: Callable[[], None] = lambda: None) -> tuple[int, bool]:
    """Fetches api's large file, calling ``pause`` a quarter of the way: how many bytes came, and whether it ended clean.

    Raises :class:`StoryError` at the first byte that is not what it should be.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    got = 0
    try:
        connection.request("GET", "/file")
        answer = connection.getresponse()
        while piece := answer.read(len(PIECE)):
            if piece != PIECE[: len(piece)]:
                raise StoryError(f"an altered byte was delivered, between {got} and {got + len(piece)}")
            got += len(piece)
            if got == FILE_BYTES // 4:
                pause()
    except (OSError, http.client.HTTPException):
        return got, False
    finally:
        connection.close()
    return got, got == FILE_BYTES


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StoryError(otherwise)


def _act(title: str, what: str) -> None:
    click.echo(f"\n{click.style(title, bold=True)}: {what}")


def _say(text: str) -> None:
    click.echo(f"    {text}")


def _good(text: str) -> None:
    click.echo(click.style(f"  ✓ {text}", fg="green"))


def _line(log: LogFile, line: dict[str, Any]) -> None:
    """What a sidecar's log says, in brief."""
    parts = [line["direction"], line["upstream"] or line["port"], f"{line['decision']}/{line['reason']}"]
    parts += [f"{name}={line[name]}" for name in ("peer_id", "rule", "connection_id") if line[name]]
    _say(f"{log.name + chr(39) + 's log':<15} {'  '.join(parts)}")
    if line.get("message"):
        _say(f"{'':<15} {line['message']}")
