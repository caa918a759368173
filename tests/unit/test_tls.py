"""What listeners show follows what is on the disk for as long as they run."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deskfleet.certificates import (
    CERTIFICATE_LIFE,
    ensure_authority,
    ensure_server_certificate,
    names_of,
)
from deskfleet.errors import SetupFailed
from deskfleet.tls import Pair, Shown, show
from support.showing import shown_certificate


class Machine:
    """A machine that grows older, and is given other names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instant = datetime.now(UTC)
        self.names = {"desk1"}

    def now(self) -> datetime:
        return self.instant

    def pair(self) -> Pair:
        authority = ensure_authority(self.folder, self)
        names = names_of(self.names)
        return ensure_server_certificate(authority, self.folder, "broker", self, names)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def on_disk(pair: Pair) -> str:
    return pair[0].read_text()


def test_a_certificate_that_grows_old_is_issued_anew_and_shown(machine: Machine) -> None:
    shown = Shown(machine.pair)
    contexts = [shown.context(), shown.context()]
    first = on_disk(machine.pair())
    asyncio.run(shown.look())
    assert [shown_certificate(one) for one in contexts] == [first, first]
    machine.instant += CERTIFICATE_LIFE * 2 / 3 + timedelta(days=2)
    asyncio.run(shown.look())
    second = on_disk(machine.pair())
    assert second != first
    assert [shown_certificate(one) for one in contexts] == [second, second]


def test_a_new_name_of_the_machine_is_shown(machine: Machine) -> None:
    shown = Shown(machine.pair)
    context = shown.context()
    first = shown_certificate(context)
    machine.names.add("desk2")
    asyncio.run(shown.look())
    assert shown_certificate(context) == on_disk(machine.pair()) != first


def test_one_that_can_not_be_used_does_not_take_the_place_of_one_that_can(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brought = tmp_path / "brought.pem", tmp_path / "brought.key"
    for path, source in zip(brought, machine.pair(), strict=True):
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
    shown = Shown(machine.pair)
    context = shown.context(lambda listener: show(listener, *brought))
    first = shown_certificate(context)
    machine.names.add("desk2")
    # The new certificate is there, and its key is not yet.
    other = Machine(tmp_path / "other")
    brought[0].write_bytes(other.pair()[0].read_bytes())
    with caplog.at_level(logging.ERROR):
        asyncio.run(shown.look())
    assert [one.message for one in caplog.records] == ["certificate.not-renewed"]
    assert shown_certificate(context) == first
    brought[1].write_bytes(other.pair()[1].read_bytes())
    asyncio.run(shown.look())
    assert shown_certificate(context) == on_disk(other.pair())


def test_what_can_not_be_shown_at_the_start_is_told(machine: Machine, tmp_path: Path) -> None:
    shown = Shown(machine.pair)
    with pytest.raises(SetupFailed, match=r"none\.pem"):
        shown.context(lambda listener: show(listener, tmp_path / "none.pem", machine.pair()[1]))


def test_what_the_system_refuses_is_told_and_keeps_nothing_else_from_being_shown(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fails = False

    def own() -> Pair:
        if fails:
            raise OSError(24, "too many open files")
        return machine.pair()

    other = Machine(tmp_path / "other")
    shown = Shown(own)
    context = shown.context()
    brought = shown.context(lambda listener: show(listener, *other.pair()))
    before = shown_certificate(context)
    fails = True
    machine.names.add("desk2")
    other.names.add("desk2")
    with caplog.at_level(logging.ERROR):
        asyncio.run(shown.look())
    assert [one.message for one in caplog.records] == ["certificate.not-renewed"]
    assert shown_certificate(context) == before
    assert shown_certificate(brought) == on_disk(other.pair())
    fails = False
    asyncio.run(shown.look())
    assert shown_certificate(context) == on_disk(machine.pair()) != before
