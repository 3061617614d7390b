"""A server that speaks first (SMTP, RFC 5321): its banner comes through before the client has sent a byte."""

from __future__ import annotations

import socket
from pathlib import Path

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed, receive_all
from tests.beds.processes import Shop, output, sidecar_pair
from tests.protocols.programs import all_ok, entered, needs

BANNER = b"220 mail.shop.internal ready\r\n"


async def smtp(sock: socket.socket, app: App) -> None:
    """Takes one mail: enough of RFC 5321 for curl."""
    await sockets.send_all(sock, BANNER)
    data = b""
    in_mail = False
    while more := await sockets.receive(sock, 65536):
        app.received += more
        data += more
        while True:
            line, end, rest = data.partition(b"\r\n.\r\n" if in_mail else b"\r\n")
            if not end:
                break
            data = rest
            if in_mail or line.startswith((b"HELO", b"MAIL", b"RCPT")):
                answer, in_mail = b"250 OK\r\n", False
            elif line.startswith(b"DATA"):
                answer, in_mail = b"354 end with .\r\n", True
            elif line.startswith(b"QUIT"):
                await sockets.send_all(sock, b"221 bye\r\n")
                return
            else:
                answer = b"502 not here\r\n"
            await sockets.send_all(sock, answer)


@needs("curl")
async def test_a_mail_is_delivered(shop: Shop, tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    mail.write_text("Subject: hello\r\n\r\n" + "All work and no play.\r\n" * 10_000)
    async with mesh_bed() as bed:
        app = await bed.app(smtp)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            envelope = ("--mail-from", "web@shop.internal", "--mail-rcpt", "api@shop.internal", "--upload-file", mail)
            await output("curl", "-sS", "--max-time", "60", f"smtp://{web.at('api:http')}", *envelope)
            assert mail.read_bytes() in app.received
            await all_ok(web, api, connections=1)


async def test_a_silent_client_hears_the_banner(shop: Shop) -> None:
    async def banner(sock: socket.socket, _: App) -> None:
        await sockets.send_all(sock, BANNER)

    async with mesh_bed() as bed:
        app = await bed.app(banner)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            with await entered(web) as client:
                assert await receive_all(client) == BANNER
            await all_ok(web, api, connections=1)
