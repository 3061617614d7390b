"""Every mistake that a sidecar.yaml can have, with its line, and its twin that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from sidecar.config import environment, sidecar_yaml, wiring
from sidecar.config.sidecar_yaml import Admin, CaIdentity, Inbound, Limits, Outbound, Timeouts
from sidecar.documents.address import Address
from sidecar.documents.checks import ShapeError
from sidecar.documents.schema import Before, Named, Shape, fields_of, frozen, nothing_is_empty, one_is_a_list, read_by
from sidecar.policy.mesh import Mesh
from sidecar.policy.mesh_yaml import MeshShape
from sidecar.policy.names import Target
from tests.specimens import DURATION, HEAD, MESH, NEIGHBOUR, mistakes, parsed

EXPOSED = "is not on loopback: a neighbour could read which services communicate; use 127.0.0.1 or unix:/…"


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
            "s.yaml:4: admin.listen: 'unix:run/admin.sock' is no absolute path: write it as unix:/run/sidecar/admin.sock",
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
            ["s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256', to verify the CA at first contact"],
        ),
        (
            f"{{ca: 'https://ca', state_dir: s, root: r, root_sha256: {'ab' * 32}}}",
            ["s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256', to verify the CA at first contact"],
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
        (
            "{port: mesh-admin, listen: 'a:1', app: 'b:2'}",
            [
                "s.yaml:5: inbound[0].port: 'mesh-admin' has no app: the sidecar itself answers, where "
                "`admin.mesh_listen` says"
            ],
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


def test_where_the_mesh_asks_for_metrics_and_whom_this_sidecar_asks() -> None:
    text = f"{HEAD}admin: {{listen: 'unix:/x', mesh_listen: '0.0.0.0:15090'}}\noutbound:\n"
    config = parsed(f"{text}- {{to: 'db:mesh-admin', listen: '127.0.0.1:1', peers: 'db.mesh:15090'}}")
    assert config.admin is not None
    assert str(config.admin.mesh_listen) == "0.0.0.0:15090"
    assert config.outbound[0].target == Target("db", "mesh-admin")
    assert parsed(f"{HEAD}admin: {{listen: 'unix:/x'}}").admin == Admin(Path("/x"))


def test_a_service_without_ports_has_no_inbound() -> None:
    text = HEAD.replace("api", "job")
    assert parsed(text).service == "job"
    assert mistakes(f"{text}inbound: [{{port: http, listen: 'a:1', app: 'b:2'}}]") == [
        "s.yaml:4: inbound[0].port: service 'job' has no ports, so it cannot be called"
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
            [f"s.yaml:5: outbound[0].allow_from: '{it}' is every address: {NEIGHBOUR}" for it in ("0.0.0.0/0", "::/0")],
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
        "s.yaml:5: outbound[0].listen: 'here:1' is a host name, which may be any address: write an IP address, or localhost"
    ]


# -- a key is written once ---------------------------------------------------------------------------------------------


@frozen()
class MoreTimeouts(Timeouts):
    look_up: Annotated[float, read_by(float)] = 7.0


@frozen(kw_only=True)
class MoreShape(sidecar_yaml.ConfigShape):
    """The keys of a ``sidecar.yaml``, and two that are new."""

    timeouts: Annotated[MoreTimeouts, Before(nothing_is_empty)] = MoreTimeouts()
    colours: Annotated[tuple[Literal["red", "blue"], ...], Before(one_is_a_list), Named("colour")] = ()
    shade: Literal["dark", "light"] = "dark"


@frozen(kw_only=True)
class MoreConfig(MoreShape):
    path: Path
    mesh: Mesh


@pytest.fixture
def _more(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sidecar_yaml, environment):
        monkeypatch.setattr(module, "ConfigShape", MoreShape)
    monkeypatch.setattr(wiring, "Config", MoreConfig)


def said(text: str, **variables: str) -> tuple[object, ...]:
    found: Any = parsed(HEAD + text, variables)
    return found.timeouts.look_up, found.colours, found.shade


@pytest.mark.usefixtures("_more")
def test_a_new_key_is_known_everywhere_where_its_field_is_written() -> None:
    assert said("") == (7.0, (), "dark")
    assert said("timeouts: {look_up: '1.5'}\ncolour: red\nshade: light") == (1.5, ("red",), "light")
    assert said("", SIDECAR_TIMEOUTS_LOOK_UP="2.5", SIDECAR_SHADE="light") == (2.5, (), "light")
    assert mistakes(HEAD + "colours: red\nshade: drak", {"SIDECAR_COLOUR": "red"}) == [
        "s.yaml:4: unknown key 'colours' (did you mean 'colour'?)",
        "s.yaml:5: shade: must be dark or light, not 'drak' (did you mean 'dark'?)",
        "SIDECAR_COLOUR: unknown variable",
    ]


def test_and_it_is_not_known_where_it_is_not() -> None:
    assert mistakes(HEAD + "shade: dark", {"SIDECAR_SHADE": "dark"}) == [
        "s.yaml:4: unknown key 'shade'",
        "SIDECAR_SHADE: unknown variable",
    ]


def shapes(of: type[Shape] = Shape) -> list[type[Shape]]:
    """Those of the product."""
    found = [
        it for kind in of.__subclasses__() if kind.__module__.startswith("sidecar.") for it in (kind, *shapes(kind))
    ]
    return [kind for kind in found if "__dataclass_fields__" in vars(kind)]  # not what a class was before it got slots


def defaults_written_again(kinds: list[type[Shape]]) -> set[tuple[str, str]]:
    """Fields that have a default in a class though another that it is made of has the field already."""
    return {
        (kind.__name__, name)
        for kind in kinds
        for base in kind.__mro__[1 : kind.__mro__.index(Shape)]
        for name in kind.__annotations__.keys() & fields_of(base).keys()
        if not fields_of(kind)[name].is_required
    }


def test_a_default_is_written_once() -> None:
    """What is resolved writes some fields again, narrower, and none of them with a default."""
    assert {"Config", "Mesh", "Rule", "CaIdentity"} <= {kind.__name__ for kind in shapes()}
    assert defaults_written_again(shapes()) == set()
    assert defaults_written_again([MoreShape]) == {("MoreShape", "timeouts")}


def test_every_scalar_has_its_variable() -> None:
    names = {".".join(map(str, path)) for path in environment.variables().values()}
    for kind, at in ((Timeouts, "timeouts."), (Limits, "limits."), (sidecar_yaml.Admin, "admin.")):
        assert {at + key for key in fields_of(kind)} <= names
    assert {f"identity.{key}" for key in fields_of(CaIdentity)} - names == {"identity.files"}


# -- what the program makes --------------------------------------------------------------------------------------------

HERE = Address("127.0.0.1", 1)


def test_a_value_that_the_program_makes_has_the_same_defaults_as_one_that_a_file_does() -> None:
    text = (
        f"{HEAD}inbound: [{{port: http, listen: '127.0.0.1:1', app: '127.0.0.1:2'}}]\n"
        "outbound: [{to: db, listen: '127.0.0.1:3', peers: '127.0.0.1:4'}]"
    )
    found = parsed(text)
    assert found.inbound == (Inbound(port="http", listen=HERE, apps=(Address("127.0.0.1", 2),)),)
    peers = (Address("127.0.0.1", 4),)
    assert found.outbound == (Outbound(target=Target("db", "5432"), listen=Address("127.0.0.1", 3), peers=peers),)
    assert (found.timeouts, found.limits) == (Timeouts(), Limits())
    made = sidecar_yaml.Config(
        path=found.path,
        mesh=MESH,
        mesh_path=found.mesh_path,
        service="api",
        identity=found.identity,
        inbound=found.inbound,
        outbound=found.outbound,
    )
    assert made == found
    assert hash(made.inbound[0]) == hash(found.inbound[0])


def test_what_the_program_makes_is_checked_too() -> None:
    assert Limits(1).connections == 1
    with pytest.raises(ShapeError, match="is 1 to 1000000, not 0"):
        Limits(0)
    with pytest.raises(ShapeError):
        Timeouts(drain="8s")  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        Inbound(port="http", listen="127.0.0.1:1", apps=(HERE,))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=NEIGHBOUR):
        Outbound(target=Target("db", "5432"), listen=Address("0.0.0.0", 1), peers=(HERE,))
    with pytest.raises(ShapeError, match="is empty"):
        Inbound(port="http", listen=HERE, apps=())
    assert Outbound(target=Target("db", "5432"), listen=HERE, peers=(HERE,), allow_from=()).allow_from == ()
    with pytest.raises(ShapeError, match="no `allow_from`"):
        Outbound(target=Target("db", "5432"), listen=Address("10.0.0.1", 1), peers=(HERE,))


def test_the_program_calls_no_field_by_its_key() -> None:
    with pytest.raises(TypeError):
        Inbound(port="http", listen=HERE, app=(HERE,))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [sidecar_yaml.ConfigShape, MeshShape])
def test_a_key_has_one_name_in_a_file(kind: type[Shape]) -> None:
    renamed = {name: field.key for name, field in fields_of(kind).items() if field.key != name}
    assert renamed == ({"mesh_path": "mesh"} if kind is sidecar_yaml.ConfigShape else {"rules": "policy"})
