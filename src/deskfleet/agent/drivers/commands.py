"""One program, run to its end: its arguments as they are, no shell, and bounds on all it does.

Laws: the answer is there when the program has ended, whatever it has started and left behind. Its
process group is killed after every call; after one that failed or was cancelled, or that left
somebody with its outputs, so is all else that it has started, wherever that has gone. Programs are
run, never understood: what they print is bytes of bounded number, and a program that can't be run,
takes too long or prints too much is one `Unavailable` with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from deskfleet.agent.settling import settled
from deskfleet.errors import Unavailable
from deskfleet.machine import here

log = logging.getLogger(__name__)

MEGABYTE = 1_000_000
MARK = "DESKFLEET_CALL"
"""In the environment of a program, and so of what it starts: nobody else has its value."""
_REAPED_WITHIN_SECONDS = 5.0
_OUTPUTS_END_WITHIN_SECONDS = 1.0
"""When nobody of the program's group is left who could hold them."""
_STRAYS_END_WITHIN_SECONDS = 2.0
_OUTPUTS = (1, 2)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said when it ended by itself."""

    code: int
    output: bytes
    errors: bytes

    def last_words(self, longest: int = 200) -> str:
        """Return the last line that it printed, errors first, fit to be shown to people."""
        for printed in (self.errors, self.output):
            lines = [line.strip() for line in printed[-4096:].decode(errors="replace").splitlines()]
            told = [line for line in lines if line]
            if told:
                return "".join(one if one.isprintable() else " " for one in told[-1])[:longest]
        return f"it ended with status {self.code}"


class _Call(asyncio.SubprocessProtocol):
    """A program that runs: what it has printed so far, and whether it has ended."""

    def __init__(self, name: str, mark: str, max_bytes: int) -> None:
        self.name, self.mark, self._max_bytes = name, mark, max_bytes
        self.printed = {output: bytearray() for output in _OUTPUTS}
        self.is_flood = False
        self.over = asyncio.Event()
        """Set when the program has ended, or has printed too much."""
        self.ended = asyncio.Event()
        self.silent = asyncio.Event()
        """Set when nobody holds its outputs any more."""
        self._heard = set(_OUTPUTS)
        self.transport: Any = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if self.is_flood:
            return
        self.printed[fd] += data
        if len(self.printed[fd]) > self._max_bytes:
            self.is_flood = True
            self.over.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        self._heard.discard(fd)
        if not self._heard:
            self.silent.set()

    def process_exited(self) -> None:
        self.ended.set()
        self.over.set()

    def answer(self) -> Answer:
        code: int = self.transport.get_returncode()
        return Answer(code, *(bytes(self.printed[output]) for output in _OUTPUTS))


async def run(argv: Sequence[str], *, limit_seconds: float, max_bytes: int = MEGABYTE) -> Answer:
    """Run a program and return how it ended; `max_bytes` bounds each of its two outputs.

    Raises `Unavailable` where it can't be run, took too long or printed too much: what it did
    by then is unknown.
    """
    name = PurePath(argv[0]).name
    starting = asyncio.ensure_future(_start(argv, name, max_bytes))
    try:
        call = await settled(starting)
    except asyncio.CancelledError:
        if not starting.cancelled() and starting.exception() is None:
            await settled(asyncio.ensure_future(_end(starting.result())))
        raise
    answer: Answer | None = None
    try:
        answer = await _answered(call, limit_seconds, max_bytes)
    finally:
        if answer is None:
            await settled(asyncio.ensure_future(_end(call)))
    call.transport.close()
    return answer


async def _start(argv: Sequence[str], name: str, max_bytes: int) -> _Call:
    call = _Call(name, secrets.token_hex(16), max_bytes)
    try:
        call.transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: call,
            *_as_given(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PurePath(sys.executable).anchor,
            env={**os.environ, MARK: call.mark},
            **here.OWN_GROUP,
        )
    except OSError as error:
        raise Unavailable(f"{name} can't be run: {error.strerror or error}") from error
    except ValueError as error:
        raise Unavailable(f"{name} can't be given such arguments: {error}") from error
    return call


def _as_given(argv: Sequence[str]) -> list[Any]:
    """Return the arguments as UTF-8 where programs take bytes, whatever the locale is."""
    return [one.encode() for one in argv] if os.name == "posix" else list(argv)


async def _answered(call: _Call, limit_seconds: float, max_bytes: int) -> Answer:
    if not await _within(limit_seconds, call.over):
        raise Unavailable(f"{call.name} did not answer within {limit_seconds:g} seconds")
    if call.ended.is_set():
        # What it has left behind may hold its outputs, and has nothing more to say.
        here.kill_group(call.transport.get_pid())
        if not await _within(_OUTPUTS_END_WITHIN_SECONDS, call.silent):
            await asyncio.to_thread(_kill_strays, call)
    if call.is_flood:
        raise Unavailable(f"{call.name} printed more than {max_bytes:,} bytes")
    return call.answer()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, but no longer than this; return whether it has come."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def _end(call: _Call) -> None:
    """Kill what is left of a program, and see that it is gone."""
    await asyncio.to_thread(_kill_all, call)
    # Closes our ends of its pipes.
    call.transport.close()
    if not await _within(_REAPED_WITHIN_SECONDS, call.ended):
        # The kernel itself holds it: a dead network drive, say. It has been killed all the same.
        log.warning("command.not-reaped", extra={"pid": call.transport.get_pid()})


def _kill_all(call: _Call) -> None:
    """Kill a program, its group, what descends from it, and what has its mark."""
    pid: int = call.transport.get_pid()
    if sys.platform == "win32":
        here.kill_group(pid)
        return
    from deskfleet.agent.drivers.leader.children import descendants, send  # noqa: PLC0415 - POSIX

    # They are its own as long as it lives; killed first, it would orphan them.
    below = [] if call.ended.is_set() else descendants(pid)
    here.kill_group(pid)
    send(signal.SIGKILL, below)
    _kill_strays(call)


def _kill_strays(call: _Call) -> None:
    """Kill what has the program's mark, where the system tells: it has left group and parent."""
    if sys.platform != "win32":
        from deskfleet.agent.drivers.processes import end_marked  # noqa: PLC0415 - POSIX only

        mark = f"{MARK}={call.mark}".encode()
        if not end_marked(mark, _STRAYS_END_WITHIN_SECONDS):
            log.warning("command.stray", extra={"program": call.name})
