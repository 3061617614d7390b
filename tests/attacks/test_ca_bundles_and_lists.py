"""Trust bundles and lists of revocations that do not count: unsigned, signed by whoever may not, older, of another kind.

They come from a CA that proved who it is. The sidecar keeps what it has, says why, and takes the next one that counts.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.authority import authority
from certs.protocol import documents, x509_profile
from certs.protocol.documents import Bundle, RevocationList
from certs.protocol.x509_profile import Issuer
from certs.registrar import revocations
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from tests.beds.asking import Desk, ca_desk, until
from tests.beds.ca import Sidecar
from tests.beds.ca_files import DOMAIN, HOUR, service_id
from tests.beds.certificates import Authority, ec_key
from tests.beds.impostor import FalseCa, always
from tests.beds.patience import PATIENCE


@dataclass
class Signers:
    """Everybody who might sign."""

    root: Issuer
    issuing: Issuer
    delegate: Issuer
    leaf: Issuer
    other: authority.Made


@dataclass
class Poll:
    """web's sidecar, which is about to ask for news."""

    desk: Desk
    false: FalseCa
    sidecar: Sidecar
    nursery: trio.Nursery
    signers: Signers

    @property
    def bundle(self) -> Bundle:
        return self.desk.server.in_force.bundle

    @property
    def listed(self) -> RevocationList:
        """A list with something new in it."""
        known = self.desk.files.revoked()
        return replace(
            known,
            version=known.version + 1,
            issued_at=self.desk.clock().replace(microsecond=0),
            identities={service_id("api"): self.desk.clock().replace(microsecond=0)},
            bundle=self.bundle.name,
        )

    @property
    def newer(self) -> Bundle:
        """A bundle with another root in it."""
        roots = (*self.bundle.roots, self.signers.other.root.certificate)
        return replace(self.bundle, version=self.bundle.version + 1, roots=roots)

    def run(self) -> None:
        self.nursery.start_soon(self.sidecar.agent.run, self.sidecar.adopt)

    async def says(self, event: str) -> str:
        await self.sidecar.log.until(lambda: bool(self.sidecar.log.events(event)))
        assert not self.sidecar.log.events("membership_failed")
        return self.sidecar.words(event)

    def lie(self, *, listed: bytes | None = None, bundles: list[bytes] | None = None) -> None:
        """``bundles``: what is sent as the bundle that the list names."""
        if bundles is not None:
            name = documents.BundleName(self.bundle.version + 2, b"\1" * 32)
            listed = documents.sign_revocations(replace(self.listed, bundle=name), self.signers.delegate)
            self.false.lies["/v1/bundle"] = always(200, {"bundles": [json.loads(one) for one in bundles]})
        assert listed is not None
        self.false.lies["/v1/revocations"] = always(200, listed, {"ETag": f'"{len(listed)}{listed[-40:].hex()}"'})


@asynccontextmanager
async def poll(path: Path) -> AsyncIterator[Poll]:
    async with ca_desk(path) as desk, desk.false_ca() as false:
        desk.write(lambda transaction: revocations.revoke_identity(transaction, service_id("ca")))
        await desk.server._look()
        sidecar = desk.membership(false.address, text=desk.make_credential("web"))
        with trio.fail_after(PATIENCE):
            await sidecar.agent.enrol()
        root = authority.load_root(path / "ca", None, None)
        leaf = authority.issue(desk.ca, "web", desk.clock(), HOUR)
        assert desk.ca.delegate is not None
        signers = Signers(
            root,
            desk.ca.issuer,
            desk.ca.delegate,
            Issuer(leaf.chain[0], leaf.key),
            authority.make(DOMAIN, desk.clock().replace(microsecond=0)),
        )
        async with trio.open_nursery() as nursery:
            made = Poll(desk, false, sidecar, nursery, signers)
            try:
                yield made
            finally:
                nursery.cancel_scope.cancel()
        await made.sidecar.agent.close()


def unsigned(document: bytes) -> bytes:
    return json.dumps({**json.loads(document), "signatures": []}).encode()


def altered(document: bytes) -> bytes:
    """Its payload with one version more, under the old signatures."""
    envelope = json.loads(document)
    body = json.loads(b64decode(envelope["payload"]))
    body["version"] += 1
    return json.dumps({**envelope, "payload": b64encode(json.dumps(body).encode()).decode()}).encode()


def bent(document: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(document), **fields}).encode()


def payload(kind: str, said: Any, signer: Issuer) -> bytes:
    """Anything at all, well signed."""
    return documents._seal(kind, said, [signer])


# -- lists -------------------------------------------------------------------------------------------------------------

