"""What tests of whole programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright import async_api, sync_api

from support.broken_site import BrokenSite, Prepared, prepare

BROWSER_MILLISECONDS = 20_000


@pytest.fixture(scope="session", autouse=True)
def _patience_with_browsers() -> None:
    for api in (async_api, sync_api):
        api.expect.set_options(timeout=BROWSER_MILLISECONDS)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("prepared") / "broker")


@pytest.fixture
def broken_site(tmp_path: Path, prepared: Prepared) -> Iterator[BrokenSite]:
    with BrokenSite(tmp_path, prepared) as site:
        yield site
