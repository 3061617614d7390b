"""The steps of ``sidecar inject``: run Compose, read the present files, compute, compare, make keys, write.

Nothing is changed until everything is computed. Keys are made before the files that need them are written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sidecar.identity.reasons import UsageError
from sidecar.inject import project as files_of
from sidecar.inject.activation import activated, activation_line, is_active
from sidecar.inject.application import MARK, read_application
from sidecar.inject.composecli import Compose, find_compose, in_short, summed_up
from sidecar.inject.facts import declares_ports, find_places, has_facts
from sidecar.inject.image import fingerprint, image_files
from sidecar.inject.injection import MESH_DIRECTORY, MESH_FILE, OVERRIDE, Injection, Inputs, inject
from sidecar.inject.kept import Earlier
from sidecar.inject.merged import MERGED, checks_text, is_wanted, merged_text, refuse_swarm
from sidecar.inject.meshtext import Existing
from sidecar.inject.mounted import read_texts
from sidecar.inject.options import Options, Publish, Record, read_record
from sidecar.inject.override import IMAGES
from sidecar.inject.project import Change, diff, find_changes, read_text
from sidecar.inject.published import Asked
from sidecar.inject.routes import is_here, taken_networks
from sidecar.inject.state import Certs, default_state, ensure_state, leftovers, run_certs
from sidecar.inject.subnets import parse_range
from sidecar.inject.topology import sidecar_of
from sidecar.inject.wiring import wiring_path
from sidecar.policy.mesh import parse_mesh

DEFAULT_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")


@dataclass(frozen=True, slots=True)
class InjectRequest:
    """The command line. None is an option that was not given: the last run's value is used."""

    files: tuple[Path, ...] = ()
    state: Path | None = None
    publish: Publish | None = None
    only: tuple[str, ...] | None = None
    observe: bool | None = None
    subnets: str | None = None
    ports: Mapping[str, tuple[int, ...]] | None = None
    activate: bool = False
    relayout: bool = False
    all_names: bool = False
    merged: bool = False
    publish_mesh: Mapping[str, Asked | None] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the run would do. ``image`` is the build context of this version's image, by file name. ``merge``
    makes one file of the application and an override; None if none is wanted."""

    project: Path
    names: tuple[str, ...]
    inputs: Inputs
    image: Mapping[str, bytes]
    injection: Injection
    changes: tuple[Change, ...]
    is_active: bool
    notes: tuple[str, ...]
    merge: Callable[[Injection], str] | None = None

    @property
    def options(self) -> Options:
        return self.inputs.options


def plan(request: InjectRequest, environ: Mapping[str, str], today: date) -> Plan:
    """Reads and computes; changes nothing. Raises :class:`UsageError`."""
    files = request.files or default_files(Path())
    project = files[0].parent.absolute()
    names = tuple(os.path.relpath(file.absolute(), project) for file in files)
    before = _record(project)
    compose = find_compose(environ)
    config, compose_warnings = compose.config(files, environ)
    if config.get(MARK) is not None:
        raise UsageError(f"{OVERRIDE} is among the files: name only those that it was made from")
    application = read_application(config, str(files[0]))
    read = read_texts(config, project)
    image = image_files()
    options = _options(request, before, environ, application.name, project, config)
    inputs = Inputs(
        config=config,
        files=names,
        texts=read.texts,
        dockerfiles=read.dockerfiles,
        project=str(project),
        real=os.path.realpath,
        options=options,
        taken=taken_networks(),
        today=today,
        image=fingerprint(image),
        before=before,
        existing=_existing(project, before),
        places=find_places((name, read_text(project / name) or "") for name in names) if has_facts(config) else {},
        relayout=request.relayout,
        all_names=request.all_names,
        earlier=_earlier(project),
    )
    injection = inject(inputs)
    merge = None
    if is_wanted(read_text(project / MERGED), asked=request.merged):
        refuse_swarm(config, names[0])
        merge = partial(_merge, compose, files, project, environ)
    env = read_text(project / ".env")
    activation = {".env": activated(env, names, OVERRIDE).encode()} if request.activate else {}
    notes = list(summed_up(compose_warnings))
    if read.unread:
        notes.append(f"{in_short(read.unread)}: cannot be read, so calls that are configured there may be missing")
    for target, asked in options.publish_mesh.items():
        if not is_here(asked.host):
            notes.append(
                f"--publish-mesh {target}: {asked.host} is no address of this machine, so Docker does not start "
                f"{sidecar_of(target.partition(':')[0])} here"
            )
    if merge is not None and options.publish_mesh:
        notes.append(
            f"{MERGED}: whether the host's port leads to the network of --publish-mesh is up to the tool that starts it "
            "(Docker's does); elsewhere it leads to nobody, never to plaintext"
        )
    notes += leftovers(Path(options.state), application.name, application.services)
    notes += _left_out(files)
    if environ.get("COMPOSE_FILE") and OVERRIDE not in environ["COMPOSE_FILE"]:
        notes.append(f"COMPOSE_FILE is set in this environment, and {OVERRIDE} is not in it")
    return Plan(
        project,
        names,
        inputs,
        image,
        injection,
        tuple(find_changes(project, _contents(project, injection, image, inputs.image, merge) | activation)),
        request.activate or is_active(env, OVERRIDE),
        tuple(notes),
        merge,
    )


def _merge(
    compose: Compose, files: tuple[Path, ...], project: Path, environ: Mapping[str, str], injection: Injection
) -> str:
    checks = checks_text(sidecar_of(service) for service in injection.services)
    return merged_text(compose.merged(files, [injection.files[OVERRIDE], checks], project, environ))


def renewed(plan: Plan, service: str) -> Plan:
    """The plan, with this version's image for one more sidecar, or for the CA."""
    inputs = replace(plan.inputs, upgrade=plan.inputs.upgrade | {service})
    injection = inject(inputs)
    contents = _contents(plan.project, injection, plan.image, inputs.image, plan.merge)
    return replace(plan, inputs=inputs, injection=injection, changes=tuple(find_changes(plan.project, contents)))


