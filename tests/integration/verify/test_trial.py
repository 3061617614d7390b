"""`sidecar verify` over real sidecars: a healthy mesh is proved, and each sabotage is found and named."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.transport import sockets
from sidecar.verify import stranger
from sidecar.verify.judgement import Attempt, Edge, Listener, Outcome, Report, Seen, Status
from sidecar.verify.trial import App as BesideApp
from sidecar.verify.trial import Place, failures, run
from tests.beds.certificates import HOUR, Authority
from tests.beds.mesh import MESH, App, Foreigner, inbound
from tests.beds.processes import free_port
from tests.beds.verified import VerifyBed, found, kinds, pem, verify_bed


async def test_a_healthy_mesh_is_proved_and_no_app_hears_of_it() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.place.apps.append(BesideApp("api", f"127.0.0.1:{free_port()}", "where nobody listens"))
        report = await bed.verify()
        assert failures(report) == []
        assert report.proved
        assert report.not_covered == []
        tried = {one.kind for one in report.checks}
        assert tried == {*map(str, Attempt), "edge", "policy", "certificate", "who answers", "app beside its sidecar"}
        assert [(it.holder, it.identity) for it in report.held] == [
            ("api", "spiffe://shop.internal/api"), ("web", "spiffe://shop.internal/web"),
        ]  # fmt: skip
        assert bed.app.connections == 0


async def test_what_it_does_alarms_nobody_and_is_marked_in_the_log() -> None:
    async with verify_bed() as bed:
        await bed.start()
        await bed.verify()
        assert bed.web.log.alarms == bed.api.log.alarms == []
        marked = {line["reason"] for line in bed.api.log.connections if line.get("probe")}
        assert marked == {"unknown_ca", "policy_denied", "expired", "revoked", "probe"}
        (edge,) = [line for line in bed.api.log.connections if line["reason"] == "probe"]
        assert (edge["decision"], edge["peer_id"]) == ("allow", "spiffe://shop.internal/web")
        # Strangers without a certificate cannot be told from others, and are told of as ever.
        assert {one.reason for one in bed.api.node.metrics.refusals} == {
            "plaintext_refused", "no_certificate", "tls_version",
        }  # fmt: skip


async def test_through_the_app_it_is_reached_once_an_edge() -> None:
    async with verify_bed() as bed:
        await bed.start()
        report = await bed.verify(through_app=True)
        assert failures(report) == []
        assert bed.app.connections == 1
        assert bed.app.received == b""
        (edge,) = [line for line in bed.api.log.connections if line["decision"] == "allow"]
        assert edge["probe"] is True


async def test_a_callee_that_keeps_no_channels_is_called_through_its_app_only() -> None:
    """A probe that ends before the app needs a kept channel's frames; without them it is not let in."""
    async with verify_bed() as bed:
        await bed.start(keep=0)
        report = await bed.verify()
        assert kinds(report) == {"edge"}
        assert (found(report, "edge").status, "--through-app" in found(report, "edge").seen) == (Status.NOT_TRIED, True)
        assert bed.app.connections == 0
        report = await bed.verify(through_app=True)
        assert failures(report) == []
        assert bed.app.connections == 1


async def test_without_a_word_beforehand_a_probe_is_refused_and_nothing_is_marked() -> None:
    async with verify_bed() as bed:
        await bed.start()
        (answer,) = await trio.to_thread.run_sync(bed.place.doors["web"].probe_all, ["api:http"], False)
        (result,) = answer["results"]
        assert (result["reason"], result["peer_reason"]) == ("peer_refused", "handshake_failed")
        assert "probe" not in await bed.api.log.connection()
        assert bed.app.connections == 0


# -- sabotages ---------------------------------------------------------------------------------------------------------


async def lenient(sock: socket.socket, _app: App, bed: VerifyBed) -> None:
    """api's own key in the hands of a program that asks nobody for a certificate, and takes every version of TLS."""
    peer = Foreigner(sock, bed.bed.authority.leaf("api"), server=True)
    await peer.handshake()
    await peer.send(b"\x02ok")
    await peer.receive()


