"""mesh.yaml to frozen values: what it may say, and every mistake with its line."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta
from pathlib import Path

import pytest

from sidecar.identity import SpiffeId
from sidecar.mesh import Dev, Mesh, MeshShape, Pattern, Target, load_mesh, one_target, parse_mesh, resolve_targets
from sidecar.reasons import UsageError

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


def mesh_with(
    *, services: str = "{web: {ports: {http: 80}}, api: {ports: {http: 80, tls: 443}}, idle: {}}", rest: str
) -> str:
    return f"trust_domain: shop.internal\nservices: {services}\n{rest}"


def mistakes(text: str) -> list[str]:
    with pytest.raises(UsageError) as raised:
        parse_mesh(text, "mesh.yaml")
    return str(raised.value).splitlines()


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
    assert parse_mesh("trust_domain: a\nservices: {}", "mesh.yaml").max_leaf_ttl == timedelta(hours=25)


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
    ("rest", "line"),
    [
        # Keys
        ("polcy: []", "mesh.yaml:3: unknown key 'polcy' (did you mean 'policy'?)"),
        ("xyzzy: 1", "mesh.yaml:3: unknown key 'xyzzy'"),
        ('"a\\u20acb": 1', "mesh.yaml:3: unknown key 'a\\u20acb'"),
        (
            "policy:\n- from: web\n  to: api\n  actoin: deny",
            "mesh.yaml:6: policy[0]: unknown key 'actoin' (did you mean 'action'?)",
        ),
        ("policy: [{from: web}]", "mesh.yaml:3: policy[0]: 'to' is missing"),
        ("policy: [{to: web}]", "mesh.yaml:3: policy[0]: 'from' is missing"),
        ("policy: {}", "mesh.yaml:3: policy: must be a list, not a mapping"),
        ("policy:\n- web", "mesh.yaml:4: policy[0]: must be a mapping (key: value), not 'web'"),
        ("policy:\n-", "mesh.yaml:4: policy[0]: must be a mapping (key: value), not nothing"),
        # from
        ("policy: [{from: wbe, to: api}]", "mesh.yaml:3: policy[0].from: unknown service 'wbe' (did you mean 'web'?)"),
        (
            "policy:\n- to: api\n  from:\n  - web\n  - wbe",
            "mesh.yaml:7: policy[0].from: unknown service 'wbe' (did you mean 'web'?)",
        ),
        ("policy: [{from: Web, to: api}]", "mesh.yaml:3: policy[0].from: unknown service 'Web' (did you mean 'web'?)"),
        ('policy: [{from: "", to: api}]', "mesh.yaml:3: policy[0].from: unknown service ''"),
        ("policy: [{from: w*, to: api}]", "mesh.yaml:3: policy[0].from: unknown service 'w*'"),
        ('policy: [{from: "web:http", to: api}]', "mesh.yaml:3: policy[0].from: unknown service 'web:http'"),
        ("policy: [{from: [], to: api}]", "mesh.yaml:3: policy[0].from: is empty, so the rule is about nobody"),
        ("policy: [{from: , to: api}]", "mesh.yaml:3: policy[0].from: must be a list, not nothing"),
        ("policy: [{from: {a: b}, to: api}]", "mesh.yaml:3: policy[0].from: must be a list, not a mapping"),
        ("policy: [{from: 5, to: api}]", "mesh.yaml:3: policy[0].from: must be text, not 5 (quote it)"),
        ("policy: [{from: true, to: api}]", "mesh.yaml:3: policy[0].from: must be text, not true (quote it)"),
        ("policy: [{from: [web, 1.5], to: api}]", "mesh.yaml:3: policy[0].from[1]: must be text, not 1.5 (quote it)"),
        ("policy: [{from: [[web]], to: api}]", "mesh.yaml:3: policy[0].from[0]: must be text, not a list"),
        ("policy: [{from: [*], to: api}]", 'mesh.yaml:3: an unquoted * means something else in YAML: quote it ("*")'),
        (
            'policy: [{from: "spiffe://shop.internal/wbe", to: api}]',
            "mesh.yaml:3: policy[0].from: unknown service 'wbe' (did you mean 'web'?)",
        ),
        (
            'policy: [{from: "spiffe://other/web", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://other/web' is of another trust domain than 'shop.internal'",
        ),
        (
            'policy: [{from: "spiffe://*/web", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://*/web' is of another trust domain than 'shop.internal'",
        ),
        (
            'policy: [{from: "spiffe://shop.internal/we*", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://shop.internal/we*': path segment 'we*' is no pattern:"
            " * and ** stand for whole segments only",
        ),
        (
            'policy: [{from: "spiffe://shop.internal/***", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://shop.internal/***': path segment '***' is no pattern:"
            " * and ** stand for whole segments only",
        ),
        (
            'policy: [{from: "spiffe://shop.internal/web/", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://shop.internal/web/': path segment '' is no pattern:"
            " it is not of A-Z a-z 0-9 . _ -",
        ),
        (
            'policy: [{from: "spiffe://shop.internal/a/../b", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://shop.internal/a/../b': path segment '..' is no pattern:"
            " it is not of A-Z a-z 0-9 . _ -",
        ),
        (
            'policy: [{from: "spiffe://shop.internal", to: api}]',
            "mesh.yaml:3: policy[0].from: 'spiffe://shop.internal' is no pattern for identities:"
            " spiffe://<trust domain>/<segment or * or **>/…",
        ),
        (
            'policy: [{from: "SPIFFE://shop.internal/web", to: api}]',
            "mesh.yaml:3: policy[0].from: unknown service 'SPIFFE://shop.internal/web'",
        ),
        # to
        (
            'policy: [{from: web, to: "apj:http"}]',
            "mesh.yaml:3: policy[0].to: unknown service 'apj' (did you mean 'api'?)",
        ),
        (
            'policy: [{from: web, to: "api:htp"}]',
            "mesh.yaml:3: policy[0].to: service 'api' has no port 'htp' (did you mean 'http'?)",
        ),
        (
            'policy: [{from: web, to: "api:443"}]',
            "mesh.yaml:3: policy[0].to: service 'api' has no port '443' (it has 'http', 'tls')",
        ),
        (
            'policy: [{from: web, to: "api:"}]',
            "mesh.yaml:3: policy[0].to: service 'api' has no port '' (it has 'http', 'tls')",
        ),
        (
            'policy: [{from: web, to: "api:http:x"}]',
            "mesh.yaml:3: policy[0].to: service 'api' has no port 'http:x' (did you mean 'http'?)",
        ),
        (
            "policy: [{from: web, to: idle}]",
            "mesh.yaml:3: policy[0].to: service 'idle' has no ports, so nobody can call it",
        ),
        (
            'policy: [{from: web, to: "idle:http"}]',
            "mesh.yaml:3: policy[0].to: service 'idle' has no ports, so nobody can call it",
        ),
        ('policy: [{from: web, to: "*:http"}]', "mesh.yaml:3: policy[0].to: unknown service '*'"),
        ("policy: [{from: web, to: []}]", "mesh.yaml:3: policy[0].to: is empty, so the rule is about nobody"),
        # The rest of a rule
        ("policy: [{from: web, to: api, name: 5}]", "mesh.yaml:3: policy[0].name: must be text, not 5 (quote it)"),
        ('policy: [{from: web, to: api, name: ""}]', "mesh.yaml:3: policy[0].name: a name has 1 to 200 characters"),
        (
            f"policy: [{{from: web, to: api, name: {'x' * 201}}}]",
            "mesh.yaml:3: policy[0].name: a name has 1 to 200 characters",
        ),
        (
            "policy: [{from: web, to: api, action: alow}]",
            "mesh.yaml:3: policy[0].action: must be allow or deny, not 'alow' (did you mean 'allow'?)",
        ),
        (
            "policy: [{from: web, to: api, action: Deny}]",
            "mesh.yaml:3: policy[0].action: must be allow or deny, not 'Deny' (did you mean 'deny'?)",
        ),
        (
            "policy: [{from: web, to: api, action: no}]",
            "mesh.yaml:3: policy[0].action: must be allow or deny, not 'no'",
        ),
        (
            "policy: [{from: web, to: api, action: }]",
            "mesh.yaml:3: policy[0].action: must be allow or deny, not nothing",
        ),
        (
            "policy: [{from: web, to: api, mode: dryrun}]",
            "mesh.yaml:3: policy[0].mode: must be enforce or dry-run, not 'dryrun' (did you mean 'dry-run'?)",
        ),
        (
            "policy: [{from: web, to: api, until: 2027-1-31}]",
            "mesh.yaml:3: policy[0].until: '2027-1-31' is no day: write it as 2027-01-31",
        ),
        (
            "policy: [{from: web, to: api, until: 2027-02-30}]",
            "mesh.yaml:3: policy[0].until: '2027-02-30' is no day: write it as 2027-01-31",
        ),
        (
            "policy: [{from: web, to: api, until: 2027-W01-1}]",
            "mesh.yaml:3: policy[0].until: '2027-W01-1' is no day: write it as 2027-01-31",
        ),
        (
            "policy: [{from: web, to: api, until: ２０２７-01-31}]",
            "mesh.yaml:3: policy[0].until: '\\uff12\\uff10\\uff12\\uff17-01-31' is no day: write it as 2027-01-31",
        ),
        (
            "policy: [{from: web, to: api, until: 20270131}]",
            "mesh.yaml:3: policy[0].until: must be text, not 20270131 (quote it)",
        ),
        (
            "policy:\n- {from: web, to: api, action: deny,\n   until: 2027-01-31}",
            "mesh.yaml:5: policy[0].until: a deny rule cannot run out: at its end it would let in what it refuses",
        ),
        # Names of rules
        (
            "policy:\n- {from: web, to: api}\n- {from: [web], to: [api], action: deny}",
            "mesh.yaml:5: policy[1]: another rule (line 4) is called 'web->api' already: give this one a name",
        ),
        (
            "policy:\n- {from: web, to: api, name: x}\n- {from: api, to: web, name: x}",
            "mesh.yaml:5: policy[1]: another rule (line 4) is called 'x' already",
        ),
        # Tests
        ("tests: [{from: web, to: api}]", "mesh.yaml:3: tests[0]: 'expect' is missing"),
        (
            "tests: [{from: web, to: api, expect: maybe}]",
            "mesh.yaml:3: tests[0].expect: must be allow or deny, not 'maybe'",
        ),
        (
            "tests: [{from: wbe, to: api, expect: deny}]",
            "mesh.yaml:3: tests[0].from: unknown service 'wbe' (did you mean 'web'?)",
        ),
        ('tests: [{from: "*", to: api, expect: deny}]', "mesh.yaml:3: tests[0].from: unknown service '*'"),
        ("tests: [{from: [web], to: api, expect: deny}]", "mesh.yaml:3: tests[0].from: must be text, not a list"),
        (
            'tests: [{from: "spiffe://shop.internal/*", to: api, expect: deny}]',
            "mesh.yaml:3: tests[0].from: 'spiffe://shop.internal/*': path segment '*' is not of A-Z a-z 0-9 . _ -,"
            " or is empty, . or ..",
        ),
        ("tests: 7", "mesh.yaml:3: tests: must be a list, not 7"),
        # Lifetimes
        ("max_leaf_ttl: 25", "mesh.yaml:3: max_leaf_ttl: must be text, not 25 (quote it)"),
        (
            "max_leaf_ttl: x",
            "mesh.yaml:3: max_leaf_ttl: 'x' is not a duration: write it like 30s, 90m, 1h or 1h30m, and more than zero",
        ),
        (
            "max_leaf_ttl: 0h",
            "mesh.yaml:3: max_leaf_ttl: '0h' is not a duration: write it like 30s, 90m, 1h or 1h30m, and more than zero",
        ),
    ],
)
def test_a_mistake_beside_the_services(rest: str, line: str) -> None:
    assert mistakes(mesh_with(rest=rest)) == [line]


@pytest.mark.parametrize(
    ("services", "line"),
    [
        ("[]", "mesh.yaml:2: services: must be a mapping (key: value), not a list"),
        ("", "mesh.yaml:2: services: must be a mapping (key: value), not nothing"),
        ("{a b: {}}", "mesh.yaml:2: services['a b']: 'a b' is no service name: of A-Z a-z 0-9 . _ -, and not . or .."),
        ("{..: {}}", "mesh.yaml:2: services['..']: '..' is no service name: of A-Z a-z 0-9 . _ -, and not . or .."),
        ('{"": {}}', "mesh.yaml:2: services['']: '' is no service name: of A-Z a-z 0-9 . _ -, and not . or .."),
        ('{"*": {}}', "mesh.yaml:2: services.*: '*' is no service name: of A-Z a-z 0-9 . _ -, and not . or .."),
        ("{a/b: {}}", "mesh.yaml:2: services.a/b: 'a/b' is no service name: of A-Z a-z 0-9 . _ -, and not . or .."),
        (
            "{wéb: {}}",
            "mesh.yaml:2: services['w\\xe9b']: 'w\\xe9b' is no service name: of A-Z a-z 0-9 . _ -, and not . or ..",
        ),
        ("{a: 5}", "mesh.yaml:2: services.a: must be a mapping (key: value), not 5"),
        ("{a: {}, a: {}}", "mesh.yaml:2: services.a: is there twice (first on line 2)"),
        ("{a: {prots: 5}}", "mesh.yaml:2: services.a: unknown key 'prots' (did you mean 'ports'?)"),
        ("{a: {ports: x}}", "mesh.yaml:2: services.a.ports: must be a mapping (key: value), not 'x'"),
        ("{a: {ports: [80]}}", "mesh.yaml:2: services.a.ports: must be a mapping (key: value), not a list"),
        ("{a: {ports: true}}", "mesh.yaml:2: services.a.ports: must be a mapping (key: value), not true"),
        ("{a: {ports: 0}}", "mesh.yaml:2: services.a.ports: a port is 1 to 65535, not 0"),
        ("{a: {ports: 65536}}", "mesh.yaml:2: services.a.ports: a port is 1 to 65535, not 65536"),
        ("{a: {ports: {x: -1}}}", "mesh.yaml:2: services.a.ports.x: a port is 1 to 65535, not -1"),
        ('{a: {ports: {x: "80"}}}', "mesh.yaml:2: services.a.ports.x: must be a whole number, not '80'"),
        ("{a: {ports: {x: true}}}", "mesh.yaml:2: services.a.ports.x: must be a whole number, not true"),
        ("{a: {ports: {x: 80.0}}}", "mesh.yaml:2: services.a.ports.x: must be a whole number, not 80"),
        ("{a: {ports: {x: }}}", "mesh.yaml:2: services.a.ports.x: must be a whole number, not nothing"),
        (
            "{a: {ports: {Http: 80}}}",
            "mesh.yaml:2: services.a.ports.Http: 'Http' is no port name: 1 to 63 of a-z 0-9 and, inside, -",
        ),
        (
            "{a: {ports: {-x: 80}}}",
            "mesh.yaml:2: services.a.ports.-x: '-x' is no port name: 1 to 63 of a-z 0-9 and, inside, -",
        ),
        (
            f"{{a: {{ports: {{{'x' * 64}: 80}}}}}}",
            f"mesh.yaml:2: services.a.ports.{'x' * 64}: '{'x' * 64}' is no port name: 1 to 63 of a-z 0-9 and, inside, -",
        ),
        ("{a: {dev: 5}}", "mesh.yaml:2: services.a.dev: must be a mapping (key: value), not 5"),
        ("{a: {dev: {ap: {}}}}", "mesh.yaml:2: services.a.dev: unknown key 'ap' (did you mean 'app'?)"),
        ("{a: {ports: {x: 1}, dev: {app: {y: 5}}}}", "mesh.yaml:2: services.a.dev.app.y: service 'a' has no port 'y'"),
        (
            "{a: {ports: {http: 1}, dev: {app: {htp: 5}}}}",
            "mesh.yaml:2: services.a.dev.app.htp: service 'a' has no port 'htp' (did you mean 'http'?)",
        ),
        ("{a: {ports: {x: 1}, dev: {app: {x: 0}}}}", "mesh.yaml:2: services.a.dev.app.x: a port is 1 to 65535, not 0"),
        (
            "{a: {ports: {x: 1}, dev: {app: {x: y}}}}",
            "mesh.yaml:2: services.a.dev.app.x: must be a whole number, not 'y'",
        ),
        ("{a: {dev: {calls: {b: 5}}}}", "mesh.yaml:2: services.a.dev.calls.b: unknown service 'b'"),
        (
            "{a: {dev: {calls: {'b:y': 5}}}, b: {ports: 1}}",
            "mesh.yaml:2: services.a.dev.calls.b:y: service 'b' has no port 'y' (it has '1')",
        ),
        (
            "{a: {dev: {calls: {b: 5}}}, b: {ports: {x: 1, y: 2}}}",
            "mesh.yaml:2: services.a.dev.calls.b: 'b' has several ports: say which of b:x, b:y",
        ),
        (
            "{a: {dev: {calls: {'*': 5}}}, b: {ports: 1}}",
            "mesh.yaml:2: services.a.dev.calls.*: '*' is not one port: say service:port",
        ),
        (
            "{a: {ports: 1, dev: {calls: {a: 5}, app: {1: 5}}}}",
            "mesh.yaml:2: services.a.dev.calls.a: local port 5 is taken already (line 2)",
        ),
    ],
)
def test_a_mistake_in_services(services: str, line: str) -> None:
    assert mistakes(mesh_with(services=services, rest="")) == [line]


@pytest.mark.parametrize(
    ("trust_domain", "line"),
    [
        ("Shop", "mesh.yaml:1: trust_domain: 'Shop' is no trust domain: 1 to 255 of a-z 0-9 . _ -"),
        ('""', "mesh.yaml:1: trust_domain: '' is no trust domain: 1 to 255 of a-z 0-9 . _ -"),
        ("a/b", "mesh.yaml:1: trust_domain: 'a/b' is no trust domain: 1 to 255 of a-z 0-9 . _ -"),
        ("5", "mesh.yaml:1: trust_domain: must be text, not 5 (quote it)"),
        ("", "mesh.yaml:1: trust_domain: must be text, not nothing"),
        ("[a]", "mesh.yaml:1: trust_domain: must be text, not a list"),
    ],
)
def test_a_mistake_in_the_trust_domain(trust_domain: str, line: str) -> None:
    text = f"trust_domain: {trust_domain}\nservices: {{a: {{ports: 1}}}}\npolicy: [{{from: a, to: a}}]"
    assert mistakes(text) == [line]
    assert parse_mesh(text.replace(f": {trust_domain}", ": good", 1), "mesh.yaml").trust_domain == "good"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["mesh.yaml:1: the file is empty"]),
        ("hello", ["mesh.yaml:1: must be a mapping (key: value), not 'hello'"]),
        ("[]", ["mesh.yaml:1: must be a mapping (key: value), not a list"]),
        ("{}", ["mesh.yaml:1: 'trust_domain' is missing", "mesh.yaml:1: 'services' is missing"]),
        ("services: {}", ["mesh.yaml:1: 'trust_domain' is missing"]),
        (
            "services: {a: {ports: 1}}\npolicy: [{from: 'spiffe://x/y/z', to: a}]",
            ["mesh.yaml:1: 'trust_domain' is missing"],
        ),
    ],
)
def test_not_a_mesh_at_all(text: str, lines: list[str]) -> None:
    assert mistakes(text) == lines


def test_an_identity_that_would_be_too_long() -> None:
    long = "x" * (2048 - len("spiffe://shop.internal/"))
    assert parse_mesh(mesh_with(services=f"\n  ? {long}\n  : {{}}", rest=""), "f").identity(long)
    [line] = mistakes(mesh_with(services=f"\n  ? {long}x\n  : {{}}", rest=""))
    assert line.endswith("a SPIFFE ID has at most 2048 bytes, this service's would have more")


def test_a_pattern_that_would_be_too_long() -> None:
    [line] = mistakes(mesh_with(rest=f'policy: [{{from: "spiffe://shop.internal/{"a/" * 1100}b", to: web}}]'))
    assert "is no pattern for identities" in line


def test_every_mistake_at_once_and_none_twice() -> None:
    text = """\
