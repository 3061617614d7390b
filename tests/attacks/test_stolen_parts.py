"""What a thief of one part of the mesh can do, for how long, and which command ends it: each row of README's table, with
real processes. Each shows what works for him, what does not, and then the end."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certs.authority import authority
from certs.protocol import documents, wire, x509_profile
from certs.protocol.client import CaDeniedError, CaError
from certs.protocol.documents import Bundle, BundleName, RevocationList
from certs.protocol.x509_profile import Issuer
from sidecar.host.clock import utc_now
from sidecar.identity.keys import new_key
from sidecar.identity.spiffe import parse_svid
from sidecar.transport.tls import KeyPair
from tests import commands
from tests.beds.ca_processes import TRUST_DOMAIN, CaSite
from tests.beds.certificates import Credential, csr
from tests.beds.impostor import always, false_ca
from tests.beds.processes import SIDECAR, output, running
from tests.beds.thief import ROWS, Field, field, forged, held, stolen, table

README = Path(__file__).parents[2] / "README.md"


@stolen(
    "a service's key (its `state_dir`)",
    can="be that service, and renew its certificate",
    cannot="be another service",
    ends="`certs revoke`: within seconds",
)
async def test_a_service_s_key(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        web = await mesh.joined("web")
        assert await mesh.call(held(web)) == "ok"
        await web.renew()
        assert await mesh.call(held(web)) == "ok"
        assert str(parse_svid(held(web).der).id) == "spiffe://shop.internal/web"
        with pytest.raises(CaDeniedError, match=r"it may ask for spiffe:..shop[.]internal.web and"):
            await web.client.renew(csr(new_key(), uris=["spiffe://shop.internal/job"]).encode())
        await mesh.certs("revoke", "web")
        await mesh.until("revoked", held(web))
        with pytest.raises(CaDeniedError, match="revoked"):
            await web.renew()


@stolen(
    "an enrolment secret",
    can="become that service, again and again",
    cannot="become another service",
    ends="`certs revoke`: within seconds",
)
async def test_an_enrolment_secret(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        secret = mesh.site.make_credentials("web", kind="secret")["web"]
        thief = await mesh.joined("web", secret)
        thief = await mesh.joined("web", secret)
        assert await mesh.call(held(thief)) == "ok"
        with pytest.raises(CaDeniedError):
            await mesh.joined("job", secret)
        await mesh.certs("revoke", "web")
        await mesh.until("revoked", held(thief))
        with pytest.raises(CaDeniedError):
            await mesh.joined("web", secret)


def stolen_issuer(site: CaSite) -> Issuer:
    return authority.load(site.directory, utc_now()).issuer


def stolen_delegate(site: CaSite) -> Issuer:
    delegate = authority.load(site.directory, utc_now()).delegate
    assert delegate is not None
    return delegate


def pair(issuer: Issuer, site: CaSite) -> KeyPair:
    """A certificate of the CA's own, forged."""
    made = forged(wire.CA_SERVICE, issuer)
    return KeyPair(made.chain, made.key, site.roots())


def own_root(mesh: Field, *signers: Issuer) -> tuple[bytes, Credential]:
    """The newest bundle with a root of the thief's, signed by the keys that he has; and web, as this root has it."""
    made = authority.make(TRUST_DOMAIN, utc_now())
    before = the_bundle(mesh)
    bundle = replace(before, version=before.version + 1, roots=(*before.roots, made.root.certificate))
    return documents.sign_bundle(bundle, [*signers, made.root]), forged("web", made.issuing)


def the_bundle(mesh: Field) -> Bundle:
    """What the CA has published last."""
    document = (mesh.site.directory / authority.BUNDLE_DOCUMENT).read_bytes()
    return documents.read_kept_bundle(document, TRUST_DOMAIN, utc_now())


