"""From inside of the apps' containers: no other service can be reached but through sidecars, and as the policy says.

The twin of each, that in the plain shop it can, is in ``conftest.mesh``; or stands beside it here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.ask import REACH
from tests.e2e.engine import ROOT, Application, docker, until
from tests.e2e.figures import APPS, FIGURES, TAKEN

PORTS = {"web": 8000, "api": 8000, "db": 5432, "cache": 6379}

ALLOWED = {("web", "api"), ("reporting", "api"), ("api", "db"), ("api", "cache")}

FRAMES = """
import socket, struct, sys, time
router, target, port, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
def mac_of(address):
    for _ in range(30):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"?", (address, 9))
        for line in open("/proc/net/arp"):
            words = line.split()
            if words[0] == address and words[3] != "00:00:00:00:00:00":
                return bytes.fromhex(words[3].replace(":", "")), words[5]
        time.sleep(0.1)
    raise SystemExit("no such neighbour")
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
mac, device = mac_of(router)
own = bytes.fromhex(open(f"/sys/class/net/{device}/address").read().strip().replace(":", ""))
ends = socket.inet_aton(source) + socket.inet_aton(target)
tcp = struct.pack("!HHIIBBHHH", 45678, port, 1, 0, 0x50, 2, 65535, 0, 0)
tcp = tcp[:16] + struct.pack("!H", checksum(ends + struct.pack("!BBH", 0, 6, 20) + tcp)) + tcp[18:]
ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ends
ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
s.bind((device, 0x0800))
s.settimeout(0.3)
end = time.time() + 2
while time.time() < end:
    s.send(mac + own + struct.pack("!H", 0x0800) + ip + tcp)
    try:
        frame = s.recv(2000)
    except TimeoutError:
        continue
    if frame[26:34] == ends[4:] + ends[:4] and frame[23] == 6 and frame[14 + 20 + 13] & 0x12 == 0x12:
        print("answered")
        break
else:
    print("silence")
"""
"""Opens a TCP connection by frames to a neighbour's MAC address, whatever the IP address in them."""


def test_the_shop_works(mesh: Application) -> None:
    assert "teapot costs 49.90" in mesh.page()


@pytest.mark.parametrize("caller", APPS)
def test_by_name_only_whom_the_policy_allows(mesh: Application, caller: str) -> None:
    for callee, port in PORTS.items():
        if callee != caller:
            found = _reach(mesh, caller, callee, port)
            assert (found == "open") == ((caller, callee) in ALLOWED), (caller, callee, found)


def test_a_refusal_says_why(mesh: Application) -> None:
    _reach(mesh, "reporting", "db", 5432)
    told = mesh.logged("reporting-mesh", lambda it: it["event"] == "connection" and it["upstream"] == "db:5432")
    assert {(it["decision"], it["reason"]) for it in told} == {("deny", "policy_denied")}


def test_by_address_nobody(mesh: Application) -> None:
    """Every address of every other container, app or sidecar, but that of one's own sidecar on one's own network."""
    addresses = {name: _addresses(mesh, name) for name in (*APPS, *(f"{app}-mesh" for app in APPS), "mesh-ca")}
    for caller in ("web", "reporting"):
        mine = {network for network in addresses[caller] if network in addresses[f"{caller}-mesh"]}
        targets = [
            (address, port)
            for name, found in addresses.items()
            for network, address in found.items()
            if name != caller and network not in mine
            for port in (8443 if name == "mesh-ca" else PORTS.get(name.removesuffix("-mesh"), 15000),)
        ]
        assert len(targets) >= 12
        found = _reach_all(mesh, caller, targets)
        assert "open" not in found.values(), (caller, found)
        # The twin: the same way of asking finds what is there: its own sidecar, in api's name.
        assert _reach_all(mesh, caller, [("api", 8000)]) == {"api:8000": "open"}


