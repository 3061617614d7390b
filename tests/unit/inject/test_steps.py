"""The steps in order, with the real Compose: nothing is touched before everything is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject import mounted
from sidecar.inject.options import Publish
from sidecar.inject.steps import InjectRequest, Plan, carry_out, default_files, next_steps, plan, report
from tests.inject.bed import compose, environment

TODAY = date(2026, 11, 24)
COMPOSE = "services: {web: {image: x, environment: {URL: 'redis://db'}, ports: ['80:80']}, db: {image: redis}}\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "compose.yaml").write_text(COMPOSE)
    monkeypatch.chdir(directory)
    return directory


def planned(request: InjectRequest | None = None, **environ: str) -> Plan:
    return plan(request or InjectRequest(), environment(HOME=str(Path.cwd().parent), **environ), TODAY)


def no_certs(arguments: Sequence[str]) -> None:
    """Makes the files that ``certs`` would."""
    if arguments[0] == "init":
        Path(arguments[1]).mkdir()
        for name in ("issuing.key", "root.pem"):
            Path(arguments[1], name).write_text(name)
    else:
        *services, option, directory = arguments[2:]
        assert option == "--out-dir"
        for service in services:
            Path(directory, service).mkdir()
            Path(directory, service, "secret").write_text("secret")


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_planning_changes_nothing(project: Path) -> None:
    before = everything(project.parent)
    assert len(planned().changes) == 7
    assert everything(project.parent) == before


def test_carried_out_and_then_nothing_to_do(project: Path) -> None:
    first = planned()
    assert carry_out(first, no_certs)[0].startswith("made a CA for shop.internal in ")
    assert planned().changes == ()
    assert carry_out(planned(), no_certs) == []
    assert (project.parent / ".local/state/sidecar").is_dir()


def test_certs_that_refuses_leaves_the_project_as_it_was(project: Path) -> None:
    def refuse(_: Sequence[str]) -> None:
        raise UsageError("no")

    before = everything(project)
    with pytest.raises(UsageError, match=r"^no$"):
        carry_out(planned(), refuse)
    assert everything(project) == before


def test_options_are_remembered_and_can_be_taken_back(project: Path) -> None:
    state = project.parent / "keys"
    publish: Publish = "loopback"
    carry_out(planned(InjectRequest(publish=publish, state=state, observe=True, subnets="10.200.0.0/16")), no_certs)
    assert planned().changes == ()
    assert planned().options.state == str(state)
    back = planned(InjectRequest(publish="keep", observe=False))
    assert {change.path for change in back.changes} == {"compose.mesh.yaml", "mesh/mesh.yaml"}


def test_a_change_of_the_application_is_a_diff(project: Path) -> None:
    carry_out(planned(), no_certs)
    (project / "compose.yaml").write_text(COMPOSE.replace("redis://db", "redis://db:7000"))
    lines: list[str] = []
    report(planned(), lines.append, new_too=False)
    assert '-  - {from: web, to: "db:6379"}  # environment URL' in lines[0].splitlines()
    assert '+  - {from: web, to: "db:7000"}  # environment URL' in lines[0].splitlines()
    assert "web ══► db:7000" in lines[1]
    assert any(line.startswith("note: web: reachable without the mesh") for line in lines)
    assert any(
        "use `docker compose run SERVICE …` instead of `docker run --network shop_default …`" in line for line in lines
    )


def test_activating(project: Path) -> None:
    (project / ".env").write_text("A=1\n")
    assert "COMPOSE_FILE=compose.yaml:compose.mesh.yaml" in next_steps(planned())[1]
    carry_out(planned(InjectRequest(activate=True)), no_certs)
    assert (project / ".env").read_text() == "A=1\nCOMPOSE_FILE=compose.yaml:compose.mesh.yaml\n"
    assert next_steps(planned()) == ["next: docker compose up -d"]
    assert planned().changes == ()


def test_which_files_are_taken(project: Path) -> None:
    assert default_files(project) == (project / "compose.yaml",)
    (project / "compose.override.yml").write_text("services: {web: {image: y}}\n")
    assert default_files(project) == (project / "compose.yaml", project / "compose.override.yml")
    assert any(
        "compose.override.yml exists and was not named" in it
        for it in planned(InjectRequest((Path("compose.yaml"),))).notes
    )
    assert not any("was not named" in it for it in planned().notes)
    carry_out(planned(), no_certs)
    assert [it.name for it in default_files(project)] == ["compose.yaml", "compose.override.yml"]
    (project / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no compose.yaml here"):
        default_files(project / "empty")


def test_a_compose_file_in_the_environment_that_forgets_the_override() -> None:
    said = "COMPOSE_FILE is set in this environment, and compose.mesh.yaml is not in it"
    assert said in planned(COMPOSE_FILE="compose.yaml").notes
    assert said not in planned(COMPOSE_FILE="compose.yaml:compose.mesh.yaml").notes


def test_a_second_injection(project: Path) -> None:
    carry_out(planned(), no_certs)
    with pytest.raises(UsageError, match=r"^compose.mesh.yaml is among the files"):
        planned(InjectRequest((Path("compose.yaml"), Path("compose.mesh.yaml"))))


def test_an_override_of_somebody_else(project: Path) -> None:
    (project / "compose.mesh.yaml").write_text("services: {}\n")
    with pytest.raises(UsageError, match=r"^compose.mesh.yaml: exists already and was not written by"):
        planned()


def test_an_edited_policy_stays_and_a_broken_one_is_told(project: Path) -> None:
    carry_out(planned(), no_certs)
    mesh = project / "mesh/mesh.yaml"
    mesh.write_text(mesh.read_text() + "# mine\n")
    assert planned().changes == ()
    mesh.write_text("trust_domain: X\n")
    with pytest.raises(UsageError, match=r"^mesh/mesh.yaml:1: trust_domain: "):
        planned()


def test_a_file_that_cannot_be_read_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "compose.yaml").write_text(COMPOSE.replace("image: x", "image: x, volumes: ['./a.conf:/a.conf']"))
    (project / "a.conf").write_text("")
    assert not any("cannot be read" in it for it in planned().notes)

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mounted, "_read", refuse)
    assert "a.conf: cannot be read, so calls that are configured there may be missing" in planned().notes


def test_a_state_behind_a_symlink_into_a_mount(project: Path) -> None:
    (project.parent / "data").mkdir()
    (project.parent / "keys").symlink_to(project.parent / "data")
    text = COMPOSE.replace("image: x", f"image: x, volumes: ['{project.parent}/data:/data']")
    (project / "compose.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"^--state: service 'web' mounts"):
        planned(InjectRequest(state=project.parent / "keys" / "s"))
    assert planned(InjectRequest(state=project.parent / "other")).changes


def test_one_finished_file_is_private_and_kept_up_to_date(project: Path) -> None:
    (project / "compose.yaml").write_text(
        COMPOSE.replace("image: x", "image: x, command: '$PASS $$x', volumes: ['./d:/d']")
    )
    (project / ".env").write_text("PASS=verysecret\n")
    first = planned(InjectRequest(merged=True))
    said: list[str] = []
    report(first, said.append, new_too=True)
    carry_out(first, no_certs)
    assert next_steps(first) == [
        "next: start compose.merged.yaml alone, with a tool that takes one file: podman-compose -f compose.merged.yaml up -d"
    ]
    file = project / "compose.merged.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert {"verysecret", "$$x"} <= set(file.read_text().split())
    assert "verysecret" not in "".join(said)
    assert "!" not in file.read_text()
    after = compose().config([file], environment())[0]
    both = compose().config([project / "compose.yaml", project / "compose.mesh.yaml"], environment())[0]
    # Other builders leave an image's own check out; everything else is the same.
    checked = {name for name, it in after["services"].items() if it.pop("healthcheck", None)}
    assert checked == {name for name in both["services"] if name.endswith("-mesh") or name == "mesh-ca"}
    both["services"]["mesh-ca"].pop("healthcheck")
    assert after["services"] == both["services"]
    assert {name: it["ipam"] for name, it in after["networks"].items()} == {
        name: it["ipam"] for name, it in both["networks"].items() if name != "default"
    }
    assert planned().changes == ()
    (project / "compose.yaml").write_text(COMPOSE)
    second = planned()
    said.clear()
    report(second, said.append, new_too=False)
    assert "changed: compose.merged.yaml" in "".join(said)
    assert "verysecret" not in "".join(said)


def test_the_twin_no_such_file_unless_it_is_asked_for(project: Path) -> None:
    carry_out(planned(), no_certs)
    assert not (project / "compose.merged.yaml").exists()


def test_one_file_for_swarm(project: Path) -> None:
    (project / "compose.yaml").write_text(COMPOSE + "networks: {default: {driver: overlay}}\n")
    planned()
    with pytest.raises(UsageError, match=r"^compose.yaml: network 'default' has the driver overlay, as for Swarm"):
        planned(InjectRequest(merged=True))
