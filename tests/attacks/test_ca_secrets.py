"""No pass and no key is ever in a log, an error, ``ps``, the store, or a core dump; and files that others can touch are
refused."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sidecar.identity.reasons import UsageError
from tests.beds import forks
from tests.beds.asking import ca_desk
from tests.beds.ca import Sidecar
from tests.beds.ca_processes import CALLS_API, CaSite, ca_mesh
from tests.beds.mesh import mesh_bed
from tests.beds.patience import PATIENCE
from tests.beds.processes import SIDECAR, Running, output, running

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def of_pass(text: str) -> str:
    """The part of a token or secret that is secret."""
    return text.strip().split(".")[1]


def of_key(pem: str) -> set[str]:
    """Every line of the keys in PEM."""
    keys = re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", pem, re.DOTALL)
    return {line for key in keys for line in key.split()}


def of_directory(path: Path) -> set[str]:
    found = {line for file in path.rglob("*.pem") for line in of_key(file.read_text())}
    return found | {line for file in path.rglob("*.key") for line in of_key(file.read_text())}


def of_passes(path: Path) -> set[str]:
    return {of_pass(file.read_text()) for file in path.glob("*.secret")}


def seen_by_ps(program: Running) -> str:
    process = Path(f"/proc/{program.process.pid}")
    return "".join((process / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ"))


@pytest.fixture
def _started_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process, since /proc shows what a process was started with."""
    monkeypatch.setattr(forks, "can_start", lambda *_: False)


async def core_limits(program: Running) -> list[str]:
    limits = await trio.Path(f"/proc/{program.process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    return line.split()[4:6]


@ON_LINUX
@pytest.mark.usefixtures("_started_by_python")
async def test_passes_and_keys_stay_where_they_are_and_no_core_is_dumped(tmp_path: Path) -> None:
    async with mesh_bed() as bed:
        async with ca_mesh(tmp_path, (await bed.app()).address) as mesh:
            token = of_pass((await mesh.site.certs("token", "job")).splitlines()[0])
            secrets = of_directory(tmp_path) | {token}
            secrets |= of_passes(tmp_path)
            for program in mesh.programs:
                assert await core_limits(program) == ["0", "0"], "what holds keys dumps no core"
            assert len(secrets) > 10, "three passes, and the lines of the keys of the CA and two sidecars"
            public = {
                "ps": "".join(map(seen_by_ps, mesh.programs)),
                "list": await mesh.site.certs("list"),
                "audit": await mesh.site.certs("audit"),
                "store": "".join(file.read_bytes().decode("latin-1") for file in (tmp_path / "ca").glob("store.db*")),
            }
            for program in mesh.programs:
                program.signal(signal.SIGTERM)
            for number, program in enumerate(mesh.programs):
                assert await program.ended() == 0
                public[f"log {number}"] = program.text
        for where, text in public.items():
            assert text, where
            assert not [secret for secret in secrets if secret in text], where


def bad_ones(good: str, guessed: str) -> list[str]:
    """With another secret in it, with nothing else in it, and with more behind it."""
    return [good.replace(of_pass(good), guessed), guessed, good + guessed]


async def test_a_bad_pass_is_not_quoted_by_either_end(tmp_path: Path) -> None:
    guessed = "f" * 64
    async with ca_desk(tmp_path) as desk:
        good = desk.make_credential("web", "secret")
        for number, bad in enumerate(bad_ones(good, guessed)):
            sidecar = desk.membership(text=bad, state=f"state-{number}")
            with pytest.raises(UsageError) as refused:
                await sidecar.agent.enrol()
            await sidecar.agent.close()
            said = f"{refused.value} {sidecar.log.lines} {desk.log.lines}"
            assert guessed not in said
            assert of_pass(good) not in said
        assert [line["reason"] for line in desk.log.events("denied")] == ["bad_pass"], "the others were not even sent"
        again = desk.membership(text=good)
        await joined(again)
        await again.agent.close()


async def test_nor_is_it_by_their_processes(tmp_path: Path) -> None:
    site = CaSite.make(tmp_path, CALLS_API)
    async with site.serves() as ca:
        file = site.agent("api", 'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n')
        secret = tmp_path / "api.secret"
        good, guessed = secret.read_text(), "f" * 64
        secret.write_text(good.replace(of_pass(good), guessed))
        said = await output(*SIDECAR, "run", file, check=False)
        assert "error: " in said
        assert "Traceback" not in said
        assert "api" in (await ca.event("denied", reason="bad_pass"))["message"]
        assert guessed not in said + ca.text
        assert of_pass(good) not in said + ca.text
        secret.write_text(good)
        async with running(*SIDECAR, "run", file) as program:
            await program.event("started")
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
            assert program.errors == ""


# -- files -------------------------------------------------------------------------------------------------------------


async def joined(sidecar: Sidecar) -> None:
    with trio.fail_after(PATIENCE):
        await sidecar.agent.enrol()


def linked(path: Path) -> None:
    real = path.with_name(f"{path.name}.real")
    path.rename(real)
    path.symlink_to(real)


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the directory is a symlink": ("", linked),
    "the directory can be read by others": ("", lambda path: path.chmod(0o755)),
    "the directory can be read by the group": ("", lambda path: path.chmod(0o710)),
    "the key is a symlink": ("identity.pem", linked),
    "the key can be read by others": ("identity.pem", lambda path: path.chmod(0o644)),
    "the bundle is a symlink": ("bundle.json", linked),
    "the bundle can be written by others": ("bundle.json", lambda path: path.chmod(0o666)),
    "the list is a directory": ("revocations.json", replaced_by_a_directory),
    "the list is enormous": ("revocations.json", lambda path: path.write_bytes(b" " * (5 << 20))),
}


