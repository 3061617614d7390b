"""What a sidecar does for `sidecar probe`: it calls what it may call, and tells nothing of what it may not."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import trio

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.observe import probe as client
from sidecar.proxy import probing
from sidecar.proxy.probing import Probing
from sidecar.transport.http1 import Peer, Request
from tests.beds.admin import LOOPBACK, admin, asked
from tests.beds.live import exchange
from tests.beds.mesh import MESH, App, Foreigner, connect, inbound, mesh_bed, outbound
from tests.beds.patience import PATIENCE
from tests.beds.processes import free_port
from tests.beds.verified import VerifyBed, verify_bed


async def ask(bed: VerifyBed, service: str, target: str, body: Any = None) -> tuple[int, Any]:
    listen = bed.place.doors[service].listen  # type: ignore[attr-defined]
    sent = None if body is None else json.dumps(body).encode()
    status, answer = await trio.to_thread.run_sync(client.ask, listen, target, sent)
    return status, json.loads(answer)


async def test_it_calls_a_declared_target_up_to_the_app() -> None:
    async with verify_bed() as bed:
        await bed.start()
        _, seen = await ask(bed, "web", "/probe/seen")
        told = {"callers": [seen["certificate"]["sha256"]], "strangers": [], "seconds": 60}
        assert await ask(bed, "api", "/probe/expect", told) == (200, {"seconds": 60})
        status, answer = await ask(bed, "web", "/probe", {"to": "api:http", "service": "web"})
        (result,) = answer["results"]
        assert (status, result["result"], result["peer_id"]) == (200, "ok", "spiffe://shop.internal/api")
        _, there = await ask(bed, "api", "/probe/seen")
        (record,) = there["records"]
        assert (record["connection_id"], record["decision"]) == (result["connection_id"], "allow")
        assert bed.app.connections == 0


async def announce_web(bed: VerifyBed) -> None:
    """Tells api's sidecar that web's will probe."""
    _, seen = await ask(bed, "web", "/probe/seen")
    await ask(bed, "api", "/probe/expect", {"callers": [seen["certificate"]["sha256"]], "seconds": 60})


@pytest.mark.parametrize(("through", "told"), [(False, True), (True, True), (False, False), (True, False)])
async def test_who_was_told_marks_a_probe_and_who_was_not_marks_nothing(through: bool, told: bool) -> None:
    """And ends it before the app, or refuses it: what only its caller says counts for nothing."""
    async with verify_bed() as bed:
        await bed.start()
        if told:
            await announce_web(bed)
        _, answer = await ask(bed, "web", "/probe", {"to": "api:http", "through_app": through})
        (result,) = answer["results"]
        assert (result["result"], result.get("peer_reason")) == (
            ("ok", None) if told or through else ("refused", "handshake_failed")
        )
        line = await bed.api.log.connection()
        assert line.get("probe", False) is told
        assert (line["reason"], line["decision"]) == (
            ("ok", "allow") if through else ("probe", "allow") if told else ("handshake_failed", "deny")
        )
        assert bed.app.connections == through


async def test_a_call_of_a_sidecar_that_was_announced_is_a_call_as_ever() -> None:
    async with verify_bed() as bed:
        await bed.start()
        await announce_web(bed)
        sock = await connect(bed.web.address("api:http", "outbound"))
        await exchange(sock)
        sock.close()
        assert "probe" not in await bed.api.log.connection()
        assert bed.app.connections == 1


async def test_the_trial_that_was_let_in_is_a_probe_in_the_callee_s_log_and_a_call_is_none() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        web = await bed.sidecar(
            "web", outbound=[outbound("api", "http", api.address("http"))], timeouts=Timeouts(wait=600.0)
        )
        await api.log.until(lambda: bool(api.log.events("connection")))
        with trio.fail_after(PATIENCE):
            while web.server.waiting.reasons:
                await trio.lowlevel.checkpoint()
        with await connect(web.address("api:http", "outbound")) as caller:
            await exchange(caller)
        await api.log.until(lambda: len(api.log.events("connection")) == 2)
        lines = api.log.events("connection")
        assert [(line["reason"], line["decision"], line.get("probe", False)) for line in lines] == [
            ("ok", "allow", True),
            ("ok", "allow", False),
        ]


@pytest.mark.parametrize("to", ["api:metrics", "db:5432", "nobody:80", "127.0.0.1:80", ""])
async def test_what_is_not_declared_gets_one_word(to: str) -> None:
    async with verify_bed() as bed:
        await bed.start()
        _, answer = await ask(bed, "web", "/probe", {"to": to})
        assert answer == {"to": to, "policy": answer["policy"], "rule": None, "results": [], "reason": "not_declared"}
        assert bed.web.log.lines == bed.api.log.connections == []


async def test_what_the_policy_forbids_is_not_called() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.put_in_force(bed.web, MESH.replace('- {from: web, to: "api:http"}', "- {from: api, to: db, name: x}"))
        _, answer = await ask(bed, "web", "/probe", {"to": "api:http"})
        assert (answer["reason"], answer["results"]) == ("policy_denied", [])
        assert bed.api.log.connections == []


async def test_every_address_is_called() -> None:
    async with verify_bed() as bed:
        await bed.start()
        node, other = bed.web.node, Address("127.0.0.1", free_port())
        route = outbound("api", "http", bed.api.address("http"), other, Address("nobody.invalid", 80))
        one = Probing(node, lambda: [route], lambda: bed.bed.keys(bed.bed.authority.leaf("web")), list)
        answer = await one.probe("api:http", through_app=True)
        assert [(it["address"] == str(other), it["result"]) for it in answer["results"]] == [
            (False, "ok"), (True, "refused"),
        ]  # fmt: skip


async def test_a_name_that_has_no_address_is_told() -> None:
    async with mesh_bed() as bed:
        web = await bed.sidecar("web")
        route = outbound("api", "http", Address("nobody.invalid", 80))
        one = Probing(web.node, lambda: [route], lambda: bed.keys(bed.authority.leaf("web")), list)
        assert (await one.probe("api:http"))["reason"] == "connect_failed"


async def test_its_own_listener_is_not_called() -> None:
    async with mesh_bed() as bed:
        web, _, entry = await bed.pair()
        route = outbound("api", "http", entry)
        one = Probing(
            web.node, lambda: [route], lambda: bed.keys(bed.authority.leaf("web")), lambda: web.server.listening
        )
        (result,) = (await one.probe("api:http"))["results"]
        assert result["result"] == "refused"
        assert "itself" in result["message"]


@pytest.mark.parametrize(
    "body",
    [
        [], {"to": 1}, {}, {"to": "api:http", "through_app": "yes"}, {"to": "api:http", "service": "db"},
        {"to": "api:http", "service": 1},
    ],
)  # fmt: skip
async def test_a_question_that_is_none_is_refused(body: Any) -> None:
    async with verify_bed() as bed:
        await bed.start()
        assert (await ask(bed, "web", "/probe", body))[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        {"callers": "a" * 64, "seconds": 60},
        {"callers": {"a" * 64: 1}, "seconds": 60},
        {"callers": [1], "seconds": 60}, {"seconds": True}, {"seconds": "60"}, {},
        {"callers": ["a"], "seconds": 60}, {"seconds": 6000},
    ],
)  # fmt: skip
async def test_an_announcement_that_is_none_is_refused(body: Any) -> None:
    async with verify_bed() as bed:
        await bed.start()
        assert (await ask(bed, "api", "/probe/expect", body))[0] == 400
        assert not bed.api.node.announced.is_open(bed.api.node.time())


async def test_a_service_that_is_no_text_is_none() -> None:
    known: dict[str, Probing] = {}
    handler = probing.routes(lambda name: known.get(name or ""))["/probe"]["POST"]
    answer = await handler(Request(Peer("", None, ()), {}, {}, b'{"to": "api:http", "service": [1]}'))
    assert (answer.status, b"no sidecar of this service" in answer.body) == (400, True)


async def test_a_peer_that_gives_no_verdict_has_proved_who_it_is_and_no_more() -> None:
    async with mesh_bed() as bed:

        async def raw(sock: socket.socket, _app: App) -> None:
            peer = Foreigner(sock, bed.authority.leaf("api"), server=True, alpn=())
            await peer.handshake()
            await peer.close()

        there = await bed.app(raw)
        web = await bed.sidecar("web")
        route = outbound("api", "http", there.address)
        one = Probing(web.node, lambda: [route], lambda: bed.keys(bed.authority.leaf("web")), list)
        (result,) = (await one.probe("api:http"))["results"]
        assert (result["result"], result["verdict"], result["peer_id"]) == ("ok", False, "spiffe://shop.internal/api")


async def test_through_the_app_there_is_a_verdict() -> None:
    async with verify_bed() as bed:
        await bed.start()
        _, answer = await ask(bed, "web", "/probe", {"to": "api:http", "through_app": True})
        assert answer["results"][0]["verdict"] is True


async def test_it_is_a_post() -> None:
    async with verify_bed() as bed:
        await bed.start()
        for target in ("/probe", "/probe/expect"):
            assert (await ask(bed, "web", target))[0] == 405
        assert (await ask(bed, "web", "/probe/seen", {}))[0] == 405


async def test_the_admin_port_over_tcp_knows_none_of_it() -> None:
    async with admin(LOOPBACK) as one:
        for target in ("/probe", "/probe/expect", "/probe/seen"):
            for method in ("GET", "POST"):
                assert (await asked(one.address, target, method=method))[0] == 404


async def test_a_slow_peer_costs_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole answer comes within the time that a request has."""
    monkeypatch.setattr(probing, "SECONDS", 0.2)

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    async with mesh_bed() as bed:
        silent = await bed.app(never)
        web = await bed.sidecar("web")
        route = outbound("api", "http", silent.address)
        one = Probing(web.node, lambda: [route], lambda: bed.keys(bed.authority.leaf("web")), list)
        with trio.fail_after(PATIENCE):
            (result,) = (await one.probe("api:http"))["results"]
        assert (result["result"], result["reason"]) == ("refused", "handshake_timeout")
