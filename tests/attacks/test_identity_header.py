"""A caller who wants to be somebody else in ``X-Forwarded-Client-Cert``: by the header itself, and by request smuggling.

The app behind the sidecar records every byte, and answers whatever it takes for a head. It must see one request at most, and
no header that the caller wrote.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from sidecar.transport import sockets
from tests.attacks.stage import API, WEB
from tests.beds.certificates import Credential
from tests.beds.mesh import App, Foreigner, MeshBed, RunningSidecar, connect, inbound, mesh_bed, outbound, receive_all

FORGED = b"URI=spiffe://shop.internal/admin"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"

SMUGGLING = {
    "CL.TE": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE.CL": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "one length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc" + SMUGGLED,
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc" + SMUGGLED,
    "a length in CGI's spelling": POST + b"Content_Length: 0\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "TE in CGI's spelling": POST + b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "TE.TE": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE of two codings": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE with a tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE, space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE, folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n" + SMUGGLED,
    "a header in a fold": POST + b"A: b\r\n X-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "a header behind a bare CR": POST + b"A: b\rX-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "a header behind a bare LF": POST + b"A: b\nX-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "a header behind NUL": POST + b"A: b\x00X-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "its name before a space": POST + b"X-Forwarded-Client-Cert : " + FORGED + b"\r\n\r\n",
    "its name behind a space": b"GET / HTTP/1.1\r\n X-Forwarded-Client-Cert: " + FORGED + b"\r\nHost: a\r\n\r\n",
    "lines with LF": SMUGGLED.replace(b"\r\n", b"\n"),
    "a chunk's extension": CHUNKED + b"\r\n0;\n" + FORGED + b"\r\n\r\n" + SMUGGLED,
    "a chunk without an end": CHUNKED + b"\r\n1\r\naX\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk's size with LF": CHUNKED + b"\r\n0\n\n" + SMUGGLED,
    "a chunk's size, negative": CHUNKED + b"\r\n-1\r\n" + SMUGGLED,
    "a length among trailers": CHUNKED + b"\r\n0\r\nContent-Length: 900\r\n\r\n" + SMUGGLED,
    "a trailer in a fold": CHUNKED + b"\r\n0\r\nA: b\r\n X-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" + SMUGGLED,
    "a space in the target": b"GET /a HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED,
    "no host": b"GET / HTTP/1.1\r\nX-Forwarded-Client-Cert: " + FORGED + b"\r\n\r\n",
    "a long head": POST + b"A: " + b"b" * 40_000 + b"\r\n\r\n" + SMUGGLED,
    "many headers": POST + b"A: b\r\n" * 1000 + b"\r\n" + SMUGGLED,
}

NAMED = {
    "the header": SMUGGLED,
    "twice": SMUGGLED[:-2] + b"x-forwarded-client-cert: " + FORGED + b"\r\n\r\n",
    "in CGI's spelling": SMUGGLED.replace(b"X-Forwarded-Client-Cert", b"X_Forwarded_CLIENT-Cert"),
    "in lighttpd's": SMUGGLED.replace(b"X-Forwarded-Client-Cert", b"X.Forwarded.Client.Cert"),
    "empty": SMUGGLED.replace(b": " + FORGED, b":"),
    "among trailers": CHUNKED + b"\r\n0\r\nx_forwarded_client_cert: " + FORGED + b"\r\n\r\n",
    "nominated": SMUGGLED[:-2] + b"Connection: X-Forwarded-Client-Cert\r\n\r\n",
    "in HTTP/1.0": SMUGGLED.replace(b"1.1", b"1.0"),
}


async def answers_each_head(sock: socket.socket, app: App) -> None:
    seen = 0
    while data := await sockets.receive(sock, 65536):
        app.received += data
        heads = app.received.count(b"HTTP/1.1\r\n")
        for _ in range(heads - seen):
            await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        seen = heads


class Stage:
    """api's port with the header. ``kept``: the caller speaks through web's sidecar; else it is a foreign TLS program."""

    def __init__(
        self, bed: MeshBed, app: App, api: RunningSidecar, web: RunningSidecar, credential: Credential
    ) -> None:
        self.bed, self.app, self.api, self.web, self.credential = bed, app, api, web, credential
        self.lines = 0

    async def say(self, data: bytes, *, kept: bool) -> bytes:
        """What the caller hears that says this and ends."""
        self.lines += 1
        heard = b""
        if kept:
            with await connect(self.web.address("api:http", "outbound")) as client:
                with contextlib.suppress(OSError):
                    await sockets.send_all(client, data)
                    client.shutdown(socket.SHUT_WR)
                return await receive_all(client)
        foreigner = Foreigner(await connect(self.api.address("http")), self.credential, alpn=())
        with foreigner.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
            await foreigner.handshake()
            await foreigner.send(data)
            await foreigner.close()
            while more := await foreigner.receive():
                heard += more
        return heard

    async def logged(self) -> list[dict[str, Any]]:
        """The lines of all that was said."""
        await self.api.log.connection(self.lines)
        for line in self.api.log.connections:
            assert (line["decision"], line["peer_id"]) == ("allow", WEB)
        return self.api.log.connections

    async def honest(self, *, kept: bool) -> None:
        """The twin: a request that names nobody arrives with the caller's name."""
        self.app.received.clear()
        heard = await self.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", kept=kept)
        assert heard.endswith(b"\r\n\r\nok")
        hash_of = sha256(self.credential.chain[0].public_bytes(Encoding.DER)).hexdigest()
        element = f"By={API};Hash={hash_of};URI={WEB}".encode()
        assert bytes(self.app.received) == (
            b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: " + element + b"\r\n\r\n"
        )
        assert (await self.logged())[-1]["reason"] == "ok"


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    async with mesh_bed() as bed:
        app = await bed.app(answers_each_head)
        port = inbound("http", app.address, identity_header="x-forwarded-client-cert")
        api = await bed.sidecar("api", inbound=[port])
        credential = bed.authority.leaf("web")
        out = outbound("api", "http", api.address("http"))
        web = await bed.sidecar("web", outbound=[out], credential=credential)
        yield Stage(bed, app, api, web, credential)


