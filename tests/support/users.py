"""The accounts that tests run sessions as.

As root, tests make ordinary users of their own, once, and use them again; workers that run tests
side by side have different ones, as tests look for what their users leave behind. As anybody else
they run as themselves, and what needs a second user is skipped.
"""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from support import worker


def need_root(what_for: str) -> None:
    """Skip what only root can do; under CI that is a failure."""
    if os.geteuid() != 0:
        reason = f"{what_for} takes root"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def ordinary_user(name: str) -> pwd.struct_passwd:
    """Return an ordinary user to own sessions: `name` and the worker's, or who runs the tests."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    name += worker.NAME
    try:
        return pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
        return pwd.getpwnam(name)
