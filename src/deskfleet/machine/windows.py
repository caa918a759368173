"""Windows: the other side of the seam that `deskfleet.machine` is.

Has the functions of `posix`, where their contracts stand; here stands what differs. What asks the
system takes the asking as an argument, and the module can be imported anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from deskfleet.core.records import Cpu, Gpu, Os
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine.folders import Folders
from deskfleet.machine.windows_programs import find_program

__all__ = ["find_program"]

Run = Callable[[Sequence[str]], int]
"""Runs a program without a window to its end, and returns its exit code."""
Registry = Callable[[str, str], str | None]
"""(key of the local machine, name of a value) -> its text."""

BINARY: int = getattr(os, "O_BINARY", 0)
_NEW_PROCESS_GROUP = 0x00000200
_NO_WINDOW = 0x08000000
OWN_GROUP: Mapping[str, Any] = {"creationflags": _NEW_PROCESS_GROUP | _NO_WINDOW}

_SYSTEM, _ADMINISTRATORS, _OWNER_RIGHTS = "S-1-5-18", "S-1-5-32-544", "S-1-3-4"
_REPLACE_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)
_PROCESSOR = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
_ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_MOST_ADAPTERS = 16
_PRODUCT = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion"
_FIRST_WINDOWS_11 = 22000
_ARCHITECTURES = {"AMD64": "x86_64", "ARM64": "aarch64"}
_COMMAND_SECONDS = 60.0


def folders(environment: Mapping[str, str]) -> Folders:
    programs = Path(environment.get("ProgramFiles", r"C:\Program Files"))
    data = Path(environment.get("ProgramData", r"C:\ProgramData")) / "NICE"
    conf = programs / "NICE" / "DCVSessionManagerAgent" / "conf"
    return Folders(
        log_folder=data / "DCVSessionManagerAgent" / "log",
        tags_folder=conf / "tags",
        autorun_folder=data / "DcvSessionManagerAgent" / "autorun",
        init_folder=None,
        dcv_program=programs / "NICE" / "DCV" / "Server" / "bin" / "dcv.exe",
    )


def run(argv: Sequence[str]) -> int:
    """Run a program of the system to its end; returns its exit code, -1 where it doesn't run."""
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_SECONDS,
            **OWN_GROUP,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return -1
    return done.returncode


def make_private_folder(folder: Path, run: Run = run) -> None:
    """A file has no mode here: it is as open as its folder, whose access list it inherits.

    So a folder that isn't there gets a list of its own: the system, administrators, and who owns
    a file. One that is there keeps what its administrator gave it.
    """
    if folder.is_dir():
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupFailed(f"the folder {folder} can't be used: {error.strerror}") from error
    who = [f"*{sid}:(OI)(CI)F" for sid in (_SYSTEM, _ADMINISTRATORS, _OWNER_RIGHTS)]
    if run(["icacls", str(folder), "/inheritance:r", "/grant:r", *who]) != 0:
        folder.rmdir()
        raise SetupFailed(
            f"{folder} can't be closed to others (icacls failed); make it yourself, so that only"
            " the agent's user and administrators can read it"
        )


def make_folder(folder: Path, mode: int) -> None:  # noqa: ARG001 - POSIX asks it
    """It is as open as the folder that it is in: see `make_private_folder`."""
    folder.mkdir(parents=True, exist_ok=True)


def refuse_unsafe_folder(folder: Path, user: int | None = None) -> None:
    """Do nothing: neither owner nor mode is shown here."""


def exposure(status: os.stat_result, forbidden: int) -> str | None:
    """Return None: the mode that Python shows here says nothing of who may read a file."""


def belongs_to_others(status: os.stat_result) -> bool:  # noqa: ARG001 - POSIX asks it
    """Return False: Python shows no owner here."""
    return False


def set_mode(descriptor: int, mode: int) -> None:
    """Do nothing: see `make_private_folder`."""


def sync_content(descriptor: int) -> None:
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Do nothing: NTFS keeps the order of renames in its own journal, and opens no folder."""


def take(descriptor: int) -> bool:
    """Take a file for this program alone as long as it is open; False where another has it."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - only Windows has it

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    return True


