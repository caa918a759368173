"""File systems of their own: small, read-only, without programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.users import need_root


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Let a folder be an empty file system with these options; takes root (see `need_root`)."""
    need_root("mounting a file system")
    folder.mkdir(mode=0o711, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write into a folder, root included."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        with mounted(folder, "ro,size=1m,mode=700"):
            yield
        return
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)
