"""The events of the logs: the field ``event`` of each line of a sidecar and of the CA. Pure.

A test walks the sources and finds an event that has no entry here, and an entry that nothing logs.
"""

from __future__ import annotations

from sidecar.meanings.first_steps import FIND_BETWEEN, FIND_WHAT, WAIT_FOR_MORE, as_step, find_who
from sidecar.meanings.meaning import Kind, Meaning

_STATUS = "`sidecar status`: of the sidecar that wrote the line, or `sidecar status --all` in a Compose project."
_EXPLAIN_ID = "`sidecar explain ID --log LOG`: the connection of the line, at both ends."
_ALARMS_OF_ALL = "`certs alarms DIR`: since when, how often, and where else in the mesh."
_CA_DOWN = "The CA is down, or is being restarted."
_NO_WAY = "The way to it is broken: a name, a network, a firewall, a wrong `identity.ca`."
_NOT_THE_CA = "What answers there is not the CA of this mesh; then `mitm_suspected` stands beside it."
_CA_STATE = "`docker compose ps --all`: whether the CA (mesh-ca) runs; its log says what it refused (`denied`)."
_CHECK = "`sidecar check FILE MESH`: every mistake in them, with its line."
_BUG = ("A bug in this program. The line has the traceback.",)
_REPORT = "Report it, with the traceback."


def _event(word: str, means: str, causes: tuple[str, ...] = (), *steps: str) -> Meaning:
    return Meaning(Kind.EVENT, word, means, causes, steps)


_ALARMS: tuple[Meaning, ...] = (
    _event(
        "mitm_suspected",
        "An alarm: something answers in the place of a peer, or of the CA, and did not prove to be it. It got nothing.",
        (
            "The address belongs to something else now: a container was recreated, a name leads to an old address.",
            "`peers` or `identity.ca` of this sidecar names a wrong address.",
            "Somebody is in the middle: false DNS or ARP answers, or a neighbour that was broken into.",
        ),
        as_step(find_who()),
        f"Of the CA's address: {FIND_WHAT}.",
        "`sidecar explain ID --log LOG`: what was expected, what answered, and what its reason means.",
        _ALARMS_OF_ALL,
        "`sidecar verify`: whether every other call is in mutual TLS, with whom it should be.",
        "If nothing moved, treat it as an attack, and keep the log.",
    ),
    _event(
        "neighbour_met",
        "Another service of this mesh answered at an old address of the target, to which its name leads no more. It got "
        "nothing. If it happens again and again, it is an alarm.",
        ("A container was recreated, and another one has its address now.",),
        as_step(WAIT_FOR_MORE),
        "`sidecar explain unexpected_peer`: if it does happen again.",
    ),
    _event(
        "tampering_suspected",
        "An alarm: again and again the bytes of connections at one place were altered on the way. TLS noticed each time.",
        (
            "Somebody between the two ends alters what passes.",
            "A network card, a switch, or memory that is broken; a driver that computes checksums wrongly.",
        ),
        as_step(FIND_BETWEEN),
        "`sidecar explain ID --log LOG`: between which two ends.",
        "`ip neigh show HOST`: whether the address belongs to the machine that it should.",
    ),
    _event(
        "identity_elsewhere",
        "An alarm: a certificate of this service is in use that this sidecar did not obtain.",
        (
            "Two sidecars run as one service: an old container that was not stopped, a copied `state_dir`, a second replica "
            "without `instances:` in the mesh file.",
            "Somebody has stolen the service's key, its `state_dir` or its enrolment secret.",
        ),
        _ALARMS_OF_ALL,
        "`certs list DIR`: the service's certificates, and when each was issued.",
        "If it is no second sidecar of yours: `certs revoke DIR SERVICE`, then `certs enrolment DIR SERVICE --out SECRET "
        "--force`.",
    ),
    _event(
        "identity_moved",
        "The service had a certificate before that this sidecar's `state_dir` did not obtain, and it is in use no longer.",
        (
            "Its `state_dir` was lost, or is not kept across restarts.",
            "The service was moved to another machine.",
            "Somebody has stolen its enrolment secret.",
        ),
        "`certs list DIR`: the service's certificates, and when each was issued.",
        "If you did not move it: `certs revoke DIR SERVICE`, then `certs enrolment DIR SERVICE --out SECRET --force`.",
    ),
)