def carry_out(plan: Plan, certs: Certs = run_certs) -> list[str]:
    """Makes keys and secrets, then writes the project's files. Returns a line for each thing made."""
    injection = plan.injection
    kept = [app for app in injection.services if sidecar_of(app) in injection.kept]
    state = Path(plan.options.state)
    made = ensure_state(state, injection.trust_domain, injection.services, certs, kept)
    files_of.write(plan.project, plan.changes)
    return made


def report(plan: Plan, echo: Callable[[str], None], *, new_too: bool) -> None:
    """Prints the diff, the calls, and the notes."""
    if plan.changes:
        echo(diff(plan.changes, new_too=new_too))
    echo(f"\nwhich service calls which (══► mutual TLS, ──► plaintext):\n{plan.injection.picture}\n")
    for line in (*plan.injection.warnings, *plan.notes):
        echo(f"note: {line}")
    if plan.injection.lost:
        first, *more = plan.injection.lost
        names = ", ".join([first, *more])
        by_hand, instead = f"`docker run --network {first} …`", "`docker compose run SERVICE …`"
        echo(f"note: {names}: no longer leads to these services; use {instead} instead of {by_hand}")


def next_steps(plan: Plan) -> list[str]:
    """The next steps for the user."""
    if plan.merge is not None:
        return [f"next: start {MERGED} alone, with a tool that takes one file: podman-compose -f {MERGED} up -d"]
    if plan.is_active:
        return ["next: docker compose up -d"]
    flags = " ".join(f"-f {name}" for name in (*plan.names, OVERRIDE))
    return [
        f"next: docker compose {flags} up -d",
        f"or, to need no -f: --activate, or this line in .env: {activation_line(plan.names, OVERRIDE)}",
    ]


def default_files(here: Path) -> tuple[Path, ...]:
    """The files of the last run, or else those that Compose uses by default: the first of :data:`DEFAULT_NAMES` that exists,
    and the override beside it. Raises :class:`UsageError`."""
    record = _record(here.absolute())
    if record is not None:
        return tuple(here / name for name in record.files)
    for name in DEFAULT_NAMES:
        if (here / name).is_file():
            return (here / name, *_overrides(here / name))
    raise UsageError(f"no {DEFAULT_NAMES[0]} here: name the application's Compose file")