def empty_list(signer: Issuer, version: int | None = None, bundle: BundleName | None = None) -> bytes:
    """As new as any, and nobody is revoked in it."""
    now = utc_now()
    newest = documents.version_at(now + timedelta(minutes=1), documents.LISTS_A_SECOND)
    listed = RevocationList(TRUST_DOMAIN, version or newest, now, bundle=bundle or BundleName())
    return documents.sign_revocations(listed, signer)


LIST_HEADERS = {wire.BUNDLE_HEADER: "0", wire.ETAG_HEADER: '"stolen"'}


@stolen(
    "`issuing.key`",
    can="be any service of this trust domain, and the CA towards a sidecar whose path he has",
    cannot="take back a revocation, add a root, be of another trust domain",
    ends="`certs renew-issuing --distrust`: within seconds; on a path that he holds, `revocation_staleness` (1 h)",
)
async def test_the_issuing_key(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        issuer = stolen_issuer(mesh.site)
        thief, revoked = forged("job", issuer), await mesh.joined("web")
        assert await mesh.call(thief) == "ok"
        assert await mesh.call(forged("web", issuer)) == "ok"
        assert await mesh.call(forged("web", issuer, trust_domain="other.internal")) == "wrong_trust_domain"
        await mesh.certs("revoke", "web")
        await mesh.until("revoked", held(revoked))
        async with false_ca(pair(issuer, mesh.site)) as false:
            bundle, of_his_root = own_root(mesh, issuer)
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(issuer), LIST_HEADERS)
            false.lies[wire.BUNDLE_PATH] = always(200, {wire.BUNDLES: [json.loads(bundle)]})
            mesh.path.turn(("127.0.0.1", false.port))
            await mesh.says("revocations_failed", "such as an issuing CA's")
            await mesh.says("bundle_failed", "not by a root that is trusted here")
            assert await mesh.call(held(revoked)) == "revoked"
            assert await mesh.call(of_his_root) == "unknown_ca"
            mesh.edit("revocation_staleness: 1s\n")
            await mesh.until("revocations_stale", thief)
            mesh.edit("")
            mesh.path.turn(mesh.at_ca)
        await mesh.until("ok", thief)
        await mesh.certs("renew-issuing", "--distrust")
        await mesh.until("revoked", thief)
        await mesh.until("ok", held(await mesh.joined("job")))


@stolen(
    "`revocation.pem`",
    can="nothing by itself: he is not the CA, so nobody takes his lists",
    cannot="be a service, be the CA",
    ends="`certs renew-issuing --distrust`",
)
async def test_the_delegate_s_key(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        delegate = stolen_delegate(mesh.site)
        assert await mesh.call(forged("web", delegate)) != "ok"
        shown = KeyPair((delegate.certificate,), delegate.key, mesh.site.roots())
        async with false_ca(shown) as false:
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(delegate), LIST_HEADERS)
            mesh.path.turn(("127.0.0.1", false.port))
            await mesh.api.program.event("mitm_suspected")
            assert false.asked == []
            mesh.path.turn(mesh.at_ca)
        web = await mesh.joined("web")
        await mesh.certs("revoke", "web")
        await mesh.until("revoked", held(web))
        old = forged("job", stolen_issuer(mesh.site))
        await mesh.certs("renew-issuing", "--distrust")
        await mesh.until("revoked", old)
        async with false_ca(pair(stolen_issuer(mesh.site), mesh.site)) as false:  # even if he were the CA
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(delegate), LIST_HEADERS)
            mesh.path.turn(("127.0.0.1", false.port))
            await mesh.says("revocations_failed", "with a key that is distrusted")
            assert await mesh.call(held(web)) == "revoked"


