"""Where the mesh is: the Compose project of `sidecar inject`. I/O: asks in the containers, by Compose.

How this works. Each sidecar is asked by `docker compose exec -T X-mesh sidecar probe`, over its own socket. The stranger is
the CA's container: it is on the mesh network, where it has no business with the sidecars' listeners, and has this program.
The probe's own certificates come from the CA of the state directory, whose owner runs this: one for this run, one that was
revoked, and those of earlier runs that have ended. No other key is touched.

An app must not be reached beside its sidecar: neither from the mesh network, by its addresses there and elsewhere, nor from
this machine, where Docker would publish its ports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from cryptography import x509

from certs.protocol.mesh_state import MeshState
from sidecar.config.sidecar_yaml import Config
from sidecar.config.wiring import parse_config
from sidecar.documents.address import parse_address
from sidecar.documents.yaml12 import load_text
from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.inject.composecli import Compose, find_compose
from sidecar.inject.injection import MESH_DIRECTORY, OVERRIDE
from sidecar.inject.options import read_record
from sidecar.inject.project import read_text
from sidecar.inject.published import published_network
from sidecar.inject.state import Certs, run_certs
from sidecar.inject.topology import CA, MESH, sidecar_of
from sidecar.policy.decide import callers, decide
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.policy.names import PLAINTEXT
from sidecar.verify import remote
from sidecar.verify.doors import CommandDoor
from sidecar.verify.judgement import Attempt, Check, Edge, Listener, Status
from sidecar.verify.places import listeners_of, read_credential
from sidecar.verify.trial import App, Place

PROBE = "mesh/probe"
POLL_SECONDS = 7.0
"""How long a revocation takes to reach every sidecar, which asks each five seconds."""

_AT_ONCE = 8
_IN_BETWEEN = "what lies between an app and its own sidecar: that hop is plaintext, on a network of the two"
_HOST = "who is root on this machine, or may use Docker: reads everything"


def compose(
    project: Path,
    environ: Mapping[str, str],
    composer: Compose | None = None,
    certs: Certs = run_certs,
    wait: Callable[[float], object] = time.sleep,  # noqa: TID251  # no event loop here
) -> Place:
    """The project of this directory. Raises :class:`UsageError` if it is none of `sidecar inject`."""
    text = read_text(project / OVERRIDE)
    if text is None:
        raise UsageError(
            f"{project / OVERRIDE}: is not there: run this where `sidecar inject` was run, or name a mesh file or sidecars"
        )
    record = read_record(text, OVERRIDE)
    files = [*(project / name for name in record.files), project / OVERRIDE]
    composer = composer or find_compose(environ)

    def run(container: str, command: list[str], stdin: str) -> str:
        try:
            return composer.run(files, environ, "exec", "-T", container, *command, stdin=stdin)
        except UsageError as fault:
            raise OSError(str(fault)) from fault

    mesh = load_mesh(project / MESH_DIRECTORY / "mesh.yaml")
    place = Place(f"the Compose project in {project.name}", mesh.trust_domain, not_covered=[_IN_BETWEEN, _HOST])
    for path in sorted((project / MESH_DIRECTORY / "sidecars").glob("*.yaml")):
        config = parse_config(load_text(path), str(path), {}, mesh)
        place.doors[config.service] = CommandDoor(partial(run, sidecar_of(config.service)))
        between = [one for one in listeners_of(config) if _is_on(one, record.layout.subnets.get(MESH))]
        place.listeners += between
        published = record.layout.subnets.get(published_network(config.service))
        place.not_covered += _elsewhere(config, {one.address for one in between}, published)
        place.edges += _edges(config, mesh)

    def from_the_network(text: str) -> str:
        return run(CA, ["sidecar", "probe", "--stranger"], text)

    place.attempt_all = partial(remote.attempt_all, from_the_network)
    _take_credentials(place, MeshState(Path(environ.get("MESH_STATE") or record.options.state)), certs, wait)
    told, _ = composer.config(files, environ)
    _find_ways_past(place, mesh, told, _addresses(composer, files, environ), from_the_network)
    return place


def _is_on(listener: Listener, network: IPv4Network | None) -> bool:
    """Whether a stranger on this network could call it: not what is published, nor what outsiders meet."""
    address = parse_address(listener.address).ip
    return network is None or not isinstance(address, IPv4Address) or address in network


def _elsewhere(config: Config, between: Collection[str], published: IPv4Network | None) -> Iterator[str]:
    for port in config.inbound:
        if str(port.listen) not in between:
            if published is not None and port.listen.ip in published:
                whom = "the host's callers come (--publish-mesh)"
            elif port.mode == "permissive":
                whom = "outsiders come in plaintext"
            else:
                whom = "outsiders come, whose plaintext is refused"
            yield f"{config.service}:{port.port} at {port.listen}, where {whom}: nobody of the mesh can ask there"


def _edges(config: Config, mesh: Mesh) -> Iterator[Edge]:
    for route in config.outbound:
        allowed = decide(mesh, mesh.identity(config.service), route.service, route.port, utc_now()).allowed
        yield Edge(config.service, str(route.target), allowed and not route.ambiguous_with)


# -- the probe's own certificates --------------------------------------------------------------------------------------


def _take_credentials(place: Place, state: MeshState, certs: Certs, wait: Callable[[float], object]) -> None:
    """Gives the probe a certificate of its own, one that was revoked, and an earlier one that has ended, if there is one."""
    home, now = state.ca.parent / "probe", utc_now()
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        ended = _forget_all_but_the_last(home, now)
        fresh, revoked = home / f"at-{now:%Y%m%dT%H%M%S%f}", home / "revoked"
        certs(["issue", str(state.ca), PROBE, "--out", str(fresh), "--ttl", "5m"])
        if not revoked.is_dir() or _leaf(revoked).not_valid_after_utc <= now:
            certs(["issue", str(state.ca), PROBE, "--out", str(revoked), "--ttl", "24h", "--force"])
            certs(["revoke", str(state.ca), "--serial", f"{_leaf(revoked).serial_number:x}"])
            wait(POLL_SECONDS)
        kinds = {Attempt.NO_RULE: fresh, Attempt.REVOKED: revoked, Attempt.EXPIRED: ended}
        place.credentials = {what: read_credential(where) for what, where in kinds.items() if where is not None}
    except (OSError, ValueError, UsageError) as fault:
        first = str(fault).splitlines()[0]
        place.not_covered.append(f"a valid identity without a rule: the CA in {state.ca} gives the probe none: {first}")


def _forget_all_but_the_last(home: Path, now: datetime) -> Path | None:
    """The probe's newest certificate that has ended. Older ones are removed."""
    ended = [one for one in sorted(home.glob("at-*")) if _leaf(one).not_valid_after_utc <= now]
    for old in ended[:-1]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    return ended[-1] if ended else None


