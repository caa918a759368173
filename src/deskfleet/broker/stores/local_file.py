"""The file under a SQLite store: where it may lie, who may read it, how it comes to be.

Laws: only on a local file system, because SQLite's locks and shared memory don't hold across
machines, and a lock that doesn't hold loses data in silence. Readable by its owner alone. It
appears whole or not at all, so that two brokers that start at once agree on one, and a crash at
the start leaves nothing half-made under its name.

Must not open and close an existing database file: POSIX drops all of a process's locks on a
file when any descriptor of it is closed, those of another store object of this process too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from deskfleet.errors import SetupFailed
from deskfleet.machine.mounts import mounts

NETWORK_FILE_SYSTEMS = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb2",
        "smb3",
        "smbfs",
    ]
)

COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite puts beside its file, with the same mode."""


def file_system(mountinfo: bytes, folder: str) -> str | None:
    """Return the type of the file system that a real absolute path lies on.

    `mountinfo` is the text of /proc/self/mountinfo, see proc(5).
    """
    path, best = os.fsencode(folder), None
    for mount in mounts(mountinfo):
        inside = path == mount.point or path.startswith(mount.point.rstrip(b"/") + b"/")
        # A later mount on the same point hides the earlier one.
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best.kind if best else None


def check_folder(path: Path, mountinfo: bytes) -> None:
    """Refuse a folder that is missing or lies on a network file system."""
    folder = path.parent
    if not folder.is_dir():
        raise SetupFailed(f"the folder of the store does not exist: {folder}")
    found = file_system(mountinfo, os.path.realpath(folder))
    if found in NETWORK_FILE_SYSTEMS:
        raise SetupFailed(
            f"{folder} lies on a network file system ({found}), where SQLite loses data;"
            " use a local disk"
        )


def check_modes(path: Path) -> None:
    """Refuse files that others may read."""
    for name in (path, *(Path(f"{path}{suffix}") for suffix in COMPANIONS)):
        try:
            mode = name.stat().st_mode & 0o777
        except FileNotFoundError:
            continue  # companions come and go with the brokers that are open
        if mode & 0o077:
            raise SetupFailed(f"{name} is readable by others (mode {mode:o}); make it 0600")


def create_whole(path: Path, build: Callable[[Path], None]) -> None:
    """Let `build` fill a private empty file, then give it its name unless another was faster."""
    mine = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    # The mode at creation counts: SQLite copies it to the companions.
    os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        build(mine)
        _sync(mine)
        os.link(mine, path)
    except FileExistsError:
        pass
    finally:
        for name in (mine, *(Path(f"{mine}{suffix}") for suffix in COMPANIONS)):
            name.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
