"""The copies of the session leader: whole or not there, whatever was left behind before."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deskfleet.agent.drivers import leader_copy
from deskfleet.agent.drivers.leader_copy import install_leader


def names(runtime: Path) -> list[str]:
    return sorted(path.name for path in runtime.iterdir())


def runs(program: Path) -> bool:
    """Tell whether a leader starts; one that is ordered nothing ends at once."""
    argv = [sys.executable, "-ISE", str(program), "1"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=20)
    return done.returncode == 0


def test_a_copy_is_compiled_and_runs(tmp_path: Path) -> None:
    program = install_leader(tmp_path, sys.executable)
    assert runs(program)
    assert list(program.parent.glob("session_leader/__pycache__/session.*.pyc"))
    assert install_leader(tmp_path, sys.executable) == program
    assert names(tmp_path) == [program.parent.name]


def test_a_draft_that_was_left_behind_is_in_nobody_s_way(tmp_path: Path) -> None:
    for runtime in (tmp_path / "one", tmp_path / "other"):
        runtime.mkdir()
    name = install_leader(tmp_path / "one", None).parent.name
    # In a container each agent has the same pid.
    (tmp_path / "other" / f"{name}.{os.getpid()}").mkdir()
    assert runs(install_leader(tmp_path / "other", None))


def test_of_agents_that_start_together_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        programs = set(threads.map(lambda _: install_leader(tmp_path, None), range(8)))
    (program,) = programs
    assert runs(program)
    assert names(tmp_path) == [program.parent.name]


@pytest.mark.parametrize("interpreter", ["/nowhere/python3", "hangs"])
def test_an_interpreter_that_does_not_compile_holds_nobody_up(
    tmp_path: Path, interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_copy, "COMPILATION_SECONDS", 0.1)
    (tmp_path / "hangs").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "hangs").chmod(0o755)
    (tmp_path / "run").mkdir()
    assert runs(install_leader(tmp_path / "run", str(tmp_path / interpreter)))
