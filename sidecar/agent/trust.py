"""What this sidecar believes of its mesh: the trust bundle, the list of revocations, and what it may not go back behind.
Pure; fails closed.

How this works. :class:`Trust` is one immutable value. A document that is good makes a new one (:meth:`Trust.learn`,
:meth:`Trust.take`); one that is not raises :class:`~certs.protocol.documents.UntrustedError`, and nothing changes. Nothing
that is not signed counts. Time is an argument, by both clocks (:class:`Instant`).

Invariants:

* A bundle is replaced by a newer one only, which a root of the present one signed; the first, by the pinned root.
* Of each key that signs lists, a *floor* is kept: the newest list that was taken from it, the newest bundle that it named,
  and the keys that it distrusts. No list is taken that is older than any floor, whatever the clocks say since.
* A bundle that distrusts a signer, or no longer has its root, erases all that the signer said: its floor, and, if the key is
  distrusted, its list. So what a thief signed with a stolen key ends with that key.
* A list is refused if its date, its version, or the bundle that it names is more than :data:`AHEAD` ahead of this clock.
  Versions are at least the time, and hardly more (:func:`~certs.protocol.documents.next_version`). So no list can be
  numbered so high that no honest one counts again.
* A key that a list distrusts counts as distrusted at once.
* While a bundle that a list named is missing (:attr:`Trust.missing`), no secret is sent and no certificate is taken. The
  sidecar serves by its present bundle, without the distrusted keys, until ``revocation_staleness`` is over.
* A list is fresh by both clocks, or not at all.
* A secret is sent only with a list of the last three minutes and the bundle that it names (:meth:`Trust.why_no_secret`).

A thief of ``issuing.key`` alone, who is on the path, cannot make a list. He can only hold back: then no list is fresh, no
secret leaves, and the mesh closes. A thief of ``revocation.pem`` alone is no CA. Whoever has both can lie until the operator
says otherwise out of band: :meth:`Trust.learn` with a bundle from a file, or :meth:`Trust.demand`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from certs.protocol.documents import (
    LISTS_A_SECOND,
    Bundle,
    BundleName,
    RevocationList,
    UntrustedError,
    read_bundle,
    read_revocations,
    version_at,
)
from sidecar.identity.judge import Revocations

AHEAD = timedelta(minutes=5)
"""How far the CA's clock may be ahead of ours."""

PROOF_AGE = timedelta(minutes=3)
"""How old a list may be for a secret to be sent. The CA signs one each minute."""

_CLOCKS_APART = timedelta(seconds=1)
"""The monotonic clock and the wall clock differ by this much without anybody having set one."""

