"""POSIX, and Linux where it goes beyond: one side of the seam that `deskfleet.machine` is.

Has the same functions as `windows`, and their contracts stand here.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import pwd
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from deskfleet.core.records import Cpu, Gpu, Os
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine.folders import Folders
from deskfleet.machine.posix_programs import find_program
from deskfleet.machine.posix_ways import refuse_unsafe_folder

__all__ = ["find_program", "refuse_unsafe_folder"]

BINARY = 0
"""For os.open: bytes are written as they are."""
OWN_GROUP: Mapping[str, Any] = {"start_new_session": True}
"""For Popen: a program and what it starts can be ended together (`kill_group`)."""

_CONFIG = Path("/etc/dcv-session-manager-agent")
_STATE = Path("/var/lib/dcv-session-manager-agent")


def folders(environment: Mapping[str, str]) -> Folders:  # noqa: ARG001 - Windows asks it
    """Return where an agent's files are by default."""
    return Folders(
        log_folder=Path("/var/log/dcv-session-manager-agent"),
        tags_folder=_CONFIG / "tags",
        autorun_folder=_STATE / "autorun",
        init_folder=_STATE / "init",
        dcv_program=Path("/usr/bin/dcv"),
    )


def make_private_folder(folder: Path) -> None:
    """Make a folder that nobody else may look into, with what is above it; one that is there
    stays as its administrator made it. Raises `SetupFailed` for one that can't be trusted or used.
    """
    try:
        make_folder(folder, 0o700)
    except OSError as error:
        raise SetupFailed(f"the folder {folder} can't be used: {error.strerror}") from error


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder with this mode, whatever the umask; one that is there stays.

    It may be below /tmp: `SetupFailed` is raised where others could have put another one in its
    place, or could do so later (see `refuse_unsafe_folder`).
    """
    refuse_unsafe_folder(folder)
    try:
        folder.mkdir(mode=mode, parents=True)
    except FileExistsError:
        pass
    else:
        folder.chmod(mode)
    refuse_unsafe_folder(folder)


def exposure(status: os.stat_result, forbidden: int) -> str | None:
    """Return a file's mode where it has one of the forbidden bits, None where it is well kept."""
    mode = stat.S_IMODE(status.st_mode)
    return f"{mode:o}" if mode & forbidden else None


def belongs_to_others(status: os.stat_result) -> bool:
    """Say whether a file is neither the administrator's nor this program's own."""
    return status.st_uid not in {0, os.geteuid()}


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file exactly this mode, whatever the umask."""
    os.fchmod(descriptor, mode)


def sync_content(descriptor: int) -> None:
    """Bring to the disk what was written to a file."""
    os.fdatasync(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder holds: a rename alone may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool:
    """Take a file for this program alone as long as it is open; False where another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace(fresh: Path, path: Path) -> None:
    """Put a file in the place of another, at once, whether that is there or not."""
    fresh.replace(path)


def new_event_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 - of the many who need a clock or a key, few run a loop

    return uvloop.new_event_loop()


def on_stop(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` in the loop whenever the program is asked to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Run a module as the program of this process."""
    # No shell is wanted.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606


def most_files() -> int:
    """Return how many files and sockets this program may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def claim_address(bound: socket.socket) -> None:
    """Let a socket have its port for itself, also right after another program had it."""
    # Here it only passes over connections that linger; two listeners can't share a port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


async def open_local(path: Path, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket in the file system; raises OSError where nobody answers."""
    return await asyncio.open_unix_connection(path, limit=limit)


def kill_group(pid: int) -> None:
    """Kill a program that was started with `OWN_GROUP`, and all that it has started.

    Also right after it has ended: as long as anybody is left in the group, its number is nobody
    else's. But not any later: where nobody is left, it can be given to another.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def runs_programs(folder: Path) -> bool:
    """Say whether programs in a folder can be run: its file system may forbid it (`noexec`)."""
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


def start_as(user: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Start a program as a user of this machine, in their home, and leave it to itself.

    Raises `StartFailed` for nobody's name, where this process can't become that user, and where
    the program can't be run. `environment` is added to a clean one of the user's.
    """
    try:
        account = pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise StartFailed(f"there is no user {user!r} on this server") from None
    whom: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        whom = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    elif os.geteuid() != account.pw_uid:
        raise StartFailed(f"the agent on this server runs as another user than {user!r}")
    try:
        child = subprocess.Popen(
            argv,
            **whom,
            **OWN_GROUP,
            cwd=account.pw_dir if os.path.isdir(account.pw_dir) else "/",  # noqa: PTH112 - may be ""
            env={**_environment_of(account), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            umask=0o077,
        )
    except (OSError, ValueError) as error:
        raise StartFailed(f"{argv[0]} could not be run: {error}") from error
    # Somebody has to see its end, or it stays behind as a zombie.
    threading.Thread(target=child.wait, name="started", daemon=True).start()


def _environment_of(account: pwd.struct_passwd) -> dict[str, str]:
    return {
        "HOME": account.pw_dir or "/",
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }


def groups_of(user: str) -> frozenset[str]:
    """Return the names of all groups of a user, none for a user that the system doesn't know.

    Blocks for as long as the system's user directory takes.
    """
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return frozenset()
    return frozenset(filter(None, map(_group_name, os.getgrouplist(user, entry.pw_gid))))


def _group_name(group: int) -> str | None:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return None


def operating_system(root: Path = Path("/")) -> Os:
    """Return the distribution and its kernel; `root` is where `/etc` is looked for."""
    import distro  # noqa: PLC0415 - only an agent says what it runs on

    # Without lsb_release and uname, which distro would run as programs.
    found = distro.LinuxDistribution(
        include_lsb=False, include_uname=False, include_oslevel=False, root_dir=str(root)
    )
    return Os(
        family="linux",
        name=found.name() or None,
        version=found.version() or None,
        kernel_version=os.uname().release,
    )


def logged_in_users(root: Path = Path("/")) -> tuple[str, ...]:
    """Return who is logged in, each once, sorted.

    Newer distributions keep no utmp: there systemd's login sessions, below `root`, say it.
    """
    import psutil  # noqa: PLC0415 - only an agent asks

    names = {user.name for user in psutil.users()}
    for session in (root / "run/systemd/sessions").glob("*"):
        try:
            lines = session.read_text(errors="replace").splitlines()
        except OSError:
            continue
        said = dict(line.partition("=")[::2] for line in lines)
        if said.get("CLASS") == "user" and said.get("STATE") != "closing":
            names.add(said.get("USER", ""))
    return tuple(sorted(names - {""}))


def load_averages() -> tuple[float, float, float] | None:
    """Return the averages of 1, 5 and 15 minutes, None where the system has none."""
    return os.getloadavg()


def processor() -> Cpu:
    """Return what the system says of its processors beyond files that `agent.hardware` reads."""
    return Cpu(architecture=os.uname().machine)


def interface_named(name: str, names: Iterable[str]) -> str:  # noqa: ARG001 - Windows asks them
    """Return how the system writes the name of a network interface."""
    return name


def display_adapters() -> tuple[Gpu, ...]:
    """Return the display controllers that aren't found in files."""
    return ()
