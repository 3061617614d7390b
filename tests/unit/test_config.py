"""sidecar.yaml and the environment to frozen values, and every mistake with its line or its variable."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from sidecar.config import (
    Address,
    Admin,
    CaIdentity,
    Config,
    FileIdentity,
    Inbound,
    Limits,
    Outbound,
    Timeouts,
    load_config,
    parse_address,
    parse_config,
    variables,
    warnings,
)
from sidecar.mesh import Mesh, Target, parse_mesh
from sidecar.reasons import UsageError

NOW = datetime(2026, 6, 1, tzinfo=UTC)

MESH_TEXT = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
  cache: {ports: 6379}
  job:
policy:
  - {from: web, to: "api:http"}
  - {from: api, to: db, until: 2027-01-31}
"""
MESH = parse_mesh(MESH_TEXT, "etc/mesh.yaml")

FULL = """\
service: api
mesh: mesh.yaml
identity:
  ca: https://ca:8443
  root: root.pem
  enrolment: /run/secrets/api.enrol
  state_dir: /var/lib/sidecar
inbound:
  - {port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:8081", require_alpn: true, idle_timeout: 5m, max_age: 1h}
  - {port: metrics, listen: "[::1]:9090", app: [localhost:9091, "[::1]:9091"], tolerate_missing_close_notify: true}
outbound:
  - {to: "db:5432", listen: "127.0.0.1:5432", peers: ["db.mesh:5432", "10.0.0.7:5432"]}
  - {to: cache, listen: "172.30.5.2:6379", allow_from: [172.30.5.0/26, "fd00::/8"], peers: "cache.mesh:6379", device: eth1,
     require_alpn: true, tolerate_missing_close_notify: true, idle_timeout: 1m, max_age: 2h}
admin: {listen: "127.0.0.1:15000"}
timeouts: {handshake: 1s, connect: 2s, drain: 3s}
limits: {connections: 5}
log_format: json
"""

HEAD = "service: api\nmesh: mesh.yaml\nidentity: {files: {certificate: c.pem, key: k.pem, bundle: b.pem}}\n"


def parsed(text: str, environ: Mapping[str, str] | None = None, mesh: Mesh = MESH) -> Config:
    return parse_config(text, "etc/sidecar.yaml", environ or {}, mesh)


def mistakes(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(UsageError) as raised:
        parse_config(text, "s.yaml", environ or {}, MESH)
    return str(raised.value).splitlines()


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
            Inbound("http", Address("0.0.0.0", 8080), (Address("127.0.0.1", 8081),), True, False, 300.0, 3600.0),
            Inbound(
                "metrics",
                Address("::1", 9090),
                (Address("localhost", 9091), Address("::1", 9091)),
                False,
                True,
                None,
                86400.0,
            ),
        ),
        outbound=(
            Outbound(
                service="db",
                port="5432",
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
                service="cache",
                port="6379",
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
    assert parsed(FULL).outbound[0].target == Target("db", "5432")


def test_a_port_named_by_its_number_may_be_a_number() -> None:
    text = HEAD.replace("api", "db") + 'inbound: [{port: 5432, listen: "0.0.0.0:1", app: "a:2"}]'
    assert parsed(text).inbound[0].port == "5432"


@pytest.mark.parametrize("pin", ["ab" * 32, "AB" * 32, ":".join(["aB"] * 32)])
def test_root_fingerprint(pin: str) -> None:
    text = f"service: api\nmesh: m\nidentity: {{ca: 'https://ca/', root_sha256: '{pin}', state_dir: s}}"
    identity = parsed(text).identity
    assert isinstance(identity, CaIdentity)
    assert (identity.root, identity.root_sha256, identity.enrolment) == (None, "ab" * 32, None)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:1", "::1", 1),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("db.mesh:5432", "db.mesh", 5432),
        ("my_app-1:80", "my_app-1", 80),
        ("1password:80", "1password", 80),
        ("a.0x1g:80", "a.0x1g", 80),
    ],
)
def test_address(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["127.0.0.1:0", "0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80", "[::]:0"])
def test_only_to_listen_on(text: str) -> None:
    assert str(parse_address(text, listening=True)) == text
    with pytest.raises(ValueError, match="can be listened on, not connected to"):
        parse_address(text)


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            ":80",
            "80",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:-1",
            "localhost:65536",
            "a:999999",
        ),
        *("::1:80", "[::1]", "[::1]80", "[]:80", "[127.0.0.1]:80", "[::1%]:80", "[fe80::1%a b]:80", "[a]:80", "a:b:80"),
        *(
            "unix:/run/app.sock",
            "/run/app.sock",
            "http://a:80",
            "a b:80",
            "-a:80",
            "a-:80",
            "a..b:80",
            ".a:80",
            "a.:80",
        ),
        *("user@a:80", "a/b:80", "é:80", "a:８０", "a:80 ", " a:80", "*:80", f"{'a' * 64}:80", f"{'a.' * 127}a:80"),
        # What a resolver takes for an IPv4 address, though it does not look like one
        *(
            "0:80",
            "127.1:80",
            "2130706433:80",
            "0x7f.1:80",
            "0x7f000001:80",
            "0177.0.0.1:80",
            "1.2.3.4.5:80",
            "256.1.1.1:80",
            "a.0x:80",
        ),
    ],
)
def test_no_address(text: str, *, listening: bool) -> None:
    with pytest.raises(ValueError, match=re.escape(ascii(text))[:40]):
        parse_address(text, listening=listening)


