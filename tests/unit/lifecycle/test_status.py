"""What `sidecar status` says, of a sidecar that is well and of one that is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sidecar.config.wiring import parse_config
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import parse_svid
from sidecar.lifecycle.status import CurrentState, as_text, describe
from sidecar.observe.metrics import Metrics
from sidecar.observe.plaintext import PlaintextCallers
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.ending import Ending
from sidecar.policy.mesh import Mesh, parse_mesh
from tests.beds.certificates import Authority

AUTHORITY = Authority()
NOW = AUTHORITY.now
MESH_TEXT = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
policy:
  - {from: [web, "spiffe://shop.internal/batch/*"], to: "api:http"}
  - {from: web, to: "api:metrics", mode: dry-run}
"""
MESH = parse_mesh(MESH_TEXT, "mesh.yaml")
CONFIG = parse_config(
    """\
service: api
mesh: mesh.yaml
identity: {files: {certificate: c, key: k, bundle: b}}
inbound:
  - {port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:8081", tolerate_missing_close_notify: true}
  - {port: metrics, listen: "0.0.0.0:9090", app: "127.0.0.1:9091"}
outbound:
  - {to: "db:5432", listen: "127.0.0.1:5432", peers: ["db.mesh:5432"]}
""",
    "sidecar.yaml",
    {},
    MESH,
)
SVID = parse_svid(AUTHORITY.leaf("api").der)


def state(mesh: Mesh = MESH, **changed: object) -> CurrentState:
    live = [("inbound", "spiffe://shop.internal/web", "http")] * 2
    fields = {"live": live, "unwell": (), "trust": {}, "draining": False}
    fields |= {"started_at": NOW, "strangers": 0, "max_strangers": 256, "log_lost": 0, **changed}
    return CurrentState(config=CONFIG, mesh=mesh, svid=SVID, **fields)  # type: ignore[arg-type]


def test_who_it_is_and_who_may_reach_it() -> None:
    said = describe(NOW, state(), Metrics())
    assert (said["service"], said["identity"], said["healthy"]) == ("api", "spiffe://shop.internal/api", True)
    assert said["certificate_until"] == f"{NOW + timedelta(hours=1):%FT%TZ}"
    http, metrics = said["inbound"]
    assert http["may_call"] == ["web", "spiffe://shop.internal/batch/*"]
    assert metrics["may_call"] == [], "a rule that is only tried lets nobody in"
    assert (http["tolerates_missing_close_notify"], metrics["tolerates_missing_close_notify"]) == (True, False)
    assert [(one["to"], one["allowed"]) for one in said["outbound"]] == [("db:5432", False)]
    assert said["connected"] == [
        {"direction": "inbound", "peer": "spiffe://shop.internal/web", "port": "http", "connections": 2}
    ]


def may_call(policy: str) -> list[str]:
    """Who may call ``api:http``, as status lists them."""
    head, _, _ = MESH_TEXT.partition("policy:\n")
    said = describe(NOW, state(parse_mesh(f"{head}policy:\n{policy}", "mesh.yaml")), Metrics())
    found: list[str] = said["inbound"][0]["may_call"]
    return found


BATCH = "spiffe://shop.internal/batch/*"


def test_a_caller_whose_rule_ran_out_is_not_listed() -> None:
    today, yesterday = (f"{NOW - timedelta(days=days):%F}" for days in (0, 1))
    assert may_call(f'  - {{from: [web, "{BATCH}"], to: api, until: {today}}}\n') == ["web", BATCH]
    assert may_call(f'  - {{from: [web, "{BATCH}"], to: api, until: {yesterday}}}\n') == []


def test_a_caller_that_a_deny_rule_refuses_is_not_listed() -> None:
    allowed = f'  - {{from: [web, db, "{BATCH}"], to: api}}\n'
    assert may_call(allowed) == ["web", "db", BATCH]
    assert may_call(f'{allowed}  - {{from: [web, "{BATCH}"], to: "api:http", action: deny}}\n') == ["db"]


def test_for_people() -> None:
    text = as_text(describe(NOW, state(trust={"trust_bundle": "7 with 1 roots"}), Metrics()))
    assert "api  spiffe://shop.internal/api  certificate until" in text
    assert "may call: web, spiffe://shop.internal/batch/*" in text
    assert "may call: none" in text
    assert "DENIED by the policy" in text
    assert "trust bundle 7 with 1 roots" in text
    assert "refused lately: none" in text
    assert "sidecar explain" not in text
    assert "NOT WELL" not in text