_EVIDENCE: tuple[Meaning, ...] = (
    _event("evidence_kept", "What an alarm's other end presented is kept in the file that the message names."),
    _event(
        "evidence_lost",
        "What an alarm's other end presented could not be kept. The alarm itself has its names and digest.",
        ("The disk is full, or `state_dir` cannot be written.", "Too many alarms came at once."),
        "`df -h`: whether there is room.",
    ),
)

_CONNECTIONS: tuple[Meaning, ...] = (
    _event(
        "connection", "One connection has ended, or was refused. `reason` says how; there is one such line at each end."
    ),
    _event(
        "connection_summary",
        "`count` more sockets of strangers that showed no certificate, all alike: beyond ten a minute each is counted only.",
        ("A scanner or a flood.", "A client that tries again and again, at the wrong port or without a rule."),
        "`sidecar status`: who they were, and how many there are now.",
        "`sidecar explain REASON`: with the line's own reason.",
    ),
    _event(
        "internal_error",
        "A bug in this program: one connection or one request ended by it, and the others go on.",
        _BUG,
        _REPORT,
    ),
    _event(
        "accept_paused",
        "The program cannot accept connections for a moment; it tries again by itself. Callers wait or are refused.",
        (
            "The limit of open files is reached (`ulimit -n`), by this process or by the whole machine.",
            "The machine is out of memory.",
        ),
        "`sidecar status`: connections by peer, and how many strangers there are now.",
        "Raise the limit, or lower `limits.connections` below it.",
    ),
    _event(
        "waiting",
        "A listener stays closed until its target has answered (`timeouts.wait`), so that `wait-for-it` waits as before.",
        (
            "The target is starting.",
            "The target or its sidecar does not run, or cannot be reached: the message says which.",
        ),
        "`sidecar status`: which listeners are closed, and why.",
    ),
    _event("listening", "A listener is open now. As a warning: it is open although its target has never answered."),
    _event(
        "deaf",
        "Nothing reaches a listener: its network interface is gone, or another process has its address.",
        (
            "A container's network was taken away and given back, as `docker network disconnect` does.",
            "Another program listens on the same port.",
        ),
        "`ss -ltnp`: who listens where (in the sidecar's container).",
        "`docker compose restart SERVICE-mesh`: if it does not come back by itself.",
    ),
)

