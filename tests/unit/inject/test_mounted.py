"""What is read of the files that services mount and are built from, and what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sidecar.inject import mounted
from sidecar.inject.mounted import read_texts


def write(path: Path, text: str | bytes = "db:5432") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def labels(config: dict[str, Any], project: Path) -> dict[str, list[tuple[str, str]]]:
    return {name: [(it.label, it.kind) for it in texts] for name, texts in read_texts(config, project).texts.items()}


def mounts(*sources: Path) -> dict[str, Any]:
    return {"volumes": [{"type": "bind", "source": str(source)} for source in sources]}


def test_a_mounted_file_and_directory(tmp_path: Path) -> None:
    file, inner = write(tmp_path / "a.conf"), write(tmp_path / "conf/x/b.yml")
    assert labels({"services": {"web": mounts(file, inner.parents[1])}}, tmp_path) == {
        "web": [("a.conf", "mounted"), ("conf/x/b.yml", "mounted")]
    }


def test_a_file_of_elsewhere_is_told_by_its_name_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "secret-place/a.conf")
    assert labels({"services": {"web": mounts(file)}}, tmp_path / "project") == {"web": [("a.conf", "mounted")]}


@pytest.mark.parametrize(
    "name",
    [
        "compose.yaml", "docker-compose.prod.yml", "compose.mesh.yaml", "Dockerfile", "README.md", "x.lock",
        ".env.example", ".bashrc", "tls.key",
        "node_modules/x.js", ".git/config", "mesh/mesh.yaml", "a/b/c/d/e/f/g/h.conf",
    ],
)  # fmt: skip
def test_what_would_mislead_is_not_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "sub" / name)
    write(tmp_path / "sub" / "read.conf")
    assert labels({"services": {"web": mounts(tmp_path / "sub")}}, tmp_path) == {"web": [("sub/read.conf", "mounted")]}


@pytest.mark.parametrize("name", [".env", ".env.local"])
def test_the_settings_beside_a_program_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "sub" / name)
    assert labels({"services": {"web": mounts(tmp_path / "sub")}}, tmp_path) == {"web": [(f"sub/{name}", "mounted")]}


@pytest.mark.parametrize("content", [b"a\0db:5432", b"\xff\xfe", b"x" * (mounted.MAX_FILE + 1)])
def test_what_is_no_text_or_too_large(tmp_path: Path, content: bytes) -> None:
    assert labels({"services": {"web": mounts(write(tmp_path / "x", content))}}, tmp_path) == {}


def test_a_huge_directory_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "MAX_FILES", 3)
    for number in range(5):
        write(tmp_path / f"data/{number}.conf")
    assert len(labels({"services": {"web": mounts(tmp_path / "data")}}, tmp_path)["web"]) == 3


def test_a_symlink_leads_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "outside.conf")
    write(tmp_path / "conf/in.conf")
    (tmp_path / "conf/link.conf").symlink_to(tmp_path / "outside.conf")
    (tmp_path / "conf/all").symlink_to(tmp_path)
    assert labels({"services": {"web": mounts(tmp_path / "conf")}}, tmp_path) == {"web": [("conf/in.conf", "mounted")]}


def test_build_contexts_are_ones_own_or_shared(tmp_path: Path) -> None:
    own, both = write(tmp_path / "own/a.py").parent, write(tmp_path / "both/b.py").parent
    write(own / "Dockerfile", "FROM x\nEXPOSE 80")
    write(both / "Other", "FROM y")
    config = {
        "services": {
            "a": {"build": {"context": str(own)}},
            "b": {"build": {"context": str(both), "dockerfile": "Other"}},
            "c": {"build": {"context": str(both), "dockerfile_inline": "FROM z"}},
            "d": {"build": {"context": str(tmp_path), "dockerfile": "none"}},
            "e": {"build": {"context": "https://example.test/x.git"}},
            "f": mounts(tmp_path),
        }
    }
    read = read_texts(config, tmp_path)
    kinds = {name: {it.kind for it in texts} for name, texts in read.texts.items()}
    assert kinds == {"a": {"build"}, "b": {"build"}, "c": {"build"}, "d": {"shared"}, "f": {"shared"}}
    assert read.dockerfiles == {"a": "FROM x\nEXPOSE 80", "b": "FROM y", "c": "FROM z"}


def test_files_of_configs_are_read_and_of_secrets_not(tmp_path: Path) -> None:
    one, other = write(tmp_path / "c.ini"), write(tmp_path / "s.ini")
    config = {
        "services": {"web": {"configs": [{"source": "c"}, {"source": "x"}], "secrets": [{"source": "s"}]}},
        "configs": {"c": {"file": str(one)}},
        "secrets": {"s": {"file": str(other)}},
    }
    assert labels(config, tmp_path) == {"web": [("c.ini", "mounted")]}


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.conf")

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mounted, "_read", refuse)
    assert read_texts({"services": {"web": mounts(file)}}, tmp_path).unread == ("a.conf",)


# -- directories of the host ------------------------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every directory that is listed."""
    found: list[str] = []
    real = os.scandir

    def scandir(path: Path) -> Any:
        found.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return found


