"""The words of :class:`~sidecar.identity.reasons.Reason`: why a connection is refused, or how it ended. Pure.

``inbound``: the sidecar that was called wrote the line; ``outbound``: the one that calls. Where only one of the two can
write a word, it has an entry for that side alone.
"""

from __future__ import annotations

from sidecar.identity.reasons import Reason
from sidecar.meanings.first_steps import as_step, find_who
from sidecar.meanings.meaning import Kind, Meaning, Side

_WHO_ANSWERS = (
    as_step(find_who()),
    "`ip neigh show HOST` and `getent hosts HOST`: which machine has the address.",
    "`docker inspect -f '{{.Name}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' $(docker ps -q)`: which "
    "container has it now.",
)
_READ_PEERS_LOG = "`sidecar explain ID --log LOG`: the same connection in the other end's log, where the reason is."
_OLD_ADDRESS = (
    "The address belongs to another container now: the target was recreated, and a name leads to the old one."
)
_IN_THE_MIDDLE = (
    "Somebody answers in the target's place: false DNS or ARP answers, or a neighbour that was broken into."
)
_CLOCKS = "`date -u`: on both machines, which must differ by less than a minute."
_STATUS = "`sidecar status`: of the sidecar that wrote the line, or `sidecar status --all` in a Compose project."
_PEERS_WRONG = "`peers` of this sidecar names a wrong address or port: the app's own, say, in place of its sidecar's."
_FORGOTTEN = "A client of yours goes past its own sidecar, straight to the mTLS port."
_SCANNER = "A scanner, or somebody who tries the port."


def _reason(word: Reason, side: Side, means: str, causes: tuple[str, ...] = (), steps: tuple[str, ...] = ()) -> Meaning:
    return Meaning(Kind.REASON, str(word), means, causes, steps, side)


def _inbound(word: Reason, means: str, causes: tuple[str, ...], *steps: str) -> Meaning:
    return _reason(word, "inbound", means, causes, steps)


def _outbound(word: Reason, means: str, causes: tuple[str, ...], *steps: str) -> Meaning:
    return _reason(word, "outbound", means, causes, steps)


def _both(word: Reason, means: str, causes: tuple[str, ...] = (), *steps: str) -> Meaning:
    return _reason(word, "", means, causes, steps)


