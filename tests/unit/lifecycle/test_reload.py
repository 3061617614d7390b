"""Files that change under a running sidecar: what is good is in force at once, what is not is said, and the last good stays.

Each test drives the real :class:`Reloader` over real files, on a virtual clock: a ``look`` is one second of it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from trio.testing import MockClock

from sidecar.agent.credentials import Credentials
from sidecar.agent.schedule import refresh_at
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import load_config
from sidecar.host.follow import LOOK_SECONDS, OPEN_SECONDS, mounted
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import SpiffeId, parse_svid
from sidecar.lifecycle import reload
from sidecar.lifecycle.reload import Reloader, load_credentials, snapshot
from sidecar.observe.logs import Log
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.transport import tls
from tests.beds.certificates import DAY, Authority, Credential
from tests.beds.clock import Time
from tests.beds.mesh import MESH, LogSink
from tests.unit.host.test_follow import fake_mounts

AUTHORITY = Authority()
WIRING = """\
service: api
mesh: mesh.yaml
identity: {files: {certificate: own/certificate.pem, key: own/key.pem, bundle: own/bundle.pem}}
inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]
outbound: [{to: "db:5432", listen: "127.0.0.1:0", peers: ["127.0.0.1:9"]}]
"""
FORBIDDEN = MESH.replace('- {from: web, to: "api:http"}', "")
BROKEN = MESH.replace("from: web", "from: wbe")


class Site:
    """api's files, and whoever follows them. ``now`` is the wall clock that it goes by."""

    def __init__(self, path: Path, *, credential: Credential | None = None, files: str = "own") -> None:
        self.path = path
        self.own = path / files
        self.mesh = path / "mesh.yaml"
        self.wiring = path / "sidecar.yaml"
        self.mesh.write_text(MESH)
        self.wiring.write_text(WIRING)
        (credential or AUTHORITY.leaf("api")).write(self.own)
        self.now = datetime.now(UTC)
        self.log = LogSink()
        self.reloader = self.follow()
        self.node = self.reloader.node

    def follow(self, meanwhile: Callable[[], None] = lambda: None) -> Reloader:
        """Starts: reads the files, and then (``meanwhile`` they may change) begins to follow them."""
        config = load_config(self.wiring, {})
        loaded = load_credentials(config, config.mesh, self.now)
        node = Node(config, snapshot("api", config.mesh, loaded.keys), Log(self.log, "json"), clock=lambda: self.now)
        meanwhile()
        return Reloader(node, loaded, {})

    def said(self, event: str) -> list[str]:
        return [line["message"] for line in self.log.events(event)]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]

    @property
    def certificate(self) -> bytes:
        """The one in force."""
        return self.reloader.loaded.svid.serial.to_bytes(20, "big")

    async def looks(self, number: float = 3) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        await Time(clock).passes(number * LOOK_SECONDS)

    async def opens(self) -> None:
        """Until a change that could allow more has taken effect."""
        await self.looks(3 + OPEN_SECONDS / LOOK_SECONDS)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def followed(site: Site, nursery: trio.Nursery) -> Site:
    """A site whose files have been followed for a while; each look is half a second from every step of the test."""
    nursery.start_soon(site.reloader.run)
    await site.looks(0.5)
    await site.looks()
    assert site.events == []
    return site


def serial(credential: Credential) -> bytes:
    return credential.certificate.serial_number.to_bytes(20, "big")


def rename(path: Path, content: bytes | str) -> None:
    """As editors, and whoever is careful, write a file."""
    data = content.encode() if isinstance(content, str) else content
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_bytes(data)
    fresh.chmod(0o600)
    fresh.rename(path)


