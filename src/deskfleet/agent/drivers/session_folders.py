"""The folders below the agent's runtime folder, and the places of X in /tmp.

    <runtime>/            0711  copies of the session leader; gone once nobody needs it any more
      s/                  0711  one folder per session, 0700, the owner's own
      d/                  0700  the RFB sockets as the agent reaches them
      r/                  0700  what the agent remembers (see xvnc_record.py)

What an owner can write is never trusted: an owner could put another user's socket where their
own RFB socket was. So each socket gets a second name in `d`, made once, checked, and out of the
owner's reach. Links are not followed there and other file systems not entered (owned_places.py),
neither to look nor to remove.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from deskfleet.agent.drivers.leader_copy import COPIES
from deskfleet.agent.drivers.owned_places import FOLDER, by_descriptor, open_inside
from deskfleet.agent.drivers.removal import remove_folder
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine import here
from deskfleet.machine.posix_ways import open_place

LONGEST_SOCKET_PATH = 107
"""What sun_path holds, without its terminator."""
X_SOCKETS = Path("/tmp/.X11-unix")  # noqa: S108 - where every X client looks
ICE_SOCKETS = X_SOCKETS.with_name(".ICE-unix")
"""Where the session managers of XFCE and MATE listen to their programs."""
X_LOCKS = X_SOCKETS.parent
_X_LOCK = re.compile(r"\.(X[0-9]{1,4})-lock")
_X_LOCK_DRAFT = re.compile(r"\.tX[0-9]{1,4}-([0-9]{1,10})")
"""Of a display that a leader takes (leader/display.py)."""
MAX_REASON_BYTES = 1000


def runtime_folder(state: Path) -> Path:
    """Return where the sockets of an agent's sessions are: a short path, since theirs are limited.

    `state` is the agent's own folder, by which agents on one machine are told apart.
    """
    key = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
    if os.geteuid() == 0:
        return Path("/run/deskfleet") / key
    base = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(base) / "deskfleet" if base else Path(f"/tmp/deskfleet-{os.geteuid()}")) / key  # noqa: S108


class RuntimeFolders:
    """The paths of one agent's sessions; a key is what names a session's folder."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.records = runtime / "r"
        self._sessions = runtime / "s"
        self._displays = runtime / "d"

    def make(self) -> None:
        """Make what is missing; raise `SetupFailed` where sessions could not live here."""
        if len(os.fsencode(self.rfb_socket("0" * 8))) > LONGEST_SOCKET_PATH:
            raise SetupFailed(f"the path {self.runtime} is too long for the sockets below it")
        try:
            # What is below is run, and linked to, by its path.
            here.make_folder(self.runtime, 0o711)
            self.runtime.chmod(0o711)
            for folder, mode in (
                (self._sessions, 0o711),
                (self._displays, 0o700),
                (self.records, 0o700),
            ):
                folder.mkdir(mode=mode, exist_ok=True)
                folder.chmod(mode)
        except OSError as error:
            raise SetupFailed(f"{self.runtime} can't be used: {error.strerror}") from error
        if os.geteuid() == 0:
            self._refuse_closed_parents()

    def _refuse_closed_parents(self) -> None:
        for parent in self.runtime.resolve().parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                raise SetupFailed(
                    f"{self.runtime} can't be reached by session owners: {parent} is closed to them"
                )

    def is_unused(self) -> bool:
        """Tell whether nothing of a session is here, nor of anybody else."""
        parts = {self._sessions, self._displays, self.records}
        others = set(self.runtime.iterdir()) - parts - set(self.runtime.glob(COPIES))
        return not others and not any(list(part.iterdir()) for part in parts)

    def session(self, key: str) -> Path:
        return self._sessions / key

    def rfb_socket(self, key: str) -> Path:
        return self._sessions / key / "rfb.sock"

    def display(self, key: str) -> Path:
        return self._displays / key

    def keys(self) -> set[str]:
        """Return the keys of all folders and sockets that exist."""
        return {path.name for path in (*self._sessions.iterdir(), *self._displays.iterdir())}

    def make_session(self, key: str, uid: int, gid: int) -> Path:
        folder = self.session(key)
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, gid, follow_symlinks=False)
        return folder

    def owner(self, key: str) -> int | None:
        """Return the uid of who owns a session's folder, None where that can't be seen."""
        try:
            with ExitStack() as opened:
                return os.fstat(self._open_session(key, opened)).st_uid
        except OSError:
            return None

    def publish_display(self, key: str, uid: int) -> None:
        """Give the session's RFB socket its second name, if it is one and its owner's."""
        display = self.display(key)
        try:
            with ExitStack() as opened:
                folder, name = self._open_session(key, opened), self.rfb_socket(key).name
                os.link(name, display, src_dir_fd=folder, follow_symlinks=False)
            status = display.lstat()
        except OSError as error:
            raise StartFailed(f"the desktop's socket is not there: {error.strerror}") from error
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != uid:
            display.unlink()
            raise StartFailed("the desktop's socket is not its owner's")

    def why_ended(self, key: str) -> str | None:
        """Return what the session leader wrote of the end, as far as it is fit to print."""
        try:
            with ExitStack() as opened:
                file = open_inside(self._open_session(key, opened), "ended", opened)
                text = _read_file(file, MAX_REASON_BYTES).decode(errors="replace")
        except OSError:
            return None
        return "".join(character for character in text if character.isprintable()) or None

    def _open_session(self, key: str, opened: ExitStack) -> int:
        sessions = open_place(str(self._sessions), FOLDER, None, opened)
        return open_inside(sessions, key, opened, os.O_DIRECTORY)

    def remove(self, key: str) -> bool:
        """Remove the folder and the socket of a session; return whether they are gone."""
        with suppress(FileNotFoundError):
            self.display(key).unlink()
        return remove_folder(self._sessions, key)


