"""Compose found, too old, missing, or refusing: programs of our own stand in where it must misbehave."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject import composecli
from sidecar.inject.composecli import Compose, find_compose, summed_up


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in which programs are found."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def find(directory: Path) -> Compose:
    return find_compose({"PATH": str(directory)})


def test_the_plugin_is_taken_first(programs: Path) -> None:
    program(programs, "docker", 'test "$1 $2 $3" = "compose version --short" && echo 2.30.1')
    program(programs, "docker-compose", "echo 2.31.0")
    assert find(programs) == Compose((str(programs / "docker"), "compose"), (2, 30, 1))


@pytest.mark.parametrize("docker", ["echo unknown command >&2; exit 1", "echo 2.24.3"])
def test_the_standalone_one_if_the_plugin_is_none_or_old(programs: Path, docker: str) -> None:
    program(programs, "docker", docker)
    program(programs, "docker-compose", "echo v2.24.4-desktop.1")
    assert find(programs).command == (str(programs / "docker-compose"),)


@pytest.mark.parametrize("version", ["2.24.3", "1.29.2", "v2.3.4"])
def test_too_old(programs: Path, version: str) -> None:
    program(programs, "docker-compose", f"echo {version}")
    with pytest.raises(
        UsageError, match=rf"2\.24\.4 or newer is needed; .*docker-compose is {version.removeprefix('v')}"
    ):
        find(programs)


def test_missing(programs: Path) -> None:
    with pytest.raises(UsageError, match="neither `docker compose` nor `docker-compose` was found"):
        find(programs)


def test_config(programs: Path) -> None:
    program(programs, "c", 'echo "careful" >&2; printf \'{"args": "%s"}\' "$*"')
    data, said = Compose((str(programs / "c"),), (9, 9, 9)).config([Path("a.yaml"), Path("b.yaml")], {})
    assert data == {"args": "-f a.yaml -f b.yaml --profile * config --format json"}
    assert said == ("careful",)


def test_a_stream_comes_in_blocks_and_ends_with_what_compose_reports(programs: Path) -> None:
    program(programs, "c", 'echo "$@"; head -c 3000000 /dev/zero; echo bad file >&2; exit ${CODE:-0}')
    compose = Compose((str(programs / "c"),), (9, 9, 9))
    environ = {"PATH": os.environ["PATH"]}
    blocks = list(compose.stream([Path("a.yaml")], environ, "logs", "x"))
    assert len(blocks) > 2
    assert b"".join(blocks) == b"-f a.yaml --profile * logs x\n" + bytes(3_000_000)
    with pytest.raises(UsageError, match="docker compose logs x: bad file"):
        list(compose.stream([Path("a.yaml")], environ | {"CODE": "1"}, "logs", "x"))


def test_a_stream_that_nobody_reads_to_its_end_ends(programs: Path) -> None:
    program(programs, "c", "exec yes")
    stream = Compose((str(programs / "c"),), (9, 9, 9)).stream([], {"PATH": os.environ["PATH"]})
    assert next(stream).startswith(b"y\n")
    stream.close()


def test_a_stream_of_a_program_that_is_not_there(programs: Path) -> None:
    with pytest.raises(UsageError, match="cannot be run"):
        list(Compose((str(programs / "c"),), (9, 9, 9)).stream([], {}))


@pytest.mark.parametrize("text", ["echo bad file >&2; exit 1", "echo bad file >&2", "echo bad file >&2; echo '[]'"])
def test_what_compose_refuses_is_told_in_its_words(programs: Path, text: str) -> None:
    program(programs, "c", text)
    with pytest.raises(UsageError, match=r"^a.yaml: Compose reports: bad file$"):
        Compose((str(programs / "c"),), (9, 9, 9)).config([Path("a.yaml")], {})


def test_what_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be run"):
        Compose((str(tmp_path / "none"),), (9, 9, 9)).config([Path("a.yaml")], {})


def test_the_real_one() -> None:
    assert find_compose(dict(os.environ)).version >= composecli.MINIMUM


def unset(name: str) -> str:
    return rf'time="2026-11-29" level=warning msg="The \"{name}\" variable is not set. Defaulting to a blank string."'


def test_warnings_are_summed_up() -> None:
    obsolete = 'time="x" level=warning msg="/x/compose.yaml: the attribute `version` is obsolete, it will be ignored"'
    odd = r'time="x" level=warning msg="a \\ b"'
    lines = [obsolete, *map(unset, ["A", "B", "A", "C", "D"]), odd, odd, "plain", "WARN[0000] old", "two", "three"]
    assert list(summed_up(lines)) == [
        "Compose reports: A, B, C and 1 more are not set, and are empty here",
        r"Compose reports: a \ b; plain; old and 2 more",
    ]
    assert list(summed_up([unset("A")])) == ["Compose reports: A is not set, and is empty here"]
    assert list(summed_up([obsolete])) == []


def test_an_error_is_told_without_the_warnings_before_it(programs: Path) -> None:
    program(programs, "c", f"echo '{unset('A')}' >&2; echo 'time=\"x\" level=error msg=\"no\"' >&2; exit 1")
    with pytest.raises(UsageError, match=r'^a.yaml: Compose reports: time="x" level=error msg="no"$'):
        Compose((str(programs / "c"),), (9, 9, 9)).config([Path("a.yaml")], {})
    program(programs, "c", f"echo '{unset('A')}' >&2; exit 1")
    with pytest.raises(UsageError, match='"A'):
        Compose((str(programs / "c"),), (9, 9, 9)).config([Path("a.yaml")], {})


FACTS = """\
case "$*" in
  *json) echo '{"services": {"db": {"image": "redis"}, "web": {}}}' ;;
  *) printf 'services:\\n  db:\\n    image: redis\\n    x-mesh: {ports: 1, a: "no", b: "12:30"}\\n  web: {}\\n' ;;
