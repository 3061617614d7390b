"""The CA's name has several addresses, and something is wrong with one of them: dead, mute, broken, or somebody else's.

What must hold: the CA is reached at another address all the same, nothing of ours is told to whoever is not the CA, and an
impostor at one address is an alarm although nothing failed.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from certs.authority import authority
from certs.protocol import addresses
from certs.protocol import client as client_module
from certs.protocol.addresses import CaAddresses
from certs.protocol.client import CaClient, CaDeniedError, CaError, CaUnverifiedError
from sidecar.agent import accept
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import Reason
from sidecar.transport import sockets
from tests.beds.asking import Desk, ca_desk
from tests.beds.ca_files import DOMAIN, HOUR
from tests.beds.certificates import key_pair
from tests.beds.impostor import always
from tests.beds.patience import PATIENCE

NAME = Address("ca.mesh", 8443)
INSTANCE = "0" * 32


class Named:
    """A client that knows the CA by a name. ``alarms``: the impostors that it told of."""

    def __init__(self, desk: Desk, *places: tuple[str, int]) -> None:
        self.places = places
        self.alarms: list[CaUnverifiedError] = []
        self.client = CaClient(NAME, DOMAIN, desk.clock, self.alarms.append)
        self.client._addresses = CaAddresses(NAME, self.resolve)

    def resolve(self, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in self.places]


@asynccontextmanager
async def named(desk: Desk, *places: tuple[str, int]) -> AsyncIterator[Named]:
    made = Named(desk, *places)
    await made.client.use(desk.roots, Revocations())
    with trio.fail_after(PATIENCE):
        yield made
        await made.client.close()


def at(address: Address) -> tuple[str, int]:
    return address.host, address.port


def closed_port() -> tuple[str, int]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        return nobody.getsockname()  # type: ignore[no-any-return]


async def test_a_dead_address_and_a_mute_one_hold_nobody_up(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        with sockets.listen("test", "127.0.0.1", 0) as mute:  # its kernel answers, it never does
            async with named(desk, closed_port(), mute.getsockname(), at(desk.address)) as ours:
                assert await ours.client.bundles(0)
                assert ours.alarms == []
                # The next connection goes to the one that works.
                await ours.client.use(desk.roots, Revocations())
                place = (await ours.client._addresses.places())[0]
                assert place.address == at(desk.address)


async def test_the_twin_where_all_are_dead_each_is_named(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        one, other = closed_port(), closed_port()
        async with named(desk, one, other) as ours:
            with pytest.raises(CaError) as failed:
                await ours.client.bundles(0)
        said = str(failed.value)
        assert said.startswith("the CA at ca.mesh:8443 cannot be reached: at ")
        for _, port in (one, other):
            assert f"at 127.0.0.1:{port}: Connection refused" in said


async def test_a_mute_resolver_is_named_and_is_no_matter_once_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaks = threading.Event()
    async with ca_desk(tmp_path) as desk, named(desk, at(desk.address)) as ours:
        answer = ours.resolve

        def mute(*_: Any, **__: Any) -> list[Any]:
            speaks.wait(PATIENCE)
            return answer()

        ours.client._addresses = CaAddresses(NAME, mute)
        monkeypatch.setattr(client_module, "SECONDS", 0.1)
        with pytest.raises(CaError, match=r"cannot be reached: its host name was not resolved within 0\.1 s"):
            await ours.client.bundles(0)
        monkeypatch.undo()
        speaks.set()
        assert await ours.client.bundles(0)
        speaks.clear()
        monkeypatch.setattr(addresses, "LOOKUP_SECONDS", 0.01)
        await ours.client.use(desk.roots, Revocations())
        assert await ours.client.bundles(0)
        speaks.set()


@pytest.mark.parametrize("is_first", [True, False])
async def test_an_impostor_at_one_address_gets_nothing_and_is_told_of(is_first: bool, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        token, stranger = desk.make_credential("web"), key_pair(authority.issue(desk.ca, "api", desk.clock(), HOUR))
        async with desk.false_ca(stranger) as false:
            places = [at(false.address), at(desk.address)]
            async with named(desk, *(places if is_first else places[::-1])) as ours:
                assert await ours.client.enrol("web", token, accept.csr_for(new_key()))
                assert [one.refusal.reason for one in ours.alarms] == [Reason.UNEXPECTED_PEER] * is_first
                if is_first:
                    assert f"at ca.mesh:8443 (127.0.0.1:{false.port}) but met spiffe://{DOMAIN}/api" in str(
                        ours.alarms[0]
                    )
            assert false.received == b""


async def test_the_twin_impostors_alone_are_no_ca(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        stranger = key_pair(authority.issue(desk.ca, "api", desk.clock(), HOUR))
        async with desk.false_ca(stranger) as false, named(desk, closed_port(), at(false.address)) as ours:
            with pytest.raises(CaUnverifiedError, match=r"spiffe://shop\.internal/mesh/ca"):
                await ours.client.enrol("web", "a token", accept.csr_for(new_key()))
            assert ours.alarms == []  # the error itself says it
            assert false.received == b""


async def test_an_impostor_s_bundles_are_not_all_that_is_ever_seen(tmp_path: Path) -> None:
    """Without a trusted root nothing tells an impostor from the CA but what it answers: next time another is asked."""
    async with ca_desk(tmp_path) as desk, desk.false_ca() as false:
        false.lies["/v1/bundle"] = always(200, {"bundles": [{}]})
        async with named(desk, at(false.address), at(desk.address)) as ours:
            assert await ours.client.bundles(0, unverified=True) == [b"{}"]
            (document,) = await ours.client.bundles(0, unverified=True)
            assert json.loads(document)["type"] == "mesh-bundle/2"


async def test_a_request_that_breaks_off_is_repeated_at_another_address(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk, desk.false_ca() as false, named(desk, at(false.address)) as ours:
        await ours.client.revocations("", INSTANCE, 1)
        assert (false.asked, false.connections) == (["/v1/revocations"], 1)
        ours.places = (at(false.address), at(desk.address))
        assert ours.client._open is not None
        ours.client._open.stream.abandon()  # its host is gone
        await ours.client.revocations("", INSTANCE, 1)
        assert ours.client._open.place.address == at(desk.address)
        assert false.connections == 1


async def test_a_ca_with_a_fault_of_its_own_is_asked_last(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk, desk.false_ca() as false:
        false.lies["/v1/nonce"] = always(503, {"error": "unavailable", "message": "the store is down"})
        async with named(desk, at(false.address), at(desk.address)) as ours:
            with pytest.raises(CaDeniedError, match="unavailable"):
                await ours.client._post("/v1/nonce", {})
            assert await ours.client._post("/v1/nonce", {})
            assert false.asked == ["/v1/nonce"]
