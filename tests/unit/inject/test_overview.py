"""The whole of a mesh at a glance: who is well, who has another policy, who refused what, and what the CA knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject import overview
from sidecar.inject.composecli import Compose
from sidecar.inject.injection import OVERRIDE, inject
from tests.inject.applications import inputs

WEB: dict[str, Any] = {
    "identity": "spiffe://shop.internal/web", "certificate_until": "2026-12-01T12:00:00Z", "healthy": True, "unwell": [],
    "draining": False, "policy": "aaaa", "reload_refused": [], "trust": {"trust_bundle": "3"},
    "inbound": [{"port": "http", "may_call": []}], "refused_lately": [],
}  # fmt: skip
CA: dict[str, Any] = {"certificates": [{}, {}], "revoked": [], "sidecars that ask": [{}]}


def refusal(at: str, message: str, **more: Any) -> dict[str, Any]:
    return {"at": at, "direction": "outbound", "port": "5432", "reason": "policy_denied", "message": message} | more


def shown(ca: Mapping[str, Any] = CA, **sidecars: Mapping[str, Any]) -> list[str]:
    return overview.as_text({"sidecars": sidecars, "ca": ca}).splitlines()


def test_what_is_well_takes_two_lines() -> None:
    assert shown(web=WEB) == [
        "web  well  spiffe://shop.internal/web until 2026-12-01T12:00:00Z, policy aaaa, trust bundle 3",
        "  http may be called by: nobody",
        "CA  answers: 2 certificates that are good, 1 sidecars that ask",
    ]
    assert overview.is_well({"sidecars": {"web": WEB}, "ca": CA})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"healthy": False, "unwell": ["its certificate was revoked"]}, "  NOT WELL: its certificate was revoked"),
        ({"reload_refused": ["mesh.yaml:3: no"]}, "  REFUSED at the last reload: mesh.yaml:3: no"),
    ],
)
def test_what_is_not_well_is_told(change: dict[str, Any], line: str) -> None:
    assert line in shown(web=WEB | change)
    assert not overview.is_well({"sidecars": {"web": WEB | change}, "ca": CA})


def test_what_a_rule_that_runs_out_will_refuse_is_told() -> None:
    end = {"from": "api", "to": "web:http", "rule": "observe", "until": "2026-12-08"}
    line = "  ENDS SOON: api -> web:http is refused after 2026-12-08, when rule 'observe' runs out"
    assert line in shown(web=WEB | {"ending": [end]})
    assert line not in shown(web=WEB | {"ending": []})


def test_who_passes_a_sidecar_is_told_beside_it_and_strict_is_not_called_complete() -> None:
    ways = {"web": ["at published port 80"], "api": ["by old"]}
    open_ = WEB | {
        "inbound": [{"port": "http", "may_call": []}, {"port": "http", "may_call": [], "until": "2026-12-08"}]
    }
    found: dict[str, Any] = {"sidecars": {"web": open_, "db": open_, "api": WEB}, "ca": CA, "not_seen": ways}
    assert [line for line in overview.as_text(found).splitlines() if line.startswith(" ")] == [
        "  http may be called by: nobody",
        "  NOT SEEN, so strict is not complete: who comes at published port 80",
        "  http may be called by: nobody",
        "  http may be called by: nobody",
        "  not seen: who comes by old",
    ]


def test_who_came_in_plaintext_once_makes_the_ways_past_a_strict_port_matter() -> None:
    caller = {"port": "http", "address": "10.1.2.3", "name": "", "count": 3, "last": "12:00", "allowed": False}
    for callers, told in (([caller], "  NOT SEEN, so strict is not complete: who comes by old"), ([], "  not seen: ")):
        web = WEB | {"inbound": [{"port": "http", "may_call": [], "mode": "strict"}], "plaintext": callers}
        text = overview.as_text({"sidecars": {"web": web}, "ca": CA, "not_seen": {"web": ["by old"]}})
        assert told in text


def test_who_still_calls_in_plaintext_is_listed_and_the_callers_of_a_port_once() -> None:
    strict = {"port": "http", "may_call": ["api"], "mode": "strict", "until": None}
    open_ = {"port": "http", "may_call": ["api", "plaintext"], "mode": "permissive", "until": "2026-12-08"}
    caller = {"port": "http", "address": "10.1.2.3", "name": "old", "count": 3, "last": "12:00", "allowed": True}
    callers = [caller, caller | {"name": "", "allowed": False}, *[caller] * 9]
    lines = shown(web=WEB | {"inbound": [strict, open_], "plaintext": callers})
    assert lines[1:5] == [
        "  http may be called by: api, plaintext",
        "  PERMISSIVE: http takes plaintext until 2026-12-08",
        "  plaintext to http from 10.1.2.3 (old): 3 times, last at 12:00",
        "  plaintext to http from 10.1.2.3: 3 times, last at 12:00, refused",
    ]
    assert lines[-2] == "  plaintext from 1 more addresses: `sidecar status` there lists them"
    closed = shown(web=WEB | {"inbound": [strict, open_ | {"may_call": ["api"]}], "plaintext": callers})
    assert closed[2] == (
        "  PERMISSIVE: http takes plaintext until 2026-12-08; no rule says `from: plaintext`, so it is refused"
    )
    over = shown(web=WEB | {"inbound": [strict, open_ | {"mode": "strict"}], "plaintext": []})
    assert not any("PERMISSIVE" in line for line in over)


def test_who_does_not_answer_is_told() -> None:
    silent = {"error": 'service "api-mesh" is not running'}
    assert shown(api=silent)[0] == 'api  DOES NOT ANSWER: service "api-mesh" is not running'
    assert shown(silent, web=WEB)[-1].startswith("CA  DOES NOT ANSWER: ")
    assert not overview.is_well({"sidecars": {"api": silent}, "ca": CA})
    assert not overview.is_well({"sidecars": {"web": WEB}, "ca": silent})


def test_of_one_that_does_not_answer_the_ca_s_last_report_is_told() -> None:
    heard = [
        {"identity": f"spiffe://shop.internal/{name}", "received": "12:00", "report": {"healthy": well}}
        for name, well in (("api", True), ("api", False), ("web", True))
    ]
    found = {"sidecars": {"api": {"error": "gone"}, "web": WEB}, "ca": CA, "reports": heard}
    assert overview.as_text(found).splitlines()[:4] == [
        "api  DOES NOT ANSWER: gone",
        "  the CA heard of it last at 12:00: well",
        "  the CA heard of it last at 12:00: NOT WELL",
        "web  well  spiffe://shop.internal/web until 2026-12-01T12:00:00Z, policy aaaa, trust bundle 3",
    ]
    assert not overview.is_well(found)


def test_whoever_has_another_policy_or_bundle_is_named() -> None:
    other = WEB | {"policy": "bbbb", "trust": {"trust_bundle": "4"}}
    lines = shown(a=WEB, b=WEB, c=other, d={"error": "gone"})
    assert "another policy than the others' aaaa: c (bbbb)" in lines
    assert "another trust bundle than the others' 3: c (4)" in lines
    assert not any("another" in line for line in shown(a=WEB, b=WEB))


def test_refusals_that_are_alike_are_one_line_with_the_newest() -> None:
    lately = [refusal("12:02", "new"), refusal("12:01", "other", port="6379"), refusal("12:00", "old")]
    assert [line for line in shown(web=WEB | {"refused_lately": lately}) if "refused" in line] == [
        "  refused 2 times, last at 12:02: policy_denied: new",
        "  refused at 12:01: policy_denied: other",
    ]


def test_what_the_ca_has_revoked() -> None:
    revoked = [{"identity": "spiffe://shop.internal/web", "issued before": "12:00"}]
    assert shown(CA | {"revoked": revoked}, web=WEB)[-1] == (
        "  revoked: spiffe://shop.internal/web, all issued before 12:00"
    )


def test_everybody_is_asked_in_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    injection = inject(
        inputs({"web": {}, "db": {"expose": ["1"], "depends_on": ["old"]}, "old": {"x-mesh": {"mesh": False}}})
    )
    for name, text in injection.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    asked = []

    def run(_self: Compose, files: Sequence[Path], _environ: Mapping[str, str], *arguments: str) -> str:
        assert [path.name for path in files] == ["compose.yaml", OVERRIDE]
        asked.append(arguments)
        if "db-mesh" in arguments:
            raise UsageError("docker compose exec: first\ndocker compose exec: it is not running")
        if "reports" in arguments:
            return json.dumps({"reports": [{"identity": "x"}]})
        return json.dumps(CA if "certs" in arguments else WEB)

    monkeypatch.setattr(Compose, "run", run)
    found = overview.collect(tmp_path, {}, Compose(("compose",), (9, 9, 9)))
    assert found["sidecars"] == {"db": {"error": "docker compose exec: it is not running"}, "web": WEB}
    assert found["ca"] == CA
    assert found["reports"] == [{"identity": "x"}]
    assert found["not_seen"] == {"db": ["by old, not in the mesh (the app calls it)"]}
    assert overview.not_seen(tmp_path) == found["not_seen"]  # the dashboard's
    assert sorted(asked) == [
        ("exec", "-T", "db-mesh", "sidecar", "status", "--json"),
        ("exec", "-T", "mesh-ca", "certs", "list", "/var/lib/mesh-ca", "--json"),
        ("exec", "-T", "mesh-ca", "certs", "reports", "/var/lib/mesh-ca", "--json"),
        ("exec", "-T", "web-mesh", "sidecar", "status", "--json"),
    ]


def test_elsewhere_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run this where `sidecar inject` was run"):
        overview.collect(tmp_path, {})


class Streaming(Compose):
    """Answers in blocks."""

    def stream(self, files: Sequence[Path], environ: Mapping[str, str], *arguments: str) -> Any:
        yield from (f"{[file.name for file in files]} {arguments}".encode(), b"\n")


def test_alarms_are_asked_of_the_ca_and_come_as_they_come(tmp_path: Path) -> None:
    given = inputs({"web": {"links": ["db:x"]}, "db": {"expose": ["1"]}})
    (tmp_path / OVERRIDE).write_text(inject(given).files[OVERRIDE])
    compose = Streaming(("docker", "compose"), (2, 40, 0))
    said = b"".join(overview.alarms(tmp_path, {}, ["--follow"], compose)).decode()
    assert said.startswith(f"['compose.yaml', '{OVERRIDE}'] ")
    assert "('exec', '-T', 'mesh-ca', 'certs', 'alarms', '/var/lib/mesh-ca', '--follow')" in said


def test_alarms_of_no_project(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run this where `sidecar inject` was run"):
        overview.alarms(tmp_path, {}, [])


def test_the_dashboard_asks_the_ca_for_lines_of_json(tmp_path: Path) -> None:
    given = inputs({"web": {"links": ["db:x"]}, "db": {"expose": ["1"]}})
    (tmp_path / OVERRIDE).write_text(inject(given).files[OVERRIDE])
    _, words = overview.looking(tmp_path, {}, Mounting(("docker", "compose"), (2, 40, 0)))
    assert words[:2] == ["docker", "compose"]
    assert words[-7:] == ["exec", "-T", "mesh-ca", "python", "-m", "certs.protocol.looking", "/var/lib/mesh-ca"]
    with pytest.raises(UsageError, match="run this where `sidecar inject` was run"):
        overview.looking(tmp_path / "elsewhere", {})


class Mounting(Compose):
    """Its configuration mounts what ``mounts`` says into the CA's container."""

    mounts: Any = ()

    def config(self, _files: Sequence[Path], _environ: Mapping[str, str]) -> Any:
        if self.mounts is None:
            raise UsageError("Compose reports: no")
        return {"services": {"mesh-ca": {"volumes": self.mounts}}}, ()


def test_the_ca_s_directory_is_asked_there_only_if_it_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs({"web": {"links": ["db:x"]}, "db": {"expose": ["1"]}})
    (tmp_path / OVERRIDE).write_text(inject(given).files[OVERRIDE])
    ca = tmp_path / "ca"
    ca.mkdir(0o700)
    state = {"type": "bind", "source": str(ca), "target": "/var/lib/mesh-ca"}
    other = {"type": "bind", "source": str(tmp_path), "target": "/etc/mesh"}

    def found(*mounts: Any) -> Path | None:
        monkeypatch.setattr(Mounting, "mounts", mounts)
        return overview.looking(tmp_path, {}, Mounting(("docker", "compose"), (2, 40, 0)))[0]

    assert found(other, state) == ca
    assert found(other) is None
    assert found(state, state) is None
    assert found({**state, "type": "volume"}) is None
    assert found({**state, "source": str(tmp_path / "elsewhere")}) is None
    assert found("short") is None
    ca.chmod(0o770)
    assert found(state) is None
    ca.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert found(state) is None
    monkeypatch.undo()
    monkeypatch.setattr(Mounting, "mounts", None)
    assert overview.looking(tmp_path, {}, Mounting(("docker", "compose"), (2, 40, 0)))[0] is None