_REFUSED_PEERS: tuple[Meaning, ...] = (
    _inbound(
        Reason.PLAINTEXT_REFUSED,
        "Somebody spoke plaintext to this port, where mutual TLS is required. Nothing reached the app.",
        (
            _FORGOTTEN,
            "The port was `mode: permissive`, and the day of its `until` is over.",
            "A health check or a monitoring system sends a plain request to the port. One that only connects is a `probe`.",
            _SCANNER,
        ),
        "Find the caller by its address, ADDRESS. It must call its own sidecar's port, as its `outbound:` says.",
    ),
    _outbound(
        Reason.PLAINTEXT_REFUSED,
        "What answers at the target's address speaks plaintext. It got nothing of the app's bytes.",
        (_PEERS_WRONG, _OLD_ADDRESS, _IN_THE_MIDDLE),
        *_WHO_ANSWERS,
        "`sidecar status`: the target's `peers`, and whether they are sidecars' ports.",
    ),
    _inbound(
        Reason.NO_CERTIFICATE,
        "Somebody spoke TLS to this port and showed no certificate. Nothing reached the app.",
        (_FORGOTTEN, "A browser, a health check or `openssl s_client` at the mTLS port.", _SCANNER),
        "Find the caller by its address, ADDRESS. It must call its own sidecar's port, as its `outbound:` says.",
    ),
    _outbound(
        Reason.NO_CERTIFICATE,
        "What answers at the target's address shows no certificate, which a TLS server always does.",
        (_IN_THE_MIDDLE, _PEERS_WRONG, _OLD_ADDRESS),
        *_WHO_ANSWERS,
    ),
    _inbound(
        Reason.UNKNOWN_CA,
        "The caller's certificate was not issued by a CA that this sidecar trusts.",
        (
            "The caller is of another mesh, or of this one before its CA was made anew (`certs init --force`).",
            "The root was replaced, and one of the two sidecars has not heard of it yet.",
            "Somebody made a certificate with the right name under a CA of his own.",
        ),
        "`certs inspect CERTIFICATE`: who issued the caller's certificate, if you have it.",
        "`sidecar status --all`: sidecars whose trust bundle is not the others'.",
    ),
    _outbound(
        Reason.UNKNOWN_CA,
        "What answers at the target's address shows a certificate of a CA that this sidecar does not trust.",
        (
            "The target is of another mesh, or of this one before its CA was made anew (`certs init --force`).",
            "The root was replaced, and one of the two sidecars has not heard of it yet.",
            _PEERS_WRONG,
            _IN_THE_MIDDLE,
        ),
        *_WHO_ANSWERS,
        "`sidecar status --all`: sidecars whose trust bundle is not the others'.",
    ),
    _both(
        Reason.EXPIRED,
        "The other end's certificate has ended. It is good for an hour and renewed at half of that.",
        (
            "The other end has not reached the CA for half an hour or longer: the CA is down, or the way to it.",
            "The CA refuses to renew it: the service was revoked, or is in the CA's mesh.yaml no longer.",
            "The clock of this machine is ahead, or that of the other one behind.",
            "The other end is a person (`user/NAME`), whose pass has ended: as it should. It cuts a live connection.",
        ),
        "Read the other end's log for `certificate_failed`: it says what the CA answered. For a person, `certs pass` makes "
        "another pass.",
        _CLOCKS,
        "`sidecar status --all`: whether the CA answers, and until when each certificate is good.",
    ),
    _both(
        Reason.NOT_YET_VALID,
        "The other end's certificate is not valid yet.",
        (
            "The clock of this machine is behind, by a minute or more.",
            "The clock of the CA's machine is ahead.",
        ),
        _CLOCKS,
    ),
    _both(
        Reason.BAD_IDENTITY,
        "The other end's certificate breaks a rule: it is no X.509-SVID, is valid for too long, or its chain is too long.",
        (
            "The certificate was made by hand or by another tool: it needs exactly one SPIFFE ID, and digitalSignature.",
            "It is valid for longer than `max_leaf_ttl` of the mesh file allows.",
            "The certificate is altered or forged.",
        ),
        "`certs inspect CERTIFICATE`: every rule that it breaks.",
    ),
    _both(
        Reason.WRONG_TRUST_DOMAIN,
        "The other end proved an identity of another trust domain.",
        (
            "It belongs to another mesh, whose CA is trusted here too.",
            "`trust_domain` of the two mesh files differ.",
            "Somebody with a certificate of another mesh tries it here.",
        ),
        "`sidecar check MESH`: the trust domain that this mesh file declares.",
    ),
    _outbound(
        Reason.UNEXPECTED_PEER,
        "Another service of this mesh answers at the target's address, with a valid certificate of its own. It got nothing.",
        (
            _OLD_ADDRESS,
            "`peers` of this sidecar names another service's address.",
            "That other service was broken into and answers in the target's place.",
        ),
        *_WHO_ANSWERS,
        "If nothing moved: `certs revoke DIR SERVICE`, with the service that answered, and look at what runs there.",
    ),
    _inbound(
        Reason.REVOKED,
        "The caller's certificate is revoked. The word also ends connections that were open.",
        (
            "The operator revoked the service, or distrusted the key that signed its certificate.",
            "A thief uses a key that was stolen before.",
            "The service got a new secret, and its sidecar has not enrolled with it yet.",
        ),
        "`certs list DIR`: what is revoked, and since when.",
        "`certs enrolment DIR CALLER --out SECRET --force`: lets the service come back, if it may.",
    ),
    _outbound(
        Reason.REVOKED,
        "What answers at the target's address has a revoked certificate. The word also ends connections that were open.",
        (
            "The operator revoked the target, or distrusted the key that signed its certificate.",
            "A thief with a key that was stolen before answers in the target's place.",
            "The target got a new secret, and its sidecar has not enrolled with it yet.",
        ),
        "`certs list DIR`: what is revoked, and since when.",
        *_WHO_ANSWERS,
    ),
    _both(
        Reason.REVOCATIONS_STALE,
        "This sidecar's list of revocations is too old to rely on. The other end may be as good as ever.",
        (
            "This sidecar has not reached the CA for longer than `revocation_staleness` (an hour).",
            "The CA's lists are refused: somebody answers in its place, or its clock is wrong.",
        ),
        "Read this sidecar's log for `revocations_failed` and `bundle_failed`: they say what the CA answered.",
        _STATUS,
    ),
    _inbound(
        Reason.TLS_VERSION,
        "The caller does not speak TLS 1.3.",
        ("A program with an old TLS library calls the mTLS port.", _SCANNER),
        "Find the caller by its address, ADDRESS. It must call its own sidecar's port, or use TLS 1.3.",
    ),
    _outbound(
        Reason.TLS_VERSION,
        "What answers at the target's address does not speak TLS 1.3, which every sidecar does.",
        (_PEERS_WRONG, "Somebody in the middle tries an older version.", _OLD_ADDRESS),
        *_WHO_ANSWERS,
    ),
    _inbound(
        Reason.HANDSHAKE_FAILED,
        "The caller's handshake ended without an identity: it broke off, or asked for something that is not offered.",
        (
            "The caller is no sidecar, and its settings differ: the line's message says what was met.",
            "The caller asked for another port of the service: its `peers` lead to a wrong port.",
            "A `sidecar probe` of which this sidecar was not told, as `sidecar verify` does; `--through-app` works.",
            "The network between the two loses connections.",
            _SCANNER,
        ),
        _READ_PEERS_LOG,
    ),
    _outbound(
        Reason.HANDSHAKE_FAILED,
        "The handshake with the target's sidecar broke off.",
        (
            "The other end stopped or was restarted in that moment.",
            "A firewall or a proxy on the way cuts what it does not know.",
            "The other end is no sidecar, and `require_alpn` requires one.",
            "Somebody between the two ends altered the bytes: TLS noticed, and nothing was passed on.",
        ),
        _READ_PEERS_LOG,
        "`openssl s_client -connect ADDRESS -showcerts`: what answers there, if anything.",
    ),
    _inbound(
        Reason.HANDSHAKE_TIMEOUT,
        "The caller connected, and did not finish its handshake within `timeouts.handshake`.",
        (
            "A client that waits for the server to speak first was connected to the mTLS port.",
            "This machine, or the caller's, is overloaded.",
            "Somebody holds connections open to use up places.",
        ),
        "`sidecar status`: how many strangers there are now.",
    ),
    _outbound(
        Reason.HANDSHAKE_TIMEOUT,
        "The target's sidecar was reached, and gave no verdict in time.",
        (
            "The target's app takes long to accept the connection that its sidecar opens.",
            "The machine of the target is overloaded or paused.",
            "Packets are lost after the connection is open: a firewall, or a smaller MTU on the way.",
            "What answers there is no sidecar.",
        ),
        _READ_PEERS_LOG,
        "`sidecar status`: of the target's sidecar.",
    ),
    _both(
        Reason.PROBE,
        "Somebody connected and closed without a byte: a port check. It is no fault, and nothing is alarmed.",
        (
            "A health check of Docker, a load balancer, `wait-for-it`, or monitoring.",
            '`sidecar verify`, if the line has `"probe": true`: it was announced, let in, and ended before the app.',
            "A caller's listener that waits for its target (`timeouts.wait`): marked so too, with the reason `ok`.",
        ),
    ),
)

