"""What the tests with real processes share: one CA with its certificates, made once by the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.beds.processes import Shop


@pytest.fixture(scope="session")
def made_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop.make(tmp_path_factory.mktemp("shop") / "shop")


@pytest.fixture
def shop(made_shop: Shop, tmp_path: Path) -> Shop:
    """The newcomer's directory, a copy that the test may spoil."""
    return Shop(Path(shutil.copytree(made_shop.path, tmp_path / "shop")))
