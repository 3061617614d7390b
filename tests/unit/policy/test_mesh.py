"""mesh.yaml to frozen values, and what they say of identities."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from certs.service.serve import SIGN_SECONDS
from sidecar.agent.agent import POLL_SECONDS
from sidecar.host.follow import LOOK_SECONDS
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.mesh import Mesh, Pattern, load_mesh, parse_mesh
from sidecar.policy.mesh_yaml import LEAST_STALENESS_SECONDS, Dev
from sidecar.policy.names import Target
from tests.specimens import mesh_with

MESH = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}, dev: {app: {http: 8081}, calls: {"api:http": 18080, db: 15432}}}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
  reporting:
policy:
  - name: web-calls-api
    from: [web]
    to: ["api:http"]
  - from: api
    to: db
  - name: try-reporting
    from: [reporting]
    to: [db]
    action: allow
    mode: dry-run
    until: 2027-01-31
  - {name: scrape, from: "*", to: ["api:metrics", db]}
  - {name: batch, from: ["spiffe://shop.internal/batch/*", api], to: "*", action: deny}
tests:
  - {from: web, to: "db", expect: deny}
  - {from: "spiffe://elsewhere/web", to: [api, "api:http"], expect: allow}
max_leaf_ttl: 2h
"""


@pytest.fixture
def mesh() -> Mesh:
    return parse_mesh(MESH, "mesh.yaml")


class TestParsed:
    def test_services(self, mesh: Mesh) -> None:
        assert mesh.trust_domain == "shop.internal"
        assert list(mesh.services) == ["web", "api", "db", "reporting"]
        assert dict(mesh.services["api"].ports) == {"http": 8080, "metrics": 9090}
        assert dict(mesh.services["db"].ports) == {"5432": 5432}
        assert dict(mesh.services["reporting"].ports) == {}
        assert mesh.services["db"].line == 5
        assert mesh.max_leaf_ttl == timedelta(hours=2)

    def test_dev(self, mesh: Mesh) -> None:
        expected = Dev(app={"http": 8081}, calls={Target("api", "http"): 18080, Target("db", "5432"): 15432})
        assert mesh.services["web"].dev == expected
        assert mesh.services["api"].dev is None

    def test_rules(self, mesh: Mesh) -> None:
        assert [(rule.name, rule.line, rule.action, rule.mode, rule.until) for rule in mesh.rules] == [
            ("web-calls-api", 8, "allow", "enforce", None),
            ("api->db", 11, "allow", "enforce", None),
            ("try-reporting", 13, "allow", "dry-run", date(2027, 1, 31)),
            ("scrape", 19, "allow", "enforce", None),
            ("batch", 20, "deny", "enforce", None),
        ]
        scrape, batch = mesh.rules[3:]
        assert scrape.targets == {Target("api", "metrics"), Target("db", "5432")}
        assert scrape.identities == {("web",), ("api",), ("db",), ("reporting",)}
        assert scrape.patterns == ()
        assert batch.from_ == ("spiffe://shop.internal/batch/*", "api")
        assert batch.identities == {("api",)}
        assert batch.patterns == (Pattern(("batch", "*")),)
        assert batch.targets == {
            Target(*it) for it in [("web", "http"), ("api", "http"), ("api", "metrics"), ("db", "5432")]
        }

    def test_a_star_beside_others(self) -> None:
        rest = 'policy: [{from: ["spiffe://shop.internal/x/y", "*"], to: ["*", "web:http"]}]'
        [rule] = parse_mesh(mesh_with(rest=rest), "mesh.yaml").rules
        assert rule.identities == {("web",), ("api",), ("idle",), ("x", "y")}
        assert rule.targets == {Target("web", "http"), Target("api", "http"), Target("api", "tls")}

    @pytest.mark.parametrize(
        ("rule", "source", "target", "applies"),
        [
            ("web-calls-api", ("shop.internal", "web"), ("api", "http"), True),
            ("web-calls-api", ("shop.internal", "api"), ("api", "http"), False),
            ("web-calls-api", ("shop.internal", "web"), ("api", "metrics"), False),
            ("web-calls-api", ("other.internal", "web"), ("api", "http"), False),
            ("batch", ("shop.internal", "batch", "x"), ("api", "http"), True),
            ("batch", ("other.internal", "batch", "x"), ("api", "http"), False),
        ],
    )
    def test_to_what_a_rule_applies(
        self, mesh: Mesh, rule: str, source: tuple[str, ...], target: tuple[str, str], *, applies: bool
    ) -> None:
        [found] = [each for each in mesh.rules if each.name == rule]
        trust_domain, *segments = source
        identity, now = SpiffeId(trust_domain, tuple(segments)), datetime(2026, 6, 1, tzinfo=UTC)
        assert found.applies(identity, Target(*target), now) is applies
        assert found.fits(identity, Target(*target)) is applies

    @pytest.mark.parametrize(
        ("now", "applies"),
        [
            (datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC), True),
            (datetime(2027, 2, 1, tzinfo=UTC), False),
            (datetime(2027, 2, 1, tzinfo=timezone(timedelta(hours=1))), True),
        ],
    )
    def test_until_when_a_rule_applies(self, mesh: Mesh, now: datetime, *, applies: bool) -> None:
        rule, source, target = mesh.rules[2], mesh.identity("reporting"), Target("db", "5432")
        assert (rule.applies(source, target, now), rule.fits(source, target)) == (applies, True)
        assert rule.ran_out(now) is not applies
        with pytest.raises(ValueError, match="time zone"):
            rule.applies(source, target, datetime(2026, 6, 1))

    def test_tests(self, mesh: Mesh) -> None:
        first, second = mesh.tests
        assert (first.source, first.expect, first.line) == (mesh.identity("web"), "deny", 22)
        assert first.targets == (Target("db", "5432"),)
        assert second.source == SpiffeId("elsewhere", ("web",))
        assert second.targets == (Target("api", "http"), Target("api", "metrics"))

    def test_identity(self, mesh: Mesh) -> None:
        assert str(mesh.identity("web")) == "spiffe://shop.internal/web"
        with pytest.raises(KeyError):
            mesh.identity("wbe")

    def test_frozen(self, mesh: Mesh) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            mesh.trust_domain = "x"  # type: ignore[misc]
        with pytest.raises(TypeError):
            mesh.services["x"] = mesh.services["web"]  # type: ignore[index]
        with pytest.raises(TypeError):
            mesh.services["web"].ports["x"] = 1  # type: ignore[index]

    def test_names(self, mesh: Mesh) -> None:
        assert mesh.target("db") == Target("db", "5432")
        assert mesh.targets("api") == (Target("api", "http"), Target("api", "metrics"))
        assert mesh.source("web") == mesh.identity("web")
        assert mesh.source("spiffe://x/y") == SpiffeId("x", ("y",))
        with pytest.raises(ValueError, match="'api' has several ports: say which of api:http, api:metrics"):
            mesh.target("api")
        with pytest.raises(ValueError, match="unknown service 'wbe'"):
            mesh.source("wbe")
        with pytest.raises(ValueError, match="path segment ''"):
            mesh.source("spiffe://x/y/")

    def test_load(self, tmp_path: Path, mesh: Mesh) -> None:
        (tmp_path / "mesh.yaml").write_text(MESH, encoding="utf-8")
        loaded = load_mesh(tmp_path / "mesh.yaml")
        assert dataclasses.replace(loaded, filename="mesh.yaml") == mesh

    def test_load_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            load_mesh(tmp_path / "mesh.yaml")


