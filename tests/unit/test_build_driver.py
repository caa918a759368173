"""What an agent's settings make of its session driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from deskfleet.agent import main as agent_main
from deskfleet.agent.drivers.dcv import DcvDriver
from deskfleet.machine import windows
from deskfleet.settings import AgentSettings


def dcv(folder: Path, **settings: object) -> DcvDriver:
    given = AgentSettings(state=folder, driver="dcv", **settings)  # type: ignore[arg-type]
    driver = agent_main.build_driver(given)
    assert isinstance(driver, DcvDriver)
    return driver


def test_the_dcv_program_is_where_dcv_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dcv(tmp_path)._server._program == Path("/usr/bin/dcv")
    assert dcv(tmp_path, dcv_root=Path("/opt/dcv"))._server._program == Path("/opt/dcv")
    monkeypatch.setattr(agent_main, "here", windows)
    monkeypatch.setenv("ProgramFiles", "P:")
    assert dcv(tmp_path)._server._program == Path("P:/NICE/DCV/Server/bin/dcv.exe")
