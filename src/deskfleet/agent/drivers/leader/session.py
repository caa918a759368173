"""One session, from its first process to its last.

Laws: the cookie is written before X starts. Whatever ends the session (SIGTERM, the death of X or
of the desktop, a failed start), nothing that descends from here is alive when the leader exits,
and its X socket and X lock are gone. All waiting happens in `Leader.wait`, so that a signal or a
death is seen at once.

Protocol: the order is one JSON object on stdin. JSON lines go to the descriptor in argv[1]:
`{"display": N, "x": PID}`, then `{"ready": true}` or `{"failed": WHY}`. The file `ended` in the
session's folder says why a session that had been ready is over.
"""

# Importing pathlib would cost every session 10 ms.
# ruff: noqa: PTH102, PTH103, PTH110, PTH118, PTH120
from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable

from .children import Output, any_child_left, become_subreaper, descendants, reaped, send
from .display import Display, cookie_file, remove_dead_ice_sockets
from .ended import Ended, Late
from .x_client import XConnection

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost every session 4 ms
    from typing import Any

TERM_GRACE_SECONDS = 0.5
NOTICE_SECONDS = 0.1
KILL_LIMIT_SECONDS = 10.0
LEFT_BY_SIGTERM = 128 + signal.SIGTERM
"""What dbus-run-session says of LXDE, which logs out by sending itself SIGTERM."""
AUTORUN_PATIENCE_SECONDS = 10.0
"""How long a program waits for a window manager where the owner's init file may start none."""


class Leader:
    """The session, as its order wants it."""

    def __init__(self, order: dict[str, Any], report: int) -> None:
        self._order, self._report = order, report
        self._folder: str = order["folder"]
        self._environment: dict[str, str] = dict(os.environ)
        self._names: dict[int, str] = {}
        self._display: Display | None = None
        self._x = 0
        self._null = os.open(os.devnull, os.O_RDWR)
        self._of_x, self._of_others = Output(), Output()
        self._woken, wakeup = os.pipe()
        for descriptor in (self._woken, wakeup):
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
        remove_dead_ice_sockets()
        if ready:
            self._write_file("ended", why.encode())
        else:
            self._say(failed=why)

    def wait(self, descriptor: int | None, deadline: float | None) -> None:
        """Return when the descriptor can be read, at the deadline without one; raise `Ended` if
        the deadline of a descriptor passes, or the session ends first."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            watched = [self._woken, *([] if descriptor is None else [descriptor])]
            readable = self._select(watched, left)
            if self._woken in readable:
                self._look_around()
            if descriptor in readable:
                return
            if deadline is not None and time.monotonic() >= deadline:
                if descriptor is None:
                    return
                raise Late("the desktop did not come up in time")

    def _select(self, watched: list[int], seconds: float | None) -> list[int]:
        """Return which descriptors can be read; read what was printed meanwhile."""
        outputs = (self._of_x, self._of_others)
        readable = select.select([*watched, *(one.end for one in outputs)], [], [], seconds)[0]
        for output in outputs:
            if output.end in readable:
                output.read()
        return readable

    def _start(self) -> None:
        deadline = time.monotonic() + self._order["limit_seconds"]
        os.mkdir(os.path.join(self._folder, "xdg"), 0o700)
        self._write_config()
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
        self._client = XConnection(number, cookie, self.wait, deadline)
        self._client.prepare_root()
        desktop = [*self._order["desktop"], *self._settings()]
        self._spawn(self._order["desktop_name"], desktop, self._of_others)
        if self._order["answers"]:
            self._autorun(deadline)

    def _start_x(self, number: int, xauthority: str) -> int:
        """Start X and return the descriptor that becomes readable when it is ready."""
        ready, told = os.pipe()
        argv = [*self._order["x"], f":{number}", "-auth", xauthority, "-displayfd", "3"]
        self._x = self._spawn("X", argv, self._of_x, ((os.POSIX_SPAWN_DUP2, told, 3),))
        os.close(told)
        self._say(display=number, x=self._x)
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
        self._client.wait_for_window_manager(deadline)
        self._client.close()
        if self._order["autorun"]:
            self._spawn("", self._order["autorun"], self._of_others)

    def _stay(self) -> None:
        """Wait for the end of the session.

        An init file may start a window manager or none: its autorun file waits, but not for long.
        """
        if not self._order["answers"] and self._order["autorun"]:
            patience = time.monotonic() + AUTORUN_PATIENCE_SECONDS
            try:
                self._autorun(patience)
            except Late:
                self._spawn("", self._order["autorun"], self._of_others)
        self.wait(None, None)

    def _write_config(self) -> None:
        for path, text in self._order["config"].items():
            os.makedirs(os.path.dirname(os.path.join(self._folder, path)), exist_ok=True)
            self._write_file(path, text.encode())

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
        self,
        name: str,
        argv: list[str],
        output: Output,
        actions: Iterable[tuple[int, int, int]] = (),
    ) -> int:
        """Start a program; the session ends with it if it has a name."""
        plumbing = [(os.POSIX_SPAWN_DUP2, self._null, 0)]
        plumbing += [(os.POSIX_SPAWN_DUP2, output.entrance, number) for number in (1, 2)]
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
            while content:
                content = content[os.write(descriptor, content) :]
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

    def _look_around(self) -> None:
        if signal.SIGTERM in os.read(self._woken, 4096):
            raise Ended("it was stopped")
        dead = {pid: status for pid, status in reaped() if pid in self._names}
        if dead and self._x not in dead:
            # The death of X ends the desktop, and may be noticed after it.
            time.sleep(NOTICE_SECONDS)
            dead.update(reaped())
        for pid in (self._x, *dead):
            if pid in dead:
                raise Ended(self._obituary(pid, dead[pid]))

    def _obituary(self, pid: int, status: int) -> str:
        name = self._names[pid]
        code = os.waitstatus_to_exitcode(status)
        if code in {0, LEFT_BY_SIGTERM}:
            return f"{name} was left"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        output = self._of_x if pid == self._x else self._of_others
        last = output.last_line()
        return f"{name} {how}" + (f": {last[:200]}" if last else "")

    def _end_everything(self) -> None:
        """End every descendant: ask, wait a little, then insist.

        X is asked last: programs that lose it leave behind what they would have removed. We are
        the reaper of all orphans below us, so having no child means that none is left.
        """
        start = time.monotonic()
        send(signal.SIGTERM, [pid for pid in descendants(os.getpid()) if pid != self._x])
        while any_child_left() and time.monotonic() < start + KILL_LIMIT_SECONDS:
            left = descendants(os.getpid())
            if time.monotonic() > start + TERM_GRACE_SECONDS:
                send(signal.SIGKILL, left)
            elif left == [self._x]:
                send(signal.SIGTERM, left)
            if self._woken in self._select([self._woken], 0.02):
                os.read(self._woken, 4096)


def main() -> None:
    try:
        order = json.loads(sys.stdin.buffer.read())
    except ValueError:
        # The agent died before it could order anything; it will not know of us.
        return
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    Leader(order, report).run()
