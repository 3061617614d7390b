"""Answers in api's place: ``impostor.py PORT`` in plaintext, ``impostor.py PORT IDENTITY`` in TLS with a stolen certificate.

Prints one line of JSON for each connection, with the bytes that the caller sent.
"""

from __future__ import annotations

import json
import socket
import ssl  # the attacker's own TLS, not the project's
import sys

ANSWER = b"HTTP/1.0 200 -\r\nContent-Length: 33\r\n\r\nteapot costs 00.01 (visit: never)\n"


def main() -> None:
    port = int(sys.argv[1])
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
        context.set_alpn_protocols([f"mesh/1/{port}"])
    with socket.create_server(("0.0.0.0", port)) as server:  # a container's port
        print(json.dumps({"event": "listening"}), flush=True)
        while True:
            plain, _ = server.accept()
            record: dict[str, object] = {"event": "connection", "got": "", "error": None}
            plain.settimeout(5)
            try:
                stream = context.wrap_socket(plain, server_side=True) if context is not None else plain
                record["got"] = stream.recv(4096).decode(errors="replace")
                if record["got"]:
                    stream.sendall(ANSWER)
                stream.close()
            except OSError as error:
                record["error"] = str(error)
            plain.close()
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
