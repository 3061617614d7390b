"""Removes each security check in turn, in a copy of this tree, and shows that tests turn red. ``make mutants`` runs it.

One line a mutant: ``killed  <what>  by <first failing test>``. The exit code is 1 if one survives, or if the code has moved
so that a mutation no longer applies. Checks that no test can miss, because another layer refuses the same, are listed under
:data:`REDUNDANT` with that layer.
"""

from __future__ import annotations

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
OWN, UNIT_OWN = "sidecar/credentials.py", "tests/unit/test_credentials.py"
UNIT_JUDGE, UNIT_IDENTITY, UNIT_POLICY = (f"tests/unit/test_{name}.py" for name in ("judge", "identity", "policy"))
UNIT_TLS, UNIT_VERDICT, UNIT_OUTBOUND = (f"tests/unit/test_{name}.py" for name in ("tls", "verdict", "outbound"))

AFTERWARDS = """\
svid = judge(presented, self._terms, self._clock())
        self.path = tuple(map(_shared, presented.path))
        self.anchor = _digest(presented.path[-1])"""
UNJUDGED = """\
from sidecar.identity import parse_svid

        svid = parse_svid(sent[0])
        self.path = presented.path
        self.anchor = _digest(presented.path[-1]) if presented.path else b'none'"""

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
        "_lib.SSL_VERIFY_PEER | _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT",
        "_lib.SSL_VERIFY_PEER",
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
        "    return Decision(False, None, None, why, dry_run)",
        "    return Decision(True, None, None, why, dry_run)",
        POLICY,
    ),
    never("policy: deny beats allow", DECIDE, "if denying is not None:", POLICY),
    edit(
        "policy: the trust domain",
        DECIDE,
        "    if source.trust_domain != mesh.trust_domain:\n        why",
        "    if False:\n        why",
        UNIT_POLICY,
    ),
    edit(
        "policy: dry runs decide nothing",
        DECIDE,
        '[rule for rule in in_force if rule.mode == "enforce"]',
        "in_force",
        POLICY,
    ),
    edit("policy: rules run out", DECIDE, "[rule for rule in matching if not ran_out(rule, now)]", "matching", POLICY),
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
        'if not address.is_loopback and info.data.get("allow_from", "broken") is None:',
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
        "        judge(Presented(ders, ders, fault), terms, now)",
        "        pass",
        UNIT_OWN,
    ),
    never("own files: the key is its owner's", OWN, "if status.st_mode & forbidden:", UNIT_OWN),
    never("own files: no FIFO", OWN, "if not stat.S_ISREG(kind):", UNIT_OWN),
    never("own files: their size", OWN, "if len(data) > MAX_FILE_BYTES:", UNIT_OWN),
    never("bytes before the verdict", "sidecar/handshake.py", "if silent > MAX_SILENT_CIPHERTEXT:", FLOODS),
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
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
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
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(source, copy / name)
        for file, old, new in mutant.edits:
            text = (copy / file).read_text()
            if text.count(old) != 1:
                return mutant, "stale", f"{file} has {text.count(old)} times: {old.strip()!r}"
            (copy / file).write_text(text.replace(old, new))
        return mutant, *_test(copy, mutant.tests)


def _test(copy: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "hangs", f"no answer from its tests within {PATIENCE_SECONDS} s"
    failed = re.search(r"^FAILED (.+?)( - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "killed", f"by {failed[1]}"
    if done.returncode == 0:
        return "SURVIVED", f"{', '.join(tests)} are green"
    return "broken", (done.stdout + done.stderr).strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
