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
    "attacks/test_kept_channels.py",
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
    "spiffe": ("attacks/test_certificates.py", "properties/test_identity_properties.py"),
    "tls": (*ATTACKS_ON_PEERS, "attacks/test_ca_connections.py", "attacks/test_ca_renewals.py"),
    "inbound": ("integration/proxy/test_probing.py", "integration/proxy/test_kept_channels.py", *ATTACKS_ON_PEERS),
    "outbound": ("integration/proxy/test_kept_channels.py", "integration/proxy/test_loops.py", *ATTACKS_ON_PEERS),
    "peer": ATTACKS_ON_PEERS,
    "channels": ("integration/proxy/test_kept_channels.py", "attacks/test_kept_channels.py"),
    "http_cuts": ("unit/relay/test_exchanges.py",),
    "exchanges": ("unit/relay/test_http_duplex.py", "attacks/test_identity_header.py"),
    "http_duplex": ("attacks/test_identity_header.py",),
    "frames": ("properties/test_frames_properties.py", "attacks/test_kept_channels.py"),
    "streams": ("integration/proxy/test_kept_channels.py", "attacks/test_kept_channels.py"),
    "strangers": ("attacks/test_strangers.py",),
    "accepting": ("attacks/test_strangers.py",),
    "lobby": ("attacks/test_strangers.py", "attacks/test_plaintext.py"),
    "cleartext": ("integration/proxy/test_cleartext.py", "attacks/test_plaintext.py"),
    "bare": ("attacks/test_plaintext.py",),
    "loops": ("unit/proxy/test_outbound.py",),
    "folding": ("unit/observe/test_summaries.py", "unit/proxy/test_server.py"),
    "tls_data": ("unit/transport/test_tls.py", "unit/relay/test_relay.py", *ATTACKS_ON_PEERS),
    "tls_errors": ("unit/transport/test_tls.py", *ATTACKS_ON_PEERS),
    "liveness": ("unit/relay/test_relay.py",),
    "regular": ("unit/host/test_private.py", "unit/host/test_follow.py"),
    "duplex": ("properties/test_duplex_properties.py", "attacks/test_tampering.py", "attacks/test_floods.py"),
    "decide": ("unit/policy/test_explain.py", "properties/test_policy_properties.py", "attacks/test_policy.py"),
    "opening": ("properties/test_policy_properties.py",),
    "explain": ("properties/test_policy_properties.py",),
    "mesh": ("unit/policy/test_decide.py", "properties/test_policy_properties.py", "attacks/test_policy.py"),
    "checks": ("unit/documents/test_schema.py", "unit/policy/test_mesh_yaml.py"),
    "schema": ("unit/policy/test_mesh_yaml.py", "unit/config/test_sidecar_yaml.py", "unit/config/test_reference.py"),
    "sidecar_yaml": ("unit/config/test_permissive.py", "unit/config/test_wiring.py", "unit/config/test_collisions.py"),
    "permissive": ("unit/config/test_sidecar_yaml.py",),
    "days": ("unit/policy/test_mesh_yaml.py",),
    "wiring": ("unit/config/test_sidecar_yaml.py", "unit/cli/test_check.py"),
    "collisions": ("unit/config/test_sidecar_yaml.py", "unit/config/test_wiring.py"),
    "verdict": ("attacks/test_verdict_frame.py",),
    "dial": ("attacks/test_policy.py", "attacks/test_fail_over.py", "attacks/test_neighbours.py"),
    "handshake": ATTACKS_ON_PEERS,
    "stream": (
        "unit/transport/test_handshake.py",
        "attacks/test_floods.py",
        "attacks/test_ca_connections.py",
        "attacks/test_ca_denial_of_service.py",
    ),
    "node": (
        "integration/proxy/test_kept_channels.py",
        "unit/proxy/test_live.py",
        "attacks/test_plaintext.py",
        "unit/lifecycle/test_reload.py",
        "attacks/test_revoked_peers.py",
    ),
    "reload": ("attacks/test_revoked_peers.py", "attacks/test_ca_bundles_and_lists.py"),
    "follow": ("unit/lifecycle/test_reload.py", "unit/certs/service/test_serve.py"),
    "private": (
        "unit/agent/test_credentials.py",
        "unit/agent/test_statedir.py",
        "unit/certs/authority/test_files.py",
        "attacks/test_ca_secrets.py",
    ),
    "atomic": ("unit/agent/test_statedir.py", "unit/certs/authority/test_files.py", "attacks/test_ca_secrets.py"),
    "credentials": ("unit/lifecycle/test_reload.py", "attacks/test_ca_secrets.py"),
    "statedir": ("attacks/test_ca_secrets.py",),
    "accept": ("integration/agent/test_agent.py", *ATTACKS_ON_THE_CA),
    "trust": ("attacks/test_ca_bundles_and_lists.py", "unit/agent/test_membership.py"),
    "membership": ("integration/agent/test_agent.py", "attacks/test_ca_at_first_contact.py"),
    "agent": ATTACKS_ON_THE_CA,
    "saved_state": ("integration/agent/test_agent.py", "attacks/test_ca_secrets.py"),
    "process": (),
    "http1": (
        "attacks/test_ca_requests.py",
        "attacks/test_ca_denial_of_service.py",
        "unit/observe/test_local.py",
        "unit/certs/protocol/test_client.py",
    ),
    "local": (),
    "own_port": (),
    "announced": ("integration/proxy/test_probing.py",),
    "probing": ("integration/verify/test_trial.py",),
    "judgement": ("integration/verify/test_trial.py",),
    "live": ("unit/lifecycle/test_reload.py", "integration/proxy/test_limits.py"),
    "address": ("unit/config/test_sidecar_yaml.py",),
    "sockets": ("unit/proxy/test_server.py", "integration/proxy/test_listener.py", "attacks/test_strangers.py"),
    "yaml12": ("unit/policy/test_mesh_yaml.py", "unit/config/test_sidecar_yaml.py"),
    "mesh_yaml": ("unit/policy/test_mesh.py",),
    "certs/csr": ("unit/certs/registrar/test_registrar.py", "attacks/test_ca_requests.py"),
    "certs/registrar": ATTACKS_ON_THE_CA,
    "certs/documents": ("unit/agent/test_accept.py", "attacks/test_ca_bundles_and_lists.py"),
    "certs/api": ATTACKS_ON_THE_CA,
    "certs/client": ("integration/agent/test_agent.py", *ATTACKS_ON_THE_CA),
    "certs/addresses": ("attacks/test_ca_addresses.py",),
    "certs/wire": ("attacks/test_ca_at_first_contact.py",),
    "certs/listener": ("attacks/test_ca_denial_of_service.py", "attacks/test_ca_connections.py"),
    "certs/bundles": ("attacks/test_ca_renewals.py", "unit/certs/registrar/test_rotation.py"),
    "certs/revocations": ("attacks/test_ca_tokens.py", "attacks/test_ca_renewals.py"),
    "certs/followers": ("unit/certs/registrar/test_rotation.py",),
    "certs/store": ("unit/certs/service/test_serve.py", "unit/certs/registrar/test_registrar.py"),
    "certs/pemfiles": ("unit/certs/authority/test_authority.py",),
    "certs/files": ("unit/certs/authority/test_authority.py", "unit/certs/store/test_store.py"),
    "certs/enrolment": ("unit/certs/registrar/test_registrar.py", "integration/agent/test_agent.py"),
    "certs/x509_profile": ("unit/certs/authority/test_authority.py", "unit/certs/protocol/test_csr.py"),
    "certs/access_pass": ("unit/connect/test_person.py",),
    "certs/passes": ("unit/certs/cli/test_passes.py",),
    "person": (),
    "owner": (),
    "guard": ("integration/dashboard/test_server.py",),
    "certs/authority": (
        "unit/certs/cli/test_ca.py",
        "unit/certs/registrar/test_rotation.py",
        "unit/certs/service/test_serve.py",
    ),
}
"""Modules whose checks all become mutants, each with the test files that ought to notice, besides its own unit
tests."""