esac
"""


@pytest.mark.parametrize("hint", ["x-mesh: {}", "include: [other.yaml]", "extends: {file: other.yaml}"])
def test_facts_that_compose_leaves_out_of_its_json(hint: str, programs: Path, tmp_path: Path) -> None:
    program(programs, "c", FACTS)
    file = tmp_path / "compose.yaml"
    file.write_text(hint)
    data, _ = Compose((str(programs / "c"),), (9, 9, 9)).config([file], {})
    assert data["services"] == {"db": {"image": "redis", "x-mesh": {"ports": 1, "a": "no", "b": "12:30"}}, "web": {}}


def test_the_twin_a_file_that_can_have_none_is_read_once(programs: Path, tmp_path: Path) -> None:
    program(programs, "c", FACTS.replace("printf", "exit 1; printf"))
    file = tmp_path / "compose.yaml"
    file.write_text("services: {}")
    data, _ = Compose((str(programs / "c"),), (9, 9, 9)).config([file], {})
    assert "x-mesh" not in data["services"]["db"]


def test_running_it_on_an_application(programs: Path) -> None:
    program(programs, "docker", 'test "$2" = version && echo 2.30.1 || echo "$@"')
    files = [programs / "a.yaml", programs / "b.yaml"]
    made = find(programs).run(files, {}, "up", "x")
    assert made == f"compose -f {files[0]} -f {files[1]} --profile * up x\n"
    program(programs, "docker", 'test "$2" = version && echo 2.30.1 || { echo " no engine" >&2; exit 1; }')
    with pytest.raises(UsageError, match=r"^docker compose up x: no engine$"):
        find(programs).run(files, {}, "up", "x")


def test_one_file(programs: Path, tmp_path: Path) -> None:
    program(programs, "c", 'while [ "$1" = -f ]; do cat "$2"; shift 2; done; echo "$*"')
    (tmp_path / "a.yaml").write_text("one\n")
    text = Compose((str(programs / "c"),), (9, 9, 9)).merged(
        [tmp_path / "a.yaml"], ["two\n", "three\n"], tmp_path, {"PATH": "/bin:/usr/bin"}
    )
    assert text == f"one\ntwo\nthree\n--project-directory {tmp_path} --profile * config\n"


def test_the_twin_one_file_that_compose_does_not_make(programs: Path, tmp_path: Path) -> None:
    program(programs, "c", "echo no >&2; exit 1")
    with pytest.raises(UsageError, match=r"^--merged: Compose reports: no$"):
        Compose((str(programs / "c"),), (9, 9, 9)).merged([], [""], tmp_path, {})
