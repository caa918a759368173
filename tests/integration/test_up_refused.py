"""`deskfleet up` where a part of it can't be had: what was made for its start does not stay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deskfleet.cli import up
from deskfleet.errors import SetupFailed
from deskfleet.settings import AgentSettings, BrokerSettings


def test_what_lets_an_agent_enrol_goes_with_a_start_that_fails(tmp_path: Path) -> None:
    ports = {"client_port": 0, "agent_port": 0}
    broker = BrokerSettings(state=tmp_path, advertise="localhost", **ports)  # type: ignore[arg-type]
    # A folder where the journal is to be keeps an agent from starting once it is enrolled.
    (tmp_path / "agent" / "journal.jsonl").mkdir(parents=True)
    (tmp_path / "agent").chmod(0o700)
    agent = AgentSettings(
        state=tmp_path / "agent", driver="simulated", desktop_host="127.0.0.1", desktop_port=0
    )

    async def start() -> None:
        async with up._everything(broker, agent):
            pass

    with pytest.raises(BaseExceptionGroup) as failed:
        asyncio.run(start())
    assert failed.group_contains(SetupFailed, match="the journal can't be used")
    assert (tmp_path / "agent" / "identity.json").exists()
    assert not (tmp_path / "agent" / "software-statement").exists()
