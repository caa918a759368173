"""The session leader: the one process from which everything of a session descends.

The agent starts it as the owner, with nothing but this file: it uses the standard library alone,
must run on any Python from 3.9, and must never import deskfleet. It outlives the agent.

Laws: the cookie is written before X starts. Whatever ends the session (SIGTERM, the death of X or
of the desktop, a failed start), nothing that descends from here is alive when the leader exits,
and its X socket and X lock are gone. All waiting happens in `Leader.wait`, so that a signal or a
death is seen at once. What the owner's programs print is read, and all but its end forgotten.

Protocol: the order is one JSON object on stdin. JSON lines go to the descriptor in argv[1]:
`{"display": N, "x": PID}`, then `{"ready": true}` or `{"failed": WHY}`. The file `ended` in the
session's folder says why a session that had been ready is over.
"""

# Importing pathlib would cost every session 10 ms.
# ruff: noqa: PTH102, PTH108, PTH110, PTH118, PTH123, PTH208
from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost every session 4 ms
    from typing import Any

X_SOCKETS = "/tmp/.X11-unix/X"  # noqa: S108 - where every X client looks
FIRST_DISPLAY, LAST_DISPLAY = 1, 9999
TERM_GRACE_SECONDS = 0.5
KILL_LIMIT_SECONDS = 10.0
AUTORUN_PATIENCE_SECONDS = 10.0
"""How long a program waits for a window manager where the owner's init file may start none."""
OUTPUT_TAIL_BYTES = 4096
PR_SET_CHILD_SUBREAPER = 36
FAMILY_LOCAL, FAMILY_WILD = 256, 65535
COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"
BACKGROUND = 0x2B3A4A


class Ended(Exception):
    """The session is over; the text says why, for its owner."""


class Late(Ended):
    """What was waited for did not come in time."""


def cookie_file(cookie: bytes, hostname: str, number: int) -> bytes:
    """Return an Xauthority file: one entry for any client, one for those that know no wildcard."""
    return b"".join(
        struct.pack(">H", family)
        + b"".join(
            struct.pack(">H", len(field)) + field
            for field in (address.encode(), str(number).encode(), COOKIE_NAME, cookie)
        )
        for family, address in ((FAMILY_WILD, ""), (FAMILY_LOCAL, hostname))
    )


