"""Who sits in front of the terminal, and what they type to start this program."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import sys
from pathlib import Path

from deskfleet.errors import SetupFailed


def current_user() -> str:
    """Return the person's name: the one behind sudo, where root was reached by it."""
    is_root = sys.platform != "win32" and os.geteuid() == 0
    behind = os.environ.get("SUDO_USER") if is_root else None
    try:
        return behind or getpass.getuser()
    except (KeyError, OSError) as error:
        raise SetupFailed("the current user has no name here: give --owner or --user") from error


def is_root() -> bool:
    """Tell root itself, who owns no desktops, from everybody who does."""
    return current_user() == "root"


def program() -> str:
    """Return what starts this program from the folder that it was started in, for a shell."""
    found = shutil.which("deskfleet")
    started = Path(sys.argv[0])
    if found is not None and Path(found).resolve() == started.resolve():
        return "deskfleet"
    return shlex.quote(str(started)) if os.access(started, os.X_OK) else "deskfleet"
