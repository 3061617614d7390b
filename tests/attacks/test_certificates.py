"""Certificates that are wrong in one field, shown to both ends: as a caller at a port, and in the place of a service."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from sidecar.host.clock import utc_now
from sidecar.observe.folding import LINES
from sidecar.transport import sockets
from tests.attacks.records import CERTIFICATE, HANDSHAKE, KeyLog, Writer, message
from tests.attacks.stage import Bend, assert_refused, attacked_call, attacked_port
from tests.beds.certificates import (
    ANY_EKU,
    CLIENT_AUTH,
    DAY,
    HOUR,
    SERVER_AUTH,
    UNKNOWN_CRITICAL,
    Authority,
    Credential,
    raw_names,
    rsa_key,
    usage,
)
from tests.beds.mesh import Foreigner, mesh_bed


def named(*uris: str) -> Bend:
    """A certificate of these URI names; ``{id}`` is the service's SPIFFE ID."""
    return lambda ca, who: ca.leaf(who, uris=[uri.format(id=ca.spiffe_id(who), who=who) for uri in uris])


def raw_uri(text: str) -> Bend:
    """A certificate whose one URI name has these bytes."""
    return lambda ca, who: ca.leaf(who, raw_san=raw_names(uris=[text.format(id=ca.spiffe_id(who), who=who).encode()]))


def signed_by_a_leaf(ca: Authority, who: str) -> Credential:
    return ca.leaf(who, signer=ca.leaf("db", cn="db"))


def below_pathlen(ca: Authority, who: str) -> Credential:
    return ca.leaf(who, signer=ca.ca("too deep", signer=ca.issuing))


def same_name_other_key(ca: Authority, who: str) -> Credential:
    forger = Authority(name=ca.name)
    forged = forger.leaf(who)
    return forged.sending(*forged.chain, *forger.roots)


def junk_chain(ca: Authority, who: str, length: int = 50) -> Credential:
    leaf = ca.leaf(who)
    junk = [ca.leaf("db", key=JUNK_KEY).certificate for _ in range(length - len(leaf.chain))]
    return leaf.sending(*leaf.chain, *junk)


JUNK_KEY = ec.generate_private_key(ec.SECP256R1())
WEAK_KEY = rsa_key(1024)
HONEST_RSA_KEY = rsa_key(2048)


def old_issuer(ca: Authority, who: str) -> Credential:
    return ca.leaf(who, signer=ca.ca("old", not_before=ca.now - 91 * DAY, not_after=ca.now - DAY))


SIGNS_TOO = usage("digital_signature", "key_cert_sign")
REVOKES_TOO = usage("digital_signature", "crl_sign")

