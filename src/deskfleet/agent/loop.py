"""Makes what runs on this server what is wanted of it.

Level-triggered: it is given the whole desired set, compares it with what runs, and starts or
stops one session at a time each, all sessions at once. What it knows of each session goes to the
journal before it acts. What isn't named in the desired set is left alone.

Laws: a generation is begun at most once; a lower generation than one seen is not listened to; a
session that has failed or ended stays so until the broker stops naming it. What the journal can't
take is put off, for that session alone, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Protocol

import msgspec

from deskfleet.agent.journal import Entry, Journal
from deskfleet.core.records import Intent, Phase, Report, SessionRequest
from deskfleet.errors import StartFailed, Unavailable
from deskfleet.ports import Running, SessionDriver, SessionSpec
from deskfleet.wire.bounds import cut
from deskfleet.wire.messages import Desire, Observed

log = logging.getLogger(__name__)

FINAL = {Phase.FAILED, Phase.ENDED}
AGAIN_SECONDS = 5.0
"""When a step that the world made fail is due again."""
TOLD_BYTES = 1024 * 1024
"""Of what was asked for of sessions that were not named, in one observed set; the rest is told
when these have been taken up."""


class Presence(Protocol):
    """Who is connected (`Attendance`)."""

    def connections(self, session_id: str) -> int: ...

    def last_disconnection_at(self, session_id: str) -> datetime | None: ...

    def close_all(self, session_id: str) -> None: ...

    def forget(self, session_id: str) -> None: ...


class Loop:
    def __init__(
        self,
        server_id: str,
        driver: SessionDriver,
        journal: Journal,
        presence: Presence,
        on_change: Callable[[], None],
    ) -> None:
        self._server_id = server_id
        self._driver = driver
        self._journal = journal
        self._presence = presence
        self._on_change = on_change
        self._desires: dict[str, Desire] | None = None
        """The last desired set; None before the first."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._put_off: set[str] = set()
        self._closed = False

    async def open(self) -> None:
        """Take up what runs, and settle what the journal says of what doesn't."""
        await self._driver.open(self._ended)
        running = {one.session_id: one.generation for one in self._driver.running()}
        for id, entry in list(self._journal.entries.items()):
            if running.get(id) == entry.generation:
                self._note(id, entry.spec, Phase.RUNNING)
            elif entry.phase is Phase.RUNNING and running.get(id) == 0:
                # The driver has lost which placement it is; we have not, and it lives.
                log.warning("session.generation-lost", extra={"session_id": id})
            elif entry.phase is Phase.RUNNING:
                self._note(id, entry.spec, Phase.ENDED, "it ended while the agent was away")
            elif entry.phase is Phase.STARTING:
                # Cut short, and the driver has cleaned up: it may be begun again.
                self._journal.write(id, None)

    async def close(self) -> None:
        """Let go; sessions run on. A start that is under way is cut short and cleaned up."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._driver.close()
        self._journal.close()

    def want(self, desires: Iterable[Desire]) -> None:
        """Take over a new desired set."""
        before = self._desires or {}
        wanted = self._desires = {desire.spec.session_id: desire for desire in desires}
        for id, desire in wanted.items():
            old = before.get(id)
            if old is not None and _permissions(old.spec) != _permissions(desire.spec):
                self._presence.close_all(id)
            self._converge(id)
        for id in [id for id in self._journal.entries if id not in wanted]:
            if id not in self._tasks and self._journal.entries[id].phase in FINAL:
                # What can't be forgotten now is not named in the next set either.
                with contextlib.suppress(OSError):
                    self._journal.write(id, None)
        self._on_change()

    def observed(self) -> tuple[Observed, ...]:
        """Return the whole observed set."""
        running = {one.session_id: one for one in self._driver.running()}
        ids = dict.fromkeys([*self._journal.entries, *running])
        unnamed = self._unnamed(running)
        return tuple(self._observe(id, running.get(id), unnamed.get(id)) for id in ids)

    def spec(self, session_id: str) -> SessionSpec | None:
        """Return what is known of a session that runs here; the newest permissions win."""
        desire = (self._desires or {}).get(session_id)
        entry = self._journal.entries.get(session_id)
        if desire is not None:
            return desire.spec if desire.intent is Intent.RUN else None
        return None if entry is None else entry.spec

    def _unnamed(self, running: dict[str, Running]) -> dict[str, SessionRequest]:
        """Return what was asked for of our sessions that run and that nobody wants, or ends."""
        if self._desires is None:
            return {}
        unnamed, told = {}, 0
        for id, one in running.items():
            if id in self._desires or not one.generation or told > TOLD_BYTES:
                continue
            entry = self._journal.entries.get(id)
            is_it = entry is not None and entry.generation == one.generation
            request = entry.spec.request if entry is not None and is_it else _request_of(one)
            told += len(msgspec.json.encode(request))
            unnamed[id] = request
        return unnamed

    def _observe(
        self, id: str, running: Running | None, request: SessionRequest | None
    ) -> Observed:
        entry = self._journal.entries.get(id)
        # A session that deskfleet didn't create has no entry: it runs, and that is all.
        phase = entry.phase if entry else Phase.RUNNING
        connections = None if running is None else running.connections
        left = None if running is None else running.last_disconnection_at
        return Observed(
            report=Report(
                id=id,
                server_id=self._server_id,
                generation=entry.generation if entry else (running.generation if running else 0),
                phase=phase,
                reason=entry.reason if entry else None,
                connections=self._presence.connections(id) if connections is None else connections,
                last_disconnection_at=left or self._presence.last_disconnection_at(id),
            ),
            running=running,
            request=request,
        )

    # Convergence of one session

    def _converge(self, id: str) -> None:
        """Begin the next step of a session, where there is one and none is under way."""
        try:
            self._next_step(id)
        except OSError as error:
            # Nothing is begun that the journal doesn't hold; other sessions may need no room.
            log.error("journal.failed", extra={"session_id": id, "reason": str(error)})  # noqa: TRY400 - the reason says it all, and comes again and again
            self._again(id)

    def _again(self, id: str) -> None:
        if id not in self._put_off:
            self._put_off.add(id)
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._take_up, id)

    def _take_up(self, id: str) -> None:
        self._put_off.discard(id)
        self._converge(id)
        self._on_change()

    def _next_step(self, id: str) -> None:
        desire = (self._desires or {}).get(id)
        if desire is None or self._closed:
            return
        spec, entry = desire.spec, self._journal.entries.get(id)
        if entry is not None and entry.generation > spec.generation:
            return
        if id in self._tasks:
            starting = entry is not None and entry.phase is Phase.STARTING
            if starting and desire.intent is Intent.STOP:
                self._tasks[id].cancel()
            return
        is_known = entry is not None and entry.generation == spec.generation
        if is_known and entry is not None and entry.phase in FINAL:
            return
        if desire.intent is Intent.STOP:
            self._begin(id, self._stop(spec))
        elif entry is None or not is_known or entry.phase is Phase.STARTING:
            # Starting, and no task: it could not be written how that came out.
            self._take_on(id, desire)
        elif _permissions(entry.spec) != _permissions(spec):
            self._begin(id, self._permit(spec))

    def _take_on(self, id: str, desire: Desire) -> None:
        spec = desire.spec
        running = {one.session_id: one.generation for one in self._driver.running()}
        if running.get(id) == spec.generation:
            self._note(id, self._as_begun(spec), Phase.RUNNING)
            self._converge(id)
        elif desire.started:
            self._note(id, spec, Phase.ENDED, "it is not there any more")
        else:
            self._note(id, spec, Phase.STARTING)
            self._begin(id, self._start(spec, has_older=id in running))

    def _as_begun(self, spec: SessionSpec) -> SessionSpec:
        """Return a spec with the permissions that its session has been given so far."""
        entry = self._journal.entries.get(spec.session_id)
        if entry is not None and entry.generation == spec.generation:
            return entry.spec
        request = msgspec.structs.replace(spec.request, permissions_file=None)
        return msgspec.structs.replace(spec, request=request)

    def _begin(self, id: str, step: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(step)
        self._tasks[id] = task
        task.add_done_callback(lambda done: self._step_done(id, done))

    def _step_done(self, id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(id, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._tell_of(id, error)
            # The world failed, not the session.
            self._again(id)
        else:
            self._converge(id)
        self._on_change()

    @staticmethod
    def _tell_of(id: str, error: BaseException) -> None:
        """Log why a step failed; where it came from is told only of what nobody foresaw."""
        if isinstance(error, Unavailable):
            reason = {"session_id": id, "reason": error.message}
            log.warning("session.step-put-off", extra=reason)
        else:
            log.error("session.step-failed", exc_info=error, extra={"session_id": id})

    async def _start(self, spec: SessionSpec, *, has_older: bool) -> None:
        id = spec.session_id
        try:
            if has_older:
                await self._driver.stop(id)
            await self._driver.start(spec)
        except StartFailed as error:
            log.info("session.start-failed", extra={"session_id": id, "reason": error.message})
            self._note(id, spec, Phase.FAILED, error.message)
        except asyncio.CancelledError:
            # What was begun is undone; what is wanted now decides what comes next.
            self._journal.write(id, None)
            raise
        except Exception:
            self._journal.write(id, None)
            raise
        else:
            log.info("session.started", extra={"session_id": id, "owner": spec.request.owner})
            self._note(id, spec, Phase.RUNNING)
            if id not in {one.session_id for one in self._driver.running()}:
                # It ended before this task was told that it had begun.
                self._note(id, spec, Phase.ENDED, "it ended as soon as it had started")

    async def _permit(self, spec: SessionSpec) -> None:
        id = spec.session_id
        try:
            await self._driver.permit(spec)
            log.info("session.permissions-changed", extra={"session_id": id})
            self._note(id, spec, Phase.RUNNING)
        finally:
            if id not in {one.session_id for one in self._driver.running()}:
                # It ended meanwhile, which is not noted while a step is under way.
                self._note(id, spec, Phase.ENDED, "it ended while its permissions were changed")

    async def _stop(self, spec: SessionSpec) -> None:
        id = spec.session_id
        await self._driver.stop(id)
        self._presence.forget(id)
        log.info("session.stopped", extra={"session_id": id})
        self._note(id, spec, Phase.ENDED)

    def _ended(self, session_id: str, reason: str) -> None:
        """Take note of a session that ended by itself."""
        if self._closed:
            # The next agent finds out; the journal takes no more.
            return
        self._presence.forget(session_id)
        entry, task = self._journal.entries.get(session_id), self._tasks.get(session_id)
        # A step that is done, and only not told of yet, takes note of nothing any more.
        if entry is not None and (task is None or task.done()):
            log.info("session.ended", extra={"session_id": session_id, "reason": reason})
            try:
                self._note(session_id, entry.spec, Phase.ENDED, reason)
            except OSError as error:
                log.error("journal.failed", extra={"session_id": session_id, "reason": str(error)})  # noqa: TRY400 - as above
                loop = asyncio.get_running_loop()
                loop.call_later(AGAIN_SECONDS, self._ended, session_id, reason)
        self._on_change()

    def _note(self, id: str, spec: SessionSpec, phase: Phase, reason: str | None = None) -> None:
        entry = Entry(spec=spec, phase=phase, reason=None if reason is None else cut(reason))
        if self._journal.entries.get(id) != entry:
            self._journal.write(id, entry)


def _request_of(running: Running) -> SessionRequest:
    """Return what a driver knows of the request, for a journal that has lost it."""
    return SessionRequest(name=running.name, owner=running.owner, type=running.type)


def _permissions(spec: SessionSpec) -> str | None:
    return spec.request.permissions_file