async def standing_in(bed: VerifyBed, handler: Callable[..., object]) -> Report:
    """Verifies a mesh in which this answers where api's sidecar should."""
    await bed.start()

    async def handle(sock: socket.socket, app: App) -> None:
        try:
            await handler(sock, app, bed)  # type: ignore[misc]
        except Exception:  # it was refused by the prober, or cut
            sock.close()

    there = await bed.bed.app(handle)
    bed.place.listeners[:] = [Listener("api", "http", str(there.address))]
    return await bed.verify()


async def test_a_listener_that_lets_plaintext_in_is_found() -> None:
    async def echo(sock: socket.socket, _app: App, _bed: VerifyBed) -> None:
        while data := await sockets.receive(sock, 65536):
            await sockets.send_all(sock, data)

    async with verify_bed() as bed:
        report = await standing_in(bed, echo)
        assert not report.proved
        check = found(report, "plaintext")
        assert (check.status, check.seen[:30]) == (Status.FAILED, "let in: it answered in plainte")
        assert "does not speak TLS 1.3" in found(report, "foreign CA").seen


async def test_a_listener_that_asks_for_no_certificate_is_found() -> None:
    async with verify_bed() as bed:
        report = await standing_in(bed, lenient)
        check = found(report, "no certificate")
        assert (check.status, check.seen) == (Status.FAILED, "let in: its verdict is ok")


async def test_a_listener_that_takes_tls_1_2_is_found() -> None:
    async with verify_bed() as bed:
        report = await standing_in(bed, lenient)
        assert (found(report, "TLS 1.2").status, found(report, "TLS 1.2").seen) == (
            Status.FAILED, "let in: it speaks TLSv1.2",
        )  # fmt: skip


async def test_another_program_in_a_sidecar_s_place_is_found() -> None:
    async with verify_bed() as bed:
        report = await standing_in(bed, lenient)
        assert "something answers in its place" in found(report, "who answers").seen


async def test_a_wrong_root_that_is_trusted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = Authority(name="Somebody else's")
    monkeypatch.setattr(stranger, "foreign", lambda *_: pem(foreign.leaf("mesh/probe")))
    async with verify_bed() as bed:
        await bed.start(roots=foreign.roots, revoking=False)
        del bed.place.credentials[Attempt.REVOKED]
        report = await bed.verify()
        assert kinds(report) == {"foreign CA"}
        assert found(report, "foreign CA").seen.startswith("refused as policy_denied and not as unknown_ca")


async def test_a_rule_for_everybody_is_found_and_named() -> None:
    async with verify_bed() as bed:
        await bed.start()
        everybody = MESH + '  - {name: for-now, from: "spiffe://shop.internal/**", to: "*"}\n'
        for sidecar in (bed.api, bed.web):
            bed.put_in_force(sidecar, everybody)
        report = await bed.verify()
        assert kinds(report) == {str(Attempt.NO_RULE)}
        assert "let in: its verdict is probe, by rule 'for-now'" in found(report, str(Attempt.NO_RULE)).seen
        assert bed.app.connections == 0


async def test_an_app_beside_its_sidecar_is_found() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.place.apps.append(BesideApp("api", str(bed.app.address), "as anybody"))
        report = await bed.verify()
        assert kinds(report) == {"app beside its sidecar"}
        assert "past its sidecar" in found(report, "app beside its sidecar").seen


async def test_a_stale_policy_at_one_end_is_found() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.put_in_force(bed.api, MESH + '  - {from: reporting, to: "api:http"}\n')
        report = await bed.verify()
        assert kinds(report) == {"policy"}
        assert "one of them is stale" in found(report, "policy").seen


async def test_an_edge_whose_peer_is_down_is_found() -> None:
    async with verify_bed() as bed:
        await bed.start(peer=lambda: Address("127.0.0.1", free_port()))
        report = await bed.verify()
        assert kinds(report) == {"edge"}
        assert "connect_failed" in found(report, "edge").seen


