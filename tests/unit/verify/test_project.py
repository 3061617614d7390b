"""A Compose project as `sidecar verify` sees it: its sidecars, the probe's own certificates, and ways past the sidecars."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import inject
from sidecar.inject.published import Asked
from sidecar.inject.topology import MESH
from sidecar.verify import project
from sidecar.verify.judgement import Attempt, Edge, Status
from sidecar.verify.trial import Place
from tests.beds.certificates import HOUR, Authority
from tests.inject.applications import OPTIONS, inputs

APPLICATION: dict[str, Any] = {
    "web": {
        "environment": {"API": "http://api:80"},
        "ports": [{"target": 8080, "published": "8080"}],
        "expose": ["8080"],
    },
    "api": {"expose": ["80"], "environment": {"X": "y"}},
}


class Engine:
    """Stands in for Compose and its containers. ``fails``: containers in which nothing can be run."""

    def __init__(self, published: Mapping[str, Any], *fails: str) -> None:
        self.published, self.fails = published, fails
        self.ran: list[tuple[tuple[str, ...], str | None]] = []

    def run(self, _files: Sequence[Path], _environ: Mapping[str, str], *words: str, stdin: str | None = None) -> str:
        self.ran.append((words, stdin))
        if words[:1] == ("ps",):
            return "web\napi\nweb-mesh\napi-mesh\nmesh-ca\n"
        if words[2] in self.fails:
            raise UsageError("docker compose exec: it does not run")
        if words[-2:] == ("cat", "/etc/hosts"):
            return "127.0.0.1 localhost\n::1 localhost\n# x\n172.30.0.2 abc\n"
        return json.dumps({"reached": [[False, "not reached"]]} if "reach" in (stdin or "") else {"words": words})

    def config(self, _files: Sequence[Path], _environ: Mapping[str, str]) -> tuple[Any, tuple[str, ...]]:
        return {"services": self.published}, ()


class CaStandIn:
    """Stands in for ``certs``: what it was asked for, and certificates that end when told."""

    def __init__(self, ttl: timedelta = HOUR) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.authority, self.ttl = Authority(), ttl

    def __call__(self, words: Sequence[str]) -> None:
        self.asked.append(tuple(words))
        if words[0] == "issue":
            ends = utc_now() + self.ttl
            leaf = self.authority.leaf(words[2], not_before=ends - 2 * HOUR, not_after=ends)
            leaf.write(Path(words[words.index("--out") + 1]))

    @property
    def commands(self) -> list[str]:
        return [words[0] for words in self.asked]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, text in inject(inputs(APPLICATION)).files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "state").mkdir()
    return tmp_path


def looked_at(home: Path, engine: Engine | None = None, ca: CaStandIn | None = None) -> Place:
    environ = {"MESH_STATE": str(home / "state")}
    waits: list[float] = []
    one = engine or Engine({})
    return project.compose(home, environ, one, ca or CaStandIn(), waits.append)  # type: ignore[arg-type]


def test_every_sidecar_is_asked_and_every_edge_and_listener_is_tried(home: Path) -> None:
    engine = Engine({})
    place = looked_at(home, engine)
    assert place.doors.keys() == {"web", "api"}
    assert {one.service for one in place.listeners} == {"web", "api"}
    assert {one.port for one in place.listeners if one.service == "api"} == {"80", "mesh-admin"}
    assert Edge("web", "api:80", allowed=True) in place.edges
    assert place.doors["api"].seen() == {
        "words": ["exec", "-T", "api-mesh", "sidecar", "probe", "--raw", "/probe/seen"],
    }  # fmt: skip


def test_a_sidecar_that_does_not_run_is_told(home: Path) -> None:
    place = looked_at(home, Engine({}, "api-mesh"))
    assert place.doors["api"].seen() == {"error": "docker compose exec: it does not run"}


def test_the_stranger_is_in_a_container_of_the_mesh_network(home: Path) -> None:
    engine = Engine({})
    place = looked_at(home, engine)
    place.attempt_all([(place.listeners[0], Attempt.PLAINTEXT)], {})
    words, stdin = engine.ran[-1]
    assert words == ("exec", "-T", "mesh-ca", "sidecar", "probe", "--stranger")
    assert json.loads(stdin or "")["credentials"] == {}


def test_a_stranger_is_asked_on_the_mesh_network_alone(home: Path) -> None:
    """What is published, and what outsiders meet, is on networks where nobody of the mesh is."""
    old = {"x-mesh": {"mesh": False}}
    given = inputs({**APPLICATION, "old": old}, options=replace(OPTIONS, publish_mesh={"api": Asked()}))
    injection = inject(given)
    for name, text in injection.files.items():
        (home / name).write_text(text)
    published = {"web": {"ports": [{"target": 8080, "published": "8080"}]}}
    place = project.compose(home, {"MESH_STATE": str(home / "state")}, Engine(published), CaStandIn(), lambda _: None)  # type: ignore[arg-type]
    assert place.checks == [], (
        "nobody of the mesh calls web, so that is the way in: who comes in plaintext is none of it"
    )
    mesh = injection.placement.subnets[MESH]
    assert all(ip_address(one.address.rpartition(":")[0]) in mesh for one in place.listeners)
    assert len(place.listeners) == 4, "web, api, and the sidecars' own"
    told = [it for it in place.not_covered if "nobody of the mesh can ask there" in it]
    assert [("api" in it, "plaintext" in it) for it in told] == [(True, False), (True, True), (False, True)]
    assert "(--publish-mesh)" in told[0]
    wiring = home / "mesh" / "sidecars" / "api.yaml"
    strict = re.sub(r"mode: permissive, until: \S+?}", "mode: strict}", wiring.read_text())
    assert strict != wiring.read_text()
    wiring.write_text(strict)
    place = project.compose(home, {"MESH_STATE": str(home / "state")}, Engine(published), CaStandIn(), lambda _: None)  # type: ignore[arg-type]
    told = [it for it in place.not_covered if it.startswith("api:") and "nobody of the mesh can ask there" in it]
    assert ["(--publish-mesh)" in it for it in told] == [True, False]
    assert "where outsiders come, whose plaintext is refused" in told[1]


def test_the_probe_gets_certificates_of_its_own_and_one_is_revoked(home: Path) -> None:
    ca = CaStandIn()
    place = looked_at(home, ca=ca)
    assert place.credentials.keys() == {Attempt.NO_RULE, Attempt.REVOKED}
    assert ca.commands == ["issue", "issue", "revoke"]
    assert {words[2] for words in ca.asked if words[0] == "issue"} == {"mesh/probe"}
    serial = ca.asked[2][ca.asked[2].index("--serial") + 1]
    revoked = x509.load_pem_x509_certificate(place.credentials[Attempt.REVOKED].certificate.encode())
    assert f"{revoked.serial_number:x}" == serial


def test_a_further_run_revokes_nothing_anew_and_has_one_that_has_ended(home: Path) -> None:
    looked_at(home, ca=CaStandIn())
    ca = CaStandIn()
    looked_at(home, ca=ca)
    assert ca.commands == ["issue"]
    ended = CaStandIn(ttl=timedelta(minutes=-1))
    for _ in range(3):
        ended(("issue", "x", "mesh/probe", "--out", str(home / "state" / "probe" / f"at-0{len(ended.asked)}")))
    place = looked_at(home, ca=CaStandIn())
    assert place.credentials.keys() == {Attempt.NO_RULE, Attempt.REVOKED, Attempt.EXPIRED}
    assert len(list((home / "state" / "probe").glob("at-0*"))) == 1


def test_without_the_ca_s_keys_it_is_said_what_is_not_tried(home: Path) -> None:
    def fails(_: Sequence[str]) -> None:
        raise UsageError("certs issue: no such directory")

    environ = {"MESH_STATE": str(home / "state")}
    place = project.compose(home, environ, Engine({}), fails)  # type: ignore[arg-type]
    assert place.credentials == {}
    assert any("no such directory" in one for one in place.not_covered)


def test_apps_are_looked_for_by_name_and_address(home: Path) -> None:
    place = looked_at(home)
    assert {(one.service, one.address) for one in place.apps} >= {("api", "api:80"), ("api", "172.30.0.2:80")}
    assert place.reach_all(["api:80"]) == [(False, "not reached")]


def test_an_app_that_does_not_tell_its_addresses_is_named(home: Path) -> None:
    place = looked_at(home, Engine({}, "api"))
    assert any("addresses of api:" in one for one in place.not_covered)


def test_a_published_port_of_a_callee_is_a_failure_and_names_it(home: Path) -> None:
    place = looked_at(home, Engine({"api": {"ports": [{"target": 80, "published": "8081"}]}}))
    (check,) = place.checks
    assert (check.status, check.subject) == (Status.FAILED, "api's app")
    assert "0.0.0.0:8081" in check.seen


def test_the_way_in_is_named_and_is_none(home: Path) -> None:
    ports = [{"target": 8080, "published": "8080", "host_ip": "127.0.0.1"}, {"target": 9, "published": "9"}]
    place = looked_at(home, Engine({"web": {"ports": ports}}))
    assert place.checks == []
    assert any("127.0.0.1:8080" in one for one in place.not_covered)


def test_elsewhere_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run this where `sidecar inject` was run"):
        project.compose(tmp_path, {})
