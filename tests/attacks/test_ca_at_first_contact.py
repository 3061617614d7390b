"""First contact: a sidecar that has nothing but the pinned root and a token, and somebody else in the CA's place.

What must hold whoever answers: the token never leaves, nobody is believed, it is said loudly; and the same sidecar joins
as soon as the true CA answers.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from certs.authority import authority
from certs.protocol import documents
from certs.protocol.x509_profile import Issuer
from sidecar.agent.trust import Trust
from sidecar.documents.address import Address
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.transport import sockets
from sidecar.transport.tls import KeyPair
from tests.beds.asking import CA_ID, Desk, ca_desk
from tests.beds.ca import Sidecar
from tests.beds.ca_files import DOMAIN, HOUR
from tests.beds.certificates import Authority, key_pair
from tests.beds.impostor import always
from tests.beds.patience import PATIENCE

Show = Callable[[Desk], KeyPair]


def issued(name: str) -> Show:
    """A valid certificate of the same CA."""

    def show(desk: Desk) -> KeyPair:
        return key_pair(authority.issue(desk.ca, name, desk.clock(), HOUR))

    return show


IMPOSTORS: dict[str, tuple[Show, str]] = {
    "a service named ca": (issued("ca"), "unexpected_peer"),
    "a service": (issued("api"), "unexpected_peer"),
    "another of the mesh's own": (issued("mesh/ca2"), "unexpected_peer"),
    "a name below the CA's": (issued("mesh/ca/ca"), "unexpected_peer"),
    "a CA of the same names": (lambda _: key_pair(Authority(DOMAIN).leaf("mesh/ca")), "unknown_ca"),
    "a self-signed one": (lambda _: key_pair(Authority(DOMAIN).leaf("mesh/ca", self_signed=True)), "unknown_ca"),
}


async def joins(sidecar: Sidecar) -> None:
    with trio.fail_after(PATIENCE):
        await sidecar.agent.enrol()
    assert str(sidecar.own.svid.id) == f"spiffe://{DOMAIN}/web"


async def refused_at_first(sidecar: Sidecar, event: str = "joining_failed") -> str:
    """Tries to join until that is said to fail; returns the words."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sidecar.agent.enrol)
        await sidecar.log.until(lambda: bool(sidecar.log.events(event)))
        nursery.cancel_scope.cancel()
    assert sidecar.agent.credentials is None
    return sidecar.words(event)


@pytest.mark.parametrize(("show", "reason"), IMPOSTORS.values(), ids=IMPOSTORS.keys())
async def test_whoever_is_not_mesh_ca_under_the_pinned_root_gets_no_token(
    show: Show, reason: str, tmp_path: Path
) -> None:
    """The bundle is public, so an impostor passes on the true one; it is the next connection that must be refused."""
    async with ca_desk(tmp_path) as desk:
        token = desk.make_credential("web")
        async with desk.false_ca(show(desk)) as false:
            sidecar = desk.membership(false.address, text=token)
            words = await refused_at_first(sidecar)
            assert CA_ID in words
            await sidecar.log.until(lambda: bool(sidecar.log.alarms))
            (alarm,) = sidecar.log.alarms
            assert alarm["reason"] == reason
            assert set(false.asked) == {"/v1/bundle"}
            assert not any(false.bodies)
            assert token not in sidecar.log.getvalue() + str(sidecar.log.lines)
            await sidecar.agent.close()
        # The twin: the same state, token and pin, and the true CA.
        again = desk.membership(text=token)
        await joins(again)
        await again.agent.close()


async def test_a_false_ca_with_a_bundle_of_its_own_is_not_even_asked_again(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        evil = authority.make(DOMAIN, desk.clock().replace(microsecond=0))
        bundle = documents.Bundle(DOMAIN, 1 << 40, (evil.root.certificate,), certificate_digest(evil.root.certificate))
        document = documents.sign_bundle(bundle, [evil.root])
        token = desk.make_credential("web")
        async with desk.false_ca(evil_keys(desk, evil)) as false:
            false.lies["/v1/bundle"] = always(200, {"bundles": [json.loads(document)]})
            sidecar = desk.membership(false.address, text=token)
            await refused_at_first(sidecar)
            assert sidecar.said("bundle_failed")
            assert set(false.asked) == {"/v1/bundle"}
            assert not any(false.bodies)
            await sidecar.agent.close()
            # The twin: whoever pins that other root believes that bundle, and still sends it no token of this mesh.
            other = desk.membership(false.address, text=token, pin=bundle.active, state="other")
            with pytest.raises(UsageError, match=desk.ca.root_digest.hex()[:16]):
                await other.agent.enrol()
            assert other.log.events("trust_bundle")
            assert not any(false.bodies)
            await other.agent.close()


def evil_keys(desk: Desk, evil: authority.Made) -> KeyPair:
    root = evil.root.certificate
    own = authority.Authority(DOMAIN, (root,), root, evil.issuing, None)
    return key_pair(authority.issue(own, "mesh/ca", desk.clock(), HOUR))


async def test_a_token_of_another_mesh_is_not_sent_to_this_one(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        sidecar = desk.membership(text=desk.make_credential("web", root=b"\7" * 32))
        with pytest.raises(UsageError, match="0707"):
            await sidecar.agent.enrol()
        await sidecar.agent.close()
        assert desk.issued() == []
        again = desk.membership(text=desk.make_credential("web"))
        await joins(again)
        await again.agent.close()


async def test_a_pass_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        sidecar = desk.membership(text=desk.make_credential("web"))
        file = sidecar.identity.enrolment
        assert file is not None
        file.chmod(0o644)
        with pytest.raises(UsageError, match=re.escape(str(file))):
            await sidecar.agent.enrol()
        assert desk.issued() == []
        file.chmod(0o600)
        await joins(sidecar)
        await sidecar.agent.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b""])