@pytest.mark.parametrize(
    ("host", "wildcard", "loopback"),
    [
        ("0.0.0.0", True, False),
        ("::", True, False),
        ("::ffff:0.0.0.0", True, False),
        ("127.0.0.1", False, True),
        ("127.9.9.9", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("localhost", False, True),
        ("LOCALHOST", False, True),
        ("10.0.0.1", False, False),
        ("localhost.evil", False, False),
    ],
)
def test_kinds_of_addresses(host: str, *, wildcard: bool, loopback: bool) -> None:
    address = Address(host, 80)
    assert (address.is_wildcard, address.is_loopback) == (wildcard, loopback)


# --- mistakes --------------------------------------------------------------------------------------------------------

NEIGHBOUR = "a neighbour could connect and speak in the service's name"
DURATION = "is not a duration: write it like 30s, 90m, 1h or 1h30m, and more than zero"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["s.yaml:1: the file is empty"]),
        ("- a", ["s.yaml:1: must be a mapping (key: value), not a list"]),
        ("{}", ["s.yaml:1: 'service' is missing", "s.yaml:1: 'mesh' is missing", "s.yaml:1: 'identity' is missing"]),
        (HEAD.replace("api", "apj"), ["s.yaml:1: service: unknown service 'apj' (did you mean 'api'?)"]),
        (HEAD.replace("api", "5"), ["s.yaml:1: service: must be text, not 5 (quote it)"]),
        (HEAD.replace("mesh.yaml", '""'), ["s.yaml:2: mesh: names no file"]),
        (HEAD.replace("certificate", "certifcate"), [
            "s.yaml:3: identity.files: 'certificate' is missing",
            "s.yaml:3: identity.files: unknown key 'certifcate' (did you mean 'certificate'?)",
        ]),
        (HEAD.replace("k.pem", "[k]"), ["s.yaml:3: identity.files.key: must be text, not a list"]),
        (HEAD + "outbund: []", ["s.yaml:4: unknown key 'outbund' (did you mean 'outbound'?)"]),
        (HEAD + "inbound: {}", ["s.yaml:4: inbound: must be a list, not a mapping"]),
        (HEAD + "inbound: [5]", ["s.yaml:4: inbound[0]: must be a mapping (key: value), not 5"]),
        (HEAD + "admin: {}", ["s.yaml:4: admin: 'listen' is missing"]),
        (HEAD + "admin: {listen: x}", ["s.yaml:4: admin.listen: 'x' is no host:port, with a port of 1 to 65535"]),
        (HEAD + "timeouts: {drain: 8}", ["s.yaml:4: timeouts.drain: must be text, not 8 (quote it)"]),
        (HEAD + "timeouts: {drain: 0s}", [f"s.yaml:4: timeouts.drain: '0s' {DURATION}"]),
        (HEAD + "timeouts: {darin: 8s}", ["s.yaml:4: timeouts: unknown key 'darin' (did you mean 'drain'?)"]),
        (HEAD + "limits: {connections: 0}", ["s.yaml:4: limits.connections: is 1 to 1000000, not 0"]),
        (HEAD + "limits: {connections: 1000001}", ["s.yaml:4: limits.connections: is 1 to 1000000, not 1000001"]),
        (HEAD + "limits: {connections: '5'}", ["s.yaml:4: limits.connections: must be a whole number, not '5'"]),
        (HEAD + "log_format: jsn",
         ["s.yaml:4: log_format: must be auto or json or console, not 'jsn' (did you mean 'json'?)"]),
    ],
)  # fmt: skip
def test_a_mistake(text: str, lines: list[str]) -> None:
    assert mistakes(text) == lines


