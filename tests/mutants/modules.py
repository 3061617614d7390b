"""Which modules are mutated whole, where they and their tests are, and what was renamed since an id was written down.

A module is named by its basename, ``certs/`` before it for the CA's package, and is searched in all rooms of its
package: moving it changes nothing here. One that gets another name has a line in :data:`RENAMED`, and a function or
class in :data:`RENAMED_NAMES`; ``python -m tests.mutants --rekey`` then writes the new ids into the tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
WITHOUT_CHECKS = {"cli", "inject", "demo", "__pycache__"}
"""Rooms that hold no security module; some of their files have the same basenames."""

ATTACKS_ON_PEERS = (
    "attacks/test_certificates.py",
    "attacks/test_somebody_in_the_middle.py",
    "attacks/test_revoked_peers.py",
    "attacks/test_alpn_and_sni.py",
    "attacks/test_strangers.py",
    "attacks/test_tampering.py",
    "attacks/test_tls_versions.py",
    "attacks/test_resumption.py",
    "attacks/test_verdict_frame.py",
    "attacks/test_floods.py",
    "attacks/test_policy.py",
    "attacks/test_fail_over.py",
)
ATTACKS_ON_THE_CA = (
    "attacks/test_ca_requests.py",
    "attacks/test_ca_tokens.py",
    "attacks/test_ca_renewals.py",
    "attacks/test_ca_bundles_and_lists.py",
    "attacks/test_ca_denial_of_service.py",
    "attacks/test_ca_connections.py",
    "attacks/test_ca_secrets.py",
    "attacks/test_ca_at_first_contact.py",
    "attacks/test_ca_answers.py",
)

SECURITY: dict[str, tuple[str, ...]] = {
    "judge": ("attacks/test_certificates.py", "attacks/test_revoked_peers.py"),
    "identity": ("attacks/test_certificates.py", "properties/test_identity_properties.py"),
    "tls": (*ATTACKS_ON_PEERS, "attacks/test_ca_connections.py", "attacks/test_ca_renewals.py"),
    "inbound": ATTACKS_ON_PEERS,
    "outbound": ATTACKS_ON_PEERS,
    "duplex": ("properties/test_duplex_properties.py", "attacks/test_tampering.py", "attacks/test_floods.py"),
    "policy": ("properties/test_policy_properties.py", "attacks/test_policy.py"),
    "configfile": ("unit/test_config.py", "unit/test_collisions.py"),
    "config": ("unit/test_configfile.py", "unit/test_cli_check.py"),
    "collisions": ("unit/test_configfile.py", "unit/test_config.py"),
    "verdict": ("attacks/test_verdict_frame.py",),
    "dial": ("attacks/test_policy.py", "attacks/test_fail_over.py"),
    "handshake": ATTACKS_ON_PEERS,
    "stream": ("attacks/test_ca_connections.py", "attacks/test_ca_denial_of_service.py"),
    "node": ("unit/test_registry.py", "unit/test_reload.py", "attacks/test_revoked_peers.py"),
    "reload": ("attacks/test_revoked_peers.py", "attacks/test_ca_bundles_and_lists.py"),
    "credentials": ("unit/test_reload.py", "attacks/test_ca_secrets.py"),
    "statedir": ("attacks/test_ca_secrets.py",),
    "answers": ATTACKS_ON_THE_CA,
    "member": ATTACKS_ON_THE_CA,
    "memory": ("unit/test_member.py", "attacks/test_ca_secrets.py"),
    "process": (),
    "http1": (
        "attacks/test_ca_requests.py",
        "attacks/test_ca_denial_of_service.py",
        "unit/test_admin.py",
        "unit/test_certs_client.py",
    ),
    "admin": (),
    "registry": ("unit/test_reload.py",),
    "address": ("unit/test_configfile.py",),
    "sockets": ("unit/test_server.py", "attacks/test_strangers.py"),
    "yamlfile": ("unit/test_meshfile.py", "unit/test_configfile.py"),
    "meshfile": ("unit/test_mesh.py",),
    "certs/issuance": ("unit/test_certs_registrar.py", "attacks/test_ca_requests.py"),
    "certs/registrar": ATTACKS_ON_THE_CA,
    "certs/trust": ("unit/test_answers.py", "attacks/test_ca_bundles_and_lists.py"),
    "certs/service": ATTACKS_ON_THE_CA,
    "certs/client": ATTACKS_ON_THE_CA,
    "certs/connections": ("attacks/test_ca_denial_of_service.py", "attacks/test_ca_connections.py"),
    "certs/guesses": ("attacks/test_ca_tokens.py",),
    "certs/standing": ("attacks/test_ca_tokens.py", "attacks/test_ca_renewals.py", "unit/test_certs_rotation.py"),
    "certs/store": ("unit/test_certs_serve.py", "unit/test_certs_registrar.py"),
    "certs/pemfiles": ("unit/test_certs_authority.py",),
    "certs/files": ("unit/test_certs_authority.py", "unit/test_certs_store.py"),
    "certs/passes": ("unit/test_certs_registrar.py", "unit/test_member.py"),
    "certs/profile": ("unit/test_certs_authority.py", "unit/test_certs_issuance.py"),
    "certs/authority": ("unit/test_certs_cli_ca.py", "unit/test_certs_rotation.py", "unit/test_certs_serve.py"),
}
"""Modules whose checks all become mutants, each with the test files that ought to notice, besides its own unit
tests."""

RENAMED: dict[str, tuple[str, ...]] = {
    "identity": ("spiffe",),
    "configfile": ("sidecar_yaml",),
    "meshfile": ("mesh_yaml",),
    "answers": ("accept",),
    "member": ("agent",),
    "memory": ("saved_state",),
    "registry": ("live",),
    "node": ("snapshot",),
    "policy": ("decide", "explain"),
    "certs/issuance": ("certs/csr",),
    "certs/standing": ("certs/bundles", "certs/revocations", "certs/followers"),
    "certs/trust": ("certs/documents",),
    "certs/passes": ("certs/enrolment",),
    "certs/service": ("certs/api",),
    "certs/connections": ("certs/listener",),
}
"""A module's name in the tables -> the name that it may have by now, or several if it was divided. An id belongs to the one
that has its function."""

RENAMED_NAMES: dict[str, str] = {}
"""A function's, class's or parameter's name in the tables -> its name today."""


