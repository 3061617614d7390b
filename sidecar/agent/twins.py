"""Whether another holder of our identity lives: somebody who stole a secret, a token or a state directory. Pure.

How this works. The CA answers each report with the certificates of our identity that it has not renewed
(:mod:`certs.registrar.twins`), each with its key's digest, and when it was issued and last used to poll. Ours are those
whose key this state directory made: a key's digest is written down before it goes to the CA, so an answer that is lost
leaves nothing that looks foreign. Every other certificate has a *life*: from its issue to its last poll.

* A life that goes on, or begins, while we live is a twin: ``elsewhere``, unless mesh.yaml's ``instances`` leaves room for
  it. With room for several, as many must live at one moment as the file does not leave room for: replicas that came one
  after another, each with a new state directory, are none.
* A life that ended before ours began is our own past, or was: ``moved``. Our state directory was lost, or is new.

A hand-over takes :data:`MARGIN` seconds: what overlaps by less is none. So a new container that is started before the old
one is stopped is no twin, if it takes no longer.

What this cannot see: a copy of our state directory is us, until one of the two renews its certificate. A thief who gets his
certificate while we are down, and never polls, looks like our own past. A certificate that the issuing key forged is not in
the CA's store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MARGIN = 15
"""Seconds. A sidecar polls every five, and a container is stopped within ten."""

SURE = 45
"""Seconds after which a life that ended has ended: the CA notes every thirty that one goes on."""

MOST_KEYS = 128
"""Digests that are kept, the newest. A sidecar makes a key at each attempt at a certificate, and two of them live."""

MOST_HOLDERS = 256
_HEX = re.compile(r"[0-9a-f]{1,64}")
_WORD = re.compile(r"[a-z-]{1,16}")


@dataclass(frozen=True, slots=True)
class Holder:
    """A certificate of our identity. ``key``: the SHA-256 of its public key. ``how``: it was obtained. Times are Unix
    seconds of the CA."""

    serial: str
    key: str
    how: str
    issued_at: int
    seen_at: int | None

    @property
    def last(self) -> int:
        """When it was last known to live."""
        return self.issued_at if self.seen_at is None else max(self.issued_at, self.seen_at)


def parse(answer: Mapping[str, Any]) -> tuple[int, list[Holder]] | None:
    """The CA's time, and the holders that its answer names; None if it names none, as an older CA does. Raises
    :class:`ValueError`."""
    found, now = answer.get("live"), answer.get("now")
    if found is None:
        return None
    if type(now) is not int or not isinstance(found, list) or len(found) > MOST_HOLDERS:
        raise ValueError("the CA's answer about our identity is not as it should be")
    return now, [_holder(one) for one in found]


def _holder(one: Any) -> Holder:
    try:
        holder = Holder(one["serial"], one["key"], one["how"], one["issued_at"], one.get("seen_at"))
        texts = _HEX.fullmatch(holder.serial), _HEX.fullmatch(holder.key), _WORD.fullmatch(holder.how)
        if type(holder.issued_at) is not int or type(holder.seen_at) not in (int, type(None)) or None in texts:
            raise ValueError("of a wrong type")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("the CA's answer about our identity is not as it should be") from error
    return holder


def elsewhere(holders: Iterable[Holder], own: Iterable[str], since: int, now: int, instances: int) -> list[Holder]:
    """The twins, the oldest first. ``own``: the digests of our keys. ``since``: when we first heard of holders.
    ``instances``: as many sidecars may have our identity at one time."""
    foreign = _foreign(holders, own)
    found: dict[str, Holder] = {}
    for moment in sorted({moment for one in foreign for moment in (one.issued_at, one.last)}):
        if since + MARGIN < moment <= now - MARGIN:
            living = [one for one in foreign if one.issued_at <= moment <= one.last]
            if len(living) >= instances:
                found |= {one.serial: one for one in living}
    return list(found.values())


def moved(holders: Iterable[Holder], own: Iterable[str], since: int, now: int, instances: int) -> list[Holder]:
    """The lives that ended before ours began. With room for several they are of replicas, and nothing to speak of."""
    if instances > 1 or now < since + SURE:
        return []
    return [one for one in _foreign(holders, own) if one.last <= since + MARGIN]


def _foreign(holders: Iterable[Holder], own: Iterable[str]) -> list[Holder]:
    ours = set(own)
    return [one for one in holders if one.key not in ours]


@dataclass(frozen=True, slots=True)
class Own:
    """What a state directory knows of itself. ``keys``: digests, the newest last. ``since``: when it first heard of holders,
    by the CA's clock; None before."""

    keys: tuple[str, ...] = ()
    since: int | None = None

    def with_keys(self, *keys: str) -> Own:
        kept = [key for key in self.keys if key not in keys]
        return Own(tuple([*kept, *keys][-MOST_KEYS:]), self.since)

    def heard(self, now: int) -> Own:
        """The first answer came at ``now``. A CA's clock that was set back moves it, or nothing would count for long."""
        return Own(self.keys, now) if self.since is None or now < self.since else self

    def to_dict(self) -> dict[str, Any]:
        return {"keys": list(self.keys), "since": self.since}

    @classmethod
    def from_dict(cls, fields: Any) -> Own:
        """Raises :class:`ValueError`."""
        try:
            keys, since = fields["keys"], fields["since"]
            if not _are_keys(keys) or type(since) not in (int, type(None)):
                raise ValueError("of a wrong type")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("it is damaged") from error
        return cls(tuple(keys[-MOST_KEYS:]), since)


def _are_keys(keys: Sequence[Any]) -> bool:
    return isinstance(keys, list) and all(isinstance(key, str) and _HEX.fullmatch(key) for key in keys)
