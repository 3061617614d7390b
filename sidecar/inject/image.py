"""The build context of the sidecars' image: a Dockerfile, and this package as a wheel. I/O: reads the package's files.

The wheel is made of the installed modules, so the containers run the same code as this command, and the same modules give
the same bytes. Dependencies are fetched when the image is built, in the versions that are installed here.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path

from sidecar import __version__
from sidecar.identity.reasons import UsageError
from sidecar.inject.override import BASE_IMAGE, health_check

DISTRIBUTION = "mtls-sidecar"
"""The name on the package index, in pyproject.toml too. The import names are the packages'."""
PACKAGES = ("sidecar", "certs")

_EPOCH = (1980, 1, 1, 0, 0, 0)
_DOCKERFILE = f"""\
# Written by `sidecar inject`: the image of the mesh's sidecars and of its CA. Do not edit: run `sidecar inject` again.
ARG BASE={BASE_IMAGE}

FROM ${{BASE}} AS build
COPY *.whl constraints.txt /tmp/
# pip is not needed at run time: it has an environment of its own, which is not copied.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/mesh && /opt/pip/bin/python -m pip --python \\
    /opt/mesh/bin/python install --no-cache-dir --disable-pip-version-check -c /tmp/constraints.txt /tmp/*.whl

FROM ${{BASE}}
COPY --from=build /opt/mesh /opt/mesh
# Images of Python have no compiled modules of its library, and its user can write none: each start would compile them.
RUN ["/opt/mesh/bin/python", "-c", "import sqlite3, certs.cli.serve, sidecar.cli.run, sidecar.observe.admin"]
# The admin addresses, in the container itself: for `sidecar status` and `sidecar health`, and for `sidecar probe`, whose
# socket is on a tmpfs, also where / is read-only.
ENV PATH=/opt/mesh/bin:$PATH SIDECAR_ADMIN_LISTEN=127.0.0.1:15000 SIDECAR_ADMIN_SOCKET=/dev/shm/sidecar.sock
# Compose sets the user that it runs as: the owner of the keys.
USER 65534:65534
WORKDIR /etc/mesh
STOPSIGNAL SIGTERM
# Each three seconds until it is well, then seldom. (--start-interval would say so, but engines before 25 refuse it.)
HEALTHCHECK --interval=3s --timeout=60s --start-period=60s --retries=3 CMD {json.dumps(health_check("sidecar health"))}
CMD ["sidecar", "run"]
"""


def image_files() -> dict[str, bytes]:
    """The files of the build context, by name. Raises :class:`UsageError` if this package is not installed."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise UsageError(f"the package '{DISTRIBUTION}' is not installed, only on the path: pip install it") from error
    name = f"{_in_file_names(DISTRIBUTION)}-{__version__}-py3-none-any.whl"
    scripts = [it for it in distribution.entry_points if it.group == "console_scripts"]
    wheel = build_wheel(
        __version__,
        distribution.requires or [],
        {it.name: it.value for it in scripts},
        {path: content for package in PACKAGES for path, content in _modules(package)},
    )
    return {"Dockerfile": _DOCKERFILE.encode(), "constraints.txt": _constraints().encode(), name: wheel}


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Twelve hex digits of a digest of the files, for the image's tag: an image of other files has another tag."""
    digest = sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def build_wheel(
    version: str, requires: Iterable[str], scripts: Mapping[str, str], modules: Mapping[str, bytes]
) -> bytes:
    """A wheel of pure Python (binary distribution format, PEP 427). The same arguments give the same bytes."""
    info = f"{_in_file_names(DISTRIBUTION)}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in sorted(requires)]
    points = ["[console_scripts]", *(f"{name} = {value}" for name, value in sorted(scripts.items()))]
    contents = {
        **dict(sorted(modules.items())),
        f"{info}/METADATA": "\n".join([*lines, ""]).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: sidecar-inject\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join([*points, ""]).encode(),
    }
    record = [f"{path},sha256={_hash(content)},{len(content)}" for path, content in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, content in contents.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)  # stored: zlib's output differs between machines
    return made.getvalue()


def _in_file_names(distribution: str) -> str:
    """A wheel's file name separates its parts by ``-``, so a name has ``_`` there (binary distribution format)."""
    return distribution.replace("-", "_")


def _constraints() -> str:
    """The installed versions of this package's dependencies, as pip constraints, one a line."""
    found: dict[str, str] = {}
    ahead = [DISTRIBUTION]
    while ahead:
        for requirement in metadata.distribution(ahead.pop()).requires or []:
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
            if name in found or "extra ==" in requirement:
                continue
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue  # for another platform
            ahead.append(name)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _modules(package: str) -> Iterable[tuple[str, bytes]]:
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"the package '{package}' cannot be found beside this program")
    top = Path(found.origin).parent
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(top.parent).as_posix(), path.read_bytes()


def _hash(content: bytes) -> str:
    return urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