def _leaf(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "certificate.pem").read_bytes())


# -- ways past the sidecars --------------------------------------------------------------------------------------------


def _addresses(composer: Compose, files: list[Path], environ: Mapping[str, str]) -> dict[str, list[str]]:
    """The IP addresses of each service's own containers: what their hosts file says of them."""
    found: dict[str, list[str]] = {}
    try:
        running = composer.run(files, environ, "ps", "--services", "--status", "running").split()
    except UsageError:
        return found
    apps = [name for name in running if name != CA and not name.endswith(sidecar_of(""))]

    def ask(name: str) -> str | None:
        try:
            return composer.run(files, environ, "exec", "-T", name, "cat", "/etc/hosts")
        except UsageError:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for name, text in zip(apps, threads.map(ask, apps), strict=True):
            lines = [line.split()[0] for line in (text or "").splitlines() if line.strip() and line[0] != "#"]
            told = [one for one in dict.fromkeys(lines) if one.count(".") == 3 and not one.startswith("127.")]
            found |= {name: told} if told else {}
    return found


def _find_ways_past(
    place: Place, mesh: Mesh, told: Any, addresses: Mapping[str, Iterable[str]], from_the_network: Callable[[str], str]
) -> None:
    """What must not reach an app: its addresses, and its name, from the mesh network; its published ports from anywhere."""
    place.reach_all = partial(remote.reach_all, from_the_network)
    services = told.get("services", {}) if isinstance(told, dict) else {}
    for listener in place.listeners:
        name, number = listener.service, mesh.services[listener.service].ports.get(listener.port)
        if number is None:  # mesh-admin is the sidecar's own: no app answers for it
            continue
        hosts = {name: "by its name, from the mesh network"}
        hosts |= dict.fromkeys(addresses.get(name, ()), "by its address, from the mesh network")
        place.apps += [App(name, f"{host}:{number}", how) for host, how in hosts.items()]
        for published in services.get(name, {}).get("ports") or ():
            if int(published.get("target", 0)) == number:
                _judge_published(place, mesh, listener, published)
    silent = sorted({one.service for one in place.apps} - addresses.keys())
    if silent:
        place.not_covered.append(f"the apps' own addresses of {', '.join(silent)}: their containers do not tell them")


def _judge_published(place: Place, mesh: Mesh, listener: Listener, published: Mapping[str, Any]) -> None:
    """A port that Docker publishes leads past the sidecar. For a service that nobody in the mesh calls it is the way in."""
    at = f"{published.get('host_ip') or '0.0.0.0'}:{published.get('published') or 'any port'}"  # noqa: S104  # as text
    if set(callers(mesh, listener.service, listener.port, utc_now())) - {str(PLAINTEXT)}:
        seen = f"Docker publishes it at {at}: whoever reaches this machine there passes its sidecar by"
        place.checks.append(
            Check(
                "app beside its sidecar", f"{listener.service}'s app", "looked for published ports", Status.FAILED, seen
            )
        )
    else:
        place.not_covered.append(
            f"who comes to {listener.service} at {at}, which Docker publishes, in plaintext: the way in"
        )
