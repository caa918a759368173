"""What tests of whole programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.broken_site import BrokenSite, Prepared, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("prepared") / "broker")


@pytest.fixture
def broken_site(tmp_path: Path, prepared: Prepared) -> Iterator[BrokenSite]:
    with BrokenSite(tmp_path, prepared) as site:
        yield site
