"""The driver of Amazon DCV servers, through their `dcv` program.

The DCV server runs the sessions and lets their clients in; the driver creates, closes and shows
them, and looks every few seconds at what runs. Laws: what was not created by deskfleet is taken up
with its own id; a session whose creation failed, hung or was cut short is proven not to be there
before anybody is told, and where the server doesn't answer, as soon as it does again; a server
that doesn't answer is trouble, and nothing that ran has ended for that.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from deskfleet.agent.drivers import dcv_plan
from deskfleet.agent.drivers.dcv_files import DcvFiles, read_picture
from deskfleet.agent.drivers.dcv_logon import run_what_waits
from deskfleet.agent.drivers.dcv_plan import Files
from deskfleet.agent.drivers.dcv_platform import DcvPlatform, Preparation
from deskfleet.agent.drivers.dcv_record import DcvRecords, intended
from deskfleet.agent.drivers.dcv_server import DEFAULT_DOORS, DcvServer
from deskfleet.agent.drivers.dcv_sessions import SURE_SECONDS, DcvSessions
from deskfleet.agent.drivers.lookups import Lookups
from deskfleet.agent.drivers.pictures import encode, picture_format
from deskfleet.agent.settling import settled
from deskfleet.errors import Missing, StartFailed, Unavailable
from deskfleet.ports import Clock, Door, Picture, Running, Service, SessionSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0
PROOF_SECONDS = 45.0
"""How long it is tried to prove that a session which failed to start is not there."""
CUT_SHORT_PROOF_SECONDS = 10.0
"""The same for a start that was cancelled: somebody waits for the agent to go on, or to end."""
CLOSE_SECONDS = 30.0
AGAIN_SECONDS = 0.2
"""The first wait before an undoing is tried again; each is twice as long as the one before."""
LONGEST_AGAIN_SECONDS = 2.0
SERVICE_SECONDS = 600.0
SERVICE_AGAIN_SECONDS = 30.0
"""The same where not all could be learned."""
UNKNOWN_VERSION = "unknown"


class DcvDriver:
    name = "dcv"

    def __init__(
        self,
        server: DcvServer,
        state: Path,
        files: DcvFiles,
        *,
        platform: DcvPlatform,
        clock: Clock,
        poll_seconds: float = POLL_SECONDS,
        proof_seconds: float = PROOF_SECONDS,
    ) -> None:
        """`state` keeps what is known of sessions."""
        self._server, self._platform, self._clock = server, platform, clock
        self._sessions = DcvSessions(server, DcvRecords(state), clock)
        self._files = files
        self._lookups = Lookups()
        self._poll_seconds, self._proof_seconds = poll_seconds, proof_seconds
        self.on_change: Callable[[], None] = lambda: None
        self._shown: list[Running] = []
        self._polling: asyncio.Task[None] | None = None
        self._version = UNKNOWN_VERSION
        self._doors: tuple[Door, ...] = ()
        self._service_due = 0.0
        self._closing: dict[str, asyncio.Future[str | None]] = {}
        """Sessions that a look is closing."""

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        self._sessions.recall()
        self._files.make(self._sessions.scripts())
        ended: list[tuple[str, str]] = []
        self._sessions.on_end = lambda session_id, reason: ended.append((session_id, reason))
        with suppress(Unavailable):
            await self._look()
        self._sessions.on_end = on_end
        self._tell_of_replaced(ended)
        self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        await self._sessions.close()
        self._lookups.close()

    def _tell_of_replaced(self, ended: Iterable[tuple[str, str]]) -> None:
        """Tell of sessions that ended while no agent was there, and whose id another one has.

        That the others have ended is seen by what runs.
        """
        shown = {one.session_id for one in self._sessions.running()}
        for session_id, reason in ended:
            if session_id in shown:
                tell = self._sessions.on_end
                asyncio.get_running_loop().call_soon(tell, session_id, reason)

    def running(self) -> Sequence[Running]:
        return self._sessions.running()

    async def start(self, spec: SessionSpec) -> None:
        known = self._sessions.get(spec.session_id)
        if known is not None and known.ready:
            if known.running.generation == spec.generation:
                return
            if known.running.generation > spec.generation:
                raise StartFailed("a later placement of this session runs already")
            await self.stop(spec.session_id)
        with self._sessions.working_on(spec.session_id):
            closing = self._closing.get(spec.session_id)
            if closing is not None:
                await asyncio.wait({closing})
            if known is not None and not known.ready:
                await self._undo(spec.session_id, self._proof_seconds)
            await self._start(spec)

    async def stop(self, session_id: str) -> None:
        with self._sessions.working_on(session_id):
            await self._undo(session_id, CLOSE_SECONDS)

    async def permit(self, spec: SessionSpec) -> None:
        with self._files.permissions(dcv_plan.permissions_text(spec.request)) as file:
            refusal = await self._server.permit(spec.session_id, file)
        if refusal is not None:
            raise Unavailable(f"the DCV server does not take the permissions: {refusal}")

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        encoded_as = picture_format(format)
        known = self._sessions.get(session_id)
        if known is None or not known.ready:
            raise Missing(f"session {session_id} does not run here")
        width, height = max(1, max_width), max(1, max_height)
        with self._files.picture() as path:
            taken_at = self._clock.now()
            refusal = await self._server.shoot(
                session_id, max_width=width, max_height=height, format=encoded_as, output=path
            )
            if refusal is not None:
                raise Unavailable(f"the DCV server gives no picture: {refusal}")
            content = await asyncio.to_thread(_picture, path, width, height, encoded_as)
        return [Picture(format=encoded_as, content=content, taken_at=taken_at)]

    def display_socket(self, session_id: str) -> Path | None:
        """Return None: the DCV server lets clients in."""

    async def version(self) -> str:
        return self._version

    async def trouble(self) -> str | None:
        return self._sessions.trouble

    def service(self) -> Service:
        """Return what is known of the server; what isn't known yet are its defaults."""
        return Service(
            version=self._version, types=self._platform.types, doors=self._doors or DEFAULT_DOORS
        )

    async def _poll(self) -> None:
        """Look at the server now and then."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                try:
                    await self._look()
                    await run_what_waits(self._sessions, self._platform)
                finally:
                    self._show()
            except Unavailable:
                # After an outage it may be another release, behind other ports.
                self._service_due = 0.0
            except Exception:
                # An agent that looks no more would show an old picture for ever.
                log.exception("dcv-server.look-failed")

    def _show(self) -> None:
        """Tell where something new is to be seen, whoever's look has brought it."""
        running = self._sessions.running()
        if running != self._shown:
            self._shown = running
            self.on_change()

    async def _look(self) -> None:
        """Bring what is known up to date, and close what should not be."""
        await self._sessions.look()
        if self._sessions.has_missing():
            await asyncio.sleep(SURE_SECONDS)
            await self._sessions.look()
        for session_id in self._sessions.unwanted():
            await self._close_unwanted(session_id)
        if self._clock.monotonic() >= self._service_due:
            await self._learn_service()

    async def _close_unwanted(self, session_id: str) -> None:
        if session_id not in self._sessions.unwanted():
            # While others were closed it has become wanted again.
            return
        log.warning("session.unwanted", extra={"session_id": session_id})
        closing = asyncio.ensure_future(self._server.close(session_id))
        self._closing[session_id] = closing
        try:
            await closing
        except Unavailable as error:
            log.warning("dcv-server.close-failed", extra={"reason": error.message})
        finally:
            del self._closing[session_id]

    async def _learn_service(self) -> None:
        """Ask what is asked seldom: what can't be learned keeps nothing else from being told."""
        wait = SERVICE_SECONDS
        try:
            self._version = await self._server.version()
        except Unavailable as error:
            wait = SERVICE_AGAIN_SECONDS
            log.warning("dcv-server.version-unknown", extra={"reason": error.message})
        try:
            self._doors = await self._server.doors()
        except Unavailable as error:
            wait = SERVICE_AGAIN_SECONDS
            log.warning("dcv-server.doors-unknown", extra={"reason": error.message})
        self._service_due = self._clock.monotonic() + wait

    async def _start(self, spec: SessionSpec) -> None:
        session_id = spec.session_id
        preparation = await self._lookups.of(partial(self._platform.prepare, spec))
        self._begin(spec, preparation)
        try:
            why = await self._create(spec, preparation)
        except (Unavailable, OSError) as error:
            why = str(error)
        except BaseException:
            self._sessions.give_up(session_id)
            await settled(asyncio.ensure_future(self._undo_soon(session_id)))
            raise
        if why is not None:
            self._sessions.give_up(session_id)
            await self._undo(session_id, self._proof_seconds)
            raise StartFailed(why)

    def _begin(self, spec: SessionSpec, preparation: Preparation) -> None:
        try:
            if preparation.autorun:
                init = preparation.init or self._platform.default_init
                preparation.init = preparation.script = self._files.write_script(
                    init, preparation.autorun
                )
            self._sessions.begin(intended(spec, preparation.script, preparation.at_log_on))
        except OSError as error:
            raise StartFailed(f"the session could not be set up: {error.strerror}") from error

    async def _create(self, spec: SessionSpec, preparation: Preparation) -> str | None:
        """Create a session and see that it is there; return why it could not be."""
        with self._files.permissions(preparation.permissions) as file:
            files = Files(init=preparation.init, permissions=file)
            arguments = dcv_plan.creation(spec.session_id, spec.request, files)
            refusal = await self._server.create(arguments)
        if refusal is not None:
            return refusal
        found = (await self._sessions.look()).get(spec.session_id)
        if found is None:
            return "the DCV server did not keep the session"
        self._sessions.confirm(found)
        return None

    async def _undo_soon(self, session_id: str) -> None:
        """Undo a creation if that is possible soon; otherwise later looks do it."""
        with suppress(Unavailable):
            await self._undo(session_id, CUT_SHORT_PROOF_SECONDS)

    async def _undo(self, session_id: str, seconds: float) -> None:
        """Return when a session is proven not to be there, closed where it was.

        Raises `Unavailable` where that could not be had in time.
        """
        deadline = self._clock.monotonic() + seconds
        wait = AGAIN_SECONDS
        while True:
            try:
                if session_id not in await self._sessions.look():
                    self._sessions.forget(session_id)
                    return
                why = await self._server.close(session_id)
                if why is None and session_id not in await self._sessions.look():
                    self._sessions.forget(session_id)
                    return
                problem = f"the DCV server does not close the session: {why or 'it stays'}"
            except Unavailable as error:
                problem = error.message
            if self._clock.monotonic() >= deadline:
                raise Unavailable(problem)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_AGAIN_SECONDS)


def _picture(path: Path, max_width: int, max_height: int, format: str) -> bytes:
    """Return what the DCV server drew, made smaller where it is larger than was asked."""
    from PIL import Image  # noqa: PLC0415 - see pictures.py

    content = read_picture(path)
    try:
        with Image.open(io.BytesIO(content), formats=[format]) as screen:
            if screen.width <= max_width and screen.height <= max_height:
                return content
            screen.load()
            return encode(screen, max_width=max_width, max_height=max_height, format=format)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Unavailable("the DCV server left a picture that is none") from error
