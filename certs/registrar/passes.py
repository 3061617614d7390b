"""Passes: a person's certificate for a while, made by hand beside the CA, and never renewed. Fails closed.

``certs serve`` gives a person nothing: it issues, and renews, for services alone
(:meth:`certs.registrar.registrar.IssuingPolicy.renewed`). So a pass ends with its certificate, and a rotation of the root
waits for none: who has one under the old root asks for another.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol.access_pass import Pass
from certs.protocol.fields import describe_span
from certs.protocol.x509_profile import BACKDATED, MAX_TTL
from certs.registrar import registrar
from certs.store.store import Transaction
from sidecar.documents.address import Address
from sidecar.documents.problems import did_you_mean
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import PEOPLE, SpiffeId, is_segment, shown
from sidecar.policy.decide import decide, remedy
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import Target

HOW = "pass"
"""How such a certificate was obtained, in the store."""

MIN_TTL = timedelta(minutes=1)


def permitted(mesh: Mesh, name: str, to: str, ttl: timedelta, now: datetime) -> tuple[SpiffeId, Target]:
    """The person and the port, if a pass may be made: the person is declared, a rule in force lets the person call that one
    port, and no reader would refuse the certificate as too long. Raises :class:`UsageError`."""
    name = name.removeprefix(f"{PEOPLE}/")
    if name not in mesh.people:
        hint = did_you_mean(name, mesh.people)
        declare = f"; to declare one, add to {mesh.filename}: people: [{name}]" if is_segment(name) and not hint else ""
        raise UsageError(f"--person: {mesh.filename} declares no person {shown(name)}{hint}{declare}")
    person = SpiffeId(mesh.trust_domain, (PEOPLE, name))
    try:
        target = mesh.target(to)
    except ValueError as error:
        raise UsageError(f"--to: {error}") from error
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise UsageError(f"--ttl: a pass is good for 1 minute to 24 hours, not for {describe_span(ttl)}")
    if ttl + BACKDATED > mesh.max_leaf_ttl:
        longest = describe_span(mesh.max_leaf_ttl - BACKDATED)
        raise UsageError(
            f"--ttl: every sidecar refuses a pass of more than {longest} (max_leaf_ttl in {mesh.filename})"
        )
    decision = decide(mesh, person, target.service, target.port, now)
    if not decision.allowed:
        raise UsageError(f"{decision.why}{remedy(mesh, person, decision)}")
    return person, target


def make(
    transaction: Transaction,
    loaded: Authority,
    mesh: Mesh,
    person: SpiffeId,
    target: Target,
    at: Address,
    ttl: timedelta,
    now: datetime,
    by: int,
) -> Pass:
    """Makes a pass that :func:`permitted` permits, and records it. ``by``: the number of the user who has it made. Raises
    :class:`UsageError`."""
    if mesh.trust_domain != loaded.trust_domain:
        raise UsageError(f"{mesh.filename} is of {mesh.trust_domain}, and this CA of {loaded.trust_domain}")
    earliest = registrar.revoked_until(transaction.connection, person)
    issued = authority.issue(loaded, "/".join(person.segments), now, ttl, not_before=earliest, shortest=MIN_TTL)
    registrar.remember(transaction, issued.chain, HOW)
    serial = f"{issued.chain[0].serial_number:x}"
    seconds = int(ttl.total_seconds())
    transaction.record("pass_made", str(person), to=str(target), at=str(at), seconds=seconds, serial=serial, by_user=by)
    callee = mesh.identity(target.service)
    longest = int(mesh.max_leaf_ttl.total_seconds())
    return Pass(person, callee, target.port, at, longest, issued.roots, issued.chain, issued.key)
