"""An interpreter that lacks what Windows lacks: `python windows_like.py deskfleet agent run ...`.

Runs a module as `python -m` would, with the project's own code made to believe that it is on
Windows. Libraries are the Linux builds, so they keep what they need: they are loaded first. Then

* modules that only POSIX has can't be imported any more, by anybody,
* the names that Windows doesn't have are gone from `os`, `signal`, `socket`, `asyncio` and
  `select` as the project sees them, the most telling ones from `os` itself, and `sys.platform`
  and `os.name` say Windows to the project,
* `os.open` knows no folder descriptors, and without O_BINARY line ends are translated; a rename
  replaces nothing; nothing replaces a file that this process has open; event loops take no signal
  handlers and watch no descriptors.

The registry holds `REGISTRY`; who is logged in stands in the file named by WINDOWS_LIKE_USERS.
"""

from __future__ import annotations

import asyncio
import builtins
import fcntl as locks
import importlib.abc
import importlib.machinery
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import psutil

PROJECT = "deskfleet"
_MODULES = "fcntl grp posix _posixsubprocess pty pwd resource spwd syslog termios tty uvloop"
_GONE = """
O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_PATH fchmod fchown fdatasync fork forkpty getegid geteuid getgid
getgrouplist getgroups getloadavg getuid initgroups killpg setsid setuid uname
"""
_OF_OS = """
O_NOCTTY O_NONBLOCK WNOHANG chown chroot fchdir getpgid getpriority getresuid getsid lchown mkfifo
nice openpty pidfd_open pipe2 posix_spawn posix_spawnp pread pwrite readv register_at_fork
sched_getaffinity sendfile set_blocking setegid seteuid setgid setgroups setpgid setreuid statvfs
sync sysconf ttyname waitid wait3 wait4 writev
"""
_OF_SIGNAL = """
SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGXFSZ alarm
pidfd_send_signal pthread_kill pthread_sigmask setitimer sigwait
"""
_OF_SOCKET = "AF_NETLINK AF_UNIX SO_PEERCRED SO_REUSEPORT recv_fds send_fds"

POSIX_ONLY = frozenset(_MODULES.split())
"""Not to be imported; `posix` and `_posixsubprocess` are loaded already, by what needs them."""
GONE = frozenset(_GONE.split())
"""Taken from `os` for everybody."""
LACKING: Mapping[str, frozenset[str]] = {
    "os": GONE.union(_OF_OS.split()),
    "signal": frozenset(_OF_SIGNAL.split()),
    "socket": frozenset(_OF_SOCKET.split()),
    "asyncio": frozenset({"open_unix_connection", "start_unix_server"}),
    "select": frozenset({"epoll", "poll"}),
}
O_BINARY = 0x8000

REGISTRY = {
    (r"SOFTWARE\Microsoft\Windows NT\CurrentVersion", "ProductName"): "Windows Server 2022",
    (r"SOFTWARE\Microsoft\Windows NT\CurrentVersion", "CurrentBuildNumber"): "20348",
    (r"HARDWARE\DESCRIPTION\System\CentralProcessor\0", "VendorIdentifier"): "GenuineIntel",
}


