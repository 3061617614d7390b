"""nginx: as a contestant (stream), of a root of Debian or this machine's; and, always this machine's, as the origin."""

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
)
from tests.bench.roots import Root

_MODULES = ("usr/lib/nginx/modules", "usr/lib64/nginx/modules", "usr/share/nginx/modules")
_STREAM = "ngx_stream_module.so"

COMMON = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 20000; }
"""

ORIGIN = """\
http {{
  access_log off;
  keepalive_requests 100000000;
  keepalive_timeout 600s;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 "{body}"; }} }}
}}
"""
BODY = " ".join(["hello world"] * 6)

STREAM = """\
stream {
  log_format line '$time_iso8601 $remote_addr $protocol $status $bytes_sent $bytes_received $session_time';
  access_log access.log line;
  proxy_buffer_size 64k;
%s}
"""

CALLER_ROUTE = """\
  server {{
    listen 127.0.0.1:{route.entrance} backlog=4096;
    proxy_pass 127.0.0.1:{route.towards};
    proxy_ssl on;
    proxy_ssl_certificate {chain};
    proxy_ssl_certificate_key {key};
    proxy_ssl_trusted_certificate {roots};
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 2;
    proxy_ssl_name {peer};
    proxy_ssl_server_name on;
{cold}    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites {cipher};
    proxy_ssl_conf_command Groups {group};
  }}
"""

CALLEE_ROUTE = """\
  map $ssl_client_fingerprint $app_of_{route.name} {{
    default 127.0.0.1:1;
    {fingerprint} 127.0.0.1:{route.origin};
  }}
  server {{
    listen 127.0.0.1:{route.between} ssl backlog=4096;
    proxy_pass $app_of_{route.name};
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_client_certificate {roots};
    ssl_verify_client on;
    ssl_verify_depth 2;
{cold}    ssl_protocols TLSv1.3;
    ssl_ecdh_curve {group};
    ssl_conf_command Ciphersuites {cipher};
  }}
"""


COLD = {
    "caller": "    proxy_ssl_session_reuse off;\n",
    "callee": "    ssl_session_cache off;\n    ssl_session_tickets off;\n",
}


class Nginx:
    """It finds the callee by its DNS name, and the caller by its certificate's fingerprint: it reads no subject
    alternative names of clients. This machine's own, if there is no ``root``, may be too old for the hybrid group."""

    name = "nginx"
    parts = PARTS

    def __init__(self, root: Root | None) -> None:
        self._root = root
        self.groups = (X25519,) if root is None else (HYBRID, X25519)

    def missing(self) -> Missing | None:
        if self._root is not None:
            return self._root.missing()
        return None if self._stream_module() else Missing(f"nginx's {_STREAM}", "libnginx-mod-stream")

    def version_command(self) -> Sequence[str | Path]:
        return (*self._program(), "-V")

    def _program(self) -> Sequence[str]:
        return (program(),) if self._root is None else self._root.command("usr/sbin/nginx")

    def _stream_module(self) -> Path | None:
        top = Path("/") if self._root is None else self._root.path
        return next((path for path in (top / place / _STREAM for place in _MODULES) if path.is_file()), None)

    def version(self, printed: str) -> str:
        found = re.search(r"nginx/(\S+)", printed)
        libraries = re.findall(r"(?:built|running) with (OpenSSL [^\s)]+)", printed)
        return f"{found[1] if found else '?'} ({libraries[-1] if libraries else '?'})"

    def prepare(
        self, directory: Path, side: Side, routes: Sequence[Route], certificates: Certificates, group: str, mode: Mode
    ) -> Command:
        own, peer = (CALLER, CALLEE) if side == "caller" else (CALLEE, CALLER)
        template = CALLER_ROUTE if side == "caller" else CALLEE_ROUTE
        servers = "".join(
            template.format(
                route=route,
                chain=certificates.chain(own),
                key=certificates.key(own),
                roots=certificates.roots,
                peer=peer,
                fingerprint=certificates.fingerprints[peer],
                cipher=CIPHER,
                group=group,
                cold=COLD[side] if mode == "cold" else "",
            )
            for route in routes
        )
        text = f"load_module {self._stream_module()};\n{COMMON}{STREAM % servers}"
        return _command(self._program(), directory, text)

    def faults(self, log: str, group: str, mode: Mode) -> list[str]:
        return []


def origin(directory: Path, port: int) -> Command:
    """An HTTP server with a small answer and connections that stay."""
    return _command((program(),), directory, COMMON + ORIGIN.format(port=port, body=BODY))


def program() -> str:
    return find_program("nginx") or "nginx"


def _command(started: Sequence[str], directory: Path, text: str) -> Command:
    (directory / "nginx.conf").write_text(text)
    return Command((*started, "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"))