@pytest.mark.parametrize(
    ("identity", "lines"),
    [
        ("5", ["s.yaml:3: identity: must be a mapping (key: value), not 5"]),
        ("{}", ["s.yaml:3: identity: has neither 'files' (certificate, key, bundle) nor 'ca': exactly one of the two"]),
        (
            "{files: {certificate: c, key: k, bundle: b}, ca: 'https://ca'}",
            ["s.yaml:3: identity: has 'files' and what belongs to 'ca': exactly one of the two"],
        ),
        (
            "{files: {certificate: c, key: k, bundle: b}, state_dir: s}",
            ["s.yaml:3: identity: has 'files' and what belongs to 'ca': exactly one of the two"],
        ),
        ("{files: 5}", ["s.yaml:3: identity.files: must be a mapping (key: value), not 5"]),
        ("{root: r}", ["s.yaml:3: identity: 'ca' is missing", "s.yaml:3: identity: 'state_dir' is missing"]),
        (
            "{ca: 'https://ca', state_dir: s}",
            ["s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256': whom to trust at first contact"],
        ),
        (
            f"{{ca: 'https://ca', state_dir: s, root: r, root_sha256: {'ab' * 32}}}",
            ["s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256': whom to trust at first contact"],
        ),
        (
            "{ca: 'https://ca', state_dir: s, root_sha256: abc}",
            ["s.yaml:3: identity.root_sha256: 'abc' is no SHA-256 fingerprint: 64 hexadecimal digits"],
        ),
        *(
            (
                f"{{ca: '{url}', state_dir: s, root: r}}",
                [f"s.yaml:3: identity.ca: '{url}' is no address of a CA: write it as https://ca:8443"],
            )
            for url in (
                *(
                    "http://ca:8443",
                    "ca:8443",
                    "https://",
                    "https://ca:x",
                    "https://ca:0",
                    "https://u@ca",
                    "https://ca/x",
                ),
                *("https://ca?x", "HTTPS://ca", "https://0.0.0.0:8443", "https://ca:99999"),
            )
        ),
    ],
)
def test_a_mistake_in_the_identity(identity: str, lines: list[str]) -> None:
    assert mistakes(f"service: api\nmesh: m\nidentity: {identity}") == lines


