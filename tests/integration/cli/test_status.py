"""`sidecar status` and `sidecar health`, against a sidecar that runs, one that does not, and a file without `admin:`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.commands import main
from tests.beds.processes import SIDECAR, Shop, output, sidecar_process

INBOUND = 'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.make(tmp_path, ["api"])


async def test_a_sidecar_that_runs_tells_of_itself(shop: Shop, tmp_path: Path) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "unix:{tmp_path}/admin.sock"}}\n')
    async with sidecar_process(file) as api:
        assert api.started["admin"] == f"{tmp_path}/admin.sock"
        assert await output(*SIDECAR, "health", file) == "well\n"
        assert "may call: web" in await output(*SIDECAR, "status", file)
        said = json.loads(await output(*SIDECAR, "status", "--json", file))
        assert (said["identity"], said["healthy"]) == ("spiffe://shop.internal/api", True)


def refuses(code: int, *arguments: str | Path) -> str:
    """What a command says that ends with this code; in this process."""
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr


def test_nobody_there(shop: Shop, tmp_path: Path) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "unix:{tmp_path}/admin.sock"}}\n')
    for command in ("health", "status"):
        assert "no sidecar answers at" in refuses(1, command, file)


def test_no_admin_in_the_file(shop: Shop) -> None:
    file = shop.wiring("api", INBOUND)
    for command in ("health", "status"):
        assert "has no `admin:`" in refuses(2, command, file)


@pytest.mark.parametrize("listen", ["0.0.0.0:15000", "10.0.0.1:15000", "unix:relative.sock"])
def test_an_admin_port_for_others_is_refused(shop: Shop, listen: str) -> None:
    file = shop.wiring("api", f'{INBOUND}admin: {{listen: "{listen}"}}\n')
    assert "admin.listen" in refuses(2, "run", file)