OPERATOR = b""
"""The floor of what the operator demands, in place of a signer's key."""

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment, by both clocks. ``monotonic``: in seconds, of this process."""

    wall: datetime
    monotonic: float

    def since(self, earlier: Instant) -> timedelta:
        """How long ago that was: the longer of what the two clocks say."""
        return max(self.wall - earlier.wall, timedelta(seconds=self.monotonic - earlier.monotonic))

    def of(self, date: datetime) -> Instant:
        """When it was ``date``, if this is now and the wall clock is right."""
        return Instant(date, self.monotonic - max(timedelta(), self.wall - date).total_seconds())

    def end(self, begin: Instant, span: timedelta) -> datetime:
        """When ``span`` after ``begin`` is over, by the clock that gets there first, as a time of the wall clock."""
        wall = begin.wall + span
        monotonic = self.wall + span - timedelta(seconds=self.monotonic - begin.monotonic)
        return wall if wall - monotonic < _CLOCKS_APART else monotonic


@dataclass(frozen=True, slots=True)
class Floor:
    """What one key signed. ``root``: the root that it belongs to; ``named``: the newest bundle that its lists named, and
    ``since`` when it named the first that is missing; ``distrusted``: all keys that its lists distrusted."""

    version: int
    issued_at: datetime
    root: bytes
    named: BundleName
    since: Instant
    distrusted: frozenset[bytes] = frozenset()

    def as_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "issued_at": int(self.issued_at.timestamp()),
            "root": self.root.hex(),
            "bundle": [self.named.version, self.named.sha256.hex()],
            "since": int(self.since.wall.timestamp()),
            "distrusted": sorted(key.hex() for key in self.distrusted),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any], now: Instant) -> Floor:
        """Raises :class:`ValueError`, :class:`KeyError` and :class:`TypeError`."""
        version, sha256 = said["bundle"]
        return cls(
            int(said["version"]),
            datetime.fromtimestamp(said["issued_at"], UTC),
            bytes.fromhex(said["root"]),
            BundleName(int(version), bytes.fromhex(sha256)),
            now.of(datetime.fromtimestamp(said["since"], UTC)),
            frozenset(map(bytes.fromhex, said["distrusted"])),
        )


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of bundles. ``document``: the newest that was taken, as it was received, or empty. ``faults``: why later
    ones were refused."""

    trust: Trust
    document: bytes
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trust:
    """What is believed. ``pin``: the digest of the pinned root. ``listed``: the list in force; ``heard``: when it was
    signed. ``floors``: by the signer's key."""

    trust_domain: str
    pin: bytes
    bundle: Bundle | None = None
    listed: RevocationList | None = None
    heard: Instant = Instant(_NEVER, 0.0)
    floors: Mapping[bytes, Floor] = field(default_factory=dict)

    # -- learning ------------------------------------------------------------------------------------------------------

    def learn(self, documents: Iterable[bytes], now: Instant) -> Learnt:
        """Follows the chain of bundles to the newest. Each must be newer, and signed by a root of the one before it; the
        first by the pinned root. Also for a bundle that did not come from the CA."""
        trust, newest, faults = self, b"", []
        for document in documents:
            bundle = trust.bundle
            anchors = frozenset({self.pin}) if bundle is None else bundle.anchors
            try:
                found = read_bundle(document, self.trust_domain, anchors, now.wall)
            except UntrustedError as error:
                faults.append(str(error))
                continue
            if bundle is not None and found.version <= bundle.version:
                faults.append(f"version {found.version} is no newer than {bundle.version}, which is in force")
                continue
            trust, newest, faults = trust._with_bundle(found), document, []
        return Learnt(trust, newest, tuple(faults))

    def _with_bundle(self, bundle: Bundle) -> Trust:
        """With another bundle, and without what signers said that it does not trust."""
        floors = {
            key: floor
            for key, floor in self.floors.items()
            if key == OPERATOR or (key not in bundle.distrusted and floor.root in bundle.anchors)
        }
        listed = self.listed
        if listed is not None and listed.signer is not None and listed.signer.key in bundle.distrusted:
            listed = None
        return replace(self, bundle=bundle, listed=listed, floors=floors)

    def take(self, document: bytes, now: Instant) -> Trust:
        """With this list in force. Raises :class:`UntrustedError` if it is refused."""
        if self.bundle is None:
            raise UntrustedError("there is no trust bundle to verify it by")
        believed = replace(self.bundle, distrusted=self.distrusted)
        return self._with_list(read_revocations(document, believed, now.wall), now)

    def _with_list(self, listed: RevocationList, now: Instant) -> Trust:
        latest = now.wall + AHEAD
        if listed.issued_at > latest:
            raise UntrustedError(
                f"it is dated {listed.issued_at:%FT%TZ}, and our clock shows {now.wall:%FT%TZ}; are both clocks right?"
            )
        for what, version, highest in (
            ("its version", listed.version, version_at(latest, LISTS_A_SECOND)),
            ("the bundle that it names", self._unmet(listed.bundle), version_at(latest)),
        ):
            if version > highest:
                raise UntrustedError(
                    f"{what} is {version}, but at {now.wall:%FT%TZ} there are none above {highest}; are both clocks right?"
                )
        newest = max(map(_order, self.floors.values()), default=(0, _NEVER))
        if (listed.version, listed.issued_at) < newest:
            raise UntrustedError(
                f"it is older (version {listed.version} of {listed.issued_at:%FT%TZ}) than the newest that was taken "
                f"({newest[0]} of {newest[1]:%FT%TZ})"
            )
        again = self.listed is not None and self.heard.wall == listed.issued_at
        # The same once more gets no younger by a clock that was set back.
        return self._put(listed, self.heard if again else now.of(listed.issued_at))

    def _put(self, listed: RevocationList, heard: Instant) -> Trust:
        """With a list in force that was checked, and its signer's floor raised to it."""
        signer = listed.signer
        if signer is None or signer.key in listed.distrusted:
            raise UntrustedError("it distrusts the key that signed it")
        floor = Floor(listed.version, listed.issued_at, signer.root, listed.bundle, heard, listed.distrusted)
        if (before := self.floors.get(signer.key)) is not None:
            version, issued_at = max(_order(before), _order(floor))
            floor = Floor(
                version,
                issued_at,
                signer.root,
                max(before.named, floor.named, key=lambda named: named.version),
                before.since if self._unmet(before.named) else heard,
                before.distrusted | floor.distrusted,
            )
        return replace(self, listed=listed, heard=heard, floors={**self.floors, signer.key: floor})

    def demand(self, version: int, now: Instant) -> Trust:
        """With a bundle of at least this version demanded by the operator: an older one counts as missing it."""
        before = self.floors.get(OPERATOR)
        if (0 if before is None else before.named.version) == version:
            return self
        operator = Floor(0, _NEVER, b"", BundleName(version), now)
        return replace(self, floors={**self.floors, OPERATOR: operator})

    def restored(self, bundle: Bundle, floors: Mapping[bytes, Floor], document: bytes | None, now: Instant) -> Trust:
        """What was kept, as it was checked before. A list whose date is ahead of this clock stays a floor. Raises
        :class:`UntrustedError` if the list is damaged, or by a signer that the bundle does not trust."""
        trust = replace(self, floors=floors)._with_bundle(bundle)
        if document is None:
            return trust
        listed = read_revocations(document, replace(bundle, distrusted=trust.distrusted), None)
        return trust._put(listed, now.of(listed.issued_at))

    # -- what counts ---------------------------------------------------------------------------------------------------

    def has_root(self, root: bytes) -> bool:
        """Whether a root, by its digest, is one of this mesh: the pinned one, or one that is trusted by now."""
        return root == self.pin or (self.bundle is not None and root in self.bundle.anchors)

    @property
    def distrusted(self) -> frozenset[bytes]:
        """The keys that are distrusted by the bundle, or by any list of a signer that counts."""
        known = frozenset() if self.bundle is None else self.bundle.distrusted
        return known.union(*(floor.distrusted for floor in self.floors.values()))

    def _unmet(self, named: BundleName) -> int:
        """The version of a bundle that was named and is missing; 0 if it is here, or a newer one."""
        have = BundleName() if self.bundle is None else self.bundle.name
        other = named.version == have.version and named.sha256 not in (b"", have.sha256)
        return named.version if named.version > have.version or other else 0

    @property
    def missing(self) -> Floor | None:
        """The floor that names the newest bundle of those that are missing; None if none is."""
        unmet = [floor for floor in self.floors.values() if self._unmet(floor.named)]
        return max(unmet, key=lambda floor: floor.named.version, default=None)

    def fresh_until(self, now: Instant, staleness: timedelta) -> datetime:
        """Until when peers are accepted by this list, as a time of the wall clock."""
        if self.listed is None or self.heard.wall > now.wall + AHEAD:
            return _NEVER
        begins = [self.heard, *(floor.since for floor in self.floors.values() if self._unmet(floor.named))]
        return min(now.end(begin, staleness) for begin in begins)

    def revocations(self, now: Instant, staleness: timedelta) -> Revocations:
        """By what peers are judged. Without a list nothing is fresh, so every new connection is refused."""
        return replace(self.of_the_ca(), fresh_until=self.fresh_until(now, staleness))

    def of_the_ca(self) -> Revocations:
        """By what the CA is judged: by all that is revoked, but also while no list is fresh, since it has the next one."""
        if self.listed is None:
            return Revocations(keys=self.distrusted)
        return Revocations(dict(self.listed.identities), self.listed.serials, self.distrusted)

    def why_no_secret(self, now: Instant) -> str | None:
        """Why no secret may be sent; None if it may."""
        if self.listed is None:
            return "there is no list of revocations in force"
        if now.since(self.heard) > PROOF_AGE or self.heard.wall > now.wall + AHEAD:
            return (
                f"the list of revocations is of {self.heard.wall:%FT%TZ}, our clock shows {now.wall:%FT%TZ}, and it may be "
                f"{PROOF_AGE.seconds // 60} minutes old at most: does something hold back newer ones, and are both clocks "
                "right?"
            )
        return self.why_incomplete()

    def why_incomplete(self) -> str | None:
        """What is missing of the trust bundles, for people; None if nothing is."""
        if (missing := self.missing) is None:
            return None
        have = "none" if self.bundle is None else str(self.bundle.version)
        return (
            f"trust bundle {missing.named.version} is in force in the mesh, and the newest that is known here is {have}"
        )


def _order(floor: Floor) -> tuple[int, datetime]:
    return floor.version, floor.issued_at