@pytest.mark.parametrize(
    "rest",
    ["", "policy:", "policy: []", "tests:\npolicy:", "max_leaf_ttl: 1h30m"],
)
def test_little_is_enough(rest: str) -> None:
    mesh = parse_mesh(f"trust_domain: a\nservices: {{}}\n{rest}", "mesh.yaml")
    assert mesh.rules == ()
    assert mesh.tests == ()


def test_default_leaf_ttl() -> None:
    mesh = parse_mesh("trust_domain: a\nservices: {}", "mesh.yaml")
    assert mesh.max_leaf_ttl == timedelta(hours=25)
    assert (mesh.revocation_staleness, mesh.reenrol_window) == (timedelta(hours=1), timedelta(hours=24))
    said = "trust_domain: a\nservices: {}\nrevocation_staleness: 5m\nreenrol_window: 7d"
    mesh = parse_mesh(said, "mesh.yaml")
    assert (mesh.revocation_staleness, mesh.reenrol_window) == (timedelta(minutes=5), timedelta(days=7))


def test_a_staleness_that_the_ca_s_lists_cannot_keep_is_refused() -> None:
    """A good list is up to this old before the next one is here."""
    oldest = SIGN_SECONDS + LOOK_SECONDS + POLL_SECONDS
    assert 1.5 * oldest < LEAST_STALENESS_SECONDS
    for text in ("1s", "1m59s"):
        with pytest.raises(
            UsageError, match=r"^f:3: revocation_staleness: must be 120s or longer, not [0-9]+s: the CA"
        ):
            parse_mesh(f"trust_domain: a\nservices: {{}}\nrevocation_staleness: {text}", "f")
    mesh = parse_mesh("trust_domain: a\nservices: {}\nrevocation_staleness: 2m", "f")
    assert mesh.revocation_staleness == timedelta(minutes=2)


