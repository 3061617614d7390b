"""The demo, act by act. Each act states what the logs must contain, and fails if they do not."""

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

PASSWORD = "Bearer correct-horse-battery-staple"  # noqa: S105 (the text that the tap must not see)

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
"""The impostor's own mesh.yaml: its sidecar would admit web."""


class Story:
    """The mesh of the demo, and its acts in order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        ends = "ca, web app, api app, redis, api, cache, impostor, tap"
        names = f"{ends}, web>api, web>tap, web>impostor, api>cache, reporting>cache".split(", ")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))

    async def set_up(self) -> None:
        """Starts the CA, the apps and the sidecars; makes the files and an enrolment secret for each service."""
        stage, port = self._stage, self._ports
        _print_title("Set-up", "a CA, four services whose sidecars enrol with it, one policy file")
        await stage.certs("init", "ca", "--trust-domain", "shop.internal")
        await stage.certs("init", "other-ca", "--trust-domain", "shop.internal")
        await stage.certs("issue", "other-ca", "web", "--out", "forged")
        await stage.certs("enrolment", "ca", "web", "api", "cache", "reporting", "--out-dir", "enrolment")
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
        _print(f"the apps: web (HTTP) -> api (HTTP) -> {redis}; none of them uses TLS")
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
        """Runs all acts in order."""
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
        _print_title("An allowed call", "a visitor opens web's page; web calls api, api counts in Redis")
        page = await _get(self._ports["web app"])
        _check(page.startswith("<h1>shop</h1> visits: "), f"the page says {page!r}")
        _print(f"the page says: {page}")
        for caller, callee, name in ((self._web, self._api, "api:http"), (self._api, self._cache, "cache:redis")):
            there = await caller.find(event="connection", direction="outbound", upstream=name, reason="ok")
            here = await callee.find(event="connection", direction="inbound", connection_id=there["connection_id"])
            _check((there["decision"], here["decision"]) == ("allow", "allow"), "the two ends did not both allow it")
            _check(here["reason"] == "ok", f"it ended with reason {here['reason']} at the callee")
            _check(here["bytes_to_app"] == there["bytes_from_app"] > 0, "the ends count different bytes")
            _print_record(caller, there)
            _print_record(callee, here)
        _print_passed("both ends logged the same connections, by their ids")

    async def a_denied_call(self) -> None:
        _print_title("A denied call", "reporting calls Redis; no rule allows it")
        reset = await trio.to_thread.run_sync(_exchange, self._ports["reporting>cache"], b"PING\r\n")
        _check(reset is None, f"reporting got an answer: {reset!r}")
        line = await self._reporting.find(event="connection", reason="policy_denied", decision="deny")
        _print_record(self._reporting, line)
        callers = {line["peer_id"] for line in self._cache.lines if line["event"] == "connection"}
        _check(callers == {"spiffe://shop.internal/api"}, f"cache's sidecar was called by {callers}")
        _print_passed("reporting's app got a reset, and nothing left its machine")

    async def plaintext(self) -> None:
        _print_title("Plaintext", "a client sends plain HTTP to api's sidecar")
        answer = await trio.to_thread.run_sync(
            _exchange, self._ports["api"], b"GET /visits HTTP/1.1\r\nHost: api\r\n\r\n"
        )
        _check(not answer, f"it was answered: {answer!r}")
        await self._expect_refusal(self._api, "plaintext_refused")

    async def a_forged_ca(self) -> None:
        _print_title("A forged CA", "a certificate in web's name, signed by the attacker's own CA")
        await self._call_with_keys("forged")
        await self._expect_refusal(self._api, "unknown_ca")

    async def another_service_calls(self) -> None:
        _print_title("A valid certificate of another service, calling", "reporting's stolen key is used to reach api")
        await self._call_with_keys("stolen")
        line = await self._expect_refusal(self._api, "policy_denied")
        _check(line["peer_id"] == "spiffe://shop.internal/reporting", f"the peer was identified as {line['peer_id']}")

    async def another_service_answers(self) -> None:
        _print_title(
            "A valid certificate of another service, answering",
            "reporting answers at api's address, with a certificate of the same CA",
        )
        answer = await trio.to_thread.run_sync(_exchange, self._ports["web>impostor"], b"GET / HTTP/1.0\r\n\r\n")
        _check(answer is None, f"web's app got an answer: {answer!r}")
        await self._web.find(event="mitm_suspected", reason="unexpected_peer")
        await self._expect_refusal(self._web, "unexpected_peer")
        _print_passed("web's sidecar logged the alarm mitm_suspected")

    async def a_tap_reads(self) -> None:
        _print_title("An attacker in the middle reads", "a tap between web's sidecar and api's forwards every byte")
        tap = await self._start_tap()
        await _get(self._ports["web>tap"], "/visits", PASSWORD)
        _check(len(tap.seen) > 1000, "the tap saw nothing: the call took another path")
        _print(f"web's app sent : GET /visits … Authorization: {PASSWORD}")
        _print(f"the tap saw    : {bytes(tap.seen[-48:]).hex(' ', 4)}")
        _check(PASSWORD.encode() not in tap.seen and b"visits" not in tap.seen, "the tap could read it")
        line = await self._web.find(event="connection", reason="ok", peer_address=f"127.0.0.1:{tap.port}")
        _print_record(self._web, line)
        _print_passed(f"{len(tap.seen)} bytes passed the tap, and the password was not in them")

    async def a_tap_flips_a_bit(self) -> None:
        _print_title("An attacker in the middle alters", "the same tap flips one bit in the middle of a download")
        since = len(self._web.lines)
        tap = self._the_tap
        tap.flip_after = FILE_BYTES // 4
        got, clean = await trio.to_thread.run_sync(_download, self._ports["web>tap"])
        _check(tap.flipped, "the tap altered nothing")
        _check(not clean and got < FILE_BYTES, "the download seemed complete")
        line = await self._web.find(since, event="connection", reason="truncated")
        _print_record(self._web, line)
        _print_passed(f"the app got {got} correct bytes and then a reset: no altered byte was delivered")

    async def the_root_is_rotated(self) -> None:
        _print_title("The root CA is replaced during a transfer", "certs rotate-root; nothing restarts")
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
            # The old root is kept while connections that it verified may still be open: here, the transfer.
            await self._stage.certs_until("settle:", "rotate-root", "ca")
            for log, lines in since.items():
                line = await log.find(lines, event="renewed")
                _print(
                    f"{log.name}'s sidecar: a new key, its certificate under the new root, until {line['certificate_until']}"
                )
            _check(not results, "the transfer ended before the new certificates arrived")
            go_on.set()
        got, clean = results[0]
        _check(clean and got == FILE_BYTES, f"the transfer ended after {got} bytes")
        _print("certs rotate-root was interrupted there; it is run again, and continues")
        await self._stage.certs("rotate-root", "ca", "--max-age", "1s")
        await self._api.find(since[self._api], event="trust_bundle", roots=[self._new_root()])
        page = await _get(self._ports["web>api"], "/visits")
        _check("visits" in page, f"a new call fails: {page!r}")
        before = len(self._api.lines)  # the forged CA was refused by the same word
        await self._call_with_keys("stolen")
        await self._expect_refusal(self._api, "unknown_ca", before)
        _print_passed(
            f"{got} correct bytes in a transfer across the rotation; a certificate of the old root is refused"
        )

    async def a_service_is_revoked(self) -> None:
        _print_title("A service is compromised and revoked", "certs revoke web; it has an open connection to api")
        await self._stage.certs("revoke", "ca", "web")
        sock = await trio.to_thread.run_sync(_connect, self._ports["web>api"])
        with sock:
            line = await self._api.find(event="connection", reason="revoked")
            _print_record(self._api, line)
            _check(await trio.to_thread.run_sync(_is_cut, sock), "the open connection was not cut")
        _print_passed("the open connection was cut within seconds")

    # -- steps of the acts ---------------------------------------------------------------------------------------------

    async def _start_tap(self) -> Tap:
        self._the_tap = Tap(self._ports["tap"], self._ports["api"])
        await self._stage.background(self._the_tap.run)
        return self._the_tap

    def _new_root(self) -> str:
        """The digest by which sidecars log the CA's current root."""
        certificate = load_pem_x509_certificate(self._stage.read("ca/root.pem").encode())
        return certificate.fingerprint(SHA256()).hex()[:16]

    async def _call_with_keys(self, keys: str) -> None:
        """Calls api's sidecar with the key and certificate in ``keys``, and sends the request that ``web`` sends."""
        answer = await trio.to_thread.run_sync(stranger, self._ports["api"], self._stage.directory / keys)
        _check(answer is None, f"the attacker got an answer: {answer!r}")

    async def _expect_refusal(self, log: LogFile, reason: str, since: int = 0) -> dict[str, Any]:
        line = await log.find(since, event="connection", reason=reason, decision="deny")
        _check(line["bytes_to_app"] == line["bytes_from_app"] == 0, "bytes reached the app")
        _print_record(log, line)
        _print_passed(f"refused with reason {reason}; nothing reached the app")
        return line