_FILES: tuple[Meaning, ...] = (
    _event("reloaded", "New files, or what the CA sent, are in force. `connections_cut`: those that they forbid."),
    _event(
        "reload_refused",
        "A changed file has a mistake, so what was in force before stays in force.",
        (
            "A mistake in an edit: the message has the line.",
            "A service or a port was removed that a sidecar is wired to.",
            "A file is missing, cannot be read, or belongs to another user.",
        ),
        _CHECK,
        "`sidecar status --all`: which sidecars have not taken it.",
    ),
    _event(
        "reload_waiting",
        "A changed file could allow more, so it waits until the file has not changed for 5 s. What only closes waits for "
        "nothing.",
        ("An ordinary edit. SIGHUP puts it in force now.",),
    ),
    _event(
        "reload_incomplete",
        "`sidecar dev` has taken the file, and one new listener cannot be opened yet; it tries again.",
        ("Another program has the port.",),
        "`ss -ltnp`: who listens where.",
    ),
    _event(
        "dashboard_failed",
        "A bug while the dashboard made its page: it shows what was before, and goes on.",
        _BUG,
        _REPORT,
    ),
    _event("reload_failed", "A bug while files were taken: what was in force before stays in force.", _BUG, _REPORT),
    _event(
        "restart_needed",
        "The sidecar's own file has changed. The mesh file and certificates are followed; the wiring waits for a restart.",
        ("Somebody edited the file.", "`sidecar inject` wrote it, and `docker compose up -d` was not run yet."),
        _CHECK,
        "`docker compose up -d`: recreates what has changed; elsewhere restart the sidecar.",
    ),
    _event(
        "rule_ends_soon",
        "Calls that are in use now are refused within a week: the last rule that allows them has an `until`. The line names "
        "them.",
        ("`sidecar inject --observe` allows everything for two weeks.", "A rule was written for a time."),
        "`sidecar policy learn MESH`: adds rules for what was seen, for you to read.",
        "`sidecar policy diff MESH MESH --at 2027-01-31`: which past connections would be refused on a day.",
        "If it is meant to end: nothing.",
    ),
    _event(
        "permissive_ends_soon",
        "A permissive port refuses plaintext within a week. The line names who speaks it still; it is written once a day.",
        ("The `until` of the port's `mode: permissive` is near.",),
        "`sidecar status`: who they are, how often they call, and when they did last.",
        "Give each of them a sidecar, or move `until` on purpose.",
    ),
    _event(
        "permissive_over",
        "The last day of a permissive port is over: plaintext is refused. The line names who spoke it in the last week.",
        ("The `until` of the port's `mode: permissive` has passed, perhaps while the machine slept.",),
        "Write `mode: strict` there, without `until`; or a later day, if somebody was forgotten.",
    ),
    _event(
        "strict_cuts_callers",
        "A port that was permissive is strict since this start, and callers spoke plaintext to it within a week. They are "
        "refused; the line names them.",
        ("`mode: strict` was written before every caller had a sidecar.",),
        "Give each of them a sidecar; until then `mode: permissive` with an `until`.",
    ),
    _event(
        "plaintext_forgotten",
        "The list of who speaks plaintext cannot be kept in `state_dir`, or not be read there. Connections go on.",
        ("The disk is full, or `state_dir` cannot be written.", "The file was changed by hand."),
        "`df -h`: whether there is room. A file that is damaged may be removed.",
    ),
    _event(
        "single_file_mount",
        "A file is mounted by itself: when an editor replaces it, the container keeps seeing the old one.",
        ("`volumes:` names the file in place of its directory.",),
        "Mount the directory that the file is in.",
    ),
    _event(
        "warning",
        "Something works otherwise than it was meant, or soon will: the message says what, and what to do.",
        (
            "The files: a rule that ran out, a connection that the policy will refuse, a variable that nothing reads.",
            "The machine: too few open files for `limits.connections`.",
            "The CA: its issuing certificate ends soon, a file of it is refused, its store does not answer.",
        ),
        _CHECK,
        "`certs renew-issuing DIR`: where the message says that the issuing certificate ends.",
    ),
)

