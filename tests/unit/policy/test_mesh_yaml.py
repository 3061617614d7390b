"""Every mistake that a mesh.yaml can have, with its line."""

from __future__ import annotations

import pytest

from sidecar.documents.schema import read
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.mesh_yaml import MeshShape
from tests.specimens import mesh_with


def mistakes(text: str) -> list[str]:
    with pytest.raises(UsageError) as raised:
        parse_mesh(text, "mesh.yaml")
    return str(raised.value).splitlines()


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
        ("policy: [{from: [], to: api}]", "mesh.yaml:3: policy[0].from: is empty, so the rule covers no call"),
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
            "mesh.yaml:3: policy[0].to: service 'idle' has no ports, so it cannot be called",
        ),
        (
            'policy: [{from: web, to: "idle:http"}]',
            "mesh.yaml:3: policy[0].to: service 'idle' has no ports, so it cannot be called",
        ),
        ('policy: [{from: web, to: "*:http"}]', "mesh.yaml:3: policy[0].to: unknown service '*'"),
        ("policy: [{from: web, to: []}]", "mesh.yaml:3: policy[0].to: is empty, so the rule covers no call"),
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
        # Limits of rules
        (
            "policy:\n- {from: web, to: api, action: deny,\n   connections: 5}",
            "mesh.yaml:5: policy[0].connections: a deny rule lets nothing in that could be counted",
        ),
        (
            "policy: [{from: web, to: api, connections: 0}]",
            "mesh.yaml:3: policy[0].connections: is 1 to 1000000, not 0",
        ),
        (
            "policy: [{from: web, to: api, connections: many}]",
            "mesh.yaml:3: policy[0].connections: must be a whole number, not 'many'",
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
        (
            "{plaintext: {}}",
            "mesh.yaml:2: services.plaintext: 'plaintext' is reserved: in a rule it is whoever calls without "
            "TLS; call your service by another name",
        ),
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
        (
            "{a: {ports: {mesh-admin: 80}}}",
            "mesh.yaml:2: services.a.ports.mesh-admin: 'mesh-admin' is reserved: every service has this port, at which its "
            "sidecar answers for itself; call yours by another name",
        ),
        (
            "{a: {dev: {calls: {'a:mesh-admin': 5}}}}",
            "mesh.yaml:2: services.a.dev.calls.a:mesh-admin: a:mesh-admin is not served by `sidecar dev`: use `sidecar "
            "status`",
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
            "{a: {ports: {x: 1}, dev: {app: {x: [5]}}}}",
            "mesh.yaml:2: services.a.dev.app.x: must be a whole number, not a list",
        ),
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


@pytest.mark.parametrize("more", ["", ", action: allow", ", mode: dry-run", ", until: 2030-01-01"])
def test_an_allow_rule_may_have_a_limit(more: str) -> None:
    text = f"trust_domain: a\nservices: {{web: {{ports: 5}}}}\npolicy: [{{from: web, to: web, connections: 7{more}}}]"
    assert parse_mesh(text, "mesh.yaml").rules[0].connections == 7


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


def test_what_is_as_large_as_may_be() -> None:
    name = "n" * 200
    mesh = parse_mesh(
        mesh_with(services="{a: {ports: {x: 65535}}}", rest=f"policy: [{{from: a, to: a, name: {name}}}]"), "m"
    )
    assert [rule.name for rule in mesh.rules] == [name]
    assert mesh.services["a"].ports["x"] == 65535


def test_ports_that_are_broken_do_not_hide_the_rest() -> None:
    assert mistakes("trust_domain: a\nservices: {b: {ports: 'x', dev: {app: {y: 5}, calls: {c: 6}}}}") == [
        "mesh.yaml:2: services.b.ports: must be a mapping (key: value), not 'x'",
        "mesh.yaml:2: services.b.dev.calls.c: unknown service 'c'",
    ]


def test_the_shape_alone_is_not_enough_to_check_with() -> None:
    with pytest.raises(TypeError, match="checked only with the names"):
        read(MeshShape, {"trust_domain": "a", "services": {"a": {}}}, None)


PEOPLE = "trust_domain: a\nservices:\n  web: {ports: {x: 1}}\n"


def test_people() -> None:
    mesh = parse_mesh(f"{PEOPLE}people: [alice, b.o_b-2]\npolicy: [{{from: [user/alice, user/b.o_b-2], to: web}}]", "m")
    assert mesh.people == ("alice", "b.o_b-2")
    assert mesh.rules[0].identities == {("user", "alice"), ("user", "b.o_b-2")}
    assert parse_mesh(f"{PEOPLE}people: alice", "m").people == ("alice",)
    assert parse_mesh(f"{PEOPLE}people: [{'n' * 200}]", "m").people
    assert parse_mesh(f"{PEOPLE}people:", "m").people == parse_mesh(PEOPLE, "m").people == ()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("people: [a/b]", "4: people: 'a/b' is no name of a person: 1 to 200 of A-Z a-z 0-9 . _ -, not . or .."),
        ("people: ['']", "4: people: '' is no name of a person: 1 to 200 of A-Z a-z 0-9 . _ -, not . or .."),
        (f"people: [{'n' * 201}]", None),
        ("people: [7]\npolicy: [{from: user/x, to: web}]", "4: people[0]: must be text, not 7 (quote it)"),
        ("people: [bob, bob]", "4: people: 'bob' is declared twice"),
        ("people: [7]", "4: people[0]: must be text, not 7 (quote it)"),
        ("people: {alice: 1}\npolicy: [{from: user/x, to: web}]", "4: people: must be a list, not a mapping"),
        (
            "people: [bob]\npolicy: [{from: user/bbo, to: web}]",
            "5: policy[0].from: unknown person 'user/bbo' (did you mean 'user/bob'?)",
        ),
        (
            "policy: [{from: user/bob, to: web}]",
            "4: policy[0].from: unknown person 'user/bob': `people:` declares none of that name",
        ),
        ("people: [bob]\ntests: [{from: bob, to: web, expect: deny}]", None),
    ],
)
def test_a_mistake_about_people(more: str, line: str | None) -> None:
    found = mistakes(PEOPLE + more)
    assert len(found) == 1
    assert line is None or found == [f"mesh.yaml:{line}"]


def test_with_people_no_service_is_called_user() -> None:
    text = "trust_domain: a\nservices:\n  web: {}\n  user: {}\n"
    assert "user" in parse_mesh(text, "m").services
    (line,) = mistakes(f"{text}people: [alice]")
    assert line.startswith("mesh.yaml:4: services.user: with `people:` no service may be called 'user'")
