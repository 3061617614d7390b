"""SIDECAR_ variables: which there are, what they win over, and their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.environment import variables, warnings, with_environment
from sidecar.config.sidecar_yaml import Admin, CaIdentity, FileIdentity, Limits, Timeouts
from sidecar.documents.address import Address
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError
from tests.specimens import DURATION, FULL, HEAD, mistakes, parsed


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
        "SIDECAR_ADMIN_SOCKET": ("admin", "socket"),
        "SIDECAR_ADMIN_MESH_LISTEN": ("admin", "mesh_listen"),
        "SIDECAR_TIMEOUTS_HANDSHAKE": ("timeouts", "handshake"),
        "SIDECAR_TIMEOUTS_CONNECT": ("timeouts", "connect"),
        "SIDECAR_TIMEOUTS_DRAIN": ("timeouts", "drain"),
        "SIDECAR_TIMEOUTS_WAIT": ("timeouts", "wait"),
        "SIDECAR_LIMITS_CONNECTIONS": ("limits", "connections"),
        "SIDECAR_HAS_REPLICAS": ("has_replicas",),
        "SIDECAR_KEEP": ("keep",),
        "SIDECAR_ACCESS_LOG": ("access_log",),
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


def test_an_identity_that_only_variables_make_and_that_is_not_whole() -> None:
    assert mistakes("service: api\nmesh: m", {"SIDECAR_IDENTITY_CA": "https://ca"}) == [
        "s.yaml:1: identity: 'state_dir' is missing",
        "s.yaml:1: identity: needs exactly one of 'root' and 'root_sha256', to verify the CA at first contact",
    ]


def test_a_file_with_everything_wrong() -> None:
    text = "service: apj\nmesh: m\nidentity: {ca: x}\ninbound: [{port: http}]\nnonsense: 1\n"
    assert mistakes(text, {"SIDECAR_TIMEOUTS_DRAIN": "x", "SIDECAR_X": "1"}) == [
        "s.yaml:1: service: unknown service 'apj' (did you mean 'api'?)",
        "s.yaml:3: identity: 'state_dir' is missing",
        "s.yaml:3: identity: needs exactly one of 'root' and 'root_sha256', to verify the CA at first contact",
        "s.yaml:3: identity.ca: 'x' is no address of a CA: write it as https://ca:8443",
        "s.yaml:4: inbound[0]: 'listen' is missing",
        "s.yaml:4: inbound[0]: 'app' is missing",
        "s.yaml:5: unknown key 'nonsense'",
        f"SIDECAR_TIMEOUTS_DRAIN: timeouts.drain: 'x' {DURATION}",
        "SIDECAR_X: unknown variable",
    ]


# -- what container platforms set --------------------------------------------------------------------------------------

LINKS = {
    "SIDECAR_PORT": "tcp://10.0.0.7:8080",
    "SIDECAR_PORT_8080_TCP": "tcp://10.0.0.7:8080",
    "SIDECAR_PORT_8080_TCP_PROTO": "tcp",
    "SIDECAR_PORT_8080_TCP_PORT": "8080",
    "SIDECAR_PORT_8080_TCP_ADDR": "10.0.0.7",
    "SIDECAR_SERVICE_HOST": "10.0.0.7",
    "SIDECAR_SERVICE_PORT": "8080",
    "SIDECAR_SERVICE_PORT_HTTP": "8080",
    "SIDECAR_WEB_PORT": "tcp://[fd00::7]:80",
    "SIDECAR_NAME": "/web/sidecar",
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_variable_is_ignored_and_told_of(name: str) -> None:
    document = parse_yaml("service: api", "sidecar.yaml")
    merged = with_environment(document, {name: LINKS[name]})
    assert merged.data == {"service": "api"}
    merged.problems.raise_any()
    [warning] = warnings({name: LINKS[name], "HOME": "/"})
    assert name in warning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIDECAR_PORT", "8080"),
        ("SIDECAR_PORT", "http://10.0.0.7:8080"),
        ("SIDECAR_SERVICE_HOST", "api"),
        ("SIDECAR_SERVICE_PORT", "http"),
        ("SIDECAR_NAME", "api"),
        ("SIDECAR_TIMEOUT_DRAIN", "8"),
        ("SIDECAR_PORTS", "tcp://10.0.0.7:8080"),
    ],
)
def test_what_only_looks_like_one_is_refused(name: str, value: str) -> None:
    merged = with_environment(parse_yaml("service: api", "sidecar.yaml"), {name: value})
    with pytest.raises(UsageError, match=name):
        merged.problems.raise_any()
    assert warnings({name: value}) == []


def test_our_own_variables_are_no_links() -> None:
    assert warnings({"SIDECAR_SERVICE": "api", "SIDECAR_TIMEOUTS_DRAIN": "8s"}) == []