def test_by_the_gateway_nobody(mesh: Application) -> None:
    gateways = {
        str(it["Gateway"])
        for name in (*APPS, *(f"{app}-mesh" for app in APPS))
        for it in mesh.inspect(name)["NetworkSettings"]["Networks"].values()
        if it["Gateway"]
    }
    ports = [port for port in (5432, 6379, 8000, 8443, 15000) if port not in TAKEN]
    targets = [(gateway, port) for gateway in sorted(gateways) for port in ports]
    assert len(ports) > 1
    found = _reach_all(mesh, "web", targets)
    assert "open" not in found.values(), found


def test_by_frames_to_the_sidecar_as_a_router_nobody(mesh: Application) -> None:
    router, source = mesh.address("web-mesh", "web-private"), mesh.address("web", "web-private")
    assert _frames(mesh, router, router, 8000, source) == "answered"  # the twin: frames do arrive
    for name, network, port in (
        ("api-mesh", "sidecar-mesh", 8000),
        ("mesh-ca", "sidecar-mesh", 8443),
        ("api", "api-private", 8000),
        ("db", "db-private", 5432),
    ):
        assert _frames(mesh, router, mesh.address(name, network), port, source) == "silence", name


def test_without_its_sidecar_a_service_is_unreachable_and_not_plaintext(mesh: Application) -> None:
    mesh.compose("stop", "--timeout", "5", "api-mesh")
    try:
        assert "cannot be reached" in mesh.page()
        assert _reach(mesh, "web", "api", 8000, 9) != "open"  # its own sidecar looks for the other for 5 s
        assert _reach(mesh, "web", mesh.address("api", "api-private"), 8000) != "open"
    finally:
        mesh.compose("start", "api-mesh")
    until("api is back", lambda: "costs" in mesh.page())


def test_and_without_that_of_the_caller(mesh: Application) -> None:
    mesh.compose("stop", "--timeout", "5", "web-mesh")
    try:
        assert "cannot be reached" in mesh.page()
    finally:
        mesh.compose("start", "web-mesh")
    until("web is back", lambda: "costs" in mesh.page())


