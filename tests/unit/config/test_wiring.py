"""sidecar.yaml, its mesh and the environment to frozen values."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from sidecar.config.sidecar_yaml import Admin, CaIdentity, Config, FileIdentity, Inbound, Limits, Outbound, Timeouts
from sidecar.config.wiring import load_config, parse_config, warnings
from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.names import Target
from tests.specimens import FULL, HEAD, MESH, MESH_TEXT, parsed

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_everything() -> None:
    assert parsed(FULL) == Config(
        path=Path("etc/sidecar.yaml"),
        service="api",
        mesh=MESH,
        mesh_path=Path("etc/mesh.yaml"),
        identity=CaIdentity(
            ca="https://ca:8443",
            root=Path("etc/root.pem"),
            root_sha256=None,
            enrolment=Path("/run/secrets/api.enrol"),
            state_dir=Path("/var/lib/sidecar"),
        ),
        inbound=(
            Inbound(
                port="http",
                listen=Address("0.0.0.0", 8080),
                apps=(Address("127.0.0.1", 8081),),
                require_alpn=True,
                tolerate_missing_close_notify=False,
                idle_timeout=300.0,
                max_age=3600.0,
            ),
            Inbound(
                port="metrics",
                listen=Address("::1", 9090),
                apps=(Address("localhost", 9091), Address("::1", 9091)),
                require_alpn=False,
                tolerate_missing_close_notify=True,
                idle_timeout=None,
                max_age=86400.0,
            ),
        ),
        outbound=(
            Outbound(
                target=Target("db", "5432"),
                listen=Address("127.0.0.1", 5432),
                peers=(Address("db.mesh", 5432), Address("10.0.0.7", 5432)),
                allow_from=(),
                device=None,
                require_alpn=False,
                tolerate_missing_close_notify=False,
                idle_timeout=None,
                max_age=86400.0,
            ),
            Outbound(
                target=Target("cache", "6379"),
                listen=Address("172.30.5.2", 6379),
                peers=(Address("cache.mesh", 6379),),
                allow_from=(IPv4Network("172.30.5.0/26"), IPv6Network("fd00::/8")),
                device="eth1",
                require_alpn=True,
                tolerate_missing_close_notify=True,
                idle_timeout=60.0,
                max_age=7200.0,
            ),
        ),
        admin=Admin(Address("127.0.0.1", 15000)),
        timeouts=Timeouts(1.0, 2.0, 3.0),
        limits=Limits(5),
        log_format="json",
    )


def test_defaults() -> None:
    config = parsed(HEAD)
    assert config.identity == FileIdentity(Path("etc/c.pem"), Path("etc/k.pem"), Path("etc/b.pem"))
    assert (config.inbound, config.outbound, config.admin) == ((), (), None)
    assert config.timeouts == Timeouts(handshake=5.0, connect=5.0, drain=8.0)
    assert config.limits == Limits(connections=10_000)
    assert config.log_format == "auto"
    assert parsed(f"{HEAD}inbound:\noutbound:\nadmin:\ntimeouts:\nlimits:\n") == config


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed(HEAD).service = "web"  # type: ignore[misc]


def test_target() -> None:
    db, _ = parsed(FULL).outbound
    assert (db.target, db.service, db.port) == (Target("db", "5432"), "db", "5432")


class TestLoadConfig:
    def load(self, tmp_path: Path, text: str, mesh: str | None = MESH_TEXT, **environ: str) -> Config:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/s.yaml").write_text(text, encoding="utf-8")
        if mesh is not None:
            (tmp_path / "etc/mesh.yaml").write_text(mesh, encoding="utf-8")
        return load_config(tmp_path / "etc/s.yaml", environ)

    def test_both_files(self, tmp_path: Path) -> None:
        config = self.load(tmp_path, FULL)
        assert config.mesh == dataclasses.replace(MESH, filename=str(tmp_path / "etc/mesh.yaml"))
        assert config.mesh_path == tmp_path / "etc/mesh.yaml"
        assert config.path == tmp_path / "etc/s.yaml"

    def test_a_file_beside_the_directory_has_a_clean_name(self, tmp_path: Path) -> None:
        (tmp_path / "mesh.yaml").write_text(MESH_TEXT, encoding="utf-8")
        config = self.load(tmp_path, FULL.replace("mesh: mesh.yaml", "mesh: ../mesh.yaml"), None)
        assert config.mesh_path == tmp_path / "mesh.yaml"
        assert config.mesh.filename == str(tmp_path / "mesh.yaml")

    def test_a_file_beside_a_linked_directory_is_what_the_kernel_finds(self, tmp_path: Path) -> None:
        (tmp_path / "releases/1").mkdir(parents=True)
        (tmp_path / "etc").symlink_to("releases/1")
        (tmp_path / "releases/1/s.yaml").write_text(FULL.replace("mesh: mesh.yaml", "mesh: ../mesh.yaml"))
        (tmp_path / "releases/mesh.yaml").write_text(MESH_TEXT, encoding="utf-8")
        assert load_config(tmp_path / "etc/s.yaml", {}).mesh_path == tmp_path / "etc/../mesh.yaml"

    def test_mesh_from_a_variable(self, tmp_path: Path) -> None:
        (tmp_path / "m.yaml").write_text(MESH_TEXT, encoding="utf-8")
        config = self.load(tmp_path, FULL, None, SIDECAR_MESH=str(tmp_path / "m.yaml"))
        assert config.mesh_path == tmp_path / "m.yaml"

    def test_no_mesh_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as raised:
            self.load(
                tmp_path,
                HEAD + "nonsense: 1\nadmin: {listen: x}\noutbound: [{to: x, listen: '127.0.0.1:1', peers: 'p:1'}]",
                None,
            )
        here = tmp_path / "etc"
        assert str(raised.value).splitlines() == [
            f"{here}/s.yaml:2: mesh: {here}/mesh.yaml: cannot be read: No such file or directory",
            f"{here}/s.yaml:4: unknown key 'nonsense'",
            f"{here}/s.yaml:5: admin.listen: 'x' is no host:port, with a port of 1 to 65535",
        ]

    def test_no_mesh_file_at_a_variables_place(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as raised:
            self.load(tmp_path, HEAD, None, SIDECAR_MESH="/nope")
        assert str(raised.value) == "SIDECAR_MESH: mesh: /nope: cannot be read: No such file or directory"

    def test_broken_mesh_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as raised:
            self.load(tmp_path, HEAD + "nonsense: 1", "trust_domain: X\nservices: {}")
        here = tmp_path / "etc"
        assert str(raised.value).splitlines() == [
            f"{here}/mesh.yaml:1: trust_domain: 'X' is no trust domain: 1 to 255 of a-z 0-9 . _ -",
            f"{here}/s.yaml:4: unknown key 'nonsense'",
        ]

    def test_only_the_mesh_is_broken(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"mesh\.yaml:1: the file is empty"):
            self.load(tmp_path, HEAD, "")

    @pytest.mark.parametrize("named", ["", "5", "''"])
    def test_names_no_mesh_file(self, tmp_path: Path, named: str) -> None:
        with pytest.raises(UsageError, match=r"s\.yaml:2: mesh: "):
            self.load(tmp_path, HEAD.replace("mesh.yaml", named))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            load_config(tmp_path / "s.yaml", {})


def test_what_no_rule_allows_is_one_warning() -> None:
    config = parsed(FULL)
    db, cache = config.outbound
    wired = dataclasses.replace(config, outbound=(cache, db, dataclasses.replace(cache, target=Target("api", "http"))))
    assert warnings(wired, NOW)[0] == (
        "etc/sidecar.yaml: outbound[0], outbound[2]: every connection will be refused: "
        "api may not call cache:6379, api:http: no rule allows it"
    )
    assert len(warnings(wired, NOW)) == len(warnings(config, NOW))


def test_a_listener_that_may_stand_for_several_is_refused_whatever_the_policy_says() -> None:
    config = parsed(FULL)
    shared = dataclasses.replace(config.outbound[0], ambiguous_with=(Target("cache", "6379"),))
    assert warnings(dataclasses.replace(config, outbound=(shared,)), NOW)[0] == (
        f"etc/sidecar.yaml: outbound[0]: every connection will be refused: api may not call {shared.shown}: "
        "no rule allows it"
    )


def test_warnings() -> None:
    config = parsed(FULL)
    assert warnings(config, NOW) == [
        "etc/sidecar.yaml: outbound[1]: every connection will be refused: api may not call cache:6379: no rule allows it",
        "etc/sidecar.yaml: inbound[1]: every call to api:metrics will be refused: no rule allows it",
    ]
    assert warnings(config, datetime(2028, 1, 1, tzinfo=UTC)) == [
        "etc/sidecar.yaml: outbound[0]: every connection will be refused: api may not call db:5432: rule 'api->db'"
        " (etc/mesh.yaml:10) allowed it until 2027-01-31 and ran out; no other rule does",
        "etc/sidecar.yaml: outbound[1]: every connection will be refused: api may not call cache:6379: no rule allows it",
        "etc/sidecar.yaml: inbound[1]: every call to api:metrics will be refused: no rule allows it",
        "etc/mesh.yaml:10: rule 'api->db' held until 2027-01-31 and has no effect now",
    ]
    assert warnings(parsed(HEAD), NOW) == []


class TestMode:
    NOW = datetime(2027, 1, 20, 12, tzinfo=UTC)
    RULE = '\npolicy: [{from: [web, plaintext], to: "api:http"}]'

    def warned(self, mode: str, *, rule: bool = True) -> list[str]:
        mesh = parse_mesh(MESH_TEXT.partition("policy:")[0].rstrip() + (self.RULE if rule else ""), "mesh.yaml")
        port = f'inbound: [{{port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:8081"{mode}}}]\n'
        found = warnings(parse_config(HEAD + port, "s.yaml", {}, mesh), self.NOW)
        return [one.removeprefix("s.yaml: inbound[0]: ") for one in found if "plaintext" in one]

    def test_a_strict_port_and_a_rule_for_plaintext(self) -> None:
        assert self.warned("") == ["a rule lets plaintext call api:http, and the port is strict: it takes none"]
        assert self.warned("", rule=False) == []

    def test_a_permissive_port_far_from_its_day_near_it_and_after_it(self) -> None:
        assert self.warned(", mode: permissive, until: 2027-01-27") == []
        near = "api:http takes plaintext until 2027-01-26; then it is refused"
        assert self.warned(", mode: permissive, until: 2027-01-26") == [near]
        assert self.warned(", mode: permissive, until: 2027-01-20") == [near.replace("01-26", "01-20")]
        assert self.warned(", mode: permissive, until: 2027-01-19") == [
            "api:http took plaintext until 2027-01-19, and refuses it since: write `mode: strict`"
        ]

    def test_of_two_listeners_of_a_port_one_may_be_permissive(self) -> None:
        other = '}, {port: http, listen: "127.0.0.1:8082", app: "127.0.0.1:8081", mode: permissive, until: 2027-12-31'
        assert self.warned(other) == []

    def test_a_permissive_port_that_no_rule_opens(self) -> None:
        assert self.warned(", mode: permissive, until: 2027-12-31", rule=False) == [
            "api:http is permissive, and no rule says `from: plaintext`: every call in plaintext will be refused"
        ]
