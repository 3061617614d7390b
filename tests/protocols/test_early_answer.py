"""An app that answers an upload before it has read it, and closes: the answer reaches the caller whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.beds.processes import Shop, output, sidecar_pair
from tests.protocols import nginx
from tests.protocols.programs import needs, sha256, shell

pytestmark = needs("nginx", "curl")


@pytest.mark.parametrize("lingering", ["on", "off"])
async def test_a_413_in_the_middle_of_an_upload(shop: Shop, tmp_path: Path, lingering: str) -> None:
    """``lingering_close off`` makes nginx close at once, with bytes unread: its kernel sends a reset after the answer."""
    upload, page, heard = tmp_path / "upload", tmp_path / "root" / "too-large.html", tmp_path / "heard"
    page.parent.mkdir()
    await shell('head -c 100000000 /dev/zero > "$1"; head -c 30000 /dev/urandom | base64 > "$2"', upload, page)
    location = f"client_max_body_size 1m; lingering_close {lingering};"
    pages = "error_page 413 /too-large.html; location = /too-large.html { root .; }"
    async with nginx.http(page.parent, location, more=pages) as app, sidecar_pair(shop, app) as (web, api):
        curl = ("curl", "-sS", "--max-time", "60", "-H", "Expect:", "-o", heard, "-w", "%{http_code}")
        said = await output(*curl, "--data-binary", f"@{upload}", f"http://{web.at('api:http')}/", check=False)
        assert said.startswith("413")
        assert await sha256(heard) == await sha256(page)
        for end in (web, api):
            assert (await end.program.connection())["decision"] == "allow"
