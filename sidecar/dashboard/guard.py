"""Who may ask the dashboard: its own page, in the browser of whoever was given its address. Pure. Fails closed.

How this works. A page of somebody else, in the same browser, can send requests to loopback. Four things keep it out:

* ``Host`` is exactly ours. A name of an attacker's that resolves to 127.0.0.1 (DNS rebinding) is another.
* ``Origin``, if the browser sends one, is exactly ours, and so is what ``Sec-Fetch-Site`` says of the page.
* Data is for whoever sends the token, 256 bits that were printed once, in the fragment of the address: no browser sends a
  fragment, so the token is in no log, no ``Referer`` and no proxy. It comes in a header of its own, which a page of another
  origin may not send without a preflight, and preflights are not answered.
* What is served allows no script, style or connection that is not ours (:data:`HEADERS`), and no frame around it.

Other users of the machine can open the port; the token keeps them out.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

LISTENED, HTTP_PORT = "127.0.0.1", 80
HEADER = "authorization"
SCHEME = "Bearer "

HEADERS: Mapping[str, str] = {
    # No inline script or style, nothing from elsewhere; and no text becomes HTML, whatever the script does with it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Of every answer."""


@dataclass(frozen=True, slots=True)
class Guard:
    """``hosts``: what ``Host`` may be, with the port."""

    hosts: frozenset[str]
    token: str = field(repr=False)

    def fault(self, headers: Mapping[str, str], *, secret: bool) -> tuple[int, str] | None:
        """Why a request is refused: a status, and what to say; None if it is answered. ``secret``: the answer is for whoever
        has the token. ``headers``: their names in lower case."""
        if headers.get("host", "").lower() not in self.hosts:
            return 421, "this is not the host that you ask for; use the address that was printed"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.hosts}:
            return 403, "only the dashboard's own page may ask"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "only the dashboard's own page may ask"
        if secret and not self._is_known(headers.get(HEADER, "")):
            return 401, "the address has a token behind its #, which is missing here or is of another run"
        return None

    def _is_known(self, given: str) -> bool:
        expected = f"{SCHEME}{self.token}".encode()
        return hmac.compare_digest(given.encode(errors="replace"), expected)


def hosts_of(port: int) -> frozenset[str]:
    """How a browser of this machine may name us: by the address that is listened on, and that is printed. Who listens at
    another one, such as ``[::1]``, is not us. A browser leaves HTTP's own port out."""
    return frozenset({f"{LISTENED}:{port}", *([LISTENED] if port == HTTP_PORT else ())})
