"""A runtime folder goes with the last agent that holds it, and is never taken from another one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deskfleet.agent.drivers.runtime_hold import Hold
from deskfleet.errors import SetupFailed
from support.waiting import until

HOLDER = """
import sys, time
from pathlib import Path
from deskfleet.agent.drivers.runtime_hold import Hold
hold = Hold(Path(sys.argv[1]), lambda: None)
print("held", flush=True)
time.sleep(600)
"""


def nothing() -> None:
    pass


def test_the_last_one_takes_the_folder_away(tmp_path: Path) -> None:
    runtime = tmp_path / "above/run"
    one, other = Hold(runtime, nothing), Hold(runtime, nothing)
    (runtime / "content").touch()
    one.leave(lambda: True)
    assert (runtime / "content").exists()
    other.leave(lambda: True)
    assert list((tmp_path / "above").iterdir()) == []


def test_what_is_used_stays(tmp_path: Path) -> None:
    Hold(tmp_path / "run", nothing).leave(lambda: False)
    assert (tmp_path / "run").is_dir()


def test_leaving_what_somebody_has_removed_is_no_error(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    hold = Hold(runtime, nothing)
    runtime.rmdir()
    hold.leave(lambda: bool(list(runtime.iterdir())))


def test_one_who_is_alone_may_tidy_up(tmp_path: Path) -> None:
    tidied: list[str] = []
    first = Hold(tmp_path / "run", lambda: tidied.append("first"))
    second = Hold(tmp_path / "run", lambda: tidied.append("second"))
    for hold in (first, second):
        hold.leave(lambda: False)
    third = Hold(tmp_path / "run", lambda: tidied.append("third"))
    third.leave(lambda: True)
    assert tidied == ["first", "third"]


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    runtime, argv = tmp_path / "run", [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        Hold(runtime, nothing).leave(lambda: True)
        assert runtime.is_dir()
        holder.send_signal(signal.SIGKILL)
    Hold(runtime, nothing).leave(lambda: True)
    assert not runtime.exists()


def test_one_who_comes_while_another_one_leaves_holds_what_is_there(tmp_path: Path) -> None:
    runtime, leaving = tmp_path / "run", threading.Event()
    leaver = Hold(runtime, nothing)
    number = runtime.stat().st_ino

    def is_unused() -> bool:
        leaving.set()
        until(lambda: waits_for_a_lock(number))
        return True

    with ThreadPoolExecutor(1) as thread:
        left = thread.submit(leaver.leave, is_unused)
        assert leaving.wait(10)
        comer = Hold(runtime, nothing)
        left.result()
    assert runtime.is_dir()
    # It holds the folder that is there now, and not the one that is gone.
    Hold(runtime, nothing).leave(lambda: True)
    assert runtime.is_dir()
    comer.leave(lambda: True)
    assert not runtime.exists()


def waits_for_a_lock(number: int) -> bool:
    """Tell whether somebody waits for a lock on a file."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{number} " in line for line in lines)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SetupFailed, match="can't be used"):
        Hold(tmp_path / "run", nothing)
    (tmp_path / "file").touch()
    with pytest.raises(SetupFailed, match="can't be used"):
        Hold(tmp_path / "file/run", nothing)
    with pytest.raises(SetupFailed, match="can't be used"):
        Hold(tmp_path / "file", nothing)
