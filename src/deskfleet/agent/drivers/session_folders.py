"""The folders below the agent's runtime folder, and the places of X in /tmp.

    <runtime>/            0711  the session leader's program
      s/                  0711  one folder per session, 0700, the owner's own
      d/                  0700  the RFB sockets as the agent reaches them
      r/                  0700  what the agent remembers (see xvnc_record.py)

What an owner can write is never trusted: an owner could put another user's socket where their
own RFB socket was. So each socket gets a second name in `d`, made once, checked, and out of the
owner's reach. Trees are removed without following links or entering other file systems.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from deskfleet.agent.drivers.removal import remove_folder
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine import here

LONGEST_SOCKET_PATH = 107
"""What sun_path holds, without its terminator."""
X_SOCKETS = Path("/tmp/.X11-unix")  # noqa: S108 - where every X client looks
X_LOCKS = X_SOCKETS.parent
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
        """Return the uid of who owns a session's folder, None where there is none."""
        try:
            return self.session(key).lstat().st_uid
        except FileNotFoundError:
            return None

    def publish_display(self, key: str, uid: int) -> None:
        """Give the session's RFB socket its second name, if it is one and its owner's."""
        display = self.display(key)
        try:
            os.link(self.rfb_socket(key), display, follow_symlinks=False)
            status = display.lstat()
        except OSError as error:
            raise StartFailed(f"the desktop's socket is not there: {error.strerror}") from error
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != uid:
            display.unlink()
            raise StartFailed("the desktop's socket is not its owner's")

    def why_ended(self, key: str) -> str | None:
        """Return what the session leader wrote of the end, as far as it is fit to print."""
        try:
            descriptor = os.open(
                self.session(key) / "ended", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            return None
        try:
            text = os.read(descriptor, MAX_REASON_BYTES).decode(errors="replace")
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return "".join(character for character in text if character.isprintable()) or None

    def remove(self, key: str) -> bool:
        """Remove the folder and the socket of a session; return whether they are gone."""
        with suppress(FileNotFoundError):
            self.display(key).unlink()
        return remove_folder(self._sessions, key)


def prepare_x_sockets() -> None:
    """As root, make the folder of X sockets what it must be: root's, and sticky.

    The first X server would make it its owner's, who could then take the sockets of others.
    """
    if os.geteuid() != 0:
        return
    with suppress(FileExistsError):
        X_SOCKETS.mkdir()
    descriptor = os.open(X_SOCKETS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, 0o1777)
    finally:
        os.close(descriptor)


def remove_x_traces(leader_pid: int, uid: int) -> None:
    """Remove the X socket and the X lock of a leader that could not do it any more.

    The lock holds the leader's pid. Only what belongs to the owner is removed, so that a forged
    lock harms nobody but its author.
    """
    for lock in X_LOCKS.glob(".X*-lock"):
        if _owned(lock, uid) and _locker(lock) == leader_pid:
            socket = X_SOCKETS / lock.name.removeprefix(".").removesuffix("-lock")
            for path in (socket, lock):
                if _owned(path, uid):
                    path.unlink(missing_ok=True)
    for draft in X_LOCKS.glob(f".tX*-{leader_pid}"):
        if _owned(draft, uid):
            draft.unlink(missing_ok=True)


def _owned(path: Path, uid: int) -> bool:
    try:
        return path.lstat().st_uid == uid
    except FileNotFoundError:
        return False


def _locker(lock: Path) -> int | None:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 11))
    except (ValueError, OSError):
        return None
    finally:
        os.close(descriptor)