@stolen(
    "both, and the path to the CA",
    can="hide revocations, also that of `issuing.key`, from the sidecars whose path he has",
    cannot="add a root; reach sidecars by another path",
    ends="`certs renew-issuing --distrust`, then `sidecar trust import` (at once), or `bundle_at_least` in mesh.yaml "
    "(`revocation_staleness`, 1 h); or the path is given back",
)
async def test_both_and_the_path(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        web, issuer = await mesh.joined("web"), stolen_issuer(mesh.site)
        delegate, version = stolen_delegate(mesh.site), await mesh.list_version()
        async with false_ca(pair(issuer, mesh.site)) as false:
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(delegate, version), LIST_HEADERS)
            mesh.path.turn(("127.0.0.1", false.port))
            bundle, of_his_root = own_root(mesh, issuer, delegate)
            false.lies[wire.BUNDLE_PATH] = always(200, {wire.BUNDLES: [json.loads(bundle)]})
            await mesh.certs("revoke", "web")
            async with mesh.elsewhere() as other:
                await mesh.until("revoked", held(web), other)
                await mesh.certs("renew-issuing", "--distrust")
                await mesh.until("revoked", forged("job", issuer), other)
            await false.was_asked(wire.REVOCATIONS_PATH, 2)
            assert await mesh.call(held(web)) == "ok"
            assert await mesh.call(forged("job", issuer)) == "ok"
            assert await mesh.call(of_his_root) == "unknown_ca"
            mesh.edit(f"bundle_at_least: {the_bundle(mesh).version}\nrevocation_staleness: 1s\n")
            await mesh.says("bundle_failed", "not by a root that is trusted here")
            await mesh.until("revocations_stale", held(web))
            mesh.api.program.signal(signal.SIGTERM)
            assert await mesh.api.program.ended() == 0
            mesh.edit("")
            brought = mesh.site.directory / authority.BUNDLE_DOCUMENT
            assert "keys distrusted: 2" in await output(*SIDECAR, "trust", "import", brought, mesh.file)
            async with running(*SIDECAR, "run", mesh.file) as again:
                await again.event("mitm_suspected")
                asked = list(false.asked)
                mesh.path.turn(mesh.at_ca)  # its twin: the CA itself is still believed
                await again.event("re-enrolled")
                assert false.asked == asked


async def test_both_and_a_path_that_is_given_back(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        web, issuer, delegate = await mesh.joined("web"), stolen_issuer(mesh.site), stolen_delegate(mesh.site)
        async with false_ca(pair(issuer, mesh.site)) as false:
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(delegate), LIST_HEADERS)
            mesh.path.turn(("127.0.0.1", false.port))
            await false.was_asked(wire.REVOCATIONS_PATH, 1)
            await mesh.certs("revoke", "web")
            await mesh.certs("renew-issuing", "--distrust")
            assert await mesh.call(held(web)) == "ok"
            mesh.path.turn(mesh.at_ca)
        await mesh.until("revoked", held(web))
        await mesh.until("revoked", forged("job", issuer))
        await mesh.until("ok", held(await mesh.joined("job")))