KEPT = pytest.mark.parametrize("kept", [True, False], ids=["kept", "foreign"])


@KEPT
async def test_no_smuggled_request_reaches_the_app(kept: bool) -> None:
    async with stage() as there:
        for name, data in SMUGGLING.items():
            there.app.received.clear()
            heard = await there.say(data, kept=kept)
            assert heard[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), name
            assert heard.count(b"Content-Length: ") == 1, name
            assert there.app.received.count(b"HTTP/1.1\r\n") <= 1, name
            assert FORGED not in there.app.received, name
            assert b"smuggled" not in there.app.received, name
        for line in await there.logged():
            assert line["reason"] == "client_reset"
            assert "a request was refused: " in line["message"]
            assert FORGED.decode() not in str(line)
        await there.honest(kept=kept)


@KEPT
async def test_no_header_of_the_caller_s_reaches_the_app(kept: bool) -> None:
    async with stage() as there:
        for name, data in NAMED.items():
            there.app.received.clear()
            heard = await there.say(data, kept=kept)
            assert heard.endswith(b"\r\n\r\nok"), name
            assert FORGED not in there.app.received, name
            lines = bytes(there.app.received).split(b"\r\n")
            told = [line for line in lines if b"client" in line.lower()]
            assert len(told) == 1, name
            assert told[0].startswith(b"X-Forwarded-Client-Cert: By=%s;" % API.encode()), name
        await there.honest(kept=kept)


@KEPT
async def test_connect_is_no_way_around(kept: bool) -> None:
    """This app answers CONNECT as it does all, and reads on. Behind a tunnel it would read the caller's own header."""
    async with stage() as there:
        heard = await there.say(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED, kept=kept)
        assert heard.startswith(b"HTTP/1.1 502 ")
        assert FORGED not in there.app.received
        assert [line["reason"] for line in await there.logged()] == ["app_reset"]
        await there.honest(kept=kept)


@KEPT
async def test_a_second_answer_to_one_request_is_nobody_s(kept: bool) -> None:
    """The body is a request, and this app takes it for one: it answers twice. The next caller hears its own answer."""
    async with stage() as there:
        data = POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + SMUGGLED
        heard = await there.say(data, kept=kept)
        assert heard.count(b"HTTP/1.1 200") == 1
        assert there.app.received.count(b"HTTP/1.1\r\n") == 2
        await there.honest(kept=kept)
