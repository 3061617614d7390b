"""``sidecar status --all``: the state of every sidecar of a project, and of its CA. I/O: asks in the containers, by Compose.

Of a sidecar that does not answer there is still the report that the CA heard last (:mod:`certs.service.reports`).

:func:`collect` makes the document that ``--json`` prints; :func:`as_text` formats it for people.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sidecar.host.private import Alone, exposure
from sidecar.identity.reasons import UsageError
from sidecar.inject.composecli import Compose, find_compose
from sidecar.inject.injection import MESH_DIRECTORY, OVERRIDE
from sidecar.inject.options import Record, read_record
from sidecar.inject.override import CA_STATE
from sidecar.inject.project import read_text
from sidecar.inject.topology import CA, sidecar_of
from sidecar.policy.names import PLAINTEXT

_AT_ONCE = 8
_CALLERS = 10


def collect(project: Path, environ: Mapping[str, str], compose: Compose | None = None) -> dict[str, Any]:
    """What each sidecar's ``status --json`` prints, by service; the CA's ``certs list --json`` and ``certs reports --json``;
    and the ways past each sidecar. One that does not answer has ``error`` instead. Raises :class:`UsageError` if this is no
    project of ``sidecar inject``."""
    files, record = _files(project)
    compose = compose or find_compose(environ)
    services = sorted(path.stem for path in (project / MESH_DIRECTORY / "sidecars").glob("*.yaml"))

    def ask(container: str, *command: str) -> Any:
        try:
            return json.loads(compose.run(files, environ, "exec", "-T", container, *command))
        except (UsageError, ValueError) as error:
            return {"error": str(error).splitlines()[-1]}

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        told = [threads.submit(ask, sidecar_of(name), "sidecar", "status", "--json") for name in services]
        ca = threads.submit(ask, CA, "certs", "list", CA_STATE, "--json")
        reports = threads.submit(ask, CA, "certs", "reports", CA_STATE, "--json")
        return {
            "sidecars": {name: one.result() for name, one in zip(services, told, strict=True)},
            "ca": ca.result(),
            "reports": reports.result().get("reports", []),
            "not_seen": dict(record.not_seen),
        }


def alarms(
    project: Path, environ: Mapping[str, str], options: Sequence[str], compose: Compose | None = None
) -> Iterator[bytes]:
    """What `certs alarms` prints in the CA's container, as it comes. Raises :class:`UsageError` as :func:`collect` does, and
    if no CA answers."""
    files, _ = _files(project)
    compose = compose or find_compose(environ)
    return compose.stream(files, environ, "exec", "-T", CA, "certs", "alarms", CA_STATE, *options)


def looking(
    project: Path, environ: Mapping[str, str], compose: Compose | None = None
) -> tuple[Path | None, Sequence[str]]:
    """The directory of the project's CA, if it is on this machine and nobody else's; and the command that prints what the CA
    shows, a line of JSON again and again, until its stdin is closed. Raises :class:`UsageError` as :func:`collect` does."""
    files, _ = _files(project)
    compose = compose or find_compose(environ)
    words = compose.words(files, "exec", "-T", CA, "python", "-m", "certs.protocol.looking", CA_STATE)
    return _own_directory(compose, files, environ), words


def _own_directory(compose: Compose, files: Sequence[Path], environ: Mapping[str, str]) -> Path | None:
    """What Compose mounts as the CA's state; None if it is another user's, or others may change it: who answers there might
    not be the CA."""
    try:
        mounts = compose.config(files, environ)[0]["services"][CA]["volumes"]
        (source,) = (Path(one["source"]) for one in mounts if one["type"] == "bind" and one["target"] == CA_STATE)
        status = source.stat()
    except (UsageError, LookupError, TypeError, ValueError, OSError):
        return None
    return source if exposure(status, Alone.OURS) is None else None


def not_seen(project: Path) -> dict[str, list[str]]:
    """By service, the ways past its sidecar, as ``sidecar inject`` found them. Raises :class:`UsageError` as :func:`collect`
    does."""
    return dict(_files(project)[1].not_seen)


def _files(project: Path) -> tuple[list[Path], Record]:
    """The files of the project that is there, and what its last run recorded. Raises :class:`UsageError`."""
    text = read_text(project / OVERRIDE)
    if text is None:
        raise UsageError(f"{project / OVERRIDE}: is not there; run this where `sidecar inject` was run")
    record = read_record(text, OVERRIDE)
    return [*(project / name for name in record.files), project / OVERRIDE], record


def is_well(found: Mapping[str, Any]) -> bool:
    """Whether everything answers, and every sidecar is healthy and has taken its files."""
    return "error" not in found["ca"] and all(
        one.get("healthy") and not one.get("reload_refused") for one in found["sidecars"].values()
    )


def as_text(found: Mapping[str, Any]) -> str:
    """The document of :func:`collect`, its text escaped already, as lines for people."""
    reports = _by_service(found.get("reports", ()))
    past = found.get("not_seen", {})
    lines = [
        line
        for name, one in found["sidecars"].items()
        for line in (*_sidecar(name, one, reports[name]), *_not_seen(one, past.get(name, ())))
    ]
    lines += _differences(found["sidecars"])
    return "\n".join([*lines, *_ca(found["ca"])])


def _by_service(reports: Iterable[Mapping[str, Any]]) -> Mapping[str, list[Mapping[str, Any]]]:
    found = defaultdict[str, list[Mapping[str, Any]]](list)
    for one in reports:
        found[one["identity"].rpartition("/")[2]].append(one)
    return found


def _sidecar(name: str, one: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if "error" in one:
        yield f"{name}  DOES NOT ANSWER: {one['error']}"
        for report in reports:
            state = "well" if report["report"].get("healthy") else "NOT WELL"
            yield f"  the CA heard of it last at {report['received']}: {state}"
        return
    state = "draining" if one["draining"] else "well" if one["healthy"] else "NOT WELL"
    bundle = one["trust"].get("trust_bundle", "none")
    versions = f"policy {one.get('policy', 'unknown')}, trust bundle {bundle}"
    yield f"{name}  {state}  {one['identity']} until {one['certificate_until']}, {versions}"
    yield from (f"  NOT WELL: {sentence}" for sentence in one["unwell"])
    yield from (f"  REFUSED at the last reload: {sentence}" for sentence in one.get("reload_refused", ()))
    for end in one.get("ending", ()):
        call = f"{end['from']} -> {end['to']}"
        yield f"  ENDS SOON: {call} is refused after {end['until']}, when rule '{end['rule']}' runs out"
    yield from _ports(one["inbound"])
    yield from _plaintext(one.get("plaintext", ()))
    yield from _refused(one["refused_lately"])


def _ports(inbound: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each port, whatever the number of its listeners, and one for each that takes plaintext."""
    callers = defaultdict[str, dict[str, None]](dict)
    for port in inbound:
        callers[port["port"]] |= dict.fromkeys(port["may_call"])
    yield from (f"  {name} may be called by: {', '.join(them) or 'nobody'}" for name, them in callers.items())
    permissive = {port["port"]: port["until"] for port in inbound if port.get("mode") == "permissive"}
    for name, day in permissive.items():
        nobody = "" if str(PLAINTEXT) in callers[name] else "; no rule says `from: plaintext`, so it is refused"
        yield f"  PERMISSIVE: {name} takes plaintext until {day}{nobody}"