List = Callable[[Poll], bytes]
LISTS: dict[str, List] = {
    "unsigned": lambda it: unsigned(documents.sign_revocations(it.listed, it.signers.root)),
    "altered": lambda it: altered(documents.sign_revocations(it.listed, it.signers.delegate)),
    "by the issuing key": lambda it: documents.sign_revocations(it.listed, it.signers.issuing),
    "by a service": lambda it: documents.sign_revocations(it.listed, it.signers.leaf),
    "by another root": lambda it: documents.sign_revocations(it.listed, it.signers.other.root),
    "by another's delegate": lambda it: documents.sign_revocations(it.listed, it.signers.other.delegate),
    "by a delegate of the issuing CA's": lambda it: documents.sign_revocations(
        it.listed, delegate_of_the_issuing_ca(it)
    ),
    "by a delegate whose time is over": lambda it: documents.sign_revocations(it.listed, old_delegate(it)),
    "of an older version": lambda it: documents.sign_revocations(
        replace(it.listed, version=it.listed.version - 2), it.signers.delegate
    ),
    "of an older time": lambda it: documents.sign_revocations(
        replace(it.listed, version=it.listed.version - 1, issued_at=it.desk.clock() - HOUR), it.signers.delegate
    ),
    "of another mesh": lambda it: documents.sign_revocations(
        replace(it.listed, trust_domain="evil.internal"), it.signers.delegate
    ),
    "a bundle": lambda it: documents.sign_bundle(it.bundle, [it.signers.root]),
    "a bundle that says it is a list": lambda it: bent(
        documents.sign_bundle(it.bundle, [it.signers.root]), type=documents.REVOCATIONS
    ),
    "garbage": lambda _: b"garbage",
    "nothing": lambda _: b"",
    "deep": lambda _: b"[" * 100_000,
    "large": lambda _: b" " * (2 << 20),
    "of no version": lambda it: payload(documents.REVOCATIONS, {"trust_domain": DOMAIN}, it.signers.delegate),
    "of names that are none": lambda it: payload(
        documents.REVOCATIONS,
        {"trust_domain": DOMAIN, "version": 1 << 40, "issued_at": 1, "identities": {"*": 1}, "serials": []},
        it.signers.delegate,
    ),
}


def delegate_of_the_issuing_ca(it: Poll) -> Issuer:
    key = ec_key()
    return Issuer(x509_profile.delegate(key.public_key(), it.signers.issuing, it.desk.clock()), key)


