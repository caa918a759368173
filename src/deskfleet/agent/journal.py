"""What an agent must still know after it was killed.

An intent is on the disk before anything is started, so that a start which was cut short is told
from a session that ended, and a generation that has had its end is never started again: also where
a store that was set back to a backup asks for it again.

The disk may be slow, and the agent's one event loop must not wait for it: whatever is to be noted
at one moment is written by a thread, with one sync. Laws: `entries` holds what is on the disk, and
nothing else; who awaits a write is told once it is there, or that it is not. After a failure it
asks the disk now and then whether it would take something again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar

from deskfleet.agent.journal_file import Entry, Failure, JournalFile, Line
from deskfleet.agent.settling import settled
from deskfleet.agent.threads import Threads
from deskfleet.errors import Unavailable

SLOW_SECONDS = 10.0
TOO_SLOW = "the disk with the journal of the agent hardly answers"

T = TypeVar("T")
Waiting: TypeAlias = tuple[Line, asyncio.Future[None]]
Written: TypeAlias = list[Failure | None]


class OffLoop(Protocol):
    """Makes blocking calls, one after the other, while the event loop goes on."""

    def __call__(self, call: Callable[[], T], /) -> asyncio.Future[T]: ...


class Journal:
    """Serves one event loop. `off_loop` is a thread of the journal's own where it isn't given."""

    def __init__(self, file: JournalFile, off_loop: OffLoop | None = None) -> None:
        self._memory = file.memory.copy()
        self._file = file
        self._threads: Threads | None = None
        if off_loop is None:
            off_loop = self._threads = Threads(1, "journal")
        self._off_loop = off_loop
        self._waiting: list[Waiting] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._began = 0.0
        self._failure: Failure | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._memory.entries

    def is_over(self, session_id: str, generation: int) -> bool:
        """Tell whether a session that was forgotten had its end with this generation, or later."""
        return 0 < generation <= self._memory.over.get(session_id, 0)

    async def write(self, session_id: str, entry: Entry) -> None:
        """Remember an entry durably.

        Two changes for one session are never under way at once. A cancellation comes only when the
        outcome is known. Raises `Unavailable` where the disk fails; then everything is as before.
        """
        if self.entries.get(session_id) != entry:
            await self._put(Line(id=session_id, entry=entry))

    async def forget(self, session_id: str, *, over: int = 0) -> None:
        """Forget an entry, durably as `write` does, but for the generation that is `over`."""
        if session_id in self.entries or (over and not self.is_over(session_id, over)):
            await self._put(Line(id=session_id, over=over))

    async def _put(self, line: Line) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, answer))
        self._wake()
        await settled(answer)

    def trouble(self) -> str | None:
        """Return why nothing can be noted at present, None where it can.

        Tries it meanwhile where it could not: whoever asks later is told that it is over.
        """
        if not self._idle.is_set():
            waits = asyncio.get_running_loop().time() - self._began
            return TOO_SLOW if waits > SLOW_SECONDS else self._failure
        if self._failure is not None:
            self._wake()
        return self._failure

    async def close(self) -> None:
        """Finish what waits; nothing may be written any more."""
        await self._idle.wait()
        self._file.close()
        if self._threads is not None:
            self._threads.close()

    def _wake(self) -> None:
        if self._idle.is_set():
            self._idle.clear()
            self._begin_soon()

    def _begin_soon(self) -> None:
        self._began = asyncio.get_running_loop().time()
        # Not at once: what else is to be noted in this round of the loop goes along.
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, []
        lines = [line for line, _ in batch]
        job = self._off_loop(lambda: self._file.write(lines) if lines else self._file.mend())
        job.add_done_callback(lambda done: self._written(batch, done))

    def _written(self, batch: list[Waiting], job: asyncio.Future[Written]) -> None:
        """Tell everyone who waits, and go on with those who came meanwhile."""
        if job.cancelled():
            for _, answer in batch:
                answer.cancel()
        elif (error := job.exception()) is not None:
            for _, answer in batch:
                answer.set_exception(error)
        else:
            for (line, answer), failure in zip(batch, job.result(), strict=True):
                self._tell(line, answer, failure)
        if not self._file.torn:
            self._failure = None
        if self._waiting:
            self._begin_soon()
        else:
            self._idle.set()

    def _tell(self, line: Line, answer: asyncio.Future[None], failure: Failure | None) -> None:
        if failure is None:
            self._memory.take(line)
            answer.set_result(None)
        else:
            self._failure = f"the journal of the agent can't be written: {failure}"
            answer.set_exception(Unavailable(self._failure))