_IDENTITY: tuple[Meaning, ...] = (
    _event("enrolled", "The sidecar has its first certificate, by a token or secret."),
    _event(
        "enrolled_again",
        "The sidecar had a certificate, could not renew it, and enrolled anew with its secret.",
        (
            "It was off or cut off for longer than a certificate may be renewed (24 h).",
            "The service was revoked and let in again.",
        ),
        "`certs list DIR`: the service's certificates, and when each was issued.",
    ),
    _event("re-enrolled", "The sidecar renewed a certificate that had ended, by a signature with its old key."),
    _event("renewed", "The sidecar has a new certificate, with a fresh key."),
    _event("certificate_renewed", "`sidecar dev` gave a service a new certificate."),
    _event(
        "certificate_expiring",
        "This sidecar's certificate ends soon, and no new one is there. When it has ended, every peer refuses it.",
        (
            "The CA does not answer, or refuses: `certificate_failed` says which.",
            "The certificate is in files, and whoever makes them has not made a new one.",
        ),
        "Read the log for `certificate_failed`.",
        "`certs issue DIR SERVICE --out DIRECTORY --force`: a new one by hand, for certificates in files.",
    ),
    _event(
        "certificate_expired",
        "This sidecar's certificate has ended: every peer refuses it, and it never falls back to plaintext.",
        (
            "The CA was away for half an hour or longer, or refuses: `certificate_failed` says which.",
            "The certificate is in files, and whoever makes them has not made a new one.",
            "This machine's clock is ahead.",
        ),
        "`date -u`: on this machine and on the CA's.",
        "Read the log for `certificate_failed`. When the CA answers again, the sidecar renews by itself.",
        "`certs issue DIR SERVICE --out DIRECTORY --force`: a new one by hand, for certificates in files.",
    ),
    _event(
        "certificate_failed",
        "A new certificate was not obtained. The one in force stays until its end; the sidecar tries again by itself.",
        (
            _CA_DOWN,
            "The CA refuses: the message has its word, which `sidecar explain` explains.",
            _NO_WAY,
            _NOT_THE_CA,
        ),
        _CA_STATE,
    ),
    _event(
        "revocations_failed",
        "The CA's list of revocations was not obtained. The one in force lets connections in until the time in the message.",
        (_CA_DOWN, _NO_WAY, "The list is refused, and the message says why: a clock may be wrong.", _NOT_THE_CA),
        _CA_STATE,
        "`date -u`: on this machine and on the CA's.",
    ),
    _event(
        "bundle_failed",
        "A newer trust bundle exists, and was not obtained or is refused. Until it is here, no certificate is taken.",
        (
            "The CA has just replaced its root or its key, and the next poll brings the bundle.",
            "Somebody on the way to the CA holds the bundle back, or shows an older one.",
            "Several CAs share a store, and one has older files.",
        ),
        _CA_STATE,
        "`sidecar trust import BUNDLE FILE`: brings it by hand to a stopped sidecar, if a thief may be what it reaches.",
    ),
    _event(
        "joining_failed",
        "The sidecar has no certificate yet and cannot join the mesh. It tries again by itself.",
        (_CA_DOWN, _NO_WAY, "The pinned root (`identity.root`) is of another CA.", _NOT_THE_CA),
        _CA_STATE,
        "`certs inspect CERTIFICATE`: of the pinned root, to compare with the CA's root.pem.",
    ),
    _event(
        "state_dir_failed",
        "`state_dir` cannot be written. The new value is in force, and a restart would lose it.",
        ("The disk is full.", "The directory belongs to another user, or is mounted read-only."),
        "`df -h`: whether there is room.",
    ),
    _event(
        "state_forgotten",
        "`state_dir` was of a mesh under another root than the pinned one, so its files were removed.",
        ("The CA was made anew, and the sidecar has its new root.", "A volume of another project was mounted."),
    ),
    _event(
        "state_ignored",
        "A file in `state_dir` is damaged or does not verify any more; the sidecar goes on without it.",
        (
            "The machine or the container was killed during a write, or the disk is failing.",
            "Somebody altered the file.",
        ),
    ),
    _event(
        "report_failed",
        "The CA did not take this sidecar's report, so `certs reports` shows an older one. No connection depends on it.",
        (_CA_DOWN, "The CA is of an older version than the sidecar, and takes no reports.", _NO_WAY),
        _CA_STATE,
    ),
    _event("membership_failed", "A bug while the CA was asked; the sidecar tries again.", _BUG, _REPORT),
    _event("trust_bundle", "A newer trust bundle of the CA is in force."),
    *(
        _event(f"{topic}_mended", f"What `{topic}_failed` reported is good again.")
        for topic in ("certificate", "revocations", "bundle", "joining", "state_dir", "report")
    ),
)

