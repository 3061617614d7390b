"""A peer's TLS alerts, where no reason of ours means the same (RFC 8446 6.2). Pure.

A peer that speaks our protocol says its reason in a verdict, or in its own log. An alert is all that others can say.
"""

from __future__ import annotations

from sidecar.meanings.meaning import Kind, Meaning

_PEERS_LOG = "Read the other end's log at the time of the line: the alert is all that it told this end."
_OURS = "`certs inspect CERTIFICATE`: every rule that our own certificate breaks, if any."
_ALTERED = "Somebody between the two ends altered the bytes: TLS noticed, and nothing was passed on."
_FOREIGN = "The other end is no sidecar, and its TLS library or its settings differ from ours."


def _alert(word: str, means: str, causes: tuple[str, ...], *steps: str) -> Meaning:
    return Meaning(Kind.ALERT, word, means, causes, (*steps, _PEERS_LOG))


ALERTS: tuple[Meaning, ...] = (
    _alert("bad_record_mac", "The peer received a record that does not decrypt.", (_ALTERED, _FOREIGN)),
    _alert(
        "handshake_failure",
        "The peer found no parameters of TLS that both ends accept.",
        (_FOREIGN, "The peer requires something that TLS 1.3 here does not offer: an old cipher, RSA only, a PSK."),
    ),
    _alert(
        "bad_certificate",
        "The peer does not accept our certificate: a rule about identities was broken, or a revocation cannot be checked.",
        (
            "The peer is a sidecar, and its log has the reason (`bad_identity`, `unexpected_peer`, `revocations_stale` …).",
            "The certificate is not one of the mesh's CA.",
        ),
        _OURS,
    ),
    _alert(
        "unsupported_certificate",
        "The peer cannot use a certificate of our kind (ECDSA on P-256).",
        (_FOREIGN,),
        _OURS,
    ),
    _alert(
        "certificate_unknown",
        "The peer does not accept our certificate, and does not say why.",
        ("The peer's rules for certificates are not ours: a name that it expects, a depth, a purpose.",),
        _OURS,
    ),
    _alert("illegal_parameter", "The peer received a field of TLS that contradicts another.", (_ALTERED, _FOREIGN)),
    _alert("decode_error", "The peer received a TLS message that it cannot read.", (_ALTERED, _FOREIGN)),
    _alert(
        "decrypt_error",
        "The peer found a signature or the handshake's checksum wrong.",
        (_ALTERED, "The certificate and the key of this sidecar do not belong together.", _FOREIGN),
        _OURS,
    ),
    _alert("internal_error", "The peer has a fault of its own.", ("It is out of memory or files, or has a bug.",)),
    _alert("user_canceled", "The peer gave the handshake up.", ("It is stopping, or its user stopped it.",)),
    _alert("missing_extension", "The peer misses an extension of TLS that it requires.", (_FOREIGN,)),
    _alert(
        "no_application_protocol",
        "The peer does not offer what was asked for by ALPN: that port of that service.",
        (
            "The port of the other end is another one than the mesh file says: `peers` and `listen` do not match.",
            "The other end is no sidecar, and accepts other protocols only.",
        ),
        "`sidecar check FILE`: of both ends' files, with their mesh file.",
    ),
)
