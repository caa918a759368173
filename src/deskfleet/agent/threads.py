"""Threads for calls that may take long: of a disk, of a user directory, of what owners can touch.

Laws: the program ends without them, so what must not be left half done is waited for by who asked
for it (settling.py). A call is made once at most, and what was taken is made: a machine that is out
of threads makes it by those that are there, of which one is from the beginning. The standard
`ThreadPoolExecutor` keeps neither: programs wait for its threads, and a call for which it can't
make one is refused and made later all the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Job: TypeAlias = Callable[[], None]


class Threads:
    """At most so many threads, made as they are needed. Called in one event loop."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._made = 0
        self._closed = False
        self._add()

    def __call__(self, call: Callable[[], T], /) -> asyncio.Future[T]:
        """Make a call beside the event loop; cancelled before its turn, it is not made."""
        if self._closed:
            raise RuntimeError(f"the threads {self._name} are closed")
        outcome: Future[T] = Future()
        with self._lock:
            self._unfinished += 1
            is_short = self._made < min(self._unfinished, self._most)
        if is_short:
            with suppress(RuntimeError):
                self._add()
        self._jobs.put(lambda: _settle(outcome, call))
        return asyncio.wrap_future(outcome)

    def close(self) -> None:
        """Take no more calls; those that were taken are still made."""
        self._closed = True
        for _ in range(self._made):
            self._jobs.put(None)

    def _add(self) -> None:
        """Make one more. Raises `RuntimeError` on a machine that is out of threads."""
        # A daemon: what never answers must not keep the program from ending.
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._made += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            with self._lock:
                self._unfinished -= 1


def _settle(outcome: Future[T], call: Callable[[], T]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        outcome.set_result(call())
    except BaseException as error:  # noqa: BLE001  the thread lives on, and who waits is told
        outcome.set_exception(error)
