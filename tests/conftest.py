"""What all tests share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.campaigns import Campaigns
from support.programs import LiveBroker, up

CAMPAIGNS = pytest.StashKey[Campaigns]()


def pytest_configure() -> None:
    """Let the programs under test be interrupted.

    A run in the background begins with SIGINT ignored, and they would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask fuzzers last what came of them: they run meanwhile."""
    items.sort(key=_is_fuzzer)


def pytest_collection_finish(session: pytest.Session) -> None:
    targets = [_target(item) for item in session.items if _is_fuzzer(item)]
    if targets and not session.config.option.collectonly:
        alone = len(targets) == len(session.items)
        at_once = (os.cpu_count() or 1) if alone else 1
        session.config.stash[CAMPAIGNS] = Campaigns(targets, at_once)


def pytest_unconfigure(config: pytest.Config) -> None:
    campaigns = config.stash.get(CAMPAIGNS, None)
    if campaigns is not None:
        campaigns.close()


def _is_fuzzer(item: pytest.Item) -> bool:
    return item.get_closest_marker("fuzz") is not None


def _target(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    return str(item.callspec.params["target"])


@pytest.fixture
def campaigns(request: pytest.FixtureRequest) -> Campaigns:
    """Return the fuzzing campaigns of this run."""
    return request.config.stash[CAMPAIGNS]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Take back what a program does to the loggers of its process when it starts."""
    root = logging.getLogger()
    named = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in (root, *named)]
    yield
    for one, level, propagate, handlers in before:
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers


@pytest.fixture(scope="module")
def live_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBroker]:
    """Yield a real broker over SQLite and an agent of simulated sessions, for one module alone."""
    state: Path = tmp_path_factory.mktemp("live") / "state"
    with up(state) as (_program, broker):
        yield broker