def old_delegate(it: Poll) -> Issuer:
    """One that the root really appointed, for last year."""
    key, root = ec_key(), it.signers.root
    made = x509_profile.delegate(key.public_key(), root, it.desk.clock())
    builder = (
        x509.CertificateBuilder()
        .issuer_name(made.issuer)
        .subject_name(made.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(it.desk.clock() - 9 * HOUR)
        .not_valid_after(it.desk.clock() - HOUR)
    )
    for extension in made.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return Issuer(builder.sign(root.key, hashes.SHA256()), key)


def why_not(read: Callable[[], object]) -> str:
    """What is wrong with a document; nothing, if it is only older than another."""
    try:
        read()
    except documents.UntrustedError as error:
        return str(error)
    return ""


def unquoted(text: str) -> str:
    """Without quotation marks and what escapes them: a log line escapes those of a message."""
    return text.translate(dict.fromkeys(map(ord, "\\'\"")))


def known(found: Revocations) -> tuple[Any, ...]:
    return found.identities, found.serials, found.keys


@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS.keys())
async def test_a_list_that_does_not_count(make: List, tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        before, file = known(it.sidecar.agent.revocations()), (it.sidecar.state / "revocations.json").read_bytes()
        document = make(it)
        it.lie(listed=document)
        it.run()
        said = await it.says("revocations_failed")
        why = why_not(lambda: documents.read_revocations(document, it.bundle, it.desk.clock()))
        assert unquoted(why) in unquoted(said)
        assert f"{it.sidecar.agent.revocations().fresh_until:%F %T}" in said
        assert known(it.sidecar.agent.revocations()) == before
        assert (it.sidecar.state / "revocations.json").read_bytes() == file


@pytest.mark.parametrize("signer", ["root", "delegate"])
async def test_the_twin_of_these_lists_is_taken(signer: str, tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        it.lie(listed=documents.sign_revocations(it.listed, getattr(it.signers, signer)))
        it.run()
        await until(lambda: service_id("api") in it.sidecar.agent.revocations().identities)
        assert not it.sidecar.log.events("revocations_failed")


# -- bundles -----------------------------------------------------------------------------------------------------------

BUNDLES: dict[str, List] = {
    "unsigned": lambda it: unsigned(documents.sign_bundle(it.newer, [it.signers.root])),
    "altered": lambda it: altered(documents.sign_bundle(it.newer, [it.signers.root])),
    "by the issuing key": lambda it: documents.sign_bundle(it.newer, [it.signers.issuing]),
    "by the delegate": lambda it: documents.sign_bundle(it.newer, [it.signers.delegate]),
    "by a service": lambda it: documents.sign_bundle(it.newer, [it.signers.leaf]),
    "by the new root alone": lambda it: documents.sign_bundle(it.newer, [it.signers.other.root]),
    "by another's key under the root's name": lambda it: documents.sign_bundle(
        it.newer, [Issuer(it.signers.root.certificate, it.signers.other.root.key)]
    ),
    "older": lambda it: documents.sign_bundle(replace(it.newer, version=it.bundle.version - 1), [it.signers.root]),
    "of the same version": lambda it: documents.sign_bundle(
        replace(it.newer, version=it.bundle.version), [it.signers.root]
    ),
    "of another mesh": lambda it: documents.sign_bundle(
        replace(it.newer, trust_domain="evil.internal"), [it.signers.root]
    ),
    "a list": lambda it: documents.sign_revocations(it.listed, it.signers.root),
    "a list that says it is a bundle": lambda it: bent(
        documents.sign_revocations(it.listed, it.signers.root), type=documents.BUNDLE
    ),
    "of no roots": lambda it: documents.sign_bundle(replace(it.newer, roots=()), [it.signers.root]),
    "of an active root that is not in it": lambda it: documents.sign_bundle(
        replace(it.newer, active=b"\7" * 32), [it.signers.root]
    ),
    "of an intermediate": lambda it: documents.sign_bundle(
        replace(it.newer, roots=(*it.bundle.roots, it.signers.other.issuing.certificate)), [it.signers.root]
    ),
    "of a leaf": lambda it: documents.sign_bundle(
        replace(it.newer, roots=(*it.bundle.roots, Authority().leaf("x", self_signed=True).certificate)),
        [it.signers.root],
    ),
    "of nine roots": lambda it: documents.sign_bundle(replace(it.newer, roots=it.newer.roots * 5), [it.signers.root]),
}


@pytest.mark.parametrize("make", BUNDLES.values(), ids=BUNDLES.keys())
async def test_a_bundle_that_does_not_count(make: List, tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        roots, file = it.sidecar.own.keys.roots, (it.sidecar.state / "bundle.json").read_bytes()
        document = make(it)
        it.lie(bundles=[document])
        it.run()
        said = await it.says("bundle_failed")
        assert why_not(lambda: documents.read_bundle(document, DOMAIN, it.bundle.anchors, it.desk.clock())) in said
        assert it.sidecar.own.keys.roots == roots
        assert (it.sidecar.state / "bundle.json").read_bytes() == file
        assert len(it.sidecar.log.events("trust_bundle")) == 1, "the first one, at joining"


async def test_the_twin_of_these_bundles_is_taken_by_the_old_root_s_word(tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        it.lie(bundles=[documents.sign_bundle(it.newer, [it.signers.root])])
        it.run()
        await it.sidecar.log.until(lambda: len(it.sidecar.log.events("trust_bundle")) == 2)
        assert it.signers.other.root.certificate in it.sidecar.own.keys.roots


async def test_one_that_slept_goes_from_bundle_to_bundle_and_not_past_a_gap(tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        first, second = it.newer, authority.make(DOMAIN, it.desk.clock().replace(microsecond=0))
        anchor = it.signers.other.root.certificate
        last = replace(
            first,
            version=first.version + 1,
            roots=(anchor, second.root.certificate),
            active=certificate_digest(anchor),
        )
        by_new = documents.sign_bundle(last, [it.signers.other.root])
        it.lie(bundles=[by_new])
        it.run()
        await it.says("bundle_failed")
        assert len(it.sidecar.own.keys.roots) == 1
        it.lie(bundles=[documents.sign_bundle(first, [it.signers.root]), by_new])
        await it.sidecar.log.until(lambda: len(it.sidecar.log.events("trust_bundle")) == 2)
        assert it.sidecar.own.keys.roots == last.roots


# -- what is kept on the disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b'{"payload": "AAAA"}'])
async def test_a_garbage_bundle_on_the_disk_stops_the_start(content: bytes, tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        at = it.desk.address
        await it.sidecar.agent.close()
        file = it.sidecar.state / "bundle.json"
        good = file.read_bytes()
        for bad in (content, good[:-9], good.replace(b'"payload": "', b'"payload": "AAAA')):
            file.write_bytes(bad)
            with pytest.raises(UsageError, match=re.escape(str(file))):
                it.desk.membership(at)
        file.write_bytes(good)
        it.sidecar = it.desk.membership(at)
        with trio.fail_after(PATIENCE):
            await it.sidecar.agent.enrol()
        assert it.sidecar.agent.credentials is not None


async def test_a_garbage_list_on_the_disk_lets_nobody_in_until_there_is_a_new_one(tmp_path: Path) -> None:
    async with poll(tmp_path) as it:
        await it.sidecar.agent.close()
        (it.sidecar.state / "revocations.json").write_bytes(b"garbage")
        it.sidecar = it.desk.membership()
        stale = it.sidecar.agent.revocations().fresh_until
        assert stale is not None
        assert stale < it.desk.clock()
        assert it.sidecar.said("state_ignored")
        await it.sidecar.agent.enrol()
        it.run()
        await until(lambda: (it.sidecar.agent.revocations().fresh_until or stale) > it.desk.clock())