_DECISIONS: tuple[Meaning, ...] = (
    _inbound(
        Reason.POLICY_DENIED,
        "The policy does not let this caller call this port: the service that it proved to be, or whoever speaks plaintext "
        "to a permissive port (`from: plaintext`).",
        (
            "No rule of the mesh file allows the call: nobody foresaw it.",
            "The caller's sidecar reads a newer mesh file than this one.",
            "A rule denies it, or the rule that allowed it ran out (`until`).",
            "A service that was broken into tries what it may not.",
        ),
        "`sidecar policy explain MESH --from CALLER --to TARGET`: which rule decides, and which would allow it.",
        "`sidecar status --all`: whether all sidecars have the same policy version.",
    ),
    _outbound(
        Reason.POLICY_DENIED,
        "This sidecar's own policy does not let the app make this call; nothing was dialled, and the app got a reset.",
        (
            "No rule of the mesh file allows the call: nobody foresaw it.",
            "A rule denies it, or the rule that allowed it ran out (`until`).",
            "Several services share the address that was called, as no such call was foreseen: a rule in the mesh file, and "
            "`sidecar inject` gives the target an address of its own.",
            "The call came from an address that `allow_from` does not name.",
        ),
        "`sidecar policy explain MESH --from CALLER --to TARGET`: which rule decides, and which would allow it.",
        "After a change in a Compose project: `sidecar inject`, then `docker compose up -d`.",
    ),
    _inbound(
        Reason.CONNECT_FAILED,
        "The caller may call, and this sidecar cannot reach its own app.",
        (
            "The app is not running, or is still starting.",
            "`app:` names a wrong address or port, or the app listens on another address.",
            "The app has no room for more connections.",
        ),
        "`docker compose ps --all`: whether the app runs, and since when.",
        "`ss -ltn`: where the app listens (in the app's container).",
    ),
    _outbound(
        Reason.CONNECT_FAILED,
        "No address of the target's sidecar can be reached.",
        (
            "The target or its sidecar is not running.",
            "The name in `peers` is not known, or leads to an old address.",
            "The two are not on a common network, or a firewall is between them.",
            "`peers` leads back to this sidecar, or to the port of an app's own calls: the message says `would loop`.",
        ),
        "`docker compose ps --all`: whether the target and its sidecar run.",
        "`getent hosts HOST`: what the name leads to (in the sidecar's container).",
        "`sidecar status`: the target's `peers`.",
    ),
    _outbound(
        Reason.PEER_REFUSED,
        "The target's sidecar, or its TLS, refused this connection. `peer_reason` has its word for it, if it said one.",
        (
            "`peer_reason` says why: `sidecar explain` explains that word too.",
            "Without a word: the other end is no sidecar, or was stopped in that moment.",
        ),
        _READ_PEERS_LOG,
    ),
    _inbound(
        Reason.PEER_REFUSED,
        "The caller ended the handshake with a TLS alert. `peer_reason` has the alert's name.",
        (
            "The caller expected another service at this address: its log says `unexpected_peer`.",
            "The caller does not trust our certificate: it ended, or the caller has an older trust bundle.",
            "The caller is no sidecar, and its settings differ.",
        ),
        _READ_PEERS_LOG,
    ),
    _inbound(
        Reason.OVERLOADED,
        "A limit is reached, which `message` names: of this sidecar, of one of its listeners, of a rule of `mesh.yaml`, or"
        " of strangers who have not proved an identity.",
        (
            "The app answers slowly, so that connections pile up.",
            "The limit is lower than the load needs, or the limit of open files is (`ulimit -n`).",
            "A flood of strangers: those from the busiest address are cut first.",
        ),
        "`sidecar status`: connections by peer, and how many strangers there are now.",
    ),
    _outbound(
        Reason.OVERLOADED,
        "This sidecar has reached its own limit of connections (`limits.connections`), or that of this listener.",
        (
            "The app opens connections and does not close them.",
            "The target answers slowly, so that connections pile up.",
            "The limit is lower than the load needs.",
        ),
        "`sidecar status`: the connections that are open, by target.",
    ),
    _both(
        Reason.INTERNAL_ERROR,
        "A bug in this program ended the connection. Others go on.",
        ("The log has the traceback, as an event `internal_error` with the same connection_id.",),
        "Report it, with the traceback.",
    ),
)

