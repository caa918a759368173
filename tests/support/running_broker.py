"""A whole broker in a thread of its own: real doors on loopback, and its parts within reach."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvloop

from deskfleet.broker import main as broker_main
from deskfleet.broker.main import Doors
from deskfleet.broker.service.access import Audience, Credentials
from deskfleet.broker.service.house import House
from deskfleet.core.change import Put
from deskfleet.core.records import Record
from deskfleet.ports import Store
from deskfleet.settings import BrokerSettings

T = TypeVar("T")

LIFE = timedelta(hours=1)
START_SECONDS = 60.0
CALL_SECONDS = 30.0
OURS = ("deskfleet", "uvicorn")
"""Loggers that are heard in full; of all others, warnings."""


class Recorder(logging.Handler):
    """Keeps everything that is logged, with all its facts."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def events(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def text(self) -> str:
        formatter = logging.Formatter()
        told = [f"{formatter.format(record)} {record.__dict__}" for record in self.records]
        return "\n".join(told)


class RunningBroker:
    """What tests ask of a broker that runs in another thread."""

    def __init__(
        self,
        doors: Doors,
        loop: asyncio.AbstractEventLoop,
        log: Recorder,
        thread: threading.Thread,
    ) -> None:
        self.doors = doors
        self.log = log
        self._loop = loop
        self._thread = thread
        self.client: Credentials = self.call(self.house.access.register_api_client("tests"))
        self.statement: str = self.call(self.house.access.generate_software_statement())
        self.token = self.sign(Audience.API, sub=self.client.client_id)
        self.context = ssl.create_default_context(cafile=str(doors.ca_file))

    @property
    def house(self) -> House:
        return self.doors.house

    @property
    def broker_id(self) -> str:
        return self.house.housekeeping._broker.id

    def wait_for_end(self) -> None:
        """Wait until the broker ends by itself."""
        self._thread.join(CALL_SECONDS)
        assert not self._thread.is_alive()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    def sign(self, audience: Audience, life: timedelta = LIFE, **claims: Any) -> str:
        async def signed() -> str:
            return self.house.access.sign(audience, claims, life)

        return self.call(signed())

    def write(self, *records: Record) -> None:
        """Put records into the store as they are, whatever was there."""
        replica = self.house.replica

        async def written() -> None:
            def decision() -> tuple[None, tuple[Put, ...]]:
                expect = replica.fleet.revision_of
                return None, tuple(Put(one, expect(type(one), one.id)) for one in records)

            await replica.decide(decision)

        self.call(written())

    def http(self, port: int) -> httpx.Client:
        return httpx.Client(
            verify=self.context, base_url=f"https://localhost:{port}", timeout=CALL_SECONDS
        )

    @contextmanager
    def raw(self, port: int) -> Iterator[ssl.SSLSocket]:
        """Open a TLS connection to say on it what no HTTP library would."""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=CALL_SECONDS) as plain,
            self.context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            yield wrapped


def read_all(connection: ssl.SSLSocket) -> bytes:
    """Read until the broker closes the connection."""
    answer = bytearray()
    try:
        while chunk := connection.recv(65_536):
            answer += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return bytes(answer)


@contextmanager
def running_broker(
    state: Path, store: Store | None = None, **settings: Any
) -> Iterator[RunningBroker]:
    """Run a broker; what it ends with, if not as asked, is raised at the end."""
    log = Recorder()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    ready: list[Doors] = []
    begun, end = threading.Event(), asyncio.Event()
    failure: list[BaseException] = []

    async def serve() -> None:
        base = {
            "state": state,
            "client_port": 0,
            "agent_port": 0,
            "client_host": "127.0.0.1",
            "agent_host": "127.0.0.1",
            "advertise": "127.0.0.1",
        }
        async with broker_main.running(BrokerSettings(**{**base, **settings}), store) as doors:
            ready.append(doors)
            begun.set()
            await end.wait()

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - it is raised in the test's thread
            failure.append(error)
        finally:
            begun.set()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    root = logging.getLogger()
    root.addHandler(log)
    levels = {name: logging.getLogger(name).level for name in OURS}
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    thread = threading.Thread(target=work, name="broker")
    thread.start()
    try:
        assert begun.wait(START_SECONDS)
        if failure:
            raise failure[0]
        yield RunningBroker(ready[0], loop, log, thread)
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(end.set)
        thread.join(CALL_SECONDS)
        assert not thread.is_alive()
        root.removeHandler(log)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    if failure:
        raise failure[0]
