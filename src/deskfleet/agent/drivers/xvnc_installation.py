"""What of the xvnc driver's needs is installed on this machine, and what is missing.

Looked at anew for each start, so that installing a package needs no restart of the agent; what
takes a process to find out is kept as long as the program's file doesn't change. Blocking.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from deskfleet.agent.drivers.desktops import Desktop, installed_desktop
from deskfleet.agent.drivers.xvnc_launch import find_interpreter
from deskfleet.errors import StartFailed

_VERSION_LIMIT_SECONDS = 20.0


class XvncInstallation:
    def __init__(self) -> None:
        self._interpreter: str | None = None
        self._version: tuple[int, str] | None = None

    def xvnc(self) -> str:
        """Return the path of Xvnc; raise `StartFailed` where there is none."""
        path = shutil.which("Xvnc")
        if path is None:
            raise StartFailed("Xvnc is not installed")
        return path

    def desktop(self) -> Desktop:
        desktop = installed_desktop()
        if desktop is None:
            raise StartFailed("no desktop is installed: neither XFCE, MATE, LXQt, LXDE nor icewm")
        return desktop

    def interpreter(self) -> str:
        """Return the Python that session leaders run on; it is tried once."""
        interpreter = self.interpreter_if_any()
        if interpreter is None:
            raise StartFailed("no Python 3.9 or later is installed that session owners can run")
        return interpreter

    def interpreter_if_any(self) -> str | None:
        if self._interpreter is None or not Path(self._interpreter).exists():
            self._interpreter = find_interpreter()
        return self._interpreter

    def trouble(self) -> str | None:
        """Return all that is missing as one sentence, None where nothing is."""
        missing = []
        for need in (self.xvnc, self.desktop, self.interpreter):
            try:
                need()
            except StartFailed as failure:
                missing.append(failure.message)
        return "; ".join(missing) or None

    def version(self) -> str:
        """Return the version number of Xvnc, or that it is not installed."""
        path = shutil.which("Xvnc")
        if path is None:
            return "not installed"
        changed = Path(path).stat().st_mtime_ns
        if self._version is None or self._version[0] != changed:
            self._version = changed, _version_of(path)
        return self._version[1]


def _version_of(path: str) -> str:
    try:
        answer = subprocess.run(
            [path, "-version"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_LIMIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(rb"Xvnc \S+ (\d[\w.]*)", answer.stderr + answer.stdout)
    return found[1].decode() if found else "unknown"
