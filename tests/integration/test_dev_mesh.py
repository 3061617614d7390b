"""``sidecar dev`` as a process: what a developer sees in a terminal, and what is left behind afterwards: nothing."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.transport import sockets
from tests.beds.dev_mesh import GROWN, MESH, MeshFile, connect_to, is_free
from tests.beds.live import ends_well, exchange, is_refused, is_reset
from tests.beds.mesh import App, echo, mesh_bed
from tests.beds.processes import SIDECAR, Running, output, running


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MeshFile]:
    (tmp_path / "project").mkdir()
    with MeshFile(tmp_path / "project") as made:
        yield made


@asynccontextmanager
async def dev(file: MeshFile, style: str = "json", **variables: str) -> AsyncIterator[Running]:
    """A mesh that runs in the directory of its file, with api's app there where it is expected."""
    command = [*SIDECAR, "dev", "--log", style]
    async with mesh_bed() as bed, running(*command, variables=variables, cwd=file.path.parent) as program:
        app = App(sockets.listen("test", "127.0.0.1", file.app("api:http")), echo)
        bed.nursery.start_soon(bed.serve_app, app)
        await program.line("started")
        yield program


async def test_a_mesh_from_one_file_is_used_changed_and_interrupted(file: MeshFile) -> None:
    async with dev(file) as program:
        sock = await connect_to(file.call("web", "api:http"))
        await exchange(sock)
        file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG"))
        await is_reset(sock)
        line = await program.event("connection", service=file.name("web"))
        assert (line["reason"], line["decision"]) == ("policy_changed", "allow")
        await is_refused(connect_to(file.call("web", "db:sql")))  # no app is there
        await program.event("connection", service=file.name("db"), reason="connect_failed")
        sock = await connect_to(file.call("job", "api:http"))
        await exchange(sock)
        program.signal(signal.SIGINT)
        assert await program.ended() == 0
        await is_reset(sock)
        assert "Traceback" not in program.text
        drained = program.events("connection", service=file.name("job"))
        assert [line["reason"] for line in drained] == ["drained"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_with_0_when_it_is_told_to_and_frees_its_ports(file: MeshFile, number: int) -> None:
    async with dev(file) as program:
        sock = await connect_to(file.call("web", "api:http"))
        await exchange(sock)
        await ends_well(sock)
        program.signal(number)
        assert await program.ended() == 0
        assert program.errors.startswith("shop.internal: 4 services")
        assert "Error" not in program.text
    assert all(map(is_free, file.ports))


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


async def test_no_key_is_ever_on_disk(file: MeshFile, tmp_path: Path) -> None:
    """Nothing at all is: not beside the mesh file, nor where programs keep what is temporary, nor at home."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    async with dev(file, HOME=str(home), TMPDIR=str(temporary), XDG_CACHE_HOME=str(home / "cache")) as program:
        sock = await connect_to(file.call("web", "api:http"))
        await exchange(sock)
        await ends_well(sock)
        file.write(MESH.replace("[web-TAG, job-TAG]", "job-TAG"))
        await program.event("reloaded")
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert files(tmp_path) == [file.path]


async def test_the_banner_and_what_follows_are_for_eyes(file: MeshFile) -> None:
    async with dev(file, "console") as program:
        web, api = file.name("web"), file.name("api")
        place = f"calls {api}:http at 127.0.0.1:{file.call('web', 'api:http')}"
        assert await program.line(place) == f"    {place}"
        file.write(GROWN)
        port = file.call("job", "db:sql")
        assert f"{file.name('job')} calls {file.name('db')}:sql at 127.0.0.1:{port}" in await program.line("reloaded")
        sock = await connect_to(file.call("web", "api:http"))
        await exchange(sock)
        await ends_well(sock)
        assert "| ok |" in await program.line(f"{web} -> {api}:http")
        assert program.errors == ""


async def test_a_port_in_use_is_one_line_and_exit_code_2(file: MeshFile) -> None:
    taken = file.call("web", "api:http")
    with socket.create_server(("127.0.0.1", taken)):
        async with running(*SIDECAR, "dev", file.path) as program:
            assert await program.ended() == 2
            assert program.lines == []
            [line] = program.errors.splitlines()
            assert line.startswith("error: ")
            assert f"127.0.0.1:{taken}" in line
        assert [port for port in file.ports if not is_free(port)] == [taken]


async def test_an_app_s_environment_leads_into_the_mesh(file: MeshFile) -> None:
    """A shell as web's terminal: it learns where api is, and calls it."""
    async with dev(file):
        name = f"API_{file.tag.upper()}_ADDRESS"
        script = f'eval "$("$@" dev "$0" --env {file.name("web")})" && printf %s "${name}"'
        host, _, port = (await output("sh", "-c", script, file.path, *SIDECAR)).partition(":")
        sock = await connect_to(int(port), host)
        await exchange(sock)
        await ends_well(sock)
