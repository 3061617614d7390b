"""Practises what to do when the issuing key is stolen: from the discovery to the last sidecar on the new key, timed.

    make key-drill                                          # a small mesh of its own
    python compose/key-drill/practise.py ca mesh.yaml       # a copy of your CA, and a sidecar for each service of your mesh
        --root-key /media/vault/root.key                    # if it is not in the CA's directory

Real processes in a temporary directory: `certs serve`, and `sidecar run` for each service. Outside of it,
the CA's directory, mesh.yaml and the root's key are read and nothing is written. The thief has a copy of the directory
without `root.key`; he calls a service before, and must be refused after. Exit code 1, with a sentence, if anything does not
hold. The passphrase of an encrypted key is asked for while the time runs, or read from $CERTS_ROOT_PASSPHRASE. The root's
key of the small mesh is encrypted and kept elsewhere, too.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from certs.authority.authority import ROOT_KEY
from sidecar.demo.stage import LogFile, Stage, StoryError, free_ports, from_ca, from_files, stage, wiring
from sidecar.policy.mesh import Mesh, load_mesh, parse_mesh

THIEF, SEEN = "thief", "drill-thief"
LOOPBACK = "127.0.0.1"
PASSPHRASE, NEW_PASSPHRASE = "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE"
MESH = """\
trust_domain: drill.internal
services:
  web: {ports: {http: 80}}
  api: {ports: {http: 80}}
  db: {ports: {sql: 5432}}
  job:
"""


@dataclass
class Watch:
    """Steps and when each was done, in seconds since the discovery."""

    began: float = field(default_factory=trio.current_time)

    def done(self, what: str) -> None:
        print(f"{trio.current_time() - self.began:7.1f} s  {what}", flush=True)


async def call(port: int) -> bool:
    """Whether somebody answers through this sidecar."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(10):
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(b"x")
            return await stream.receive_some(1) == b"x"
    return False


