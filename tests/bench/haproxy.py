"""HAProxy, from a root of Debian or from this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.bench.contestants import (
    CALLEE,
    CALLER,
    CIPHER,
    HYBRID,
    PARTS,
    X25519,
    Certificates,
    Command,
    Missing,
    Mode,
    Route,
    Side,
    find_program,
    spiffe,
)
from tests.bench.roots import Root

GLOBAL = """\
global
  nbthread 1
  fd-hard-limit 10000
{cache}  log stdout format raw local0
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 600s
  timeout server 600s
"""

CALLER_ROUTE = """\
frontend {route.name}
  bind 127.0.0.1:{route.entrance} backlog 4096
  default_backend {route.name}
backend {route.name}
  server peer 127.0.0.1:{route.towards} ssl crt {own} ca-file {roots} verify required verifyhost {peer} \
ssl-min-ver TLSv1.3 ciphersuites {cipher}{cold}
"""

CALLEE_ROUTE = """\
frontend {route.name}
  bind 127.0.0.1:{route.between} backlog 4096 ssl crt {own} ca-file {roots} verify required ssl-min-ver TLSv1.3 \
ciphersuites {cipher} curves {group}{cold}
  tcp-request session reject unless {{ ssl_c_der,hex -m sub {peer_name} }}
  default_backend {route.name}
backend {route.name}
  server app 127.0.0.1:{route.origin}
"""


COLD = {"caller": " no-ssl-reuse no-tls-tickets", "callee": " no-tls-tickets"}


class HAProxy:
    """It finds the callee by its DNS name, and the caller by the URI in its certificate's encoding: it has no word for a
    subject alternative name. This machine's own, if there is no ``root``, may be too old for the hybrid group."""

    name = "haproxy"
    parts = PARTS

    def __init__(self, root: Root | None) -> None:
        self._root = root
        self.groups = (X25519,) if root is None else (HYBRID, X25519)

    def missing(self) -> Missing | None:
        if self._root is not None:
            return self._root.missing()
        return None if find_program("haproxy") else Missing("haproxy", "haproxy")

    def version_command(self) -> Sequence[str | Path]:
        return (*self._program(), "-vv")

    def _program(self) -> Sequence[str]:
        return (find_program("haproxy") or "haproxy",) if self._root is None else self._root.command("usr/sbin/haproxy")

    def version(self, printed: str) -> str:
        return _version(printed, r"HAProxy version ([\d.]+)", r"Running on OpenSSL version : (OpenSSL \S+)")

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str, mode: Mode
    ) -> Command:
        own, peer = (CALLER, CALLEE) if side == "caller" else (CALLEE, CALLER)
        template = CALLER_ROUTE if side == "caller" else CALLEE_ROUTE
        text = "".join(
            template.format(
                route=route,
                own=certificates.both(own),
                roots=certificates.roots,
                peer=peer,
                peer_name=uri_name(spiffe(peer)).hex().upper(),
                cipher=CIPHER,
                group=group,
                cold=COLD[side] if mode == "cold" else "",
            )
            for route in routes
        )
        settings = GLOBAL.format(cache="  tune.ssl.cachesize 0\n" if mode == "cold" else "")
        (directory / "haproxy.cfg").write_text(settings + text)
        return Command((*self._program(), "-db", "-f", directory / "haproxy.cfg"))

    def faults(self, log: str, group: str, mode: Mode) -> list[str]:
        return []


def uri_name(uri: str) -> bytes:
    """A URI as a certificate's subject alternative names hold it: tag, length, text (RFC 5280 4.2.1.6, DER), so that no
    longer name that begins or ends the same is taken for it."""
    return bytes([0x86, len(uri)]) + uri.encode("ascii")


def _version(printed: str, *patterns: str) -> str:
    found = [match[1] for pattern in patterns if (match := re.search(pattern, printed))]
    return f"{found[0]} ({', '.join(found[1:])})" if found else printed.strip()