def test_secrets_are_their_sidecars_alone(mesh: Application) -> None:
    state = str(mesh.state)
    secrets = {}
    for app in APPS:
        assert [it for it in mesh.inspect(app)["Mounts"] if it["Source"].startswith(state)] == []
        found = mesh.call(app, "sh", "-c", "ls /run/secrets /var/lib/sidecar /etc/mesh 2>/dev/null || true")
        assert found.strip() == ""
        mounts = {it["Source"] for it in mesh.inspect(f"{app}-mesh")["Mounts"] if it["Source"].startswith(state)}
        assert mounts == {f"{state}/enrolment/{app}", f"{state}/sidecars/{app}", f"{state}/trust"}
        secrets[app] = mesh.call(f"{app}-mesh", "cat", "/etc/mesh-enrolment/secret")
    assert len(set(secrets.values())) == len(APPS)
    held = mesh.call("mesh-ca", "ls", "/var/lib/mesh-ca").split()
    assert "issuing.key" in held
    assert "root.key" not in held, "not needed to issue"
    for path in [mesh.state, *mesh.state.rglob("*")]:
        if path.name not in ("root.pem", "issuing.pem", "bundle.json", "trust-domain"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_sidecar_has_no_capability_and_cannot_write_but_to_its_state(mesh: Application) -> None:
    for name in ("api-mesh", "mesh-ca"):
        status = mesh.call(name, "cat", "/proc/1/status")
        assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
        assert "NoNewPrivs:\t1" in status
        assert "ok" not in mesh.call(name, "sh", "-c", "touch /opt/x 2>/dev/null && echo ok || true")
    assert "NoNewPrivs:\t0" in mesh.call("api", "cat", "/proc/1/status")


def test_status_and_health(mesh: Application) -> None:
    assert mesh.call("api-mesh", "sidecar", "health").strip() == "well"
    told = json.loads(mesh.call("api-mesh", "sidecar", "status", "--json"))
    assert told["identity"] == "spiffe://sidecar-e2e.internal/api"
    assert told["inbound"][0]["may_call"] == ["reporting", "web"]
    # Every hop shows: who called api last, and whom reporting was refused.
    assert [it["reason"] for it in told["ended"] if it["direction"] == "inbound"] == ["ok"]
    refused = json.loads(mesh.call("reporting-mesh", "sidecar", "status", "--json"))["refused_lately"]
    assert refused[0]["reason"] == "policy_denied"
    assert "db:5432" in refused[0]["message"]


def _reach(mesh: Application, caller: str, host: str, port: int, seconds: float = 0.5) -> str:
    return mesh.python(caller, REACH, host, str(port), str(seconds)).strip()


_MANY = """
import json, socket, sys, threading
found = {}
def ask(word):
    host, port = word.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 2).close()
        found[word] = "open"
    except OSError as error:
        found[word] = str(error)
asking = [threading.Thread(target=ask, args=[word]) for word in sys.argv[1:]]
[it.start() for it in asking]
[it.join() for it in asking]
print(json.dumps(found))
"""


def _reach_all(mesh: Application, caller: str, targets: list[tuple[str, int]]) -> dict[str, str]:
    """For each, "open" if it accepts a connection, or why not."""
    return dict(json.loads(mesh.python(caller, _MANY, *(f"{host}:{port}" for host, port in targets))))


def _frames(mesh: Application, router: str, target: str, port: int, source: str) -> str:
    container = mesh.container("web")
    return docker("exec", "--user", "0", container, "python3", "-c", FRAMES, router, target, str(port), source).strip()


def _addresses(mesh: Application, service: str) -> dict[str, str]:
    networks = mesh.inspect(service)["NetworkSettings"]["Networks"]
    return {name: str(it["IPAddress"]) for name, it in networks.items() if it["IPAddress"]}


def said(mesh: Application, code: int, *command: str) -> dict[str, Any]:
    """What `sidecar COMMAND --json` says in the project's directory, run as a person does."""
    environ = mesh.environ | {"PYTHONPATH": str(ROOT)}
    words = (sys.executable, "-m", "sidecar", *command, "--json")
    done = subprocess.run(
        words, env=environ, cwd=mesh.directory, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def verified(mesh: Application, code: int) -> dict[str, Any]:
    return said(mesh, code, "verify")


def test_a_connection_is_explained_from_both_ends_logs(mesh: Application) -> None:
    mesh.page()
    of_web = {"event": "connection", "direction": "inbound", "peer_id": "spiffe://sidecar-e2e.internal/web"}
    wanted = mesh.logged("api-mesh", lambda it: it.items() >= of_web.items() and it["connection_id"])[-1]
    (one,) = said(mesh, 0, "explain", wanted["connection_id"])["connections"]
    assert (one["caller"], one["target"].partition(":")[0]) == ("web", "api")
    assert [(end["direction"], end["service"]) for end in one["ends"]] == [("outbound", "web"), ("inbound", "api")]
    assert {end["rule"] for end in one["ends"]} == {wanted["rule"]}


def test_verify_proves_all_of_this_and_asks_no_app(mesh: Application) -> None:
    report = verified(mesh, 0)
    edges = {one["subject"] for one in report["checks"] if one["kind"] == "edge"}
    assert edges == {f"{caller} -> {callee}:{PORTS[callee]}" for caller, callee in ALLOWED}
    assert {one["kind"] for one in report["checks"]} >= {"revoked certificate", "valid identity, no rule", "policy"}
    FIGURES["sidecar verify, of the whole shop"] = f"{len(report['checks'])} checks in {report['seconds']:.1f} s"


def test_verify_finds_an_app_that_is_published_beside_its_sidecar(mesh: Application) -> None:
    file = mesh.directory / "compose.yaml"
    before = file.read_text()
    file.write_text(before.replace('expose: ["8000"]', 'expose: ["8000"]\n    ports: ["127.0.0.1:0:8000"]'))
    try:
        report = verified(mesh, 1)
    finally:
        file.write_text(before)
    failed = [one for one in report["checks"] if one["status"] != "ok"]
    assert len(failed) == 1, failed
    (check,) = failed
    assert (check["kind"], check["subject"]) == ("app beside its sidecar", "api's app")
