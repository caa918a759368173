"""What Linux says is mounted where: the lines of /proc/self/mountinfo, see proc(5).

Bytes all along: whoever may mount something chooses a name for it, and names need not be text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    point: bytes
    kind: str
    """The type of its file system."""


def mounts(mountinfo: bytes) -> Iterator[Mount]:
    """Yield what is mounted, a mount that hides another one after it."""
    # The kernel escapes spaces and line feeds in names, and no other ends of lines.
    for line in mountinfo.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        if separator:
            point = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), before.split(b" ")[4])
            yield Mount(point, after.split(b" ")[0].decode(errors="replace"))


def mounted_here() -> bytes:
    """Return the text that `mounts` reads; it is empty on a system that has none."""
    path = Path("/proc/self/mountinfo")
    return path.read_bytes() if path.exists() else b""