async def test_an_impostor_at_a_peer_s_address_is_found_and_alarms() -> None:
    """It is a real one: what a probe meets is what a call would have met."""
    async with verify_bed() as bed:
        app = await bed.bed.app()
        other = await bed.bed.sidecar("reporting", inbound=[inbound("http", app.address)])
        await bed.start(peer=lambda: other.address("http"))
        report = await bed.verify()
        assert kinds(report) == {"edge"}
        assert "unexpected_peer" in found(report, "edge").seen
        assert [one["reason"] for one in bed.web.log.alarms] == ["unexpected_peer"]
        assert app.connections == 0


async def test_a_certificate_that_has_ended_is_found() -> None:
    async with verify_bed() as bed:
        now = utc_now()
        old = bed.bed.authority.leaf("web", not_before=now - 2 * HOUR, not_after=now - timedelta(minutes=1))
        await bed.start(web=old)
        report = await bed.verify()
        assert kinds(report) == {"edge", "certificate"}
        assert "expired" in found(report, "edge").seen
        assert "is good from" in found(report, "certificate").seen


async def test_a_revoked_identity_that_is_let_in_is_found() -> None:
    async with verify_bed() as bed:
        await bed.start(revoking=False)
        report = await bed.verify()
        assert kinds(report) == {str(Attempt.REVOKED)}
        assert found(report, str(Attempt.REVOKED)).seen.startswith("refused as policy_denied and not as revoked")


async def test_a_forbidden_edge_that_its_sidecar_calls_is_found() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.place.edges[:] = [Edge("web", "api:http", allowed=False)]
        report = await bed.verify()
        assert kinds(report) == {"forbidden edge"}


async def test_a_sidecar_that_cannot_be_asked_is_no_pass() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.place.doors["web"] = type(bed.place.doors["web"])("unix:/nonexistent")  # type: ignore[call-arg]
        report = await bed.verify()
        assert not report.proved
        assert {one.status for one in failures(report)} == {Status.NOT_TRIED}
        assert kinds(report) == {"edge", "certificate", "policy"}


async def test_a_listener_that_is_away_is_no_pass() -> None:
    async with verify_bed() as bed:
        await bed.start()
        bed.place.listeners[:] = [Listener("api", "http", f"127.0.0.1:{free_port()}")]
        report = await bed.verify()
        assert {one.status for one in failures(report)} == {Status.NOT_TRIED}
        assert kinds(report) == {*map(str, Attempt), "who answers"}


async def test_a_certificate_that_is_renewed_meanwhile_is_no_failure() -> None:
    """A sidecar renews it every half hour, and in a Compose project a run takes a while."""
    async with verify_bed() as bed:
        await bed.start()
        door = bed.place.doors["web"]
        asked: list[str] = []

        class Renewing:
            """web's door; after the first question its sidecar has another certificate."""

            def seen(self) -> dict[str, object]:
                asked.append("seen")
                told = door.seen()
                if len(asked) == 1:
                    told["certificate"]["sha256"] = "a" * 64  # the one before
                return told

            def __getattr__(self, name: str) -> object:
                return getattr(door, name)

        bed.place.doors["web"] = Renewing()  # type: ignore[assignment]
        report = await bed.verify()
        assert failures(report) == []
        assert len(asked) == 4


def test_nothing_tried_proves_nothing() -> None:
    assert not run(Place("nowhere", "shop.internal"), utc_now).proved


def test_a_stranger_who_does_not_answer_for_all_is_no_pass() -> None:
    place = Place("a test", "shop.internal", listeners=[Listener("api", "http", "127.0.0.1:1")])
    place.attempt_all = lambda wanted, _: [Seen(Outcome.REFUSED, "it closed")] * (len(wanted) - 1)
    report = run(place, utc_now)
    assert report.count(Status.NOT_TRIED) == 1
    assert not report.proved