@pytest.mark.parametrize(
    ("inbound", "lines"),
    [
        ("{}", [f"s.yaml:5: inbound[0]: '{key}' is missing" for key in ("port", "listen", "app")]),
        (
            "{port: htp, listen: 'a:1', app: 'b:2'}",
            ["s.yaml:5: inbound[0].port: service 'api' has no port 'htp' (did you mean 'http'?)"],
        ),
        (
            "{port: 8080, listen: 'a:1', app: 'b:2'}",
            ["s.yaml:5: inbound[0].port: service 'api' has no port '8080' (it has 'http', 'metrics')"],
        ),
        ("{port: [], listen: 'a:1', app: 'b:2'}", ["s.yaml:5: inbound[0].port: must be text, not a list"]),
        ("{port: http, listen: 'a:1', app: []}", ["s.yaml:5: inbound[0].app: is empty: name at least one"]),
        (
            "{port: http, listen: 'a:1', app: ['b:2', 'b:0']}",
            ["s.yaml:5: inbound[0].app: 'b:0' can be listened on, not connected to: say which address and port"],
        ),
        (
            "{port: http, listen: 'a:1', app: 'unix:/x'}",
            ["s.yaml:5: inbound[0].app: 'unix:/x' is no host:port, with a port of 1 to 65535"],
        ),
        (
            "{port: http, listen: ':1', app: 'b:2'}",
            ["s.yaml:5: inbound[0].listen: ':1' has no host: say which address"],
        ),
        ("{port: http, listen: 8080, app: 'b:2'}", ["s.yaml:5: inbound[0].listen: must be text, not 8080 (quote it)"]),
        (
            "{port: http, listen: 'a:1', app: 'b:2', require_alpn: yes}",
            ["s.yaml:5: inbound[0].require_alpn: must be true or false, not 'yes'"],
        ),
        (
            "{port: http, listen: 'a:1', app: 'b:2', idle_timeout: x}",
            [f"s.yaml:5: inbound[0].idle_timeout: 'x' {DURATION}"],
        ),
        (
            "{port: http, listen: 'a:1', ap: 'b:2'}",
            ["s.yaml:5: inbound[0]: 'app' is missing", "s.yaml:5: inbound[0]: unknown key 'ap' (did you mean 'app'?)"],
        ),
    ],
)
def test_a_mistake_in_inbound(inbound: str, lines: list[str]) -> None:
    assert mistakes(f"{HEAD}inbound:\n- {inbound}") == lines


def test_a_service_without_ports_has_no_inbound() -> None:
    text = HEAD.replace("api", "job")
    assert parsed(text).service == "job"
    assert mistakes(f"{text}inbound: [{{port: http, listen: 'a:1', app: 'b:2'}}]") == [
        "s.yaml:4: inbound[0].port: service 'job' has no ports, so nobody can call it"
    ]


@pytest.mark.parametrize(
    ("outbound", "lines"),
    [
        ("{}", [f"s.yaml:5: outbound[0]: '{key}' is missing" for key in ("to", "peers", "listen")]),
        (
            "{to: 'dbx', listen: '127.0.0.1:1', peers: ['p:1']}",
            ["s.yaml:5: outbound[0].to: unknown service 'dbx' (did you mean 'db'?)"],
        ),
        (
            "{to: 'db:543', listen: '127.0.0.1:1', peers: ['p:1']}",
            ["s.yaml:5: outbound[0].to: service 'db' has no port '543' (did you mean '5432'?)"],
        ),
        (
            "{to: api, listen: '127.0.0.1:1', peers: ['p:1']}",
            ["s.yaml:5: outbound[0].to: 'api' has several ports: say which of api:http, api:metrics"],
        ),
        (
            "{to: '*', listen: '127.0.0.1:1', peers: ['p:1']}",
            ["s.yaml:5: outbound[0].to: '*' is not one port: say service:port"],
        ),
        ("{to: db, listen: '127.0.0.1:1', peers: []}", ["s.yaml:5: outbound[0].peers: is empty: name at least one"]),
        (
            "{to: db, listen: '127.0.0.1:1', peers: [p]}",
            ["s.yaml:5: outbound[0].peers: 'p' is no host:port, with a port of 1 to 65535"],
        ),
        (
            "{to: db, listen: '127.0.0.1:1', peers: ['p:1'], device: 'a b'}",
            ["s.yaml:5: outbound[0].device: 'a b' is no name of a network interface"],
        ),
        (
            "{to: db, listen: '10.0.0.1:1', peers: ['p:1'], allow_from: []}",
            ["s.yaml:5: outbound[0].allow_from: is empty: name at least one"],
        ),
        (
            "{to: db, listen: '10.0.0.1:1', peers: ['p:1'], allow_from: [10.0.0.1/8]}",
            [
                "s.yaml:5: outbound[0].allow_from: '10.0.0.1/8' is no network: write it as 172.30.5.0/26, its host bits zero"
            ],
        ),
        (
            "{to: db, listen: '10.0.0.1:1', peers: ['p:1'], allow_from: [0.0.0.0/0, '::/0']}",
            [f"s.yaml:5: outbound[0].allow_from: '{it}' is everybody: {NEIGHBOUR}" for it in ("0.0.0.0/0", "::/0")],
        ),
    ],
)
def test_a_mistake_in_outbound(outbound: str, lines: list[str]) -> None:
    assert mistakes(f"{HEAD}outbound:\n- {outbound}") == lines


