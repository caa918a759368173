"""Control groups: where the kernel itself knows every process of a session, and ends them at once.

Used where the agent may make groups below its own (as root, mostly) and the kernel has
`cgroup.kill` (5.14); everything works without. Nothing but the session's group is ever touched.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from deskfleet.machine.mounts import mounted_here, mounts

_UNIFIED = "cgroup2"


def own_group(mountinfo: bytes, membership: str) -> Path | None:
    """Return the folder of this process's group in the unified hierarchy, None where there is none.

    The arguments are the texts of /proc/self/mountinfo and /proc/self/cgroup.
    """
    inside = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    for mount in mounts(mountinfo):
        if inside is not None and mount.kind == _UNIFIED:
            return Path(os.fsdecode(mount.point)) / inside.strip("/")
    return None


def find_group(name: str) -> Path | None:
    """Return where a group below our own is, or would be; None where there can be none."""
    try:
        base = own_group(mounted_here(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return None
    return None if base is None else base / name


def make_group(name: str) -> Path | None:
    """Make a group below our own; None where that, or killing a group, is not possible."""
    group = find_group(name)
    if group is None:
        return None
    try:
        group.mkdir()
    except OSError:
        return None
    if (group / "cgroup.kill").exists():
        return group
    group.rmdir()
    return None


def enter_group(group: Path, pid: int) -> bool:
    """Put a process into a group, with all that it will ever start.

    Returns whether it is there; if it could not be, the group is removed.
    """
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        group.rmdir()
        return False
    return True


def end_group(group: Path, limit_seconds: float) -> bool:
    """Kill all of a group and remove it; return whether it is gone."""
    deadline = time.monotonic() + limit_seconds
    while group.exists():
        try:
            (group / "cgroup.kill").write_text("1")
            group.rmdir()
        except OSError:
            # Busy: the killed are not all dead yet, or wait to be reaped.
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
    return True
