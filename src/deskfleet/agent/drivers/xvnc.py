"""The driver of our own desktops: TigerVNC's Xvnc, reached through a UNIX socket.

Owns the sessions of one runtime folder: starts each under a session leader of its own (see
the package leader), watches that leader, clears what is left when it ends, and takes up what an
earlier agent started. Laws: a session that did not become ready, and one that ended, leaves
nothing, or what is left is known, tried again (see xvnc_remains.py) and kept from being called
gone; a session's end is told once, and only after it has been cleared. Blocking work is done in
the driver's own threads.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from deskfleet.agent.drivers.cgroups import enter_group, make_group
from deskfleet.agent.drivers.leader_copy import install_leader, remove_other_copies
from deskfleet.agent.drivers.lookups import Lookups
from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.drivers.pictures import encode, picture_format
from deskfleet.agent.drivers.processes import boot_id, identify, watch
from deskfleet.agent.drivers.rfb_picture import take_picture
from deskfleet.agent.drivers.runtime_hold import Hold
from deskfleet.agent.drivers.session_folders import RuntimeFolders, prepare_socket_folders
from deskfleet.agent.drivers.xvnc_clearing import clear, group_name
from deskfleet.agent.drivers.xvnc_installation import XvncInstallation
from deskfleet.agent.drivers.xvnc_launch import (
    next_word,
    send_order,
    spawn_leader,
)
from deskfleet.agent.drivers.xvnc_plan import Plan, Planner
from deskfleet.agent.drivers.xvnc_record import Records, SessionRecord
from deskfleet.agent.drivers.xvnc_remains import Remains
from deskfleet.agent.settling import settled
from deskfleet.agent.threads import Threads
from deskfleet.errors import Missing, StartFailed, Unavailable
from deskfleet.ports import Clock, Picture, Running, SessionSpec

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 16
_PICTURE_LIMIT_SECONDS = 5.0
_TROUBLE_SECONDS = 10.0
_REASON_LIMIT_SECONDS = 5.0
_STOP_LIMIT_SECONDS = 45.0


@dataclass(slots=True)
class _Session:
    """A session that runs, or ends just now."""

    record: SessionRecord
    watched: int
    """Can be read when the leader has ended; -1 once nobody waits for that."""
    ending: asyncio.Task[None] | None = None
    stopped: bool = False


class XvncDriver:
    name = "xvnc"

    def __init__(
        self,
        runtime_dir: Path,
        *,
        owners: OwnerPolicy,
        clock: Clock,
        init_folder: Path,
        autorun_folder: Path,
        geometry: str = "1280x800",
        start_limit_seconds: float = 60.0,
        control_groups: bool = True,
    ) -> None:
        """`control_groups` says whether to use them where they can be; all works without."""
        self._folders = RuntimeFolders(runtime_dir)
        self._records = Records(self._folders.records)
        self._installation = XvncInstallation()
        self._clock, self._start_limit = clock, start_limit_seconds
        self._control_groups = control_groups
        self._planner = Planner(
            folders=self._folders,
            installation=self._installation,
            owners=owners,
            clock=clock,
            init_folder=init_folder,
            autorun_folder=autorun_folder,
            geometry=geometry,
            start_limit_seconds=start_limit_seconds,
        )
        self._sessions: dict[str, _Session] = {}
        self._threads = Threads(_THREADS, "xvnc")
        self._lookups = Lookups()
        self._remains = Remains(lambda key: self._begin(clear, self._folders, self._records, key))
        self._large_picture = threading.Lock()
        self._on_end: Callable[[str, str], None] = lambda _session_id, _reason: None
        self._hold: Hold | None = None
        self._leader = Path()
        self._trouble: tuple[float, str | None] | None = None

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        self._on_end = on_end
        alive, left = await self._to_the_end(self._take_stock)
        for record in alive:
            if self._watch(record):
                log.info("session.adopted", extra={"session_id": record.spec.session_id})
            else:
                left[record.key] = record.spec.session_id
        remnants = [self._remains.begin(key, session_id) for key, session_id in left.items()]
        if remnants:
            await asyncio.wait({one.tried for one in remnants})

    async def close(self) -> None:
        endings = []
        for session in self._sessions.values():
            self._unwatch(session)
            if session.ending is not None:
                session.ending.cancel()
                endings.append(session.ending)
        await asyncio.gather(*endings, return_exceptions=True)
        await self._remains.close()
        self._sessions.clear()
        if self._hold is not None:
            await self._to_the_end(self._hold.leave, self._folders.is_unused)
        self._lookups.close()
        self._threads.close()

    def running(self) -> Sequence[Running]:
        """Return our sessions; one that ends is there until nothing is left of it."""
        return [session.record.running() for session in self._sessions.values()]

    async def start(self, spec: SessionSpec) -> None:
        """See `SessionDriver`; what a start leaves that can't be removed at once is in its reason,
        is removed later, and `stop` knows of it."""
        if await self._runs_already(spec):
            return
        plan = await self._lookups.of(functools.partial(self._planner.plan, spec))
        try:
            await self._bring_up(plan)
        except BaseException as error:
            remnant = self._remains.begin(plan.record.key, spec.session_id)
            if not await settled(remnant.tried) and isinstance(error, StartFailed):
                why = f"{error.message}; parts of it can't be removed yet"
                raise StartFailed(why) from error
            raise

    async def stop(self, session_id: str) -> None:
        endings = self._remains.of(session_id)
        session = self._sessions.get(session_id)
        if session is not None:
            session.stopped = True
            endings.add(self._begin_end(session))
        if not endings:
            return
        # Neither our cancellation nor our limit cuts the clearing short: it runs on by itself.
        done, unfinished = await asyncio.wait(endings, timeout=_STOP_LIMIT_SECONDS)
        if unfinished or any(one.cancelled() or one.exception() for one in done):
            raise Unavailable("parts of the session can't be removed yet")

    async def permit(self, spec: SessionSpec) -> None:
        """Return: the entrance asks by itself."""

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        encoded_as = picture_format(format)
        display = self.display_socket(session_id)
        if display is None:
            raise Missing(f"session {session_id} does not run here")
        taken_at = self._clock.now()

        def shoot() -> bytes:
            with take_picture(display, _PICTURE_LIMIT_SECONDS, self._large_picture) as screen:
                return encode(screen, max_width=max_width, max_height=max_height, format=encoded_as)

        content = await self._in_thread(shoot)
        return [Picture(format=encoded_as, content=content, taken_at=taken_at)]

    def display_socket(self, session_id: str) -> Path | None:
        session = self._sessions.get(session_id)
        if session is None or session.ending is not None:
            return None
        return self._folders.display(session.record.key)

    async def version(self) -> str:
        return await self._in_thread(self._installation.version)

    async def trouble(self) -> str | None:
        now = self._clock.monotonic()
        if self._trouble is None or now - self._trouble[0] >= _TROUBLE_SECONDS:
            # Not behind starts and ends, which may be many: the agent beats no sooner.
            self._trouble = now, await asyncio.to_thread(self._installation.trouble)
        return self._trouble[1]

    def _take_stock(self) -> tuple[list[SessionRecord], dict[str, str | None]]:
        """Prepare the folders; return what runs, and by its key whose session all else was."""
        runtime = self._folders.runtime
        self._hold = Hold(runtime, lambda: remove_other_copies(runtime))
        self._folders.make()
        try:
            prepare_socket_folders()
        except OSError as error:
            # Each start tries it again, and says so. What runs already is at home with it.
            log.warning("x-sockets.unusable", extra={"reason": error.strerror})
        self._leader = install_leader(runtime, self._installation.interpreter_if_any())
        alive: list[SessionRecord] = []
        left: dict[str, str | None] = {}
        for key in sorted(self._records.keys() | self._folders.keys()):
            try:
                record = self._records.read(key)
            except OSError:
                # Told of when it is cleared.
                record = None
            if record is not None and _lives(record):
                alive.append(record)
            else:
                left[key] = None if record is None else record.spec.session_id
        return alive, left

    async def _runs_already(self, spec: SessionSpec) -> bool:
        session = self._sessions.get(spec.session_id)
        if session is not None and session.ending is None:
            if session.record.spec.generation == spec.generation:
                return True
            if session.record.spec.generation > spec.generation:
                raise StartFailed("a later placement of this session runs already")
        await self.stop(spec.session_id)
        return False

    async def _bring_up(self, plan: Plan) -> None:
        """Start a session and watch it from now on; raise `StartFailed` with why it can't be."""
        key = plan.record.key
        try:
            async with asyncio.timeout(self._start_limit):
                await self._launch(plan)
            if not self._watch(self._recorded(key)):
                raise StartFailed(await self._why_ended(key))
        except TimeoutError:
            raise StartFailed(
                f"the session did not start within {self._start_limit:g} seconds"
            ) from None
        except OSError as error:
            raise StartFailed(f"the session could not be set up: {error.strerror}") from error

    async def _launch(self, plan: Plan) -> None:
        """Start a leader and return when it says that the session is ready."""
        report = await self._start_leader(plan)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), report
        )
        try:
            while not (said := await next_word(reader)).ready:
                if said.failed is not None:
                    raise StartFailed(said.failed)
                record = msgspec.structs.replace(
                    self._recorded(plan.record.key), display=said.display, x_pid=said.x
                )
                await self._to_the_end(self._records.write, record)
        finally:
            transport.close()
        await self._to_the_end(self._confirm, plan.record.key)

    async def _start_leader(self, plan: Plan) -> FileIO:
        job = self._begin(self._spawn, plan)
        try:
            return await settled(job)
        except asyncio.CancelledError:
            if job.exception() is None:
                job.result().close()
            raise

    def _spawn(self, plan: Plan) -> FileIO:
        """Start a leader and order its session; return where it reports.

        Each step is on record before the next: whoever comes after us can clear from there.
        """
        record, owner = plan.record, plan.owner
        self._records.write(record)
        prepare_socket_folders()
        self._folders.make_session(record.key, owner.uid, owner.gid)
        spawned = spawn_leader(plan.interpreter, self._leader, owner, plan.environment)
        with spawned.order, ExitStack() as unless_ordered:
            unless_ordered.enter_context(spawned.report)
            record = msgspec.structs.replace(record, leader=identify(spawned.pid))
            self._records.write(record)
            group = make_group(group_name(record.key)) if self._control_groups else None
            if group is not None and enter_group(group, spawned.pid):
                self._records.write(msgspec.structs.replace(record, cgroup=str(group)))
            send_order(spawned, plan.order)
            unless_ordered.pop_all()
        return spawned.report

    def _confirm(self, key: str) -> None:
        """Put on record that a session is ready: from now on an agent after us takes it up."""
        record = self._recorded(key)
        self._folders.publish_display(key, record.uid)
        self._records.write(msgspec.structs.replace(record, ready=True))

    def _recorded(self, key: str) -> SessionRecord:
        record = self._records.read(key)
        if record is None:
            raise StartFailed("the session's record has been removed")
        return record

    def _watch(self, record: SessionRecord) -> bool:
        """Wait for the end of a session from now on; return whether it still runs."""
        descriptor = watch(record.leader) if record.leader is not None else None
        if descriptor is None:
            return False
        session = _Session(record, descriptor)
        self._sessions[record.spec.session_id] = session
        asyncio.get_running_loop().add_reader(descriptor, self._begin_end, session)
        return True

    def _unwatch(self, session: _Session) -> None:
        if session.watched >= 0:
            asyncio.get_running_loop().remove_reader(session.watched)
            os.close(session.watched)
            session.watched = -1

    def _begin_end(self, session: _Session) -> asyncio.Task[None]:
        """Return the task that ends with nothing left of a session; one that failed is replaced."""
        if session.ending is None or session.ending.done():
            self._unwatch(session)
            session.ending = asyncio.create_task(self._end(session))
        return session.ending

    async def _end(self, session: _Session) -> None:
        """Clear a session until nothing is left, then forget it, and tell if nobody stopped it."""
        key, session_id = session.record.key, session.record.spec.session_id
        reason = None if session.stopped else await self._why_ended(key)
        await self._remains.begin(key, session_id).gone
        del self._sessions[session_id]
        if not session.stopped:
            self._on_end(session_id, reason or "the session leader was killed")

    async def _why_ended(self, key: str) -> str | None:
        try:
            async with asyncio.timeout(_REASON_LIMIT_SECONDS):
                return await self._in_thread(self._folders.why_ended, key)
        except (TimeoutError, RuntimeError):
            # It lies where its owner can do anything. The end must not depend on it.
            return None

    def _begin(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        return self._threads(functools.partial(function, *args, **kwargs))

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._begin(function, *args, **kwargs)

    async def _to_the_end(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread what must not be left half done: a cancellation comes only after it."""
        return await settled(self._begin(function, *args, **kwargs))


def _lives(record: SessionRecord) -> bool:
    return (
        record.ready
        and record.boot_id == boot_id()
        and record.leader is not None
        and identify(record.leader.pid) == record.leader
    )