@pytest.mark.parametrize("allow_from", ["", ", allow_from: [10.0.0.0/8]"])
@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1", "[0:0::0]:1", ":1", "*:1"])
def test_plaintext_on_every_address_is_always_refused(listen: str, allow_from: str) -> None:
    assert mistakes(f"{HEAD}outbound:\n- {{to: db, listen: '{listen}', peers: ['p:2']{allow_from}}}") == [
        f"s.yaml:5: outbound[0].listen: '{listen}' is every address of this machine: {NEIGHBOUR}"
    ]


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.0.0.5:1", "[::1]:1", "localhost:1", "127.0.0.1:0"])
def test_plaintext_on_loopback_needs_no_allow_from(listen: str) -> None:
    assert (
        str(parsed(f"{HEAD}outbound:\n- {{to: db, listen: '{listen}', peers: ['p:2']}}").outbound[0].listen) == listen
    )


@pytest.mark.parametrize("listen", ["172.30.5.2:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"])
def test_plaintext_elsewhere_needs_allow_from(listen: str) -> None:
    text = f"{HEAD}outbound:\n- {{to: db, listen: '{listen}', peers: ['p:2'], allow_from: 172.30.5.0/26}}"
    assert str(parsed(text).outbound[0].listen) == listen
    assert mistakes(text.replace(", allow_from: 172.30.5.0/26", "")) == [
        f"s.yaml:5: outbound[0].listen: '{listen}' is not on loopback and has no `allow_from`: {NEIGHBOUR}"
    ]


def test_plaintext_on_a_name_is_refused() -> None:
    text = f"{HEAD}outbound:\n- {{to: db, listen: 'here:1', peers: ['p:2'], allow_from: 172.30.5.0/26}}"
    assert mistakes(text) == [
        "s.yaml:5: outbound[0].listen: 'here:1' is a name, which may lead anywhere: say which IP address, or localhost"
    ]


def wired(inbound: list[tuple[str, str]], outbound: list[tuple[str, str]], admin: str = "127.0.0.1:9999") -> str:
    lines = [f"- {{port: http, listen: '{listen}', app: '{app}'}}" for listen, app in inbound]
    out = [f"- {{to: db, listen: '{listen}', peers: '{peer}', allow_from: 10.0.0.0/8}}" for listen, peer in outbound]
    return "\n".join([HEAD + "inbound:", *lines, "outbound:", *out, f"admin: {{listen: '{admin}'}}"])


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.1:81", False),
        ("10.0.0.1:80", "10.0.0.2:80", False),
        ("10.0.0.1:0", "10.0.0.1:0", False),
        ("0.0.0.0:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "0.0.0.0:80", True),
        ("0.0.0.0:80", "[fd00::1]:80", False),
        ("[::]:80", "[fd00::1]:80", True),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "10.0.0.1:80", True),
        ("[::]:80", "0.0.0.0:80", True),
        ("0.0.0.0:80", "[::]:80", True),
        ("here:80", "[::]:80", True),
        ("0.0.0.0:80", "0.0.0.0:80", True),
        ("[::]:80", "[::]:80", True),
        ("0.0.0.0:80", "localhost:80", True),
        ("0.0.0.0:80", "somewhere:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("LocalHost:80", "[::1]:80", True),
        ("127.0.0.2:80", "127.0.0.1:80", False),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", True),
        ("here:80", "HERE:80", True),
        ("here:80", "there:80", False),
    ],
)
def test_two_listeners_in_one_place(one: str, other: str, *, collide: bool) -> None:
    text = wired([(one, "app:1"), (other, "app:2")], [])
    if not collide:
        assert len(parsed(text).inbound) == 2
    else:
        host = parse_address(other, listening=True)
        taken = parse_address(one, listening=True)
        assert mistakes(text) == [
            f"s.yaml:6: inbound[1].listen: '{host}' is taken already by inbound[0].listen ('{taken}')"
        ]


