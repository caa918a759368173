"""What the long-running commands share: one event loop, one end, one way to fail.

A program ends on SIGINT or SIGTERM, in order; a set-up that can't be had ends it with its one
sentence, and so does a store that fails. Tracebacks are for bugs. Nothing here knows the libraries
that options are read with: the agent's program does without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

import uvloop

from deskfleet.errors import DeskfleetError, SetupFailed, StoreFailed
from deskfleet.observe import configure_logging

log = logging.getLogger(__name__)

CANT_RUN = 1
INTERRUPTED = 130


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `main(stop)` until it returns; `stop` is set by the signals that end a program."""
    # A busy event loop would let the store's thread wait for 5 ms at each turn.
    sys.setswitchinterval(0.0005)
    failure: DeskfleetError | None = None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(main))
    except* (SetupFailed, StoreFailed) as group:
        failure = _first(group)
    # Only out here: what is raised inside of the except* would end in a group of its own.
    if isinstance(failure, StoreFailed):
        log.critical("store.failed", extra={"reason": failure.message})
    if failure is not None:
        fail(failure)


class _Stop(asyncio.Event):
    """Knows whether the program has come as far as to wait for its end."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = False

    async def wait(self) -> Literal[True]:
        self.awaited = True
        return await super().wait()


async def _until_stopped(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    program = loop.create_task(main(stop))

    def end() -> None:
        stop.set()
        if not stop.awaited:
            # It still starts, and what it waits for may never come.
            program.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        await program
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


def fail(error: DeskfleetError) -> NoReturn:
    sys.stderr.write(f"deskfleet: {error.message}\n")
    sys.exit(CANT_RUN)


def _first(group: BaseExceptionGroup[Any]) -> DeskfleetError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DeskfleetError)
    return error


@contextlib.contextmanager
def failing_well() -> Iterator[None]:
    """Turn a set-up that can't be had into one sentence and an exit code."""
    try:
        yield
    except (SetupFailed, StoreFailed) as error:
        fail(error)


def log_to(stream: TextIO | None, level: str, file: Path | None = None) -> None:
    """Log to a stream, or by default to standard error: readable there, JSON elsewhere."""
    if file is not None:
        stream = open(file, "a", encoding="utf-8", opener=_private)  # noqa: SIM115 - it lives as long as the program
    elif stream is None:
        stream = sys.stderr
    configure_logging(level, stream, json=not stream.isatty())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
