"""The man-in-the-middle drill: one attacker against the same shop, first as it is, then in the mesh. Asserts both halves.

    make drill

The attacker is a container on the network between web and api, with what Docker gives to each container and nothing more.
By ARP alone it gets between them, reads, alters, and answers in api's place. Against the plain shop it must win, or nothing
was shown. Exit code 1, and a sentence, if either half is otherwise.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a file: this directory's name is no package's

from tests.e2e.engine import Application, EngineError, docker, run, shop, until  # noqa: E402

ATTACKER = Path(__file__).parent / "attacker"
PASSWORD = "web:correct-horse"  # the demo's
HONEST, CHANGED = "costs 49.90", "costs 00.01"


@dataclass
class Half:
    """One of the two shops, attacked. ``web`` and ``api`` are the containers that the network carries between."""

    shop: Application
    image: str
    network: str
    web: str
    api: str
    told: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, str]:
        return self.shop.address(self.web, self.network), self.shop.address(self.api, self.network)

    def attacker(self, name: str, *command: str, mounts: tuple[str, ...] = ()) -> str:
        """Starts one on the network. It does not forward by itself, for it means to do that with its own hands."""
        network = f"{self.shop.project}_{self.network}"
        options = [part for mount in mounts for part in ("--volume", mount)]
        container = f"{self.shop.project}-{name}"
        docker("run", "--detach", "--name", container, "--network", network, "--sysctl", "net.ipv4.ip_forward=0",
               *options, self.image, "python3", *command)  # fmt: skip
        return container

    def between(self, mode: str, *more: str) -> str:
        container = self.attacker("between", "/attacker/between.py", mode, *self.addresses, *more)
        until("the attacker is between", lambda: "poisoning" in docker("logs", container), 20)
        return container

    def fake(self, *arguments: str, mounts: tuple[str, ...] = ()) -> str:
        container = self.attacker("impostor", "/attacker/impostor.py", "8000", *arguments, mounts=mounts)
        until("the impostor listens", lambda: "listening" in docker("logs", container), 20)
        return container

    def ghost(self) -> str:
        """An address of the network that nobody has."""
        found = json.loads(docker("network", "inspect", f"{self.shop.project}_{self.network}"))[0]
        subnet = IPv4Network(found["IPAM"]["Config"][0]["Subnet"])
        used = {it["IPv4Address"].partition("/")[0] for it in found["Containers"].values()}
        free = [str(it) for it in list(subnet.hosts())[1:] if str(it) not in used]
        return free[-1]

    def page(self) -> str:
        try:
            return self.shop.page()
        except EngineError as error:
            return str(error).strip().splitlines()[-1]


def lines(container: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in docker("logs", container).splitlines() if line.startswith("{")]


def ended(container: str) -> dict[str, Any]:
    """Stops an attacker; its last word."""
    docker("stop", "--time", "5", container)
    last = lines(container)[-1]
    docker("rm", container)
    return last


def carried(half: Half, mode: str, wanted: str) -> tuple[str, dict[str, Any]]:
    """What web's customer sees while somebody is between, once the page is as ``wanted`` (or in the end)."""
    container = half.between(mode)
    page = ""

    def seen() -> bool:
        nonlocal page
        was_between = any(it["event"] == "between" for it in lines(container))
        page = half.page()
        return was_between and wanted in page

    with contextlib.suppress(EngineError):  # asserted by who asked
        until("the page", seen, 12)
    return page, ended(container)


def check(condition: bool, sentence: str) -> None:
    if not condition:
        raise EngineError(f"the drill failed: {sentence}")