def _inbound(port: str, listen: int, app: int) -> dict[str, str]:
    return {"port": port, "listen": f"127.0.0.1:{listen}", "app": f"127.0.0.1:{app}"}


def _outbound(to: str, listen: int, peer: int) -> dict[str, object]:
    return {"to": to, "listen": f"127.0.0.1:{listen}", "peers": [f"127.0.0.1:{peer}"]}


async def _get(port: int, path: str = "/", authorization: str = "") -> str:
    """Fetches a page by HTTP. Raises :class:`StoryError` if there is no answer."""

    def get() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", path, headers={"Authorization": authorization})
            with connection.getresponse() as answer:
                return answer.read().decode()
        finally:
            connection.close()

    try:
        return await trio.to_thread.run_sync(get)
    except OSError as error:
        raise StoryError(f"no page at port {port}: {error}") from error


def _exchange(port: int, request: bytes) -> bytes | None:
    """The answer to these bytes; None for a reset."""
    try:  # a refusal may arrive before connect() returns
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as sock:
            sock.sendall(request)
            return sock.recv(4096)
    except (ConnectionResetError, BrokenPipeError):
        return None


def _connect(port: int) -> socket.socket:
    """Opens a connection through the mesh, on which api's app has begun to answer."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    sock.sendall(b"GET /file HTTP/1.1\r\nHost: api\r\n\r\n")
    sock.recv(1)
    return sock


def _is_cut(sock: socket.socket) -> bool:
    """Whether the connection ends with a reset after the bytes that were under way."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return False


def _download(port: int, pause: Callable[[], None] = lambda: None) -> tuple[int, bool]:
    """Fetches api's large file and calls ``pause`` after a quarter. Returns the bytes received and whether it ended cleanly.

    Raises :class:`StoryError` at the first wrong byte.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    got = 0
    try:
        connection.request("GET", "/file")
        with connection.getresponse() as answer:
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


def _print_title(title: str, what: str) -> None:
    click.echo(f"\n{click.style(title, bold=True)}: {what}")


def _print(text: str) -> None:
    click.echo(f"    {text}")


def _print_passed(text: str) -> None:
    click.echo(click.style(f"  ✓ {text}", fg="green"))


def _print_record(log: LogFile, line: dict[str, Any]) -> None:
    """Prints a sidecar's log line in short form."""
    parts = [line["direction"], line["upstream"] or line["port"], f"{line['decision']}/{line['reason']}"]
    parts += [f"{name}={line[name]}" for name in ("peer_id", "rule", "connection_id") if line[name]]
    _print(f"{log.name + chr(39) + 's log':<15} {'  '.join(parts)}")
    if line.get("message"):
        _print(f"{'':<15} {line['message']}")