def replace(fresh: Path, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """A file that somebody reads can't be replaced here; a virus scanner reads what is new."""
    for seconds in _REPLACE_SECONDS:
        try:
            fresh.replace(path)
        except PermissionError:
            sleep(seconds)
        else:
            return
    fresh.replace(path)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return Python's own, which can run programs here; there is no uvloop for Windows."""
    return asyncio.new_event_loop()


def on_stop(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Ctrl+C and Ctrl+Break; a service's wrapper sends one of them. Nothing sends SIGTERM here."""
    for name in ("SIGINT", "SIGBREAK", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Here no program takes another's place: the module runs in what is there, and costs more."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def most_files() -> int:
    """Sockets are no files here; memory is what limits them."""
    return sys.maxsize


def claim_address(bound: socket.socket) -> None:
    # SO_REUSEADDR would let any program of any user take connections over here.
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    if exclusive is not None:
        bound.setsockopt(socket.SOL_SOCKET, exclusive, 1)


async def open_local(path: Path, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: ARG001
    raise OSError("there are no desktops of deskfleet's own on Windows")


def kill_group(pid: int, find: Callable[[int], psutil.Process] = psutil.Process) -> None:
    """Kill a program and all that descends from it; what has lost its parent isn't found."""
    with contextlib.suppress(psutil.Error):
        root = find(pid)
        # The root first: it starts nothing more while the others go.
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                one.kill()


def runs_programs(folder: Path) -> bool:  # noqa: ARG001 - POSIX asks it
    """Return True: no drive forbids it here."""
    return True


def start_as(
    user: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    run: Run = run,
    name: Callable[[], str] = lambda: f"deskfleet-{secrets.token_hex(4)}",
) -> None:
    """Start a program on the desktop of a user who is logged on, by a task that runs once.

    The task scheduler asks no password for that (`/IT`). It knows no arguments beyond a command
    line, and no environment: both are refused where there are any.
    """
    if len(argv) != 1 or environment:
        raise StartFailed("a program can't be given arguments or variables on this server")
    command = _command_line(argv[0])
    task = name()
    create = ["/Create", "/TN", task, "/TR", command, "/RU", user, "/IT", "/F"]
    once = ["/SC", "ONCE", "/ST", "00:00"]
    if run(["schtasks", *create, *once]) != 0:
        raise StartFailed(f"{argv[0]} could not be prepared to run as {user!r}")
    try:
        if run(["schtasks", "/Run", "/TN", task]) != 0:
            raise StartFailed(f"{argv[0]} could not be run as {user!r}")
    finally:
        run(["schtasks", "/Delete", "/TN", task, "/F"])


def _command_line(program: str) -> str:
    if '"' in program or not program.isprintable():
        raise StartFailed(f"{program!r} is no path of a program")
    if program.lower().endswith(".ps1"):
        return f'powershell.exe -NoProfile -ExecutionPolicy RemoteSigned -File "{program}"'
    return f'"{program}"'


def groups_of(user: str) -> frozenset[str]:  # noqa: ARG001 - POSIX asks it
    """Return none: the permissions of a DCV server's sessions are that server's to grant."""
    return frozenset()


def registry(key: str, name: str) -> str | None:
    """Return a text of the local machine's registry, None where there is none."""
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - only Windows has it

        with (
            contextlib.suppress(OSError),
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened,
        ):
            value, _ = winreg.QueryValueEx(opened, name)
            return str(value).strip() or None
    return None


def operating_system(
    root: Path = Path("/"),  # noqa: ARG001 - POSIX asks it
    registry: Registry = registry,
    version: Callable[[], tuple[str, str, str, str]] = platform.win32_ver,
) -> Os:
    """Return the product, its version and its build, as DCV's own agents tell them."""
    release, number, _, _ = version()
    build = number.rpartition(".")[2] or registry(_PRODUCT, "CurrentBuildNumber")
    product = registry(_PRODUCT, "ProductName") or f"Windows {release}".strip()
    if build and build.isdecimal() and int(build) >= _FIRST_WINDOWS_11 and "Server" not in product:
        # Windows 11 still calls itself 10 in there.
        product = product.replace("Windows 10", "Windows 11")
    return Os(family="windows", name=product, version=number or None, build_number=build or None)


def logged_in_users(
    root: Path = Path("/"),  # noqa: ARG001 - POSIX asks it
    users: Callable[[], Iterable[Any]] = psutil.users,
) -> tuple[str, ...]:
    """Return who has a desktop, at the machine or from afar, connected or not."""
    return tuple(sorted({str(user.name) for user in users()} - {""}))


def load_averages() -> tuple[float, float, float] | None:
    """Return None: Windows counts nothing of the kind, and a made-up number would place wrongly."""
    return None


def processor(
    registry: Registry = registry, architecture: Callable[[], str] = platform.machine
) -> Cpu:
    machine = architecture()
    return Cpu(
        vendor=registry(_PROCESSOR, "VendorIdentifier"),
        model_name=registry(_PROCESSOR, "ProcessorNameString"),
        architecture=_ARCHITECTURES.get(machine.upper(), machine) or None,
    )


def interface_named(name: str, names: Iterable[str]) -> str:
    """Small and large letters are the same here: `ethernet 4` is `Ethernet 4`."""
    return next((one for one in names if one.casefold() == name.casefold()), name)


def display_adapters(registry: Registry = registry) -> tuple[Gpu, ...]:
    """Return the display adapters that have a driver, in the order of their numbers."""
    return tuple(_adapters(registry))


def _adapters(registry: Registry) -> Iterable[Gpu]:
    for number in range(_MOST_ADAPTERS):
        key = rf"{_ADAPTERS}\{number:04}"
        model = registry(key, "DriverDesc")
        if model is not None:
            yield Gpu(vendor=registry(key, "ProviderName"), model_name=model)
