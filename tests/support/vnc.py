"""Real desktops for tests: Xvnc on a UNIX socket, a window manager, an xterm, and X clients."""

from __future__ import annotations

import os
import secrets
import select
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 20.0


def wait_for(condition: Callable[[], bool], what: str, limit: float = PATIENCE) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class XDesktop:
    """A running desktop."""

    socket: Path
    home: Path
    environment: dict[str, str]

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run an X client to its end and return what it prints, empty where it fails."""
        done = subprocess.run(
            argv,
            env=self.environment,
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout

    def own_clipboard(self, text: str) -> None:
        """Copy inside of the desktop; xclip stays in the background as the owner.

        It becomes the owner only after its first process has ended, so this waits to see it; a
        text that is there already would show nothing.
        """
        assert self.clipboard() != text
        subprocess.run(
            ["xclip", "-selection", "clipboard"],
            env=self.environment,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
        )
        wait_for(lambda: self.clipboard() == text, "the copied text")

    def clipboard(self) -> str:
        return self.run("timeout", "2", "xclip", "-o", "-selection", "clipboard")

    def size(self) -> str:
        lines = self.run("xdpyinfo").splitlines()
        return next((line.split()[1] for line in lines if "dimensions:" in line), "")


@contextmanager
def x_desktop(folder: Path, *, geometry: str = "1000x700") -> Iterator[XDesktop]:
    """Start Xvnc and icewm, and end both."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = folder / "Xauthority"
    authority.write_bytes(cookie_entry(secrets.token_bytes(16)))
    authority.chmod(0o600)
    with ExitStack() as stack:
        number = stack.enter_context(_xvnc(folder, authority, geometry))
        environment = os.environ | {
            "DISPLAY": f":{number}",
            "XAUTHORITY": str(authority),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
        }
        desktop = XDesktop(folder / "rfb.sock", folder, environment)
        stack.enter_context(_child(["icewm"], environment))
        wait_for(
            lambda: "window id" in desktop.run("xprop", "-root", "_NET_SUPPORTING_WM_CHECK"),
            "the window manager",
        )
        yield desktop


@contextmanager
def terminal(desktop: XDesktop) -> Iterator[None]:
    """Show an xterm with a shell, and return when it is on the screen."""
    argv = ["xterm", "-fa", "DejaVu Sans Mono", "-geometry", "80x24+60+60", "-title", "terminal"]
    with _child(argv, desktop.environment | {"PS1": "$ "}):
        desktop.run("xdotool", "search", "--sync", "--onlyvisible", "--name", "terminal")
        yield


def cookie_entry(cookie: bytes) -> bytes:
    """An Xauthority entry of the wild family, which fits whatever number Xvnc picks."""
    parts = (b"", b"", b"MIT-MAGIC-COOKIE-1", cookie)
    return struct.pack(">H", 0xFFFF) + b"".join(
        struct.pack(">H", len(part)) + part for part in parts
    )


@contextmanager
def _xvnc(folder: Path, authority: Path, geometry: str) -> Iterator[str]:
    reading, writing = os.pipe()
    argv = ["Xvnc", "-displayfd", str(writing), "-rfbunixpath", str(folder / "rfb.sock")]
    argv += ["-rfbunixmode", "0600", "-rfbport", "-1", "-SecurityTypes", "None"]
    argv += ["-geometry", geometry, "-depth", "24", "-auth", str(authority)]
    argv += ["-nolisten", "tcp", "-AlwaysShared", "-desktop", "test", "-noreset"]
    try:
        with _child(argv, os.environ | {"HOME": str(folder)}, keeps=writing):
            ready, _, _ = select.select([reading], [], [], PATIENCE)
            assert ready, "Xvnc did not start"
            number = os.read(reading, 16).decode().strip()
            yield number
            socket = Path(f"/tmp/.X11-unix/X{number}")
        socket.unlink(missing_ok=True)
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def _child(
    argv: list[str], environment: dict[str, str], *, keeps: int | None = None
) -> Iterator[None]:
    child = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=() if keeps is None else (keeps,),
        start_new_session=True,
    )
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(5)
