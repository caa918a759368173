"""Session drivers for tests: sessions to ask for, and a place for xvnc to run them in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.drivers.xvnc import XvncDriver
from deskfleet.core.records import SessionRequest, Type
from deskfleet.ports import SessionSpec
from deskfleet.system import SystemClock
from support.users import ordinary_user

START_LIMIT_SECONDS = 40.0


def session_owner() -> str:
    return ordinary_user("dfalice").pw_name


def session_spec(session_id: str = "s-1", generation: int = 1, **request: object) -> SessionSpec:
    asked: dict[str, object] = {"name": "a session", "owner": session_owner(), "type": Type.VIRTUAL}
    return SessionSpec(
        session_id=session_id,
        generation=generation,
        request=SessionRequest(**{**asked, **request}),  # type: ignore[arg-type]
    )


def need_xvnc() -> None:
    """Skip what needs Xvnc where there is none; under CI that is a failure."""
    if shutil.which("Xvnc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Xvnc is not installed")
        pytest.skip("Xvnc is not installed")


@contextmanager
def xvnc_folder() -> Iterator[Path]:
    """Make a folder that session owners can reach, which pytest's own are not for root."""
    folder = Path(tempfile.mkdtemp(prefix="deskfleet-", dir="/tmp"))
    folder.chmod(0o711)
    for name in ("init", "autorun"):
        (folder / name).mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def xvnc_driver(folder: Path, **settings: object) -> XvncDriver:
    arguments: dict[str, object] = {
        "owners": OwnerPolicy(os.geteuid(), allow_root_sessions=False),
        "clock": SystemClock(),
        "init_folder": folder / "init",
        "autorun_folder": folder / "autorun",
        "start_limit_seconds": START_LIMIT_SECONDS,
    }
    return XvncDriver(folder / "run", **{**arguments, **settings})  # type: ignore[arg-type]


def program(path: Path, text: str) -> None:
    """Write a program as an administrator would."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