# What is bent; the reason that both ends must give; words of the alert that both send to whoever shows it.
BAD: dict[str, tuple[Bend, str, str]] = {
    # OpenSSL alone accepts these in at least one direction.
    "cA=true": (lambda ca, who: ca.leaf(who, ca=True, cn=who), "bad_identity", "bad certificate"),
    "cA=true, nameless": (lambda ca, who: ca.leaf(who, ca=True), "bad_identity", "certificate"),
    "keyCertSign": (lambda ca, who: ca.leaf(who, key_usage=SIGNS_TOO), "bad_identity", "certificate"),
    "cRLSign": (lambda ca, who: ca.leaf(who, key_usage=REVOKES_TOO, cn=who), "bad_identity", "bad certificate"),
    "no KeyUsage": (lambda ca, who: ca.leaf(who, key_usage=None), "bad_identity", "bad certificate"),
    "KeyUsage not critical": (
        lambda ca, who: ca.leaf(who, key_usage_critical=False),
        "bad_identity",
        "bad certificate",
    ),
    "KeyUsage without digitalSignature": (
        lambda ca, who: ca.leaf(who, key_usage=usage("key_agreement")),
        "bad_identity",
        "bad certificate",
    ),
    "no EKU": (lambda ca, who: ca.leaf(who, eku=None), "bad_identity", "bad certificate"),
    "only serverAuth": (lambda ca, who: ca.leaf(who, eku=(SERVER_AUTH,)), "bad_identity", "certificate"),
    "only clientAuth": (lambda ca, who: ca.leaf(who, eku=(CLIENT_AUTH,)), "bad_identity", "certificate"),
    "anyExtendedKeyUsage": (lambda ca, who: ca.leaf(who, eku=(ANY_EKU,)), "bad_identity", "certificate"),
    "two URIs": (named("{id}", "spiffe://shop.internal/db"), "bad_identity", "bad certificate"),
    "the same URI twice": (named("{id}", "{id}"), "bad_identity", "bad certificate"),
    "no SAN, the ID as CN": (
        lambda ca, who: ca.leaf(who, uris=(), cn=ca.spiffe_id(who)),
        "bad_identity",
        "bad certificate",
    ),
    "no SAN, no CN": (lambda ca, who: ca.leaf(who, uris=()), "bad_identity", "certificate"),
    "the ID in a DNS name": (
        lambda ca, who: ca.leaf(who, uris=(), dns=[ca.spiffe_id(who)]),
        "bad_identity",
        "bad certificate",
    ),
    "the ID in an e-mail name": (
        lambda ca, who: ca.leaf(who, raw_san=raw_names(emails=[ca.spiffe_id(who).encode()])),
        "bad_identity",
        "bad certificate",
    ),
    **{
        f"the URI {what}": (raw_uri(text), "bad_identity", "bad certificate")
        for what, text in {
            "ends in NUL and text": "{id}\0.evil.org",
            "ends in a newline": "{id}\n",
            "ends in a space": "{id} ",
            "has a Cyrillic look-alike": "spiffe://shop.internal/{who}\u0430",
            "has a second URI inside": "{id}, URI:spiffe://shop.internal/db",
            "has an upper-case scheme": "SPIFFE://shop.internal/{who}",
            "has an upper-case trust domain": "spiffe://SHOP.internal/{who}",
            "has another scheme": "https://shop.internal/{who}",
            "is percent-encoded": "{id}%2e",
            "has ..": "spiffe://shop.internal/x/../{who}",
            "ends in a slash": "{id}/",
            "has a query": "{id}?a=b",
            "has a port": "spiffe://shop.internal:80/{who}",
            "has userinfo": "spiffe://root@shop.internal/{who}",
            "has no path": "spiffe://shop.internal",
            "has no trust domain": "spiffe:///{who}",
        }.items()
    },
    "valid for ten years": (lambda ca, who: ca.leaf(who, lifetime=3650 * DAY), "bad_identity", "bad certificate"),
    "valid for a second more than 25 hours": (
        lambda ca, who: ca.leaf(who, lifetime=25 * HOUR - timedelta(seconds=59)),
        "bad_identity",
        "bad certificate",
    ),
    # What OpenSSL refuses must be refused by name.
    "unknown CA": (lambda ca, who: Authority(name="Another").leaf(who), "unknown_ca", "unknown ca"),
    "CA of the same name, another key, its root sent along": (same_name_other_key, "unknown_ca", "unknown ca"),
    "self-signed": (lambda ca, who: ca.leaf(who, self_signed=True), "unknown_ca", "unknown ca"),
    "signed by a leaf": (signed_by_a_leaf, "unknown_ca", "unknown ca"),
    "below the path length": (below_pathlen, "unknown_ca", "unknown ca"),
    "its issuer left out": (
        lambda ca, who: (leaf := ca.leaf(who)).sending(leaf.certificate),
        "unknown_ca",
        "unknown ca",
    ),
    "unknown critical extension": (
        lambda ca, who: ca.leaf(who, extensions=[UNKNOWN_CRITICAL]),
        "bad_identity",
        "certificate",
    ),
    "no key identifiers": (lambda ca, who: ca.leaf(who, key_ids=False), "bad_identity", "certificate"),
    "weak key": (lambda ca, who: ca.leaf(who, key=WEAK_KEY), "bad_identity", "bad certificate"),
    "expired": (
        lambda ca, who: ca.leaf(who, not_before=ca.now - 2 * HOUR, not_after=ca.now - timedelta(seconds=1)),
        "expired",
        "certificate expired",
    ),
    "not yet valid": (
        lambda ca, who: ca.leaf(who, not_before=ca.now + HOUR, not_after=ca.now + 2 * HOUR),
        "not_yet_valid",
        "bad certificate",
    ),
    "expired issuer": (old_issuer, "expired", "certificate expired"),
    # Nobody can be told by an alert: the handshake is over when the chain is counted.
    "a chain of 50": (junk_chain, "bad_identity", ""),
    "a chain of 5": (lambda ca, who: junk_chain(ca, who, 5), "bad_identity", ""),
}

