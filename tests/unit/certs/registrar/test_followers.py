"""Which sidecars poll the CA: each as it was seen last, and no more of one identity than are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from certs.authority import authority
from certs.authority.authority import Made
from certs.registrar import followers
from certs.registrar.followers import Follower
from sidecar.identity.spiffe import SpiffeId
from tests.beds.certificates import HOUR
from tests.beds.clock import NOW
from tests.beds.store import API, DOMAIN, WEB, MiniCa

MADE: Made = authority.make(DOMAIN, NOW)
ROOT = MADE.root.certificate
OWN = authority.Authority(DOMAIN, (ROOT,), ROOT, MADE.issuing, MADE.delegate)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[MiniCa]:
    made = MiniCa(tmp_path / "store.db", OWN)
    yield made
    made.store.close()


def follower(
    instance: str, identity: SpiffeId = API, *, not_after: datetime = NOW + HOUR, version: int = 5
) -> Follower:
    return Follower(instance, str(identity), version, "0" * 64, not_after, NOW)


def note(ca: MiniCa, one: Follower) -> None:
    ca.store.write(lambda transaction: followers.save(transaction, one))


def all_of(ca: MiniCa) -> list[Follower]:
    return ca.store.read(lambda connection: followers.all_followers(connection, ca.clock.now))


def test_of_services_that_are_gone_none_is_left_and_of_the_others_all(ca: MiniCa) -> None:
    for number, identity in enumerate((API, API, WEB)):
        note(ca, follower(f"{number:032}", identity))
    ca.store.write(lambda transaction: followers.forget_all_but(transaction, {str(API)}))
    assert [one.identity for one in all_of(ca)] == [str(API), str(API)]
    ca.store.write(lambda transaction: followers.forget(transaction, follower(f"{0:032}")))
    assert [one.instance for one in all_of(ca)] == [f"{1:032}"]


def test_nobody_waits_for_who_was_revoked_until_it_comes_back(ca: MiniCa) -> None:
    note(ca, follower("a" * 32))
    note(ca, follower("b" * 32, WEB))
    ca.revoke()
    assert [one.identity for one in all_of(ca)] == [str(WEB)]
    note(ca, follower("a" * 32))
    assert len(all_of(ca)) == 2


def test_who_says_to_be_ever_more_replicas_is_not_believed_without_end(
    ca: MiniCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "MOST_FOLLOWERS", 3)
    honest = follower("f" * 32, WEB)
    note(ca, honest)
    for number in range(10):
        note(ca, replace(follower(f"{number:032}"), seen_at=NOW + timedelta(seconds=number)))
    assert [one.instance for one in all_of(ca)] == [*(f"{number:032}" for number in (7, 8, 9)), honest.instance]
    note(ca, replace(follower(f"{7:032}"), seen_at=NOW + timedelta(seconds=20)))
    note(ca, replace(follower(f"{10:032}"), seen_at=NOW + timedelta(seconds=21)))
    assert {one.instance for one in all_of(ca)} >= {f"{7:032}", f"{10:032}"}, "whoever goes on asking stays"


def test_each_sidecar_is_remembered_as_it_was_last(ca: MiniCa) -> None:
    web, one, two = follower("c" * 32, WEB), follower("b" * 32), follower("a" * 32)
    for each in (web, one, two):
        note(ca, each)
    assert all_of(ca) == [two, one, web]
    newer = replace(one, bundle=6, seen_at=NOW + HOUR, not_after=NOW + 2 * HOUR, root="1" * 64)
    note(ca, newer)
    assert all_of(ca) == [two, newer, web]


def test_whoever_s_certificate_has_ended_is_not_counted(ca: MiniCa) -> None:
    note(ca, follower("a" * 32))
    ca.clock.now = NOW + HOUR
    assert len(all_of(ca)) == 1
    ca.clock.pass_by(seconds=1)
    assert all_of(ca) == []