class Lacking(ModuleType):
    """A module as the project sees it: without some names, and with some of its own."""

    def __init__(self, real: ModuleType, lacking: frozenset[str], own: Mapping[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(_real=real, _lacking=lacking, _own=own)

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return self._own[name] if name in self._own else getattr(self._real, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._real, name, value)


class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name in POSIX_ONLY:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
        return None


class TextModeFiles:
    """The functions of `os` that work on descriptors, as Windows has them."""

    def __init__(self) -> None:
        self._text: set[int] = set()

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = os.open(path, flags & ~O_BINARY, mode)
        self._text.discard(descriptor)
        if not flags & O_BINARY:
            self._text.add(descriptor)
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        content = bytes(data)
        if descriptor not in self._text:
            return os.write(descriptor, content)
        os.write(descriptor, content.replace(b"\n", b"\r\n"))
        return len(content)


def preload() -> None:
    """Load the libraries of an agent, with all that they need, and forget the project's part."""
    for name in ("agent.main", "cli.agent_program", "cli.main", "agent.drivers.simulated"):
        importlib.import_module(f"{PROJECT}.{name}")
    importlib.import_module(f"{PROJECT}.agent.drivers.dcv")
    for name in [name for name in sys.modules if name.partition(".")[0] == PROJECT]:
        del sys.modules[name]
    for name in POSIX_ONLY - {"posix", "_posixsubprocess"}:
        sys.modules.pop(name, None)


def restrict() -> None:
    sys.meta_path.insert(0, Refusing())
    sys.modules["winreg"] = _winreg()
    sys.modules["msvcrt"] = _msvcrt()
    _restrict_files()
    _restrict_loops()
    _restrict_programs()
    _restrict_imports()
    _log_in()
    _be_on_ec2()
    for name in GONE:
        if hasattr(os, name):
            delattr(os, name)


def _restrict_imports() -> None:
    files = TextModeFiles()
    own: dict[str, dict[str, Any]] = {
        "os": {"name": "nt", "O_BINARY": O_BINARY, "open": files.open, "write": files.write},
        "sys": {"platform": "win32"},
        "socket": {"SO_EXCLUSIVEADDRUSE": socket.SO_REUSEADDR},
        "signal": {"SIGBREAK": signal.SIGUSR1},
    }
    reals: tuple[ModuleType, ...] = (os, sys, socket, signal, asyncio, select)
    seen = {
        real.__name__: Lacking(
            real, LACKING.get(real.__name__, frozenset()), own.get(real.__name__, {})
        )
        for real in reals
    }
    genuine: Callable[..., Any] = builtins.__import__

    def imported(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        found = genuine(name, globals, locals, fromlist, level)
        importer = str((globals or {}).get("__name__", ""))
        ours = importer.partition(".")[0] == PROJECT or importer == "__main__"
        return seen.get(name, found) if ours and level == 0 else found

    builtins.__import__ = imported


def _restrict_files() -> None:
    replace, rename = os.replace, os.rename

    def replacing(source: Any, target: Any, **_: Any) -> None:
        held = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
        if {os.path.realpath(source), os.path.realpath(target)} & held:
            raise PermissionError(13, "The file is being used by a program", str(target))
        replace(source, target)

    def renaming(source: Any, target: Any, **_: Any) -> None:
        if Path(target).exists():
            raise FileExistsError(17, "The file exists", str(target))
        rename(source, target)

    os.replace, os.rename = replacing, renaming  # type: ignore[assignment]


def _restrict_loops() -> None:
    def unknown(*_: object) -> NoReturn:
        raise NotImplementedError

    loop: Any = asyncio.SelectorEventLoop
    for name in ("add_signal_handler", "add_reader", "add_writer"):
        setattr(loop, name, unknown)


def _restrict_programs() -> None:
    genuine: Any = subprocess.Popen.__init__

    def begun(self: Any, *given: Any, creationflags: int = 0, **named: Any) -> None:
        for name in (
            "preexec_fn",
            "pass_fds",
            "user",
            "group",
            "extra_groups",
            "start_new_session",
        ):
            if named.get(name):
                raise ValueError(f"{name} is not supported on Windows platforms")
        genuine(self, *given, start_new_session=bool(creationflags & 0x200), **named)

    subprocess.Popen.__init__ = begun  # type: ignore[method-assign]


def _be_on_ec2() -> None:
    """Let the address of EC2's metadata service lead to the one of a test, where it names one."""
    told = os.environ.get("WINDOWS_LIKE_METADATA_PORT")
    if told is None:
        return
    loop: Any = asyncio.BaseEventLoop
    genuine: Any = loop.create_connection

    async def connected(self: Any, factory: Any, host: Any, port: Any, **named: Any) -> Any:
        if host == "169.254.169.254":
            host, port = "127.0.0.1", int(told)
        return await genuine(self, factory, host, port, **named)

    loop.create_connection = connected


def _msvcrt() -> ModuleType:
    module: Any = ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert mode == module.LK_NBLCK
        locks.lockf(descriptor, locks.LOCK_EX | locks.LOCK_NB, count)

    module.locking = locking
    return module  # type: ignore[no-any-return]


def _winreg() -> ModuleType:
    module: Any = ModuleType("winreg")
    module.HKEY_LOCAL_MACHINE = object()

    @contextmanager
    def opened(_root: object, key: str) -> Iterator[str]:
        if not any(key == known for known, _ in REGISTRY):
            raise FileNotFoundError(2, "The system cannot find the file specified")
        yield key

    def value(key: str, name: str) -> tuple[str, int]:
        if (key, name) not in REGISTRY:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return REGISTRY[key, name], 1

    module.OpenKey, module.QueryValueEx = opened, value
    return module  # type: ignore[no-any-return]


def _log_in() -> None:
    user = namedtuple("user", "name")  # noqa: PYI024 - as psutil has it

    def users() -> list[Any]:
        file = Path(os.environ.get("WINDOWS_LIKE_USERS", os.devnull))
        return [user(name) for name in file.read_text().split()] if file.exists() else []

    psutil.users = users


if __name__ == "__main__":
    preload()
    restrict()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