async def test_whatever_is_no_tls_hears_a_hello_and_nothing_else(answer: bytes, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token, heard = desk.make_credential("web"), bytearray()

        async def serve(listener: socket.socket) -> None:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                with sock:
                    heard.extend(await sockets.receive(sock, 65536))
                    if answer:
                        await sockets.send_all(sock, answer)

        with sockets.listen("test", "127.0.0.1", 0) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listener)
                sidecar = desk.membership(Address(*listener.getsockname()[:2]), text=token)
                await refused_at_first(sidecar)
                await sidecar.agent.close()
                nursery.cancel_scope.cancel()
        assert token.split(".")[1].encode() not in heard
        assert heard[:1] == b"\x16"


async def test_the_issuing_key_alone_makes_no_bundle_for_a_newcomer(tmp_path: Path) -> None:
    """Whoever stole the CA's issuing key shows a good ``mesh/ca``; it still cannot say whom to trust."""
    async with ca_desk(tmp_path) as desk:
        evil = authority.make(DOMAIN, desk.clock().replace(microsecond=0))
        issuing = Issuer(desk.ca.issuer.certificate, desk.ca.issuer.key)
        bundle = documents.Bundle(DOMAIN, 1 << 40, (evil.root.certificate,), certificate_digest(evil.root.certificate))
        token = desk.make_credential("web")
        async with desk.false_ca() as false:
            false.lies["/v1/bundle"] = always(200, {"bundles": [json.loads(documents.sign_bundle(bundle, [issuing]))]})
            sidecar = desk.membership(false.address, text=token)
            await refused_at_first(sidecar)
            assert sidecar.said("bundle_failed")
            assert not any(false.bodies)
            del false.lies["/v1/bundle"]
            await joins(sidecar)
            await sidecar.agent.close()


async def test_junk_in_place_of_bundles_is_told_once_an_answer(tmp_path: Path) -> None:
    """It was one line a document, 600,000 of them at each poll."""
    async with ca_desk(tmp_path) as desk, desk.false_ca() as false:
        junk = [{"type": "mesh-bundle/2", "payload": f"{number}", "signatures": []} for number in range(64)]
        false.lies["/v1/bundle"] = always(200, {"bundles": junk})
        sidecar = desk.membership(false.address, text=desk.make_credential("web"))
        await refused_at_first(sidecar)
        (said,) = sidecar.said("bundle_failed")
        assert said.startswith("64 trust bundles from the CA are refused; the last: ")
        # One more is not looked at, and neither is what is large.
        for lie, why in (([{}] * 65, "has 65 bundles"), ([{"payload": "x" * 300_000}], "larger than 256 KiB")):
            false.lies["/v1/bundle"] = always(200, {"bundles": lie})
            sidecar.log.lines.clear()
            assert why in await refused_at_first(sidecar)
            assert sidecar.said("bundle_failed") == []
        del false.lies["/v1/bundle"]
        await joins(sidecar)
        await sidecar.agent.close()


async def test_the_loop_goes_on_while_an_answer_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles and lists both: each waits here for something that only the loop does."""
    async with ca_desk(tmp_path) as desk:
        waiting, go_on = threading.Event(), threading.Event()
        waited: list[str] = []

        def slowly(name: str) -> None:
            verify = getattr(Trust, name)

            def run(*arguments: Any) -> Any:
                waiting.set()
                assert go_on.wait(PATIENCE)
                waited.append(name)
                return verify(*arguments)

            monkeypatch.setattr(Trust, name, run)

        slowly("learn")
        slowly("take")
        sidecar = desk.membership(text=desk.make_credential("web"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joins, sidecar)
            await trio.to_thread.run_sync(waiting.wait)
            go_on.set()
        assert waited == ["learn", "take"]
        await sidecar.agent.close()