def test_listeners_of_all_kinds_collide() -> None:
    assert mistakes(wired([("0.0.0.0:80", "app:1")], [("10.0.0.1:80", "db:1")], "127.0.0.1:80")) == [
        "s.yaml:7: outbound[0].listen: '10.0.0.1:80' is taken already by inbound[0].listen ('0.0.0.0:80')",
        "s.yaml:8: admin.listen: '127.0.0.1:80' is taken already by inbound[0].listen ('0.0.0.0:80')",
    ]


@pytest.mark.parametrize(
    ("listen", "app", "loop"),
    [
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.1:81", False),
        ("10.0.0.1:80", "10.0.0.2:80", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.2:80", True),
        ("0.0.0.0:80", "localhost:80", True),
        ("0.0.0.0:80", "[::1]:80", True),
        ("0.0.0.0:80", "10.0.0.1:80", False),  # another container's
        ("0.0.0.0:80", "app:80", False),
        ("[::]:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "localhost:80", True),
        ("localhost:80", "[::1]:80", True),
        ("[::1]:80", "127.0.0.1:80", False),
        ("[::1]:80", "localhost:80", True),
        ("here:80", "HERE:80", True),
    ],
)
def test_a_loop_to_its_own_listener(listen: str, app: str, *, loop: bool) -> None:
    text = wired([(listen, app)], [])
    if loop:
        assert mistakes(text) == [
            f"s.yaml:5: inbound[0].app: '{app}' is this sidecar's own inbound[0].listen ('{listen}'): a loop"
        ]
    else:
        assert str(parsed(text).inbound[0].apps[0]) == app


def test_loops_between_all_kinds() -> None:
    text = wired([("0.0.0.0:80", "127.0.0.1:9999"), ("10.0.0.7:81", "10.0.0.9:82")], [("10.0.0.9:82", "10.0.0.9:80")])
    assert mistakes(text) == [
        "s.yaml:5: inbound[0].app: '127.0.0.1:9999' is this sidecar's own admin.listen ('127.0.0.1:9999'): a loop",
        "s.yaml:6: inbound[1].app: '10.0.0.9:82' is this sidecar's own outbound[0].listen ('10.0.0.9:82'): a loop",
        "s.yaml:8: outbound[0].peers: '10.0.0.9:80' is this sidecar's own inbound[0].listen ('0.0.0.0:80'): a loop",
    ]


# --- the environment -------------------------------------------------------------------------------------------------


def test_variables_are_made_from_the_files_shape() -> None:
    assert variables() == {
        "SIDECAR_SERVICE": ("service",),
        "SIDECAR_MESH": ("mesh",),
        "SIDECAR_IDENTITY_FILES_CERTIFICATE": ("identity", "files", "certificate"),
        "SIDECAR_IDENTITY_FILES_KEY": ("identity", "files", "key"),
        "SIDECAR_IDENTITY_FILES_BUNDLE": ("identity", "files", "bundle"),
        "SIDECAR_IDENTITY_CA": ("identity", "ca"),
        "SIDECAR_IDENTITY_ROOT": ("identity", "root"),
        "SIDECAR_IDENTITY_ROOT_SHA256": ("identity", "root_sha256"),
        "SIDECAR_IDENTITY_ENROLMENT": ("identity", "enrolment"),
        "SIDECAR_IDENTITY_STATE_DIR": ("identity", "state_dir"),
        "SIDECAR_ADMIN_LISTEN": ("admin", "listen"),
        "SIDECAR_TIMEOUTS_HANDSHAKE": ("timeouts", "handshake"),
        "SIDECAR_TIMEOUTS_CONNECT": ("timeouts", "connect"),
        "SIDECAR_TIMEOUTS_DRAIN": ("timeouts", "drain"),
        "SIDECAR_LIMITS_CONNECTIONS": ("limits", "connections"),
        "SIDECAR_LOG_FORMAT": ("log_format",),
    }


def test_the_environment_wins() -> None:
    config = parsed(
        FULL,
        {
            "PATH": "/bin",
            "SIDECAR_MESH": "other.yaml",
            "SIDECAR_IDENTITY_ROOT": "here.pem",
            "SIDECAR_TIMEOUTS_DRAIN": "9s",
            "SIDECAR_LIMITS_CONNECTIONS": "77",
            "SIDECAR_ADMIN_LISTEN": "127.0.0.1:1",
            "SIDECAR_LOG_FORMAT": "console",
        },
    )
    assert isinstance(config.identity, CaIdentity)
    # Relative to the working directory, not to the file
    assert (config.mesh_path, config.identity.root) == (Path("other.yaml"), Path("here.pem"))
    assert (config.timeouts, config.limits) == (Timeouts(1.0, 2.0, 9.0), Limits(77))
    assert (config.admin, config.log_format) == (Admin(Address("127.0.0.1", 1)), "console")


def test_the_environment_may_say_what_the_file_does_not() -> None:
    config = parsed(
        "timeouts:\n",
        {
            "SIDECAR_SERVICE": "web",
            "SIDECAR_MESH": "/m.yaml",
            "SIDECAR_IDENTITY_FILES_CERTIFICATE": "/c",
            "SIDECAR_IDENTITY_FILES_KEY": "/k",
            "SIDECAR_IDENTITY_FILES_BUNDLE": "/b",
            "SIDECAR_TIMEOUTS_CONNECT": "1s",
        },
    )
    assert config.service == "web"
    assert config.identity == FileIdentity(Path("/c"), Path("/k"), Path("/b"))
    assert config.timeouts.connect == 1.0


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("SIDECAR_SERVICE", "apj", "SIDECAR_SERVICE: service: unknown service 'apj' (did you mean 'api'?)"),
        ("SIDECAR_MESH", "", "SIDECAR_MESH: mesh: names no file"),
        ("SIDECAR_TIMEOUTS_DRAIN", "8", f"SIDECAR_TIMEOUTS_DRAIN: timeouts.drain: '8' {DURATION}"),
        (
            "SIDECAR_LIMITS_CONNECTIONS",
            "many",
            "SIDECAR_LIMITS_CONNECTIONS: limits.connections: must be a whole number, not 'many'",
        ),
        (
            "SIDECAR_LIMITS_CONNECTIONS",
            "٣",
            "SIDECAR_LIMITS_CONNECTIONS: limits.connections: must be a whole number, not '\\u0663'",
        ),
        ("SIDECAR_LIMITS_CONNECTIONS", "0", "SIDECAR_LIMITS_CONNECTIONS: limits.connections: is 1 to 1000000, not 0"),
        (
            "SIDECAR_LOG_FORMAT",
            "jsn",
            "SIDECAR_LOG_FORMAT: log_format: must be auto or json or console, not 'jsn' (did you mean 'json'?)",
        ),
        (
            "SIDECAR_ADMIN_LISTEN",
            "x",
            "SIDECAR_ADMIN_LISTEN: admin.listen: 'x' is no host:port, with a port of 1 to 65535",
        ),
        (
            "SIDECAR_IDENTITY_ROOT",
            "a\nb",
            "SIDECAR_IDENTITY_ROOT: identity.root: has a character that cannot be printed: 'a\\nb'",
        ),
        (
            "SIDECAR_TIMEOUT_DRAIN",
            "8s",
            "SIDECAR_TIMEOUT_DRAIN: unknown variable (did you mean 'SIDECAR_TIMEOUTS_DRAIN'?)",
        ),
        ("SIDECAR_", "8s", "SIDECAR_: unknown variable"),
        ("SIDECAR_x\n", "8s", "'SIDECAR_x\\n': unknown variable"),
        ("SIDECAR_INBOUND", "8s", "SIDECAR_INBOUND: unknown variable"),
    ],
)
def test_a_mistake_in_a_variable(name: str, value: str, line: str) -> None:
    assert mistakes(FULL, {name: value}) == [line]


