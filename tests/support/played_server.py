"""A server that is played over the real agent door: it speaks the link protocol by itself.

It enrols, links and reports as an agent does, from a thread of its own, and obeys what it is told
at once, so that a test can cause from outside whatever a server may say of itself: another system,
another user at the console, a driver in trouble, screens that never answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from deskfleet.core.records import Endpoint, Facts, Host, Intent, Os, Phase, Report, Type
from deskfleet.core.session import replace
from deskfleet.ports import Picture, Running
from deskfleet.wire.messages import (
    VERSION,
    Desire,
    Desired,
    FactsChanged,
    FromAgent,
    FromBroker,
    Heartbeat,
    Hello,
    Observation,
    Observed,
    Screenshot,
    TakeScreenshot,
    Welcome,
    decode_from_broker,
    encode,
)
from support.programs import trust

LIMIT_SECONDS = 20.0

LINUX = Os(family="linux", name="Debian GNU/Linux", version="12", kernel_version="6.1.0")
MACOS = Os(family="macos", name="macOS", version="14.5")
WINDOWS = Os(
    family="windows",
    name="Windows Server 2016 Datacenter",
    version="10.0.14393",
    build_number="14393",
)


def some_facts(name: str, *, os: Os = LINUX, **fields: Any) -> Facts:
    """Describe a server; a test names only what it is about."""
    host = Host(os=os, memory_total=8_795_672_576, memory_used=1_743_886_336)
    return Facts(
        **{
            "id": name,
            "hostname": name,
            "ip": "192.0.2.10",
            "host": host,
            "driver": "played",
            "version": "2024.0.1",
            "agent_version": "2024.0.2",
            "boot_id": "boot",
            "endpoints": (Endpoint(ip_address="192.0.2.10", port=8443),),
            "tags": {"played": name},
            **fields,
        }
    )


class PlayedServer:
    """One server. Sessions run from the moment they are wanted, unless a test says otherwise."""

    def __init__(self, url: str, ca_file: Path, statement: str, facts: Facts) -> None:
        self._context = trust(ca_file)
        self._url = url
        self.facts = facts
        self.starts = Phase.RUNNING
        """What becomes of a session that is to be started: RUNNING, STARTING or FAILED."""
        self.failure = "it was made to fail"
        """The reason of starts that fail."""
        self.stops = True
        """Whether a session ends when it is to be ended."""
        self.screens: Sequence[tuple[int, int]] | None = ((1280, 800),)
        """The sizes of each session's screens, the primary one first; None never answers."""
        self.starts_asked = 0
        self.wishes: list[TakeScreenshot] = []
        """All that it was asked to show."""
        self._observed: dict[str, Observed] = {}
        self._desires: dict[str, Desire] = {}
        self._lock = threading.RLock()
        self._serial = 0
        self._epoch = 0
        self._is_hushed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: ClientConnection | None = None
        self._thread: threading.Thread | None = None
        self._credentials = self._enrol(statement)

    @property
    def id(self) -> str:
        return self._credentials[0]

    def __enter__(self) -> Self:
        return self.link()

    def __exit__(self, *_: object) -> None:
        self.cut()

    def link(self) -> Self:
        """Connect, and serve the link from a thread."""
        linked: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=[linked], daemon=True)
        self._thread.start()
        linked.result(LIMIT_SECONDS)
        return self

    def cut(self) -> None:
        """Vanish: the link ends, and nobody speaks for this server any more."""
        loop, socket, thread = self._loop, self._socket, self._thread
        self._socket = self._thread = None
        if loop is not None and socket is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: loop.create_task(socket.close()))
        if thread is not None:
            thread.join(LIMIT_SECONDS)

    def hush(self) -> None:
        """Say nothing any more, over a link that stays."""
        self._is_hushed = True

    def say(self, **facts: Any) -> None:
        """Report other facts of this server."""
        self.facts = replace(self.facts, **facts)
        self._send(FactsChanged(epoch=self._epoch, facts=self.facts))

    def report(self, session_id: str, **fields: Any) -> None:
        """Report something else of one session."""
        with self._lock:
            old = self._observed[session_id]
            self._observed[session_id] = replace(old, report=replace(old.report, **fields))
        self.tell()

    def show(self, session_id: str, owner: str, name: str = "", type: Type = Type.VIRTUAL) -> None:
        """Run a session that no broker has asked for."""
        running = Running(session_id=session_id, generation=0, owner=owner, type=type, name=name)
        with self._lock:
            self._observed[session_id] = self._observation(session_id, 0, Phase.RUNNING, running)
        self.tell()

    def tell(self) -> None:
        """Report the whole observed set."""
        with self._lock:
            observed = tuple(self._observed.values())
            self._send(Observation(epoch=self._epoch, serial=self._serial, observed=observed))

    def desire(self, session_id: str) -> Desire | None:
        """Return what was last wanted of a session here."""
        return self._desires.get(session_id)

    def _enrol(self, statement: str) -> tuple[str, str]:
        body = {"software_statement": statement, "client_name": self.facts.hostname}
        answer = self._post("/register", json=body)
        return answer["client_id"], answer["client_secret"]

    def _post(self, path: str, **request: Any) -> Any:
        if "auth" in request:
            request["data"] = {"grant_type": "client_credentials"}
        with httpx.Client(verify=self._context, trust_env=False, timeout=LIMIT_SECONDS) as http:
            answer = http.post(self._url + path, **request)
        assert answer.is_success, answer.text
        return answer.json()

    def _run(self, linked: Future[None]) -> None:
        token = self._post("/oauth2/token", auth=self._credentials)["access_token"]
        try:
            asyncio.run(self._hold(token, linked))
        except Exception as error:  # noqa: BLE001  whoever waits is told
            if not linked.done():
                linked.set_exception(error)

    async def _hold(self, token: str, linked: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        url = self._url.replace("https://", "wss://") + "/agent/link"
        headers = {"Authorization": f"Bearer {token}"}
        async with connect(
            url, ssl=self._context, additional_headers=headers, proxy=None
        ) as socket:
            observed = tuple(self._observed.values())
            hello = Hello(version=VERSION, facts=self.facts, observed=observed)
            await socket.send(encode(hello).decode())
            welcome = decode_from_broker(await socket.recv())
            assert isinstance(welcome, Welcome), welcome
            self._epoch, self._socket = welcome.epoch, socket
            linked.set_result(None)
            beating = asyncio.create_task(self._beat(welcome.heartbeat_seconds / 2))
            with contextlib.suppress(ConnectionClosed):
                async for text in socket:
                    self._hear(decode_from_broker(text))
            beating.cancel()

    def _send(self, message: FromAgent) -> None:
        loop, socket = self._loop, self._socket
        if loop is not None and socket is not None and not self._is_hushed:
            text = encode(message).decode()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: loop.create_task(_say(socket, text)))

    async def _beat(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            self._send(Heartbeat(epoch=self._epoch))

    def _hear(self, message: FromBroker) -> None:
        match message:
            case Desired() as desired:
                self._obey(desired)
            case TakeScreenshot() as wish:
                self._show_screens(wish)

    def _obey(self, desired: Desired) -> None:
        with self._lock:
            self._serial = desired.serial
            self._desires = {one.spec.session_id: one for one in desired.desires}
            for desire in desired.desires:
                self._follow(desire)
        self.tell()

    def _follow(self, desire: Desire) -> None:
        spec, known = desire.spec, self._observed.get(desire.spec.session_id)
        if desire.intent is Intent.RUN:
            if known is None or known.report.generation < spec.generation:
                self.starts_asked += 1
                running = Running(
                    session_id=spec.session_id,
                    generation=spec.generation,
                    owner=spec.request.owner,
                    type=spec.request.type,
                    name=spec.request.name,
                )
                observation = self._observation(
                    spec.session_id, spec.generation, self.starts, running
                )
                # An agent tells it only where the broker does not know it any more.
                self._observed[spec.session_id] = replace(observation, spec=spec)
        elif self.stops:
            self._observed[spec.session_id] = self._observation(
                spec.session_id, spec.generation, Phase.ENDED, None
            )

    def _observation(
        self, session_id: str, generation: int, phase: Phase, running: Running | None
    ) -> Observed:
        reason = self.failure if phase is Phase.FAILED else None
        report = Report(
            id=session_id,
            server_id=self.id,
            generation=generation,
            phase=phase,
            reason=reason,
        )
        return Observed(report=report, running=running if phase is Phase.RUNNING else None)

    def _show_screens(self, wish: TakeScreenshot) -> None:
        self.wishes.append(wish)
        if self.screens is None:
            return
        pictures = tuple(
            _picture(wish, size, primary=number == 0) for number, size in enumerate(self.screens)
        )
        # The primary one last: the broker owes its clients the order.
        self._send(Screenshot(request=wish.request, pictures=pictures[::-1]))


async def _say(socket: ClientConnection, text: str) -> None:
    with contextlib.suppress(ConnectionClosed):
        await socket.send(text)


def _picture(wish: TakeScreenshot, size: tuple[int, int], *, primary: bool) -> Picture:
    screen = Image.new("RGB", size, "navy")
    screen.thumbnail((wish.max_width, wish.max_height))
    content = io.BytesIO()
    screen.save(content, wish.format)
    return Picture(
        format=wish.format,
        content=content.getvalue(),
        taken_at=datetime.now(UTC),
        primary=primary,
    )
