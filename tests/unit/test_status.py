"""What `sidecar status` says, of a sidecar that is well and of one that is not."""

from __future__ import annotations

from datetime import timedelta

from tests.certificates import Authority

from sidecar.config import parse_config
from sidecar.identity import parse_svid
from sidecar.mesh import parse_mesh
from sidecar.status import Standing, as_text, describe
from sidecar.tally import Tally

AUTHORITY = Authority()
NOW = AUTHORITY.now
MESH = parse_mesh(
    """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
policy:
  - {from: [web, "spiffe://shop.internal/batch/*"], to: "api:http"}
  - {from: web, to: "api:metrics", mode: dry-run}
""",
    "mesh.yaml",
)
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


def standing(**changed: object) -> Standing:
    live = [("inbound", "spiffe://shop.internal/web", "http")] * 2
    fields = {"live": live, "unwell": (), "trust": {}, "draining": False, **changed}
    return Standing(config=CONFIG, mesh=MESH, svid=SVID, **fields)  # type: ignore[arg-type]


def test_who_it_is_and_who_may_reach_it() -> None:
    said = describe(NOW, standing(), Tally())
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


def test_for_people() -> None:
    text = as_text(describe(NOW, standing(trust={"trust_bundle": "7 with 1 roots"}), Tally()))
    assert "api  spiffe://shop.internal/api  certificate until" in text
    assert "may call: web, spiffe://shop.internal/batch/*" in text
    assert "may call: nobody" in text
    assert "DENIED by the policy" in text
    assert "trust bundle 7 with 1 roots" in text
    assert "refused lately: none" in text
    assert "NOT WELL" not in text


def test_what_is_wrong_comes_first_and_the_newest_refusal_before_older_ones() -> None:
    tally = Tally()
    base = {"direction": "inbound", "port": "http", "decision": "deny", "bytes_to_app": 0, "bytes_from_app": 0}
    for at, reason in (("t1", "expired"), ("t2", "revoked")):
        tally.add({**base, "upstream": None, "reason": reason, "message": f"refused: {reason}"}, at)
    said = describe(NOW, standing(unwell=("its certificate ended",), draining=True), tally)
    assert (said["healthy"], said["draining"]) == (False, True)
    assert [one["reason"] for one in said["refused_lately"]] == ["revoked", "expired"]
    text = as_text(said)
    assert "NOT WELL: its certificate ended" in text.splitlines()[1]
    assert "draining" in text
    assert text.index("refused: revoked") < text.index("refused: expired")