RENAMED: dict[str, tuple[str, ...]] = {}
"""A module's name in the tables -> the name that it may have by now, or several if it was divided. An id belongs to the one
that has its function. ``--rekey`` writes the tables with the new names; after it, this is empty again."""

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
    """The test files of a module, relative to tests/: its own first, among the units or the integration tests."""
    *rooms, stem = find(module).relative_to(ROOT).with_suffix("").parts
    inside = "/".join([*(rooms[1:] if rooms[0] == "sidecar" else rooms), f"test_{stem}.py"])
    own = [f"{kind}/{inside}" for kind in ("unit", "integration") if (TESTS / kind / inside).exists()]
    return list(dict.fromkeys([*own, *(found for file in extra if (found := test_file(file)))]))


@cache
def test_file(name: str) -> str | None:
    """Where a test file is, relative to tests/: there, or, if it was moved, by basename below the same directory or
    anywhere."""
    if (TESTS / name).is_file():
        return name
    top, _, rest = name.partition("/")
    for place in (TESTS / top, TESTS):
        found = sorted(path for path in place.rglob(rest.rpartition("/")[2]) if "e2e" not in path.parts)
        if len(found) == 1:
            return found[0].relative_to(TESTS).as_posix()
    return None


test_file.__test__ = False  # type: ignore[attr-defined]  # pytest: its name begins as tests do