GOOD: dict[str, Bend] = {
    "the usual": lambda ca, who: ca.leaf(who),
    "no basicConstraints": lambda ca, who: ca.leaf(who, ca=None),
    "a DNS name beside the URI": lambda ca, who: ca.leaf(who, dns=["db", "evil.org"]),
    "another's ID as CN": lambda ca, who: ca.leaf(who, cn="spiffe://shop.internal/db"),
    "the root sent along": lambda ca, who: (leaf := ca.leaf(who)).sending(*leaf.chain, *ca.roots),
    "a chain of 4": lambda ca, who: junk_chain(ca, who, 4),
    "valid for 25 hours": lambda ca, who: ca.leaf(who, lifetime=25 * HOUR - timedelta(minutes=1)),
    "an RSA key": lambda ca, who: ca.leaf(who, key=HONEST_RSA_KEY),
}

EVERY_BAD = pytest.mark.parametrize(("bend", "reason", "alert"), BAD.values(), ids=BAD)
EVERY_GOOD = pytest.mark.parametrize("bend", GOOD.values(), ids=GOOD)


@EVERY_BAD
async def test_a_bad_certificate_at_a_port(bend: Bend, reason: str, alert: str) -> None:
    async with attacked_port() as port:
        credential = bend(port.bed.authority, "web")
        assert credential is not None
        heard = await port.attack(credential)
        line = await port.refused(reason)
    assert alert in (heard or "")
    assert line["peer_id"] is None
    assert line["unverified"]["sha256"] == fingerprint(credential)
    assert line["message"].isprintable()


async def test_who_is_refused_too_late_for_an_alert_hears_why_by_the_verdict() -> None:
    async with attacked_port() as port:
        assert await port.attack(junk_chain(port.bed.authority, "web")) == "bad_identity"
        await port.refused("bad_identity")


async def test_a_chain_of_100_is_more_than_a_handshake_may_bring() -> None:
    async with attacked_port() as port:
        await port.attack(junk_chain(port.bed.authority, "web", 100))
        line = await port.refused("handshake_failed")
    assert "32768 bytes" in line["message"]
    async with attacked_call() as call:
        await call.attack(call.impostor.shows(junk_chain(call.bed.authority, "api", 100)))
        line = await call.refused("handshake_failed", alarm=False)
    assert "32768 bytes" in line["message"]


@EVERY_BAD
async def test_a_bad_certificate_in_the_place_of_a_service(bend: Bend, reason: str, alert: str) -> None:
    async with attacked_call() as call:
        credential = bend(call.bed.authority, "api")
        assert credential is not None
        await call.attack(call.impostor.shows(credential))
        line = await call.refused(reason, alarm=reason not in ("expired", "not_yet_valid"))
        assert alert in (call.impostor.alerts[0] or "")
        for alarm in call.sidecar.log.alarms:
            assert alarm["presented"]["sha256"] == fingerprint(credential)
            assert alarm["presented"]["issuer"] == repr(credential.certificate.issuer.rfc4514_string())
            assert alarm["message"].isprintable()
    assert line["peer_id"] is None
    assert line["unverified"]["sha256"] == fingerprint(credential)


@EVERY_GOOD
async def test_a_good_certificate_at_a_port(bend: Bend) -> None:
    async with attacked_port() as port:
        await port.honest(credential=bend(port.bed.authority, "web"))


@EVERY_GOOD
async def test_a_good_certificate_of_a_service(bend: Bend) -> None:
    async with attacked_call() as call:
        await call.honest(credential=bend(call.bed.authority, "api"))


async def test_no_certificate_at_a_port() -> None:
    async with attacked_port() as port:
        assert "certificate required" in (await port.attack(None) or "")
        line = await port.refused("no_certificate")
    assert "unverified" not in line


