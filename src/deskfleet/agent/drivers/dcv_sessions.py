"""Which sessions a DCV server runs, as far as is known: a picture that is looked at for nothing.

Owns that picture and the records on the disk. Laws: silence ends nothing (a session is over when
the server, answering well, has twice not named it, with a while between); lists alone say which
sessions there are, and nothing that is refused of one of them; what the driver is at work on is
left alone by looks; a session that should not be, because its creation was given up, is never
adopted but named in `unwanted` until the server has not shown it for long.

A look lists the server's sessions. Who asks for one gets one that began after they asked, and all
who ask at one moment share it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from deskfleet.agent.drivers.dcv_answers import Listed
from deskfleet.agent.drivers.dcv_record import DcvRecord, DcvRecords, observed, recorded
from deskfleet.agent.drivers.dcv_server import DcvServer
from deskfleet.errors import Unavailable
from deskfleet.ports import Clock, Running

log = logging.getLogger(__name__)

Look = Mapping[str, Listed]

UNWANTED_SECONDS = 600.0
"""How long a server may take to come out with a session whose creation was given up."""
SURE_SECONDS = 1.0
"""How long a session has been named by no list before it is over."""
LOOKS_PER_DESCRIPTION = 20
"""After how many looks it is asked again what a session is that lists say little of."""


@dataclass(frozen=True, slots=True)
class Visitors:
    """Who was connected to a session when the server was asked."""

    count: int
    names: tuple[str, ...] = ()
    """Fewer where it didn't say."""


