"""What an attacker writes into names, protocols and words never makes a line of its own, nor drives a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Literal

import pytest
import trio
from cryptography import x509
from cryptography.x509.oid import NameOID

from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.logs import Log
from sidecar.proxy.node import Node
from tests.attacks.stage import attacked_call, attacked_port
from tests.beds.certificates import Authority, Credential, raw_names
from tests.beds.patience import PATIENCE

EVIL = '\r\n{"event": "connection", "decision": "allow"}\x1b[2J\x07\x9b31m\u202e\u2028"\'\\x1b connection'
EVIL_NAME = EVIL[:24] + "\x1b[2J\x9b\u202e\u2028\"'"  # as long as a CommonName may be
Style = Literal["json", "console"]
STYLES = pytest.mark.parametrize("style", ["json", "console"])


def evil_issuer() -> Authority:
    return Authority(name=EVIL_NAME)


CREDENTIALS: dict[str, Callable[[Authority, str], Credential]] = {
    "the issuer's name": lambda _, who: evil_issuer().leaf(who),
    "the subject": lambda ca, who: ca.leaf(who, cn=EVIL_NAME, ca=True),
    "the URI": lambda ca, who: ca.leaf(who, raw_san=raw_names(uris=[ca.spiffe_id(who).encode() + EVIL.encode()])),
    "another domain": lambda ca, who: ca.leaf(who, raw_san=raw_names(uris=[b"spiffe://" + EVIL.encode()])),
    "a DNS name": lambda ca, who: ca.leaf(who, uris=(), raw_san=raw_names(dns=[EVIL.encode()])),
}


def listen_in(node: Node, style: Style) -> io.StringIO:
    """The sidecar's log as a file or a terminal gets it."""
    out = io.StringIO()
    node.log = Log(out, style)
    node.alarm_log = AlarmLog(node.log, node.clock)
    return out


def assert_unforged(text: str, style: Style, events: int) -> None:
    lines = text.split("\n")
    assert lines.pop() == ""
    assert len(lines) == events
    assert all(line.isprintable() for line in lines), text
    if style == "json":
        assert all(json.loads(line)["event"] in ("connection", "mitm_suspected") for line in lines)
        assert all(json.loads(line).get("decision") != "allow" for line in lines)


async def heard(out: io.StringIO, lines: int) -> str:
    """The log, once it has so many lines."""
    with trio.fail_after(PATIENCE):
        while out.getvalue().count("\n") < lines:
            await trio.lowlevel.checkpoint()
    return out.getvalue()


@STYLES
@pytest.mark.parametrize("bend", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_names_in_certificates(bend: Callable[[Authority, str], Credential], style: Style) -> None:
    async with attacked_port() as port:
        out = listen_in(port.sidecar.node, style)
        await port.attack(bend(port.bed.authority, "web"))
        assert_unforged(await heard(out, 1), style, 1)
    async with attacked_call() as call:
        out = listen_in(call.sidecar.node, style)
        await call.attack(call.impostor.shows(bend(call.bed.authority, "api")))
        assert_unforged(await heard(out, 2), style, 2)


@STYLES
async def test_protocols(style: Style) -> None:
    async with attacked_port() as port:
        out = listen_in(port.sidecar.node, style)
        await port.attack(port.bed.authority.leaf("web"), alpn=[EVIL.encode(), b"\xff\x00\n"])
        assert_unforged(await heard(out, 1), style, 1)
    async with attacked_call() as call:
        out = listen_in(call.sidecar.node, style)
        await call.attack(
            call.impostor.shows(
                call.bed.authority.leaf("api"),
                configure=lambda context: context.set_alpn_select_callback(lambda *_: EVIL.encode()),
            )
        )
        assert_unforged(await heard(out, 1), style, 1)


@STYLES
async def test_words_of_the_verdict(style: Style) -> None:
    async with attacked_call() as call:
        out = listen_in(call.sidecar.node, style)
        word = EVIL.encode()[-32:]
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), frame=b"\x20" + word))
        assert_unforged(await heard(out, 1), style, 1)


def test_the_evil_name_is_in_the_certificate_as_it_is() -> None:
    """The control: no library on the way has cleaned it."""
    leaf = evil_issuer().leaf("web").certificate
    [name] = leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert str(name.value).startswith(EVIL_NAME)
    assert isinstance(leaf, x509.Certificate)