@pytest.mark.parametrize("constrained", [False, True], ids=["by our own check", "by the name constraint too"])
@pytest.mark.parametrize("domain", ["evil.org", "sub.shop.internal", "shop.internal.evil.org", "xshop.internal"])
async def test_another_trust_domain_under_our_own_ca(domain: str, constrained: bool) -> None:
    def bend(ca: Authority, who: str) -> Credential:
        return ca.leaf(who, uris=[f"spiffe://{domain}/{who}"])

    async with attacked_port(authority=Authority(name_constraints=constrained)) as port:
        assert "certificate" in (await port.attack(bend(port.bed.authority, "web")) or "")
        await port.refused("wrong_trust_domain")
    async with attacked_call(authority=Authority(name_constraints=constrained)) as call:
        await call.attack(call.impostor.shows(bend(call.bed.authority, "api")))
        await call.refused("wrong_trust_domain", alarm=True)


async def test_an_expired_ca() -> None:
    """The root itself has run out: everybody is refused, and nobody falls back to anything."""
    old = Authority(age=100 * DAY, root_lifetime=99 * DAY)
    async with mesh_bed(authority=old) as bed:
        app = await bed.app()
        web, api, entry = await bed.pair(app)
        await assert_refused(entry)
        assert (await web.log.connection())["reason"] == "expired"
        line = await api.log.connection()
        assert (line["reason"], line["peer_reason"], line["decision"]) == ("peer_refused", "expired", "deny")
        assert app.connections == 0


async def test_a_certificate_that_expires_while_the_sidecar_runs() -> None:
    """Time is asked at each handshake: an hour later the very same certificate is refused."""
    late = timedelta(0)
    async with attacked_port(clock=lambda: utc_now() + late) as port:
        credential = port.bed.authority.leaf("web")
        await port.honest(credential=credential)
        late = HOUR + timedelta(seconds=1)
        assert "certificate expired" in (await port.attack(credential) or "")
        line = await port.sidecar.log.connection(2)
        assert (line["reason"], line["decision"], line["bytes_to_app"]) == ("expired", "deny", 0)
        late = timedelta(0)
    async with attacked_call(clock=lambda: utc_now() - HOUR) as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api")))
        line = await call.sidecar.log.connection()
        assert (line["reason"], line["decision"]) == ("not_yet_valid", "deny")


async def test_every_refusal_reaches_the_refused() -> None:
    """An alert must not be lost to a reset when the refused has sent data at once: 50 of 50."""
    async with attacked_port() as port:
        stranger = Authority(name="Another").leaf("web")
        alerts = [await port.attack(stranger) for _ in range(50)]
        assert ["unknown ca" in (alert or "") for alert in alerts] == [True] * 50
        await port.sidecar.log.connection(50)
        assert {line["reason"] for line in port.sidecar.log.connections} == {"unknown_ca"}
        assert port.app.connections == 0


def fingerprint(credential: Credential) -> str:
    return hashlib.sha256(credential.der).hexdigest()


# -- what is no certificate at all -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "der", [b"garbage", b"\x30\x03\x02\x01\x00", b"\x30\x82\x01\x00" + bytes(256)], ids=["text", "a number", "zeros"]
)
async def test_a_certificate_that_cannot_be_read_was_presented_all_the_same(der: bytes) -> None:
    """Its refusals are never folded, unlike those of strangers who present nothing."""
    async with attacked_port() as port:
        for number in range(LINES + 2):
            await present(await port.foreigner(None, configure=(log := KeyLog()).configure), log, der)
            line = await port.sidecar.log.connection(number + 1)
            assert (line["reason"], line["decision"]) == ("handshake_failed", "deny")
            assert line["unverified"].keys() == {"unreadable"}
            port.lines += 1
        await port.honest()
        assert port.sidecar.node.metrics.folded == 0


async def present(caller: Foreigner, log: KeyLog, der: bytes) -> None:
    """Answers the request for a certificate with these bytes in its place."""
    with caller.sock, contextlib.suppress(OSError):
        with contextlib.suppress(SSL.WantReadError):
            caller.tls.do_handshake()
        await caller.flush()
        while "CLIENT_HANDSHAKE_TRAFFIC_SECRET" not in log.secrets:
            caller.tls.bio_write(await sockets.receive(caller.sock, 65536))
            with contextlib.suppress(SSL.WantReadError, SSL.Error):
                caller.tls.do_handshake()
        entry = len(der).to_bytes(3, "big") + der + b"\0\0"
        body = b"\0" + len(entry).to_bytes(3, "big") + entry
        writer = Writer(log.secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"])
        await sockets.send_all(caller.sock, writer.record(HANDSHAKE, message(CERTIFICATE, body)))
        while await sockets.receive(caller.sock, 65536):
            pass
