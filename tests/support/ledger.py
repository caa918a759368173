"""An account of what brokers have answered, kept outside of them, and the clients that fill it.

A `Writer` creates and deletes without a pause, through kills and faults. What was answered with
yes is owed for ever; what was not answered may have happened or not, but never twice. `audit`
compares all that is owed with what a broker shows.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from support.programs import Portal, trust

ALIVE = {"CREATING", "READY", "UNKNOWN"}
DEAD = {"DELETING", "DELETED"}
PAUSE_SECONDS = 0.02
ANSWER_SECONDS = 3.0


@dataclass(slots=True)
class Ledger:
    """What was asked for and answered; names are unique, ids come with the answers."""

    asked: set[str] = field(default_factory=set)
    created: dict[str, str] = field(default_factory=dict)
    """Name of each session by its id."""
    deleting: set[str] = field(default_factory=set)
    """Asked to be deleted, answered or not."""
    deleted: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Writer(threading.Thread):
    """One client that writes until it is stopped, and writes down what it was told."""

    def __init__(
        self,
        ledger: Ledger,
        urls: Sequence[str],
        trust: ssl.SSLContext,
        headers: dict[str, str],
        name: str,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.turn = threading.Lock()
        """Held while it asks for something."""
        self._ledger = ledger
        self._random = random.Random(name)
        self._mine: list[str] = []
        self._count = 0
        self._enough = threading.Event()
        self._clients = [
            httpx.Client(
                base_url=url, verify=trust, timeout=ANSWER_SECONDS, trust_env=False, headers=headers
            )
            for url in urls
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join(20)
        assert not self.is_alive()
        for client in self._clients:
            client.close()

    def run(self) -> None:
        while not self._enough.wait(PAUSE_SECONDS):
            with self.turn:
                if self._mine and self._random.random() < 0.5:
                    self._end_one(self._mine.pop(self._random.randrange(len(self._mine))))
                else:
                    self._begin_one()

    def _begin_one(self) -> None:
        self._count += 1
        name = f"{self.name}-{self._count}"
        self._ledger.asked.add(name)
        item = {"Name": name, "Owner": self.name, "Type": "VIRTUAL"}
        answer = self._post("/createSessions", [item])
        if answer is None:
            return
        for one in answer["SuccessfulList"]:
            self._ledger.created[one["Id"]] = name
            self._mine.append(one["Id"])
        for one in answer["UnsuccessfulList"]:
            self._ledger.refused[one["FailureReason"]] += 1

    def _end_one(self, session_id: str) -> None:
        self._ledger.deleting.add(session_id)
        answer = self._post("/deleteSessions", [{"SessionId": session_id, "Owner": self.name}])
        if answer is None:
            # In doubt: a client would ask again, and so does this one, sooner or later.
            self._mine.append(session_id)
        elif answer["SuccessfulList"]:
            self._ledger.deleted.add(session_id)
        else:
            (failure,) = answer["UnsuccessfulList"]
            self._ledger.refused[failure["FailureReason"]] += 1

    def _post(self, path: str, body: Any) -> Any:
        """Return the answer, None where there is none that says yes or no."""
        client = self._random.choice(self._clients)
        try:
            answer = client.post(path, json=body)
        except httpx.TransportError as error:
            self._ledger.errors[type(error).__name__] += 1
            return None
        if answer.status_code != 200:
            self._ledger.errors[f"{answer.status_code} {answer.text[:100]}"] += 1
            return None
        return answer.json()


def writers(
    ledger: Ledger, portal: Portal, ca_file: Path, urls: Sequence[str], count: int
) -> list[Writer]:
    """Return clients with the token of a portal, not yet started."""
    headers = {"Authorization": portal._http.headers["Authorization"]}
    return [Writer(ledger, urls, trust(ca_file), headers, f"writer{n}") for n in range(count)]


@contextlib.contextmanager
def at_rest(writers: Sequence[Writer]) -> Iterator[None]:
    """Let none of them ask for anything for a while."""
    with contextlib.ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer.turn)
        yield


def described(portal: Portal) -> dict[str, dict[str, Any]]:
    """Return all sessions by their ids, through all pages."""
    found: dict[str, dict[str, Any]] = {}
    token = None
    while True:
        answer = portal.call("/describeSessions", {"NextToken": token} if token else {})
        for one in answer["Sessions"]:
            assert one["Id"] not in found, f"{one['Id']} stands on two pages"
            found[one["Id"]] = one
        token = answer.get("NextToken")
        if not token:
            return found


def audit(ledger: Ledger, portal: Portal, seats: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Compare what is owed with what is shown; return what is shown.

    `seats` holds the limit of each server, by its id. The writers are at rest.
    """
    shown = described(portal)
    mine = {id: one for id, one in shown.items() if one["Name"] in ledger.asked}
    lost = set(ledger.created) - set(shown)
    assert not lost, f"answered with yes, and not there: {lost}"
    for id, name in ledger.created.items():
        assert shown[id]["Name"] == name
    undone = {id: shown[id]["State"] for id in ledger.deleted if shown[id]["State"] not in DEAD}
    assert not undone, f"deleted, and back again: {undone}"
    kept = set(ledger.created) - ledger.deleting
    gone = {id: shown[id] for id in kept if shown[id]["State"] not in ALIVE}
    assert not gone, f"never deleted, and gone: {gone}"
    twice = [name for name, n in Counter(one["Name"] for one in mine.values()).items() if n > 1]
    assert not twice, f"asked for once, and there twice: {twice}"
    taken = Counter(
        one["Server"]["Id"]
        for one in shown.values()
        if one["State"] != "DELETED" and one.get("Server")
    )
    over = {id: taken[id] for id, limit in seats.items() if taken[id] > limit}
    assert not over, f"more sessions than seats: {over}"
    return shown
