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
    try:
        return _behind_sudo() or getpass.getuser()
    except (KeyError, OSError) as error:
        raise SetupFailed("the current user has no name here: give --owner or --user") from error


def is_root() -> bool:
    """Tell root itself, who owns no desktops, from everybody who does."""
    return current_user() == "root"


def _behind_sudo() -> str | None:
    is_root = sys.platform != "win32" and os.geteuid() == 0
    return os.environ.get("SUDO_USER") if is_root else None


def program() -> str:
    """Return what starts this program from the folder that it was started in, for a shell.

    Where that was sudo it is again: what root keeps for itself is found by root alone.
    """
    found = shutil.which("deskfleet")
    started, sudo = Path(sys.argv[0]), "sudo " if _behind_sudo() else ""
    if found is not None and Path(found).resolve() == started.resolve():
        return f"{sudo}deskfleet"
    runs = os.access(started, os.X_OK)
    return f"{sudo}{shlex.quote(str(started))}" if runs else f"{sudo}deskfleet"