_PROCESS: tuple[Meaning, ...] = (
    _event("started", "The program accepts connections."),
    _event("draining", "The program was told to stop: requests in flight may end."),
    _event("cutting", "The program was told a second time to stop: connections are cut now."),
    _event("stopped", "The program ends."),
    _event(
        "log_lost",
        "Lines of the log were lost, since it could not be written for too long.",
        (
            "Nobody reads the pipe that the log goes to.",
            "The disk is full.",
            "A flood: the lines of strangers are dropped first, alarms last.",
        ),
        "`df -h`: whether there is room.",
        "`sidecar status`: how many lines were lost, and how many connections were counted in place of a line.",
    ),
    _event(
        "stray_output",
        "What Python or a library would have written to stderr. It ended nothing.",
        ("A certificate with an odd field makes its parser warn.", "A bug in a library, or in this program."),
    ),
)

_OF_THE_CA: tuple[Meaning, ...] = (
    _event(
        "token_used_twice",
        "A one-time token came to the CA a second time, and was refused. If the service is alive, it is an alarm: one "
        "of the two who sent it may be a thief.",
        (
            "A sidecar lost its `state_dir` after it had enrolled, and tries its old token again.",
            "Somebody copied the token and came first, or second.",
        ),
        "`certs list DIR`: which certificates the service has, and since when.",
        "If it was nobody of yours: `certs revoke DIR SERVICE`, then `certs token DIR SERVICE`.",
    ),
    _event(
        "too_many_alarms",
        "An alarm: one service's sidecar reports more alarms than are shown one by one.",
        (
            "The sidecar meets very many: somebody attacks it from many places.",
            "The sidecar was taken over, and floods the CA.",
        ),
        _ALARMS_OF_ALL,
        "Look at the log of that sidecar, and at its machine.",
        "`certs revoke DIR SERVICE`: if it was taken over.",
    ),
    _event(
        "alarm_not_posted",
        "An alarm could not be posted to the `alarm: url` of the CA. It is tried again, and the log has the alarm.",
        ("The server there is down, or refuses it: the message says which.", "The CA has no way out to it."),
        "`curl -i URL`: from the CA's machine or container.",
    ),
    _event("alarm_posted", "Alarms are posted again."),
    _event(
        "denied",
        "The CA refused a request. `reason` is its word, `peer_id` who asked if that was proved.",
        ("The reason says why: `sidecar explain` explains it.",),
        "`certs audit DIR`: who asked for what.",
    ),
    _event(
        "refused",
        "The CA refused a connection in its handshake. `reason` is as of a sidecar's connection.",
        (
            "A sidecar's certificate has ended or is revoked: it enrols again, by itself, with its secret.",
            "Something that is no sidecar calls the CA's port.",
        ),
    ),
    _event(
        "store_unavailable",
        "The CA's store did not answer, so a request was refused. What was given out before stays good.",
        ("The disk is full or slow.", "The PostgreSQL server is down, or the way to it is."),
        "`df -h`: whether there is room.",
        "`certs list DIR`: whether the store can be read.",
    ),
    _event(
        "audit_head",
        "The newest number and hash of the audit log. Kept on another machine, they show whether it was rewritten: "
        "`certs audit DIR --verify --expect N:HASH`.",
    ),
    _event(
        "admin_unavailable",
        "The CA's own socket, DIR/admin.sock, cannot be opened, so `certs reports` has nobody to ask. All else works.",
        (
            "Another CA runs in the same directory.",
            "The directory's path is too long for a socket, or cannot be written.",
        ),
        "`ls -l DIR`: what is there, and whose it is.",
    ),
    _event("mended", "What a `warning` of the CA reported is good again."),
)

EVENTS: tuple[Meaning, ...] = (*_ALARMS, *_EVIDENCE, *_CONNECTIONS, *_FILES, *_IDENTITY, *_PROCESS, *_OF_THE_CA)