@pytest.mark.parametrize("name", ["no", "on", "yes", "null", "true", "5432", "1.5", "a.b", "A_b-c", "..."])
def test_a_service_may_be_called(name: str) -> None:
    mesh = parse_mesh(
        mesh_with(services=f"{{{name}: {{ports: 1}}}}", rest=f'policy: [{{from: "{name}", to: "{name}"}}]'), "f"
    )
    assert mesh.identity(name).service == name
    assert mesh.rules[0].name == f"{name}->{name}"


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 63, "5432"])
def test_a_port_may_be_called(name: str) -> None:
    assert list(
        parse_mesh(mesh_with(services=f"{{web: {{ports: {{{name}: 1}}}}}}", rest=""), "f").services["web"].ports
    ) == [name]


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("web", "web", True),
        ("web", "web-admin", False),
        ("web", "we", False),
        ("web", "Web", False),
        ("web", "web/x", False),
        ("a.b", "a.b", True),
        ("a.b", "aXb", False),
        ("*", "web", True),
        ("*", "a/b", False),
        ("batch/*", "batch/x", True),
        ("batch/*", "batch", False),
        ("batch/*", "batch/x/y", False),
        ("batch/*", "batchx/y", False),
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab", False),
        ("**/z", "z", True),
        ("**/z", "a/b/z", True),
        ("**/z", "a/z/b", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a/b", False),
        ("**/**", "a", True),
        ("**/*/**", "a", True),
        ("*/**/*", "a", False),
    ],
)
def test_patterns(pattern: str, path: str, *, fits: bool) -> None:
    assert Pattern(tuple(pattern.split("/"))).matches(path.split("/")) is fits


def test_no_pattern_takes_long() -> None:
    pattern = Pattern(("**", "a") * 300)
    assert not pattern.matches(["a"] * 299 + ["b"])
    assert pattern.matches(["a"] * 300)


@pytest.mark.parametrize(
    ("pattern", "longest", "samples"),
    [
        ("a/b", 3, {"a/b"}),
        ("a/*", 3, {"a/*"}),
        ("a/**", 0, {"a", "a/*"}),
        ("a/**", 2, {"a", "a/*", "a/*/*", "a/*/*/*"}),
        ("**", 1, {"*", "*/*"}),  # an identity has one segment at least
        ("**/**/a", 0, {"a", "*/a"}),  # twice `**` says no more than once
        ("**/a/**", 0, {"a", "*/a", "a/*", "*/a/*"}),
    ],
)
def test_samples_of_a_pattern(pattern: str, longest: int, samples: set[str]) -> None:
    one = Pattern(tuple(pattern.split("/")))
    found = list(one.samples(longest))
    assert {"/".join(path) for path in found} == samples
    assert len(found) == len(samples)
    assert all(one.matches(path) for path in found)


def test_the_version_is_of_what_the_file_says() -> None:
    text = "trust_domain: shop.internal\nservices: {web: {}, db: {ports: 1}}\npolicy: [{from: web, to: db}]\n"
    one = parse_mesh(text, "mesh.yaml").version
    assert len(one) == 12
    assert parse_mesh(f"# about it\n{text.replace('policy:', 'policy:  ')}", "other.yaml").version == one
    assert parse_mesh(text.replace("to: db", "to: 'db:1'"), "mesh.yaml").version != one


@pytest.mark.parametrize(
    ("before", "now", "refused"), [("...\n", "", True), ("...\n", "...\n", False), ("", "", False), (None, "", False)]
)
def test_a_text_without_its_last_line_is_incomplete_if_the_one_in_force_has_it(
    before: str | None, now: str, refused: bool, tmp_path: Path
) -> None:
    text = "trust_domain: shop.internal\nservices: {web: {}}\n"
    in_force = None if before is None else parse_mesh(text + before, "mesh.yaml")
    (path := tmp_path / "mesh.yaml").write_text(text + now)
    with pytest.raises(UsageError, match="is incomplete") if refused else nullcontext():
        assert load_mesh(path, in_force=in_force).ended is bool(now)


@pytest.mark.parametrize(
    ("service", "port", "is_there"),
    [
        ("api", "http", True),
        ("api", "mesh-admin", True),
        ("job", "mesh-admin", True),
        ("api", "https", False),
        ("job", "http", False),
        ("nobody", "mesh-admin", False),
        ("nobody", "http", False),
    ],
)
def test_which_ports_there_are(service: str, port: str, *, is_there: bool) -> None:
    mesh = parse_mesh("trust_domain: a.b\nservices: {api: {ports: {http: 80}}, job: {}}\n", "mesh.yaml")
    assert mesh.has(Target(service, port)) is is_there
