"""One program, run to its end: its arguments as they are, no shell, and bounds on all it does.

Law: a call that fails or is cancelled leaves nothing of the program's process group. Programs are
run, never understood: what they print is bytes of bounded number, and a program that can't be run,
takes too long or prints too much is one `Unavailable` with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from deskfleet.agent.drivers.settling import settled
from deskfleet.errors import Unavailable
from deskfleet.machine import here

log = logging.getLogger(__name__)

Process = asyncio.subprocess.Process

MEGABYTE = 1_000_000
_CHUNK_BYTES = 65_536
_REAPED_WITHIN_SECONDS = 5.0


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


async def run(argv: Sequence[str], *, limit_seconds: float, max_bytes: int = MEGABYTE) -> Answer:
    """Run a program and return how it ended; `max_bytes` bounds each of its two outputs.

    Raises `Unavailable` where it can't be run, took too long or printed too much: what it did
    by then is unknown.
    """
    name = PurePath(argv[0]).name
    starting = asyncio.ensure_future(_start(argv, name))
    try:
        process = await settled(starting)
    except asyncio.CancelledError:
        if not starting.cancelled() and starting.exception() is None:
            await _end(starting.result())
        raise
    answer: Answer | None = None
    try:
        async with asyncio.timeout(limit_seconds):
            answer = await _heard(process, name, max_bytes)
    except TimeoutError:
        raise Unavailable(f"{name} did not answer within {limit_seconds:g} seconds") from None
    finally:
        if answer is None:
            await settled(asyncio.ensure_future(_end(process)))
    return answer


async def _start(argv: Sequence[str], name: str) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *_as_given(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PurePath(sys.executable).anchor,
            **here.OWN_GROUP,
        )
    except OSError as error:
        raise Unavailable(f"{name} can't be run: {error.strerror or error}") from error
    except ValueError as error:
        raise Unavailable(f"{name} can't be given such arguments: {error}") from error


def _as_given(argv: Sequence[str]) -> list[Any]:
    """Return the arguments as UTF-8 where programs take bytes, whatever the locale is."""
    return [one.encode() for one in argv] if os.name == "posix" else list(argv)


async def _heard(process: Process, name: str, max_bytes: int) -> Answer:
    assert process.stdout is not None
    assert process.stderr is not None
    reading = [
        asyncio.ensure_future(_all_of(stream, name, max_bytes))
        for stream in (process.stdout, process.stderr)
    ]
    try:
        output, errors = await asyncio.gather(*reading)
        return Answer(await process.wait(), output, errors)
    finally:
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _all_of(stream: asyncio.StreamReader, name: str, max_bytes: int) -> bytes:
    content = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise Unavailable(f"{name} printed more than {max_bytes:,} bytes")
    return bytes(content)


async def _end(process: Process) -> None:
    """Kill what is left of a program, and see that it is gone."""
    here.kill_group(process.pid)
    # Closes our ends of its pipes, which somebody outside of its group may still hold.
    transport: Any = process._transport  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
    transport.close()
    try:
        async with asyncio.timeout(_REAPED_WITHIN_SECONDS):
            await process.wait()
    except TimeoutError:
        # The kernel itself holds it: a dead network drive, say. It has been killed all the same.
        log.warning("command.not-reaped", extra={"pid": process.pid})
