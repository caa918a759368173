"""DCV servers for tests: a stand-in `dcv` program in a folder, and drivers that use it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil

from deskfleet.agent.drivers.dcv import DcvDriver
from deskfleet.agent.drivers.dcv_files import DcvFiles
from deskfleet.agent.drivers.dcv_platform import DcvPlatform
from deskfleet.agent.drivers.dcv_server import DcvServer
from deskfleet.agent.drivers.owners import ROOT, OwnerPolicy
from deskfleet.core.records import Type
from deskfleet.system import SystemClock
from support.growing import whole_lines

BOTH = (Type.VIRTUAL, Type.CONSOLE)
POLL_SECONDS = 0.3
PLATFORM = {"default_init", "logged_in", "start_as"}
_START = """\
#!{python} -IS
import sys
sys.path.insert(0, {folder!r})
from dcv_program import main
main()
"""


class DcvSite:
    """A stand-in server in a folder of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.state = folder / "server"
        self.program = folder / "dcv"
        source = Path(__file__).with_name("dcv_program.py")
        # Compiled once, for it is called again and again.
        py_compile.compile(str(source), cfile=str(folder / "dcv_program.pyc"), doraise=True)
        self.program.write_text(_START.format(python=sys.executable, folder=str(folder)))
        self.program.chmod(0o755)
        self.configure(**settings)
        for name in ("init", "autorun"):
            (folder / name).mkdir(mode=0o755, exist_ok=True)

    def configure(self, **settings: Any) -> None:
        """Say what kind of server it is (see `dcv_program`)."""
        told = {"state": str(self.state), "platform": "linux", **settings}
        Path(f"{self.program}.json").write_text(json.dumps(told))

    def dcv(self, *arguments: str) -> str:
        """Run the program by hand."""
        done = subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Return what the server has, without asking it."""
        path = self.state / "sessions.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return cast(dict[str, dict[str, Any]], found)

    def calls(self, command: str | None = None) -> list[list[bytes]]:
        """Return the arguments of all calls so far, or of those of one command."""
        arguments = [
            [base64.b64decode(one) for one in call["arguments"]] for call in self._recorded()
        ]
        return [one for one in arguments if command is None or one[0] == command.encode()]

    def fault(self, kind: str, command: str = "*", when: str = "before") -> None:
        """Have an accident at each call from now on, until `heal`."""
        draft = self.state / "fault.new"
        self.state.mkdir(exist_ok=True)
        draft.write_text(json.dumps({"kind": kind, "command": command, "when": when}))
        draft.rename(self.state / "fault")

    def heal(self) -> None:
        (self.state / "fault").unlink(missing_ok=True)

    def change(self, session_id: str, **members: Any) -> None:
        """Change what the server says of a session, as clients and time do."""
        with (self.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sessions = self.sessions()
            sessions[session_id].update(members)
            draft = self.state / "changed"
            draft.write_text(json.dumps(sessions))
            draft.rename(self.state / "sessions.json")

    def calls_left(self) -> list[int]:
        """Return the processes of all calls, and of their groups, that still live."""
        groups = {call["pid"] for call in self._recorded()}
        return [one.pid for one in psutil.process_iter() if _group(one) in groups]

    def _recorded(self) -> list[Any]:
        path = self.state / "calls"
        return [json.loads(line) for line in whole_lines(path)] if path.exists() else []


def _group(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.Error, OSError):
        return None


@contextmanager
def dcv_folder() -> Iterator[Path]:
    """Make a folder that session owners can reach, which pytest's own are not for root."""
    folder = Path(tempfile.mkdtemp(prefix="deskfleet-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def dcv_driver(
    folder: Path,
    program: Path,
    *,
    create_seconds: float = 20.0,
    answer_seconds: float = 20.0,
    types: tuple[Type, ...] = BOTH,
    **settings: Any,
) -> DcvDriver:
    server = DcvServer(program, create_seconds=create_seconds, answer_seconds=answer_seconds)
    ours = {name: settings.pop(name) for name in PLATFORM & settings.keys()}
    platform = DcvPlatform(
        types=types,
        check_owner=OwnerPolicy(ROOT).check if Type.VIRTUAL in types else lambda _owner: None,
        init_folder=folder / "init",
        autorun_folder=folder / "autorun",
        **ours,
    )
    given: dict[str, Any] = {"platform": platform, "clock": SystemClock()}
    given |= {"poll_seconds": POLL_SECONDS, **settings}
    return DcvDriver(
        server, folder / "known", DcvFiles(folder / "run", folder / "scripts"), **given
    )
