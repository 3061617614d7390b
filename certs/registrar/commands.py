"""What messages tell people to run, as commands that work where the keys are. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands for whoever runs this CA. ``state``: the state directory of ``sidecar inject`` on the host, if this CA is in
    one of its containers, where nobody can run them. Else they name no directory: messages travel to other machines."""

    state: str | None = None

    def enrolment(self, service: str) -> str:
        """A new secret, in the place of the old one."""
        if self.state is None:
            return f"certs enrolment {service}"
        return f"certs enrolment {self._at('ca')} {service} --out-dir {self._at('enrolment')} --force"

    def token(self, service: str) -> str:
        """A new token; with ``state`` a secret, since that is what such a sidecar reads."""
        return f"certs token {service}" if self.state is None else self.enrolment(service)

    def revoke(self, service: str) -> str:
        return f"certs revoke {service}" if self.state is None else f"certs revoke {self._at('ca')} {service}"

    def renew_issuing(self, directory: str) -> str:
        """``directory``: the CA's, for a CA in no container."""
        if self.state is None:
            return f"certs renew-issuing {directory}"
        return f"certs renew-issuing {self._at('ca')} --root-key {self._at('root/root.key')}"

    def _at(self, name: str) -> str:
        return shlex.quote(f"{self.state}/{name}")


ANYWHERE = Commands()