def _plaintext(callers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Who still calls in plaintext: would be cut, or was."""
    for caller in callers[:_CALLERS]:
        name = f" ({caller['name']})" if caller["name"] else ""
        end = "" if caller["allowed"] else ", refused"
        times = f"{caller['count']} times, last at {caller['last']}{end}"
        yield f"  plaintext to {caller['port']} from {caller['address']}{name}: {times}"
    if more := callers[_CALLERS:]:
        yield f"  plaintext from {len(more)} more addresses: `sidecar status` there lists them"


def _not_seen(one: Mapping[str, Any], ways: Iterable[str]) -> Iterator[str]:
    """Who passes the sidecar. Where it takes plaintext, or did, that is why nobody can call it strict."""
    was_permissive = one.get("plaintext") or any(port.get("until") for port in one.get("inbound", ()))
    for way in ways:
        yield (
            f"  NOT SEEN, so strict is not complete: who comes {way}"
            if was_permissive
            else f"  not seen: who comes {way}"
        )


def _refused(lately: list[Mapping[str, Any]]) -> Iterator[str]:
    """The last refusals, newest first, those that are alike in one line with their number."""
    numbers = Counter(map(_alike, lately))
    for one in lately:
        if number := numbers.pop(_alike(one), 0):
            times = f"{number} times, last at" if number > 1 else "at"
            yield f"  refused {times} {one['at']}: {one['reason']}: {one['message'] or one.get('peer_address', '')}"


def _alike(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(one.get(key) for key in ("direction", "port", "upstream", "peer_id", "reason", "rule"))


def _differences(sidecars: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Sidecars whose policy or trust bundle is not the others'."""
    answers = {name: one for name, one in sidecars.items() if "error" not in one}
    policies = {name: one.get("policy") for name, one in answers.items()}
    bundles = {name: one["trust"].get("trust_bundle") for name, one in answers.items()}
    for what, has in (("policy", policies), ("trust bundle", bundles)):
        common = Counter(has.values()).most_common(1)[0][0] if has else None
        if others := [f"{name} ({mine})" for name, mine in has.items() if mine != common]:
            yield f"another {what} than the others' {common}: {', '.join(others)}"


def _ca(ca: Mapping[str, Any]) -> Iterator[str]:
    if "error" in ca:
        yield f"CA  DOES NOT ANSWER: {ca['error']}"
        return
    asking = len(ca["sidecars that ask"])
    yield f"CA  answers: {len(ca['certificates'])} certificates that are good, {asking} sidecars that ask"
    yield from (f"  revoked: {one['identity']}, all issued before {one['issued before']}" for one in ca["revoked"])
