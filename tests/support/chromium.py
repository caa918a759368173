"""The browser of the tests: the system's Chromium, which Playwright drives."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@functools.cache
def _found() -> str | None:
    for name in NAMES:
        path = shutil.which(name)
        if path is not None and _runs(path):
            return path
    return None


def _runs(path: str) -> bool:
    """Tell a browser from what Ubuntu has in its place: a text on where to find one."""
    asked = subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False)
    return asked.returncode == 0


def executable() -> str:
    """Return the path of a browser; skip the test where there is none; under CI that fails."""
    path = _found()
    if path is None:
        reason = "no Chromium runs on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
