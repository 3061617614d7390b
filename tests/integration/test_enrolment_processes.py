"""From `certs init` to a call that arrives, by the commands alone; and every way to start again that a container has."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import trio

from tests.beds.ca_processes import CaSite, echo_app, load, member_process
from tests.beds.patience import PATIENCE
from tests.beds.processes import SIDECAR, running


@pytest.fixture
def site(tmp_path: Path) -> CaSite:
    return CaSite.make(tmp_path / "shop")


async def test_the_way_of_the_readme(site: CaSite) -> None:
    async with site.serves(), echo_app() as app:
        await site.certs("enrolment", "api", "--out", str(site.path / "api.secret"))
        await site.certs("token", "web", "--out", str(site.path / "web.token"))
        api_file = site.wiring(
            "api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app}"}}]\n', enrolment="api.secret"
        )
        async with member_process(api_file) as api:
            web_file = site.wiring(
                "web",
                f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{api.at("http")}"]}}]\n',
                enrolment="web.token",
            )
            async with member_process(web_file) as web, load(web.address("api:http")) as calls:
                await calls.grows(20)
                listed = await site.certs("list")
                assert "spiffe://shop.internal/api" in listed
                assert "spiffe://shop.internal/web" in listed
    assert (site.path / "state-web").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (site.path / "state-web").iterdir()} == {0o600}
    await site.certs("audit", "--verify")


async def test_a_restart_with_its_state_needs_no_token(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web", "token"))
    async with site.serves():
        async with member_process(file) as web:
            await web.program.event("enrolled")
            web.program.signal(signal.SIGTERM)
            assert await web.program.ended() == 0
        (site.path / "web.token").unlink()
        async with member_process(file) as web:
            assert web.started["identity"] == "spiffe://shop.internal/web"
            assert web.program.events("enrolled") == []
    # Nor does it need a CA.
    async with member_process(file) as web:
        assert web.program.events("enrolled") == []
        await web.program.event("revocations_failed")


async def test_lost_state_and_a_secret_enrols_again(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web"))
    async with site.serves():
        for _ in range(2):
            async with member_process(file) as web:
                await web.program.event("enrolled")
            shutil.rmtree(site.path / "state-web")
    assert len(site.issued()) == 2


async def test_a_revoked_service_comes_back_while_it_runs_by_a_new_secret_in_the_place_of_the_old(site: CaSite) -> None:
    """Whose directory is what its container mounts: the file itself would stay the old one there."""
    secrets = str(site.path / "secrets")
    await site.certs("enrolment", "web", "api", "--out-dir", secrets)
    file = site.wiring("web", "", enrolment="secrets/web/secret")
    async with site.serves(), member_process(file) as web:
        await web.program.event("enrolled")
        await site.certs("revoke", "web")
        assert "was revoked" in (await web.program.event("certificate_failed"))["message"]
        await site.certs("enrolment", "web", "--out-dir", secrets, "--force")
        await web.program.event("enrolled_again")
        await web.program.event("certificate_mended")


async def test_lost_state_and_a_used_token_is_refused_in_words(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web", "token"))
    async with site.serves():
        async with member_process(file) as web:
            await web.program.event("enrolled")
        shutil.rmtree(site.path / "state-web")
        async with running(*SIDECAR, "run", file) as web_again:
            assert await web_again.ended() == 2
    assert "(pass_used)" in web_again.errors
    assert "certs token web" in web_again.errors, "it says what to do"
    assert "Traceback" not in web_again.errors
    assert len(site.issued()) == 1


async def test_an_ended_secret_is_refused_in_words(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web"))
    await site.certs("enrolment", "web", "--end")
    async with site.serves(), running(*SIDECAR, "run", file) as web:
        assert await web.ended() == 2, web.text
        assert "(pass_expired)" in web.errors
        assert "certs enrolment" in web.errors
        shutil.rmtree(site.path / "state-web", ignore_errors=True)
        site.write_credential("web")  # and a new one lets it in
        async with member_process(file) as web_again:
            await web_again.program.event("enrolled")


async def test_a_ca_that_is_down_at_the_start_is_waited_for(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web"))
    variables = {"SIDECAR_LOG_FORMAT": "json"}
    async with running(*SIDECAR, "run", file, variables=variables) as web:
        waiting = await web.event("joining_failed")
        assert "cannot be reached" in waiting["message"]
        assert not web.events("started")
        async with site.serves():
            await web.event("enrolled")
            await web.event("started")


async def test_whoever_waits_for_a_ca_ends_at_a_signal(site: CaSite) -> None:
    file = site.wiring("web", "", enrolment=site.write_credential("web"))
    async with running(*SIDECAR, "run", file, variables={"SIDECAR_LOG_FORMAT": "json"}) as web:
        await web.event("joining_failed")
        web.signal(signal.SIGTERM)
        assert await web.ended() == 0


async def test_no_secret_goes_to_a_ca_under_another_root(site: CaSite, tmp_path: Path) -> None:
    """Somebody answers in the CA's place, with a CA of the same name."""
    file = site.wiring("web", "", enrolment=site.write_credential("web"))
    other = CaSite.make(tmp_path / "other")
    async with (
        other.serves(port=site.port),
        running(*SIDECAR, "run", file, variables={"SIDECAR_LOG_FORMAT": "json"}) as web,
    ):
        await web.event("joining_failed")
        web.signal(signal.SIGTERM)
        assert await web.ended() == 0
    assert other.issued() == []
    assert "denied" not in str(web.lines), "it never asked for a certificate"
    with trio.fail_after(PATIENCE):
        async with site.serves(), member_process(file) as honest:  # the twin: the CA itself is let in
            await honest.program.event("enrolled")