def test_what_is_wrong_comes_first_and_the_newest_refusal_before_older_ones() -> None:
    metrics = Metrics()
    for at, reason in (("t1", Reason.EXPIRED), ("t2", Reason.REVOKED)):
        record = ConnectionRecord("inbound", "api", "http", 0.0)
        record.refuse(Refused(reason, f"met something {reason}"))
        record.connection_id = "9ff9410d905a0f96" if reason is Reason.REVOKED else None
        metrics.add(record, at)
    waiting = ["s.yaml: outbound[0].listen: closed"]
    refused = ["mesh.yaml:3: no"]
    wrong = state(unwell=("its certificate ended",), draining=True, waiting=waiting, reload_refused=refused)
    said = describe(NOW, wrong, metrics)
    assert (said["healthy"], said["draining"], said["waiting"]) == (False, True, waiting)
    assert [one["reason"] for one in said["refused_lately"]] == ["revoked", "expired"]
    text = as_text(said)
    assert "NOT WELL: its certificate ended" in text.splitlines()[1]
    assert "draining" in text
    assert "  REFUSED at the last reload: mesh.yaml:3: no" in text.splitlines()
    assert f"  policy version {MESH.version}" in text.splitlines()
    assert "  waiting: s.yaml: outbound[0].listen: closed" in text.splitlines()
    assert text.index("met something revoked") < text.index("met something expired")
    assert "met something revoked (id 9ff9410d905a0f96)\n" in text
    assert "met something expired\n" in text
    assert "  `sidecar explain` says of each reason" in text


def test_strangers_and_what_the_log_lacks_are_told_where_there_are_any() -> None:
    metrics = Metrics()
    text = as_text(describe(NOW, state(), metrics))
    assert not any(word in text for word in ("folded", "strangers", "LOST"))
    metrics.folded = 7
    said = describe(NOW, state(strangers=5, log_lost=3), metrics)
    assert (said["log"], said["strangers"]) == ({"folded": 7, "lost": 3}, {"now": 5, "limit": 256})
    assert as_text(said).splitlines()[-3:] == [
        "and 7 strangers' connections, folded into summaries in the log",
        "strangers now: 5 of at most 256 connections without a proved identity",
        "3 lines of the log were LOST, since nobody read them or the disk was full",
    ]
    del said["log"], said["strangers"], said["channels"]
    assert as_text(said), "as an older sidecar answers"


def test_kept_channels_are_told_where_there_are_any() -> None:
    metrics = Metrics()
    assert "kept" not in as_text(describe(NOW, state(), metrics))
    for reused in (False, True, True):
        record = ConnectionRecord("outbound", "web", "http", 0.0, upstream="api:http", channel_id="c", reused=reused)
        metrics.let_in(record, record.started, stream=True)
    said = describe(NOW, state(idle_channels=1), metrics)
    assert said["channels"] == {"idle": 1, "streams": 3, "reused": 2}
    assert as_text(said).splitlines()[-1] == "kept channels: 1 idle now; 2 of 3 connections needed no handshake"


def test_what_ends_soon() -> None:
    ending = Ending("web", "api:http", "observe", NOW.date())
    said = describe(NOW, state(ending=(ending,)), Metrics())
    assert said["ending"] == [{"from": "web", "to": "api:http", "rule": "observe", "until": str(NOW.date())}]
    line = f"  ENDS SOON: web -> api:http is refused after {NOW.date()}, when rule 'observe' runs out"
    assert line in as_text(said).splitlines()
    assert "ENDS SOON" not in as_text(describe(NOW, state(), Metrics()))


def test_a_permissive_port_and_who_speaks_plaintext_to_it() -> None:
    callers = PlaintextCallers()
    callers.note("http", "10.0.0.7:1", NOW, allowed=True)
    callers.note("http", "10.0.0.8:1", NOW, allowed=False)
    callers.name(callers.current()[0], "old.internal")
    last = NOW.date() + timedelta(days=1)
    permissive = replace(CONFIG, inbound=(replace(CONFIG.inbound[0], mode="permissive", until=last), CONFIG.inbound[1]))
    mesh = parse_mesh(MESH_TEXT + '  - {from: plaintext, to: "*"}\n', "mesh.yaml")
    now = replace(state(mesh, plaintext=callers.current()), config=permissive)
    said = describe(NOW, now, Metrics())
    assert [(one["mode"], one["until"], "plaintext" in one["may_call"]) for one in said["inbound"]] == [
        ("permissive", str(last), True),
        ("strict", None, False),
    ]
    assert [(one["address"], one["name"], one["allowed"]) for one in said["plaintext"]] == [
        ("10.0.0.7", "old.internal", True),
        ("10.0.0.8", "", False),
    ]
    text = as_text(said)
    assert f"  PERMISSIVE: http takes plaintext until {last}; who speaks it is cut then" in text
    at = f"last {NOW:%FT%TZ}"
    assert f"plaintext callers:\n  http  10.0.0.7 (old.internal)  1 connection  {at}  let in\n" in text
    assert f"  http  10.0.0.8                 1 connection  {at}  REFUSED" in text
    unruled = replace(state(parse_mesh(MESH_TEXT, "mesh.yaml")), config=permissive)
    told = f"  PERMISSIVE: http takes plaintext until {last}; no rule says `from: plaintext`, so it is refused"
    assert told in as_text(describe(NOW, unruled, Metrics())), "the twin"
    later = describe(NOW + timedelta(days=2), now, Metrics())["inbound"][0]
    assert (later["mode"], later["until"], "plaintext" in later["may_call"]) == ("strict", str(last), False)
    assert "PERMISSIVE" not in as_text(describe(NOW + timedelta(days=2), now, Metrics()))
