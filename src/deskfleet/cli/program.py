"""What the long-running commands share: one event loop, one end, one way to fail.

A program ends on SIGINT or SIGTERM (Ctrl+C or Ctrl+Break on Windows), in order; a set-up that
can't be had ends it with its one sentence, and so does a store that fails. Tracebacks are for bugs.
Nothing here knows the libraries that options are read with: the agent's program does without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from deskfleet.configuration.examining import Examined
from deskfleet.configuration.notes import Verdict
from deskfleet.errors import DeskfleetError, SetupFailed, StoreFailed
from deskfleet.logfile import LogFile, Rotation
from deskfleet.machine import here
from deskfleet.observe import configure_logging
from deskfleet.settings import AgentSettings, BrokerSettings, S, layered, settled

log = logging.getLogger(__name__)

CANT_RUN = 1
INTERRUPTED = 130


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `main(stop)` until it returns; `stop` is set by the signals that end a program."""
    # A busy event loop would let the store's thread wait for 5 ms at each turn.
    sys.setswitchinterval(0.0005)
    failure: DeskfleetError | None = None
    try:
        with asyncio.Runner(loop_factory=here.new_event_loop) as runner:
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

    here.on_stop(loop, end)
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


def configured(kind: type[S], config: Path | None, flags: Mapping[str, Any], log_name: str) -> S:
    """Read the settings of a program that starts, and log as they say, what the file says first."""
    found = layered(kind, config, environment=os.environ, flags=flags)
    settings = settled(kind, found)
    log_to(settings, log_name)
    _tell(found)
    return settings


def log_to(settings: BrokerSettings | AgentSettings, name: str, folder: Path | None = None) -> None:
    """Log to a file of the folder, or else of the settings' folder, or else to standard error.

    Readable on a terminal, JSON elsewhere. A file in a folder of the caller's is the caller's only.
    """
    where = folder or settings.log_directory
    if where is None:
        configure_logging(settings.log_level, sys.stderr, json=not sys.stderr.isatty())
        return
    rotation = Rotation(settings.log_rotation, settings.log_max_file_size, settings.log_rotate)
    file = LogFile(where / name, rotation, mode=0o600 if folder else 0o640)
    configure_logging(settings.log_level, file, json=True)


def _tell(examined: Examined) -> None:
    """Name each line of a file that isn't simply used."""
    for note in examined.notes:
        facts = {
            "file": str(examined.path),
            "line": note.line,
            "key": note.key,
            "reason": note.text or None,
        }
        if note.verdict is Verdict.UNKNOWN:
            log.warning("configuration.unknown", extra=facts)
        elif note.verdict is Verdict.USED and note.text:
            log.warning("configuration.deprecated", extra=facts)
        elif note.is_urgent:
            log.warning("configuration.not-had", extra=facts)
        elif note.verdict in {Verdict.IGNORED, Verdict.OVERRIDDEN} and note.line is not None:
            log.info("configuration.ignored", extra=facts)
