"""A mesh.yaml and a sidecar.yaml to vary, and how to read what came of it: its values, or the lines of its mistakes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sidecar.config.sidecar_yaml import Config
from sidecar.config.wiring import parse_config
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh, parse_mesh

MESH_TEXT = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
  cache: {ports: 6379}
  job:
policy:
  - {from: web, to: "api:http"}
  - {from: api, to: db, until: 2027-01-31}
"""
MESH = parse_mesh(MESH_TEXT, "etc/mesh.yaml")

FULL = """\
service: api
mesh: mesh.yaml
identity:
  ca: https://ca:8443
  root: root.pem
  enrolment: /run/secrets/api.enrol
  state_dir: /var/lib/sidecar
inbound:
  - {port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:8081", require_alpn: true, idle_timeout: 5m, max_age: 1h}
  - {port: metrics, listen: "[::1]:9090", app: [localhost:9091, "[::1]:9091"], tolerate_missing_close_notify: true}
outbound:
  - {to: "db:5432", listen: "127.0.0.1:5432", peers: ["db.mesh:5432", "10.0.0.7:5432"]}
  - {to: cache, listen: "172.30.5.2:6379", allow_from: [172.30.5.0/26, "fd00::/8"], peers: "cache.mesh:6379", device: eth1,
     require_alpn: true, tolerate_missing_close_notify: true, idle_timeout: 1m, max_age: 2h}
admin: {listen: "127.0.0.1:15000"}
timeouts: {handshake: 1s, connect: 2s, drain: 3s}
limits: {connections: 5}
log_format: json
"""

HEAD = "service: api\nmesh: mesh.yaml\nidentity: {files: {certificate: c.pem, key: k.pem, bundle: b.pem}}\n"

# Every key and every shorthand that the schemas must know.
WHOLE_MESH = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}, dev: {app: {http: 8081}, calls: {"api:http": 18080}}}
  api: {ports: {http: 8080, metrics: 9090}, dev: {app: , calls: }}
  db: {ports: 5432, dev: }
  cache: {ports: }
  "5": {}
  job:
policy:
  - {name: one, from: [web, "*"], to: ["api:http", db], action: allow, mode: dry-run, until: 2027-01-31}
  - {from: "spiffe://shop.internal/batch/*", to: "*", action: deny, mode: enforce}
tests:
  - {from: "spiffe://other/web", to: [db, api], expect: deny}
  - {from: web, to: "api:http", expect: allow}
max_leaf_ttl: 1d2h3m4s
revocation_staleness: 90m
reenrol_window: 48h
"""
FILES = (
    HEAD
    + 'outbound:\n  - {to: cache, listen: "localhost:6379", peers: "a:1", allow_from: "10.0.0.0/8", device: auto}\n'
)
WITH_FINGERPRINT = FULL.replace("root: root.pem", f"root_sha256: {'AB:' * 31}AB")

NEIGHBOUR = "a neighbour could connect and use the service's identity"
DURATION = "is not a duration: write it like 30s, 90m, 1h or 1h30m, and more than zero"


def parsed(text: str, environ: Mapping[str, str] | None = None, mesh: Mesh = MESH) -> Config:
    """The values of a sidecar.yaml."""
    return parse_config(text, "etc/sidecar.yaml", environ or {}, mesh)


def mistakes(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """What is said of a broken sidecar.yaml."""
    with pytest.raises(UsageError) as raised:
        parse_config(text, "s.yaml", environ or {}, MESH)
    return str(raised.value).splitlines()


def mesh_with(
    *, services: str = "{web: {ports: {http: 80}}, api: {ports: {http: 80, tls: 443}}, idle: {}}", rest: str
) -> str:
    """A mesh.yaml: its services are its line 2, the rest begins on line 3."""
    return f"trust_domain: shop.internal\nservices: {services}\n{rest}"