class MissingError(LookupError):
    """There is no such module, or there are several, or it has no such mutant."""


def find(module: str) -> Path:
    """The file of a module. Raises :class:`MissingError`."""
    found = _paths(module)
    package, name = ("certs", module.removeprefix("certs/")) if module.startswith("certs/") else ("sidecar", module)
    if not found:
        raise MissingError(
            f"no module {name!r} in {package}/: if it was renamed, tests/mutants/modules.py says so (RENAMED)"
        )
    if len(found) > 1:
        places = ", ".join(str(path.relative_to(ROOT)) for path in found)
        raise MissingError(f"the module {name!r} of {package}/ is ambiguous: {places}")
    return found[0]


def names(module: str) -> list[str]:
    """What a module of the tables is called today: those of its names that there are. Raises :class:`MissingError`."""
    found = [name for name in (module, *RENAMED.get(module, ())) if _paths(name)]
    return found or [dotted(find(module))]


def _paths(module: str) -> list[Path]:
    package, name = ("certs", module.removeprefix("certs/")) if module.startswith("certs/") else ("sidecar", module)
    return [path for path in files(package) if path.stem == name]


@cache
def files(package: str) -> tuple[Path, ...]:
    """The files of a package whose checks may be mutated."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return tuple(path for path in paths if not WITHOUT_CHECKS & set(path.relative_to(ROOT).parts))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def today(id: str, known: set[str]) -> str:  # noqa: A002  # it is the id
    """An id as it is today: parts that were renamed replaced. ``known``: the ids that there are."""
    module, rest = id.split(":", 1)
    rest = re.sub(r"\w+", lambda word: RENAMED_NAMES.get(word[0], word[0]), rest)
    candidates = [f"{name}:{rest}" for name in names(module)]
    return next((candidate for candidate in candidates if candidate in known), candidates[0])


def security() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The modules of today with their test files."""
    for module, extra in SECURITY.items():
        for name in names(module):
            yield name, extra


def tests_of(module: str, extra: tuple[str, ...]) -> list[str]:
    """The test files of a module, relative to tests/: its own unit tests first."""
    former = [old for old, new in RENAMED.items() if module in new]
    own = [file for name in (module, *former) if (file := test_file(f"unit/test_{name.replace('/', '_')}.py"))]
    return list(dict.fromkeys([*own[:1], *(found for file in extra if (found := test_file(file)))]))


@cache
def test_file(name: str) -> str | None:
    """Where a test file is, relative to tests/: by basename, below the same directory if it is there, else anywhere."""
    top, _, base = name.partition("/")
    base = base.rpartition("/")[2]
    bases = [base, *(_renamed_test(base))]
    for place in (TESTS / top, TESTS):
        for candidate in bases:
            found = sorted(path for path in place.rglob(candidate) if "e2e" not in path.parts)
            if len(found) == 1:
                return found[0].relative_to(TESTS).as_posix()
    return None


test_file.__test__ = False  # type: ignore[attr-defined]  # pytest: its name begins as tests do


def _renamed_test(base: str) -> Iterator[str]:
    stem = base.removeprefix("test_").removesuffix(".py")
    for old, names in RENAMED.items():
        if old.replace("/", "_") == stem:
            for name in names:
                yield f"test_{name.replace('/', '_')}.py"
                yield f"test_{name.rpartition('/')[2]}.py"
