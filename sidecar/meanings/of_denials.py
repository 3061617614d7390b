"""The CA's refusals, as the sidecar that asked quotes them and as the CA logs them (``denied``). Pure.

The words are those of ``certs.protocol.denial``; a test compares them.
"""

from __future__ import annotations

from sidecar.meanings.meaning import Kind, Meaning

_CA_LOG = "Read the CA's log at the same time: its line `denied` has the address that asked."
_NEW_SECRET = (
    "`certs enrolment DIR SERVICE --out SECRET --force`: a new secret. The sidecar reads its file at each attempt."  # noqa: S105
)
_NOT_OURS = "Something that is no sidecar of this version sent the request."


def _denial(word: str, means: str, causes: tuple[str, ...], *steps: str) -> Meaning:
    return Meaning(Kind.DENIAL, word, means, causes, (*steps, _CA_LOG))


DENIALS: tuple[Meaning, ...] = (
    _denial(
        "bad_request",
        "The request is not one that the CA's API has.",
        (_NOT_OURS, "Between the nonce and the answer more than a minute passed: a very busy or suspended machine."),
    ),
    _denial("bad_csr", "The certificate request asks for more than a key, or is damaged.", (_NOT_OURS,)),
    _denial(
        "bad_pass",
        "The token or secret is none that this CA gave for that service.",
        (
            "The secret was given out by another CA, or by an earlier one in the same directory (`certs init --force`).",
            "The secret is another service's: its file was mixed up.",
            "Somebody is guessing: see how often, and from which address.",
        ),
        _NEW_SECRET,
    ),
    _denial(
        "pass_used",
        "The one-time token was used already.",
        (
            "The sidecar enrolled with it before and has lost its `state_dir` since: that must stay across restarts.",
            "Somebody else used the token first. If no sidecar of yours did, revoke the service.",
        ),
        "`certs list DIR`: which certificates the service has, and since when.",
        _NEW_SECRET,
    ),
    _denial(
        "pass_expired",
        "The token is older than five minutes, or the secret was revoked or replaced.",
        (
            "The service was revoked (`certs revoke`), which ends its secrets too.",
            "A new secret was made with `certs enrolment --end`, `certs rotate-root --state` or `certs renew-issuing`.",
            "A token was made, and used too late.",
        ),
        _NEW_SECRET,
    ),
    _denial(
        "unknown_service",
        "The CA's own mesh.yaml has no service of that name.",
        (
            "The CA reads an older mesh.yaml than the sidecar.",
            "`service:` of the sidecar's file is misspelt.",
        ),
        "`sidecar check FILE MESH`: the sidecar's file, with the mesh file that the CA reads.",
    ),
    _denial(
        "not_entitled",
        "The certificate that is to be renewed is none that this CA renews.",
        (
            "It is of another CA, or the CA's store was lost or replaced by a backup.",
            "The service was removed from mesh.yaml.",
        ),
        "`certs list DIR --all`: what this CA has issued.",
        _NEW_SECRET,
    ),
    _denial(
        "key_reused",
        "The key was certified before. Each certificate has a fresh one.",
        ("An earlier answer was lost on its way; the sidecar makes a new key and asks again by itself.", _NOT_OURS),
    ),
    _denial(
        "revoked",
        "The certificate, or the key that signed it, is revoked or distrusted.",
        (
            "The operator revoked the service (`certs revoke`), or distrusted the issuing key (`certs renew-issuing "
            "--distrust`).",
            "A thief of the old key tries to renew its certificate.",
        ),
        "`certs list DIR`: what is revoked, and since when.",
        "`certs enrolment DIR SERVICE --out SECRET --force`: lets the service come back, if it may.",
    ),
    _denial(
        "expired",
        "The certificate ended too long ago to be renewed with (`reenrol_window`, 24 h).",
        (
            "The sidecar was off, or was cut off from the CA, for longer than that.",
            "One of the two clocks is wrong.",
        ),
        "`date -u`: on both machines.",
        _NEW_SECRET,
    ),
    _denial(
        "no_certificate",
        "A renewal came without a client certificate.",
        (
            "Something between the sidecar and the CA ends TLS: a proxy or a load balancer. It must pass TCP on.",
            _NOT_OURS,
        ),
    ),
    _denial(
        "rate_limited",
        "Too many certificates for one identity, or too many wrong secrets from one address. It passes by itself.",
        (
            "A sidecar restarts in a loop and has no `state_dir` that stays, so it enrols each time.",
            "Many sidecars start at once behind one address.",
            "Somebody is guessing secrets, or uses up a stolen one.",
        ),
        "`certs audit DIR`: who asked for what, and how often.",
    ),
    _denial(
        "unavailable",
        "The CA cannot issue now; the sidecar asks again by itself.",
        (
            "Its store does not answer: a full disk, a database that is down.",
            "Its issuing certificate has ended, or its files are refused.",
            "The service is new in mesh.yaml, which the CA has not put in force yet: within 5 s.",
        ),
        "`certs list DIR`: whether the store can be read.",
        "`certs renew-issuing DIR`: if its log says that the issuing certificate has ended.",
    ),
    _denial(
        "internal_error",
        "A bug in the CA.",
        ("The CA's log has the traceback, as `internal_error`.",),
        "Report it, with the traceback.",
    ),
)
