"""The DCV server of this machine, reached through its `dcv` program.

One method for each thing that it can do. Law: what can't be known raises `Unavailable` with a
sentence (it did not answer in time, printed nonsense or too much, can't be run); an answer that is
a plain no is a value. Each call has a time limit and ends with nothing of it running. Changes wait
for each other so that a few run at once; other changes do not wait for creations, which may hang
for long, and questions for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path, PurePath

from deskfleet.agent.drivers import commands, dcv_answers, dcv_plan
from deskfleet.agent.drivers.commands import Answer
from deskfleet.agent.drivers.dcv_answers import HTTP, QUIC, Listed
from deskfleet.errors import Unavailable
from deskfleet.ports import Door

ANSWER_SECONDS = 8.0
"""A server that takes longer to say what runs is not well, and is said to be so in time."""
CHANGES_AT_ONCE = 4
PICTURES_AT_ONCE = 2
DEFAULT_PORT = 8443
DEFAULT_DOORS = (Door(port=DEFAULT_PORT), Door(port=DEFAULT_PORT, protocol=QUIC))
_CONNECTIVITY = "connectivity"


class DcvServer:
    def __init__(
        self,
        program: Path,
        *,
        create_seconds: float = 60.0,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._program = program
        self._create_seconds, self._answer_seconds = create_seconds, answer_seconds
        self._creations = asyncio.Semaphore(CHANGES_AT_ONCE)
        self._changes = asyncio.Semaphore(CHANGES_AT_ONCE)
        self._pictures = asyncio.Semaphore(PICTURES_AT_ONCE)

    async def sessions(self) -> list[Listed]:
        """Return all sessions of the server; a `type` may be missing (see `session`)."""
        return dcv_answers.sessions(self._told(await self._ask(dcv_plan.listing())))

    async def session(self, session_id: str) -> Listed | None:
        """Return all that is known of one session; None where the server says no."""
        answer = await self._ask(dcv_plan.describing(session_id))
        return dcv_answers.session(answer.output) if answer.code == 0 else None

    async def visitors(self, session_id: str) -> tuple[str, ...] | None:
        """Return the user of each client that is connected; None where the server says no."""
        answer = await self._ask(dcv_plan.connections(session_id))
        return dcv_answers.visitors(answer.output) if answer.code == 0 else None

    async def create(self, arguments: Sequence[str]) -> str | None:
        """Create a session by `dcv_plan.creation`; return why the server refuses, if it does."""
        async with self._creations:
            return _refusal(await self._ask(arguments, self._create_seconds))

    async def close(self, session_id: str) -> str | None:
        """Close a session; return why the server refuses, if it does."""
        async with self._changes:
            return _refusal(await self._ask(dcv_plan.closing(session_id)))

    async def permit(self, session_id: str, file: PurePath | None) -> str | None:
        """Replace a session's permissions; return why the server refuses, if it does."""
        async with self._changes:
            return _refusal(await self._ask(dcv_plan.permitting(session_id, file)))

    async def shoot(
        self, session_id: str, *, max_width: int, max_height: int, format: str, output: PurePath
    ) -> str | None:
        """Write a picture of the primary screen to a file; return why there is none."""
        arguments = dcv_plan.screenshot(
            session_id, max_width=max_width, max_height=max_height, format=format, output=output
        )
        async with self._pictures:
            return _refusal(await self._ask(arguments))

    async def version(self) -> str:
        answer = self._told(await self._ask(dcv_plan.version()))
        found = dcv_answers.version(answer)
        if found is None:
            raise Unavailable("the DCV server does not say its version")
        return found

    async def doors(self) -> tuple[Door, ...]:
        """Return where clients reach the server: by what it says, its settings, or the defaults."""
        answer = await self._ask(dcv_plan.endpoints())
        told = dcv_answers.doors(answer.output) if answer.code == 0 else ()
        if any(door.protocol == HTTP for door in told):
            return told
        return await self._configured_doors()

    async def _configured_doors(self) -> tuple[Door, ...]:
        path = await self._setting("web-url-path")
        path = path if path is not None and path.startswith("/") else "/"
        ways = {HTTP: "web-port"}
        if (await self._setting("enable-quic-frontend")) != "false":
            ways[QUIC] = "quic-port"
        return tuple(
            [
                Door(port=_port(await self._setting(key)), web_url_path=path, protocol=protocol)
                for protocol, key in ways.items()
            ]
        )

    async def _setting(self, key: str) -> str | None:
        answer = await self._ask(dcv_plan.configuration(_CONNECTIVITY, key))
        return dcv_answers.setting(answer.output) if answer.code == 0 else None

    async def _ask(self, arguments: Sequence[str], seconds: float | None = None) -> Answer:
        return await commands.run(
            [str(self._program), *arguments], limit_seconds=seconds or self._answer_seconds
        )

    def _told(self, answer: Answer) -> bytes:
        if answer.code != 0:
            raise Unavailable(f"the DCV server does not answer: {answer.last_words()}")
        return answer.output


def _refusal(answer: Answer) -> str | None:
    return None if answer.code == 0 else answer.last_words()


def _port(text: str | None) -> int:
    number = int(text) if text is not None and text.isascii() and text.isdecimal() else 0
    return number if 0 < number < 2**16 else DEFAULT_PORT
