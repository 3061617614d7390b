"""The trust bundles of the store: only newer ones are published, and a distrusted key is never forgotten."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents
from certs.protocol.documents import Bundle, UntrustedError
from certs.protocol.wire import MAX_BUNDLES, MAX_UNVERIFIED_BUNDLES_BYTES
from certs.registrar import bundles
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.reasons import UsageError
from tests.beds.clock import NOW
from tests.beds.store import DOMAIN, MiniCa

MADE: Made = authority.make(DOMAIN, NOW)
ROOT = MADE.root.certificate
OWN = authority.Authority(DOMAIN, (ROOT,), ROOT, MADE.issuing, MADE.delegate)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[MiniCa]:
    made = MiniCa(tmp_path / "store.db", OWN)
    yield made
    made.store.close()


def bundle(version: int) -> Bundle:
    return Bundle(DOMAIN, version, (ROOT,), certificate_digest(ROOT))


def publish(ca: MiniCa, version: int) -> str:
    document = documents.sign_bundle(bundle(version), [MADE.root])
    ca.store.write(lambda transaction: bundles.publish(transaction, bundle(version), document))
    return document.decode()


def after(ca: MiniCa, version: int) -> list[str]:
    return ca.store.read(lambda connection: bundles.bundles_after(connection, version))


def test_a_new_store_has_none(ca: MiniCa) -> None:
    assert ca.store.read(bundles.newest_bundle) is None
    assert ca.store.read(lambda connection: bundles.bundles_after(connection, 0)) == []


def test_the_newest_is_told_and_those_after_one_that_a_reader_has_oldest_first(ca: MiniCa) -> None:
    first, second, third = (publish(ca, version) for version in (5, 6, 9))
    assert ca.store.read(bundles.newest_bundle) == third
    assert [after(ca, version) for version in (0, 5, 8, 9)] == [[first, second, third], [second, third], [third], []]
    assert ca.events()[-1] == ("bundle", "")


def test_as_many_are_told_as_a_sidecar_reads_at_first_contact(ca: MiniCa) -> None:
    """A bundle grows by each key that is distrusted."""
    sizes = []
    for version in range(1, 6):
        large = replace(bundle(version), distrusted=frozenset(bytes([n % 256, n // 256]) * 16 for n in range(900)))
        document = documents.sign_bundle(large, [MADE.root])
        ca.store.write(lambda it, large=large, document=document: bundles.publish(it, large, document))  # type: ignore[misc]
        sizes.append(len(document))
    told = after(ca, 0)
    assert [json.loads(b64decode(json.loads(one)["payload"]))["version"] for one in told] == [3, 4, 5]
    assert sum(sizes[-3:]) < MAX_UNVERIFIED_BUNDLES_BYTES < sum(sizes[-4:])


def test_one_that_is_too_large_is_told_all_the_same(ca: MiniCa) -> None:
    ca.store.write(lambda it: bundles.publish(it, bundle(1), b" " * MAX_UNVERIFIED_BUNDLES_BYTES))
    assert len(after(ca, 0)) == 1


@pytest.mark.parametrize("version", [5, 4, 1])
def test_one_that_is_no_newer_is_not_published(ca: MiniCa, version: int) -> None:
    first = publish(ca, 5)
    with pytest.raises(UsageError, match=f"bundle version {version} is not newer than 5"):
        publish(ca, version)
    assert ca.store.read(bundles.newest_bundle) == first
    assert len(ca.events()) == 1
    publish(ca, 6)


def test_an_answer_has_the_newest_of_many(ca: MiniCa) -> None:
    published = [publish(ca, version) for version in range(1, MAX_BUNDLES + 4)]
    told = ca.store.read(lambda connection: bundles.bundles_after(connection, 1))
    assert told == published[-MAX_BUNDLES:]


def test_a_store_of_another_ca_is_not_taken_for_ours(ca: MiniCa) -> None:
    document = publish(ca, 5)
    assert bundles.own_bundle(document, DOMAIN, [ROOT], NOW) == bundle(5)
    other = authority.make(DOMAIN, NOW).root.certificate
    with pytest.raises(UntrustedError, match="not by a root that is trusted here"):
        bundles.own_bundle(document, DOMAIN, [other], NOW)
    with pytest.raises(UntrustedError, match="of the trust domain"):
        bundles.own_bundle(document, "other.internal", [ROOT], NOW)


def test_a_stolen_issuing_key_is_distrusted_by_a_bundle_that_the_root_signs(ca: MiniCa) -> None:
    gone, later = key_digest(MADE.issuing.certificate), b"\x02" * 32

    def distrust(key: bytes) -> int:
        return ca.store.write(lambda transaction: bundles.distrust(transaction, key, OWN, MADE.root, NOW))

    with pytest.raises(UsageError, match="no trust bundle yet"):
        distrust(gone)
    publish(ca, 5)
    version = distrust(gone)
    newest = bundles.own_bundle(str(ca.store.read(bundles.newest_bundle)), DOMAIN, [ROOT], NOW)
    assert newest == replace(bundle(version), distrusted=frozenset({gone}))
    assert version == int(NOW.timestamp())
    assert distrust(later) == version + 1
    newest = bundles.own_bundle(str(ca.store.read(bundles.newest_bundle)), DOMAIN, [ROOT], NOW)
    assert newest.distrusted == {gone, later}, "the one before is not forgotten"
    assert ca.events()[-1] == ("distrusted", "")