def diverted(
    half: Half, *identity: str, mounts: tuple[str, ...] = ()
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Connections led to somebody who answers in api's place."""
    impostor = half.fake(*identity, mounts=mounts)
    address = docker(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", impostor
    ).strip()
    container = half.between("divert", address, half.ghost())
    page = ""

    def met() -> bool:
        nonlocal page
        page = half.page()
        return any(it["event"] == "connection" for it in lines(impostor))

    until("the impostor is called", met, 20)
    said = [it for it in lines(impostor) if it["event"] == "connection"]
    told = ended(container)
    docker("rm", "--force", impostor)
    return page, said, told


def plain(half: Half) -> None:
    """The attacker must win."""
    check(HONEST in half.page(), "the plain shop does not answer")
    page, told = carried(half, "watch", HONEST)
    check(HONEST in page, f"the page, while being read, is {page}")
    check(PASSWORD in told["passwords"], f"the password was not read: {told}")
    half.told["reads"] = f"password {told['passwords'][0]}, {told['prices'][0]}"
    page, told = carried(half, "change", CHANGED)
    check(CHANGED in page and told["changed"] > 0, f"the price was not changed: {page}; {told}")
    half.told["changes the price"] = page
    page, said, _ = diverted(half)
    check(
        CHANGED in page and any(PASSWORD_HEADER in it["got"] for it in said),
        f"the fake was not believed: {page}; {said}",
    )
    half.told["answers in api's place"] = f"believed, given the password: {page}"


PASSWORD_HEADER = "Authorization: Basic "


def meshed(half: Half) -> None:
    """The attacker must lose."""
    check(HONEST in until("the meshed shop answers", half.shop.page), "the meshed shop does not answer")
    page, told = carried(half, "watch", HONEST)
    check(HONEST in page, f"the page, while being watched, is {page}")
    kinds = told["kinds"]
    check(told["frames"] > 0 and kinds["tls"] > 0, f"the attacker was not between: {told}")
    check(not told["passwords"] and not told["prices"], f"something could be read: {told}")
    half.told["reads"] = f"ciphertext: {told['sample'][:32]}…"

    before = len(half.shop.log(half.web))
    page, told = carried(half, "change", HONEST)
    check(HONEST in page and CHANGED not in page and told["changed"] == 0, f"the price was changed: {page}; {told}")
    page, told = carried(half, "flip", "cannot be reached")
    check(told["changed"] > 0, f"nothing was altered: {told}")
    check(HONEST not in page and "costs" not in page, f"an altered answer arrived: {page}")
    fresh = half.shop.log(half.web)[before:]
    broken = {it["reason"] for it in fresh if it["event"] == "connection"} - {"ok"}
    check("truncated" in broken, f"no connection broke: {fresh}")
    half.told["changes the price"] = f"one bit altered: the connection breaks ({', '.join(sorted(broken))})"

    stolen = f"{half.shop.state}/sidecars/reporting:/stolen:ro"
    before = len(half.shop.log(half.web))
    page, said, told = diverted(half, "/stolen/identity.pem", mounts=(stolen,))
    check(told["diverted"] > 0 and "costs" not in page, f"the fake was believed: {page}; {said}")
    check(not any(it["got"] for it in said), f"the fake was given something: {said}")
    fresh = half.shop.log(half.web)[before:]
    reasons = {it["reason"] for it in fresh if it["event"] == "connection"}
    alarms = [it for it in fresh if it["event"] == "mitm_suspected"]
    check("unexpected_peer" in reasons, f"the fake was refused as {reasons}")
    check(any("spiffe://" in it["message"] and "/reporting" in it["message"] for it in alarms), f"no alarm: {fresh}")
    half.told["answers in api's place"] = "refused: unexpected_peer, mitm_suspected; given nothing"
    check(HONEST in until("the shop answers afterwards", half.shop.page), "the attack outlived the attacker")


def attack(environ: dict[str, str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Both halves; what was told of each, and the alarms."""
    with shop("sidecar-drill", environ) as application:
        base = application.environ.get("PYTHON_IMAGE", "python:3.13-slim")
        image = f"{application.project}-attacker"
        run("docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--tag", image, str(ATTACKER),
            env=application.environ)  # fmt: skip
        names = [f"{application.project}-{name}" for name in ("between", "impostor")]
        try:
            application.up("--build")
            first = Half(application, image, "default", "web", "api")
            plain(first)
            application.compose("down", "--timeout", "2")
            application.inject()
            application.up("--build")
            second = Half(application, image, "sidecar-mesh", "web-mesh", "api-mesh")
            meshed(second)
            alarms = [it["message"] for it in application.log("web-mesh") if it["event"] == "mitm_suspected"]
            return first.told, second.told, alarms
        finally:
            for name in (*names,):
                run("sh", "-c", f"docker rm --force {name} >/dev/null 2>&1 || true")
            run("sh", "-c", f"docker image rm {image} >/dev/null 2>&1 || true")


def main() -> int:
    try:
        first, second, alarms = attack({})
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    width = max(len(text) for text in [*first.values(), "the shop as it is"]) + 2
    print(f"{'the attacker':24}{'the shop as it is':{width}}the shop in the mesh")
    for name, text in first.items():
        print(f"{name:24}{text:{width}}{second[name]}")
    print(f"\nthe sidecar's alarm: {alarms[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