def descendants(pid: int) -> list[int]:
    """Return all living descendants of a process, parents before children."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as children:
                found += map(int, children.read().split())
    except OSError:
        return found
    return found


class Display:
    """A display number that is ours alone.

    Xvnc would pick a number itself, but without its abstract socket it takes over the number of
    another server of the same user. So the leader binds that abstract name and never listens on
    it: the kernel lets nobody else have it, frees it with our death, and refuses who connects.
    The lock file holds off servers in other network namespaces, and tells the agent, by our pid,
    which display is to be removed where we could not.
    """

    def __init__(self) -> None:
        for number in range(FIRST_DISPLAY, LAST_DISPLAY + 1):
            guard = socket.socket(socket.AF_UNIX)
            try:
                guard.bind(f"\0{X_SOCKETS}{number}")
            except OSError:
                guard.close()
                continue
            if self._lock(number):
                self.number, self._guard = number, guard
                return
            guard.close()
        raise Ended("no X display number is free on this server")

    def _lock(self, number: int) -> bool:
        try:
            if os.lstat(f"{X_SOCKETS}{number}").st_uid != os.getuid():
                return False
        except FileNotFoundError:
            pass
        mine = f"/tmp/.tX{number}-{os.getpid()}"  # noqa: S108 - created exclusively, then linked
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, b"%10d\n" % os.getpid())
            os.fchmod(descriptor, 0o444)
            os.link(mine, lock_path(number))
        except FileExistsError:
            return False
        finally:
            os.close(descriptor)
            os.unlink(mine)
        return True

    def release(self) -> None:
        for path in (f"{X_SOCKETS}{self.number}", lock_path(self.number)):
            try:
                os.unlink(path)
            except OSError:
                continue
        self._guard.close()


def lock_path(number: int) -> str:
    return f"/tmp/.X{number}-lock"  # noqa: S108 - where every X server looks


class XConnection:
    """As much of an X client as it takes to see a window manager arrive."""

    WINDOW = 33

    def __init__(self, leader: Leader, number: int, cookie: bytes, deadline: float) -> None:
        self._leader, self._deadline = leader, deadline
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(f"{X_SOCKETS}{number}")
        self._socket.sendall(
            struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(COOKIE_NAME), len(cookie))
            + _padded(COOKIE_NAME)
            + _padded(cookie)
        )
        status, length = struct.unpack("<B5xH", self._read(8))
        answer = self._read(4 * length)
        if status != 1:
            raise Ended("X refused its own cookie")
        vendor, formats = struct.unpack_from("<16xHxxxB", answer)
        (self._root,) = struct.unpack_from("<I", answer, 32 + vendor + -vendor % 4 + 8 * formats)
        name = b"_NET_SUPPORTING_WM_CHECK"
        self._send(16, 0, struct.pack("<Hxx", len(name)) + _padded(name))
        (self._check,) = struct.unpack_from("<8xI", self._reply())

    def prepare_root(self) -> None:
        """Paint the root window, and ask to be told of its properties."""
        back_pixel, event_mask, property_change = 1 << 1, 1 << 11, 1 << 22
        values = struct.pack(
            "<IIII", self._root, back_pixel | event_mask, BACKGROUND, property_change
        )
        self._send(2, 0, values)
        self._send(61, 0, struct.pack("<IHHHH", self._root, 0, 0, 0, 0))

    def wait_for_window_manager(self, deadline: float) -> None:
        self._deadline = deadline
        while not self._window_manager_answers():
            self._packet()

    def close(self) -> None:
        self._socket.close()

    def _window_manager_answers(self) -> bool:
        self._send(20, 0, struct.pack("<IIIII", self._root, self._check, self.WINDOW, 0, 1))
        return struct.unpack_from("<16xI", self._reply()) != (0,)

    def _send(self, opcode: int, detail: int, body: bytes) -> None:
        self._socket.sendall(struct.pack("<BBH", opcode, detail, 1 + len(body) // 4) + body)

    def _reply(self) -> bytes:
        while True:
            packet = self._packet()
            if packet[0] == 1:
                return packet
            if packet[0] == 0:
                raise Ended(f"X answered with error {packet[1]}")

    def _packet(self) -> bytes:
        head = self._read(32)
        return head + self._read(4 * struct.unpack_from("<4xI", head)[0] if head[0] == 1 else 0)

    def _read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            self._leader.wait(self._socket.fileno(), self._deadline)
            part = self._socket.recv(size - len(got))
            if not part:
                raise Ended("X closed the connection")
            got += part
        return got


def _padded(field: bytes) -> bytes:
    return field + bytes(-len(field) % 4)


class Leader:
    """One session, from its first process to its last."""

    def __init__(self, order: dict[str, Any], report: int) -> None:
        self._order, self._report = order, report
        self._folder: str = order["folder"]
        self._environment: dict[str, str] = dict(os.environ)
        self._names: dict[int, str] = {}
        self._display: Display | None = None
        self._tail = b""
        self._null = os.open(os.devnull, os.O_RDWR)
        self._output, self._printed = os.pipe()
        self._woken, wakeup = os.pipe()
        for descriptor in (self._output, self._woken, wakeup):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        """Start the session, stay until it ends, and leave nothing of it."""
        ready = False
        try:
            self._start()
            self._say(ready=True)
            ready = True
            self._stay()
        except Ended as end:
            why = str(end)
        except OSError as error:
            why = self._why_at_heart(error)
        self._end_everything()
        if self._display is not None:
            self._display.release()
        if ready:
            self._write_file("ended", why.encode())
        else:
            self._say(failed=why)

    def wait(self, descriptor: int | None, deadline: float | None) -> None:
        """Return when the descriptor can be read, at the deadline without one; raise `Ended` if
        the deadline of a descriptor passes, or the session ends first."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            watched = [self._woken, self._output] + ([] if descriptor is None else [descriptor])
            readable = select.select(watched, [], [], left)[0]
            if self._output in readable:
                self._keep_tail()
            if self._woken in readable:
                self._look_around()
            if descriptor in readable:
                return
            if deadline is not None and time.monotonic() >= deadline:
                if descriptor is None:
                    return
                raise Late("the desktop did not come up in time")

    def _start(self) -> None:
        deadline = time.monotonic() + self._order["limit_seconds"]
        os.mkdir(os.path.join(self._folder, "xdg"), 0o700)
        self._go_home()
        cookie = os.urandom(16)
        self._display = Display()
        number = self._display.number
        hostname = socket.gethostname()
        xauthority = self._write_file("Xauthority", cookie_file(cookie, hostname, number))
        ready = self._start_x(number, xauthority)
        become_subreaper()
        self._read_line(ready, deadline)
        self._environment.update(DISPLAY=f":{number}", XAUTHORITY=xauthority)
        self._x = XConnection(self, number, cookie, deadline)
        self._x.prepare_root()
        self._spawn(self._order["desktop_name"], [*self._order["desktop"], *self._settings()])
        if self._order["answers"]:
            self._autorun(deadline)

    def _start_x(self, number: int, xauthority: str) -> int:
        """Start X and return the descriptor that becomes readable when it is ready."""
        ready, told = os.pipe()
        argv = [*self._order["x"], f":{number}", "-auth", xauthority, "-displayfd", "3"]
        pid = self._spawn("X", argv, ((os.POSIX_SPAWN_DUP2, told, 3),))
        os.close(told)
        self._say(display=number, x=pid)
        return ready

    def _read_line(self, descriptor: int, deadline: float) -> None:
        """Read to the end of the line, and close: X dies if it can't write its newline."""
        line = b""
        while not line.endswith(b"\n"):
            self.wait(descriptor, deadline)
            line += os.read(descriptor, 64) or b"\n"
        os.close(descriptor)

    def _autorun(self, deadline: float) -> None:
        """Run the autorun file as soon as there is a window manager to show its windows."""
        self._x.wait_for_window_manager(deadline)
        self._x.close()
        if self._order["autorun"]:
            self._spawn("", self._order["autorun"])

    def _stay(self) -> None:
        """Wait for the end of the session.

        An init file may start a window manager or none: its autorun file waits, but not for long.
        """
        if not self._order["answers"] and self._order["autorun"]:
            patience = time.monotonic() + AUTORUN_PATIENCE_SECONDS
            try:
                self._autorun(patience)
            except Late:
                self._spawn("", self._order["autorun"])
        self.wait(None, None)

    def _settings(self) -> list[str]:
        """Return the arguments that bring our settings to the desktop, none where the owner has
        settings of their own."""
        settings = self._order["settings"]
        home = os.environ["HOME"]
        if settings is None or any(
            os.path.exists(os.path.join(home, path)) for path in settings["unless"]
        ):
            return []
        return [
            settings["argument"] + self._write_file(settings["file"], settings["text"].encode())
        ]

    def _spawn(
        self, name: str, argv: list[str], actions: Iterable[tuple[int, int, int]] = ()
    ) -> int:
        """Start a program; the session ends with it if it has a name."""
        plumbing = [(os.POSIX_SPAWN_DUP2, self._null, 0)]
        plumbing += [(os.POSIX_SPAWN_DUP2, self._printed, output) for output in (1, 2)]
        try:
            pid = os.posix_spawnp(
                argv[0],
                argv,
                self._environment,
                file_actions=[*plumbing, *actions],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise Ended(f"{argv[0]} could not be run: {why}") from error
        if name:
            self._names[pid] = name
        return pid

    def _go_home(self) -> None:
        try:
            os.chdir(os.environ["HOME"])
        except OSError:
            os.chdir("/")

    def _write_file(self, name: str, content: bytes) -> str:
        path = os.path.join(self._folder, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        return path

    def _say(self, **facts: object) -> None:
        """Tell the agent, which may have died meanwhile: that is no reason to end."""
        try:
            os.write(self._report, json.dumps(facts).encode() + b"\n")
        except BrokenPipeError:
            return

    def _why_at_heart(self, error: OSError) -> str:
        """Wait a moment for the death that a failure is the first sign of."""
        try:
            self.wait(None, time.monotonic() + TERM_GRACE_SECONDS)
        except Ended as end:
            return str(end)
        return f"the session leader failed: {error}"

    def _keep_tail(self) -> None:
        try:
            self._tail = (self._tail + os.read(self._output, 65536))[-OUTPUT_TAIL_BYTES:]
        except BlockingIOError:
            return

    def _look_around(self) -> None:
        if signal.SIGTERM in os.read(self._woken, 4096):
            raise Ended("it was stopped")
        for pid, status in reaped():
            if pid in self._names:
                raise Ended(self._obituary(self._names[pid], status))

    def _obituary(self, name: str, status: int) -> str:
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return f"{name} was left"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self._keep_tail()
        printed = self._tail.decode(errors="replace").splitlines()
        lines = [line.strip() for line in printed if line.strip(" \t()E")]
        return f"{name} {how}" + (f": {lines[-1][:200]}" if lines else "")

    def _end_everything(self) -> None:
        """End every descendant: ask, wait a little, then insist.

        We are the reaper of all orphans below us, so having no child means that none is left.
        """
        start = time.monotonic()
        kind = signal.SIGTERM
        send(kind, descendants(os.getpid()))
        while any_child_left() and time.monotonic() < start + KILL_LIMIT_SECONDS:
            pause = 0.02
            if time.monotonic() > start + TERM_GRACE_SECONDS:
                send(signal.SIGKILL, descendants(os.getpid()))
            readable = select.select([self._woken, self._output], [], [], pause)[0]
            if self._woken in readable:
                os.read(self._woken, 4096)
            if self._output in readable:
                self._keep_tail()


def reaped() -> list[tuple[int, int]]:
    """Return every child that has ended since the last call, with its wait status."""
    found: list[tuple[int, int]] = []
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found
            found.append((pid, status))
    except ChildProcessError:
        return found


def any_child_left() -> bool:
    reaped()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EPERM):
                raise


def become_subreaper() -> None:
    """Become the parent of every orphan below us. While X starts: loading ctypes takes 5 ms."""
    import ctypes  # noqa: PLC0415

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Ended("this kernel gives us no charge of orphans")


def main() -> None:
    try:
        order = json.loads(sys.stdin.buffer.read())
    except ValueError:
        # The agent died before it could order anything; it will not know of us.
        return
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    Leader(order, report).run()


if __name__ == "__main__":
    main()
