"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.programs import LiveBroker, up


@pytest.fixture(scope="module")
def live_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBroker]:
    """Yield a real broker over SQLite and an agent of simulated sessions, for one module alone."""
    state: Path = tmp_path_factory.mktemp("live") / "state"
    with up(state) as (_program, broker):
        yield broker
