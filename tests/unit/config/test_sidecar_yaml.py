"""Every mistake that a sidecar.yaml can have, with its line, and its twin that is right."""

from __future__ import annotations

import pytest

from sidecar.config.wiring import CaIdentity
from tests.specimens import DURATION, HEAD, NEIGHBOUR, mistakes, parsed

EXPOSED = "is not on loopback: a neighbour could ask who talks to whom; use 127.0.0.1 or unix:/…"


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
        (HEAD + "admin: {listen: 'unix:run/admin.sock'}", [
            "s.yaml:4: admin.listen: 'unix:run/admin.sock' is no whole path: write it as unix:/run/sidecar/admin.sock",
        ]),
        (HEAD + "admin: {listen: '10.0.0.1:15000'}", [f"s.yaml:4: admin.listen: '10.0.0.1:15000' {EXPOSED}"]),
        (HEAD + "admin: {listen: '0.0.0.0:15000'}", [f"s.yaml:4: admin.listen: '0.0.0.0:15000' {EXPOSED}"]),
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
    ("service", "line"),
    [
        ("apj", "s.yaml:1: service: unknown service 'apj' (did you mean 'api'?)"),
        ("[api]", "s.yaml:1: service: must be text, not a list"),
    ],
)
def test_the_ports_of_no_service_are_not_asked_for(service: str, line: str) -> None:
    text = HEAD.replace("api", service) + 'inbound: [{port: nonsense, listen: "0.0.0.0:1", app: "a:2"}]'
    assert mistakes(text) == [line]
    assert "has no port 'nonsense'" in mistakes(text.replace(service, "api"))[0]


@pytest.mark.parametrize("number", [1, 1_000_000])
def test_the_least_and_the_most_of_connections(number: int) -> None:
    assert parsed(HEAD + f"limits: {{connections: {number}}}").limits.connections == number


def test_a_port_named_by_its_number_may_be_a_number() -> None:
    text = HEAD.replace("api", "db") + 'inbound: [{port: 5432, listen: "0.0.0.0:1", app: "a:2"}]'
    assert parsed(text).inbound[0].port == "5432"


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


@pytest.mark.parametrize("pin", ["ab" * 32, "AB" * 32, ":".join(["aB"] * 32)])
def test_root_fingerprint(pin: str) -> None:
    text = f"service: api\nmesh: m\nidentity: {{ca: 'https://ca/', root_sha256: '{pin}', state_dir: s}}"
    identity = parsed(text).identity
    assert isinstance(identity, CaIdentity)
    assert (identity.root, identity.root_sha256, identity.enrolment) == (None, "ab" * 32, None)


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