async def echo(ports: list[int], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """The app behind the service that the thief calls."""

    async def back(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        for port in ports:
            await nursery.start(trio.serve_tcp, back, port)
        task_status.started()


async def practise(
    mesh: Stage, directory: Path | None, given: Mesh, root_key: Path | None, passphrase: str | None
) -> None:
    ca, app, listen, entry = free_ports(4)
    services = list(given.services)
    # One more port and one rule, so that there is a call to be made: the rest of the policy does not matter here.
    caller, callee = services[0], services[-1]
    declared = "".join(f"  {name!r}: {{ports: {{drill: 1}}}}\n" for name in services)
    rule = f"policy:\n  - {{from: {caller!r}, to: '{callee}:drill'}}\n"
    mesh.write("mesh.yaml", f"trust_domain: {given.trust_domain}\nservices:\n{declared}{rule}")
    if directory is None:
        passphrase, root_key = secrets.token_hex(16), mesh.directory / "vault" / ROOT_KEY
        where = ("--root-key-out", str(root_key.parent), "--encrypt")
        await mesh.certs("init", "ca", "--trust-domain", given.trust_domain, *where, **{NEW_PASSPHRASE: passphrase})
    else:
        shutil.copytree(directory, mesh.directory / "ca", ignore=shutil.ignore_patterns("store*", "next"))
    shutil.copy(mesh.directory / "ca" / "root.pem", mesh.directory / "root.pem")
    await mesh.background(lambda **options: echo([app], **options))
    await mesh.ca(ca)
    await mesh.certs("enrolment", "ca", *services, "--out-dir", "enrolment")
    sidecars: dict[str, LogFile] = {}
    for name in services:
        inbound = [{"port": "drill", "listen": f"{LOOPBACK}:{listen}", "app": f"{LOOPBACK}:{app}"}]
        mesh.write(f"{name}.yaml", wiring(name, from_ca(name, ca), inbound=inbound if name == callee else []))
        sidecars[name] = await mesh.sidecar(name)
    print(f"a mesh of {len(sidecars)} sidecars and a CA", flush=True)

    shutil.copytree(mesh.directory / "ca", mesh.directory / THIEF, ignore=shutil.ignore_patterns(ROOT_KEY, "*.sock"))
    await mesh.certs("issue", THIEF, caller, "--out", SEEN)
    outbound = [{"to": f"{callee}:drill", "listen": f"{LOOPBACK}:{entry}", "peers": [f"{LOOPBACK}:{listen}"]}]
    mesh.write(f"{THIEF}.yaml", wiring(caller, from_files(SEEN), outbound=outbound))
    await mesh.sidecar(THIEF)
    if not await call(entry):
        raise StoryError("the thief is refused before anything was done: this drill would prove nothing")
    print(f"the thief has issuing.key, is {caller}, and {callee} answers", flush=True)

    watch, before = Watch(), {name: len(log.lines) for name, log in sidecars.items()}
    watch.done("discovered: a certificate that is not in `certs list`")
    fetched = () if root_key is None else ("--root-key", str(root_key))
    opened = {} if passphrase is None else {PASSPHRASE: passphrase}
    await mesh.certs("renew-issuing", "ca", "--distrust", *fetched, **opened)
    watch.done("certs renew-issuing --distrust: a new key, the old one distrusted, all enrolment secrets ended")

    async def follows(name: str) -> None:
        async with trio.open_nursery() as either:

            async def find(event: str) -> None:
                await sidecars[name].find(before[name], event=event)
                either.cancel_scope.cancel()

            for event in ("renewed", "re-enrolled"):  # by the certificate in force, or, if that is refused, by its key
                either.start_soon(find, event)
        watch.done(f"{name} is on the new key")

    async with trio.open_nursery() as nursery:
        for name in sidecars:
            nursery.start_soon(follows, name)
    watch.done("the last sidecar is on the new key")
    if await call(entry):
        raise StoryError(f"the thief still calls {callee}")
    watch.done("the thief is refused")
    await mesh.certs("enrolment", "ca", *services, "--out-dir", "enrolment", "--force")
    watch.done("certs enrolment: new secrets for sidecars that lose their state")


async def main(directory: Path | None, policy: Path | None, root_key: Path | None) -> None:
    given = parse_mesh(MESH, "mesh.yaml") if policy is None else load_mesh(policy)
    passphrase = os.environ.pop(PASSPHRASE, None)  # no process gets it but the one that needs it
    kept = root_key or (directory and directory / ROOT_KEY)
    if kept and not kept.exists():
        raise StoryError(f"{kept} does not exist: the root's key is needed; give its place: --root-key FILE")
    with tempfile.TemporaryDirectory(prefix="key-drill-") as made:
        async with stage(Path(made)) as mesh:
            await practise(mesh, directory, given, root_key, passphrase)


def run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Practises what to do when the issuing key is stolen, timed.")
    parser.add_argument(
        "copied", nargs="*", type=Path, metavar="CA-DIRECTORY MESH.YAML", help="yours, to practise on a copy"
    )
    parser.add_argument(
        "--root-key", type=Path, metavar="FILE", help="the root's key, if it is not in the CA's directory"
    )
    asked = parser.parse_args(words)
    if len(asked.copied) not in (0, 2):
        parser.error("both the CA's directory and its mesh.yaml are needed, or neither")
    if asked.root_key and not asked.copied:
        parser.error("--root-key goes with a CA's directory and its mesh.yaml")
    failed = []
    try:
        directory, policy = (path.absolute() for path in asked.copied) if asked.copied else (None, None)
        trio.run(main, directory, policy, asked.root_key and asked.root_key.absolute())
    except* StoryError as group:
        failed = [str(error) for error in leaves(group)]
    for sentence in failed:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return bool(failed)


def leaves(group: BaseException) -> Iterator[BaseException]:
    """The exceptions of nested groups."""
    for one in group.exceptions if isinstance(group, BaseExceptionGroup) else ():
        yield from leaves(one) if isinstance(one, BaseExceptionGroup) else (one,)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