@pytest.mark.parametrize(("name", "spoil"), SPOILT.values(), ids=SPOILT.keys())
async def test_a_state_that_others_could_have_touched_stops_the_start(
    name: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    async with ca_desk(tmp_path) as desk:
        first = desk.membership(text=desk.make_credential("web"))
        await joined(first)
        await first.agent.close()
        # The twin first: untouched, it starts, and needs neither a token nor the CA.
        again = desk.membership()
        assert again.own.keys.chain == first.own.keys.chain
        await again.agent.close()
        spoil(first.state / name)
        with pytest.raises(UsageError, match=re.escape(str(first.state / name))):
            desk.membership()


@pytest.mark.parametrize("content", ["", "half", "garbage", "another's", "another key's"])
async def test_a_certificate_that_is_broken_or_not_ours_is_not_used_and_said(content: str, tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        secret = desk.make_credential("web", "secret")
        first = desk.membership(text=secret)
        await joined(first)
        await first.agent.close()
        other = desk.membership(service="api", text=desk.make_credential("api"), state="other")
        await joined(other)
        await other.agent.close()
        file = first.state / "identity.pem"
        own, theirs = file.read_text(), (other.state / "identity.pem").read_text()
        begin = own.index("-----BEGIN CERTIFICATE")
        file.write_text(
            {
                "": "",
                "half": own[: begin + 100],
                "garbage": "garbage",
                "another's": theirs,
                "another key's": theirs[: theirs.index("-----BEGIN CERTIFICATE")] + own[begin:],
            }[content]
        )
        again = desk.membership(text=secret)
        assert again.agent.credentials is None
        said = again.words("state_ignored")
        assert said
        assert not [line for line in of_key(own) | of_key(theirs) if line in said]
        await joined(again)
        assert str(again.own.svid.id) == "spiffe://shop.internal/web"
        assert of_key(file.read_text()) != of_key(own)
        await again.agent.close()


async def test_what_is_kept_is_its_owner_s_alone(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        sidecar = desk.membership(text=desk.make_credential("web"))
        await joined(sidecar)
        assert sidecar.state.stat().st_mode & 0o777 == 0o700
        modes = {file.name: file.stat().st_mode & 0o777 for file in sidecar.state.iterdir()}
        assert modes.keys() == {"identity.pem", "bundle.json", "revocations.json", "member.json", "own.json"}
        assert set(modes.values()) == {0o600}
        with pytest.raises(UsageError, match=re.escape(str(sidecar.state))):
            desk.membership()
        await sidecar.agent.close()
        for name in ("store.db", "issuing.key", "root.key", "revocation.pem"):
            assert (tmp_path / "ca" / name).stat().st_mode & 0o077 == 0, name