_ENDINGS: tuple[Meaning, ...] = (
    _both(Reason.OK, "Both sides closed their streams, and every byte arrived."),
    _inbound(
        Reason.CLIENT_RESET,
        "The caller's side broke the connection off.",
        (
            "The caller's app was stopped, or gave up waiting.",
            "The caller closed before it had read the whole answer; some clients and pools always do.",
            "The network between the two sidecars broke.",
            "At a port with `identity_header`: it sent HTTP/2, or what may be request smuggling. The line's message says "
            "what was met; the caller got the same sentence, with 400 or its like.",
        ),
        _READ_PEERS_LOG,
    ),
    _outbound(
        Reason.CLIENT_RESET,
        "This sidecar's own app broke the connection off.",
        (
            "The app was stopped, or gave up waiting: compare the duration with its time-out.",
            "The app closed before it had read the whole answer; some clients and pools always do.",
        ),
    ),
    _inbound(
        Reason.APP_RESET,
        "This sidecar's own app broke the connection off.",
        (
            "The app was restarted, or crashed: see its log.",
            "The app closes connections that are idle for too long, or closed before it had read all.",
            "At a port with `identity_header`: its answer is no HTTP/1.1, or incomplete. The caller got 502, or a reset.",
        ),
        "`docker compose ps --all`: whether the app was restarted.",
    ),
    _outbound(
        Reason.APP_RESET,
        "The target's side broke the connection off.",
        (
            "The target's app was restarted, or crashed: see its log.",
            "The target's app closes connections that are idle for too long.",
            "The network between the two sidecars broke.",
        ),
        _READ_PEERS_LOG,
    ),
    _both(
        Reason.TRUNCATED,
        "The other end's stream stopped without its end being said, so it may be incomplete. The app got a reset.",
        (
            "The other sidecar or its machine was killed, or a firewall dropped the connection.",
            "The other end is no sidecar and never says its end: `tolerate_missing_close_notify: true` accepts that of it.",
            "Somebody between the two ends cut the stream or altered a byte of it: TLS noticed.",
        ),
        _READ_PEERS_LOG,
        "`docker compose ps --all`: whether the other sidecar was restarted.",
    ),
    _both(
        Reason.IDLE_TIMEOUT,
        "Nothing was sent for `idle_timeout`, so the connection was closed. Without that key there is no such limit.",
        ("A pool of connections that rests, or a subscription without a heartbeat.",),
        "If that is normal here: set a longer `idle_timeout` for the port, or leave it out.",
    ),
    _both(
        Reason.MAX_AGE,
        "The connection was open for as long as one may be (`max_age`, 24 h).",
        ("A connection that is never closed. The app must open a new one, as after any other reset.",),
    ),
    _both(
        Reason.DRAINED,
        "A sidecar was stopping: the connection ended, or the caller was told to call another one.",
        ("A restart, an update, `docker compose stop`, or SIGTERM.",),
        "Only if nobody restarted it: `docker compose ps --all`.",
    ),
    _both(
        Reason.POLICY_CHANGED,
        "The connection was open, and a changed policy forbids it now, so it was cut.",
        ("Somebody edited the mesh file.", "A rule ran out (`until`) at the end of a day, UTC."),
        "`sidecar policy explain MESH --from CALLER --to TARGET`: which rule decides now.",
    ),
    _both(
        Reason.TRUST_CHANGED,
        "The connection was open, and the root or the key behind the other end is trusted no longer, so it was cut.",
        (
            "The root was replaced (`certs rotate-root`), and the other end had no certificate of the new one in time.",
            "The issuing key was distrusted (`certs renew-issuing --distrust`).",
        ),
        "`sidecar status --all`: sidecars whose trust bundle is not the others'.",
    ),
)

REASONS: tuple[Meaning, ...] = (*_REFUSED_PEERS, *_DECISIONS, *_ENDINGS)