@stolen(
    "the path to the CA",
    can="keep sidecars from the CA: no renewal, no news",
    cannot="read or change what passes, or answer in its place",
    ends="the path is given back; from `revocation_staleness` (1 h) on, no new connection is let in",
)
async def test_the_path_to_the_ca(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        secret, heard = mesh.site.make_credentials("web", kind="secret")["web"], bytearray()

        def hear(data: bytes) -> bytes:
            heard.extend(data)
            return data

        mesh.path.change = hear
        web, job = await mesh.joined("web", secret, mesh.site.port), await mesh.joined("job")
        assert len(heard) > len(str(secret))
        assert str(secret).encode() not in heard
        assert b"shop.internal/web" not in heard
        mesh.path.change = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(CaError):
            await mesh.joined("web", secret, mesh.site.port)
        other = CaSite.make(tmp_path / "other")
        async with false_ca(pair(stolen_issuer(other), other)) as false:
            mesh.path.turn(("127.0.0.1", false.port))
            mesh.path.change = bytes
            await mesh.says("mitm_suspected", "unknown_ca")
            await mesh.certs("revoke", "web")
            assert set(false.asked) <= {wire.BUNDLE_PATH}
            assert await mesh.call(held(web)) == "ok"
            mesh.edit("revocation_staleness: 1s\n")
            await mesh.until("revocations_stale", held(job))
            mesh.edit("")
            mesh.path.turn(mesh.at_ca)
        await mesh.until("ok", held(job))
        await mesh.until("revoked", held(web))


@stolen(
    "the CA's disk, without `root.key`",
    can="what the two keys in it can",
    cannot="use the enrolment secrets (they are kept as hashes), add a root",
    ends="`certs renew-issuing --distrust`",
)
async def test_the_disk_of_the_ca(tmp_path: Path) -> None:
    root_key = tmp_path / "vault" / "root.key"
    async with field(tmp_path, init=("--root-key-out", str(root_key.parent))) as mesh:
        secret = mesh.site.make_credentials("web", kind="secret")["web"]
        copy = tmp_path / "copy"
        shutil.copytree(mesh.site.directory, copy, ignore=shutil.ignore_patterns("*.sock"))
        assert all(str(secret).encode() not in file.read_bytes() for file in copy.iterdir())
        assert not (copy / "root.key").exists()
        commands.refused("renew-issuing", str(copy))
        thief = forged("web", authority.load(copy, utc_now()).issuer)
        assert await mesh.call(thief) == "ok"
        await mesh.certs("renew-issuing", "--distrust", "--root-key", str(root_key))
        await mesh.until("revoked", thief)


@stolen(
    "`root.key`",
    can="make CAs that everybody trusts",
    cannot="go on after the root is replaced",
    ends="`certs rotate-root --force`; then new sidecars need the new root to pin",
)
async def test_the_root_s_key(tmp_path: Path) -> None:
    async with field(tmp_path) as mesh:
        root = authority.load_root(mesh.site.directory, None, None)
        key = new_key()
        own = Issuer(x509_profile.intermediate(TRUST_DOMAIN, key.public_key(), root, utc_now()), key)
        thief = forged("web", own)
        assert await mesh.call(thief) == "ok"
        await mesh.certs("renew-issuing", "--distrust")  # it ends nothing of this
        await mesh.until("ok", thief)
        before, told_before = the_bundle(mesh), mesh.another()
        document = (mesh.site.directory / authority.BUNDLE_DOCUMENT).read_bytes()
        secret = (mesh.site.path / "api.secret").read_bytes().strip()
        await mesh.certs("rotate-root", "--force", "--max-age", "1s")
        await mesh.until("unknown_ca", thief)
        await mesh.until("ok", held(await mesh.joined("web")))
        shutil.copy(mesh.site.directory / authority.ROOT, mesh.site.path / "new.pem")
        async with false_ca(pair(own, mesh.site)) as false:  # new sidecars on his path, told the old root and the new
            false.lies[wire.BUNDLE_PATH] = always(200, {wire.BUNDLES: [json.loads(document)]})
            false.lies[wire.REVOCATIONS_PATH] = always(200, empty_list(root, bundle=before.name), LIST_HEADERS)
            false.lies[wire.ENROL_PATH] = always(500, {})
            mesh.path.turn(("127.0.0.1", false.port))
            async with running(*SIDECAR, "run", told_before):
                await false.was_asked(wire.ENROL_PATH, 1)
            assert secret in false.bodies[-1]
            false.asked.clear()
            async with running(*SIDECAR, "run", mesh.another("new.pem")) as told_anew:
                await told_anew.event("mitm_suspected")
            assert set(false.asked) <= {wire.BUNDLE_PATH}


def test_readme_has_the_table() -> None:
    """Made of the declarations above: put ``python -m tests.attacks.test_stolen_parts`` there."""
    assert table() in README.read_text()
    assert len(ROWS) > 6


if __name__ == "__main__":
    print(table(), end="")