def in_place(path: Path, content: bytes | str) -> None:
    """As ``cp`` and ``>`` do."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# -- however it is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [rename, in_place])
async def test_a_changed_policy_is_in_force_within_two_looks(
    followed: Site, mock_clock: MockClock, write: Callable[[Path, str], None]
) -> None:
    write(followed.mesh, FORBIDDEN)
    await followed.looks()
    assert len(followed.node.current.mesh.rules) == 2
    assert followed.said("reloaded") == [f"in force now: policy of {followed.mesh}, rules: 2"]
    await followed.looks(10)
    assert followed.events == ["reloaded"]  # once


@pytest.mark.parametrize("write", [rename, in_place])
async def test_a_new_certificate_with_its_key_is_in_force_for_new_connections(
    followed: Site, mock_clock: MockClock, write: Callable[[Path, bytes], None]
) -> None:
    fresh, before = AUTHORITY.leaf("api"), followed.node.current
    write(followed.own / "certificate.pem", fresh.chain_pem)
    write(followed.own / "key.pem", fresh.key_pem)
    await followed.looks()
    assert followed.certificate == serial(fresh)
    assert followed.node.current is not before
    assert followed.node.current.mesh is before.mesh or followed.node.current.mesh == before.mesh
    [said] = followed.said("reloaded")
    assert said.startswith("in force now: certificate, good until ")


async def test_a_swapped_symlink_as_kubernetes_mounts_have_it(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """``own/key.pem -> ..data/key.pem``, ``..data -> ..2026_1``: one rename swaps all of them at once."""
    own, first, second = tmp_path / "own", AUTHORITY.leaf("api"), AUTHORITY.leaf("api")
    first.write(own / "..2026_1")
    (own / "..data").symlink_to("..2026_1")
    for name in ("certificate.pem", "key.pem", "bundle.pem"):
        (own / name).symlink_to(f"..data/{name}")
    site = Site(tmp_path, credential=first, files="own/..2026_1")
    nursery.start_soon(site.reloader.run)
    await site.looks()
    second.write(own / "..2026_2")
    (own / "..fresh").symlink_to("..2026_2")
    (own / "..fresh").rename(own / "..data")
    shutil.rmtree(own / "..2026_1")
    await site.looks()
    assert site.certificate == serial(second)
    assert site.events == ["reloaded"]


async def test_a_half_written_file_settles_first(followed: Site, mock_clock: MockClock) -> None:
    whole = FORBIDDEN.encode()
    for size in range(40, len(whole), 40):
        in_place(followed.mesh, whole[:size])
        await followed.looks(1)
    assert followed.events == []
    in_place(followed.mesh, whole)
    await followed.looks()
    assert followed.events == ["reloaded"]


async def test_a_file_that_stays_half_written_is_refused_and_its_rest_is_taken(
    followed: Site, mock_clock: MockClock
) -> None:
    in_place(followed.mesh, FORBIDDEN[: FORBIDDEN.index("from: web") + 6])
    await followed.looks()
    assert followed.events == ["reload_refused"]
    assert len(followed.node.current.mesh.rules) == 3
    assert list(followed.reloader.refused) == ["mesh"]
    in_place(followed.mesh, FORBIDDEN)
    await followed.looks()
    assert followed.events == ["reload_refused", "reloaded"]
    assert len(followed.node.current.mesh.rules) == 2
    assert followed.reloader.refused == {}


@pytest.mark.parametrize("minutes", [30, 90])
async def test_how_old_a_list_may_be_counts_at_once_for_the_list_in_force(
    followed: Site, mock_clock: MockClock, minutes: int
) -> None:
    """Without the CA, which may be cut off by whoever hides a revocation."""
    until = followed.now + timedelta(minutes=50)
    followed.reloader.revocations = Revocations(fresh_until=until)
    in_place(followed.mesh, f"revocation_staleness: {minutes}m\n{MESH}")
    await followed.opens()
    assert followed.reloader.revocations.fresh_until == until + timedelta(minutes=minutes - 60)
    assert followed.node.current.context.params.revocations is followed.reloader.revocations


DENYING = MESH + '  - {name: not-web, from: web, to: "api:http", action: deny}\n'


@pytest.mark.parametrize("end", ["", "...\n", "...  # the end\n# of it\n"])
async def test_the_beginning_of_a_file_that_opens_lets_nobody_in(
    followed: Site, mock_clock: MockClock, end: str
) -> None:
    """It is valid, and what it lacks is a denial."""
    in_place(followed.mesh, DENYING + end)
    await followed.looks()
    in_place(followed.mesh, MESH)
    await followed.looks(3)
    assert len(followed.node.current.mesh.rules) == 4
    in_place(followed.mesh, DENYING + end)
    await followed.opens()
    assert len(followed.node.current.mesh.rules) == 4
    assert followed.events[0] == "reloaded"
    in_place(followed.mesh, MESH + end)  # its twin: whole, and left alone
    await followed.opens()
    assert len(followed.node.current.mesh.rules) == 3
    why = f"{followed.mesh}: rule 'not-web' is gone, or denies less than before; takes effect when the file has not changed"
    assert followed.said("reload_waiting")[-1].startswith(why)


async def test_where_the_text_in_force_says_where_it_ends_one_that_does_not_is_refused_however_long_it_stays(
    followed: Site, mock_clock: MockClock
) -> None:
    in_place(followed.mesh, DENYING + "...\n")
    await followed.looks()
    for beginning in (MESH, DENYING + "..\n", DENYING):
        in_place(followed.mesh, beginning)
        await followed.looks(60)
        assert len(followed.node.current.mesh.rules) == 4
    [*_, said] = followed.said("reload_refused")
    assert f"{followed.mesh}: is incomplete: the text in force ends with a line ..., and this one does not" in said
    await followed.reloader.reload()  # nor by hand
    assert len(followed.node.current.mesh.rules) == 4
    in_place(followed.mesh, MESH + "...\n")
    await followed.opens()
    assert len(followed.node.current.mesh.rules) == 3


@pytest.mark.parametrize("names", [("certificate.pem", "key.pem"), ("key.pem", "certificate.pem")])
async def test_a_certificate_and_its_key_are_taken_together(
    followed: Site, mock_clock: MockClock, names: tuple[str, str]
) -> None:
    fresh = AUTHORITY.leaf("api")
    content = {"certificate.pem": fresh.chain_pem, "key.pem": fresh.key_pem}
    old = followed.certificate
    rename(followed.own / names[0], content[names[0]])
    await followed.looks(1)
    assert followed.certificate == old
    rename(followed.own / names[1], content[names[1]])
    await followed.looks()
    assert followed.certificate == serial(fresh)
    assert followed.events == ["reloaded"]  # nothing was refused on the way


@pytest.mark.parametrize("names", [("certificate.pem", "key.pem"), ("key.pem", "certificate.pem")])
async def test_half_of_a_pair_that_stays_alone_is_told_and_the_old_pair_stays(
    followed: Site, mock_clock: MockClock, names: tuple[str, str]
) -> None:
    fresh = AUTHORITY.leaf("api")
    content = {"certificate.pem": fresh.chain_pem, "key.pem": fresh.key_pem}
    old, before = followed.certificate, followed.node.current
    rename(followed.own / names[0], content[names[0]])
    await followed.looks(60)
    assert followed.node.current is before
    assert followed.certificate == old
    [said] = followed.said("reload_refused")
    assert "the key does not belong to the certificate" in said
    assert f"still in force: the certificate that is good until {followed.reloader.loaded.svid.not_after:%F %T}" in said
    rename(followed.own / names[1], content[names[1]])
    await followed.looks()
    assert followed.certificate == serial(fresh)
    assert followed.events == ["reload_refused", "reloaded"]


# -- what is broken does not count, and keeps nothing else out ---------------------------------------------------------


async def test_a_broken_mesh_file_is_refused_with_its_line_and_a_new_certificate_is_taken(
    followed: Site, mock_clock: MockClock
) -> None:
    fresh, before = AUTHORITY.leaf("api"), followed.node.current.mesh
    rename(followed.mesh, BROKEN)
    rename(followed.own / "certificate.pem", fresh.chain_pem)
    rename(followed.own / "key.pem", fresh.key_pem)
    await followed.looks()
    [said] = followed.said("reload_refused")
    assert f"{followed.mesh}:9: policy[0].from: unknown service 'wbe' (did you mean 'web'?)" in said
    assert said.endswith(f"; still in force: the policy of {followed.mesh} as it was read before")
    assert followed.node.current.mesh == before
    assert followed.certificate == serial(fresh)
    assert followed.said("reloaded")[0].startswith("in force now: certificate")


async def test_a_broken_certificate_is_refused_and_a_new_policy_is_taken(followed: Site, mock_clock: MockClock) -> None:
    old = followed.certificate
    rename(followed.own / "certificate.pem", b"-----BEGIN CERTIFICATE-----\nrubbish")
    rename(followed.mesh, FORBIDDEN)
    await followed.looks()
    assert followed.certificate == old
    assert len(followed.node.current.mesh.rules) == 2
    assert len(followed.said("reload_refused")) == 1
    assert followed.said("reloaded") == [f"in force now: policy of {followed.mesh}, rules: 2"]


async def test_what_was_refused_is_told_again_when_the_files_are_good_again(
    followed: Site, mock_clock: MockClock
) -> None:
    rename(followed.mesh, BROKEN)
    await followed.looks(60)
    assert followed.events == ["reload_refused"]  # once, not once a look
    rename(followed.mesh, MESH)
    await followed.looks()
    assert followed.said("reloaded") == ["in force now: the values from before; their files are good again"]


async def test_what_is_still_refused_is_not_called_good(followed: Site, mock_clock: MockClock) -> None:
    for text in (BROKEN, BROKEN + "# worse\n"):
        rename(followed.mesh, text)
        await followed.looks()
    assert followed.events == ["reload_refused", "reload_refused"]


@pytest.mark.parametrize("name", ["mesh.yaml", "own/certificate.pem", "own/key.pem", "own/bundle.pem"])
async def test_a_file_vanishes_and_returns(followed: Site, mock_clock: MockClock, name: str) -> None:
    before, away = followed.node.current, followed.path / "away"
    (followed.path / name).rename(away)
    await followed.looks()
    assert followed.events == ["reload_refused"]
    assert str(followed.path / name) in followed.said("reload_refused")[0]
    assert followed.node.current is before
    away.rename(followed.path / name)
    await followed.looks()
    assert followed.events == ["reload_refused", "reloaded"]


async def test_a_file_that_is_away_for_a_moment_is_not_missed(followed: Site, mock_clock: MockClock) -> None:
    followed.mesh.unlink()
    await followed.looks(1)
    followed.mesh.write_text(MESH)
    await followed.looks()
    assert followed.events == []


NOW = AUTHORITY.now
OTHER = Authority("other.internal")
STRANGER = Authority()


@pytest.mark.parametrize(
    ("credential", "why"),
    [
        (AUTHORITY.leaf("api", not_after=NOW - timedelta(minutes=1)), "is expired"),
        (AUTHORITY.leaf("api", not_before=NOW + DAY, not_after=NOW + DAY + timedelta(hours=1)), "is good only from"),
        (AUTHORITY.leaf("api", lifetime=30 * DAY), "max_leaf_ttl"),
        (AUTHORITY.leaf("web"), "the certificate is for spiffe://shop.internal/web, but this sidecar is"),
        (OTHER.leaf("api"), "spiffe://other.internal/api"),
        (STRANGER.leaf("api").trusting(*AUTHORITY.roots), "does not verify against our trust bundle"),
    ],
    ids=["expired", "not yet valid", "too long", "another service", "another trust domain", "another CA"],
)
async def test_a_certificate_that_peers_would_refuse_is_refused_here(
    followed: Site, mock_clock: MockClock, credential: Credential, why: str
) -> None:
    before = followed.node.current
    credential.write(followed.own)
    await followed.looks()
    [said] = followed.said("reload_refused")
    assert why in said
    assert "still in force: the certificate that is good until" in said
    assert followed.node.current is before
    AUTHORITY.leaf("api").write(followed.own)  # the honest twin
    await followed.looks()
    assert followed.events == ["reload_refused", "reloaded"]


async def test_another_trust_domain_is_another_mesh(followed: Site, mock_clock: MockClock) -> None:
    before = followed.node.current
    rename(followed.mesh, MESH.replace("shop.internal", "evil.internal"))
    await followed.looks()
    assert "its trust_domain has changed, which takes effect with a restart only" in followed.said("reload_refused")[0]
    assert followed.node.current is before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "trust_domain: shop.internal\nservices: {web: {}}\n",
            "service 'api', which this sidecar serves, is not in it any more",
        ),
        (MESH.replace("http: 8080, metrics", "metrics").replace('"api:http"', "db"), "wired to api:http"),
        (
            "trust_domain: shop.internal\nservices: {web: {}, api: {ports: {http: 8080}}}\n",
            "wired to db:5432, and unknown service 'db'",
        ),
    ],
    ids=["our service", "our port", "a callee"],
)
async def test_a_mesh_without_what_this_sidecar_is_wired_to_is_refused(
    followed: Site, mock_clock: MockClock, text: str, why: str
) -> None:
    before = followed.node.current
    rename(followed.mesh, text)
    # Also if the wiring has been changed to match, since that takes effect with a restart only.
    rename(followed.wiring, WIRING.replace("service: api", "service: web").partition("inbound")[0])
    await followed.looks()
    assert why in followed.said("reload_refused")[0]
    assert followed.node.current is before
    rename(followed.mesh, FORBIDDEN)
    await followed.looks()
    assert len(followed.node.current.mesh.rules) == 2


async def test_a_fault_of_ours_in_a_reload_is_logged_and_ends_nothing(
    followed: Site, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = followed.node.current

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(reload, "snapshot", broken)
        rename(followed.mesh, FORBIDDEN)
        await followed.looks()
    assert followed.events == ["reload_failed"]
    assert followed.node.current is before
    rename(followed.mesh, FORBIDDEN + "# again\n")
    await followed.looks()
    assert followed.events == ["reload_failed", "reloaded"]


async def test_a_fault_of_ours_in_one_file_s_reading_keeps_no_other_out(
    followed: Site, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    fresh, before = AUTHORITY.leaf("api"), followed.node.current.mesh
    monkeypatch.setattr(reload, "load_mesh", broken)
    rename(followed.mesh, FORBIDDEN)
    fresh.write(followed.own)
    await followed.looks()
    assert followed.events == ["reload_failed", "reloaded"]
    assert followed.certificate == serial(fresh)
    assert followed.node.current.mesh == before


async def test_what_is_refused_is_not_refused_again_when_another_file_changes(
    followed: Site, mock_clock: MockClock
) -> None:
    rename(followed.mesh, BROKEN)
    await followed.looks()
    AUTHORITY.leaf("api").write(followed.own)
    await followed.looks()
    assert followed.events == ["reload_refused", "reloaded"]
    await followed.reloader.reload()  # whoever asks is told again
    assert followed.events == ["reload_refused", "reloaded", "reload_refused"]


# -- the wiring --------------------------------------------------------------------------------------------------------


async def test_a_changed_wiring_needs_a_restart_and_that_is_said_once(followed: Site, mock_clock: MockClock) -> None:
    config = followed.node.config
    rename(followed.wiring, WIRING + "timeouts: {drain: 1s}\n")
    await followed.looks()
    assert followed.said("restart_needed") == [f"{followed.wiring} has changed; the change takes effect with a restart"]
    rename(followed.mesh, FORBIDDEN)  # the policy is taken nevertheless
    await followed.looks()
    assert followed.events == ["restart_needed", "reloaded"]
    assert followed.node.config is config
    rename(followed.wiring, WIRING)
    await followed.looks()
    rename(followed.wiring, WIRING + "timeouts: {drain: 2s}\n")
    await followed.looks()
    assert followed.events == ["restart_needed", "reloaded"], "said a moment ago"
    await followed.looks(60)
    assert followed.events == ["restart_needed", "reloaded", "restart_needed"], "it stays"


async def test_a_comment_in_the_wiring_is_no_change(followed: Site, mock_clock: MockClock) -> None:
    rename(followed.wiring, f"# our sidecar\n{WIRING}")
    await followed.looks()
    assert followed.events == []


async def test_a_broken_wiring_is_told_and_keeps_no_policy_out(followed: Site, mock_clock: MockClock) -> None:
    rename(followed.wiring, WIRING + "tymeouts: {}\n")
    rename(followed.mesh, FORBIDDEN)
    await followed.looks()
    [said] = followed.said("restart_needed")
    assert "tymeouts" in said
    assert said.endswith("the wiring stays as it is, and a restart would not succeed")
    assert len(followed.node.current.mesh.rules) == 2


async def test_a_wiring_that_names_another_mesh_file_changes_nothing_before_a_restart(
    followed: Site, mock_clock: MockClock
) -> None:
    (followed.path / "other.yaml").write_text(FORBIDDEN)
    rename(followed.wiring, WIRING.replace("mesh.yaml", "other.yaml"))
    await followed.looks()
    assert followed.events == ["restart_needed"]
    assert len(followed.node.current.mesh.rules) == 3


# -- trust -------------------------------------------------------------------------------------------------------------


async def test_a_root_more_and_a_root_less(followed: Site, mock_clock: MockClock) -> None:
    second = Authority(name="Second")
    rename(followed.own / "bundle.pem", AUTHORITY.bundle_pem + second.bundle_pem)
    await followed.looks()
    assert len(followed.node.current.context.anchors) == 2
    rename(followed.own / "bundle.pem", AUTHORITY.bundle_pem)
    await followed.looks()
    assert len(followed.node.current.context.anchors) == 1
    assert followed.said("reloaded") == [f"in force now: trust bundle, roots: {number}" for number in (2, 1)]


async def test_a_bundle_without_our_own_root_is_refused(followed: Site, mock_clock: MockClock) -> None:
    """We would trust nobody who trusts us."""
    rename(followed.own / "bundle.pem", Authority(name="Second").bundle_pem)
    await followed.looks()
    assert followed.events == ["reload_refused"]
    assert len(followed.node.current.context.anchors) == 1


@pytest.mark.parametrize("content", [b"", b"# no certificate\n", AUTHORITY.leaf("api").chain_pem])
async def test_a_bundle_of_no_roots_is_refused(followed: Site, mock_clock: MockClock, content: bytes) -> None:
    before = followed.node.current
    rename(followed.own / "bundle.pem", content)
    await followed.looks()
    assert followed.events == ["reload_refused"]
    assert followed.node.current is before


# -- by signal, and at the start ---------------------------------------------------------------------------------------


async def test_a_reload_by_hand_does_not_wait_for_a_look(site: Site) -> None:
    in_place(site.mesh, FORBIDDEN)
    await site.reloader.reload()
    assert len(site.node.current.mesh.rules) == 2
    await site.reloader.reload()
    assert site.events == ["reloaded"]  # nothing is new the second time


async def test_what_is_taken_back_after_a_reload_by_hand_is_noticed(followed: Site, mock_clock: MockClock) -> None:
    in_place(followed.mesh, FORBIDDEN)
    await followed.reloader.reload()
    in_place(followed.mesh, MESH)  # between two looks: these have never seen anything else
    await followed.opens()
    assert len(followed.node.current.mesh.rules) == 3
    assert followed.events == ["reloaded", "reload_waiting", "reloaded"]


async def test_what_a_reload_by_hand_refused_is_not_refused_again_by_the_next_look(
    followed: Site, mock_clock: MockClock
) -> None:
    in_place(followed.mesh, BROKEN)
    await followed.reloader.reload()
    await followed.looks()
    assert followed.events == ["reload_refused"]


async def test_what_changed_between_the_start_and_the_first_look_is_not_missed(
    site: Site, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    reloader = site.follow(meanwhile=lambda: rename(site.mesh, FORBIDDEN))
    nursery.start_soon(reloader.run)
    await site.looks()
    assert site.events == ["reloaded"]
    assert len(reloader.node.current.mesh.rules) == 2


async def test_files_are_not_asked_for_what_the_ca_gives(site: Site) -> None:
    ca = CaIdentity(ca="https://ca.example", root_sha256="0" * 64, state_dir=Path("state"))
    config = replace(site.node.config, identity=ca)
    with pytest.raises(TypeError, match="that a CA issues has no credential files"):
        load_credentials(config, site.node.current.mesh, site.now)


async def test_a_policy_changes_while_the_ca_gives_the_identity(
    site: Site, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    ca = f"identity: {{ca: 'https://ca.example', root_sha256: '{'0' * 64}', state_dir: state}}"
    site.wiring.write_text(re.sub("identity: .*", ca, WIRING))
    node = Node(load_config(site.wiring, {}), site.node.current, Log(site.log, "json"), clock=lambda: site.now)
    reloader = Reloader(node, site.reloader.loaded, {})
    nursery.start_soon(reloader.run)
    await site.looks(0.5)
    rename(site.mesh, FORBIDDEN)
    await site.looks()
    assert len(node.current.mesh.rules) == 2
    assert node.current.context.own == site.node.current.context.own
    assert site.events == ["reloaded"]


# -- the clock ---------------------------------------------------------------------------------------------------------


async def test_our_own_certificate_s_end_is_told_before_and_when_it_comes(
    followed: Site, mock_clock: MockClock
) -> None:
    end = followed.reloader.loaded.svid.not_after
    followed.now = end - timedelta(minutes=11)
    await followed.looks()
    assert followed.events == []
    followed.now = end - timedelta(minutes=10)
    await followed.looks()
    assert followed.events == ["certificate_expiring"]
    followed.now = end - timedelta(seconds=1)
    await followed.looks()
    assert followed.events == ["certificate_expiring"]
    followed.now = end
    await followed.looks()
    assert followed.events == ["certificate_expiring", "certificate_expired"]
    assert f"{end:%F %T} UTC" in followed.said("certificate_expired")[0]


async def test_of_a_short_life_a_quarter_is_soon(tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    """A sidecar that renews at half of it, give or take a tenth, is never warned; one that does not is."""
    site = Site(tmp_path, credential=Authority().leaf("api", lifetime=timedelta(minutes=5)))
    svid = site.reloader.loaded.svid
    life = svid.not_after - svid.not_before
    site.now = refresh_at(svid.not_before, svid.not_after, 1.0)
    nursery.start_soon(site.reloader.run)
    await site.looks()
    assert site.events == []
    site.now = svid.not_after - life / 4
    await site.looks()
    assert site.events == ["certificate_expiring"]


async def test_a_new_certificate_ends_the_warnings(followed: Site, mock_clock: MockClock) -> None:
    followed.now = followed.reloader.loaded.svid.not_after - timedelta(minutes=9)
    await followed.looks()
    AUTHORITY.leaf("api", lifetime=timedelta(hours=3)).write(followed.own)
    await followed.looks()
    followed.now = followed.reloader.loaded.svid.not_after - timedelta(minutes=9)
    await followed.looks()
    assert followed.events == ["certificate_expiring", "reloaded", "certificate_expiring"]


# -- what a CA gives ---------------------------------------------------------------------------------------------------


def live(site: Site, peer: Credential, authority: Authority = AUTHORITY) -> Live:
    """A connection of ``peer`` to our port ``http`` that was let in."""
    svid = parse_svid(peer.der)
    path = (*peer.chain_der, authority.root.certificate.public_bytes(Encoding.DER))
    found = Live()
    found.admission = Admission(svid.id, "api", "http", svid, path, certificate_digest(authority.root.certificate))
    site.node.registry._live.add(found)
    return found


def given(credential: Credential, *roots: x509.Certificate) -> Credentials:
    """As a CA gives it."""
    assert isinstance(credential.key, tls.PrivateKey)
    return Credentials(
        tls.KeyPair(credential.chain, credential.key, roots or AUTHORITY.roots), parse_svid(credential.der)
    )


def fresh(site: Site, revoked: dict[SpiffeId, datetime] | None = None, minutes: int = 60) -> Revocations:
    return Revocations(revoked or {}, fresh_until=site.now + timedelta(minutes=minutes))


WEB = SpiffeId("shop.internal", ("web",))


async def test_a_certificate_that_the_ca_gave_is_in_force_and_cuts_nobody(site: Site) -> None:
    await site.reloader.adopt(site.reloader.loaded, fresh(site))
    one, before, new = live(site, AUTHORITY.leaf("web")), site.node.current, AUTHORITY.leaf("api")
    events = len(site.events)
    await site.reloader.adopt(given(new), fresh(site, minutes=61))
    assert site.certificate == serial(new)
    assert site.node.current is not before
    assert site.node.current.mesh is before.mesh
    assert one.reason is None
    assert len(site.events) == events  # each renewal and each fresh list would be a line


async def test_a_revocation_that_the_ca_told_cuts_its_connections_and_no_others(site: Site) -> None:
    web, db = live(site, AUTHORITY.leaf("web")), live(site, AUTHORITY.leaf("web", not_before=site.now))
    await site.reloader.adopt(site.reloader.loaded, fresh(site, {WEB: site.now.replace(microsecond=0)}))
    assert (web.reason, db.reason) == (Reason.REVOKED, None)
    [line] = site.log.events("reloaded")
    assert (line["message"], line["connections_cut"]) == ("in force now: the CA's trust bundle and revocations", 1)
    assert site.node.current.context.params.revocations.identities == {WEB: site.now.replace(microsecond=0)}


async def test_a_list_that_grows_stale_closes_the_door_and_cuts_nobody(site: Site) -> None:
    one = live(site, AUTHORITY.leaf("web"))
    await site.reloader.adopt(site.reloader.loaded, fresh(site, minutes=-1))
    assert one.reason is None
    assert site.node.current.context.params.revocations.fresh_until == site.now - timedelta(minutes=1)


async def test_a_root_that_the_ca_told_counts_and_one_that_it_took_back_does_not(site: Site) -> None:
    second = Authority(name="Second")
    old, new = live(site, AUTHORITY.leaf("web")), live(site, second.leaf("web"), second)
    both = (*AUTHORITY.roots, *second.roots)
    await site.reloader.adopt(given(AUTHORITY.leaf("api"), *both), fresh(site))
    assert (old.reason, new.reason) == (None, None)
    await site.reloader.adopt(given(second.leaf("api"), *second.roots), fresh(site))
    assert (old.reason, new.reason) == (Reason.TRUST_CHANGED, None)
    assert site.node.current.context.anchors == {certificate_digest(second.root.certificate)}


async def test_a_changed_mesh_keeps_what_the_ca_gave(followed: Site, mock_clock: MockClock) -> None:
    told = fresh(followed, {WEB: followed.now})
    await followed.reloader.adopt(followed.reloader.loaded, told)
    rename(followed.mesh, FORBIDDEN)
    await followed.looks()
    assert len(followed.node.current.mesh.rules) == 2
    assert followed.node.current.context.params.revocations == told


async def test_what_the_ca_gave_keeps_a_changed_mesh(followed: Site, mock_clock: MockClock) -> None:
    rename(followed.mesh, FORBIDDEN)
    await followed.looks()
    await followed.reloader.adopt(given(AUTHORITY.leaf("api")), fresh(followed))
    assert len(followed.node.current.mesh.rules) == 2


# -- mounts ------------------------------------------------------------------------------------------------------------


async def test_a_single_file_mount_is_warned_of_at_the_start(
    site: Site, nursery: trio.Nursery, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = fake_mounts(site.path, os.fspath(site.mesh))
    monkeypatch.setattr(reload, "mounted", lambda paths: mounted(paths, mounts))
    nursery.start_soon(site.reloader.run)
    await site.looks()
    [said] = site.said("single_file_mount")
    assert said.startswith(f"{site.mesh} is mounted as a single file")
    assert said.endswith("mount its directory instead")
