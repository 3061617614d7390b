"""What the operator brings to a sidecar that is stopped. ``tests/integration/agent`` has the rest, with a CA that serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents
from certs.protocol.documents import Bundle
from sidecar.agent.saved_state import SavedState
from sidecar.agent.statedir import BUNDLE, OWN
from sidecar.agent.trust import Instant
from sidecar.agent.twins import Own
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from tests.beds.clock import NOW

DOMAIN = "shop.internal"
MADE, OTHER = (authority.make(DOMAIN, NOW) for _ in range(2))
PIN = certificate_digest(MADE.root.certificate)
AT = Instant(NOW, 0.0)


def signed(version: int, made: Made = MADE) -> bytes:
    root = made.root.certificate
    return documents.sign_bundle(Bundle(DOMAIN, version, (root,), certificate_digest(root)), [made.root])


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SavedState]:
    made = SavedState(tmp_path / "state", SpiffeId(DOMAIN, ("api",)), lambda event, message: None)
    yield made
    made.close()


def test_a_bundle_from_the_operator_is_kept_if_it_is_newer_and_of_this_mesh(state: SavedState) -> None:
    """The first by the pinned root, the next by one that is trusted."""

    def refused(document: bytes) -> str:
        with pytest.raises(UsageError) as error:
            state.learn(document, PIN, AT)
        return str(error.value)

    assert "not by a root that is trusted here" in refused(signed(7, OTHER))
    assert not (state.path / BUNDLE).exists()
    assert state.learn(signed(5), PIN, AT).version == 5
    for document, why in (
        (signed(5), "version 5 is no newer than 5"),
        (signed(4), "version 4 is no newer than 5"),
        (signed(7, OTHER), "not by a root that is trusted here"),
        (b"garbage", "it is not a signed document"),
    ):
        assert why in refused(document)
        kept = documents.read_kept_bundle((state.path / BUNDLE).read_bytes(), DOMAIN, NOW)
        assert kept.version == 5
    assert state.learn(signed(6), PIN, AT).version == 6
    bundle = state.load(PIN, AT).bundle
    assert bundle is not None
    assert bundle.version == 6


def test_what_it_knows_of_itself_is_kept(state: SavedState) -> None:
    assert state.own() == Own()
    state.keep_own(Own(("ab",), 5))
    assert state.own() == Own(("ab",), 5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 3, "since": 1}', '{"keys": []}'])
def test_what_is_damaged_of_it_is_ignored_and_said(tmp_path: Path, content: str) -> None:
    said: list[str] = []
    made = SavedState(tmp_path / "state", SpiffeId(DOMAIN, ("api",)), lambda event, message: said.append(message))
    (made.path / OWN).write_text(content)
    (made.path / OWN).chmod(0o600)
    assert made.own() == Own()
    assert len(said) == 1
    assert "own.json" in said[0]
    made.close()