def prepare_socket_folders() -> None:
    """As root, make the folders of X and ICE sockets what they must be: root's, and sticky.

    The first server would make one its owner's, who could then take the sockets of others.
    """
    if os.geteuid() != 0:
        return
    _prepare_sockets(X_SOCKETS)
    with suppress(OSError):  # few desktops want it, and those do without
        _prepare_sockets(ICE_SOCKETS)


def _prepare_sockets(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, 0o1777)
    finally:
        os.close(descriptor)


def remove_x_traces(leaders: Collection[int], uid: int) -> bool:
    """Remove the X sockets and X locks of leaders that could not do it any more.

    Their pids are in the locks. Only what belongs to the owner is removed, so that a forged lock
    harms nobody but its author, and only what X could have made: a folder is nothing of X's.
    Returns whether nothing is left.
    """
    gone = True
    with ExitStack() as opened:
        locks = open_place(str(X_LOCKS), os.O_RDONLY | os.O_DIRECTORY, None, opened)
        for name in os.listdir(locks):  # noqa: PTH208 - a descriptor
            lock, draft = _X_LOCK.fullmatch(name), _X_LOCK_DRAFT.fullmatch(name)
            if lock is not None and _locker(locks, name, uid) in leaders:
                # The lock goes last: it is all that tells of the socket.
                gone &= _remove_socket(lock[1], uid) and _remove(locks, name, uid, stat.S_ISREG)
            elif draft is not None and int(draft[1]) in leaders:
                gone &= _remove(locks, name, uid, stat.S_ISREG)
    return gone


def _remove_socket(name: str, uid: int) -> bool:
    with ExitStack() as opened:
        try:
            sockets = open_place(str(X_SOCKETS), FOLDER, None, opened)
        except OSError:
            return True
        return _remove(sockets, name, uid, stat.S_ISSOCK)


def _remove(folder: int, name: str, uid: int, is_kind: Callable[[int], bool]) -> bool:
    """Remove a file of one kind, if it is there and a user's; return whether none is left."""
    try:
        with ExitStack() as opened:
            status = os.fstat(open_inside(folder, name, opened))
    except OSError:
        return True
    if status.st_uid != uid or not is_kind(status.st_mode):
        return True
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _locker(locks: int, name: str, uid: int) -> int | None:
    """Return the pid in an X lock of a user's, None where it is none."""
    try:
        with ExitStack() as opened:
            file = open_inside(locks, name, opened)
            return int(_read_file(file, 11)) if os.fstat(file).st_uid == uid else None
    except (ValueError, OSError):
        return None


def _read_file(place: int, most: int) -> bytes:
    """Return the beginning of a file that is open as a place; raise `OSError` for anything else."""
    if not stat.S_ISREG(os.fstat(place).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    with ExitStack() as opened:
        # A file that its owner has leased to a program would have to be waited for.
        flags = os.O_RDONLY | os.O_NONBLOCK
        return os.read(open_place(by_descriptor(place), flags, None, opened), most)