trust_domain: shop.internal
servces: {}
services:
  web: {ports: {http: 80800}}
  odd: {ports: "x"}
policy:
  - name: 5
    from: [wbe, web]
    frm: web
    to: ["odd:anything", "web:htp"]
    action: alow
  - {from: web, to: web, action: deny, until: soon}
"""
    assert mistakes(text) == [
        "mesh.yaml:2: unknown key 'servces' (did you mean 'services'?)",
        "mesh.yaml:4: services.web.ports.http: a port is 1 to 65535, not 80800",
        "mesh.yaml:5: services.odd.ports: must be a mapping (key: value), not 'x'",
        "mesh.yaml:7: policy[0].name: must be text, not 5 (quote it)",
        "mesh.yaml:8: policy[0].from: unknown service 'wbe' (did you mean 'web'?)",
        "mesh.yaml:9: policy[0]: unknown key 'frm' (did you mean 'from'?)",
        "mesh.yaml:10: policy[0].to: service 'web' has no port 'htp' (did you mean 'http'?)",
        "mesh.yaml:11: policy[0].action: must be allow or deny, not 'alow' (did you mean 'allow'?)",
        "mesh.yaml:12: policy[1].until: a deny rule cannot run out: at its end it would let in what it refuses",
        "mesh.yaml:12: policy[1].until: 'soon' is no day: write it as 2027-01-31",
    ]


def test_broken_services_do_not_hide_a_broken_policy() -> None:
    text = (
        "trust_domain: a\nservices: {web: 5, api: {ports: {x: 1}, dev: [1]}}\n"
        "policy: [{from: web, to: [web, wbe]}, {from: [5], to: {}}]"
    )
    assert mistakes(text) == [
        "mesh.yaml:2: services.web: must be a mapping (key: value), not 5",
        "mesh.yaml:2: services.api.dev: must be a mapping (key: value), not a list",
        "mesh.yaml:3: policy[0].to: unknown service 'wbe' (did you mean 'web'?)",
        "mesh.yaml:3: policy[1].from[0]: must be text, not 5 (quote it)",
        "mesh.yaml:3: policy[1].to: must be a list, not a mapping",
    ]


def test_the_shape_alone_is_not_enough_to_check_with() -> None:
    with pytest.raises(TypeError, match="only checked with the names"):
        MeshShape.model_validate({"trust_domain": "a", "services": {"a": {}}})


def test_targets_of_unreadable_services_are_none() -> None:
    ports = {"good": ("x",), "bad": None}
    assert resolve_targets("*", ports) == (Target("good", "x"),)
    assert resolve_targets("bad:y", ports) == ()
    assert one_target("bad:y", ports) == Target("bad", "")


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
