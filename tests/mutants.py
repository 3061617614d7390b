"""Removes each security check in turn, in a copy of this tree, and shows that tests turn red. ``make mutants`` runs it.

One line a mutant: ``killed  <what>  by <first failing test>``. The exit code is 1 if one survives, or if the code has moved
so that a mutation no longer applies. Checks that no test can miss, because another layer refuses the same, are listed under
:data:`REDUNDANT` with that layer.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("sidecar", "certs", "tests", "pyproject.toml", "README.md")
PATIENCE_SECONDS = 90
PATIENCE_WITH_ALL_SECONDS = 900
"""For all the tests of all mutants, one after the other, with nothing removed."""
CERTIFICATES = "tests/attacks/test_certificates.py"
MIDDLE = "tests/attacks/test_somebody_in_the_middle.py"
TAMPERING = "tests/attacks/test_tampering.py"
VERSIONS = "tests/attacks/test_tls_versions.py"
SESSIONS = "tests/attacks/test_resumption.py"
NAMES = "tests/attacks/test_alpn_and_sni.py"
STRANGERS = "tests/attacks/test_strangers.py"
FLOODS = "tests/attacks/test_floods.py"
VERDICTS = "tests/attacks/test_verdict_frame.py"
FAIL_OVER = "tests/attacks/test_fail_over.py"
POLICY = "tests/attacks/test_policy.py"
LOGS = "tests/attacks/test_log_forging.py"
CA_TOKENS = "tests/attacks/test_ca_tokens.py"
CA_REQUESTS = "tests/attacks/test_ca_requests.py"
CA_CONTACT = "tests/attacks/test_ca_at_first_contact.py"
CA_RENEWALS = "tests/attacks/test_ca_renewals.py"
CA_ANSWERS = "tests/attacks/test_ca_answers.py"
CA_TRUST = "tests/attacks/test_ca_bundles_and_lists.py"
CA_FLOODS = "tests/attacks/test_ca_denial_of_service.py"
CA_SECRETS = "tests/attacks/test_ca_secrets.py"
REVOKED = "tests/attacks/test_revoked_peers.py"
CA_TLS = "tests/attacks/test_ca_connections.py"
CSR = "::test_a_csr_that_asks_for_anything_but_a_key_is_refused_and_not_corrected"
VERB = "::test_an_unknown_verb_or_path_is_answered_before_anything_else_is_looked_at"
BODY = "::test_a_body_that_is_not_exactly_what_is_asked_for"
REFUSED = "::test_a_certificate_that_no_peer_would_take_is_refused_in_the_handshake"
STALE = "::test_a_stale_list_lets_nobody_new_in_cuts_nobody_and_is_no_alarm"
BUNDLE, LIST = "::test_a_bundle_that_does_not_count", "::test_a_list_that_does_not_count"
TAKES, GARBAGE = "::test_a_certificate_that_was_not_asked_for_so_is_not_taken", "::test_garbage_is_not_taken_either"
SLOW = "::test_a_byte_at_a_time_gets_the_time_of_one_request_and_no_more"
BROKEN = "::test_a_certificate_that_is_broken_or_not_ours_is_not_used_and_said"
TOUCHED = "::test_a_state_that_others_could_have_touched_stops_the_start"


@dataclass(frozen=True)
class Mutant:
    """``edits``: (file, exact old text, new text), each found exactly once. ``tests``: those that ought to notice."""

    what: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def never(what: str, file: str, condition: str, *tests: str) -> Mutant:
    """The check under ``condition`` (an ``if``) is dropped."""
    return Mutant(what, ((file, condition, f"{condition[: condition.index('if ') + 3]}False:"),), tests)


def edit(what: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(what, ((file, old, new),), tests)


JUDGE, IDENTITY, TLS = "sidecar/judge.py", "sidecar/identity.py", "sidecar/tls.py"
IN, OUT, DUPLEX, DECIDE = "sidecar/inbound.py", "sidecar/outbound.py", "sidecar/duplex.py", "sidecar/policy.py"
WIRING = "sidecar/configfile.py"
UNIT_WIRING = ("tests/unit/test_configfile.py", "tests/unit/test_config.py", "tests/unit/test_collisions.py")
ISSUANCE, REGISTRAR, TRUST = "certs/issuance.py", "certs/registrar.py", "certs/trust.py"
SERVICE, HTTP, CLIENT, LET_IN = "certs/service.py", "sidecar/http1.py", "certs/client.py", "certs/connections.py"
TAKEN, MEMBER, STATE = "sidecar/answers.py", "sidecar/member.py", "sidecar/statedir.py"
PRIVATE = "sidecar/private.py"
STANDING, STREAM, NODE = "certs/standing.py", "sidecar/stream.py", "sidecar/node.py"
UNIT_NODE, UNIT_REGISTRY, UNIT_PROCESS = (f"tests/unit/test_{name}.py" for name in ("node", "registry", "process"))
OWN, UNIT_OWN = "sidecar/credentials.py", "tests/unit/test_credentials.py"
UNIT_JUDGE, UNIT_IDENTITY, UNIT_POLICY = (f"tests/unit/test_{name}.py" for name in ("judge", "identity", "policy"))
UNIT_TLS, UNIT_VERDICT, UNIT_OUTBOUND = (f"tests/unit/test_{name}.py" for name in ("tls", "verdict", "outbound"))

AFTERWARDS = """\
svid = judge(presented, self._terms, self._clock())
        self.path = tuple(map(_shared, presented.path))
        self.anchor = der_digest(presented.path[-1])"""
UNJUDGED = """\
from sidecar.identity import parse_svid

        svid = parse_svid(sent[0])
        self.path = presented.path
        self.anchor = der_digest(presented.path[-1]) if presented.path else b'none'"""

MUTANTS = [
    # -- the judgement
    never("judge: no certificate", JUDGE, "if not presented.sent:", UNIT_JUDGE),
    never("judge: length of the chain", JUDGE, "if len(presented.sent) > MAX_CHAIN:", CERTIFICATES),
    never("judge: what OpenSSL found", JUDGE, "if presented.fault is not None:", UNIT_JUDGE),
    never(
        "judge: a verified path", JUDGE, "if not presented.path or presented.path[0] != presented.sent[0]:", UNIT_JUDGE
    ),
    never("judge: trust domain", JUDGE, "if svid.id.trust_domain != terms.trust_domain:", CERTIFICATES),
    never("judge: not yet valid", JUDGE, "if now < svid.not_before:", CERTIFICATES),
    never("judge: expired", JUDGE, "if now > svid.not_after:", CERTIFICATES),
    never("judge: max_leaf_ttl", JUDGE, "if svid.lifetime > terms.max_leaf_ttl:", CERTIFICATES),
    edit(
        "judge: revocations",
        JUDGE,
        "    if (why := revoked(svid, presented.path, terms.revocations)) is not None:",
        "    if (why := None) is not None:",
        UNIT_JUDGE,
    ),
    never("judge: revoked identity", JUDGE, "if before is not None and svid.not_before < before:", UNIT_JUDGE),
    never("judge: revoked serial", JUDGE, "if (svid.issuer, svid.serial) in revocations.serials:", UNIT_JUDGE),
    never(
        "judge: revoked issuer",
        JUDGE,
        "if (issuer, serial) in revocations.serials or key in revocations.keys:",
        UNIT_JUDGE,
    ),
    never("judge: the expected peer", JUDGE, "if terms.expected is not None and svid.id != terms.expected:", MIDDLE),
    # -- the leaf
    never("leaf: cA", IDENTITY, "if constraints is not None and constraints.value.ca:", CERTIFICATES),
    edit("leaf: KeyUsage missing", IDENTITY, 'faults.append("it has no KeyUsage")', "pass", CERTIFICATES),
    never("leaf: KeyUsage critical", IDENTITY, "if not usage.critical:", CERTIFICATES),
    never("leaf: digitalSignature", IDENTITY, "if not usage.value.digital_signature:", CERTIFICATES),
    never("leaf: keyCertSign", IDENTITY, "if usage.value.key_cert_sign:", UNIT_IDENTITY),
    never("leaf: cRLSign", IDENTITY, "if usage.value.crl_sign:", CERTIFICATES),
    edit(
        "leaf: ExtendedKeyUsage missing", IDENTITY, 'faults.append("it has no ExtendedKeyUsage")', "pass", CERTIFICATES
    ),
    never("leaf: both extended usages", IDENTITY, "if oid not in extended.value:", CERTIFICATES),
    edit("leaf: one URI", IDENTITY, "if len(uris) != 1:", "if not uris:", CERTIFICATES),
    edit(
        "leaf: the URI is a SPIFFE ID",
        IDENTITY,
        "            faults.append(str(error))",
        "            pass",
        UNIT_IDENTITY,
    ),
    edit("ID: the whole trust domain", IDENTITY, "_TRUST_DOMAIN.fullmatch(", "_TRUST_DOMAIN.match(", UNIT_IDENTITY),
    edit("ID: the whole segment", IDENTITY, "_SEGMENT.fullmatch(", "_SEGMENT.match(", CERTIFICATES),
    edit("ID: no . or ..", IDENTITY, ' and text not in {".", ".."}', "", CERTIFICATES),
    never("ID: the scheme", IDENTITY, "if not text.startswith(_SCHEME):", UNIT_IDENTITY),
    never("ID: a path", IDENTITY, "if not segments:", CERTIFICATES),
    # -- TLS
    edit(
        "TLS: the verify callback says yes",
        TLS,
        "    if ok and depth > 0:\n        return 1\n",
        "    return 1\n",
        CERTIFICATES,
    ),
    edit("TLS: judged in the callback only", TLS, AFTERWARDS, UNJUDGED, CERTIFICATES),
    Mutant(
        "TLS: no verification of the peer at all",
        (
            (TLS, "    if ok and depth > 0:\n        return 1\n", "    return 1\n"),
            (TLS, AFTERWARDS, UNJUDGED),
            ("sidecar/node.py", "if claim.anchor not in self.context.anchors:", "if False:"),
        ),
        (CERTIFICATES,),
    ),
    edit(
        "TLS: a bug in the callback refuses",
        TLS,
        "        endpoint._problem = error\n        return 0",
        "        return 1",
        UNIT_TLS,
    ),
    edit(
        "TLS: a certificate is demanded",
        TLS,
        "required = 0 if terms.anonymous else _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT",
        "required = 0",
        CERTIFICATES,
    ),
    edit(
        "TLS: the caller pins the callee",
        TLS,
        "Terms(self.terms.trust_domain, expected,",
        "Terms(self.terms.trust_domain, None,",
        MIDDLE,
    ),
    edit(
        "TLS: 1.3 at least",
        TLS,
        "context.set_min_proto_version(SSL.TLS1_3_VERSION)",
        "context.set_min_proto_version(SSL.TLS1_2_VERSION)",
        VERSIONS,
    ),
    edit("TLS: strict chains", TLS, "    store.set_flags(crypto.X509StoreFlags.X509_STRICT)", "    pass", CERTIFICATES),
    edit("TLS: no tickets", TLS, "SSL.OP_NO_TICKET | ", "", SESSIONS),
    edit(
        "TLS: ALPN at the callee",
        TLS,
        "return int(_lib.SSL_TLSEXT_ERR_ALERT_FATAL)",
        "return int(_lib.SSL_TLSEXT_ERR_NOACK)",
        NAMES,
    ),
    never("TLS: ALPN at the caller", TLS, 'if protocol not in (b"", self._alpn):', NAMES, UNIT_TLS),
    edit(
        "TLS: plaintext is told apart",
        TLS,
        "if self._first[0] in _TLS_RECORDS:",
        "if True:",
        STRANGERS,
    ),
    never("TLS: bytes of a handshake", TLS, "if self._received > MAX_HANDSHAKE_BYTES:", FLOODS, UNIT_TLS),
    # -- who may
    never("inbound: the policy's answer", IN, "if not decision.allowed:", MIDDLE),
    never("inbound: require_alpn", IN, "if port.require_alpn and not endpoint.speaks_mesh:", NAMES),
    edit(
        "inbound: no yes before the policy's",
        IN,
        "        decision = decide(",
        "        await tell(sock, endpoint, Reason.OK)\n        decision = decide(",
        MIDDLE,
    ),
    never("outbound: the policy's answer", OUT, "if not decision.allowed:", POLICY),
    never(
        "outbound: allow_from",
        OUT,
        "if route.allow_from and not any(client in network for network in route.allow_from):",
        POLICY,
    ),
    never("outbound: require_alpn", OUT, "if route.require_alpn and not endpoint.speaks_mesh:", NAMES),
    edit(
        "outbound: the verdict is awaited", OUT, "            await hear(net, endpoint)", "            pass", VERDICTS
    ),
    never("outbound: the alarm", OUT, "if refusal.reason in MITM_SUSPECTS:", MIDDLE),
    edit(
        "outbound: no fail-over past a no",
        OUT,
        "                place.answered()\n                break",
        "                continue",
        FAIL_OVER,
    ),
    edit(
        "verdict: only ok is yes",
        "sidecar/verdict.py",
        'if word == b"ok":',
        'if word.strip().lower() == b"ok":',
        VERDICTS,
    ),
    never("verdict: its length", "sidecar/verdict.py", "if not 0 < header[0] <= MAX_WORD:", VERDICTS),
    edit(
        "policy: default deny",
        DECIDE,
        "    return _decision(mesh, source, target, Kind.NO_RULE, None, dry_run)",
        "    return _decision(mesh, source, target, Kind.ALLOWED, None, dry_run)",
        POLICY,
    ),
    never("policy: deny beats allow", DECIDE, "if denying is not None:", POLICY),
    edit(
        "policy: the trust domain",
        DECIDE,
        "    if source.trust_domain != mesh.trust_domain:\n        return _dec",
        "    if False:\n        return _dec",
        UNIT_POLICY,
    ),
    edit(
        "policy: dry runs decide nothing",
        DECIDE,
        '[rule for rule in in_force if rule.mode == "enforce"]',
        "in_force",
        POLICY,
    ),
    edit(
        "policy: rules run out",
        "sidecar/mesh.py",
        "return self.fits(source, target) and not self.ran_out(now)",
        "return self.fits(source, target)",
        POLICY,
    ),
    never(
        "dial: never to ourselves",
        "sidecar/dial.py",
        "if is_own(*ends, listening):",
        POLICY,
    ),
    # -- the wiring
    never("wiring: plaintext on every address", WIRING, "if address is None or address.is_wildcard:", *UNIT_WIRING),
    never(
        "wiring: plaintext off loopback",
        WIRING,
        'if not address.is_loopback and info.data.get("allow_from", "broken") == ():',
        *UNIT_WIRING,
    ),
    never("wiring: no loop", "sidecar/collisions.py", "if _leads_to(address, own, listeners.values()):", *UNIT_WIRING),
    # -- our own files
    never(
        "own files: the key is the certificate's", OWN, "if private.public_key() != chain[0].public_key():", UNIT_OWN
    ),
    never("own files: the bundle holds CAs", OWN, "if not is_ca:", UNIT_OWN),
    never("own files: strong keys", OWN, "if not strong:", UNIT_OWN),
    never("own files: expired", OWN, "if now > svid.not_after:", UNIT_OWN),
    never("own files: not yet valid", OWN, "if now < svid.not_before:", UNIT_OWN),
    edit(
        "own files: judged as peers will",
        OWN,
        "    return judge(Presented(ders, ders, tls.verify_own_chain(keys)), terms, now)",
        "    return parse_svid(ders[0])",
        UNIT_OWN,
    ),
    never(
        "own files: the key is its owner's",
        PRIVATE,
        "if alone is not None and (unfit := exposure(status, alone)) is not None:",
        UNIT_OWN,
    ),
    never("own files: no FIFO", PRIVATE, "if not stat.S_ISREG(status.st_mode):", UNIT_OWN),
    never("own files: their size", PRIVATE, "if len(content) > limit:", UNIT_OWN),
    never("bytes before the verdict", "sidecar/handshake.py", "if silent > MAX_SILENT_CIPHERTEXT:", FLOODS),
    # -- revocation and staleness
    edit("judge: an issuer's key", JUDGE, " or key in revocations.keys:", ":", UNIT_JUDGE),
    never(
        "judge: a stale list",
        JUDGE,
        "if terms.revocations.fresh_until is not None and now > terms.revocations.fresh_until:",
        UNIT_JUDGE,
    ),
    never("live: trust is judged again", NODE, "if claim.anchor not in self.context.anchors:", UNIT_NODE),
    never(
        "live: revocation is judged again",
        NODE,
        "if revoked(claim.peer, claim.path, self.context.terms.revocations) is not None:",
        UNIT_NODE,
    ),
    edit(
        "live: adopted news are judged by",
        "sidecar/reload.py",
        '            cut = await self._rejudge()\n            message = "in force now: what the CA',
        '            cut = 0\n            message = "in force now: what the CA',
        f"{REVOKED}::test_a_revoked_callee_is_cut_and_met_with_an_alarm",
    ),
    edit(
        "TLS: the caller judges by the list",
        TLS,
        "expected, self.terms.max_leaf_ttl, self.terms.revocations)",
        "expected, self.terms.max_leaf_ttl)",
        REVOKED + STALE,
    ),
    # -- TLS of the CA
    Mutant(
        "TLS: only an anonymous end takes nobody",
        (
            (TLS, "required = 0 if terms.anonymous else _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT", "required = 0"),
            (TLS, "None if self._terms.anonymous else judge(Presented(()), self._terms, self._clock())", "None"),
        ),
        (CERTIFICATES,),
    ),
    edit(
        "TLS: an anonymous end judges whoever is somebody",
        TLS,
        "_lib.SSL_VERIFY_PEER | required, _verify",
        "(_lib.SSL_VERIFY_NONE if terms.anonymous else _lib.SSL_VERIFY_PEER | required), _verify",
        CA_RENEWALS + REFUSED,
    ),
    edit(
        "TLS: unverified is asked for",
        TLS,
        "        if self._unverified:",
        "        if True:",
        f"{CA_RENEWALS}::test_the_twin_of_all_below_renews",
    ),
    edit("client: pins the CA's identity", CLIENT, 'CA_SEGMENTS = ("mesh", "ca")', 'CA_SEGMENTS = ("ca",)', CA_CONTACT),
    edit(
        "client: whoever answers proves to be the CA",
        CLIENT,
        "Context(self._keys, self._terms()))",
        "Context(self._keys, self._terms(), unverified=True))",
        CA_CONTACT,
    ),
    never("client: the size of an answer", CLIENT, "if size > MAX_ANSWER_BYTES:", CA_ANSWERS + GARBAGE),
    edit(
        "client: distrusted issuers",
        CLIENT,
        "Terms(self._ca.trust_domain, revocations=self._revocations)",
        "Terms(self._ca.trust_domain)",
        f"{CA_TLS}::test_a_ca_under_a_distrusted_issuing_key_is_none",
    ),
    never("client: a no is no yes", CLIENT, "if answer.status == 200:", CA_ANSWERS + GARBAGE),
    # -- what may be asked for
    never("CSR: its size", ISSUANCE, "if len(text) > MAX_CSR_BYTES:", CA_REQUESTS + CSR),
    never(
        "CSR: P-256",
        ISSUANCE,
        "if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):",
        CA_REQUESTS + CSR,
    ),
    edit(
        "CSR: a strong hash",
        ISSUANCE,
        "is_strong = isinstance(csr.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)",
        "is_strong = True",
        CA_REQUESTS + CSR,
    ),
    never("CSR: signed by its own key", ISSUANCE, "if not is_valid:", CA_REQUESTS + CSR),
    never("CSR: no subject", ISSUANCE, "if csr.subject.rdns:", CA_REQUESTS + CSR),
    never(
        "CSR: no attributes",
        ISSUANCE,
        "if [attribute.oid for attribute in attributes] not in ([], [_EXTENSION_REQUEST]):",
        CA_REQUESTS + CSR,
    ),
    edit(
        "CSR: no extension but names",
        ISSUANCE,
        "        if not isinstance(names, x509.SubjectAlternativeName):\n            raise",
        "        if not isinstance(names, x509.SubjectAlternativeName):\n            continue\n            raise",
        CA_REQUESTS + CSR,
    ),
    never(
        "CSR: no name but its own",
        ISSUANCE,
        "if list(names) != [x509.UniformResourceIdentifier(str(identity))]:",
        CA_REQUESTS + CSR,
    ),
    # -- who gets a certificate
    never(
        "registrar: a declared service",
        REGISTRAR,
        "if not is_segment(service) or service not in self.services:",
        CA_TOKENS,
        f"{CA_RENEWALS}::test_of_a_service_that_is_not_in_the_mesh_any_more",
    ),
    never("registrar: an ended pass", REGISTRAR, "if row.ended_at is not None:", CA_TOKENS),
    never("registrar: a used token", REGISTRAR, "if row.used_by not in (None, key_hash(key)):", CA_TOKENS),
    edit(
        "registrar: a token is used up",
        REGISTRAR,
        "values(used_by=key_hash(key))",
        "values(used_by=None)",
        CA_TOKENS,
    ),
    never(
        "registrar: a token runs out",
        REGISTRAR,
        "if row.used_by is None and transaction.now >= row.expires_at:",
        CA_TOKENS,
    ),
    edit("registrar: a pass is one identity's", REGISTRAR, " or row.identity != str(identity):", ":", CA_TOKENS),
    edit(
        "registrar: the CSR of an enrolment",
        REGISTRAR,
        "    check_csr(request, identity)\n    row = _find",
        "    row = _find",
        CA_REQUESTS + CSR,
    ),
    edit(
        "registrar: the CSR of a renewal",
        REGISTRAR,
        "    check_csr(request, identity)\n    if _when",
        "    if _when",
        f"{CA_RENEWALS}::test_with_another_s_certificate_one_becomes_nobody_else",
    ),
    never(
        "registrar: a service renews",
        REGISTRAR,
        "if identity.trust_domain != self.authority.trust_domain or identity.service is None:",
        f"{CA_RENEWALS}::test_with_the_ca_s_own_certificate",
    ),
    never("registrar: an ended certificate", REGISTRAR, "if _when(transaction.now) > svid.not_after:", CA_RENEWALS),
    edit(
        "registrar: a revoked renewal",
        REGISTRAR,
        "    _refuse_revoked(transaction, path[0])",
        "    pass",
        f"{CA_RENEWALS}::test_a_revoked_one",
    ),
    edit(
        "registrar: a revoked re-enrolment",
        REGISTRAR,
        "    _refuse_revoked(transaction, certificate)",
        "    pass",
        f"{CA_RENEWALS}::test_a_revoked_one_is_not_brought_back_by_its_key",
    ),
    edit(
        "registrar: a distrusted issuer's",
        REGISTRAR,
        "    if _row(transaction, path[0]) is None and any(",
        "    if False and any(",
        f"{CA_RENEWALS}::test_a_certificate_of_a_distrusted_issuer_that_this_ca_never_issued",
    ),
    edit(
        "registrar: re-enrolment of our own",
        REGISTRAR,
        "    if row is None:\n        raise Denied(Denial.NOT_ENTITLED",
        "    if False:\n        raise Denied(Denial.NOT_ENTITLED",
        f"{CA_RENEWALS}::test_a_certificate_that_this_ca_did_not_issue",
    ),
    edit(
        "registrar: re-enrolment by the old key",
        REGISTRAR,
        "        old_key.verify(signature, proof_of_possession(nonce, key), ec.ECDSA(hashes.SHA256()))",
        "        pass",
        f"{CA_RENEWALS}::test_another_key_is_not",
    ),
    edit(
        "registrar: the proof is for the new key",
        ISSUANCE,
        "return PROOF + nonce + bytes.fromhex(key_hash(new_key))",
        "return PROOF + nonce",
        f"{CA_RENEWALS}::test_a_signature_for_another_new_key_is_not",
    ),
    never(
        "registrar: the window",
        REGISTRAR,
        "if _when(transaction.now) > end:",
        f"{CA_RENEWALS}::test_after_the_window_it_is_over",
    ),
    edit(
        "registrar: a key is certified once",
        REGISTRAR,
        'raise Denied(Denial.KEY_REUSED, "the key',
        'return str(known.certificate)\n        raise Denied(Denial.KEY_REUSED, "the key',
        CA_TOKENS,
    ),
    edit(
        "registrar: again is for the same identity",
        REGISTRAR,
        "known.identity == str(identity) and ",
        "",
        f"{CA_RENEWALS}::test_a_key_is_certified_once",
    ),
    edit(
        "registrar: dated after a revocation",
        REGISTRAR,
        "            not_before=revoked_until(transaction.connection, identity),\n",
        "",
        f"{CA_RENEWALS}::test_what_is_issued_after_a_revocation_is_good_and_dated_after_it",
    ),
    edit(
        "revoke: ends the passes",
        STANDING,
        "    ended = end_passes(transaction, identity)",
        "    ended = 0",
        f"{CA_TOKENS}::test_a_revocation_ends_the_passes_of_its_service_and_no_other_s",
    ),
    # -- the signed documents
    edit(
        "documents: a bundle is a trusted root's",
        TRUST,
        'return None if certificate_digest(signer) in anchors else "not by a root that is trusted here"',
        "return None",
        CA_TRUST + BUNDLE,
    ),
    never(
        "documents: a list's signer was appointed",
        TRUST,
        "if not any(is_signed_by(signer, root) for root in bundle.roots):",
        CA_TRUST + LIST,
    ),
    edit(
        "documents: a delegate was made for that",
        TRUST,
        "return None if _is_delegate(signer) else",
        "return None if True else",
        CA_TRUST + LIST,
    ),
    edit(
        "documents: the signature",
        TRUST,
        '            key.verify(b64decode(entry["signature"], validate=True), signed, ec.ECDSA(hashes.SHA256()))',
        "            pass",
        CA_TRUST + BUNDLE,
    ),
    never("documents: signed at all", TRUST, 'if envelope["type"] != kind:', CA_TRUST + LIST),
    edit(
        "documents: the type is signed too",
        TRUST,
        'return kind.encode() + b"\\0" + body',
        "return body",
        CA_TRUST + BUNDLE,
    ),
    never("documents: their mesh", TRUST, "if claimed != trust_domain:", CA_TRUST + BUNDLE),
    never("documents: their size", TRUST, "if len(document) > MAX_BYTES:", CA_TRUST + LIST),
    edit(
        "documents: the signer's time",
        TRUST,
        "    if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:",
        "    if False:",
        CA_TRUST + LIST,
    ),
    edit(
        "documents: a bundle has roots",
        TRUST,
        "    if not roots:\n        raise",
        "    if False:\n        raise",
        CA_TRUST + BUNDLE,
    ),
    edit(
        "documents: roots are CAs",
        TRUST,
        "[*ca_faults(root), *([] if is_signed_by(root, root)",
        "[*([] if is_signed_by(root, root)",
        CA_TRUST + BUNDLE,
    ),
    edit(
        "documents: roots sign themselves",
        TRUST,
        '*([] if is_signed_by(root, root) else ["it did not sign itself"])',
        "*[]",
        CA_TRUST + BUNDLE,
    ),
    never("documents: the active root", TRUST, "if bundle.active not in bundle.anchors:", CA_TRUST + BUNDLE),
    # -- the desk
    edit(
        "service: guesses are counted",
        "certs/guesses.py",
        "while not self._left.take(source, trio.current_time()):",
        "while False:",
        CA_TOKENS,
    ),
    edit(
        "service: a guess is not given back",
        "certs/guesses.py",
        "            if not is_wrong:\n                self._left",
        "            if True:\n                self._left",
        CA_TOKENS,
    ),
    never(
        "service: a renewal shows a certificate", SERVICE, "if not path:", f"{CA_RENEWALS}::test_without_a_certificate"
    ),
    edit(
        "service: the nonce is ours",
        SERVICE,
        'if not hmac.compare_digest(tag, hmac.digest(self._nonce_key, body, "sha256")) or not 0',
        "if not 0",
        f"{CA_RENEWALS}::test_a_nonce_of_nobody_s_or_of_long_ago_is_not",
    ),
    edit(
        "service: the nonce is of now",
        SERVICE,
        " or not 0 <= age <= NONCE_SECONDS:",
        ":",
        f"{CA_RENEWALS}::test_a_nonce_of_nobody_s_or_of_long_ago_is_not",
    ),
    edit("service: exactly what is asked for", SERVICE, "or set(said) != set(names) or", "or", CA_REQUESTS + BODY),
    never("HTTP: unknown paths", HTTP, "if methods is None:", CA_REQUESTS + VERB),
    edit(
        "HTTP: unknown verbs",
        HTTP,
        "    if handler is None:\n",
        "    handler = handler or next(iter(methods.values()))\n    if handler is None:\n",
        CA_REQUESTS + VERB,
    ),
    edit(
        "HTTP: a body's announced size",
        HTTP,
        "    if int(length) > MAX_BODY_BYTES:",
        "    if False:",
        f"{CA_REQUESTS}::test_a_body_that_is_announced_too_large_is_not_waited_for",
    ),
    never(
        "HTTP: a body's size",
        HTTP,
        "if len(body) > MAX_BODY_BYTES:",
        f"{CA_REQUESTS}::test_a_megabyte_is_refused_by_its_length_and_by_its_bytes",
    ),
    never(
        "HTTP: a length or chunks",
        HTTP,
        'if headers.keys() >= {"content-length", "transfer-encoding"}:',
        f"{CA_REQUESTS}::test_a_smuggled_second_request_is_none",
    ),
    edit(
        "HTTP: the time of a body",
        HTTP,
        "            with trio.fail_at(deadline):",
        "            with trio.CancelScope():",
        f"{CA_FLOODS}::test_a_body_a_byte_at_a_time",
    ),
    edit(
        "HTTP: the time of a head",
        HTTP,
        "    with trio.fail_after(REQUEST_SECONDS) as scope:",
        "    with trio.CancelScope() as scope:",
        CA_FLOODS + SLOW,
    ),
    edit(
        "HTTP: the time of silence",
        HTTP,
        "        with trio.move_on_after(0 if self.has_begun else IDLE_SECONDS) as scope:",
        "        with trio.CancelScope() as scope:",
        f"{CA_FLOODS}::test_a_connection_that_asks_nothing_is_closed_after_a_minute_and_one_that_asks_is_kept",
    ),
    edit(
        "HTTP: the time of an answer",
        HTTP,
        "        with trio.move_on_after(REQUEST_SECONDS) as taken:",
        "        with trio.CancelScope() as taken:",
        f"{CA_FLOODS}::test_a_caller_that_never_reads_is_cut",
    ),
    edit(
        "CA: the time of a handshake",
        LET_IN,
        "            with trio.fail_after(HANDSHAKE_SECONDS):",
        "            with trio.CancelScope():",
        CA_FLOODS + SLOW,
    ),
    edit(
        "CA: strangers make room",
        LET_IN,
        " and not self._cut_a_stranger():",
        ":",
        f"{CA_FLOODS}::test_when_all_places_are_taken_the_oldest_stranger_makes_room_and_no_member_does",
    ),
    edit(
        "CA: members stay",
        LET_IN,
        "            if endpoint.svid is not None:\n                self._strangers.pop(scope, None)\n",
        "",
        f"{CA_FLOODS}::test_when_all_places_are_taken_the_oldest_stranger_makes_room_and_no_member_does",
    ),
    edit(
        "CA: there is a most",
        LET_IN,
        "if len(connections.child_tasks) > MAX_CONNECTIONS and",
        "if False and",
        f"{CA_FLOODS}::test_with_members_only_a_stranger_is_turned_away",
    ),
    never(
        "stream: records without data",
        STREAM,
        "if silent > MAX_SILENT_CIPHERTEXT:",
        f"{CA_FLOODS}::test_a_flood_of_key_updates_is_cut",
    ),
    edit(
        "stream: a FIN alone is no end",
        STREAM,
        'raise BrokenStreamError("the connection was cut: it ended without a TLS close_notify")',
        'return b""',
        f"{CA_TLS}::test_an_answer_that_is_cut_off_by_a_bare_fin_is_no_answer",
    ),
    # -- what a sidecar takes
    never(
        "sidecar: no older bundle",
        TAKEN,
        "if bundle is not None and found.version <= bundle.version:",
        CA_TRUST + BUNDLE,
    ),
    never(
        "sidecar: no older list",
        TAKEN,
        "if have is not None and (found.version, found.issued_at) < (have.version, have.issued_at):",
        CA_TRUST + LIST,
    ),
    edit(
        "sidecar: no list, nobody",
        TAKEN,
        "return Revocations(keys=bundle.distrusted, fresh_until=_NEVER)",
        "return Revocations(keys=bundle.distrusted)",
        f"{REVOKED}::test_without_any_list_nobody_is_let_in",
        f"{CA_TRUST}::test_a_garbage_list_on_the_disk_lets_nobody_in_until_there_is_a_new_one",
    ),
    never("sidecar: the length of a chain", TAKEN, "if not 2 <= len(chain) <= MAX_CHAIN:", CA_ANSWERS + TAKES),
    never("sidecar: its own key", TAKEN, "if not is_ours:", CA_ANSWERS + TAKES),
    never("sidecar: a certificate that lasts", TAKEN, "if end < now + MIN_LIFE:", CA_ANSWERS + TAKES),
    edit(
        "sidecar: its own identity",
        TAKEN,
        "terms = Terms(own.trust_domain, own, max_leaf_ttl,",
        "terms = Terms(own.trust_domain, None, max_leaf_ttl,",
        CA_ANSWERS + TAKES,
    ),
    edit(
        "sidecar: judged as peers will",
        TAKEN,
        "        svid = judge_own(keys, terms, now)\n    except Refused",
        "        svid = parse_svid(chain[0].public_bytes(serialization.Encoding.DER))\n    except Refused",
        CA_ANSWERS + TAKES,
    ),
    edit(
        "sidecar: for no longer than leaves may",
        TAKEN,
        "Terms(own.trust_domain, own, max_leaf_ttl, Revocations",
        "Terms(own.trust_domain, own, timedelta(days=9999), Revocations",
        CA_ANSWERS + TAKES,
    ),
    edit(
        "sidecar: what is kept is its own",
        TAKEN,
        "if svid.id != own or chain[0].public_key() != key.public_key() or len(chain) < 2:",
        "if False:",
        CA_SECRETS + BROKEN,
    ),
    edit(
        "sidecar: what is kept has its key",
        TAKEN,
        "if svid.id != own or chain[0].public_key() != key.public_key() or len(chain) < 2:",
        "if svid.id != own or len(chain) < 2:",
        CA_SECRETS + BROKEN,
    ),
    never(
        "sidecar: a pass goes to its own mesh",
        MEMBER,
        "if shown.root != self._pin and shown.root not in self._known().anchors:",
        f"{CA_CONTACT}::test_a_token_of_another_mesh_is_not_sent_to_this_one",
    ),
    edit(
        "sidecar: a pass is its owner's alone",
        MEMBER,
        '"enrolment token or secret", secret=True)',
        '"enrolment token or secret")',
        f"{CA_CONTACT}::test_a_pass_file_that_others_can_read_is_not_used",
    ),
    never(
        "sidecar: an impostor is an alarm",
        MEMBER,
        'if self._tell("joining", message) and isinstance(error, CaUnverifiedError):',
        CA_CONTACT,
    ),
    edit(
        "state: no symlink in place of the directory",
        STATE,
        "os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_DIRECTORY | os.O_CLOEXEC",
        CA_SECRETS + TOUCHED,
    ),
    edit(
        "state: no symlink in place of a file",
        PRIVATE,
        "(0 if follow else os.O_NOFOLLOW)",
        "0",
        CA_SECRETS + TOUCHED,
    ),
    edit(
        "state: the directory is its owner's alone",
        STATE,
        "        if exposed is not None:\n",
        "        if False:\n",
        CA_SECRETS + TOUCHED,
    ),
    never(
        "state: a file is its owner's alone",
        PRIVATE,
        "if alone is not None and (unfit := exposure(status, alone)) is not None:",
        CA_SECRETS + TOUCHED,
    ),
    never("state: regular files", PRIVATE, "if not stat.S_ISREG(status.st_mode):", CA_SECRETS + TOUCHED),
    never("state: the size of a file", PRIVATE, "if len(content) > limit:", CA_SECRETS + TOUCHED),
    edit(
        "state: made its owner's alone",
        STATE,
        "[NewFile(name, data, SECRET)]",
        "[NewFile(name, data, 0o644)]",
        f"{CA_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
    ),
    edit(
        "state: one sidecar at a time",
        STATE,
        "            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "            pass",
        f"{CA_SECRETS}::test_what_is_kept_is_its_owner_s_alone",
    ),
    edit(
        "process: no core",
        "sidecar/process.py",
        "    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
        "    pass",
        UNIT_PROCESS,
    ),
    edit(
        "process: no look into its memory",
        "sidecar/process.py",
        "ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)",
        "pass",
        UNIT_PROCESS,
    ),
    # -- the stream
    edit("stream: a FIN alone is no end", DUPLEX, "elif self._tolerant:", "elif True:", TAMPERING),
    edit("stream: altered, so reset", DUPLEX, "str(error), reset_app=True", "str(error), reset_app=False", TAMPERING),
    edit(
        "stream: cut, so reset",
        DUPLEX,
        "self._end(Ending(How.TRUNCATED, detail, reset_app=True))",
        "self._end(Ending(How.TRUNCATED, detail))",
        TAMPERING,
    ),
    never("stream: ciphertext without data", DUPLEX, "elif self._silent > MAX_SILENT_CIPHERTEXT:", FLOODS),
]

REDUNDANT = {
    "TLS: verify depth (_VERIFY_DEPTH)": "a chain that deep has more certificates than MAX_CHAIN, which judge() counts",
    "inbound, outbound: `endpoint.svid is None`": "step() is True only after _judged() gave an SVID; kept for the reader",
    "judge: MAX_CHAIN in the verify callback": "the callback sees the leaf only; the count is judged after the handshake",
    "TLS: SESS_CACHE_OFF": "with OP_NO_TICKET, OpenSSL caches no session of a verified peer that has no session id context",
    "TLS: OP_NO_RENEGOTIATION, OP_NO_COMPRESSION": "TLS 1.3 has neither",
}


def main() -> int:
    """Runs all of them, or those whose names contain one of the arguments."""
    wanted = [one for one in MUTANTS if not sys.argv[1:] or any(word in one.what for word in sys.argv[1:])]
    healthy = Mutant("nothing", (), tuple(sorted({test for one in wanted for test in one.tests})))
    width = max(len(one.what) for one in wanted)
    bad = 0
    compileall.compile_dir(ROOT / "sidecar", quiet=2)
    compileall.compile_dir(ROOT / "certs", quiet=2)
    with ThreadPoolExecutor(2 * (os.cpu_count() or 2)) as pool:  # most of them wait: for what does not come any more
        running = [pool.submit(_run, one) for one in (healthy, *wanted)]
        for done in as_completed(running):
            mutant, outcome, why = done.result()
            if mutant is healthy:
                outcome = "red" if outcome == "killed" else "green"
            bad += outcome not in ("killed", "green")
            print(f"{outcome:<8}  {mutant.what:<{width}}  {why}", flush=True)
    for what, why in REDUNDANT.items():
        print(f"redundant  {what}: {why}")
    print(f"{len(wanted)} mutants, {bad} not killed" if bad else f"{len(wanted)} mutants, all killed")
    return 1 if bad else 0


def _run(mutant: Mutant) -> tuple[Mutant, str, str]:
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copy = Path(place)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                # With what is compiled, for it is the same: compiling it anew would take longer than most of the tests. Not
                # with what is being compiled by somebody else, and has a name for a moment only.
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns(".*", "*.pyc.*"))
            else:
                shutil.copy(source, copy / name)
        for file, old, new in mutant.edits:
            text = (copy / file).read_text()
            if text.count(old) != 1:
                return mutant, "stale", f"{file} has {text.count(old)} times: {old.strip()!r}"
            (copy / file).write_text(text.replace(old, new))
        return mutant, *_test(copy, mutant.tests, PATIENCE_SECONDS if mutant.edits else PATIENCE_WITH_ALL_SECONDS)


def _test(copy: Path, tests: tuple[str, ...], patience: float) -> tuple[str, str]:
    # A directory of its own for temporary files: in the common one, pytest tidies up what others are using still.
    base = f"--basetemp={copy / 'basetemp'}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", base, *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        return "hangs", f"no answer from its tests within {patience:g} s"
    failed = re.search(r"^FAILED (.+?)( - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "killed", f"by {failed[1]}"
    if done.returncode == 0:
        return "SURVIVED", f"{', '.join(tests)} are green"
    return "broken", (done.stdout + done.stderr).strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
