"""The man-in-the-middle drill: one attacker against the same shop, first as it is, then in the mesh. Asserts both halves.

    make drill

The attacker is a container on the network between web and api, with Docker's default capabilities. By ARP spoofing it gets
between them, reads, alters, and answers in api's place. Against the plain shop it must succeed, otherwise the drill proves
nothing. Exit code 1, with a sentence, if either half fails.
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
sys.path.insert(0, str(ROOT))  # it runs as a file: this directory is not in a package

from tests.e2e.engine import Application, EngineError, docker, run, shop, until  # noqa: E402

ATTACKER = Path(__file__).parent / "attacker"
PASSWORD = "web:correct-horse"  # the demo's
HONEST, CHANGED = "costs 49.90", "costs 00.01"


@dataclass
class Half:
    """One of the two shops under attack. ``web`` and ``api`` are the containers at the two ends of the attacked network."""

    shop: Application
    image: str
    network: str
    web: str
    api: str
    results: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, str]:
        return self.shop.address(self.web, self.network), self.shop.address(self.api, self.network)

    def attacker(self, name: str, *command: str, mounts: tuple[str, ...] = ()) -> str:
        """Starts an attacker on the network. Its kernel does not forward packets: between.py does."""
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
        """An unused address of the network."""
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
    """Stops an attacker; returns its last line."""
    docker("stop", "--time", "5", container)
    last = lines(container)[-1]
    docker("rm", container)
    return last


def carried(half: Half, mode: str, wanted: str) -> tuple[str, dict[str, Any]]:
    """The page that web's customer gets during an attack, once it contains ``wanted`` (or the last one), and the result."""
    container = half.between(mode)
    page = ""

    def seen() -> bool:
        nonlocal page
        was_between = any(it["event"] == "between" for it in lines(container))
        page = half.page()
        return was_between and wanted in page

    with contextlib.suppress(EngineError):  # the caller asserts the page
        until("the page", seen, 12)
    return page, ended(container)


def check(condition: bool, sentence: str) -> None:
    if not condition:
        raise EngineError(f"the drill failed: {sentence}")


def diverted(
    half: Half, *identity: str, mounts: tuple[str, ...] = ()
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Diverts connections to an impostor in api's place. Returns the page, the impostor's records, and the result."""
    impostor = half.fake(*identity, mounts=mounts)
    address = docker(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", impostor
    ).strip()
    container = half.between("divert", address, half.ghost())
    page = ""

    def is_called() -> bool:
        nonlocal page
        page = half.page()
        return any(it["event"] == "connection" for it in lines(impostor))

    until("the impostor is called", is_called, 20)
    records = [it for it in lines(impostor) if it["event"] == "connection"]
    result = ended(container)
    docker("rm", "--force", impostor)
    return page, records, result


def plain(half: Half) -> None:
    """The attacker must succeed."""
    check(HONEST in half.page(), "the plain shop does not answer")
    page, result = carried(half, "watch", HONEST)
    check(HONEST in page, f"the page, while being read, is {page}")
    check(PASSWORD in result["passwords"], f"the password was not read: {result}")
    half.results["reads"] = f"password {result['passwords'][0]}, {result['prices'][0]}"
    page, result = carried(half, "change", CHANGED)
    check(CHANGED in page and result["changed"] > 0, f"the price was not changed: {page}; {result}")
    half.results["changes the price"] = page
    page, records, _ = diverted(half)
    check(
        CHANGED in page and any(PASSWORD_HEADER in it["got"] for it in records),
        f"the impostor was not accepted: {page}; {records}",
    )
    half.results["answers in api's place"] = f"accepted, and received the password: {page}"


PASSWORD_HEADER = "Authorization: Basic "


def meshed(half: Half) -> None:
    """The attacker must fail."""
    check(HONEST in until("the meshed shop answers", half.shop.page), "the meshed shop does not answer")
    page, result = carried(half, "watch", HONEST)
    check(HONEST in page, f"the page, while being watched, is {page}")
    kinds = result["kinds"]
    check(result["frames"] > 0 and kinds["tls"] > 0, f"the attacker was not between: {result}")
    check(not result["passwords"] and not result["prices"], f"something could be read: {result}")
    half.results["reads"] = f"ciphertext: {result['sample'][:32]}…"

    before = len(half.shop.log(half.web))
    page, result = carried(half, "change", HONEST)
    check(HONEST in page and CHANGED not in page and result["changed"] == 0, f"the price was changed: {page}; {result}")
    page, result = carried(half, "flip", "cannot be reached")
    check(result["changed"] > 0, f"nothing was altered: {result}")
    check(HONEST not in page and "costs" not in page, f"an altered answer arrived: {page}")
    fresh = half.shop.log(half.web)[before:]
    broken = {it["reason"] for it in fresh if it["event"] == "connection"} - {"ok"}
    check("truncated" in broken, f"no connection broke: {fresh}")
    half.results["changes the price"] = f"one bit altered: the connection breaks ({', '.join(sorted(broken))})"

    stolen = f"{half.shop.state}/sidecars/reporting:/stolen:ro"
    before = len(half.shop.log(half.web))
    page, records, result = diverted(half, "/stolen/identity.pem", mounts=(stolen,))
    check(result["diverted"] > 0 and "costs" not in page, f"the impostor was accepted: {page}; {records}")
    check(not any(it["got"] for it in records), f"the impostor received data: {records}")
    fresh = half.shop.log(half.web)[before:]
    reasons = {it["reason"] for it in fresh if it["event"] == "connection"}
    alarms = [it for it in fresh if it["event"] == "mitm_suspected"]
    check("unexpected_peer" in reasons, f"the impostor was refused with {reasons}")
    check(any("spiffe://" in it["message"] and "/reporting" in it["message"] for it in alarms), f"no alarm: {fresh}")
    half.results["answers in api's place"] = "refused: unexpected_peer, mitm_suspected; received nothing"
    check(HONEST in until("the shop answers afterwards", half.shop.page), "the attack outlived the attacker")


def attack(environ: dict[str, str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Runs both halves; returns the results of each, and the alarms."""
    with shop("sidecar-drill", environ) as application:
        base = application.environ.get("PYTHON_IMAGE", "python:3.14-slim")
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
            return first.results, second.results, alarms
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
