"""Makes what runs on this server what is wanted of it.

Level-triggered: it is given the whole desired set, compares it with what runs, and takes one step
of each session at a time, all sessions at once. A step is a task that notes in the journal what it
is about to do, does it, and notes what came of it; only then is decided what comes next. What
isn't named in the desired set is left alone.

Laws: a generation is begun at most once; a lower generation than one seen is not listened to; a
session that has failed or ended stays so, and is told (sight.py) while a broker names it. What it
can't take is put off, for that session alone, and tried again; meanwhile the reason is told, and
being told the same once more hurries nothing. A stop that has begun goes on until the driver shows
the session no more, whoever names it or doesn't.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import cache
from typing import Any, Protocol, TypeAlias

import msgspec

from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import Entry
from deskfleet.agent.sight import Sight, Visitors
from deskfleet.core.records import Intent, Phase
from deskfleet.errors import StartFailed, Unavailable
from deskfleet.ports import SessionDriver, SessionSpec
from deskfleet.wire.bounds import cut
from deskfleet.wire.messages import Desire, Observed

log = logging.getLogger(__name__)

Step: TypeAlias = Coroutine[Any, Any, None]
Generations: TypeAlias = Callable[[], dict[str, int]]

FINAL = {Phase.FAILED, Phase.ENDED}
AGAIN_SECONDS = 5.0
"""When a step that the world made fail is due again, unless something else is wanted before."""


class Presence(Visitors, Protocol):
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
        """The steps that are under way."""
        self._starts: set[str] = set()
        """Those of them that are cut short when their session is to be stopped."""
        self._ends: dict[str, str] = {}
        """Why sessions ended by themselves, for as long as that isn't noted."""
        self._put_off: dict[str, None] = {}
        """Sessions whose next step is due again later, all at once."""
        self._reasons: dict[str, str] = {}
        """Why the last step of a session did not succeed."""
        self._looking: asyncio.Task[dict[str, int]] | None = None
        """A look that is still to be taken."""
        self._closed = False

    async def open(self) -> None:
        """Take up what runs, and settle what the journal says of what doesn't."""
        await self._driver.open(self._ended)
        running = self._running()
        for id, entry in list(self._journal.entries.items()):
            if id in self._tasks:
                continue
            if running.get(id) == entry.generation:
                if entry.phase is not Phase.RUNNING:
                    self._begin(id, self._note(entry.spec, Phase.RUNNING))
            elif entry.phase is Phase.RUNNING and running.get(id) == 0:
                # The driver has lost which placement it is; we have not, and it lives.
                log.warning("session.generation-lost", extra={"session_id": id})
            elif entry.phase is Phase.RUNNING:
                self._ends[id] = "it ended while the agent was away"
                self._converge(id)
            elif entry.phase is Phase.STARTING:
                # Cut short, and the driver has cleaned up: it may be begun again.
                self._begin(id, self._forget(id))
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def close(self) -> None:
        """Let go; sessions run on. A start that is under way is cut short and cleaned up."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._driver.close()
        await self._journal.close()

    def want(self, desires: Iterable[Desire]) -> None:
        """Take over a new desired set."""
        before = self._desires or {}
        wanted = {desire.spec.session_id: desire for desire in desires}
        wanted |= self._stops_under_way(before, wanted)
        self._desires = wanted
        for id, desire in wanted.items():
            old = before.get(id)
            if old is not None and _permissions(old.spec) != _permissions(desire.spec):
                self._presence.close_all(id)
        ids = {**wanted, **self._journal.entries, **self._reasons}
        waits = {id for id in self._put_off if before.get(id) == wanted.get(id)}
        self._converge(*(id for id in ids if id not in waits))
        self._on_change()

    def _stops_under_way(
        self, before: Mapping[str, Desire], wanted: Mapping[str, Desire]
    ) -> dict[str, Desire]:
        """Return which stops go on, although they are wanted no more.

        A session of which half is gone is no session: were it shown, it would be adopted as one.
        """
        kept = {}
        for id, old in before.items():
            new = wanted.get(id)
            later = new is not None and new.spec.generation > old.spec.generation
            if not later and self._is_being_stopped(old):
                kept[id] = old
        return kept

    def _is_being_stopped(self, desire: Desire) -> bool:
        """Tell whether one of our sessions is being stopped, and that hasn't come out yet."""
        id, generation = desire.spec.session_id, desire.spec.generation
        entry = self._journal.entries.get(id)
        is_over = entry is not None and entry.phase in FINAL and entry.generation >= generation
        is_begun = id in self._tasks or id in self._put_off
        # Of what others created, the next one may have the same name and generation.
        return desire.intent is Intent.STOP and generation > 0 and is_begun and not is_over

    def observed(self) -> tuple[Observed, ...]:
        """Return the whole observed set."""
        sight = Sight(
            server_id=self._server_id,
            entries=self._journal.entries,
            running={one.session_id: one for one in self._driver.running()},
            desires=self._desires,
            reasons=self._reasons,
            presence=self._presence,
        )
        return sight.observed()

    def spec(self, session_id: str) -> SessionSpec | None:
        """Return what is known of a session that runs here; the newest permissions win."""
        desire = (self._desires or {}).get(session_id)
        entry = self._journal.entries.get(session_id)
        if desire is not None:
            return desire.spec if desire.intent is Intent.RUN else None
        return None if entry is None else entry.spec

    def _running(self) -> dict[str, int]:
        """Return the generation of each session that runs."""
        return {one.session_id: one.generation for one in self._driver.running()}

    # Convergence of one session

    def _converge(self, *ids: str) -> None:
        """Begin the next step of each session, where there is one and none is under way."""
        if self._closed:
            return
        # Looked at once at most, however many there are, and seldom where there is one.
        running = cache(self._running)
        for id in ids:
            if id in self._tasks:
                self._cut_short(id)
                continue
            step = self._next_step(id, running)
            if step is not None:
                self._begin(id, step)

    def _cut_short(self, id: str) -> None:
        """End a start that is under way where its session is to be stopped."""
        desire = (self._desires or {}).get(id)
        if id in self._starts and desire is not None and desire.intent is Intent.STOP:
            self._tasks[id].cancel()

    def _begin(self, id: str, step: Step) -> None:
        task = asyncio.get_running_loop().create_task(step)
        self._tasks[id] = task
        task.add_done_callback(lambda done: self._step_done(id, done))

    def _step_done(self, id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[id]
        self._starts.discard(id)
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._reasons.pop(id, None)
            self._converge(id)
        else:
            # The world failed, not the session.
            self._reasons[id] = self._tell_of(id, error)
            self._again(id)
        self._on_change()

    @staticmethod
    def _tell_of(id: str, error: BaseException) -> str:
        """Log why a step failed, and return it for people; where it came from is logged only of
        what nobody foresaw."""
        if isinstance(error, Unavailable):
            reason = {"session_id": id, "reason": error.message}
            log.warning("session.step-put-off", extra=reason)
            return error.message
        log.error("session.step-failed", exc_info=error, extra={"session_id": id})
        known = error.strerror if isinstance(error, OSError) else None
        return known or "the agent could not do it; its log says why"

    def _again(self, id: str) -> None:
        if not self._put_off:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._take_up)
        self._put_off[id] = None

    def _take_up(self) -> None:
        due, self._put_off = self._put_off, {}
        self._converge(*due)
        self._on_change()

    def _ended(self, session_id: str, reason: str) -> None:
        """Take note of a session that ended by itself; a step that is under way comes first."""
        if self._closed:
            # The next agent finds out; the journal takes no more.
            return
        self._presence.forget(session_id)
        log.info("session.ended", extra={"session_id": session_id, "reason": reason})
        if session_id in self._journal.entries or session_id in self._tasks:
            self._ends[session_id] = reason
            self._converge(session_id)
        self._on_change()

    # What comes next

    def _next_step(self, id: str, running: Generations) -> Step | None:
        """Decide what is to be done now of a session of which no step is under way."""
        entry, desire = self._journal.entries.get(id), (self._desires or {}).get(id)
        end = self._ends.get(id)
        if end is not None:
            if entry is not None and entry.phase not in FINAL:
                return self._note(entry.spec, Phase.ENDED, end)
            del self._ends[id]
        if desire is None:
            self._reasons.pop(id, None)
            return self._leave(entry, running)
        spec = desire.spec
        if entry is not None and entry.generation > spec.generation:
            return None
        is_known = entry is not None and entry.generation == spec.generation
        if is_known and entry is not None and entry.phase in FINAL:
            return None
        if desire.intent is Intent.STOP:
            return self._stop(spec)
        if entry is None or not is_known or entry.phase is Phase.STARTING:
            # Starting, and no step: how that came out is not known, or could not be written.
            return self._take_on(desire, running)
        return self._permit(spec) if _permissions(entry.spec) != _permissions(spec) else None

    def _leave(self, entry: Entry | None, running: Generations) -> Step | None:
        """Decide what is to be noted of a session that nobody names; it is left alone itself."""
        if entry is None or entry.phase is Phase.RUNNING:
            return None
        id = entry.spec.session_id
        if entry.phase is Phase.STARTING and running().get(id) == entry.generation:
            return self._note(entry.spec, Phase.RUNNING)
        if entry.phase is Phase.STARTING:
            return self._forget(id)
        # What is over is told as long as a broker may want to hear it. Of a session that deskfleet
        # did not create, the next one may have the same name.
        return None if self._desires is None else self._forget(id, over=entry.generation)

    def _take_on(self, desire: Desire, running: Generations) -> Step:
        spec = desire.spec
        runs = running().get(spec.session_id)
        if runs == spec.generation:
            return self._note(self._as_begun(spec), Phase.RUNNING)
        if desire.started:
            return self._note(spec, Phase.ENDED, "it is not there any more")
        if self._journal.is_over(spec.session_id, spec.generation):
            # The store was set back to a backup, say.
            return self._note(spec, Phase.ENDED, "it has had its end here before")
        self._starts.add(spec.session_id)
        return self._start(spec, has_older=runs is not None)

    def _as_begun(self, spec: SessionSpec) -> SessionSpec:
        """Return a spec with the permissions that its session has been given so far."""
        entry = self._journal.entries.get(spec.session_id)
        if entry is not None and entry.generation == spec.generation:
            return entry.spec
        request = msgspec.structs.replace(spec.request, permissions_file=None)
        return msgspec.structs.replace(spec, request=request)

    # Steps

    async def _start(self, spec: SessionSpec, *, has_older: bool) -> None:
        """Start a session. Whatever else goes wrong leaves it noted as starting, to be begun again
        or stopped; the driver leaves nothing behind."""
        id = spec.session_id
        await self._note(spec, Phase.STARTING)
        try:
            if has_older:
                await self._end(spec)
            # What has ended so far was the older one.
            self._ends.pop(id, None)
            await self._driver.start(spec)
        except StartFailed as error:
            self._starts.discard(id)
            log.info("session.start-failed", extra={"session_id": id, "reason": error.message})
            await self._note(spec, Phase.FAILED, error.message)
        else:
            self._starts.discard(id)
            log.info("session.started", extra={"session_id": id, "owner": spec.request.owner})
            await self._note(spec, Phase.RUNNING)

    async def _permit(self, spec: SessionSpec) -> None:
        id = spec.session_id
        try:
            await self._driver.permit(spec)
        except (Unavailable, OSError):
            if id not in self._ends:
                raise
        else:
            log.info("session.permissions-changed", extra={"session_id": id})
            await self._note(spec, Phase.RUNNING)

    async def _stop(self, spec: SessionSpec) -> None:
        id = spec.session_id
        await self._end(spec)
        self._presence.forget(id)
        log.info("session.stopped", extra={"session_id": id})
        await self._note(spec, Phase.ENDED)

    async def _end(self, spec: SessionSpec) -> None:
        """Have a session ended; raise `Unavailable` where the driver shows it even then.

        Told as an end, that would be asked for again at once, and so on for ever.
        """
        await self._driver.stop(spec.session_id)
        if 0 < (await self._look()).get(spec.session_id, 0) <= spec.generation:
            raise Unavailable("the session has been stopped, and is still there")

    async def _look(self) -> dict[str, int]:
        """Look at what runs, once for all who ask for it at one moment."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_now())
        return await asyncio.shield(self._looking)

    async def _look_now(self) -> dict[str, int]:
        self._looking = None
        return self._running()

    async def _note(self, spec: SessionSpec, phase: Phase, reason: str | None = None) -> None:
        told = None if reason is None else cut(reason)
        entry = Entry(spec=spec, phase=phase, reason=told)
        await self._journal.write(spec.session_id, entry)
        self._on_change()

    async def _forget(self, id: str, *, over: int = 0) -> None:
        await self._journal.forget(id, over=over)
        self._on_change()


def _permissions(spec: SessionSpec) -> str | None:
    return spec.request.permissions_file
