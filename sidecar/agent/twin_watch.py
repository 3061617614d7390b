"""Keeps which keys are ours, and raises the alarm when the CA tells of another holder of our identity
(:mod:`sidecar.agent.twins`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sidecar.agent import twins
from sidecar.agent.twins import Holder, Own
from sidecar.identity.keys import public_key_digest
from sidecar.identity.spiffe import SpiffeId, shown
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.alarms import Severity
from sidecar.policy.mesh import Mesh
from sidecar.transport.tls import PrivateKey

IDENTITY_ELSEWHERE, IDENTITY_MOVED = "identity_elsewhere", "identity_moved"

_BY = {
    "secret": "with its enrolment secret",
    "token": "with a one-time token",
    "renewal": "by a renewal",
    "re-enrolment": "by re-enrolment, after its certificate had ended",
}


class TwinWatch:
    """Of one sidecar. ``own``: what its state directory knows of itself. ``mesh``: the one in force."""

    def __init__(self, identity: SpiffeId, own: Own, alarms: AlarmLog, mesh: Callable[[], Mesh]) -> None:
        self.own = own
        self._identity = identity
        self._alarms = alarms
        self._mesh = mesh
        self._told: set[tuple[str, str]] = set()

    def _instances(self) -> int:
        """How many may have our identity."""
        service = self._mesh().services.get(str(self._identity.service))
        return 1 if service is None else service.instances

    def made(self, key: PrivateKey) -> bool:
        """A key is ours, and may go to the CA. Returns whether :attr:`own` has changed."""
        digest = public_key_digest(key.public_key()).hex()
        known = digest in self.own.keys
        if not known:
            self.own = self.own.with_keys(digest)
        return not known

    def hear(self, answer: Mapping[str, Any]) -> bool:
        """Takes the CA's answer to a report. Returns whether :attr:`own` has changed. Raises :class:`ValueError`."""
        found = twins.parse(answer)
        if found is None:
            return False
        now, holders = found
        before, self.own = self.own, self.own.heard(now)
        since, room = self.own.since, self._instances()
        assert since is not None  # noqa: S101 (it was just heard)
        for one in twins.elsewhere(holders, self.own.keys, since, now, room):
            self._tell(IDENTITY_ELSEWHERE, one)
        for one in twins.moved(holders, self.own.keys, since, now, room):
            self._tell(IDENTITY_MOVED, one)
        self._told &= {(event, one.serial) for event in (IDENTITY_ELSEWHERE, IDENTITY_MOVED) for one in holders}
        return self.own is not before

    def _tell(self, event: str, holder: Holder) -> None:
        """Each once."""
        if (event, holder.serial) in self._told:
            return
        self._told.add((event, holder.serial))
        service, room = self._identity.service, self._instances()
        polled = "never used to poll" if holder.seen_at is None else f"last used to poll at {_time(holder.seen_at)}"
        how = _BY.get(holder.how, shown(holder.how))
        which = f"certificate {holder.serial}, obtained {how} at {_time(holder.issued_at)}"
        if event == IDENTITY_ELSEWHERE:
            allowed = "one instance" if room == 1 else f"{room} instances"
            message = f"{self._identity} is in use elsewhere too: {which}, {polled}; mesh.yaml has room for {allowed}"
            do = (
                f"if nobody started another instance, its secret, a token or a state directory was stolen: certs revoke "
                f"{service}; if somebody did, write `instances: {room + 1}` at services.{service} in mesh.yaml"
            )
        else:
            message = (
                f"{self._identity} was elsewhere before: {which}, {polled}; this state directory has not obtained it"
            )
            do = f"nothing, if a state directory was lost or is new; else it was stolen: certs revoke {service}"
        self._alarms.report(
            message,
            service=str(service),
            event=event,
            severity=Severity.ALARM if event == IDENTITY_ELSEWHERE else Severity.NOTICE,
            reason=holder.how,
            expected=str(self._identity),
            presented={"serial": holder.serial},
            next=do,
        )


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%FT%TZ}"
