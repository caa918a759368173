"""How a session leader is started, and what it is told to run.

The leader runs as the owner, on an interpreter that the owner can execute and from a copy of its
program that the owner can read (leader_copy.py), with a clean environment and nothing of the
agent's but two pipes. It does nothing until its order has come; the agent records its pid, and
puts it into its control group, before it sends the order.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from deskfleet.agent.drivers.desktop_config import CONFIG
from deskfleet.agent.drivers.desktops import Desktop
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.xvnc_clearing import MARK
from deskfleet.core.records import Frozen
from deskfleet.errors import StartFailed
from deskfleet.ports import SessionSpec

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
MAX_TITLE_CHARACTERS = 128
MAX_CLIPBOARD_BYTES = 20 * 1024 * 1024
"""What Xvnc tells its clients that it takes; left alone it drops what is over 256 KiB."""
_INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3", "/bin/python3")
_SILENT: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.DEVNULL,
}
_PROBE = "import ctypes, json, select, signal, socket, sys; sys.exit(sys.version_info < (3, 9))"


@dataclass(frozen=True, slots=True)
class Programs:
    """What may be run in a session besides the desktop, found and checked."""

    init: Path | None = None
    autorun: Path | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """As whom a session runs."""

    uid: int
    gid: int
    groups: list[int]


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int
    order: BinaryIO
    """Where the leader reads its order; to be closed after it."""
    report: FileIO
    """Where it says how the start goes."""


def rights_of(entry: pwd.struct_passwd) -> Owner:
    return Owner(entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))


def find_interpreter() -> str | None:
    """Return a Python that every session owner can run, None where there is none."""
    candidates = list(_INTERPRETERS)
    if os.geteuid() != 0:
        candidates.append(sys.executable)
    for candidate in candidates:
        if shutil.which(candidate) and _runs(candidate):
            return candidate
    return None


def _runs(interpreter: str) -> bool:
    """Try an interpreter, as root with the rights of nobody in particular."""
    whom: dict[str, Any] = {} if os.geteuid() else {"user": 65534, "group": 65534}
    try:
        answer = subprocess.run(
            [interpreter, "-ISE", "-c", _PROBE],
            check=False,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            extra_groups=None if os.geteuid() else [],
            **whom,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def session_environment(
    entry: pwd.struct_passwd, session_id: str, folder: Path, desktop: Desktop
) -> dict[str, str]:
    """Return the session's environment; DISPLAY and XAUTHORITY are the leader's to add."""
    return {
        "HOME": entry.pw_dir or "/",
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(folder / "xdg"),
        "XDG_SESSION_TYPE": "x11",
        "DCV_SESSION_ID": session_id,
        MARK: str(folder),
        **desktop.environment,
        **(
            {"XDG_CONFIG_DIRS": f"{folder / CONFIG}:{desktop.config_dirs}"}
            if desktop.config
            else {}
        ),
    }


def title(name: str) -> str:
    """Return a session's name as a desktop's title: one printable line of modest length."""
    return "".join(
        character if character.isprintable() else " " for character in name[:MAX_TITLE_CHARACTERS]
    )


def leader_order(
    spec: SessionSpec,
    *,
    folders: RuntimeFolders,
    key: str,
    xvnc: str,
    geometry: str,
    desktop: Desktop,
    programs: Programs,
    limit_seconds: float,
) -> dict[str, Any]:
    """Return what the leader is told."""
    settings = None if programs.init else desktop.settings
    autorun = programs.autorun and [str(programs.autorun), *spec.request.autorun_file_arguments]
    return {
        "folder": str(folders.session(key)),
        "x": _x_argv(xvnc, folders.rfb_socket(key), geometry, title(spec.request.name)),
        "desktop_name": "the init file" if programs.init else "the desktop",
        "desktop": [str(programs.init)] if programs.init else list(desktop.argv),
        "answers": programs.init is None,
        "config": dict(desktop.config),
        "settings": settings
        and {
            "file": settings.file,
            "text": settings.text,
            "argument": settings.argument,
            "unless": settings.unless,
        },
        "autorun": autorun,
        "limit_seconds": limit_seconds,
    }


def _x_argv(xvnc: str, rfb_socket: Path, geometry: str, desktop_title: str) -> list[str]:
    """Return the command line of X; display number and cookie are the leader's to add."""
    return [
        xvnc,
        "-rfbunixpath", str(rfb_socket),
        "-rfbunixmode", "0600",
        "-rfbport", "-1",
        "-SecurityTypes", "None",
        "-nolisten", "tcp",
        "-nolisten", "local",
        "-AlwaysShared",
        "-MaxCutText", str(MAX_CLIPBOARD_BYTES),
        "-noreset",
        "-geometry", geometry,
        "-depth", "24",
        "-dpi", "96",
        "-Log", "*:stderr:0",
        f"-desktop={desktop_title}",
    ]  # fmt: skip


def spawn_leader(
    interpreter: str, program: Path, owner: Owner, environment: dict[str, str]
) -> Spawned:
    """Start a leader as the owner. The caller watches and reaps it, and closes the descriptors."""
    whom: dict[str, Any] = {}
    if os.geteuid() == 0:
        whom = {"user": owner.uid, "group": owner.gid, "extra_groups": owner.groups}
    with ExitStack() as theirs, ExitStack() as ours:
        order_read, order_write = os.pipe()
        theirs.callback(os.close, order_read)
        order = ours.enter_context(os.fdopen(order_write, "wb"))
        report_read, report_write = os.pipe()
        theirs.callback(os.close, report_write)
        report = ours.enter_context(FileIO(report_read))
        try:
            child = subprocess.Popen(
                [interpreter, "-ISE", str(program), str(report_write)],
                **{**_SILENT, "stdin": order_read},
                cwd="/",
                env=environment,
                umask=0o077,
                start_new_session=True,
                pass_fds=(report_write,),
                **whom,
            )
        except OSError as error:
            raise StartFailed(f"the session leader could not be run: {error.strerror}") from error
        ours.pop_all()
    # The driver watches the leader by its pid alone, like those that it takes up from an agent
    # before it; Popen must not expect to see its end.
    child.returncode = 0
    return Spawned(child.pid, order, report)


def send_order(spawned: Spawned, facts: dict[str, Any]) -> None:
    """Tell the leader what to run. It reads all of it before it does anything else."""
    try:
        with spawned.order as pipe:
            pipe.write(json.dumps(facts).encode())
    except BrokenPipeError:
        raise StartFailed("the session leader ended at once") from None


class Word(Frozen, frozen=True):
    """One line of a leader's report."""

    display: int | None = None
    x: int | None = None
    ready: bool = False
    failed: str | None = None


async def next_word(report: asyncio.StreamReader) -> Word:
    try:
        return msgspec.json.decode(await report.readline(), type=Word)
    except (msgspec.DecodeError, ValueError) as error:
        raise StartFailed("the session leader ended without a word") from error