@pytest.mark.parametrize(
    "source", ["/", "/proc", "/sys", "/var/run", "/run", "/dev", "/etc", "/proc/kmsg", "/sys/kernel"]
)
def test_nothing_of_the_host_is_listed_or_opened(tmp_path: Path, listed: list[str], source: str) -> None:
    read = read_texts({"services": {"exporter": mounts(Path(source))}}, tmp_path)
    assert (read.texts, read.unread, listed) == ({}, (), [])


def test_no_file_of_the_kernel_is_opened_even_if_it_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"services": {"web": mounts(write(tmp_path / "sys/a.conf"))}}
    assert labels(config, tmp_path) == {"web": [("sys/a.conf", "mounted")]}
    monkeypatch.setattr(mounted, "_KERNEL", (tmp_path / "sys",))
    assert labels(config, tmp_path) == {}


def test_another_disk_in_a_directory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "conf/nas/a.conf")
    walk = mounted._walk  # no second disk can be mounted here
    config = {"services": {"web": mounts(tmp_path / "conf")}}
    assert labels(config, tmp_path) == {"web": [("conf/nas/a.conf", "mounted")]}
    monkeypatch.setattr(mounted, "_walk", lambda top, device: walk(top, device + 1))
    assert labels(config, tmp_path) == {}


def test_neither_is_what_lies_beside_the_project(tmp_path: Path, listed: list[str]) -> None:
    write(tmp_path / "logs/a.conf")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/logs").symlink_to(tmp_path / "logs")
    config = {"services": {"web": mounts(tmp_path / "logs", tmp_path / "shop/logs", tmp_path)}}
    assert labels(config, tmp_path / "shop") == {}
    assert listed == []


def test_the_twin_in_the_same_repository(tmp_path: Path) -> None:
    write(tmp_path / "conf/a.conf")
    (tmp_path / ".git").mkdir()
    (tmp_path / "deploy").mkdir()
    assert labels({"services": {"web": mounts(tmp_path / "conf")}}, tmp_path / "deploy") == {
        "web": [("a.conf", "mounted")]
    }


def test_a_build_context_belongs_to_the_application_wherever_it_is(tmp_path: Path, listed: list[str]) -> None:
    write(tmp_path / "api/a.py")
    (tmp_path / "deploy").mkdir()
    config = {"services": {"api": {"build": {"context": str(tmp_path / "api")}}, "all": {"build": {"context": "/"}}}}
    assert labels(config, tmp_path / "deploy") == {"api": [("a.py", "build")]}
    assert listed == [str(tmp_path / "api")]


def test_the_looking_ends_and_not_only_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: list[str]
) -> None:
    monkeypatch.setattr(mounted, "MAX_LISTED", 4)
    for number in range(9):
        (tmp_path / f"data/{number}/deeper").mkdir(parents=True)
    assert labels({"services": {"db": mounts(tmp_path / "data")}}, tmp_path) == {}
    assert listed == [str(tmp_path / "data")]
    for number in range(9):
        write(tmp_path / f"flat/{number}.conf")
    assert len(labels({"services": {"db": mounts(tmp_path / "flat")}}, tmp_path)["db"]) == 4


def test_what_is_near_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "MAX_FILES", 1)
    write(tmp_path / "conf/data/0.conf")
    write(tmp_path / "conf/main.conf")
    assert labels({"services": {"web": mounts(tmp_path / "conf")}}, tmp_path) == {
        "web": [("conf/main.conf", "mounted")]
    }


def test_a_pipe_and_a_file_without_a_size_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.conf")
    (tmp_path / "empty.conf").touch()
    write(tmp_path / "conf/in.conf")
    os.mkfifo(tmp_path / "conf/pipe.conf")
    config = {"services": {"web": mounts(tmp_path / "pipe.conf", tmp_path / "empty.conf", tmp_path / "conf")}}
    assert labels(config, tmp_path) == {"web": [("conf/in.conf", "mounted")]}


def test_what_vanishes_in_between_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert labels({"services": {"web": mounts(tmp_path / "conf", tmp_path / "gone")}}, tmp_path) == {}
