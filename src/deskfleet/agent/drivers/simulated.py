"""The driver of sessions that are not there: no processes, no desktops, all the manners.

For trying the product out, for load tests, and for tests of everything above a driver. With a
state folder, sessions survive the driver as real ones do: one small file each, so that ten
thousand stay cheap. `end`, `fail_next_start` and `hang_next_start` play the accidents.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deskfleet.agent.drivers.pictures import encode, picture_format
from deskfleet.errors import Missing, StartFailed
from deskfleet.machine import here
from deskfleet.ports import Clock, Picture, Running, SessionSpec

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

_SCREEN = (1280, 800)
_TEXT_SIZE = 48
_MARGIN = 60


class SimulatedDriver:
    name = "simulated"

    def __init__(
        self, clock: Clock, *, start_seconds: float = 0.0, state_dir: Path | None = None
    ) -> None:
        self._clock, self._start_seconds, self._state_dir = clock, start_seconds, state_dir
        self._running: dict[str, Running] = {}
        self._on_end: Callable[[str, str], None] = lambda _session_id, _reason: None
        self._fails: str | None = None
        self._hangs = False
        self.unhealthy: str | None = None
        """What `trouble` answers."""

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        self._on_end = on_end
        if self._state_dir is not None:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            self._running = {found.session_id: found for found in _read_all(self._state_dir)}

    async def close(self) -> None:
        self._running = {}

    def running(self) -> Sequence[Running]:
        return list(self._running.values())

    async def start(self, spec: SessionSpec) -> None:
        current = self._running.get(spec.session_id)
        if current is not None and current.generation == spec.generation:
            return
        if current is not None and current.generation > spec.generation:
            raise StartFailed("a later placement of this session runs already")
        hangs, self._hangs = self._hangs, False
        reason, self._fails = self._fails, None
        if hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self._start_seconds)
        if reason is not None:
            raise StartFailed(reason)
        self._keep(
            Running(
                session_id=spec.session_id,
                generation=spec.generation,
                owner=spec.request.owner,
                type=spec.request.type,
                name=spec.request.name,
                created_at=self._clock.now(),
            )
        )

    async def stop(self, session_id: str) -> None:
        self._forget(session_id)

    async def permit(self, spec: SessionSpec) -> None:
        """Return: nobody connects, or the entrance asks by itself."""

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        encoded_as = picture_format(format)
        session = self._running.get(session_id)
        if session is None:
            raise Missing(f"session {session_id} does not run here")
        taken_at = self._clock.now()
        content = await asyncio.to_thread(
            lambda: encode(
                _screen(session), max_width=max_width, max_height=max_height, format=encoded_as
            )
        )
        return [Picture(format=encoded_as, content=content, taken_at=taken_at)]

    def display_socket(self, session_id: str) -> Path | None:
        """Return None: there is nothing to connect to."""

    async def version(self) -> str:
        return "1.0"

    async def trouble(self) -> str | None:
        return self.unhealthy

    def end(self, session_id: str, reason: str) -> None:
        """Let a running session end as if by itself."""
        if self._forget(session_id):
            self._on_end(session_id, reason)

    def fail_next_start(self, reason: str) -> None:
        self._fails = reason

    def hang_next_start(self) -> None:
        """Let the next start wait until it is cancelled."""
        self._hangs = True

    def _keep(self, session: Running) -> None:
        if self._state_dir is not None:
            path = _path(self._state_dir, session.session_id)
            draft = path.with_suffix(".new")
            try:
                draft.write_bytes(msgspec.json.encode(session))
            except OSError:
                # A full disk, say: half a file would keep what others could use.
                draft.unlink(missing_ok=True)
                raise
            here.replace(draft, path)
        self._running[session.session_id] = session

    def _forget(self, session_id: str) -> bool:
        """Forget a session; return whether it ran."""
        if self._state_dir is not None:
            _path(self._state_dir, session_id).unlink(missing_ok=True)
        return self._running.pop(session_id, None) is not None


def _path(state_dir: Path, session_id: str) -> Path:
    name = hashlib.blake2b(session_id.encode(), digest_size=16).hexdigest()
    return state_dir / f"{name}.json"


def _read_all(state_dir: Path) -> list[Running]:
    found = []
    for path in sorted(state_dir.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Running))
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.warning("session.record-broken", extra={"path": str(path)})
            path.unlink()
    return found


def _screen(session: Running) -> Image.Image:
    """Return the desktop of a session: its name on a colour of its own."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - see pictures.py

    red, green, blue = hashlib.blake2b(session.session_id.encode(), digest_size=3).digest()
    screen = Image.new("RGB", _SCREEN, (red // 2, green // 2, blue // 2))
    pen = ImageDraw.Draw(screen)
    font = ImageFont.load_default(_TEXT_SIZE)
    pen.text((_MARGIN, _MARGIN), f"{session.name}\n{session.owner}", fill="white", font=font)
    return screen
