"""Bad input at start: a message that names the file, what is wrong and what to do; exit code 2; nothing left listening."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.commands import main
from tests.beds.certificates import Authority, rsa_key
from tests.beds.processes import SIDECAR, Shop, free_port, running


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SIDECAR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def file(shop: Shop, port: int) -> Path:
    """A sidecar.yaml that is right, until a test spoils something that it names."""
    return shop.wiring("api", f'inbound: [{{port: http, listen: "127.0.0.1:{port}", app: "127.0.0.1:9"}}]\n')


def start(file: Path, *words: str | Path) -> str:
    """``sidecar run`` as the command line runs it, in this process: it must refuse, and say these words."""
    result = CliRunner().invoke(main, ["run", str(file)])
    check(result.exit_code, result.stderr, result.stdout, *words)
    return result.stderr


def check(code: int, errors: str, stdout: str, *words: str | Path) -> None:
    assert code == 2, errors
    assert "Traceback" not in errors
    assert stdout == ""
    assert all(line.startswith("error: ") for line in errors.splitlines())
    for word in words:
        assert str(word) in errors


def nobody_listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


# -- as a process, from end to end -------------------------------------------------------------------------------------


async def started(file: Path, *words: str | Path, **variables: str) -> None:
    async with running(*SIDECAR, "run", file, variables=variables) as program:
        check(await program.ended(), program.errors, "\n".join(program.lines), *words)


async def test_a_port_that_is_taken(shop: Shop, port: int) -> None:
    """The second of two listeners fails; the first does not stay behind."""
    first = free_port()
    file = shop.wiring(
        "web",
        f'outbound:\n  - {{to: "api:http", listen: "127.0.0.1:{first}", peers: ["127.0.0.1:9"]}}\n'
        f'  - {{to: "db:redis", listen: "127.0.0.1:{port}", peers: ["127.0.0.1:9"]}}\n',
    )
    with socket.create_server(("127.0.0.1", port)):
        await started(file, file, "outbound[1]", f"127.0.0.1:{port}", os.strerror(errno.EADDRINUSE))
    assert nobody_listens(first)


async def test_a_key_that_others_can_read(shop: Shop, file: Path, port: int) -> None:
    key = shop.path / "api" / "key.pem"
    key.chmod(0o644)
    await started(file, key, f"chmod 600 {key}")
    assert nobody_listens(port)


async def test_a_bad_file_with_several_mistakes_names_them_all(shop: Shop, port: int) -> None:
    file = shop.wiring(
        "apii",
        f'inbound: [{{port: http, listen: "127.0.0.1:{port}", app: "127.0.0.1:{port}", colour: red}}]\n'
        'outbound: [{to: "db:redis", listen: "0.0.0.0:1", peers: []}]\n',
    )
    await started(file, f"{file}:1", "'api'", f"{file}:4", "colour", f"127.0.0.1:{port}", "'0.0.0.0:1'")


async def test_an_unknown_variable(file: Path, port: int) -> None:
    await started(file, "SIDECAR_TIMEOUTS_DRAIM", "SIDECAR_TIMEOUTS_DRAIN", SIDECAR_TIMEOUTS_DRAIM="1s")
    assert nobody_listens(port)


async def test_a_locked_out_user(shop: Shop, file: Path) -> None:
    """A file that the process may not read: taken from it as root would, by dropping what lets root read everything."""
    key = shop.path / "api" / "key.pem"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root reads every file, and setpriv (util-linux) is not here to give that up")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    key.chmod(0o000)
    async with running(*drop, *SIDECAR, "run", file) as program:
        check(await program.ended(), program.errors, "\n".join(program.lines), key, "Permission denied")


# -- one case each, without the cost of a process ----------------------------------------------------------------------

Spoil = Callable[[Path], object]


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED: dict[str, tuple[str, Spoil]] = {
    "no certificate": ("certificate.pem", lambda path: path.unlink()),
    "no key": ("key.pem", lambda path: path.unlink()),
    "no bundle": ("bundle.pem", lambda path: path.unlink()),
    "a directory": ("key.pem", make_directory),
    "a FIFO": ("key.pem", make_fifo),
    "an empty file": ("bundle.pem", lambda path: path.write_bytes(b"")),
    "garbage": ("certificate.pem", lambda path: path.write_bytes(os.urandom(300))),
    "a huge file": ("certificate.pem", lambda path: path.write_bytes(b"x" * (2 << 20))),
    "another's key": ("key.pem", lambda path: path.write_bytes(Authority().leaf().key_pem)),
    "another CA's bundle": ("bundle.pem", lambda path: path.write_bytes(Authority().bundle_pem)),
    "a leaf in the bundle": ("bundle.pem", lambda path: shutil.copy(path.with_name("certificate.pem"), path)),
}
"""What is said of each is tested in tests/unit/test_credentials.py."""


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_named(shop: Shop, file: Path, port: int, case: str) -> None:
    name, spoil = SPOILED[case]
    spoil(shop.path / "api" / name)
    start(file, shop.path / "api" / name)
    assert nobody_listens(port)


def test_a_certificate_of_another_service(shop: Shop, port: int) -> None:
    body = f'inbound: [{{port: http, listen: "127.0.0.1:{port}", app: "127.0.0.1:9"}}]\n'
    file = shop.wiring("api", body, certificates="web")
    start(file, "spiffe://shop.internal/web", "spiffe://shop.internal/api", "certs issue")
    assert nobody_listens(port)


def test_an_expired_certificate(shop: Shop, file: Path, port: int) -> None:
    mesh = Authority(age=timedelta(hours=2))
    until = mesh.now - timedelta(minutes=1)
    mesh.leaf("api", not_after=until).write(shop.path / "api")
    start(file, shop.path / "api/certificate.pem", f"good until {until:%F %T} UTC", "certs issue CA_DIR api --out")
    assert nobody_listens(port)


def test_a_certificate_that_is_not_valid_yet(shop: Shop, file: Path) -> None:
    mesh = Authority()
    since = mesh.now + timedelta(hours=1)
    mesh.leaf("api", not_before=since, not_after=since + timedelta(hours=1)).write(shop.path / "api")
    start(file, f"{since:%F %T} UTC")


def test_a_certificate_of_another_trust_domain(shop: Shop, file: Path) -> None:
    Authority("bank.internal").leaf("api").write(shop.path / "api")
    start(file, "bank.internal", "shop.internal", "certs issue")


def test_a_certificate_that_is_no_svid(shop: Shop, file: Path) -> None:
    Authority().leaf("api", uris=(), dns=("api",)).write(shop.path / "api")
    start(file, shop.path / "api/certificate.pem", "certs issue")


def test_a_weak_key(shop: Shop, file: Path) -> None:
    Authority().leaf("api", key=rsa_key(1024)).write(shop.path / "api")
    start(file, shop.path / "api/certificate.pem", "use P-256")


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ("root: none.pem, state_dir: state", ("none.pem",)),
        ("root: mesh.yaml, state_dir: state", ("mesh.yaml",)),
        ("root: ca/root.pem, state_dir: none/state", ("none", "state_dir")),
        ("root: ca/root.pem, state_dir: mesh.yaml", ("mesh.yaml", "state_dir")),
    ],
)
def test_an_identity_from_a_ca_that_cannot_be(
    shop: Shop, file: Path, port: int, identity: str, words: tuple[str, ...]
) -> None:
    text = file.read_text().splitlines()
    text[2] = f"identity: {{ca: https://ca:8443, {identity}}}"
    file.write_text("\n".join(text))
    start(file, *words)
    assert nobody_listens(port)


def test_a_device_that_does_not_exist(shop: Shop, port: int) -> None:
    file = shop.wiring(
        "web",
        f'outbound: [{{to: "api:http", listen: "127.0.0.1:{port}", device: nosuch0, peers: ["127.0.0.1:9"]}}]\n',
    )
    start(file, file, "outbound[0]", "nosuch0")
    assert nobody_listens(port)


def test_an_address_that_is_not_ours(shop: Shop) -> None:
    file = shop.wiring("api", 'inbound: [{port: http, listen: "192.0.2.1:8080", app: "127.0.0.1:9"}]\n')
    start(file, file, "inbound[0]", "192.0.2.1:8080")


def test_a_host_that_has_no_address(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    file = shop.wiring("api", 'inbound: [{port: http, listen: "api.invalid:8080", app: "127.0.0.1:9"}]\n')
    start(file, file, "inbound[0]", "api.invalid:8080", "not known")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    start(tmp_path / "sidecar.yaml", tmp_path / "sidecar.yaml")


def test_a_mesh_file_that_is_not_there(shop: Shop, file: Path) -> None:
    (shop.path / "mesh.yaml").unlink()
    start(file, f"{file}:2", shop.path / "mesh.yaml")


def test_a_mesh_file_with_a_mistake(shop: Shop, file: Path) -> None:
    mesh = shop.path / "mesh.yaml"
    mesh.write_text(mesh.read_text().replace('{from: web, to: "api:http"}', '{from: wbe, to: "api:http"}'))
    start(file, f"{mesh}:8", "'web'")
