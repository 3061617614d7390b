"""``sidecar trust import``: what the operator brings is checked as what the CA sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from certs.authority import authority
from certs.protocol import documents
from certs.protocol.documents import Bundle
from sidecar.agent.saved_state import SavedState
from sidecar.agent.trust import Instant
from sidecar.cli.commands import main
from sidecar.host.clock import utc_now
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.spiffe import SpiffeId

MESH = "trust_domain: shop.internal\nservices: {api: {ports: {http: 80}}}\n"
WIRING = "service: api\nmesh: mesh.yaml\nidentity: {ca: 'https://127.0.0.1:9', root: ca/root.pem, state_dir: state}\n"
API = SpiffeId("shop.internal", ("api",))


class Site:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "mesh.yaml").write_text(MESH)
        (path / "sidecar.yaml").write_text(WIRING)
        self.own = authority.init(path / "ca", "shop.internal", utc_now())
        self.root = authority.load_root(path / "ca", None, None)
        self.first = documents.read_kept_bundle((path / "ca" / "bundle.json").read_bytes(), "shop.internal", utc_now())
        stolen = frozenset({key_digest(self.own.issuer.certificate)})
        self.newer = replace(self.first, version=self.first.version + 1, distrusted=stolen)

    def imports(self, bundle: Bundle, signer: object = None) -> Result:
        (self.path / "brought.json").write_bytes(documents.sign_bundle(bundle, [signer or self.root]))  # type: ignore[list-item]
        return CliRunner().invoke(main, ["trust", "import", "brought.json", "sidecar.yaml"], catch_exceptions=False)

    def kept(self) -> Bundle | None:
        state = SavedState(self.path / "state", API, lambda *_: None)
        try:
            return state.load(certificate_digest(self.root.certificate), Instant(utc_now(), 0.0)).bundle
        finally:
            state.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


def test_a_bundle_that_was_brought_is_what_the_next_start_trusts(site: Site) -> None:
    for bundle in (site.first, site.newer):
        result = site.imports(bundle)
        assert result.exit_code == 0, result.output
        assert f"trust bundle {bundle.version}" in result.output
        assert site.kept() == bundle


def test_an_older_one_is_refused_and_one_by_another_root(site: Site) -> None:
    site.imports(site.newer)
    older = site.imports(site.first)
    assert (older.exit_code, "is no newer than" in older.output) == (2, True)
    other = authority.make("shop.internal", utc_now()).root
    foreign = site.imports(replace(site.newer, version=site.newer.version + 1), other)
    assert (foreign.exit_code, "not by a root that is trusted here" in foreign.output) == (2, True)
    assert site.kept() == site.newer


def test_a_sidecar_that_runs_is_not_written_to(site: Site) -> None:
    running = SavedState(site.path / "state", API, lambda *_: None)
    try:
        result = site.imports(site.newer)
        assert (result.exit_code, "another sidecar is using this state_dir" in result.output) == (2, True)
    finally:
        running.close()


def test_what_cannot_be_read_and_an_identity_in_files_are_mistakes(site: Site) -> None:
    missing = CliRunner().invoke(main, ["trust", "import", "missing.json"], catch_exceptions=False)
    assert (missing.exit_code, "cannot be read" in missing.output) == (2, True)
    files = "service: api\nmesh: mesh.yaml\nidentity: {files: {certificate: c, key: k, bundle: b}}\n"
    (site.path / "sidecar.yaml").write_text(files)
    result = site.imports(site.newer)
    assert (result.exit_code, "identity is in files" in result.output) == (2, True)