def test_a_variable_cannot_repair_a_value_of_a_wrong_kind() -> None:
    assert mistakes(f"{HEAD}timeouts: 5", {"SIDECAR_TIMEOUTS_DRAIN": "1s"}) == [
        "s.yaml:4: timeouts: must be a mapping (key: value), not 5"
    ]
    assert mistakes("[]", {"SIDECAR_SERVICE": "api", "SIDECAR_TIMEOUTS_DRAIN": "1s"}) == [
        "s.yaml:1: must be a mapping (key: value), not a list"
    ]


def test_a_variable_of_the_other_kind_of_identity() -> None:
    assert mistakes(HEAD, {"SIDECAR_IDENTITY_CA": "https://ca"}) == [
        "s.yaml:3: identity: has 'files' and what belongs to 'ca': exactly one of the two"
    ]


def test_a_file_with_everything_wrong() -> None:
    text = "service: apj\nmesh: m\nidentity: {ca: x}\ninbound: [{port: http}]\nnonsense: 1\n"
    assert mistakes(text, {"SIDECAR_TIMEOUTS_DRAIN": "x", "SIDECAR_X": "1"}) == [
        "s.yaml:1: service: unknown service 'apj' (did you mean 'api'?)",
        "s.yaml:3: identity: 'state_dir' is missing",
        "s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256': whom to trust at first contact",
        "s.yaml:3: identity.ca: 'x' is no address of a CA: write it as https://ca:8443",
        "s.yaml:4: inbound[0]: 'listen' is missing",
        "s.yaml:4: inbound[0]: 'app' is missing",
        "s.yaml:5: unknown key 'nonsense'",
        f"SIDECAR_TIMEOUTS_DRAIN: timeouts.drain: 'x' {DURATION}",
        "SIDECAR_X: unknown variable",
    ]


# --- from disk -------------------------------------------------------------------------------------------------------


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


def test_warnings() -> None:
    config = parsed(FULL)
    assert warnings(config, NOW) == [
        "etc/sidecar.yaml: outbound[1]: every connection will be refused: api may not call cache:6379: no rule allows it",
        "etc/sidecar.yaml: inbound[1]: nobody may call api:metrics: no rule allows it",
    ]
    assert warnings(config, datetime(2028, 1, 1, tzinfo=UTC)) == [
        "etc/sidecar.yaml: outbound[0]: every connection will be refused: api may not call db:5432: rule 'api->db'"
        " (etc/mesh.yaml:10) allowed it until 2027-01-31 and ran out; no other rule does",
        "etc/sidecar.yaml: outbound[1]: every connection will be refused: api may not call cache:6379: no rule allows it",
        "etc/sidecar.yaml: inbound[1]: nobody may call api:metrics: no rule allows it",
        "etc/mesh.yaml:10: rule 'api->db' held until 2027-01-31 and counts for nothing now",
    ]
    assert warnings(parsed(HEAD), NOW) == []