def _overrides(file: Path) -> tuple[Path, ...]:
    for suffix in (".yml", ".yaml"):
        path = file.with_name(f"{file.stem}.override{suffix}")
        if path.is_file():
            return (path,)
    return ()


def _left_out(files: tuple[Path, ...]) -> list[str]:
    """Overrides that Compose would use by default and does not when files are named."""
    missing = [path for path in _overrides(files[0]) if path not in files and files[0].name in DEFAULT_NAMES]
    return [
        f"{path.name} exists and was not named: it is not part of the mesh, nor of what -f starts" for path in missing
    ]


def _record(project: Path) -> Record | None:
    text = read_text(project / OVERRIDE)
    return None if text is None else read_record(text, OVERRIDE)


def _earlier(project: Path) -> Earlier | None:
    """None also where the build context of the mesh's image is gone: then the image cannot be made again."""
    override = read_text(project / OVERRIDE)
    if override is None or not all((project / it / "Dockerfile").is_file() for it in _contexts(override)):
        return None
    texts = {
        sidecar_of(path.stem): read_text(path)
        for path in (project / MESH_DIRECTORY / wiring_path("x")).parent.glob("*.yaml")
    }
    return Earlier(override, {name: text for name, text in texts.items() if text is not None})


def _contexts(override: str) -> list[str]:
    """The directories that images are built from."""
    return re.findall(rf'^ +context: "?\./({IMAGES}[\w/]*)"?$', override, re.MULTILINE)


def _contents(
    project: Path,
    injection: Injection,
    image: Mapping[str, bytes],
    tag: str,
    merge: Callable[[Injection], str] | None,
) -> dict[str, bytes]:
    """Every file of the project that is ours: this version's image if it is used, and other versions' that are."""
    contents = {path: text.encode() for path, text in injection.files.items()}
    for context in _contexts(injection.files[OVERRIDE]):
        if context == f"{IMAGES}/{tag}":
            contents |= {f"{context}/{name}": content for name, content in image.items()}
        else:
            there = {path: files_of.read(path) for path in (project / context).iterdir() if path.is_file()}
            contents |= {f"{context}/{path.name}": content for path, content in there.items() if content is not None}
    return contents if merge is None else contents | {MERGED: merge(injection).encode()}


def _existing(project: Path, before: Record | None) -> Existing | None:
    text = read_text(project / MESH_FILE)
    if text is None:
        return None
    edited = before is None or sha256(text.encode()).hexdigest() != before.mesh_sha256
    return Existing(text, parse_mesh(text, MESH_FILE), edited, None if before is None else before.proposed)


def _options(
    request: InjectRequest,
    before: Record | None,
    environ: Mapping[str, str],
    name: str,
    project: Path,
    config: Mapping[str, Any],
) -> Options:
    """The options given now, else those of the last run, else the defaults."""
    digest = sha256(str(project).encode()).hexdigest()
    user = f"{os.getuid()}:{os.getgid()}"
    old = (
        before.options
        if before is not None
        else Options(str(default_state(dict(environ), name, project, digest)), user)
    )
    for target, wanted in (request.publish_mesh or {}).items():
        if wanted is None and target not in old.publish_mesh:
            listed = ", ".join(sorted(old.publish_mesh)) or "nothing"
            raise UsageError(f"--publish-mesh: {target}=none: it is not published; {listed} is")
    # Where the file says the ports now, the answer of an earlier run is over.
    answered = {name: numbers for name, numbers in old.ports.items() if not declares_ports(config, name)}
    return replace(
        old,
        state=str(request.state.absolute()) if request.state is not None else old.state,
        publish=request.publish or old.publish,
        only=tuple(sorted(request.only)) if request.only is not None else old.only,
        observe=old.observe if request.observe is None else request.observe,
        subnets=old.subnets if request.subnets is None else parse_range(request.subnets),
        ports={**answered, **(request.ports or {})},
        publish_mesh={
            target: it for target, it in {**old.publish_mesh, **(request.publish_mesh or {})}.items() if it is not None
        },
    )
