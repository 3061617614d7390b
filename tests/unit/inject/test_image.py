"""The image's build context: the same modules, the same bytes; and pip can install them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.identity.reasons import UsageError
from sidecar.inject import image
from sidecar.inject.image import build_wheel, fingerprint, image_files

WHEEL = f"mtls_sidecar-{__version__}-py3-none-any.whl"
PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())


def test_the_same_modules_the_same_bytes() -> None:
    assert image_files() == image_files()
    assert sorted(image_files()) == ["Dockerfile", "constraints.txt", WHEEL]
    one = build_wheel("1", ["b", "a"], {"x": "y:z"}, {"p/b.py": b"1", "p/a.py": b"2"})
    assert one == build_wheel("1", ["a", "b"], {"x": "y:z"}, {"p/a.py": b"2", "p/b.py": b"1"})
    assert one != build_wheel("1", ["a", "b"], {"x": "y:z"}, {"p/a.py": b"2", "p/b.py": b"3"})


def test_what_is_in_it() -> None:
    names = zipfile.ZipFile(io.BytesIO(image_files()[WHEEL])).namelist()
    assert {"sidecar/lifecycle/run.py", "sidecar/py.typed", "certs/__main__.py", "sidecar/inject/image.py"} <= {*names}
    assert [name for name in names if "__pycache__" in name or "tests" in name] == []


def test_one_name_and_one_version() -> None:
    assert PROJECT["project"]["name"] == image.DISTRIBUTION
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sidecar.__version__"}
    archive = zipfile.ZipFile(io.BytesIO(image_files()[WHEEL]))
    told = archive.read(f"mtls_sidecar-{__version__}.dist-info/METADATA").decode().splitlines()
    assert told[1:3] == ["Name: mtls-sidecar", f"Version: {__version__}"]


def test_the_base_image_is_an_argument_and_nobody_is_root() -> None:
    text = image_files()["Dockerfile"].decode()
    assert text.count("FROM ${BASE}") == 2
    assert "ARG BASE=" in text
    assert "USER 65534:65534" in text


def test_it_tells_how_it_is_and_has_no_pip() -> None:
    text = image_files()["Dockerfile"].decode()
    assert (
        'HEALTHCHECK --interval=3s --timeout=60s --start-period=60s --retries=3 CMD ["sh", "-c", "if [ -e /dev/' in text
    )
    assert "SIDECAR_ADMIN_LISTEN=127.0.0.1:15000" in text
    assert "SIDECAR_ADMIN_SOCKET=/dev/shm/sidecar.sock" in text
    assert "--without-pip /opt/mesh" in text
    assert "--start-interval=" not in text  # an engine before 25 refuses to build it


def test_what_is_compiled_when_it_is_built_is_what_a_start_loads() -> None:
    (command,) = re.findall(r"^RUN (\[.*)", image_files()["Dockerfile"].decode(), re.MULTILINE)
    code = json.loads(command)[2]
    started = "import sidecar.__main__, sidecar.cli.run, sidecar.observe.admin, certs.__main__, certs.cli.serve"
    told = "; import sys; print(*(name for name in sys.modules if name.partition('.')[0] in sys.stdlib_module_names))"
    found = [subprocess.check_output([sys.executable, "-c", it + told], text=True).split() for it in (code, started)]
    assert set(found[1]) - set(found[0]) == set()


def test_what_it_needs_is_what_runs_here() -> None:
    lines = image_files()["constraints.txt"].decode().splitlines()
    assert f"trio=={metadata.version('trio')}" in lines
    assert f"cffi=={metadata.version('cffi')}" in lines, "and what that needs"
    assert not [line for line in lines if line.startswith(("pytest", "psycopg", "mtls", "sidecar"))]
    assert "-c /tmp/constraints.txt" in image_files()["Dockerfile"].decode()


def test_the_checkout_s_own_image_is_the_same_from_the_second_stage_on() -> None:
    own = (Path(__file__).parents[3] / "compose/Dockerfile").read_text()
    stages = [text.partition("\nFROM ${BASE}\n")[2] for text in (own, image_files()["Dockerfile"].decode())]
    assert stages[0] == stages[1] != ""


def test_a_change_is_another_word() -> None:
    assert fingerprint({"a": b"1"}) != fingerprint({"a": b"2"}) != fingerprint({"b": b"2"})
    assert fingerprint({"a": b"1", "b": b"2"}) == fingerprint({"b": b"2", "a": b"1"})


def test_pip_installs_it_and_it_runs(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    wheel.write_bytes(image_files()[WHEEL])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True, timeout=120)
    code = (
        "import sidecar, certs; from importlib.metadata import version; from sidecar.cli.commands import main;"
        "print(sidecar.__file__); print(version('mtls-sidecar')); main(['--version'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,  # `-c` looks there first
    )
    assert done.stdout.splitlines() == [
        str(tmp_path / "site/sidecar/__init__.py"),
        __version__,
        f"sidecar, version {__version__}",
    ]


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", none)
    with pytest.raises(UsageError, match="is not installed"):
        image_files()


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "PACKAGES", ("sidecar", "nonesuch"))
    with pytest.raises(UsageError, match="'nonesuch' cannot be found"):
        image_files()