class DcvSessions:
    def __init__(self, server: DcvServer, records: DcvRecords, clock: Clock) -> None:
        self._server, self._records, self._clock = server, records, clock
        self._known: dict[str, DcvRecord] = {}
        self._unwanted: dict[str, float] = {}
        """Until when sessions are closed that should not be; for ever until a look misses them."""
        self._busy: set[str] = set()
        self._touched: dict[str, int] = {}
        self._moment = 0
        self._absent: dict[str, float] = {}
        """Since when ready sessions are named by no list."""
        self._looks = 0
        self._unsaid: set[str] = set()
        """Listed sessions of which the server did not say more when it was asked last."""
        self._seen: dict[str, Listed] = {}
        self._visitors: dict[str, Visitors] = {}
        self._current: asyncio.Task[Look] | None = None
        self._next: asyncio.Task[Look] | None = None
        self.on_end: Callable[[str, str], None] = lambda _session_id, _reason: None
        self.trouble: str | None = None
        """Why the server doesn't answer; None when it did last time."""

    def recall(self) -> None:
        """Take up what an earlier agent knew."""
        for record in self._records.read_all():
            self._known[record.session_id] = record
            if not record.ready:
                self.give_up(record.session_id)

    def scripts(self) -> list[str]:
        """Return the files that sessions were started with."""
        return [one.script for one in self._known.values() if one.script is not None]

    def running(self) -> list[Running]:
        return [record.running for record in self._known.values() if record.ready]

    def get(self, session_id: str) -> DcvRecord | None:
        return self._known.get(session_id)

    def unwanted(self) -> list[str]:
        """Return sessions that the last look showed and that are to be closed."""
        return [id for id in self._seen if id in self._unwanted and id not in self._busy]

    def has_missing(self) -> bool:
        """Tell whether another look, `SURE_SECONDS` later, would make a difference."""
        return bool(self._absent)

    def begin(self, record: DcvRecord) -> None:
        """Put on record that a session is about to be created."""
        self._records.write(record)
        self._known[record.session_id] = record
        self._unwanted.pop(record.session_id, None)

    def confirm(self, one: Listed) -> None:
        """Put on record that a session is ready: from now on an agent after us takes it up."""
        record = observed(one, self._known[one.id])
        self._records.write(record)
        self._known[one.id] = record

    def give_up(self, session_id: str) -> None:
        """From now on a session of this id should not be."""
        self._unwanted[session_id] = math.inf

    def forget(self, session_id: str) -> None:
        """Drop all that is known of a session that certainly is not there."""
        record = self._known.pop(session_id, None)
        if record is not None:
            self._records.remove(record)

    def waiting_for_log_on(self) -> list[tuple[str, str, str]]:
        """Return session id, owner and file of all autorun files that wait for their owner."""
        return [
            (record.session_id, record.running.owner, record.at_log_on)
            for record in self._known.values()
            if record.ready and record.at_log_on is not None
        ]

    def strike_out(self, session_id: str) -> bool:
        """Put on record that an autorun file doesn't wait any more; False where it is gone."""
        record = self._known.get(session_id)
        if record is None:
            return False
        self._keep(msgspec.structs.replace(record, at_log_on=None))
        return True

    @contextmanager
    def working_on(self, session_id: str) -> Iterator[None]:
        """Keep looks from drawing conclusions about a session."""
        self._busy.add(session_id)
        try:
            yield
        finally:
            self._busy.discard(session_id)
            # A look that began before this moment knows nothing of what was done.
            self._moment += 1
            self._touched[session_id] = self._moment

    async def look(self) -> Look:
        """Return all sessions of the server as of now. Raises `Unavailable`."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._look_after(self._current))
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Give up looking, and let go of everything."""
        looks = [task for task in (self._current, self._next) if task is not None]
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        self._known.clear()

    async def _look_after(self, current: asyncio.Task[Look] | None) -> Look:
        if current is not None:
            await asyncio.wait({current})
        self._current, self._next = self._next, None
        self._moment += 1
        moment = self._moment
        try:
            found = await self._list()
        except Unavailable as error:
            if self.trouble is None:
                log.warning("dcv-server.silent", extra={"reason": error.message})
            self.trouble = error.message
            raise
        if self.trouble is not None:
            log.info("dcv-server.back")
        self.trouble = None
        self._take(found, moment)
        return found

    async def _list(self) -> dict[str, Listed]:
        self._looks += 1
        found, unclear = {}, set()
        for one in await self._server.sessions():
            whole = await self._whole(one)
            if whole is None:
                unclear.add(one.id)
            else:
                found[one.id] = await self._counted(whole)
        if unclear:
            # They may have ended since. If not, nothing is known that could be shown.
            still = unclear & {one.id for one in await self._server.sessions()}
            if still:
                raise Unavailable(f"the DCV server does not say what session {min(still)} is")
        return found

    async def _whole(self, one: Listed) -> Listed | None:
        """Fill up what a list leaves out, asking again only where something has moved.

        Where the server says no more, what was known stands; None where that is nothing.
        """
        if one.type and one.num_of_connections is not None:
            return one
        seen = self._seen.get(one.id)
        if seen is None or self._is_due(one, seen):
            said = await self._server.session(one.id)
            (self._unsaid.add if said is None else self._unsaid.discard)(one.id)
            seen = said or self._as_known(one, seen)
        if seen is None:
            return None
        return seen

    async def _counted(self, one: Listed) -> Listed:
        """Find out who is connected to a session, asking only where that may have changed."""
        count = one.num_of_connections
        if count == 0:
            self._visitors[one.id] = Visitors(0)
            return one
        known = self._visitors.get(one.id)
        if known is None or count is None or known.count != count or self._is_turn():
            # A server that says no may still have said how many they are.
            names = await self._server.visitors(one.id) or ()
            known = self._visitors[one.id] = Visitors(len(names) if count is None else count, names)
        return msgspec.structs.replace(one, num_of_connections=known.count)

    def _is_turn(self) -> bool:
        return self._looks % LOOKS_PER_DESCRIPTION == 0

    def _is_due(self, one: Listed, seen: Listed) -> bool:
        return (
            one.num_of_connections != seen.num_of_connections
            or one.id in self._unsaid
            or one.owner not in {"", seen.owner}
            or one.name not in {"", seen.name}
            or one.creation_time not in {"", seen.creation_time}
            or self._is_turn()
        )

    def _as_known(self, one: Listed, seen: Listed | None) -> Listed | None:
        """Fill up what a list leaves out with what was seen before, or is on record."""
        record = self._known.get(one.id)
        if seen is None and record is not None:
            seen = recorded(record)
        if seen is None:
            return None
        told = {name: value for name, value in msgspec.structs.asdict(one).items() if value != ""}
        if one.num_of_connections is None:
            del told["num_of_connections"]
        return msgspec.structs.replace(seen, **told)

    def _take(self, found: Look, moment: int) -> None:
        self._seen = dict(found)
        self._visitors = {id: who for id, who in self._visitors.items() if id in found}
        known = self._known.keys() | found.keys()
        for id in known - self._busy:
            if self._touched.get(id, 0) > moment:
                continue
            if id in found:
                self._take_one(found[id])
            else:
                self._miss(id)
        self._touched = {id: at for id, at in self._touched.items() if at > moment}
        missed = self._known.keys() - found.keys()
        self._absent = {id: since for id, since in self._absent.items() if id in missed}
        self._unsaid &= found.keys()
        now = self._clock.monotonic()
        latest = now + UNWANTED_SECONDS
        ends = {
            id: math.inf if id in found else min(until, latest)
            for id, until in self._unwanted.items()
        }
        self._unwanted = {id: until for id, until in ends.items() if until > now}

    def _take_one(self, one: Listed) -> None:
        if one.id in self._unwanted:
            return
        record = self._known.get(one.id)
        if record is not None and record.is_ours and not record.is_about(one):
            self._end(record)
            record = None
        if record is None:
            log.info("session.adopted", extra={"session_id": one.id, "owner": one.owner})
        self._keep(observed(one, record, self._visitors[one.id].names))

    def _miss(self, id: str) -> None:
        record, now = self._known[id], self._clock.monotonic()
        if not record.ready:
            self.forget(id)
        elif now - self._absent.setdefault(id, now) >= SURE_SECONDS:
            self._end(record)

    def _end(self, record: DcvRecord) -> None:
        id = record.session_id
        self.forget(id)
        # Later: whoever is told may ask for more of us.
        tell = partial(self.on_end, id, "the DCV server does not run it any more")
        asyncio.get_running_loop().call_soon(tell)

    def _keep(self, record: DcvRecord) -> None:
        before = self._known.get(record.session_id)
        self._known[record.session_id] = record
        if before == record:
            return
        try:
            self._records.write(record)
        except OSError as error:
            # What is known is right all the same; only the next agent may know less.
            log.warning("session.record-failed", extra={"reason": str(error)})


def _retrieve(task: asyncio.Task[Look]) -> None:
    """Take note of a failure that nobody waits for any more: `trouble` tells of it."""
    if not task.cancelled():
        task.exception()
